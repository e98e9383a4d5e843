#!/usr/bin/env bash
# heft run --chat: prompts by the folder's chat template, batches of messages, and what is refused.
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"
model=$work/model
cp -r "$source_dir/tests/data/models/llama_gqa" "$model"
refused() { # refused CODE PATTERN ARGUMENTS...
    local code=$1 pattern=$2
    shift 2
    run "$code" run "$model" --new-tokens 4 -q "$@"
    shows "$err" "$pattern"
    lines "$err" 1
    silent "$out"
}
template() { # template TEXT: of the model
    printf '%s' "$1" >"$model/chat_template.jinja"
}

# ---- options ----------------------------------------------------------------------------------------------------
refused 2 '--chat: takes --prompt or --batch' --chat --ids 1
refused 2 '--system: takes --chat' --system x --prompt y
cp "$source_dir/tests/data/text/plain_bpe.json" "$model/tokenizer.json"
code=0
"$heft" run "$model" --prompt a --new-tokens 1 -q >"$out" 2>"$err" || code=$?
if [ "$code" = 7 ]; then
    skip "prompts: this build lacks a library that the tokenizer needs"
    exit 0
fi
refused 4 'no chat template' --chat --prompt a

# ---- one message, and with a system message ---------------------------------------------------------------------
template '{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}{% if add_generation_prompt %}the{% endif %}'
run 0 run "$model" --prompt 'user a cat the' --new-tokens 4 -q
plain=$(cat "$out")
run 0 run "$model" --chat --prompt 'a cat' --new-tokens 4 -q
[ "$(cat "$out")" = "$plain" ] || fail "$last: $(cat "$out"), expected $plain"
run 0 run "$model" --prompt 'system b user a cat the' --new-tokens 4 -q
plain=$(cat "$out")
run 0 run "$model" --chat --system b --prompt 'a cat' --new-tokens 4 -q
[ "$(cat "$out")" = "$plain" ] || fail "$last: $(cat "$out"), expected $plain"
run 0 run "$model" --chat --prompt '[a' --new-tokens 4 -q # of --batch only
printf '[{"role": "system", "content": "b"}, {"role": "user", "content": "a cat"}]\r\n\na "\\ \t cat\n' >"$work/batch"
run 0 run "$model" --chat --batch "$work/batch" --new-tokens 4 --json
shows "$out" '"ids": \[(\[[0-9, ]+\](, )?){3}\], "texts": '
first=$(sed -nE 's/.*"ids": \[\[([0-9, ]+)\],.*/\1/p' "$out")
run 0 run "$model" --prompt 'system b user a cat the' --new-tokens 4 --json
shows "$out" "\"ids\": \[\[$first\]\]"
run 2 run "$model" --chat --prompt a --json # 256 ids by default: more than there are positions
shows "$out" '"message": "[0-9]+ tokens asked for, the model has 64 positions"'
run 0 run "$model" --chat --prompt a --new-tokens 0 --json
shows "$out" '"logits_shape": \[1, [0-9]+, 200\]'

# ---- the tokenizer and the template of a subfolder, else those of the folder above it; of a model's name, in the hub's cache ----
run 0 run "$model" --chat --prompt a --new-tokens 4 -q
plain=$(cat "$out")
mkdir -p "$work/above/of/it"
cp -r "$model" "$work/above/of/it/model"
for folder in of/it/model of/it of .; do # of both files, where they lie now
    run 0 run "$work/above" --subfolder of/it/model --chat --prompt a --new-tokens 4 -q
    [ "$(cat "$out")" = "$plain" ] || fail "$last: with the tokenizer in $folder: $(cat "$out"), expected $plain"
    [ "$folder" = . ] || mv "$work/above/$folder/"{tokenizer.json,chat_template.jinja} "$work/above/$(dirname "$folder")"
done
cp "$model/tokenizer.json" "$work/above/of/it/model"
printf 'x' >"$work/above/tokenizer.json" # not looked at
run 0 run "$work/above" --subfolder of/it/model/ --chat --prompt a --new-tokens 4 -q
[ "$(cat "$out")" = "$plain" ] || fail "$last: $(cat "$out"), expected $plain"
run 4 run "$work/above/of" --subfolder it/model --chat --prompt a --new-tokens 4 -q # no further up
shows "$err" 'of/it/model: .*chat template'
hub=$work/hub/models--org--model
mkdir -p "$hub/refs" "$hub/snapshots"
printf '%040d' 7 >"$hub/refs/main"
cp -r "$model" "$hub/snapshots/$(printf '%040d' 7)"
HF_HUB_CACHE=$work/hub run 0 run org/model --chat --prompt a --new-tokens 4 -q
[ "$(cat "$out")" = "$plain" ] || fail "$last: $(cat "$out"), expected $plain"

