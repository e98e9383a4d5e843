#!/usr/bin/env bash
# test_convert - rewriting a checkpoint, and init -> load -> convert -> inspect -> verify.
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"

# ---- the round trip: every way back gives the same bytes -------------------------------------------------------
"$heft" init -q "$config" "$work/start"
before=$(snapshot "$work/start")
run 0 load "$work/start" --json
has missing '[]'
run 0 convert "$work/start" "$work/bins" --format bin --max-shard-size 40KB --json
silent "$err"
is_json
has index '"pytorch_model.bin.index.json"'
has total_size 93568
has total_parameters 23392
has dry_run false
shows "$out" '"files": \[[{]"name": "pytorch_model-00001-of-00003.bin", "bytes": [0-9]+, "tensors": [0-9]+[}], '
same "$before" "$work/start"
run 0 inspect "$work/bins" --json
is_json
has format '"bin"'
has total_parameters 23392
run 0 verify "$work/bins" --deep
shows "$out" '^ok: 3 files, 39 tensors, 93568 bytes$'
run 0 load "$work/bins" --json
has missing '[]'
has unexpected '[]'
run 0 convert "$work/bins" "$work/back" --format safetensors
silent "$err"
shows "$out" '^model.safetensors +39 '
shows "$out" '^total +93\.6 KB \(93,568 bytes\)$'
[ "$(snapshot "$work/back")" = "$before" ] || fail "start -> bins -> back is not the identity"
# safetensors do not hold the order of the state dict; with the config.json it is known
"$heft" init -q "$config" "$work/cut" --max-shard-size 40KB
"$heft" convert -q "$work/start" "$work/recut" --max-shard-size 40KB
[ "$(snapshot "$work/cut")" = "$(snapshot "$work/recut")" ] || fail "resharding differs from saving in shards"
run 0 convert "$work/recut/model.safetensors.index.json" "$work/index" -q
cmp -s "$work/index/model.safetensors" "$work/start/model.safetensors" || fail "merging by the index differs"

# ---- options -----------------------------------------------------------------------------------------------------
run 0 convert "$work/start" "$work/never" --dry-run --max-shard-size 40KB --json
is_json
has dry_run true
shows "$out" '"name": "model-00003-of-00003.safetensors"'
[ ! -e "$work/never" ] || fail "--dry-run wrote something"
run 0 convert "$work/start" "$work/never" --dry-run
shows "$out" '^nothing was written [(]--dry-run[)]$'
run 0 convert "$work/start" "$work/half" --dtype float16 --json
has total_size 46784
grep -q '"float16"' "$work/half/config.json" || fail "config.json does not say the dtype: $(cat "$work/half/config.json")"
run 0 convert "$work/start" "$work/variant" --variant fp16 --dtype f16 -q
silent "$out"
run 0 load "$work/variant" --variant fp16 --json
has dtype '"float16"'
run 0 convert "$work" "$work/sub" --subfolder start -q
cmp -s "$work/sub/model.safetensors" "$work/start/model.safetensors" || fail "--subfolder: another file"

# ---- a destination that is there -------------------------------------------------------------------------------------
before=$(snapshot "$work/cut")
fails 11 "$work/cut" convert "$work/start" "$work/cut"
same "$before" "$work/cut"
echo mine >"$work/cut/notes.txt"
run 0 convert "$work/start" "$work/cut" --force -q
[ "$(cd "$work/cut" && echo *)" = "config.json model.safetensors notes.txt" ] || fail "--force left $(ls "$work/cut")"

# ---- files of another checkpoint that would be read with the new weights ---------------------------------------------
mkdir "$work/bare" "$work/lone" "$work/own"
cp "$work/start/model.safetensors" "$work/bare"
cp "$work/cut/notes.txt" "$work/own"
"$heft" init -q "$config" "$work/other" --dtype bf16
echo other >"$work/other/vocab.txt"
echo mine >"$work/other/notes.txt"
before=$(snapshot "$work/other")
refused="contains 'config.json' and 'vocab.txt' of another checkpoint.*'keep_side_files'"
for src in bare bare/model.safetensors start/model.safetensors; do
    fails 11 "$refused" convert "$work/$src" "$work/other" --force
    fails 11 "$refused" convert "$work/$src" "$work/other" --force --format offload
    same "$before" "$work/other"
