#!/usr/bin/env bash
# test_diff - what differs between two checkpoints: exit 0 or 1.
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"

"$heft" init -q "$config" "$work/st" --max-shard-size 40KB
"$heft" convert -q "$work/st" "$work/bin" --format bin
"$heft" convert -q "$work/st" "$work/off" --format offload
"$heft" convert -q "$work/st" "$work/bf16" --dtype bf16
"$heft" init -q "$config" "$work/seed" --seed 4
declare -A before
for folder in st bin off; do
    before[$folder]=$(snapshot "$work/$folder")
done

# ---- equal, however they are stored ---------------------------------------------------------------------
for path in st bin off st/model.safetensors.index.json; do
    run 0 diff "$work/st" "$work/$path"
    silent "$err"
    lines "$out" 1
    shows "$out" '^equal: 39 tensors$'
    run 0 diff "$work/$path" "$work/st" --json
    silent "$err"
    is_json
    has equal true
    has added '[]'
    has removed '[]'
    has changed '[]'
    has common 39
    has bytes_read 187136
    has warnings '[]'
done
run 0 diff -q "$work/st" "$work/bin"
silent "$out"
silent "$err"

# ---- values: rows of layers are folded, JSON has every tensor ----------------------------------------------
differs() { # differs ARGUMENTS...: exit 1
    run 1 diff "$@"
    silent "$err"
    cp "$out" "$work/.text"
    run 1 diff -q "$@"
    silent "$err"
    sed '$d' "$work/.text" | cmp -s - "$out" || fail "$last: not the rows without the last line"
    cp "$work/.text" "$out"
}
differs "$work/st" "$work/seed"
lines "$out" 12
shows "$out" '^tensor +difference +max_abs +max_rel +cosine$'
shows "$out" '^encoder\.layer\.\{0\.\.1\}\.intermediate\.dense\.weight +values +0\.[0-9]+ +[12](\.[0-9]+)? +-?0\.[0-9]{6}$'
shows "$out" '^different: 0 removed, 0 added, 16 changed, 23 equal$'
run 1 diff "$work/st" "$work/seed" --json
is_json
has equal false
python3 - "$out" <<'END' || fail "the JSON of seeds"
import json, sys
told = json.load(open(sys.argv[1]))
assert len(told["changed"]) == 16 and not told["added"] and not told["removed"]
for change in told["changed"]:
    assert list(change) == ["name", "what", "max_abs", "max_rel", "cosine"], change
    assert change["what"] == "values" and 0.01 < change["max_abs"] < 0.3 and 1 < change["max_rel"] <= 2 and abs(change["cosine"]) < 0.3, change
# what is equal is not read again
total = 2 * 93568
assert total < told["bytes_read"] < 2 * total
END
run 0 diff "$work/st" "$work/seed" --tolerance 1
shows "$out" '^equal: 39 tensors$'
differs "$work/st" "$work/bf16" --tolerance 1
shows "$out" '^encoder\.layer\.\{0\.\.1\}\.output\.dense\.weight +dtype float32 -> bfloat16 +0\.000[0-9]+ +0\.003[0-9]+ +0\.99999[0-9]$'
shows "$out" '^embeddings\.LayerNorm\.bias +dtype float32 -> bfloat16 +0 +0 +-$'
lacks "$out" 'values'
differs "$work/st" "$work/bf16"
shows "$out" '^encoder\.layer\.\{0\.\.1\}\.output\.dense\.weight +dtype float32 -> bfloat16; values '

