#!/usr/bin/env bash
# test_needs - what `heft plan` says that loading will take is what it takes; with that as a limit it goes well.
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"
build_dir=$3
free=$(df -Pk "$work" | awk 'NR == 2 { print $4 }')
if [ "$free" -lt 1200000 ]; then
    skip "1.2 GB of disk needed below ${TMPDIR:-/tmp}"
    exit 0
fi
near=16000000 # bytes, or 5 %

number() { # number OBJECT KEY: of the last command's document
    sed -nE "s/.*\"$1\": \{[^}]*\"$2\": ([0-9]+).*/\1/p" "$out"
}
evict() { # out of the page cache, where the file system does that
    local file
    for file in "$1"/*.safetensors "$1"/*.bin; do
        [ ! -e "$file" ] || dd of="$file" oflag=nocache conv=notrunc,fdatasync count=0 status=none 2>/dev/null || true
    done
}
# holds PREDICTED LEAST ARGUMENTS...: of a load with a limit of address space that is the prediction
holds() {
    local predicted=$1 least=$2 got most
    shift 2
    if [ -n "$sanitized" ]; then # sanitizers have memory of their own
        run 0 load "$@" --json
        return
    fi
    (
        ulimit -v $((predicted / 1024))
        run 0 load "$@" --json
    )
    [ "$cache" = warm ] || evict "$work/$model"
    run 0 load "$@" --json
    got=$(number memory peak_rss_bytes)
    most=$((predicted / 20 > near ? predicted / 20 : near))
    if [ "$got" -gt "$predicted" ] || [ $((predicted - got)) -gt "$most" ]; then
        fail "$last: $got bytes at most, $predicted were predicted"
    fi
    [ "$got" -ge "$least" ] || fail "$last: $got bytes at most, at least $least were predicted"
}
checked=0
# truth MODEL MAP BUDGET [ARGUMENTS...]: plan, then load; then load with a pass over all blocks
truth() {
    local model=$1 map=$2 budget=$3 cache loading streaming one stream least stream_least
    shift 3
    for cache in warm cold; do
        cat "$work/$model"/* >/dev/null
        [ "$cache" = warm ] || evict "$work/$model"
        run 0 plan "$work/$model" --strategy "$map" --max-memory "$budget" "$@" --json
        loading=$(grep -oE '"peak_bytes": [0-9]+' "$out" | head -n 1 | grep -oE '[0-9]+')
        least=$(grep -oE '"least_bytes": [0-9]+' "$out" | head -n 1 | grep -oE '[0-9]+') stream_least=$(number stream least_bytes)
        streaming=$(number stream peak_bytes) one=$(number stream one_bytes) stream=$(number stream budget_bytes)
        holds "$loading" "$least" "$work/$model" --device-map "$map" --max-memory "$budget" "$@"
        [ "$cache" = warm ] || evict "$work/$model"
        if [ "$one" -le "$stream" ]; then
            holds "$streaming" "$stream_least" "$work/$model" --device-map "$map" --max-memory "$budget" "$@" --touch
            checked=$((checked + 1))
        else
            fails 9 "needs $one bytes, the budget is" load "$work/$model" --device-map "$map" --max-memory "$budget" "$@" --touch
        fi
    done
}

# BERT-base in half precision: 217 MB
run 0 init "$source_dir/examples/bert-base-cased/config.json" "$work/st" --dtype bf16 --max-shard-size 90MB
run 0 convert "$work/st" "$work/bins" --format bin --max-shard-size 120MB
printf '{"embeddings": "cpu", "encoder.layer.0": "disk", "encoder": "cpu", "pooler": "cpu"}' >"$work/map.json"
printf '{"": "cpu"}' >"$work/all.json"
truth st best cpu=150MB,disk
truth st sequential cpu=150MB,disk
truth st auto cpu=1GB
truth st "$work/map.json" cpu=1GB
truth st "$work/all.json" cpu=1GB
truth st best cpu=200MB,disk --dtype float32
truth bins best cpu=120MB,disk
truth bins auto cpu=130MB,disk --dtype float32
truth st best cpu=10MB,disk # no room for a block
# an engine's way through the blocks
"$build_dir/example_blocks" "$work/st" 150000000 >"$work/blocks"
lines "$work/blocks" 14
[ "$(grep -c ' 0 brought in' "$work/blocks")" -gt 3 ] || fail "nothing has memory: $(cat "$work/blocks")"
[ "$(grep -c '[1-9][0-9]* brought in' "$work/blocks")" -gt 3 ] || fail "nothing comes in: $(cat "$work/blocks")"
[ "$checked" -ge 14 ] || fail "only $checked passes were looked at"