done
fails 11 "contains 'vocab.txt' of another" convert "$work/start" "$work/other" --force
fails 11 "contains 'vocab.txt' of another" init "$config" "$work/other" --force
same "$before" "$work/other"
cp "$work/other/config.json" "$work/lone"
fails 11 "contains 'config.json' of another" convert "$work/bare/model.safetensors" "$work/lone"
cp "$work/start/config.json" "$work/lone"
run 0 convert "$work/start/model.safetensors" "$work/lone" -q # the same config.json
run 0 convert "$work/bare/model.safetensors" "$work/own" -q
run 0 convert "$work/bare" "$work/other" --force --keep-side-files -q
[ "$(cd "$work/other" && echo *)" = "config.json model.safetensors notes.txt vocab.txt" ] || fail "left $(ls "$work/other")"
run 0 convert "$work/other" "$work/cut" --force -q # all of it is replaced, notes.txt too
run 0 convert "$work/start" "$work/cut" --force --keep-side-files --format bin -q
silent "$err"
run 0 convert "$work/start" "$work/cut" --force --keep-side-files --variant v
shows "$err" "'pytorch_model.bin' of another checkpoint was kept"
rm -rf "$work/bare" "$work/lone" "$work/own" "$work/other"

# ---- a refusal leaves what an earlier run has done -------------------------------------------------------------------
(
    ulimit -f 38
    run 3 convert "$work/start" "$work/resumed" --max-shard-size 40KB --resume
)
mkdir "$work/resumed"
echo '{}' >"$work/resumed/config.json"
fails 11 "contains 'config.json'; 'force' \(--force\) replaces it; files that an earlier run finished are kept" \
    convert "$work/start" "$work/resumed" --max-shard-size 40KB --resume
run 0 convert "$work/start" "$work/resumed" --max-shard-size 40KB --resume --force -q
[ "$(snapshot "$work/resumed")" = "$(snapshot "$work/recut")" ] || fail "a resumed conversion differs"

# ---- the destination is the source, whatever it is called --------------------------------------------------------------
ln -s start "$work/link"
ln -s "$work/start" "$work/absolute"
before=$(snapshot "$work/start")
for dst in start start/ start/. link link/ absolute ./start/../start; do
    for force in '' --force; do
        fails 2 'source' convert "$work/start" "$work/$dst" ${force:+"$force"}
        fails 2 'source' convert "$work/link" "$work/$dst" ${force:+"$force"}
        fails 2 'source' convert "$work/start/model.safetensors" "$work/$dst" ${force:+"$force"}
        same "$before" "$work/start"
    done
done
no_traces "$work"

# the same model in another form is left behind, and said; other files are copied whatever their name
run 0 init "$config" "$work/forms"
for name in consolidated.00.pth tf_model.h5 adapter_model.bin model.fp16.safetensors pytorch_model-00001-of-00002.bin training_args.bin graph.onnx; do
    echo "$name" >"$work/forms/$name"
done
mkdir "$work/forms/1_Pooling"
run 0 convert "$work/forms" "$work/formed"
shows "$err" 'not copied: 1_Pooling/, adapter_model\.bin, consolidated\.00\.pth, model\.fp16\.safetensors, pytorch_model-00001-of-00002\.bin, tf_model\.h5$'
for name in training_args.bin graph.onnx; do
    cmp "$work/forms/$name" "$work/formed/$name"
done
[ "$(ls "$work/formed")" = "$(printf '%s\n' config.json graph.onnx model.safetensors training_args.bin)" ] || fail "$last: $(ls "$work/formed")"
