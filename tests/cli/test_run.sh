#!/usr/bin/env bash
# heft run: inputs, results, budgets, text, and what is refused. heft embed: pooling and what is refused.
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"
models=$source_dir/tests/data/models
llama=$models/llama_gqa

# ---- ids, however they are given, from memory or from the disk ------------------------------------------------
run 0 run "$llama" --ids 5,17,3 --new-tokens 4
ids=$(cat "$out")
[[ $ids =~ ^[0-9]+,[0-9]+,[0-9]+,[0-9]+$ ]] || fail "$last: $ids"
shows "$err" '^first pass'
shows "$err" '^generation'
for how in "--memory 64MB" "--threads 1" "--threads 3" "--top-k 1 --temperature 2" "--compute f32" "--temperature 0"; do
    # shellcheck disable=SC2086 # several options
    run 0 run "$llama" --ids "[5, 17, 3]" --new-tokens 4 -q $how
    [ "$(cat "$out")" = "$ids" ] || fail "$last: $(cat "$out"), expected $ids"
    silent "$err"
done
printf '5 17 3\n\n7, 8\n' | "$heft" run "$llama" --ids - --new-tokens 4 -q >"$out"
lines "$out" 2
[ "$(head -n 1 "$out")" = "$ids" ] || fail "ids from stdin: $(cat "$out")"
run 0 run "$llama" --ids 5,17,3 --new-tokens 2 --top-p 0.5
shows "$err" 'warning: --top-k, --top-p and --min-p change nothing without --temperature'
run 0 run "$llama" --ids 5,17,3 --new-tokens 3 --temperature 1 --seed 7 -q
drawn=$(cat "$out")
run 0 run "$llama" --ids 5,17,3 --new-tokens 3 --temperature 1 --seed 7 -q
[ "$(cat "$out")" = "$drawn" ] || fail "$last: a seed gives other ids"

# ---- compact weights: for 32 new tokens or more, with the same ids ---------------------------------------------
bf16=$models/llama_bf16
run 0 run "$bf16" --ids 5,17,3 --new-tokens 31 --ignore-eos --json
shows "$out" '"compact_bytes": 0,'
ids=$(sed 's/.*"ids": \[\[\([^]]*\).*/\1/' "$out")
run 0 run "$bf16" --ids 5,17,3 --new-tokens 40 --ignore-eos --json
shows "$out" "\"ids\": \[\[$ids, "
shows "$out" '("compact_bytes": [1-9][0-9]*,|"isa": "plain")'
run 0 run "$bf16" --ids 5,17,3 --new-tokens 40 --ignore-eos --json --memory 64MB
shows "$out" "\"ids\": \[\[$ids, "

# ---- one pass, saved ---------------------------------------------------------------------------------------------
run 0 run "$llama" --ids 5,17,3 --save "$work/all.safetensors" --json
shows "$out" '"class": "LlamaForCausalLM", "logits_shape": \[1, 3, 200\], "prefill_seconds": '
shows "$out" '"seconds_per_token": null, "bytes_read": 0, "resident_bytes": [0-9]+, "compact_bytes": 0, "compact_seconds": [0-9.]+, "peak_bytes": [0-9]+, "isa": "[a-z0-9_]+", "memory": [{]'
shows "$out" '"predicted_prefill_seconds": [0-9.e-]+, "predicted_seconds_per_token": null[}]$'
run 0 inspect "$work/all.safetensors" --json
shows "$out" '"name": "logits", "dtype": "float32", "shape": \[1, 3, 200\]'
shows "$out" '"name": "last_hidden_state", "dtype": "float32", "shape": \[1, 3, 64\]'
run 0 run "$llama" --ids 5,17,3 --save "$work/some.safetensors" --outputs hidden_states.1 -q
run 0 inspect "$work/some.safetensors" --json
shows "$out" '"name": "hidden_states.1"'
lacks "$out" '"name": "logits"'

# ---- how long it was expected to take; what it is in a model that waits for the disk depends on the machine ----
run 0 run "$llama" --ids 5,17,3 --new-tokens 4 --json
shows "$out" '"predicted_prefill_seconds": [0-9.e-]+, "predicted_seconds_per_token": [0-9.e-]+[}]$'
run 0 run "$models/t5_gated" --ids 5,17,3 --new-tokens 3 --ignore-eos --json
shows "$out" '"predicted_prefill_seconds": [0-9.e-]+, "predicted_seconds_per_token": [0-9.e-]+[}]$'

