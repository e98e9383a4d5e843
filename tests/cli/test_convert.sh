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
# --dry-run says what would be refused, and makes nothing
fails 11 "already contains" convert "$work/start" "$work/cut" --dry-run
fails 11 "already contains" init "$config" "$work/cut" --dry-run
fails 2 "destination and source are the same" convert "$work/cut" "$work/cut" --force --dry-run
fails 11 "destination is a file" convert "$work/start" "$config" --dry-run
fails 3 "$config/new" convert "$work/start" "$config/new" --dry-run
run 0 convert "$work/start" "$work/cut" --force --dry-run -q
same "$before" "$work/cut"
run 0 convert "$work/start" "$work/deep/er/and/deeper" --dry-run -q
[ ! -e "$work/deep" ] || fail "--dry-run made folders"
(cd "$work" && run 0 convert start below --dry-run -q)
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
mkdir -p "$work"/forms/{onnx,empty,checkpoint-500,.git} "$work/forms/2_Dense/inner"
for name in onnx/model.onnx checkpoint-500/model.safetensors .git/config 2_Dense/pytorch_model.bin 2_Dense/inner/config.json; do
    echo "$name" >"$work/forms/$name"
done
ln -s ../../tf_model.h5 "$work/forms/2_Dense/inner/linked"
ln -s .. "$work/forms/2_Dense/up"
mkfifo "$work/forms/2_Dense/pipe"
run 0 convert "$work/forms" "$work/formed"
shows "$err" 'not copied: 2_Dense/pipe, 2_Dense/up/, adapter_model\.bin, checkpoint-500/, consolidated\.00\.pth, model\.fp16\.safetensors, onnx/, pytorch_model-00001-of-00002\.bin, tf_model\.h5$'
for name in training_args.bin graph.onnx 2_Dense/pytorch_model.bin 2_Dense/inner/{config.json,linked}; do
    cmp "$work/forms/$name" "$work/formed/$name"
done
[ "$(ls -A "$work/formed")" = "$(printf '%s\n' 2_Dense config.json empty graph.onnx model.safetensors training_args.bin)" ] || fail "$last: $(ls "$work/formed")"
[ "$(ls "$work/formed/2_Dense")" = $'inner\npytorch_model.bin' ] || fail "$last: $(ls "$work/formed/2_Dense")"

# a folder of the destination is replaced by that of the source, but nothing is lost with it
mkdir -p "$work/other/2_Dense"
fails 11 "already contains '2_Dense'; 'force' .--force. replaces it" convert "$work/forms" "$work/other"
echo mine >"$work/formed/2_Dense/inner/mine"
echo other >"$work/formed/2_Dense/pytorch_model.bin"
before=$(snapshot "$work/formed")
fails 11 "contains '2_Dense/inner/mine', which the new checkpoint does not have; write to another folder, or keep it with" \
    convert "$work/forms" "$work/formed" --force
same "$before" "$work/formed"
run 0 convert "$work/forms" "$work/formed" --force --keep-side-files
cmp "$work/forms/2_Dense/pytorch_model.bin" "$work/formed/2_Dense/pytorch_model.bin"
[ "$(cat "$work/formed/2_Dense/inner/mine")" = mine ] || fail "$last: a file of the user's is lost"
# the same folder and nothing else is no conflict
mkdir "$work/partial"
cp -r "$work/forms/empty" "$work/partial"
run 0 convert "$work/forms" "$work/partial"

# a destination inside the source is no part of it, at the first and at a later conversion
for dst in forms/out forms/deep/er/out; do
    for force in '' --force; do
        run 0 convert "$work/forms" "$work/$dst" ${force:+"$force"}
        for name in out deep; do
            [ ! -e "$work/$dst/$name" ] || fail "$last: a copy in itself"
        done
        [ -d "$work/$dst/2_Dense" ] || fail "$last: no 2_Dense"
    done
    shows "$err" "not copied: .*$(cut -d/ -f2 <<<"$dst")/"
    rm -rf "$work/forms/$(cut -d/ -f2 <<<"$dst")"
