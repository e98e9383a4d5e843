#!/usr/bin/env bash
# test_load - instantiate a model and say how it went.
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"
keys='class model_type parameters bytes dtype mode strategy missing unexpected mismatched initialized tied device_map seconds memory'

"$heft" init -q "$config" "$work/base" --max-shard-size 40KB
"$heft" init -q "$config" "$work/mlm" --class BertForMaskedLM
before=$(snapshot "$work/base")

for mode in map copy; do
    run 0 load "$work/base" --mode "$mode" --json --touch
    silent "$err"
    is_json
    for key in $keys; do
        shows "$out" "\"$key\": "
    done
    has class '"BertModel"'
    has model_type '"bert"'
    has parameters 23392
    has bytes 93568
    has dtype '"float32"'
    has mode "\"$mode\""
    has missing '[]'
    has unexpected '[]'
    has mismatched '[]'
    has initialized '[]'
    has tied '[]'
    has device_map '{"": "cpu"}'
    lacks "$out" '"error"'
done
run 0 load "$work/base"
silent "$err"
shows "$out" '^class +BertModel \(bert\)$'
shows "$out" '^parameters +23,392$'
shows "$out" '^size +93\.6 KB \(93,568 bytes\)$'
shows "$out" '^initialized +0 tensors$'
shows "$out" '^memory +peak '
lacks "$out" 'MISSING|UNEXPECTED|MISMATCH'
run 0 load -q "$work/base"
silent "$out"
silent "$err"
run 0 load "$work/base/model.safetensors.index.json" --json
has parameters 23392
run 0 load "$work" --subfolder base --json
has parameters 23392
run 0 load "$work/base" --dtype bf16 --json
has dtype '"bfloat16"'
has bytes 46784

# a base checkpoint into a head class and back; layers are folded in the text
run 0 load "$work/base" --class BertForMaskedLM --json
is_json
shows "$out" '"missing": \["cls.predictions.bias", '
has unexpected '["pooler.dense.bias", "pooler.dense.weight"]'
run 0 load "$work/base" --class BertForMaskedLM
shows "$out" '^MISSING +cls\.predictions\.bias'
shows "$out" '^UNEXPECTED +pooler\.dense\.bias'
shows "$out" '^tied +.* = '
run 0 load "$work/mlm" --class BertModel
shows "$out" '^UNEXPECTED +cls\.predictions\.bias'
shows "$out" '^MISSING +(bert\.)?pooler\.dense\.bias'
sed 's/"num_hidden_layers": 2/"num_hidden_layers": 5/' "$config" >"$work/deep.json"
cp -r "$work/base" "$work/short"
cp "$work/deep.json" "$work/short/config.json"
run 0 load "$work/short"
shows "$out" '^MISSING +encoder\.layer\.\{2\.\.4\}\.attention\.self\.query\.weight'
shows "$out" '^initialized +48 tensors$'
[ "$(grep -c ^MISSING "$out")" = 16 ] || fail "$last: $(grep -c ^MISSING "$out") rows for 16 names of three layers"

# strict and mismatched: the report comes all the same
run 6 load "$work/short" --strict
shows "$out" '^MISSING +encoder\.layer\.\{2\.\.4\}\.'
lines "$err" 1
shows "$err" '^heft load: '
run 6 load "$work/short" --strict --json
silent "$err"
is_json
has status '"MISMATCH"'
shows "$out" '"missing": \["encoder\.layer\.2\.'
sed 's/"vocab_size": 120/"vocab_size": 7/' "$config" >"$work/other.json"
cp -r "$work/base" "$work/other"
cp "$work/other.json" "$work/other/config.json"
run 6 load "$work/other"
shows "$out" '^MISMATCH +embeddings\.word_embeddings\.weight +\[120, 32\] in the checkpoint, \[7, 32\] in the model$'
lines "$err" 1
run 6 load "$work/other" --json
is_json
has mismatched '[{"name": "embeddings.word_embeddings.weight", "checkpoint": [120, 32], "model": [7, 32]}]'
has status '"MISMATCH"'
run 0 load "$work/other" --ignore-mismatched-sizes --json
has initialized '["embeddings.word_embeddings.weight"]'

# bad input
fails 7 'NoSuchClass' load "$work/base" --class NoSuchClass
cp -r "$work/base" "$work/plain"
rm "$work/plain/config.json"
fails 4 'config.json' load "$work/plain"
same "$before" "$work/base"

# a device map as it is typed: one device for all
run 0 load "$work/base" --device-map cpu --json
has device_map '{"": "cpu"}'
run 0 plan "$work/base" --strategy cuda:0 --json
shows "$out" '"device_map": [{]"": 0[}]'
run 0 plan "$work/base" --strategy 0 --json
shows "$out" '"device_map": [{]"": 0[}]'
fails 2 'cuda:x' load "$work/base" --device-map cuda:x
# "cuda:0" in a file; transient buffers (BERT's position_ids) need no device
printf '%s' '{"embeddings.word_embeddings": "cpu", "embeddings.position_embeddings": "cpu", "embeddings.token_type_embeddings": "cpu",
 "embeddings.LayerNorm": "cpu", "encoder": "disk", "pooler": "cpu"}' >"$work/map.json"
run 0 load "$work/base" --device-map "$work/map.json" -q
sed 's/"pooler": "cpu"/"pooler": "cuda:1"/' "$work/map.json" >"$work/cuda.json"
run 0 plan "$work/base" --strategy "$work/cuda.json" --json
shows "$out" '"pooler": 1'

# a tie of which the file has one name only, in another shape: the saved name is random, and named
mkdir "$work/tied"
python3 - "$work/tied" "$source_dir/tests/data/quant/awq_4bit/config.json" <<'END'
import json, sys
c = json.load(open(sys.argv[2]))
c.pop("quantization_config")
json.dump(c | {"tie_word_embeddings": True}, open(sys.argv[1] + "/config.json", "w"))
END
run 0 init "$work/tied" "$work/tied_model" -q
python3 - "$work/tied_model/model.safetensors" <<'END'
import json, struct, sys
blob = open(sys.argv[1], "rb").read()
length = struct.unpack("<Q", blob[:8])[0]
header = json.loads(blob[8:8 + length])
t = header["lm_head.weight"] = header.pop("model.embed_tokens.weight")
t["shape"] = [t["shape"][0] // 2, t["shape"][1] * 2]
head = json.dumps(header).encode()
open(sys.argv[1], "wb").write(struct.pack("<Q", len(head)) + head + blob[8 + length:])
END
run 6 load "$work/tied_model"
run 0 load "$work/tied_model" --ignore-mismatched-sizes --json
shows "$out" '"initialized": \[("lm_head.weight", "model.embed_tokens.weight"|"model.embed_tokens.weight", "lm_head.weight")\]'
has missing '[]'

# weights without a config
mkdir "$work/alone"
cp "$work/tied_model/model.safetensors" "$work/alone"
fails 4 'config.json: does not exist: a model is loaded with the config.json beside its weights' load "$work/alone/model.safetensors"
