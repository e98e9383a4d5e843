#!/usr/bin/env bash
# test_many_shards - shards are opened in parallel: messages do not depend on the threads.
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"

for format in safetensors bin; do
    "$heft" init -q "$config" "$work/$format" --max-shard-size 1KB --format "$format"
    shards=("$work/$format/"*-of-*)
    ((${#shards[@]} > 18)) || fail "only ${#shards[@]} shards"
    run 0 load -q "$work/$format"
    run 0 inspect "$work/$format" --json
    cp "$out" "$work/whole"
    for _ in 1 2 3 4 5; do
        run 0 inspect "$work/$format" --json
        cmp -s "$out" "$work/whole" || fail "another order of tensors"
    done
    # of several bad shards the first is reported
    for i in 4 11 17; do
        truncate -s 5 "${shards[$i]}"
    done
    for _ in 1 2 3 4 5 6 7 8; do
        run 5 inspect "$work/$format"
        shows "$err" "$(basename "${shards[4]}")"
    done
    rm "${shards[2]}" "${shards[15]}"
    for _ in 1 2 3 4 5 6 7 8; do
        run 4 inspect "$work/$format"
        shows "$err" "index.json: .*byte [0-9]+: shard '$(basename "${shards[2]}")' is missing"
    done
done
