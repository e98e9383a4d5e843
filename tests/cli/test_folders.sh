#!/usr/bin/env bash
# test_folders - folders whose files have other names than those of Transformers' models: adapters, components of
# diffusers, shards without an index, odd indexes, variants; and what is said where there is nothing for heft.
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"
"$heft" init -q "$config" "$work/one"
"$heft" init -q "$config" "$work/bin" --format bin
"$heft" init -q "$config" "$work/shards" --max-shard-size 40KB
"$heft" init -q "$config" "$work/half" --variant fp16
printf '{"_class_name": "UNet2DConditionModel"}\n' >"$work/component.json"

folder() { # folder NAME FILE...: copies, each of them FROM=TO
    local name=$1 pair
    shift
    mkdir -p "$work/$name"
    for pair in "$@"; do
        cp "$work/${pair%%=*}" "$work/$name/${pair#*=}"
    done
}
tensors() { # tensors N NAME ARGUMENTS...: inspect lists N
    local n=$1 name=$2
    shift 2
    run 0 inspect "$work/$name" "$@"
    shows "$out" "^tensors +$n\$"
}
st=one/model.safetensors

# ---- adapters -------------------------------------------------------------------------------------------------------
printf '{"peft_type": "LORA", "base_model_name_or_path": "org/base"}\n' >"$work/adapter.json"
folder lora $st=adapter_model.safetensors adapter.json=adapter_config.json
folder lorabin bin/pytorch_model.bin=adapter_model.bin adapter.json=adapter_config.json
for kind in lora lorabin; do
    tensors 39 $kind
    silent "$err"
    fails 4 'contains an adapter, not a model' load "$work/$kind"
    run 0 verify "$work/$kind"
done
# beside a model, an adapter is not applied: that is told, nothing computes, and a conversion keeps it
folder both $st=model.safetensors one/config.json=config.json bin/pytorch_model.bin=adapter_model.bin adapter.json=adapter_config.json
for command in load plan inspect convert; do
    if [ $command = convert ]; then
        run 0 convert "$work/both" "$work/both2"
    else
        run 0 $command "$work/both"
    fi
    shows "$err" "^heft $command: warning: adapter_config.json: an adapter lies beside the model"
done
for command in load plan inspect; do
    run 0 $command "$work/both" --json
    shows "$out" '"warnings": \[.*"adapter_config.json: an adapter lies beside the model'
done
fails 7 'adapter_config.json: an adapter lies beside the model, .* heft does not apply it' run "$work/both" --ids 1
fails 7 'adapter_config.json: an adapter lies beside the model' embed "$work/both" --ids 1 --save "$work/never.safetensors"
run 0 verify "$work/both"
[ "$(ls "$work/both2")" = $'adapter_config.json\nadapter_model.bin\nconfig.json\nmodel.safetensors' ] || fail "the conversion made $(ls "$work/both2")"
cmp "$work/both/adapter_model.bin" "$work/both2/adapter_model.bin"
run 0 convert "$work/both2" "$work/both3" --format bin --max-shard-size 40KB
cmp "$work/both/adapter_model.bin" "$work/both3/adapter_model.bin"
run 0 convert "$work/both2" "$work/both3" --force # over itself
cmp "$work/both/adapter_model.bin" "$work/both3/adapter_model.bin"
run 0 load "$work/both/model.safetensors"
silent "$err"
rm -rf "$work/both" "$work/both2" "$work/both3"

run 0 convert "$work/lora" "$work/lora2" --format bin
[ "$(ls "$work/lora2")" = $'adapter_config.json\nadapter_model.bin' ] || fail "the adapter became $(ls "$work/lora2")"
run 0 convert "$work/lora2/adapter_model.bin" "$work/lora3" --format safetensors --max-shard-size 40KB
[ -f "$work/lora3/adapter_model-00001-of-00003.safetensors" ] || fail "the adapter became $(ls "$work/lora3")"
[ -f "$work/lora3/adapter_model.safetensors.index.json" ] || fail 'the adapter has no index'
[ -f "$work/lora3/adapter_config.json" ] || fail 'the adapter has no config'
tensors 39 lora3
fails 11 'already contains' convert "$work/lora" "$work/lora3"
run 0 convert "$work/lora" "$work/lora3" --force
[ "$(ls "$work/lora3")" = $'adapter_config.json\nadapter_model.safetensors' ] || fail "stale shards: $(ls "$work/lora3")"

