#!/usr/bin/env bash
# heft run --chat on a terminal: a conversation whose tokens stay in the cache, interrupts, and what is refused.
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"
model=$work/model long=$work/long
mkdir "$model"
cp "$source_dir/tests/data/models/llama_gqa/"* "$model"
cp "$source_dir/tests/data/text/plain_bpe.json" "$model/tokenizer.json"
printf '%s' '{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}{% if add_generation_prompt %}the{% endif %}' >"$model/chat_template.jinja"
code=0
"$heft" run "$model" --prompt a --new-tokens 1 -q >"$out" 2>"$err" || code=$?
if [ "$code" = 7 ]; then
    skip "a conversation: this build lacks a library that the tokenizer needs"
    exit 0
fi
python3 - "$model/config.json" "$work/long.json" <<'END'
import json, sys
config = json.load(open(sys.argv[1]))
json.dump(config | {"max_position_embeddings": 200000, "initializer_range": 0.5}, open(sys.argv[2], "w"))
END
run 0 init "$work/long.json" "$long" -q
cp "$model/tokenizer.json" "$model/chat_template.jinja" "$long"

# ---- not on a terminal ------------------------------------------------------------------------------------------
run 2 run "$model" --chat
shows "$err" '--chat: takes --prompt or --batch, or a terminal'
printf 'a\n' | "$heft" run "$model" --chat -q >"$out" 2>"$err" && fail "a pipe is taken for a terminal"
shows "$err" '--chat: takes --prompt or --batch, or a terminal'

python3 "$source_dir/tests/cli/talk.py" "$heft" "$model" "$long" || fail "a conversation on a terminal"
