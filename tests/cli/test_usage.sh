#!/usr/bin/env bash
# test_usage - help, version, and command lines that cannot be.
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"

usage() { # usage COMMAND PATTERN ARGUMENTS...: exit 2, one line and where to find help
    local command=$1 pattern=$2
    shift 2
    run 2 "$@"
    silent "$out"
    lines "$err" 2
    shows "$err" "^heft${command:+ $command}: $pattern"
    shows "$err" "^try heft ${command:+$command }--help$"
}

# ---- heft ------------------------------------------------------------------------------------------------
run 0 --version
silent "$err"
shows "$out" '^heft [0-9]+\.[0-9]+\.[0-9]+$'
run 0 --help
silent "$err"
cp "$out" "$work/help"
for command in init load inspect convert verify diff plan shared; do
    shows "$out" "^  $command "
done
run 0 help
cmp -s "$out" "$work/help" || fail "heft help and heft --help differ"
usage "" 'expected a command'
usage "" "unknown command 'lode'" lode x
usage "" "unknown option '--foo'" --foo
usage "" "unknown command 'lode'" help lode

# ---- the option tables: help and the page in docs/commands have every option, and no other ----------------
count=0
for file in "$source_dir"/src/cli/cmd_*.c; do
    command=$(basename "$file" .c)
    command=${command#cmd_}
    page=$source_dir/docs/commands/$command.md
    run 0 "$command" --help
    silent "$err"
    cp "$out" "$work/help"
    run 0 help "$command"
    cmp -s "$out" "$work/help" || fail "heft help $command and heft $command --help differ"
    run 0 "$command" a b c --help --unknown
    shows "$out" "^usage: heft $command \[OPTIONS\]( [A-Z ]+)?$"
    {
        grep -oE 'X\([A-Z0-9_]+, "[a-z0-9-]+"' "$file" | sed 's/.*"\(.*\)"/--\1/'
        printf -- '--%s\n' json quiet verbose help
        [ "$command" = shared ] || echo --limit
    } | sort >"$work/table"
    grep -oE '^  (-[a-z],|   ) --[a-z0-9-]+' "$work/help" | grep -oE -- '--[a-z0-9-]+' | sort >"$work/listed"
    diff "$work/table" "$work/listed" >&2 || fail "heft $command --help and its option table differ"
    while read -r option; do
        case $option in --json | --quiet | --verbose | --help | --limit) continue ;; esac
        grep -qE -- "^\| \`${option}[\` =[]" "$page" || fail "$page: no row for $option"
        count=$((count + 1))
    done <"$work/listed"
    grep -oE -- '^\| `--[a-z0-9-]+' "$page" | grep -oE -- '--[a-z0-9-]+' | sort >"$work/page"
    while read -r option; do
        grep -qxF -- "$option" "$work/table" || fail "$page: $option is no option of heft $command"
    done <"$work/page"
done
[ "$count" -ge 25 ] || fail "only $count options were found in the tables"

# ---- wrong command lines ------------------------------------------------------------------------------------
usage load "unknown option '--foo'" load --foo x
usage load "unknown option '--foo'" load --foo=1 x
usage load "unknown option '--mod'" load --mod copy x
usage load "unknown option '-z'" load -z x
usage load "option '--strict' takes no value" load --strict=yes x
usage load "option '--mode' requires a value" load x --mode
usage load 'expected PATH' load
usage load "unexpected argument 'y'" load x y
usage load 'argument is empty' load ''
usage load "unexpected argument '--mode'" load -- x --mode
usage convert 'expected SRC DST' convert x
for word in --offload --offload-dir --max; do
    usage load "unknown option '$word'" load x "$word" y
done
run 2 load --foo --json x
silent "$err"
is_json
has status '"INVALID_ARG"'

# ---- values that cannot be: one line, and nothing is touched ---------------------------------------------------
mkdir "$work/src"
"$heft" init -q "$config" "$work/src/a"
before=$(snapshot "$work/src")
wrong() { # wrong OPTION VALUE COMMAND ARGUMENTS...
    local option=$1 value=$2
    shift 2
    fails 2 "$option: .+" "$@" "$option=$value"
    fails 2 "$option: .+" "$@" "$option" "$value"
    same "$before" "$work/src"
    [ ! -e "$work/dst" ] || fail "$last: made a destination"
}
for size in '' 0 -1 1e9 200QB MB '5 5MB' 0x10 1,5GB 99999999999999999999; do
    wrong --max-shard-size "$size" convert "$work/src/a" "$work/dst"
    wrong --max-shard-size "$size" init "$config" "$work/dst"
done
wrong --dtype float3 convert "$work/src/a" "$work/dst"
wrong --dtype int8 convert "$work/src/a" "$work/dst"
wrong --dtype auto convert "$work/src/a" "$work/dst"
wrong --format onnx convert "$work/src/a" "$work/dst"
wrong --format onnx init "$config" "$work/dst"
wrong --seed -1 init "$config" "$work/dst"
wrong --seed 1.5 init "$config" "$work/dst"
wrong --seed 18446744073709551616 init "$config" "$work/dst"
wrong --seed '' load "$work/src/a"
wrong --mode lent load "$work/src/a"
wrong --dtype quad load "$work/src/a"

# ---- options may stand anywhere; the last one counts; -- ends them ----------------------------------------------
run 0 inspect --json "$work/src/a"
cp "$out" "$work/plain"
run 0 inspect "$work/src/a" --json
cmp -s "$out" "$work/plain" || fail "$last: differs"
run 0 inspect --json -qv -- "$work/src/a"
cmp -s "$out" "$work/plain" || fail "$last: differs"
run 0 inspect --format bin --format=safetensors --json "$work/src/a"
cmp -s "$out" "$work/plain" || fail "$last: differs"
cp -r "$work/src/a" "$work/--json"
(cd "$work" && "$heft" inspect -- --json | grep '^format' >/dev/null) || fail "heft inspect -- --json"

# ---- stdout that takes nothing is an error of writing -------------------------------------------------------------
code=0
"$heft" inspect "$work/src/a" >/dev/full 2>"$err" || code=$?
[ "$code" = 3 ] || fail "inspect >/dev/full: exit $code"
lines "$err" 1
shows "$err" 'standard output'
code=0
"$heft" inspect "$work/src/a" >&- 2>"$err" || code=$?
[ "$code" = 3 ] || fail "inspect >&-: exit $code"
code=0
"$heft" --help >/dev/full 2>"$err" || code=$?
[ "$code" = 3 ] || fail "--help >/dev/full: exit $code"
# a reader that has gone: the work is done, nothing temporary is left
{
    sleep 0.3
    code=0
    "$heft" convert "$work/src/a" "$work/piped" 2>"$err" || code=$?
    echo "$code" >"$work/code"
} | :
[ "$(cat "$work/code")" = 3 ] || fail "convert into a closed pipe: exit $(cat "$work/code")"
[ -f "$work/piped/model.safetensors" ] || fail "convert into a closed pipe: nothing written"
# a command that only shows something ends by SIGPIPE, and says nothing
{
    sleep 0.3
    code=0
    "$heft" inspect "$work/src/a" 2>"$err" || code=$?
    echo "$code" >"$work/code"
} | :
[ "$(cat "$work/code")" = 141 ] || fail "inspect into a closed pipe: exit $(cat "$work/code")"
silent "$err"
no_traces "$work"
