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