# ---- text ---------------------------------------------------------------------------------------------------------
cp -r "$llama" "$work/text"
run 4 run "$work/text" --prompt x --new-tokens 1
shows "$err" "tokenizer.json"
cp "$source_dir/tests/data/text/plain_bpe.json" "$work/text/tokenizer.json"
code=0
"$heft" run "$work/text" --prompt 'the cat' --new-tokens 4 -q >"$out" 2>"$err" || code=$?
if [ "$code" = 7 ]; then
    skip "prompts: this build lacks a library that the tokenizer needs"
else
    [ "$code" = 0 ] || fail "a prompt: exit $code: $(cat "$err")"
    lines "$out" 1
    printf 'the cat\nthe dog\n' >"$work/prompts"
    run 0 run "$work/text" --batch "$work/prompts" --new-tokens 4 --json
    shows "$out" '"ids": \[\[[0-9, ]+\], \[[0-9, ]+\]\], "texts": \["'
    printf '{"eos_token": "<|im_end|>"}' >"$work/text/tokenizer_config.json"
    run 0 run "$work/text" --prompt 'the cat' --new-tokens 1
    shows "$err" 'heft run: warning: tokenizer_config.json: not followed: token <[|]im_end[|]>$'
fi

# ---- what is refused ----------------------------------------------------------------------------------------------
refused() { # refused CODE PATTERN ARGUMENTS...
    local code=$1 pattern=$2
    shift 2
    run "$code" run "$@"
    shows "$err" "$pattern"
    lines "$err" 1
    silent "$out"
}
refused 2 'give one of --prompt, --batch, --ids and --ids-file' "$llama"
refused 2 "'1,x' is not a list of ids|'x' is not a list of ids" "$llama" --ids 1,x
refused 2 'id or position 200 is not in .* 200 rows' "$llama" --ids 1,200
refused 2 '[0-9]+ tokens asked for, the model has [0-9]+ positions' "$llama" --ids 1,2 --new-tokens 100000
refused 2 'not a number from 0' "$llama" --ids 1 --temperature hot
refused 2 '^heft run: --save: is for one forward pass, without --new-tokens' "$llama" --ids 1 --new-tokens 2 --save "$work/none.safetensors"
[ ! -e "$work/none.safetensors" ] || fail "a refused --save left a file"
refused 2 '^heft run: --outputs: is for one forward pass' "$llama" --ids 1 --new-tokens 2 --outputs logits
mkfifo "$work/pipe.safetensors"
refused 11 "pipe.safetensors: destination is a device or pipe, expected a file" "$llama" --ids 1 --save "$work/pipe.safetensors"
[ -p "$work/pipe.safetensors" ] || fail "--save replaced a pipe"
refused 4 "class LlamaForCausalLM has no output 'pooled'; it has .*logits" "$llama" --ids 1 --outputs pooled
refused 4 "^heft run: --batch: cannot open '.*/none': No such file or directory" "$work/text" --batch "$work/none" --new-tokens 1
refused 2 'is not more than the' "$llama" --ids 1 --memory 1MB
refused 4 "no output 'pooler_output'" "$llama" --ids 1 --outputs pooler_output
refused 2 'BertForMaskedLM is not a language model|is not a language model' "$models/bert_mlm" --class BertForSequenceClassification \
    --allow-missing --ids 1,2 --new-tokens 2 -q
mkdir "$work/headless"
cp "$llama/config.json" "$work/headless"
python3 - "$llama/model.safetensors" "$work/headless/model.safetensors" <<'END'
import json, struct, sys
data = open(sys.argv[1], "rb").read()
length = struct.unpack("<Q", data[:8])[0]
header = json.loads(data[8 : 8 + length])
header.pop("lm_head.weight", None)
body, out, at = data[8 + length :], b"", 0
for name in [n for n in header if n != "__metadata__"]:
    first, last = header[name]["data_offsets"]
    header[name]["data_offsets"] = [at, at + last - first]
    out += body[first:last]
    at += last - first
text = json.dumps(header).encode()
text += b" " * (-len(text) % 8)
open(sys.argv[2], "wb").write(struct.pack("<Q", len(text)) + text + out)
END
refused 6 'the checkpoint lacks 1 tensor .*--allow-missing' "$work/headless" --ids 1
run 0 run "$work/headless" --ids 1 --allow-missing -q
quantized=$(find "$source_dir/tests/data/quant" -maxdepth 1 -name 'gptq*' | LC_ALL=C sort | head -n 1)
for command in run embed; do
    run 7 "$command" "$quantized" --ids 1 --save "$work/none.safetensors"
    shows "$err" '[0-9]+ weights are stored quantized \(gptq, [0-9] bits\) .*--dequantize makes them while loading'