# ---- the end of a turn ------------------------------------------------------------------------------------------
run 0 run "$model" --chat --prompt a --new-tokens 4 --json
id=$(sed -nE 's/.*"ids": \[\[([0-9]+),.*/\1/p' "$out")
token=$(python3 -c 'import json, sys
vocab = json.load(open(sys.argv[1]))["model"]["vocab"]
print(json.dumps(next(k for k, v in vocab.items() if v == int(sys.argv[2]))))' "$model/tokenizer.json" "$id")
printf '{"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": %s}' "$token" >"$model/tokenizer_config.json"
run 0 run "$model" --chat --prompt a --new-tokens 4 --json
shows "$out" "\"ids\": \[\[$id\]\]"
run 0 run "$model" --chat --prompt a --new-tokens 4 --json --ignore-eos
shows "$out" "\"ids\": \[\[$id, "

# ---- what is refused --------------------------------------------------------------------------------------------
refused 2 'prompt 1: .*--system|--system: prompt 1 is a list' --chat --system b --batch "$work/batch"
bad() { # bad PATTERN LINE: as the second prompt
    printf 'a\n%b\n' "$2" >"$work/batch"
    refused 2 "$1" --chat --batch "$work/batch"
}
bad 'prompt 2: the text is not UTF-8' 'x\xff'
bad 'prompt 2: byte [0-9]+: ' '[{"role": '
bad 'prompt 2: the messages are not a list' '[]'
bad 'prompt 2: message 1 is an integer, not an object' '[1]'
bad 'prompt 2: byte [0-9]+: ' '[{"role": "\xff"}]'
printf 'a\nx\xff\n' >"$work/batch"
refused 2 'prompt 2: byte 1: the text is not UTF-8' --batch "$work/batch"
template '{{ messages[0].x.y }}'
refused 5 "chat_template.jinja: line 1: 'x' is undefined" --chat --prompt a
template 'a
{{ messages|frob }}'
refused 7 "line 2: the filter 'frob' is not known" --chat --prompt a
template '{% include "x" %}'
refused 7 "line 1: .*'include'" --chat --prompt a
template '{{ raise_exception("no " + messages[0].role) }}'
refused 2 'the template refuses the messages: no user' --chat --prompt a
template '{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}'
refused 9 'more than 600' --chat --prompt a
template '{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}'
refused 9 'steps|chat_bytes' --chat --prompt a
template "{{ 'a' * 100000000 }}"
refused 9 'chat_bytes|steps' --chat --prompt a --limit chat_bytes=1MB
python3 -c 'print("{% if messages %}{{ messages[0].content }}{% endif %}" * 20000)' >"$model/chat_template.jinja"
refused 2 '20002 tokens asked for, the model has 64 positions|tokens asked for' --chat --prompt a
template '{{ messages[1].content }}'
refused 5 "is undefined" --chat --prompt a
template ''
refused 2 'prompt 1 has no tokens' --chat --prompt a
rm "$model/chat_template.jinja"
mkfifo "$model/chat_template.jinja"
refused 7 'regular file' --chat --prompt a

# ---- inputs of other kinds: shapes ------------------------------------------------------------------------------
tensors() { # tensors NAME SHAPE...: a file of zeros of int64
    python3 - "$work/in.safetensors" "$@" <<'END'
import json, math, struct, sys
header, at = {}, 0
for name, shape in zip(sys.argv[2::2], sys.argv[3::2]):
    shape = json.loads(shape)
    size = 8 * math.prod(shape)
    header[name] = {"dtype": "I64", "shape": shape, "data_offsets": [at, at + size]}
    at += size
text = json.dumps(header).encode()
open(sys.argv[1], "wb").write(struct.pack("<Q", len(text)) + text + bytes(at))
END
}
tensors input_ids '[2, 3]' attention_mask '[2, 4]'
refused 2 'attention_mask: shape \[2, 4\] in the file, expected \[2, 3\]' --ids-file "$work/in.safetensors"
tensors input_ids '[2, 3, 1]'
refused 2 'input_ids: shape \[2, 3, 1\] in the file, expected \[rows, tokens\]' --ids-file "$work/in.safetensors"
tensors pixel_values '[2, 3]'
refused 2 'pixel_values: shape \[2, 3\] in the file, expected \[rows, channels, height, width\]' --ids-file "$work/in.safetensors"
