#!/usr/bin/env bash
# test_writer - examples/write.c: tensors of a caller's own, in a folder and in one file.
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"

write=$3/example_write
[ -x "$write" ] || {
    skip "no examples were built"
    exit 0
}
"$write" "$work/folder" >"$out"
shows "$out" '^model.safetensors: 2 tensors$'
[ "$(cat "$work/folder/config.json")" = '{"model_type": "mine"}' ] || fail "config.json is not what was given"
for file in x.safetensors x.pt; do
    "$write" "$work/$file" >"$out"
    shows "$out" "^$file: 2 tensors\$"
done
for path in folder x.safetensors x.pt; do
    run 0 verify "$work/$path" --deep
    shows "$out" '^ok: 1 file, 2 tensors, 2000024 bytes$'
    run 0 inspect "$work/$path" --json
    shows "$out" '"name": "bias", "dtype": "bfloat16", "shape": \[1000000\]'
    shows "$out" '"name": "weight", "dtype": "float32", "shape": \[2, 3\]'
done
cmp -s "$work/folder/model.safetensors" "$work/x.safetensors" || fail "a file in a folder and one alone differ"
before=$(snapshot "$work/folder")
got=0
"$write" "$work/folder" 2>"$err" || got=$?
[ "$got" = 11 ] || fail "writing over a checkpoint: exit $got"
shows "$err" "already contains '.*'"
same "$before" "$work/folder"
no_traces "$work"
