#!/usr/bin/env bash
# test_cancel - a signal in the middle of the work: exit 12, one line, nothing half done.
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"

mkdir "$work/src" "$work/dst"
"$heft" init -q "$config" "$work/dst/old"
destinations=$(snapshot "$work/dst")

# source_of MEGABYTES: a sparse checkpoint, eight tensors
source_of() {
    local each=$(($1 * 1048576 / 8)) header='' i
    for i in 0 1 2 3 4 5 6 7; do
        header="$header${header:+,}\"t$i\":{\"dtype\":\"F32\",\"shape\":[$((each / 4))],\"data_offsets\":[$((i * each)),$(((i + 1) * each))]}"
    done
    write_safetensors "$work/src/model.safetensors" "{$header}" $((8 * each))
}
# cancel SIGNAL ARGUMENTS...: once something temporary is there, send the signal; sets $code
cancel() {
    local number=$1 process i
    shift
    last="heft $*"
    "$heft" "$@" >"$out" 2>"$err" </dev/null &
    process=$!
    for ((i = 0; i < 2000; i++)); do
        [ -z "$(find "$work/dst" -name '*heft-tmp*' 2>/dev/null)" ] || break
        kill -0 "$process" 2>/dev/null || break
    done
    kill -s "$number" "$process" 2>/dev/null || true
    code=0
    wait "$process" || code=$?
}
# A machine may be done before the signal comes: then once more with twice the work.
cancels() { # cancels SIGNAL DST OPTIONS...
    local megabytes=128
    while :; do
        source_of "$megabytes"
        cancel "$1" convert "$work/src" "$work/dst/$2" "${@:3}"
        if [ "$code" != 0 ] || [ "$megabytes" -ge 1024 ]; then
            break
        fi
        rm -rf "$work/dst/new"
        "$heft" init -q "$config" "$work/dst/old" --force
        megabytes=$((megabytes * 2))
    done
    [ "$code" = 12 ] || fail "$last and SIG$1: exit $code: $(cat "$out" "$err")"
    [ "$destinations" = "$(snapshot "$work/dst")" ] || fail "$last and SIG$1: left $(find "$work/dst")"
}

# a shell without job control has background jobs ignore SIGINT, which heft respects
for signal in TERM HUP; do
    cancels "$signal" new
    silent "$out"
    lines "$err" 1
    shows "$err" '^heft convert: cancelled$'
    cancels "$signal" old --force --keep-side-files --format bin --max-shard-size 16MiB
done
cancels TERM new --format offload
cancels HUP old --force --keep-side-files --format offload
cancels TERM new --json
silent "$err"
is_json
has status '"CANCELLED"'

# --resume keeps what is finished, says so, and continues from it
megabytes=128
while :; do
    source_of "$megabytes"
    rm -rf "$work/dst/new"
    cancel TERM convert "$work/src" "$work/dst/new" --resume --max-shard-size 16MiB
    if [ "$code" != 0 ] || [ "$megabytes" -ge 1024 ]; then
        break
    fi
    megabytes=$((megabytes * 2))
done
[ "$code" = 12 ] || fail "$last: exit $code: $(cat "$out" "$err")"
lines "$err" 1
shows "$err" '^heft convert: cancelled; finished shards are kept in a hidden folder beside the destination'
run 0 convert -q "$work/src" "$work/dst/new" --resume --max-shard-size 16MiB
rm -rf "$work/dst/new"
[ "$destinations" = "$(snapshot "$work/dst")" ] || fail "$last: left $(find "$work/dst")"
