#!/usr/bin/env bash
# lib.sh - what the scripts of this folder share. Sourced first:
#
#   . "$(dirname "$0")/lib.sh"
#
# Each script is called with HEFT SOURCE_DIR BUILD_DIR. `run` calls the command; `$out` and `$err` are the files that its
# stdout and stderr went to. Works in $work, a folder of its own that goes away at the end.
set -euo pipefail
heft=$(realpath "$1") source_dir=$(realpath "$2")
export LC_ALL=C.UTF-8
# shellcheck disable=SC2034 # for the scripts: which sanitizers there are, with memory of their own; "" for none
sanitized=$(sed -n 's/^HEFT_SANITIZE:[A-Z]*=//p' "$3/CMakeCache.txt" 2>/dev/null || true)
manifests=OFF # whether the build has SHA-256, and so manifests
if grep -qE '^HEFT_(HAVE_OPENSSL|OPENSSL_AT_RUN_TIME):[A-Z]*=ON$' "$3/CMakeCache.txt" 2>/dev/null; then
    # shellcheck disable=SC2034 # for the scripts
    manifests=ON
fi
script=$(basename "$0" .sh)
work=$(mktemp -d)
out=$work/.out err=$work/.err
# shellcheck disable=SC2034 # for the scripts
config=$source_dir/tests/data/tiny-bert/config.json # 39 tensors, 23,392 parameters, 93,568 bytes
mounted=()

cleanup() {
    local at
    for at in ${mounted[@]+"${mounted[@]}"}; do
        umount "$at" || true
    done
    rm -rf "$work"
}
trap cleanup EXIT

fail() {
    printf '%s: %s\n' "$script" "$*" >&2
    exit 1
}
skip() { # a part of a script that this machine cannot do
    printf 'skipped: %s: %s\n' "$script" "$*"
}

# run CODE ARGUMENTS...: the command must end with CODE
last=
run() {
    local code=$1 got=0
    shift
    last="heft $*"
    "$heft" "$@" >"$out" 2>"$err" </dev/null || got=$?
    [ "$got" = "$code" ] || fail "$last: exit $got, expected $code: $(head -c 2000 "$out" "$err")"
}
shows() { # shows FILE PATTERN: a line of $out or $err looks like the extended regular expression
    grep -Eq -- "$2" "$1" || fail "$last: no line like '$2' in $(basename "$1"): $(head -c 2000 "$1")"
}
lacks() { # lacks FILE PATTERN
    ! grep -Eq -- "$2" "$1" || fail "$last: a line like '$2' in $(basename "$1"): $(grep -E -- "$2" "$1" | head -n 3)"
}
silent() { # silent FILE
    [ ! -s "$1" ] || fail "$last: $(basename "$1") should be empty: $(head -c 2000 "$1")"
}
lines() { # lines FILE N
    local count
    count=$(wc -l <"$1")
    [ "$count" = "$2" ] || fail "$last: $count lines in $(basename "$1"), expected $2: $(head -c 2000 "$1")"
}
# fails CODE PATTERN ARGUMENTS...: one clear line on stderr, nothing on stdout; and as a document with --json
fails() {
    local code=$1 pattern=$2
    shift 2
    run "$code" "$@"
    silent "$out"
    lines "$err" 1
    shows "$err" "^heft $1: .*$pattern"
    run "$code" "$@" --json
    silent "$err"
    is_json
    shows "$out" '^[{]"error": [{]"status": "[A-Z_]+", "message": "[^"].*", "path": ".*", "item": ".*", "offset": (null|[0-9]+)[}][}]$'
}

# is_json: $out is one valid document in one line, by replacing what is whole by `v` until nothing else is left
is_json() {
    lines "$out" 1
    awk '{
        gsub(/"([^"\\]|\\["\\\/bfnrtu])*"/, "s")
        gsub(/-?[0-9]+([.][0-9]+)?([eE][-+]?[0-9]+)?|true|false|null/, "v")
        do {
            n = gsub(/[{][}]|[{]s: [vs](, s: [vs])*[}]/, "v")
            n += gsub(/[[][]]|[[][vs](, [vs])*[]]/, "v")
        } while (n > 0)
        exit $0 != "v"
    }' "$out" || fail "$last: not valid JSON: $(head -c 2000 "$out")"
}
has() { # has KEY VALUE: the document has it, written like this
    grep -Fq -- "\"$1\": $2" "$out" || fail "$last: no \"$1\": $2 in $(head -c 2000 "$out")"
}

# snapshot FOLDER: names, kinds and contents of everything in it
snapshot() {
    (cd "$1" && find . -printf '%y %P %l\n' | sort && find . -type f -print0 | sort -z | xargs -0 -r sha256sum)
}
same() { # same BEFORE FOLDER
    [ "$1" = "$(snapshot "$2")" ] || fail "$last: $2 has changed: $(diff <(printf '%s\n' "$1") <(snapshot "$2") || true)"
}
no_traces() { # no_traces FOLDER: nothing temporary is left in it
    [ -z "$(find "$1" -name '*heft-tmp*')" ] || fail "$last: left behind: $(find "$1" -name '*heft-tmp*')"
}

# mount_tmpfs FOLDER OPTIONS: false where this user may not
mount_tmpfs() {
    mkdir -p "$1"
    [ "$(id -u)" = 0 ] && mount -t tmpfs -o "$2" tmpfs "$1" 2>/dev/null || return 1
    mounted+=("$1")
}

# le64 N: eight bytes
le64() {
    local i
    for i in 0 8 16 24 32 40 48 56; do
        # shellcheck disable=SC2059
        printf "\\$(printf '%03o' $((($1 >> i) & 255)))"
    done
}
# write_safetensors FILE HEADER BYTES: zeros for values; the file is sparse
write_safetensors() {
    local header=$2
    while [ $((${#header} % 8)) != 0 ]; do
        header="$header "
    done
    { le64 ${#header} && printf '%s' "$header"; } >"$1"
    truncate -s +"$3" "$1"
}
