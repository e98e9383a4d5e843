#!/usr/bin/env bash
# test_fit - a checkpoint of another model is no success; a part of the body that is missing is said aloud; names that a
# wrapper made longer are matched.
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"
"$heft" init -q "$config" "$work/mlm" --class BertForMaskedLM
"$heft" init -q "$config" "$work/base"

# rename FROM TO SED: the folder with other names in its model.safetensors
rename() {
    local length header
    cp -r "$work/$1" "$work/$2"
    length=$(od -An -tu8 -N8 "$work/$1/model.safetensors")
    header=$(head -c $((8 + length)) "$work/$1/model.safetensors" | tail -c +9 | sed -E "$3")
    {
        pack "${#header}"
        printf %s "$header"
        tail -c +$((9 + length)) "$work/$1/model.safetensors"
    } >"$work/$2/model.safetensors"
}
pack() { # pack N: 8 bytes, little-endian
    local i n=$1
    for i in 1 2 3 4 5 6 7 8; do
        # shellcheck disable=SC2059
        printf "\\$(printf %03o $((n & 255)))"
        n=$((n >> 8))
    done
}

# ---- nothing fits ---------------------------------------------------------------------------------------------------
rename base other 's/"(embeddings|encoder|pooler)\./"x.\1_/g'
run 6 load "$work/other"
shows "$err" "no tensor matches the model: the checkpoint has 39 \('x\.embeddings_.*', \.\.\.\), BertModel needs 39 \('embeddings\.word"
shows "$out" '^strategy +none: no tensor was loaded$'
shows "$out" '^MISSING '
run 6 load "$work/other" -q
run 6 load "$work/other" --json
is_json
shows "$out" '"error": [{]"status": "MISMATCH"'
run 0 load "$work/other" --allow-missing --json
shows "$out" '37 of 37 weights of the base model'
shows "$out" '"unexpected": \["x\.'
printf '\10\0\0\0\0\0\0\0{}      ' >"$work/empty.safetensors"
cp "$work/base/config.json" "$work/config.json"
run 6 load "$work/empty.safetensors"
shows "$err" 'the checkpoint has no tensors$'

# ---- a part fits ----------------------------------------------------------------------------------------------------
rename base part 's/"encoder\.layer\.1\./"encoder.layer.7./g'
run 0 load "$work/part"
shows "$err" "warning: 16 of [0-9]+ weights of the base model are missing from the checkpoint and were initialized randomly: 'encoder\.layer\.1\."
run 6 load "$work/part" --strict
for class in BertForMaskedLM BertForSequenceClassification; do # a new head
    run 0 load "$work/base" --class "$class"
    silent "$err"
    shows "$out" '^MISSING '
done
run 0 load "$work/mlm" --class BertModel # no pooler
silent "$err"

# ---- names that wrappers made longer --------------------------------------------------------------------------------
n=0
while read -r prefix words; do
    n=$((n + 1))
    rename mlm "wrapped$n" "s/\"(bert|cls)\./\"$prefix\1./g"
    run 0 load "$work/wrapped$n" --json
    has missing '[]'
    has unexpected '[]'
    shows "$out" "tensor names were matched without the prefix '$words'"
    run 0 load "$work/wrapped$n" --strict
done <<'END'
module. module\.
_orig_mod. _orig_mod\.
base_model.model. base_model\.model\.
model. model\.
net. net\.
module._orig_mod. module\.
_forward_module.module. module\.
END
rename mlm inner 's/"bert\.encoder\.layer\.([0-9]+)\./"bert.encoder.layer.\1._fsdp_wrapped_module._checkpoint_wrapped_module./g'
run 0 load "$work/inner" --strict
rename base headless 's/"(embeddings|encoder|pooler)\./"module.\1./g' # both prefixes: that of the wrapper, and none of the model
run 0 load "$work/headless" --class BertForMaskedLM --json
shows "$out" '"missing": \["cls\.'
lacks "$out" "base model are missing"

# a wrapped name that is there without the wrapper as well is unexpected
rename mlm twice 's/"cls\.predictions\.bias"/"module.cls.predictions.transform.dense.bias"/'
run 0 load "$work/twice" --json
has missing '["cls.predictions.bias", "cls.predictions.decoder.bias"]'
has unexpected '["module.cls.predictions.transform.dense.bias"]'

# ---- placeholders of ZeRO-3 -----------------------------------------------------------------------------------------
# one tensor of shape [0] at the end of the data, so that no offset changes
rename base zero 's/"data_offsets":\[([0-9]+),93568\]([}])/&,"late":{"dtype":"F32","shape":[0],"data_offsets":[93568,93568]}/'
run 0 verify "$work/zero" # not a weight by its name: a note
shows "$out" '^note: empty_tensor: .*late'
rename zero zero_weight 's/"late"/"late.weight"/'
run 1 verify "$work/zero_weight"
shows "$out" '^empty_tensor: .*late.*shape \[0\] \(1 tensors\): placeholders'
rename zero placeholder 's/"late"/"cls.predictions.bias"/'
run 6 load "$work/placeholder" --class BertForMaskedLM
shows "$err" 'shape \[0\] in file, \[[0-9]+\] in model .*ZeRO-3'
run 0 load "$work/placeholder" --class BertForMaskedLM --ignore-mismatched-sizes
sed 's/"model_type": "bert"/"model_type": "unheard_of"/' "$config" >"$work/zero/config.json"
run 0 load "$work/zero"
shows "$err" "found 1 tensor of shape \[0\], which DeepSpeed ZeRO-3 .*'late'"

# a conversion keeps them as they are, and says so
run 0 convert "$work/placeholder" "$work/placeholder_again"
shows "$err" "found 1 tensor of shape \[0\], which DeepSpeed ZeRO-3 .*'cls\.predictions\.bias'"
run 0 convert "$work/base" "$work/base_again"
silent "$err"

# ---- classes of a config -------------------------------------------------------------------------------------------
cp -r "$work/base" "$work/spelled"
sed -i 's/"BertModel"/"BERTModel"/' "$work/spelled/config.json"
run 0 load "$work/spelled" --strict --json
has class '"BertModel"'
sed -i 's/"BERTModel"/"MyBert"/' "$work/spelled/config.json" # custom code: never silently the base class
run 0 load "$work/spelled"
shows "$err" "unknown class 'MyBert' for model type 'bert': names, shapes and blocks are taken"
sed -i 's/"MyBert"/"GPT2Model"/' "$work/spelled/config.json"
fails 7 "class 'GPT2Model' belongs to model type 'gpt2'" load "$work/spelled"
run 0 load "$work/base" --class BERTModel --json
has class '"BertModel"'
fails 7 'bertmodel' load "$work/base" --class bertmodel