done

# a source without tensors replaces no checkpoint, in no format; elsewhere it is one
printf '\2\0\0\0\0\0\0\0{}' >"$work/nothing.safetensors"
mkdir "$work/nothing"
cp "$work/nothing.safetensors" "$work/nothing/model.safetensors"
run 0 convert "$work/nothing" "$work/nothing_bin" --format bin
run 0 convert "$work/nothing.safetensors" "$work/nothing_new"
for format in safetensors bin offload; do
    run 0 convert "$work/start" "$work/kept_$format" --format $format
done
run 0 init "$config" "$work/kept_variant" --variant fp16
run 0 init "$config" "$work/kept_shards" --max-shard-size 40KB
for there in safetensors bin offload variant shards; do
    before=$(snapshot "$work/kept_$there")
    for from in nothing nothing.safetensors nothing_bin; do
        for to in safetensors bin; do
            fails 11 'already contains .*, which is not replaced by a checkpoint without tensors' \
                convert "$work/$from" "$work/kept_$there" --force --keep-side-files --format $to
        done
        same "$before" "$work/kept_$there"
    done
done

# what a family keeps in float32 stays so in a class that only the model's code knows: in a conversion and in a load
python3 - "$source_dir/tests/data/skeletons/t5__gated_noscale.json" "$work/t5.json" <<'END'
import json, sys
c = json.load(open(sys.argv[1]))["config"]
json.dump(c | {"architectures": ["T5ForConditionalGeneration"]}, open(sys.argv[2], "w"))
END
run 0 init "$work/t5.json" "$work/t5" -q
of_dtype() { # of_dtype DTYPE: the tensors of a listing that have it
    grep -o "\"name\": \"[^\"]*\", \"dtype\": \"$1\"" "$out" | sort || true
}
run 0 convert "$work/t5" "$work/t5_known" --dtype float16
run 0 inspect "$work/t5_known" --json
known=$(of_dtype float32)
[ "$(grep -c 'wo.weight' <<<"$known")" -gt 0 ] || fail "wo is not float32: $known"
run 0 load "$work/t5" --dtype float16 --mode copy --json
before=$(grep -o '"copied_bytes": [0-9]*' "$out")
sed -i 's/"T5ForConditionalGeneration"/"T5ForReward"/' "$work/t5/config.json"
run 0 convert "$work/t5" "$work/t5_custom" --dtype float16
run 0 inspect "$work/t5_custom" --json
[ "$known" = "$(of_dtype float32)" ] || fail "float32 in a custom class: $(of_dtype float32)"
run 0 load "$work/t5" --dtype float16 --mode copy --json
[ "$before" = "$(grep -o '"copied_bytes": [0-9]*' "$out")" ] || fail "a custom class takes other bytes than $before"

# so it does in model types without a family, also in a part of the model, and nowhere else
for config in '{"model_type": "umt5"}' '{"model_type": "llava", "text_config": {"model_type": "t5"}}' \
    '{"model_type": "quux", "parts": {"text": {"model_type": "mt5"}}}'; do
    printf '%s' "$config" >"$work/t5/config.json"
    rm -rf "$work/t5_custom"
    run 0 convert "$work/t5" "$work/t5_custom" --dtype float16
    run 0 inspect "$work/t5_custom" --json
    [ "$known" = "$(of_dtype float32)" ] || fail "float32 of $config: $(of_dtype float32)"
    run 0 load "$work/t5" --dtype float16 --mode copy --json
    [ "$before" = "$(grep -o '"copied_bytes": [0-9]*' "$out")" ] || fail "$config takes other bytes than $before"
    rm -rf "$work/t5_custom"
    run 0 convert "$work/t5" "$work/t5_custom" --dtype bfloat16
    run 0 inspect "$work/t5_custom" --json
    [ -z "$(of_dtype float32)" ] || fail "float32 of $config in bfloat16: $(of_dtype float32)"
