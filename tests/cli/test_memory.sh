#!/usr/bin/env bash
# test_memory - the guide's numbers on BERT-base-cased, and the most memory that each command may take.
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"
size=433241088 # bytes of the model

free=$(df -Pk "$work" | awk 'NR == 2 { print $4 }')
if [ "$free" -lt 2000000 ]; then
    skip "2 GB of disk needed below ${TMPDIR:-/tmp}"
    exit 0
fi

peak() { # peak BYTES: of the last command; sanitizers have memory of their own
    local bytes
    bytes=$(grep -oE '"peak_anon_bytes": [0-9]+' "$out" | grep -oE '[0-9]+$') || fail "$last: no peak in $(cat "$out")"
    [ -n "$sanitized" ] || [ "$bytes" -lt "$1" ] || fail "$last: a peak of $bytes bytes, $1 are allowed"
}

run 0 inspect "$source_dir/examples/bert-base-cased/config.json" --json
has total_size "$size"
run 0 init "$source_dir/examples/bert-base-cased/config.json" "$work/shards" --max-shard-size 200MB --json
peak 96000000
has total_size "$size"
has total_parameters 108310272
[ "$(grep -oE '"tensors": [0-9]+' "$out" | grep -oE '[0-9]+' | tr '\n' ' ')" = "65 112 22 " ] ||
    fail "$last: not three shards of 65, 112 and 22 tensors: $(cat "$out")"
golden=$source_dir/tests/data/guide/bert_base_cased_200MB.v5_v4.model.safetensors.index.json
cmp "$work/shards/model.safetensors.index.json" "$golden" || fail "the index differs from that of Transformers"

run 0 load "$work/shards" --mode map --touch --json
peak 8000000
has bytes "$size"
run 0 load "$work/shards" --mode copy --json
peak $((size + 64000000))
run 0 convert "$work/shards" "$work/bins" --format bin --max-shard-size 200MB --json
peak 96000000
rm -rf "$work/shards"
run 0 load "$work/bins" --mode map --json
peak 8000000
run 0 verify "$work/bins" --deep --json
peak 96000000
run 0 convert "$work/bins" "$work/one" --format safetensors --dtype bf16 --json
peak 96000000
has total_size $((size / 2))
