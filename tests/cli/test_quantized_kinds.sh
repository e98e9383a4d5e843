#!/usr/bin/env bash
# test_quantized_kinds - quantized checkpoints of kinds that public loaders read wrongly, refused or filled with random
# values: quantized.py makes them, and the values that are right.
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source=tests/cli/quantized_lib.sh
. "$(dirname "$0")/quantized_lib.sh"
made=$work/made
mkdir "$made"
python3 "$(dirname "$0")/quantized.py" "$made"

for folder in "$made"/*/; do
    case=$(basename "$folder")
    run 0 verify "$folder"
    run 0 load "$folder" --strict --json
    has missing '[]'
    has initialized '[]'
    has unexpected '[]'
    count=11360
    [ "$case" != tied_table ] || count=10848
    has parameters $count
    run 0 load "$folder" --dequantize --strict --json
    has initialized '[]'
    has parameters $count
    run 0 inspect "$folder" --json
    has total_parameters $count
    run 0 convert "$folder" "$work/plain" --dequantize -q
    equal "$work/plain/model.safetensors" "$made/$case.expected" || fail "$case: other values"
    # what is stored stays as it is
    run 0 convert "$folder" "$work/copy" --dtype float32 -q
    run 0 convert "$work/copy" "$work/again" --dequantize --dtype bfloat16 -q
    equal "$work/again/model.safetensors" "$made/$case.expected" || fail "$case: other values after a cast"
    rm -rf "$work/plain" "$work/copy" "$work/again"
done

# edited CASE EXPRESSION: a copy in $work/edited with other tensors t: {name: (dtype, shape, bytes)}, or another config c
edited() {
    rm -rf "$work/edited"
    cp -r "$made/$1" "$work/edited"
    edit "$work/edited" "$2"
}
layer=model.layers.0

# experts in one tensor: a grid of scales for each, or nothing is computed
edited fp8_scalar "
t.clear()
q = bytes(case.below(127) for case in [quantized.Numbers(1)] for _ in range(3 * 10 * 12))
scales = [2.0 ** (k % 9 - 6) for k in range(3 * 3 * 2)]
t['experts.down_proj'] = ('F8_E4M3', [3, 10, 12], q)
t['experts.down_proj_scale_inv'] = ('F32', [3, 3, 2], struct.pack('<18f', *scales))
values = [quantized.e4m3(q[(e * 10 + o) * 12 + i]) * scales[(e * 3 + o // 4) * 2 + i // 8]
          for e in range(3) for o in range(10) for i in range(12)]
quantized.write(folder + '/expected', {'experts.down_proj': ('BF16', [3, 10, 12], b''.join(map(quantized.bf16, values)))})
c['model_type'] = c['architectures'][0] = 'Stacked'
c['quantization_config']['weight_block_size'] = [4, 8]"
run 0 convert "$work/edited" "$work/plain" --dequantize -q
equal "$work/plain/model.safetensors" "$work/edited/expected" || fail "experts in one tensor: other values"
rm -rf "$work/plain"
edited fp8_scalar "
t['experts.down_proj'] = ('F8_E4M3', [2, 2, 2], bytes(8))
t['experts.down_proj_scale_inv'] = ('F32', [1], bytes(4))"
fails 7 'experts.down_proj: cannot be dequantized: .* its scales are no grid for each' load "$work/edited" --dequantize

# half-bytes need exponents; another dtype is not guessed at
edited fp8_half_bytes_U8_I8 "t['$layer.mlp.up_proj.scale'] = ('F32', [64, 1], bytes(256))"
fails 5 'up_proj.scale: .*expected exponents as scales of half-bytes, found float32' load "$work/edited"

# what looks quantized and has no scale of the method is never taken for plain numbers
for stored in I8 U8 F8_E4M3; do
    edited zeros_in_bytes "
n = '$layer.mlp.up_proj.weight'
for end in ('_packed', '_scale', '_shape', '_zero_point'): del t[n + end]
t[n] = ('$stored', [64, 32], bytes(2048))
c['quantization_config'] = {'quant_method': 'gptq', 'bits': 4}
for n in [n for n in t if 'weight_' in n]: del t[n]"
    run 0 load "$work/edited" --allow-missing
    shows "$err" "warning: '$layer.mlp.up_proj.weight' is kept as it is: it is stored in .*, with no scale that gptq has"
    fails 7 'up_proj.weight: cannot be dequantized: it is stored in ' convert "$work/edited" "$work/never" --dequantize
    [ ! -e "$work/never" ] || fail "something was written"
done

# a tie with a quantized table: one set of tensors with two names, in a pass too; a head of its own stays
run 0 load "$made/tied_table"
shows "$out" '^tied  *model.embed_tokens.weight_packed = lm_head.weight_packed$'
run 0 load "$made/tied_table" --device-map cpu --touch -q
edited tied_table "t['lm_head.weight'] = ('BF16', [16, 32], bytes(1024))"
run 0 load "$work/edited" --strict
lacks "$out" '^tied'

# a block is told as such
run 0 inspect "$made/fp8_short_blocks"
shows "$out" '^quantized   fp8, 8 bits, block 24x20, 7 weights$'
run 0 load "$made/fp8_short_blocks" --json
shows "$out" '"group_size": 20, .*"block": \[24, 20\]'
run 0 inspect "$made/fp8_rows" --json
shows "$out" '"group_size": null, .*"block": null'

# weights that the body lacks are counted as weights, not as tensors
edited zeros_in_words "
for n in [n for n in t if 'up_proj' in n]: del t[n]"
run 0 load "$work/edited"
shows "$err" "warning: 1 of 11 weights of the base model are missing .*'$layer.mlp.up_proj.weight'"

# what ComfyUI says of a weight, in a tensor beside it or in the metadata: rotated weights and tiled scales are not computed
comfy() { # comfy TEXT: of up_proj of fp8_scalar without its config
    edited fp8_scalar "
text = b'$1'
t['$layer.mlp.up_proj.comfy_quant'] = ('U8', [len(text)], text)
t['scaled_fp8'] = ('F8_E4M3', [2], bytes(2))
c.pop('quantization_config')"
}
comfy '{"format": "float8_e4m3fn", "full_precision_matrix_mult": false}'
run 0 convert "$work/edited" "$work/plain" --dequantize
equal "$work/plain/model.safetensors" "$made/fp8_scalar.expected" || fail "$last: other values"
rm -rf "$work/plain"
comfy '{"format": "float8_e4m3fn", "convrot": true}'
fails 7 'up_proj.weight: cannot be dequantized: its ComfyUI format "float8_e4m3fn" with rotated weights' load "$work/edited" --dequantize
comfy '{"format": "nvfp4"}'
run 0 load "$work/edited" -q
fails 7 'up_proj.weight: cannot be dequantized: its ComfyUI format "nvfp4" is not supported' convert "$work/edited" "$work/never" --dequantize
comfy '{"format"'
fails 5 'up_proj.comfy_quant: .*malformed JSON' load "$work/edited" --dequantize
edited mixed_formats ""
python3 - "$work/edited/model.safetensors" <<'END_OF_PYTHON'
import json, struct, sys
blob = open(sys.argv[1], "rb").read()
length = struct.unpack("<Q", blob[:8])[0]
header = json.loads(blob[8:8 + length])
layers = {"model.layers.0.self_attn.q_proj": {"format": "mxfp8"}}
header["__metadata__"] = {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": layers})}
text = json.dumps(header).encode()
open(sys.argv[1], "wb").write(struct.pack("<Q", len(text)) + text + blob[8 + length:])
END_OF_PYTHON
fails 7 'q_proj.weight: cannot be dequantized: its ComfyUI format "mxfp8" is not supported' load "$work/edited" --dequantize
[ ! -e "$work/never" ] || fail "something was written"

# MLX: words beside scales, known by these tensors, whatever the config says; nothing of it is computed
for settings in "{'group_size': 32, 'bits': 4}" "{'quant_method': 'gptq', 'bits': 4, 'group_size': 32}" None; do
    for biases in True False; do
        edited fp8_scalar "
for n in [n for n in t if n.endswith('.weight_scale_inv')]:
    p, shape = n[:-len('.weight_scale_inv')], t[n.replace('_scale_inv', '')][1]
    del t[n]
    t[p + '.weight'] = ('U32', [shape[0], shape[1] // 8], bytes(shape[0] * shape[1] // 2))
    for end in ['scales', 'biases'][:1 + $biases]:
        t[p + '.' + end] = ('BF16', [shape[0], shape[1] // 32], bytes(shape[0] * shape[1] // 16))
c['quantization_config'] = c['quantization'] = $settings"
        for command in "load" "load --dequantize" "plan"; do
            # shellcheck disable=SC2086 # words
            fails 7 'the weights are quantized with "mlx", a method that heft does not support' ${command%% *} "$work/edited" ${command#"${command%% *}"}
        done
        fails 7 'quantized with "mlx"' convert "$work/edited" "$work/never" --dequantize
        fails 7 'quantized with "mlx"' convert "$work/edited" "$work/never" --dtype float32
        run 0 verify "$work/edited"
        run 0 inspect "$work/edited"
        shows "$out" '^quantized   mlx, a method that heft does not support$'
        run 0 convert "$work/edited" "$work/copy" -q
        run 0 diff "$work/edited" "$work/copy"
        rm -rf "${work:?}/copy"
    done
done

# integers with a scale beside them, and nothing that says how: never taken for numbers
unnamed() { # unnamed DTYPE END: up_proj has the scales P.END
    edited fp8_scalar "
for n in [n for n in t if n.endswith('_scale_inv')]: del t[n]
for n in [n for n in t if t[n][0] == 'F8_E4M3']: t[n] = ('BF16', t[n][1], bytes(2 * len(t[n][2])))
t['$layer.mlp.up_proj.weight'] = ('$1', [64, 32], bytes(2048 * {'I8': 1, 'U8': 1, 'I32': 4, 'U32': 4}['$1']))
t['$layer.mlp.up_proj.$2'] = ('BF16', [64], bytes(128))
c.pop('quantization_config')"
}
for kind in I8:weight_scales I32:weight_scale U8:scale U32:weight_scale; do
    unnamed "${kind%:*}" "${kind#*:}"
    fails 7 'up_proj.weight: integers with a scale beside them: the weights are quantized' load "$work/edited"
    fails 7 'up_proj.weight: integers with a scale beside them' convert "$work/edited" "$work/never" --dequantize
    run 0 convert "$work/edited" "$work/copy"
    shows "$err" "warning: '$layer.mlp.up_proj.weight' has integers with a scale beside them"
    run 0 diff "$work/edited" "$work/copy"
    rm -rf "${work:?}/copy"
done

for kind in U8:W_q:scale I32:q_weight:q_scale I16:trellis:suh; do
    IFS=: read -r dtype code scale <<<"$kind"
    unnamed I8 scales
    edit "$work/edited" "
p, size = '$layer.mlp.up_proj.', {'U8': 1, 'I16': 2, 'I32': 4}['$dtype']
t[p + '$code'] = ('$dtype', [64, 32], bytes(2048 * size))
t[p + '$scale'] = t.pop(p + 'scales')
del t[p + 'weight']"
    fails 7 "up_proj.$code: integers with a scale beside them: the weights are quantized" load "$work/edited"
done

# packed experts in one tensor, of a method that has none: named, not left for random ones; nothing packed remains
for dtype in I32 U8; do
    edited zeros_in_words "
for n in [n for n in t if '.mlp.' in n]: del t[n]
p = '$layer.mlp.experts.gate_up_proj'
t |= {p + '_packed': ('$dtype', [2, 16, 8], bytes(256 * {'I32': 4, 'U8': 1}['$dtype'])), p + '_scale': ('BF16', [2, 16, 2], bytes(128)),
      p + '_shape': ('I64', [3], bytes(24))}"
    run 6 load "$work/edited"
    shows "$err" 'experts.gate_up_proj_packed: a quantized weight .* that has no place in LlamaForCausalLM, which lacks 3 weights'
    fails 7 'experts.gate_up_proj_packed: cannot be dequantized' load "$work/edited" --dequantize
    fails 7 'experts.gate_up_proj_packed: cannot be dequantized' convert "$work/edited" "$work/never" --dequantize
done

# what plain weights alone would not be: rotated ones, activations that are divided (awq), weights that are rounded at each use
barred() { # barred WORDS: what the dequantized model would lack
    run 0 load "$work/edited"
    shows "$err" "warning: $1"
    run 0 verify "$work/edited"
    shows "$out" "^note: quantization: $1"
    fails 7 "$2: cannot be dequantized: " load "$work/edited" --dequantize
    fails 7 "$2: cannot be dequantized: " convert "$work/edited" "$work/never" --dequantize
    run 7 run "$work/edited" --ids 1,2
    run 0 convert "$work/edited" "$work/copy" -q
    run 0 diff "$work/edited" "$work/copy"
    rm -rf "${work:?}/copy"
}
edited zeros_in_words "
c['quantization_config']['transform_config'] = {'config_groups': {'v': {'type': 'hadamard', 'apply': [{'location': 'input', 'targets': ['Linear']}]}}}"
barred 'transform_config: the weights cannot be dequantized: the stored weights are rotated' transform_config
for none in None "{}" "{'config_groups': {}}"; do
    edited zeros_in_words "c['quantization_config']['transform_config'] = $none"
    run 0 load "$work/edited" --dequantize --strict -q
done
rm -rf "$work/edited"
cp -r "$source_dir/tests/data/quant/awq_4bit" "$work/edited"
rm "$work/edited/expected.safetensors"
edit "$work/edited" "t['$layer.mlp.act.scales'] = ('F16', [4], bytes(8))"
barred "$layer.mlp.act.scales: the weights cannot be dequantized: an activation is divided" "$layer.mlp.act.scales"
for status in "quantization_status='frozen'" "format='dense'"; do
    edited zeros_in_words "
for n in [n for n in t if n.endswith('_packed')]:
    p, (rows, columns) = n[:-len('_packed')], struct.unpack('<qq', t[n.replace('_packed', '_shape')][2])
    del t[n], t[p + '_shape']
    t[p] = ('BF16', [rows, columns], bytes(2 * rows * columns))
c['quantization_config'].update($status)"
    run 0 load "$work/edited" --strict --json
    has unexpected '[]'
    has missing '[]'
    barred "$layer.*weight_(scale|zero_point): the weights cannot be dequantized: the weights are plain, and rounded" "$layer.*weight_(scale|zero_point)"
done

# Conv1D has [in, out], and its quantized weight is [out, in]: as stored it fits, dequantized it is turned, square or not
printf '%s' '{"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": 16, "n_head": 2, "n_layer": 1, "n_positions": 8, "vocab_size": 8}' >"$work/gpt2.json"
"$heft" init -q "$work/gpt2.json" "$work/gpt2"
for type in gpt2 openai-gpt imagegpt; do
    rm -rf "$work/edited" "$work/plain" "$work/copy"
    cp -r "$work/gpt2" "$work/edited"
    edit "$work/edited" "
for n in [n for n in t if 'c_' in n and n.endswith('.weight')]:
    i, o = t[n][1]
    t[n] = ('I8', [o, i], bytes((7 * k) % 128 for k in range(o * i)))
    t[n[:-len('weight')] + 'SCB'] = ('F32', [o], struct.pack('<%df' % o, *(127.0 * (1 + r % 3) for r in range(o))))
c['quantization_config'] = {'quant_method': 'bitsandbytes', 'load_in_8bit': True}
c['model_type'] = '$type'
if '$type' != 'gpt2': c['architectures'] = ['OtherLMHeadModel']"
    run 0 load "$work/edited" --strict --json
    has initialized '[]'
    run 0 verify "$work/edited"
    run 0 convert "$work/edited" "$work/copy" -q
    run 0 convert "$work/edited" "$work/plain" --dequantize --dtype f32 -q
    run 0 load "$work/edited" --dequantize --strict --json
    has initialized '[]'
    python3 - "$work/plain/model.safetensors" <<'EOF' || fail "$type: a dequantized Conv1D is not the transpose"
import json, struct, sys
data = open(sys.argv[1], "rb").read()
size = struct.unpack("<Q", data[:8])[0]
header = json.loads(data[8:8 + size])
seen = 0
for name, facts in header.items():
    if "c_" in name and name.endswith(".weight"):
        inner, outer = facts["shape"]
        first, end = (8 + size + offset for offset in facts["data_offsets"])
        values = struct.unpack("<%df" % (inner * outer), data[first:end])
        for o in range(outer):
            for i in range(inner):
                assert values[i * outer + o] == (7 * (o * inner + i)) % 128 * (1 + o % 3), (name, i, o)
        seen += 1
assert seen == 4, seen
EOF
done
rm -rf "${work:?}/plain" "${work:?}/copy"
# as [in, out], though quantized: where in = out, nothing shows which it is
rm -rf "$work/edited"
cp -r "$work/gpt2" "$work/edited"
edit "$work/edited" "
for n in [n for n in t if 'c_' in n and n.endswith('.weight')]:
    i, o = t[n][1]
    t[n] = ('F8_E4M3', [i, o], bytes(o * i))
    t[n + '_scale'] = ('F32', [1], struct.pack('<f', 0.5))
c['quantization_config'] = {'quant_method': 'compressed-tensors', 'format': 'float-quantized', 'config_groups':
    {'g': {'targets': ['Conv1D'], 'weights': {'num_bits': 8, 'type': 'float', 'strategy': 'tensor', 'symmetric': True}}}}"
for command in load "run --ids 1"; do
    # shellcheck disable=SC2086 # words
    run 7 $command --dequantize "$work/edited"
    shows "$err" 'c_attn.weight: cannot be dequantized: .*Conv1D is expected as \[out, in\].*found \[16, 48\]'
done
fails 7 'c_attn.weight: cannot be dequantized' convert "$work/edited" "$work/never" --dequantize
# float8 experts in one tensor, in a model that has each by itself: divided when they are dequantized, in memory and on the way
printf '%s' '{"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "hidden_size": 16, "intermediate_size": 16, "moe_intermediate_size": 8,
 "num_experts": 4, "num_experts_per_tok": 2, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 16,
 "dtype": "bfloat16"}' >"$work/experts.json"
"$heft" init -q "$work/experts.json" "$work/experts"
rm -rf "$work/edited"
cp -r "$work/experts" "$work/edited"
edit "$work/edited" "
case = quantized.Numbers(5)
for n in [n for n in t if '.experts.' in n]: del t[n]
for name, shape in (('gate_up_proj', [4, 16, 16]), ('down_proj', [4, 16, 8])):
    p = '$layer.mlp.experts.' + name
    count = shape[0] * shape[1] * shape[2]
    t[p] = ('F8_E4M3', shape, bytes(case.below(127) for _ in range(count)))
    t[p + '_scale_inv'] = ('F32', [4, 2, shape[2] // 8], struct.pack(f'<{shape[2]}f', *(2.0 ** (case.below(9) - 8) for _ in range(shape[2]))))
c['quantization_config'] = {'quant_method': 'fp8', 'weight_block_size': [8, 8]}"
run 0 verify "$work/edited"
fails 7 'proj_scale_inv: part of a quantized weight that stacks matrices .* only the dequantized weight' load "$work/edited"
run 0 load "$work/edited" --dequantize --strict --json
has missing '[]'
run 0 convert "$work/edited" "$work/plain" --dequantize -q
run 0 run "$work/edited" --dequantize --ids 1,2,3 --outputs logits --save "$work/here.safetensors" -q
run 0 run "$work/plain" --ids 1,2,3 --outputs logits --save "$work/there.safetensors" -q
cmp "$work/here.safetensors" "$work/there.safetensors"
run 0 load "$work/edited" --dequantize --device-map disk --touch -q
rm -rf "$work/plain"

# a pickle with weights of a class that is not read: they are named, never random, and nothing is dequantized without them
run 0 convert "$made/fp8_scalar" "$work/numbers" --dequantize -q
run 0 convert "$work/numbers" "$work/floats" --dtype float32 -q
mkdir "$work/objects"
python3 "$(dirname "$0")/objects.py" "$work/floats/model.safetensors" "$work/objects/pytorch_model.bin" $layer.mlp.up_proj.weight $layer.mlp.down_proj.weight
cp "$work/floats/config.json" "$work/objects"
fails 7 '(up|down)_proj.weight: is stored as a tensor or object of a kind that heft does not read \(2 parameters\)' load "$work/objects"
run 0 load "$work/objects" --allow-missing -q
run 1 verify "$work/objects"
shows "$out" '^left_out: pytorch_model.bin: .*_proj.weight: is stored as a tensor or object of a kind'
run 0 convert "$work/objects" "$work/copy" -q
rm -rf "${work:?}/copy"
sed -i '1s/{/{"quantization_config": {"quant_method": "torchao"},/' "$work/objects/config.json"
for options in "" --dequantize "--dtype float16"; do
    # shellcheck disable=SC2086 # words
    fails 7 '_proj.weight: is stored as an object that heft does not read, and the weights are quantized' convert "$work/objects" "$work/never" $options
done
[ ! -e "$work/never" ] || fail "something was written"

# torchao: Transformers writes what a weight is under its name in memory, which is not always that in the file
printf '%s' '{"architectures": ["ViTForImageClassification"], "model_type": "vit", "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1,
 "num_attention_heads": 2, "image_size": 4, "patch_size": 2, "dtype": "bfloat16"}' >"$work/vit.json"
"$heft" init -q "$work/vit.json" "$work/vit"
for names in file memory; do
    rm -rf "$work/edited"
    cp -r "$work/vit" "$work/edited"
    edit "$work/edited" "
case, told = quantized.Numbers(3), {}
for n in [n for n in t if n.endswith('.weight') and '.layer.' in n and 'norm' not in n]:
    o, i = t.pop(n)[1]
    p = n[:-len('weight')] + '_weight_'
    t[p + 'qdata'] = ('I8', [o, i], bytes(case.below(256) for _ in range(o * i)))
    t[p + 'scale'] = ('BF16', [o, 1], b''.join(quantized.bf16(case.small()) for _ in range(o)))
    if '$names' == 'memory':
        for old, new in (('encoder.layer', 'layers'), ('attention.attention.query', 'attention.q_proj'), ('attention.attention.key', 'attention.k_proj'),
                         ('attention.attention.value', 'attention.v_proj'), ('attention.output.dense', 'attention.o_proj'),
                         ('intermediate.dense', 'mlp.fc1'), ('output.dense', 'mlp.fc2')):
            n = n.replace(old, new)
    told[n] = json.dumps({'_type': 'Int8Tensor', '_data': {'block_size': [1, i], 'dtype': {'_type': 'torch.dtype', '_data': 'bfloat16'}},
                          '_tensor_data_names': ['qdata', 'scale']})
c['quantization_config'] = {'quant_method': 'torchao'}
json.dump(told, open(folder + '/told', 'w'))"
    python3 - "$work/edited" <<'END_OF_PYTHON'
import json, os, struct, sys
path, told = sys.argv[1] + "/model.safetensors", sys.argv[1] + "/told"
blob = open(path, "rb").read()
length = struct.unpack("<Q", blob[:8])[0]
text = json.dumps({"__metadata__": json.load(open(told)), **json.loads(blob[8:8 + length])}).encode()
open(path, "wb").write(struct.pack("<Q", len(text)) + text + blob[8 + length:])
os.remove(told)
END_OF_PYTHON
    run 0 load "$work/edited" --strict -q
    run 0 load "$work/edited" --dequantize --strict --json
    has initialized '[]'
    run 0 convert "$work/edited" "$work/by_$names" --dequantize -q
    run 0 inspect "$work/by_$names" --json
    lacks "$out" '_type'
done
equal "$work/by_file/model.safetensors" "$work/by_memory/model.safetensors"