# ---- names, shapes, NaN --------------------------------------------------------------------------------------
write_safetensors "$work/a.safetensors" '{"gone":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"l.9.w":{"dtype":"F32","shape":[2],"data_offsets":[8,16]},"l.10.w":{"dtype":"F32","shape":[1,2],"data_offsets":[16,24]},"same":{"dtype":"F4","shape":[2],"data_offsets":[24,25]}}' 25
write_safetensors "$work/b.safetensors" '{"l.9.w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"l.10.w":{"dtype":"F32","shape":[2,1],"data_offsets":[8,16]},"new":{"dtype":"F32","shape":[2],"data_offsets":[16,24]},"same":{"dtype":"F4","shape":[2],"data_offsets":[24,25]}}' 25
printf '\0\0\300\177' | dd of="$work/b.safetensors" bs=1 seek=$(($(stat -c %s "$work/b.safetensors") - 25)) conv=notrunc status=none
differs "$work/a.safetensors" "$work/b.safetensors"
cat >"$work/expected" <<'END'
tensor  difference              max_abs  max_rel  cosine
gone    removed                       -        -       -
new     added                         -        -       -
l.9.w   values                      nan      nan       -
l.10.w  shape [1, 2] -> [2, 1]        -        -       -
different: 1 removed, 1 added, 2 changed, 1 equal
END
diff "$work/expected" "$out" >&2 || fail "$last: other text"
run 1 diff "$work/a.safetensors" "$work/b.safetensors" --json
is_json
shows "$out" '^[{]"equal": false, "added": \["new"\], "removed": \["gone"\], "changed": \[[{]"name": "l.9.w", "what": "values", "max_abs": null, "max_rel": null, "cosine": null[}], [{]"name": "l.10.w", "what": "shape \[1, 2\] -> \[2, 1\]", "max_abs": null, "max_rel": null, "cosine": null[}]\], "common": 3, '

# ---- quantized weights, also of a method that heft does not know and without a config -------------------------
quant=$source_dir/tests/data/quant/gptq_4bit
run 0 diff "$quant" "$quant/model.safetensors"
shows "$out" '^equal: '
cp -r "$quant" "$work/other_method"
sed -i 's/"quant_method": *"gptq"/"quant_method": "not-known-here"/' "$work/other_method/config.json"
run 0 diff "$work/other_method" "$quant"
lacks "$err" 'error'

# ---- which files: the options of both sides --------------------------------------------------------------------
mkdir "$work/in"
cp -r "$work/st" "$work/in/sub"
cp -r "$work/in" "$work/in2"
run 0 diff "$work/in" "$work/in2" --subfolder sub
fails 4 "in2/sub2" diff "$work/in2" "$work/in" --subfolder sub2
"$heft" convert -q "$work/st" "$work/variant" --variant fp16
run 0 diff "$work/variant" "$work/variant" --variant fp16
run 0 diff "$work/variant/model.fp16.safetensors" "$work/bin"
fails 4 "$work/bin" diff "$work/bin" "$work/st" --format safetensors
fails 4 "$work/bin" diff "$work/st" "$work/bin" --format safetensors
run 0 diff "$work/bin" "$work/bin" --format bin

# ---- what cannot be --------------------------------------------------------------------------------------------
for tolerance in -1 nan inf 1e999 '' 1x; do
    fails 2 "--tolerance: '$tolerance' is not a finite number that is 0 or more" diff "$work/st" "$work/bin" --tolerance="$tolerance"
done
fails 2 "--format: " diff "$work/st" "$work/bin" --format gguf
run 2 diff "$work/st"
shows "$err" '^heft diff: expected A B'
mkdir "$work/void"
fails 4 "$work/none" diff "$work/none" "$work/st"
fails 4 "$work/none" diff "$work/st" "$work/none"
fails 4 "$work/void" diff "$work/st" "$work/void"
fails 4 "config.json" diff "$work/st" "$config"
cp -r "$work/st" "$work/short"
truncate -s -1 "$work/short/model-00002-of-00003.safetensors"
fails 5 "model-00002-of-00003.safetensors" diff "$work/st" "$work/short"
cp -r "$work/st" "$work/index"
sed -i 's/"pooler.dense.bias"/"pooler.dense.bios"/' "$work/index/model.safetensors.index.json"
fails 5 "pooler.dense.bios" diff "$work/index" "$work/st"

# ---- a signal ----------------------------------------------------------------------------------------------------
write_safetensors "$work/large.safetensors" '{"w":{"dtype":"F32","shape":[1073741824],"data_offsets":[0,4294967296]}}' 4294967296
code=0
"$heft" diff "$work/large.safetensors" "$work/large.safetensors" >"$out" 2>"$err" </dev/null &
process=$!
while kill -0 "$process" 2>/dev/null && ! readlink "/proc/$process/fd/"* 2>/dev/null | grep -q large; do
    sleep 0.01 # it catches signals before it opens files
done
kill -s TERM "$process" 2>/dev/null || true
wait "$process" || code=$?
last="heft diff and SIGTERM"
[ "$code" = 12 ] || fail "$last: exit $code: $(cat "$out" "$err")"
silent "$out"
lines "$err" 1
shows "$err" '^heft diff: cancelled$'

for folder in st bin off; do
    same "${before[$folder]}" "$work/$folder"
done