done

# dtypes of parts: in a conversion, by a load and of a new model; sub-models by their key in the config
python3 - "$source_dir/tests/data/skeletons/clip__base.json" "$work/clip.json" <<'END'
import json, sys
json.dump(json.load(open(sys.argv[1]))["config"], open(sys.argv[2], "w"))
END
parts=(--dtype f16 --dtype-of "vision_config=f32,text_config=bf16")
run 0 init "$work/clip.json" "$work/clip" --dtype f32
run 0 convert "$work/clip" "$work/parts" "${parts[@]}"
run 0 init "$work/clip.json" "$work/new" "${parts[@]}"
run 0 convert "$work/clip" "$work/alone" --dtype f16 --dtype-of text_model=bf16 --keep-f32 vision_model
for folder in parts new alone; do
    run 0 inspect "$work/$folder" --json
    shows "$out" '"dtypes": [{]"float32": [{]"tensors": 55, "bytes": 162304[}], "bfloat16": [{]"tensors": 36, "bytes": 44544[}], "float16": [{]"tensors": 3, "bytes": 2306[}][}]'
    lacks "$out" '"name": "vision_model[^"]*", "dtype": "(bfloat16|float16)"'
    lacks "$out" '"name": "text_model[^"]*", "dtype": "float(32|16)"'
done
run 0 load "$work/clip" "${parts[@]}" --json
has bytes 209154
run 0 plan "$work/clip.json" "${parts[@]}" --json
shows "$out" '"placed_bytes": [{]"cpu": 209610, .*"resident_bytes": 209610,'
# without a config, by the modules that the names make; also without a dtype for all
mkdir "$work/lone"
cp "$work/clip/model.safetensors" "$work/lone"
run 0 convert "$work/lone/model.safetensors" "$work/named" --dtype-of visual_projection=bf16,final_layer_norm=f16
run 0 inspect "$work/named" --json
shows "$out" '"name": "visual_projection.weight", "dtype": "bfloat16"'
shows "$out" '"name": "text_model.final_layer_norm.weight", "dtype": "float16"'
shows "$out" '"name": "text_projection.weight", "dtype": "float32"'
# shards of an interrupted conversion are not continued with other dtypes
run 0 convert "$work/clip" "$work/one" --resume --dtype-of vision_config=f16
run 0 convert "$work/clip" "$work/one" --resume --force --dtype-of text_config=f16
run 0 inspect "$work/one" --json
lacks "$out" '"name": "vision_model[^"]*", "dtype": "float16"'
for command in "load $work/clip" "convert $work/clip $work/never" "init $work/clip.json $work/never" "plan $work/clip.json"; do
    # shellcheck disable=SC2086
    fails 6 'vision_modle: .*is not a module or tensor of the model' $command --keep-f32 vision_modle
    # shellcheck disable=SC2086
    run 2 $command --dtype-of vision_model
    shows "$err" "'vision_model' is not a NAME=DTYPE pair"
done
[ ! -e "$work/never" ] || fail "something was written"

# DeepSeek-V3's bias of the router stays float32, whatever version wrote the config
for version in 4.33.1 4.46.3 4.57.1 5.23.0; do
    python3 - "$source_dir/tests/data/skeletons/deepseek_v3__base.json" "$work/v3.json" $version <<'END'
import json, sys
made = json.load(open(sys.argv[1]))["config"]
made["transformers_version"] = sys.argv[3]
json.dump(made, open(sys.argv[2], "w"))
END
    run 0 init "$work/v3.json" "$work/v3" --force --dtype f32
    run 0 convert "$work/v3" "$work/v3-bf16" --force --dtype bf16
    run 0 inspect "$work/v3-bf16" --json
    shows "$out" 'e_score_correction_bias", "dtype": "float32"'
    lacks "$out" 'proj.weight", "dtype": "float32"'
done