# ---- diffusers ------------------------------------------------------------------------------------------------------
folder pipe/unet $st=diffusion_pytorch_model.safetensors half/model.fp16.safetensors=diffusion_pytorch_model.fp16.safetensors component.json=config.json
folder pipe/vae bin/pytorch_model.bin=diffusion_pytorch_model.bin component.json=config.json
folder pipe/text_encoder $st=model.safetensors one/config.json=config.json
mkdir "$work/pipe/scheduler"
printf '{"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}\n' >"$work/pipe/model_index.json"
for command in load inspect verify plan; do
    run 4 $command "$work/pipe"
    shows "$err" 'a diffusers pipeline: select one of its components with --subfolder: text_encoder, unet, vae$'
done
for part in unet vae; do
    run 0 load "$work/pipe" --subfolder $part
    shows "$err" 'the config has no model type: names'
    tensors 39 pipe --subfolder $part
    run 0 verify "$work/pipe" --subfolder $part
    run 0 convert "$work/pipe" "$work/part_$part" --subfolder $part
    compgen -G "$work/part_$part/diffusion_pytorch_model.*" >"$out" || fail "the component has another name: $part"
done
run 0 load "$work/pipe" --subfolder text_encoder --strict
run 0 load "$work/pipe/unet" --variant fp16
folder diffshards component.json=config.json
for file in "$work"/shards/model-*; do
    cp "$file" "$work/diffshards/diffusion_pytorch_$(basename "$file")"
done
sed 's/"model-/"diffusion_pytorch_model-/' "$work/shards/model.safetensors.index.json" >"$work/diffshards/diffusion_pytorch_model.safetensors.index.json"
tensors 39 diffshards
silent "$err"
mv "$work/diffshards/diffusion_pytorch_model.safetensors.index.json" "$work/diffshards/diffusion_pytorch_model.safetensors.index.fp16.json"
tensors 39 diffshards --variant fp16
mv "$work/diffshards/diffusion_pytorch_model.safetensors.index.fp16.json" "$work/diffshards/diffusion_pytorch_model.fp16.safetensors.index.json"
tensors 39 diffshards --variant fp16

# ---- shards without an index ----------------------------------------------------------------------------------------
cp -r "$work/shards" "$work/bare"
rm "$work/bare/model.safetensors.index.json"
run 0 load "$work/bare" --strict
shows "$err" "found no weights index: using all 3 shards, starting with 'model-00001-of-00003\.safetensors'"
run 0 convert "$work/bare" "$work/merged"
cmp "$work/merged/model.safetensors" "$work/$st"
cp -r "$work/bare" "$work/lost"
rm "$work/lost/model-00002-of-00003.safetensors"
for command in load inspect verify plan; do
    run 4 $command "$work/lost"
    shows "$err" "shard 'model-00002-of-00003\.safetensors' is missing: found 2 of 3 shards, and no index"
done
folder two bare/model-00001-of-00003.safetensors=model-00001-of-00001.safetensors bare/model-00002-of-00003.safetensors=other-00001-of-00001.safetensors
fails 4 'shards of several checkpoints without an index' inspect "$work/two"
folder zero $st=x-00000-of-00001.safetensors
tensors 39 zero
folder huge $st=x-00001-of-999999999.safetensors
fails 4 "'x-00002-of-999999999\.safetensors' is missing: found 1 of 999999999" inspect "$work/huge"
folder dcp_hf $st=shard-00001-model-00001-of-00001.safetensors
fails 4 'a torch\.distributed checkpoint \(DCP\) in safetensors files' inspect "$work/dcp_hf"

# ---- indexes --------------------------------------------------------------------------------------------------------
cp -r "$work/shards" "$work/odd"
mv "$work/odd/model.safetensors.index.json" "$work/odd/net.index.json"
tensors 39 odd
shows "$err" "using 'net\.index\.json', the only index in the folder"
# Accelerate's index without a weight_map
tr -d '\n' <"$work/shards/model.safetensors.index.json" | sed -E 's/.*"weight_map": ([{][^}]*[}]).*/\1/' >"$work/odd/net.index.json"
tensors 39 odd
echo '{"a": "b.txt"}' >"$work/odd/net.index.json"
fails 5 "field 'weight_map' is missing" inspect "$work/odd"
echo '{"a": "../b.bin"}' >"$work/odd/net.index.json"
run 5 inspect "$work/odd"

