#!/usr/bin/env bash
# test_init - a model with random weights, saved.
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"

run 0 init "$config" "$work/a"
silent "$err"
shows "$out" '^model.safetensors +39 +9[0-9],[0-9]{3}$'
shows "$out" '^total +93\.6 KB \(93,568 bytes\)$'
shows "$out" '^parameters +23,392$'
[ "$(cd "$work/a" && echo *)" = "config.json model.safetensors" ] || fail "files: $(ls "$work/a")"

run 0 init "$config" "$work/b" --json
silent "$err"
is_json
has index null
has total_size 93568
has total_parameters 23392
has tensors 39
shows "$out" '"memory": [{]"peak_rss_bytes": [1-9][0-9]*, "peak_anon_bytes": [1-9][0-9]*, "pss_bytes": [1-9][0-9]*[}]'
cmp -s "$work/a/model.safetensors" "$work/b/model.safetensors" || fail "the same seed gives other weights"
run 0 init "$config" "$work/c" --seed 1 -q
silent "$out"
silent "$err"
! cmp -s "$work/a/model.safetensors" "$work/c/model.safetensors" || fail "another seed gives the same weights"

# shards, and the same values in them
run 0 init "$config" "$work/shards" --max-shard-size 40KB --json
is_json
has index '"model.safetensors.index.json"'
shows "$out" '"files": \[[{]"name": "model-00001-of-00003.safetensors", "bytes": [0-9]+, "tensors": [0-9]+[}], '
run 0 convert -q "$work/shards" "$work/merged"
cmp -s "$work/a/model.safetensors" "$work/merged/model.safetensors" || fail "sharded weights differ"
run 0 init "$config" "$work/bins" --max-shard-size 40KB --format bin --json
has index '"pytorch_model.bin.index.json"'
run 0 convert -q "$work/bins" "$work/unpickled" --format safetensors
cmp -s "$work/a/model.safetensors" "$work/unpickled/model.safetensors" || fail "weights in .bin differ"

# dtype, class, variant; a folder as CONFIG
run 0 init "$work/a" "$work/half" --dtype bf16 --json
has total_size 46784
# what a load keeps in float32 is float32, unless it is asked for; a load then casts nothing
cat >"$work/.t5.json" <<'EOF'
{"model_type": "t5", "d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 10}
EOF
run 0 init "$work/.t5.json" "$work/t5" --dtype f16 -q
run 0 inspect "$work/t5"
shows "$out" 'wo\.weight +float32'
shows "$out" 'wi\.weight +float16'
run 0 convert "$work/t5" "$work/t5-again" --dtype f16 -q
cmp -s "$work/t5/model.safetensors" "$work/t5-again/model.safetensors" || fail "a cast changed what init wrote"
run 0 init "$work/.t5.json" "$work/t5-half" --dtype f16 --dtype-of wo=float16 -q
run 0 inspect "$work/t5-half"
shows "$out" 'wo\.weight +float16'
run 0 init "$work/.t5.json" "$work/t5-brain" --dtype bf16 -q
run 0 inspect "$work/t5-brain"
shows "$out" 'wo\.weight +bfloat16'
run 0 init "$config" "$work/mlm" --class BertForMaskedLM --json
has total_parameters 23576
run 0 init "$config" "$work/variant" --variant fp16 -q
[ -f "$work/variant/model.fp16.safetensors" ] || fail "files: $(ls "$work/variant")"

# refusals
before=$(snapshot "$work/a")
fails 11 "$work/a" init "$config" "$work/a"
same "$before" "$work/a"
fails 7 'NoSuchClass' init "$config" "$work/new" --class NoSuchClass
fails 4 'none.json' init "$work/none.json" "$work/new"
echo '{"model_type": "bert", ' >"$work/.broken.json"
fails 5 'broken.json' init "$work/.broken.json" "$work/new"
[ ! -e "$work/new" ] || fail "a refused init made its destination"
run 0 init "$config" "$work/a" --force --seed 1 -q
cmp -s "$work/a/model.safetensors" "$work/c/model.safetensors" || fail "--force did not replace the weights"
no_traces "$work"

# a config that declares quantized weights: the written ones are plain, and its settings do not stay
mkdir "$work/quant"
cp "$source_dir/tests/data/quant/awq_4bit/config.json" "$work/quant"
run 0 init "$work/quant" "$work/plain"
shows "$err" 'warning: config.json is written without its quantization settings, because the weights are not quantized'
lacks "$work/plain/config.json" quantization_config
run 0 load "$work/plain" --strict --json
silent "$err"
shows "$out" '"quantization": null'
python3 - "$work/quant/config.json" <<'END'
import json, sys
c = json.load(open(sys.argv[1]))
c["text_config"] = {"compression_config": c.pop("quantization_config")}
json.dump(c, open(sys.argv[1], "w"))
END
run 0 init "$work/quant" "$work/plain" --force
lacks "$work/plain/config.json" compression_config
run 0 init "$config" "$work/plain" --force
silent "$err"
