#!/usr/bin/env bash
# test_quantized - weights that are stored quantized: they are named, loaded as they are, or dequantized.
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source=tests/cli/quantized_lib.sh
. "$(dirname "$0")/quantized_lib.sh"
data=$source_dir/tests/data/quant

fresh() { # fresh CASE: a copy to be edited, in $work/edited
    rm -rf "$work/edited"
    cp -r "$data/$1" "$work/edited"
}

for folder in "$data"/*/; do
    case=$(basename "$folder")
    # named, and nothing missing, random, or cast
    run 0 inspect "$folder" --json
    is_json
    shows "$out" '"quantization": [{]"method": "[a-z0-9-]+", "bits": [2348], "group_size": (null|[0-9]+), "weights": [0-9]+, "known": true, "declared": true, "dequantized": false, "state": \[.*\], "block": (null|\[[0-9]+, [0-9]+\])[}]'
    run 0 load "$folder" --strict --json
    has missing '[]'
    has initialized '[]'
    run 0 load "$folder" --strict
    shows "$out" '^quantized    [a-z0-9-]+, [2348] bits,.* [0-9]+ weights$'
    # what a plan counts is what the file has
    run 0 plan "$folder" --json
    # the values of the method's own library, in one file and in shards of a pickle
    run 0 convert "$folder" "$work/$case" --dequantize
    equal "$work/$case/model.safetensors" "$folder/expected.safetensors"
    lacks "$work/$case/config.json" quantization_config
    [ ! -e "$work/$case/quanto_qmap.json" ] || fail "$case: quanto_qmap.json was kept"
    # another file of weights stays as it is, and that is told; what says how weights were stored goes with them
    shows "$err" 'warning: copied as they are, not part of the checkpoint: expected.safetensors$'
    run 0 inspect "$work/$case" --json
    lacks "$out" '_type|tensor_names'
    run 0 convert "$folder" "$work/bin" --dequantize --format bin --max-shard-size 20KB
    run 0 convert "$work/bin" "$work/back"
    run 0 convert "$work/back" "$work/whole" --max-shard-size 1GB
    run 0 load "$work/bin" -q
    rm -rf "${work:?}/bin" "$work/back" "$work/whole"
    run 0 load "$folder" --dequantize --touch --json
    has missing '[]'
    shows "$out" '"dequantized": true'
    # parameters are those of the model, whatever they are stored as; gptq writes biases that the family does not have
    count=$(grep -o '"parameters": [0-9]*' "$out")
    run 0 load "$folder" --json
    [ "$case" = gptq_8bit ] || [ "$count" = "$(grep -o '"parameters": [0-9]*' "$out")" ] || fail "$case: not $count parameters as stored"
    count=$(grep -o '"parameters": [0-9]*' "$out")
    run 0 inspect "$folder" --json
    has total_parameters "${count#*: }"
    # a conversion with a cast leaves what is packed as it is
    run 0 convert "$folder" "$work/cast" --dtype float32
    run 0 load "$work/cast" --json
    has missing '[]'
    run 0 convert "$work/cast" "$work/again" --dequantize --dtype float32
    # casting packed weights is refused, with both ways out
    fails 7 'the weights are quantized .* omit the dtype to load them as stored, or dequantize them' load "$folder" --dtype float64
    rm -rf "$work/${case:?}" "$work/cast" "$work/again"
done

# only the quantization decides: a copy of the shared dequantized weights is not that of other settings
fresh gptq_4bit
run 0 load "$work/edited" --dequantize --mode shared
edit "$work/edited" 'c["quantization_config"]["checkpoint_format"] = "gptq_v2"'
run 0 convert "$work/edited" "$work/v2" --dequantize
if equal "$work/v2/model.safetensors" "$data/gptq_4bit/expected.safetensors" 2>/dev/null; then
    fail "gptq_v2 gives the values of gptq"
fi
rm -rf "$work/v2"

# zero points of gptq were counted down by whole words: a z of 0 borrows from the next, and comes back
fresh gptq_4bit_v2
edit "$work/edited" "
for n in t:
    if n.endswith('.qzeros'):
        t[n] = ('I32', t[n][1], struct.pack('<I', 0x70f10020) * (len(t[n][2]) // 4))"
run 0 convert "$work/edited" "$work/v2" --dequantize
edit "$work/edited" "
for n in t:
    if n.endswith('.qzeros'):
        t[n] = ('I32', t[n][1], struct.pack('<I', (0x70f10020 - 0x11111111) % 2**32) * (len(t[n][2]) // 4))
c['quantization_config']['checkpoint_format'] = 'gptq'"
run 0 convert "$work/edited" "$work/v1" --dequantize
equal "$work/v1/model.safetensors" "$work/v2/model.safetensors"
rm -rf "$work/v1" "$work/v2"

# AutoRound writes the layouts of other methods; of its own the zero points are not known
for case in gptq_4bit:auto_round:auto_gptq awq_4bit:auto_round:auto_awq awq_4bit:auto_awq; do
    fresh "${case%%:*}"
    edit "$work/edited" "
q = c['quantization_config']
c['quantization_config'] = {'quant_method': 'auto-round', 'packing_format': '${case#*:}', 'bits': 4, 'group_size': q['group_size'],
                            'sym': False, 'autoround_version': '0.12.3', 'extra_config': {'model.layers.9.mlp': {'bits': 8}}}"
    run 0 load "$work/edited" --strict -q
    run 0 convert "$work/edited" "$work/plain" --dequantize -q
    equal "$work/plain/model.safetensors" "$data/${case%%:*}/expected.safetensors"
    lacks "$work/plain/config.json" quantization_config
    rm -rf "$work/plain"
done
for format in auto_round auto_round:gptqmodel; do
    fresh gptq_4bit
    edit "$work/edited" "c['quantization_config'] = {'quant_method': 'auto-round', 'packing_format': '$format', 'bits': 4, 'group_size': 32}"
    fails 7 'quantized with "auto-round' load "$work/edited" --dequantize
    run 0 convert "$work/edited" "$work/plain"
    rm -rf "$work/plain"
done

# settings beside the config
fresh gptq_4bit
edit "$work/edited" 'json.dump(c.pop("quantization_config"), open(folder + "/quantize_config.json", "w"))'
run 0 convert "$work/edited" "$work/beside" --dequantize
equal "$work/beside/model.safetensors" "$data/gptq_4bit/expected.safetensors"
[ ! -e "$work/beside/quantize_config.json" ] || fail "quantize_config.json was kept"
rm -rf "$work/beside"
# no settings at all: recognized by the tensors; what they do not say is not guessed
fresh fp8_block
edit "$work/edited" 'c.pop("quantization_config")'
run 0 inspect "$work/edited"
shows "$out" '^quantized   fp8, 8 bits'
run 0 load "$work/edited" --strict -q
fails 7 'cannot be dequantized: no config gives the block size' load "$work/edited" --dequantize
fresh gptq_4bit
edit "$work/edited" 'c.pop("quantization_config")'
run 0 load "$work/edited" --strict -q
fails 7 'cannot be dequantized: no config gives' load "$work/edited" --dequantize
# a method that nobody here has heard of: its name, for what would need it
edit "$work/edited" 'c["quantization_config"] = {"quant_method": "hqq3"}'
fails 7 'quantized with "hqq3"' load "$work/edited"
fails 7 'quantized with "hqq3"' load "$work/edited" --dequantize
fails 7 'quantized with "hqq3"' convert "$work/edited" "$work/never" --dtype float32
[ ! -e "$work/never" ] || fail "something was written"
run 0 inspect "$work/edited"
shows "$out" '^quantized   hqq3, a method that heft does not support$'
run 0 convert "$work/edited" "$work/copy"
equal "$work/copy/model.safetensors" "$work/edited/model.safetensors"
run 0 verify "$work/edited"
rm -rf "$work/copy"

# a config whose widths or layers are not those of the tensors, packed or plain: with tensor, expected and found
for case in gptq_4bit awq_4bit bnb_nf4 bnb_int8 fp8_channel ct_int4_pack ct_nvfp4 quanto_int8 fp8_block; do
    for key in hidden_size intermediate_size num_attention_heads num_key_value_heads vocab_size; do
        fresh "$case"
        edit "$work/edited" "
c['head_dim'] = c.get('head_dim') or c['hidden_size'] // c['num_attention_heads']
c['$key'] *= 2"
        run 1 verify "$work/edited"
        shows "$out" '^shape: config\.json: [a-z0-9_.]+: .*shape \[[0-9, ]+\] in file, \[[0-9, ]+\] in the config.s model$'
    done
    fresh "$case"
    edit "$work/edited" 'layers = c["num_hidden_layers"]; c["num_hidden_layers"] = layers + 1'
    run 1 verify "$work/edited"
    shows "$out" '^missing_weights: config\.json: '
    [ "$(grep -o '"num_hidden_layers": *[0-9]*' "$data/$case/config.json" | grep -o '[0-9]*$')" -gt 1 ] || continue
    fresh "$case"
    edit "$work/edited" 'c["num_hidden_layers"] -= 1'
    run 1 verify "$work/edited"
    shows "$out" "^layers: config\\.json: model\\.layers\\.[0-9]+\\..*: layers up to number [0-9]+ of 'model\\.layers' in the files, [0-9]+ layers in the config"
done

# what contradicts itself is told, and nothing is guessed
bad() { # bad CASE EXPRESSION ITEM WORDS: of load, dequantized or not
    fresh "$1"
    edit "$work/edited" "$2"
    fails 5 "$3.*: $4" load "$work/edited"
    fails 5 "$3.*: $4" load "$work/edited" --dequantize
    run 1 verify "$work/edited"
    shows "$out" '^quantization: '
    run 0 inspect "$work/edited"
    shows "$err" "^heft inspect: warning: .*$3.*: $4"
    run 0 inspect "$work/edited" --json
    shows "$out" '"quantization": [{]"method": "[a-z0-9-]+".*"weights": 0.*"warnings": \[".*"\]'
}
q=model.layers.0.self_attn.q_proj
bad gptq_4bit "del t['$q.scales']" "$q.qweight" 'quantized weight \(gptq\): its companion tensor .*scales'
bad gptq_4bit "t['$q.g_idx'] = ('I32', [4], bytes(16))" "$q.g_idx" '.*expected shape \[64\], found \[4\]'
bad gptq_4bit "c['quantization_config']['group_size'] = 48" '.*scales' '.*expected 2 groups of 48 columns, found|.*expected 3 groups'
bad gptq_4bit "c['quantization_config']['bits'] = 8" '.*' '.*expected|.*shape'
bad gptq_4bit "c['quantization_config']['bits'] = 'four'" 'bits' 'expected an integer from 1 to 8'
bad awq_4bit "t['$q.qzeros'] = ('I32', [1, 8], bytes(32))" "$q.qzeros" '.*expected shape'
bad fp8_block "del t['$q.weight_scale_inv']" "$q.weight" '.*weight_scale_inv'
bad fp8_block "t['$q.weight_scale_inv'] = ('F32', [3, 1], bytes(12))" "$q.weight_scale_inv" '.*expected shape \[1, 1\], found \[3, 1\]'
bad fp8_block "c['quantization_config']['weight_block_size'] = [128]" 'weight_block_size' 'expected a list of two counts'
bad bnb_nf4 "t['$q.weight.quant_state.bitsandbytes__nf4'] = ('U8', [2], b'{]')" "$q.weight.quant_state" '.*malformed JSON'
bad bnb_nf4 "del t['$q.weight.absmax']" "$q.weight.quant_state" '.*absmax'
bad bnb_nf4 "t['$q.weight'] = ('U8', [16, 1], bytes(16))" "$q.weight" '.*expected [0-9]+ bytes'
bad ct_int4_pack "t['$q.weight_shape'] = ('I64', [2], struct.pack('<qq', 64, 999))" "$q.weight_packed" '.*expected shape'
bad ct_nvfp4 "del t['$q.weight_global_scale']" "$q.weight_packed" '.*weight_global_scale'
bad mxfp4 "t['model.layers.0.mlp.experts.down_proj_scales'] = ('U8', [4, 64, 3], bytes(768))" 'down_proj_scales' '.*expected shape'
bad bnb_int8 "t['$q.SCB'] = ('F32', [7], bytes(28))" "$q.SCB" '.*expected shape \[64\], found \[7\]'
# a scale of the whole weight that would make all of its values infinite or NaN
bad ct_nvfp4 "t['$q.weight_global_scale'] = ('F32', [1], struct.pack('<f', 0))" "$q.weight_global_scale" '.*expected a scale other than 0 and NaN, by which values are divided, found 0'
bad ct_nvfp4 "t['$q.weight_global_scale'] = ('F32', [1], struct.pack('<f', float('nan')))" "$q.weight_global_scale" '.*found -?nan'
bad modelopt_nvfp4 "t['$q.weight_scale_2'] = ('F32', [], struct.pack('<f', float('inf')))" "$q.weight_scale_2" '.*expected a finite scale, found inf'
# of a block it is what the library makes of it, and a deep verification says so; infinite divisors make zeros
fresh fp8_block_ue8m0
edit "$work/edited" "t['$q.weight_scale_inv'] = (*t['$q.weight_scale_inv'][:2], b'\xff' + t['$q.weight_scale_inv'][2][1:])"
run 0 load "$work/edited" --dequantize --touch
run 0 verify "$work/edited"
run 1 verify "$work/edited" --deep
shows "$out" "^nan: model\.safetensors: $q.weight_scale_inv: contains 1 NaN and 0 infinities"
fresh ct_nvfp4
edit "$work/edited" "t['$q.weight_global_scale'] = ('F32', [1], struct.pack('<f', float('inf')))"
run 0 convert "$work/edited" "$work/zeros" --dequantize
run 0 verify "$work/zeros" --deep
rm -rf "$work/zeros"
# scales that are not those of the layout: of a wrong dtype, too many, of groups that the method does not have
bad ct_int4_pack_channel "t['$q.weight_scale'] = ('F16', [t['$q.weight_scale'][1][0], 2], t['$q.weight_scale'][2] * 2)" "$q.weight_scale" '.*expected shape \[[0-9]+, 1\], found \[[0-9]+, 2\]'
bad ct_int8 "t['$q.weight_scale'] = ('U8', t['$q.weight_scale'][1], bytes(len(t['$q.weight_scale'][2]) // 2))" "$q.weight_scale" '.*uint8 cannot be a scale of int8'
bad fp8_channel "t['$q.weight_scale'] = ('U8', t['$q.weight_scale'][1], bytes(len(t['$q.weight_scale'][2]) // 2))" "$q.weight_scale" '.*uint8 cannot be a scale of float8'
bad modelopt_mxfp8 "t['$q.weight_scale'] = ('U8', [t['$q.weight_scale'][1][0], 1], t['$q.weight_scale'][2][:t['$q.weight_scale'][1][0]])" "$q.weight_scale" '.*expected shape'
bad modelopt_mxfp8 "t['$q.weight'] = ('I8', *t['$q.weight'][1:])" "$q.weight" '.*expected float8_e4m3fn, found int8'
bad awq_4bit "c['quantization_config']['group_size'] = 33" "scales" '.*groups of 33 columns do not divide [0-9]+'
# more bits than the words have room for; an order of groups that is declared and not there
bad gptq_4bit "c['quantization_config']['bits'] = 5" '.*qweight' '.*expected values of 5 bits, found room for 4'
bad gptq_4bit "c['quantization_config']['desc_act'] = True; del t['$q.g_idx']" "$q.qweight" '.*g_idx" is missing'
# settings that the tensors contradict, and that no value depends on
for wrong in num_bits=8 group_size=32; do
    fresh ct_nvfp4
    edit "$work/edited" "c['quantization_config']['config_groups']['group_0']['weights']['${wrong%=*}'] = ${wrong#*=}"
    run 0 load "$work/edited" --dequantize
    shows "$err" "warning: .*the config says ${wrong%=*} ${wrong#*=}, and the tensors have"
    run 1 verify "$work/edited"
    shows "$out" "^quantization: .*the config says ${wrong%=*} ${wrong#*=}, and the tensors have"
done
# tensors of another method than the one that is declared, and parts of weights that are not there
bad bnb_nf4 "c['quantization_config'] = {'quant_method': 'gptq', 'bits': 4}" 'absmax' '.*expected tensors of gptq only, found one of bitsandbytes'
bad gptq_4bit "c['quantization_config'] = {'quant_method': 'bitsandbytes', 'load_in_4bit': True}" '.*' '.*expected tensors of bitsandbytes only, found one of gptq'
bad fp8_block "c['quantization_config'] = {'quant_method': 'gptq', 'bits': 4}" 'weight_scale_inv' '.*expected tensors of gptq only, found one of fp8'
bad awq_4bit "
for n in [n for n in t if n.startswith('$q.')]: del t[n]
t['$q.weight'] = ('F8_E4M3', [64, 64], bytes(4096)); t['$q.weight_scale_inv'] = ('F32', [1, 1], bytes(4))" 'weight_scale_inv' '.*found one of fp8'
bad gptq_4bit "del t['$q.qweight']" "$q.*" '.*expected a quantized weight that it is a part of, found none'
bad fp8_block "t['$q.weight_zero_point'] = ('I8', [1, 1], b'1')" "$q.weight_zero_point" '.*part of, found none'

# a weight that is stored twice; zero points that the config promises; a quant state of another type
bad gptq_4bit "t['$q.weight'] = ('F16', [64, 64], bytes(8192))" "$q.weight" '.*found it plain and quantized'
bad mxfp4 "t['model.layers.0.mlp.experts.down_proj'] = ('BF16', [4, 64, 64], bytes(32768))" 'experts.down_proj' '.*found it plain and quantized'
bad ct_int4_pack_asym "del t['$q.weight_zero_point']" "$q.weight_packed" '.*weight_zero_point'
bad bnb_nf4 "
n = '$q.weight.quant_state.bitsandbytes__nf4'
text = t[n][2].replace(b'nf4', b'fp4')
t[n] = ('U8', [len(text)], text)" "$q.weight.quant_state" '.*expected "quant_type" nf4, found fp4'

# settings of single modules (gptq), which show in the shapes
fresh gptq_4bit
edit "$work/edited" "
p = 'model.layers.0.mlp.up_proj'
out, size = t[p + '.scales'][1][1], t[p + '.g_idx'][1][0]
t[p + '.qweight'] = ('I32', [size // 4, out], bytes(range(256)) * (size * out // 256))
t[p + '.qzeros'] = ('I32', [size // 32, out // 4], b'\\x7f' * (size // 32 * out))
c['quantization_config']['dynamic'] = {'+:.*up_proj': {'bits': 8}}"
run 0 load "$work/edited" --strict -q
run 0 convert "$work/edited" "$work/dynamic" --dequantize -q
python3 - "$work/dynamic/model.safetensors" "$work/edited/model.safetensors" <<'END'
import json, struct, sys
def read(path, name):
    blob = open(path, "rb").read()
    length = struct.unpack("<Q", blob[:8])[0]
    t = json.loads(blob[8:8 + length])[name]
    return t["shape"], blob[8 + length + t["data_offsets"][0]:8 + length + t["data_offsets"][1]]
p = "model.layers.0.mlp.up_proj."
(out, size), weight = read(sys.argv[1], p + "weight")
_, scales = read(sys.argv[2], p + "scales")
_, index = read(sys.argv[2], p + "g_idx")
for o in (0, 1, out - 1):
    for i in (0, 5, size - 1):
        q = bytes(range(256))[((i // 4 * out + o) * 4 + i % 4) % 256]
        g = struct.unpack_from("<i", index, 4 * i)[0]
        scale = struct.unpack_from("<e", scales, 2 * (g * out + o))[0]
        expected = struct.pack("<e", scale * (q - 128))
        assert weight[2 * (o * size + i):2 * (o * size + i) + 2] == expected, (o, i)
END
rm -rf "$work/dynamic"
edit "$work/edited" "del c['quantization_config']['dynamic']"
fails 5 'up_proj.qzeros: .*expected shape' load "$work/edited"

# layouts that are not known are named
for version in gemv exllama; do
    fresh awq_4bit
    edit "$work/edited" "c['quantization_config']['version'] = '$version'"
    run 0 load "$work/edited" -q
    fails 7 "its version \"$version\" is not supported" load "$work/edited" --dequantize
done
fresh gptq_4bit
edit "$work/edited" "c['quantization_config']['checkpoint_format'] = 'marlin'"
fails 7 'its checkpoint_format "marlin" is not supported' convert "$work/edited" "$work/never" --dequantize

# a config without weights, weights without a config, symmetric weights of the other version: a warning
warned() { # warned WORDS: of load, inspect and convert
    run 0 load "$work/edited"
    shows "$err" "warning: .*$1"
    run 0 inspect "$work/edited"
    shows "$err" "warning: .*$1"
    run 0 convert "$work/edited" "$work/copy"
    shows "$err" "warning: .*$1"
    rm -rf "${work:?}/copy"
}
for method in gptq fp8 compressed-tensors; do
    fresh gptq_4bit
    mv "$work/edited/expected.safetensors" "$work/edited/model.safetensors"
    edit "$work/edited" "c['quantization_config'] = {'quant_method': '$method'}"
    warned "config.json declares that weights are quantized \($method\), but none of them is"
done
for case in fp8_tensor ct_int8 awq_4bit; do
    fresh $case
    rm "$work/edited/expected.safetensors"
    edit "$work/edited" "c.pop('quantization_config')"
    warned 'no config declares that weights are quantized'
    run 0 convert "$work/edited" "$work/plain" --dequantize -q
    equal "$work/plain/model.safetensors" "$data/$case/expected.safetensors"
    rm -rf "${work:?}/plain"
done
fresh gptq_4bit
rm "$work/edited/expected.safetensors"
edit "$work/edited" "c['quantization_config']['checkpoint_format'] = 'gptq_v2'"
warned 'symmetric .*8.*7'

# state: kept, told, and left out with a line
fresh fp8_block
rm "$work/edited/expected.safetensors"
edit "$work/edited" "
t['model.layers.0.self_attn.k_scale'] = ('F32', [], struct.pack('<f', 2))
t['model.layers.0.self_attn.v_proj.v_scale'] = ('F32', [1], struct.pack('<f', 3))"
run 0 load "$work/edited" --strict
shows "$out" '^state        2 tensors .*kept$'
run 0 load "$work/edited" --json
has unexpected '[]'
shows "$out" '"state": \["model.layers.0.self_attn.k_scale", "model.layers.0.self_attn.v_proj.v_scale"\]'
run 0 convert "$work/edited" "$work/cast" --dtype float16
run 0 inspect "$work/cast" --json
shows "$out" '"name": "model.layers.0.self_attn.k_scale", "dtype": "float32"'
run 0 convert "$work/edited" "$work/plain" --dequantize
shows "$err" 'state of the quantization is left out: model.layers.0.self_attn.k_scale, model.layers.0.self_attn.v_proj.v_scale'
equal "$work/plain/model.safetensors" "$data/fp8_block/expected.safetensors"
rm -rf "${work:?}/cast" "$work/plain"

# an index out of range is seen when the values are computed
fresh gptq_4bit
edit "$work/edited" "t['$q.g_idx'] = ('I32', [64], struct.pack('<i', 9) * 64)"
fails 5 'q_proj.weight: g_idx\[0\] is 9, expected less than 2' load "$work/edited" --dequantize
fails 5 'g_idx\[0\] is 9' convert "$work/edited" "$work/never" --dequantize
[ ! -e "$work/never" ] || fail "something was written"

# an index that disagrees with its shards is refused for plain weights too, and what opening warns of is told
run 0 convert "$data/gptq_4bit" "$work/shards" --max-shard-size 20KB
run 0 convert "$work/shards" "$work/plain" --dequantize
rm -rf "$work/plain"
sed -i 's/"model.norm.weight"/"model.norm.weird"/' "$work/shards/model.safetensors.index.json"
fails 5 'model\.norm\.weird' convert "$work/shards" "$work/plain"
fails 5 'model\.norm\.weird' convert "$work/shards" "$work/plain" --dequantize
fails 5 'model\.norm\.weird' load "$work/shards" --dequantize --strict
[ ! -e "$work/plain" ] || fail "something was written"
python3 - "$work/shards/model.safetensors.index.json" <<'END'
import json, sys
index = json.load(open(sys.argv[1]))
del index["weight_map"]["model.norm.weird"]
json.dump(index, open(sys.argv[1], "w"))
END
run 0 load "$work/shards" --dequantize
shows "$err" 'model\.norm\.weight'

# names that a wrapper made longer, or that lack the prefix of the class: the same model
renamed() { # renamed CASE EXPRESSION: new names of its tensors, n each
    fresh "$1"
    rm "$work/edited/expected.safetensors"
    edit "$work/edited" "t = {$2: v for n, v in t.items()}"
}
for case in awq_4bit bnb_nf4 fp8_block quanto_int4 quanto_int8; do
    run 0 load "$data/$case" --json
    before=$(grep -o '"parameters": [0-9]*, "bytes": [0-9]*' "$out" || true)
    for names in "'module.' + n" "'_orig_mod.' + n" "'base_model.model.' + n" "n.replace('.self_attn.', '.self_attn._orig_mod.')" "n.removeprefix('model.')"; do
        renamed $case "$names"
        run 0 load "$work/edited" --strict --json
        has missing '[]'
        has initialized '[]'
        has unexpected '[]'
        [ "$before" = "$(grep -o '"parameters": [0-9]*, "bytes": [0-9]*' "$out" || true)" ] || fail "$case, $names: another size"
        run 0 plan "$work/edited" --json
    done
    # state of a module comes along
    renamed $case "'module.' + n"
    edit "$work/edited" "t['module.model.layers.0.self_attn.k_scale'] = ('F32', [], struct.pack('<f', 2))"
    run 0 load "$work/edited" --strict -q
    # a quantized weight without a place is refused, not replaced by random values
    renamed $case "n.replace('model.layers.0.', 'model.blocks.0.') if 'q_proj' in n else n"
    run 6 load "$work/edited"
    shows "$err" 'model.blocks.0.self_attn.q_proj.weight: a quantized weight \(.*\) that has no place in LlamaForCausalLM, which lacks [0-9]+ weights: .model.layers.0.self_attn.q_proj.weight. is the first'
    run 0 load "$work/edited" --allow-missing -q
done