# ---- transformers_weights -------------------------------------------------------------------------------------------
named() { # named FOLDER FILE: its config names a file
    sed "s/^{/{ \"transformers_weights\": \"$2\",/" "$work/one/config.json" >"$work/$1/config.json"
}
folder named $st=other.safetensors bare/model-00001-of-00003.safetensors=model.safetensors
named named other.safetensors
run 0 load "$work/named" --strict # although there is a model.safetensors
run 0 convert "$work/named" "$work/unnamed"
run 0 load "$work/unnamed" --strict
! grep -q transformers_weights "$work/unnamed/config.json" || fail 'the config names a file that is not there'
rm "$work/named/model.safetensors"
run 0 load "$work/named" --strict
named named none.safetensors
run 4 load "$work/named"
shows "$err" 'none\.safetensors'
# beside other weights: they are not taken, nor is a model of that name in the hub's cache
cp "$work/one/model.safetensors" "$work/named"
mkdir -p "$work/hub/models--named--none.safetensors/refs" "$work/hub/models--named--none.safetensors/snapshots/1"
printf 1 >"$work/hub/models--named--none.safetensors/refs/main"
cp "$work/one"/* "$work/hub/models--named--none.safetensors/snapshots/1"
(
    cd "$work"
    export HF_HUB_CACHE="$work/hub"
    fails 4 "config.json: transformers_weights names 'none.safetensors', which is not in the folder" load named
)
named named ..\\/one\\/model.safetensors
fails 8 'transformers_weights must name a weight file' load "$work/named"

# ---- one of a kind --------------------------------------------------------------------------------------------------
folder only $st=weights.safetensors one/config.json=config.json
echo x >"$work/only/training_args.bin"
echo x >"$work/only/optimizer.pt"
run 0 load "$work/only" --strict
shows "$err" "using 'weights\.safetensors', the only weight file in the folder"
cp "$work/$st" "$work/only/another.safetensors"
fails 4 "no weights found: .*weight files: 'another\.safetensors', 'weights\.safetensors' \(pass one of them as PATH\)" inspect "$work/only"
folder variant half/model.fp16.safetensors=model.fp16.safetensors one/config.json=config.json
for command in load inspect verify plan; do
    run 0 $command "$work/variant"
    [[ $command = [vp]* ]] || shows "$err" "using 'model\.fp16\.safetensors', the only variant in the folder$"
done
run 0 load "$work/variant" --variant fp16
cp "$work/variant/model.fp16.safetensors" "$work/variant/model.int8.safetensors"
fails 4 'select one with --variant fp16 or --variant int8' load "$work/variant"

rm "$work/variant/model.fp16.safetensors"
run 0 load "$work/variant" --strict
"$heft" init -q "$config" "$work/variant_shards" --variant fp16 --max-shard-size 40KB
run 0 load "$work/variant_shards" --strict
shows "$err" "using 'model\.safetensors\.index\.fp16\.json', the only variant in the folder$"
cp "$work"/shards/model-* "$work/variant_shards"
fails 4 'shards of several checkpoints' load "$work/variant_shards"
rm "$work"/variant_shards/model.fp16-*
run 0 load "$work/variant_shards" --strict
shows "$err" "found no weights index: using all 3 shards, starting with 'model-00001"
# a LoRA of diffusers: its name stays, and it is no model
folder diffusers_lora $st=pytorch_lora_weights.safetensors bin/pytorch_model.bin=pytorch_lora_weights.bin
tensors 39 diffusers_lora
silent "$err"
run 0 convert "$work/diffusers_lora" "$work/lora_copy"
cmp "$work/lora_copy/pytorch_lora_weights.safetensors" "$work/$st"
run 0 verify "$work/lora_copy"
fails 4 'contains a LoRA of diffusers, not a model' load "$work/diffusers_lora"

# ---- a format that is asked for is the only one ----------------------------------------------------------------------
bin=pytorch_model.bin
mkdir "$work/both_formats" "$work/lone_set" "$work/renamed"
cp "$work/bin/$bin" "$work/one/model.safetensors" "$config" "$work/both_formats"
for command in load inspect; do
    fails 4 'no weights found: no model\.safetensors, and safetensors was asked for' $command "$work/bin" --format safetensors
    fails 4 'no weights found: no pytorch_model\.bin, and bin was asked for' $command "$work/one" --format bin
    fails 4 'no weights found: no index\.json, and offload was asked for' $command "$work/both_formats" --format offload
    fails 4 'is bin, and safetensors was asked for' $command "$work/bin/$bin" --format safetensors
    fails 4 'is safetensors, and bin was asked for' $command "$work/one/model.safetensors" --format bin
    run 0 $command "$work/both_formats" --format bin
    run 0 $command "$work/both_formats" --format safetensors
    run 0 $command "$work/bin/$bin" --format bin
done
cp "$config" "$work/lone_set" && cp "$work/bin/$bin" "$work/lone_set/model-00001-of-00001.bin"
run 0 load "$work/lone_set"
fails 4 'safetensors was asked for' load "$work/lone_set" --format safetensors
cp "$config" "$work/renamed" && cp "$work/one/model.safetensors" "$work/renamed/my.safetensors"
run 0 load "$work/renamed" --format safetensors
fails 4 'bin was asked for' load "$work/renamed" --format bin
cp "$work/one/model.safetensors" "$work/renamed/pytorch_model.bin" # what a file is, and not what its name says
fails 4 'is safetensors, and bin was asked for' load "$work/renamed" --format bin

# ---- nothing for heft -----------------------------------------------------------------------------------------------
while read -r name words; do
    rm -rf "$work/strange"
    mkdir "$work/strange"
    cp "$config" "$work/strange"
    printf 'x%.0s' {1..100} >"$work/strange/$name"
    for command in load inspect plan verify; do # not the empty model of the config
        run 4 $command "$work/strange"
        shows "$err" "no weights found: .*'$name' is .*$words"
    done
done <<'END'
__0_0.distcp DCP
bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt zero_to_fp32\.py
mp_rank_00_model_states.pt zero_to_fp32\.py
model.gguf GGUF
model.onnx ONNX
tf_model.h5 TensorFlow
flax_model.msgpack Flax
model.safetensors.incomplete unfinished download
model.safetensors.part unfinished download
model.safetensors.crdownload unfinished download of a browser
model.safetensors.aria2 unfinished download of aria2
model-00001-of-00002.safetensors.1 a second download of wget
pytorch_model.bin.tmp a temporary file, perhaps of an unfinished download
model.safetensors.filepart unfinished download
model.safetensors.opdownload unfinished download of a browser
model.safetensors.bak a copy of a weight file under another name
pytorch_model.bin~ a copy of a weight file under another name
openvino_model.bin OpenVINO
END
# what browsers add to a name; where huggingface_hub writes what it has not finished
rm -rf "$work/strange"
mkdir -p "$work/strange/.cache/huggingface/download"
cp "$config" "$work/strange"
touch "$work/strange/.cache/huggingface/download/abc=.def.incomplete"
fails 4 'no weights found: .*; 1 unfinished download of huggingface_hub in \.cache/huggingface/download$' load "$work/strange"
cp "$work/$st" "$work/strange/model (1).safetensors"
run 0 load "$work/strange"
shows "$err" "using 'model \(1\)\.safetensors', the only weight file"

# what training scripts call .pth.tar is a file of torch.save; where it is an archive, that is said
for name in model_best.pth.tar checkpoint.pt.tar; do
    folder "tar_$name" "bin/pytorch_model.bin=$name" one/config.json=config.json
    tensors 39 "tar_$name"
    shows "$err" "using '$name', the only weight file in the folder"
    tensors 39 "tar_$name/$name"
    run 0 load "$work/tar_$name" --strict
done
tar -cf "$work/tar_model_best.pth.tar/model_best.pth.tar" -C "$work/one" config.json
fails 7 'model_best.pth.tar: ' load "$work/tar_model_best.pth.tar"
cp "$work/$st" "$work/strange/model (2).safetensors"
fails 4 "weight files: 'model \(1\)\.safetensors' \(a further download of a browser\), 'model \(2\)" load "$work/strange"
cp "$work/$st" "$work/strange/model.safetensors.1"
run 0 inspect "$work/strange/model.safetensors.1"
cp "$work/bin/pytorch_model.bin" "$work/__0_0.distcp"
fails 7 'a part of a torch\.distributed checkpoint \(DCP\)' inspect "$work/__0_0.distcp"
mkdir -p "$work/run/checkpoint-500"
cp "$work/$st" "$work/run/checkpoint-500"
fails 4 'no weights found: .*; found weights in subfolders \(--subfolder\): checkpoint-500$' load "$work/run"
for kind in 'version https://git-lfs.github.com/spec/v1=Git LFS pointer' '<!DOCTYPE html><html>=web page' '{"error":"not found"}=JSON file' 'Entry not found=did not find'; do
    printf '%s\n' "${kind%%=*}" >"$work/strange.safetensors"
    fails 7 "not a checkpoint: this is .*${kind#*=}" inspect "$work/strange.safetensors"
done