done
run 0 embed "$quantized" --ids 1 --dequantize --save "$work/plain.safetensors" -q
run 0 run "$quantized" --ids 1 --dequantize -q

# ---- generation_config.json ---------------------------------------------------------------------------------------
cp -r "$llama" "$work/settings"
printf '{"eos_token_id": 2, "num_beams": 4, "min_length": 0, "no_repeat_ngram_size": 3}' >"$work/settings/generation_config.json"
run 0 run "$work/settings" --ids 5,17,3 --new-tokens 2
shows "$err" 'heft run: warning: generation_config.json: not followed: num_beams, no_repeat_ngram_size$'
run 0 run "$work/settings" --ids 5,17,3
[ "$(grep -c 'not followed' "$err")" = 0 ] || fail "a pass warns of generation"
run 0 run "$work/settings" --ids 5,17,3 --new-tokens 2 --json
shows "$out" '"not_followed": "num_beams, no_repeat_ngram_size"'

# ---- embeddings ---------------------------------------------------------------------------------------------------
bert=$work/bert
cp -r "$models/bert_mlm" "$bert"
printf '5 6 7\n8 9\n' | "$heft" embed "$bert" --ids - --save "$work/e.safetensors" --json >"$out"
shows "$out" '"class": "BertModel", "texts": 2, "width": 32, "pooling": "mean", "normalized": false, "cut": 0'
run 0 inspect "$work/e.safetensors" --json
shows "$out" '"name": "embeddings", "dtype": "float32", "shape": \[2, 32\]'
mkdir "$bert/1_Pooling"
printf '[{"path": "", "type": "sentence_transformers.models.Transformer"}, {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
{"path": "2_Normalize", "type": "sentence_transformers.models.Normalize"}]' >"$bert/modules.json"
printf '{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}' >"$bert/1_Pooling/config.json"
run 0 embed "$bert" --ids 5,6,7 --save "$work/e.safetensors" --json
shows "$out" '"pooling": "cls", "normalized": true'
run 0 embed "$bert" --ids 5,6,7 --save "$work/e.safetensors" --json --pooling last
shows "$out" '"pooling": "last", "normalized": true'
printf '{"truncate_dim": 12}' >"$bert/config_sentence_transformers.json"
run 0 embed "$bert" --ids '5,6,7' --save "$work/e.safetensors" --json
shows "$out" '"width": 12, "pooling": "cls"'
printf '{"prompts": {"a": "find: "}, "default_prompt_name": "b"}' >"$bert/config_sentence_transformers.json"
run 5 embed "$bert" --ids 5 --save "$work/e.safetensors"
shows "$err" "the default prompt 'b' is not in prompts"
printf '{"prompts": {"a": "%1024s"}, "default_prompt_name": "a"}' '' >"$bert/config_sentence_transformers.json"
run 7 embed "$bert" --ids 5 --save "$work/e.safetensors"
shows "$err" 'has 1024 bytes'
rm "$bert/config_sentence_transformers.json"
printf '{"pooling_mode_max_tokens": true}' >"$bert/1_Pooling/config.json"
run 7 embed "$bert" --ids 5,6,7 --save "$work/e.safetensors"
shows "$err" 'pooling mode'
printf '[{"path": "2_Dense", "type": "sentence_transformers.models.Dense"}]' >"$bert/modules.json"
run 7 embed "$bert" --ids 5,6,7 --save "$work/e.safetensors"
shows "$err" 'does not compute the module sentence_transformers.models.Dense'
printf '[{"path": "", "type": "sentence_transformers.models.Transformer"}]' >"$bert/modules.json"
run 7 embed "$bert" --ids 5,6,7 --save "$work/e.safetensors"
shows "$err" 'has no Pooling module'
printf '[{"path": "", "type": "custom.Transformer"}]' >"$bert/modules.json"
run 7 embed "$bert" --ids 5,6,7 --save "$work/e.safetensors"
shows "$err" 'does not compute the module custom.Transformer'
run 2 embed "$bert" --ids 5,6,7
shows "$err" '--save: is required|is required'

# texts that are compared with images need images
printf '%s' '{"architectures": ["CLIPModel"], "model_type": "clip", "projection_dim": 8, "text_config": {"hidden_size": 8, "intermediate_size": 8,
 "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 16, "eos_token_id": 2, "max_position_embeddings": 8}, "vision_config": {"hidden_size": 8,
 "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 4, "patch_size": 2}}' >"$work/clip.json"
"$heft" init -q "$work/clip.json" "$work/clip"
run 2 run "$work/clip" --ids 1,2
shows "$err" 'CLIPModel needs pixel_values beside the ids'
