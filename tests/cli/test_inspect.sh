#!/usr/bin/env bash
# test_inspect - what is in a checkpoint, or what a config.json would make.
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"
esc=$(printf '\033')

"$heft" init -q "$config" "$work/a" --max-shard-size 40KB
for path in "$work/a" "$work/a/model.safetensors.index.json"; do
    run 0 inspect "$path" --json
    silent "$err"
    is_json
    has format '"safetensors"'
    has index '"model.safetensors.index.json"'
    has tied '[]'
    has metadata '{"format": "pt"}'
    has total_size 93568
    has total_parameters 23392
    has skipped '[]'
    has warnings '[]'
    shows "$out" '[{]"name": "pooler.dense.bias", "dtype": "float32", "shape": \[32\], "file": "model-0000[1-3]-of-00003.safetensors", "offset": [0-9]+, "bytes": 128[}]'
done
[ "$(grep -o '"dtype": ' "$out" | wc -l)" = 39 ] || fail "$last: not 39 tensors"
run 0 inspect "$work/a"
silent "$err"
shows "$out" '^format +safetensors$'
shows "$out" '^parameters +23,392$'
shows "$out" '^model-00002-of-00003.safetensors +[0-9]+ +[0-9,]+$'
shows "$out" '^encoder\.layer\.1\.output\.dense\.weight +float32 +\[32, 64\] +8,192 +model-0000[1-3]-of-00003.safetensors +[0-9]+$'
run 0 inspect "$work/a/model-00001-of-00003.safetensors" --json
has index null

# the empty model: a lone config.json, and a folder without weights
mkdir "$work/empty"
cp "$config" "$work/empty"
for path in "$config" "$work/empty" "$work/empty/config.json"; do
    run 0 inspect "$path" --json
    silent "$err"
    is_json
    has format '"safetensors"'
    has class '"BertModel"'
    has files '[]'
    has total_size 93568
    has total_parameters 23392
    shows "$out" '[{]"name": "pooler.dense.bias", "dtype": "float32", "shape": \[32\], "file": null, "offset": null, "bytes": 128[}]'
    lacks "$out" position_ids
done
run 0 inspect "$work/empty"
shows "$out" '^weights +none: this is the empty model that the config describes$'
run 0 inspect "$work/a"
lacks "$out" '^weights '
run 0 inspect "$work" --subfolder empty --json
has class '"BertModel"'
run 0 inspect "$config" --class BertForMaskedLM --json
has total_parameters 23576
shows "$out" '"tied": \[\["'
# as it would be saved: the same names, types and shapes as in a checkpoint that was
tensors() {
    grep -oE '"name": "[^"]*", "dtype": "[^"]*", "shape": \[[^]]*\]' "$out" | sort
}
for class in BertModel BertForMaskedLM BertForPreTraining; do
    run 0 inspect "$config" --class "$class" --json
    tensors >"$work/empty.txt"
    "$heft" init -q "$config" "$work/$class" --class "$class"
    run 0 inspect "$work/$class" --json
    tensors >"$work/saved.txt"
    diff "$work/empty.txt" "$work/saved.txt" >&2 || fail "$class: the empty model and the saved one differ"
done

# the tree: sums per module, equal blocks as one
run 0 inspect "$work/a" --tree
shows "$out" '^all +39 +23,392 +93\.6 KB$'
shows "$out" '^  encoder +32 +17,088 '
shows "$out" '^    layer +32 +17,088 '
shows "$out" '^      \{0\.\.1\} \(each\) +16 +8,544 '
shows "$out" '^        attention +10 +4,288 '
shows "$out" '^  pooler +2 +1,056 '
run 0 inspect "$work/a" --tree --json
is_json
shows "$out" '"tree": \[[{]"name": "embeddings", "count": 1, "tensors": 5, "parameters": 5248, '
shows "$out" '"name": "\{0\.\.1\}", "count": 2, "tensors": 16, '
run 0 inspect "$config" --tree
shows "$out" '^BertModel +39 '

# names from a file never reach the terminal as they are
header='{"a\u001b[31m\n\"\\e\u00e9\u0085":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}'
write_safetensors "$work/odd.safetensors" "$header" 16
run 0 inspect "$work/odd.safetensors"
lacks "$out" "$esc"
shows "$out" '^a\\x1b\[31m\\x0a"\\eé\\xc2\\x85 +float32 +\[2\] +8 +odd\.safetensors'
run 0 inspect "$work/odd.safetensors" --json
is_json
has name '"a\u001b[31m\n\"\\eé\u0085"'

# what nothing can be found in
mkdir "$work/void"
fails 4 "$work/void" inspect "$work/void"
fails 4 "$work/none" inspect "$work/none"
fails 4 'fp16' inspect "$work/a" --variant fp16
fails 4 'none.json' inspect "$work/none.json"
rm "$work/a/model-00002-of-00003.safetensors"
fails 4 'model-00002-of-00003.safetensors' inspect "$work/a"

# ---- the page instead of the list -----------------------------------------------------------------------------
run 0 inspect "$source_dir/tests/data/loading/single_bin" --html "$work/page.html"
shows "$out" '^tensors '
if grep -q '^tensor  ' "$out"; then fail "the list is printed beside the page"; fi
run 0 inspect "$source_dir/tests/data/loading/single_bin" --html "$work/page.html" -q
silent "$out"
run 0 inspect "$source_dir/tests/data/loading/single_bin" --html -
cmp -s "$out" "$work/page.html" || fail "--html - is not the page"
[ ! -e ./- ] || fail "--html - made a file"
run 2 inspect "$source_dir/tests/data/loading/single_bin" --html - --json
run 2 inspect "$source_dir/tests/data/loading/single_bin" --html - --tree

# ---- a format that is asked for is the only one ---------------------------------------------------------------
run 4 inspect "$source_dir/tests/data/loading/single_bin" --format safetensors
shows "$err" "no model.safetensors, and safetensors was asked for; weight files: 'pytorch_model.bin'"
run 0 inspect "$source_dir/tests/data/loading/bin_and_safetensors" --format bin --json
shows "$out" '"format": "bin"'
run 4 load "$source_dir/tests/data/loading/single_bin" --format safetensors

# bytes by dtype; integers that belong to no weight are buffers where there is a config
"$heft" init -q "$config" "$work/sized" --max-shard-size 40KB
run 0 inspect "$work/sized" --json
shows "$out" '"dtypes": [{]"float32": [{]"tensors": 39, "bytes": 93568[}][}]'
mkdir "$work/buffers"
python3 - "$work/buffers/model.safetensors" <<'END'
import json, struct, sys
header = {"embeddings.position_ids": {"dtype": "I64", "shape": [1, 8], "data_offsets": [0, 64]},
          "pooler.dense.bias": {"dtype": "F32", "shape": [32], "data_offsets": [64, 192]},
          "pooler.dense.weight": {"dtype": "F16", "shape": [32, 32], "data_offsets": [192, 2240]}}
text = json.dumps(header).encode()
open(sys.argv[1], "wb").write(struct.pack("<Q", len(text)) + text + bytes(2240))
END
run 0 inspect "$work/buffers" --json
has total_parameters 1064
cp "$config" "$work/buffers"
run 0 inspect "$work/buffers" --json
has total_parameters 1056
shows "$out" '"dtypes": [{]"int64": [{]"tensors": 1, "bytes": 64[}], "float32": [{]"tensors": 1, "bytes": 128[}], "float16": [{]"tensors": 1, "bytes": 2048[}][}]'
run 0 inspect "$work/buffers"
shows "$out" '^dtype       float16: 1 tensor, 2.0 KB$'

# a narrow terminal: columns are left out, names cut; nothing is where the output is a pipe
cat >"$work/terminal.py" <<'END'
import fcntl, os, pty, struct, subprocess, sys, termios
here, there = pty.openpty()
fcntl.ioctl(there, termios.TIOCSWINSZ, struct.pack("HHHH", 24, int(sys.argv[1]), 0, 0))
child = subprocess.Popen(sys.argv[2:], stdout=there, stdin=subprocess.DEVNULL)
os.close(there)
text = b""
while True:
    try:
        more = os.read(here, 65536)
    except OSError:
        break
    if not more:
        break
    text += more
sys.stdout.write(text.decode().replace("\r", ""))
sys.exit(child.wait())
END
for width in 200 80 50; do
    last="heft inspect on $width columns"
    python3 "$work/terminal.py" $width "$heft" inspect "$work/sized" >"$out"
    longest=$(python3 -c 'import sys; print(max(len(line.rstrip("\n")) for line in open(sys.argv[1], encoding="utf-8")))' "$out")
    [ "$longest" -le $width ] || fail "$last: a line of $longest columns"
    case $width in
    200) shows "$out" '^encoder.layer.1.attention.output.LayerNorm.weight +float32 +\[32\] +128 +model-' ;;
    80) shows "$out" '^encoder[^ ]+LayerNorm.weight +float32 +\[32\] +128$' ;;
    50) shows "$out" '^encoder[^ ]*…[^ ]*Norm.weight +float32 +\[32\] +128$' ;;
    esac
done

# which tensors are listed, in which order: sums are those of all
"$heft" init -q "$config" "$work/listed"
run 0 inspect "$work/listed" --filter '*LayerNorm.weight' --sort name
shows "$out" '^listed +5 of 39 tensors$'
shows "$out" '^parameters +23,392$'
[ "$(grep -c '^[a-z].*LayerNorm\.weight ' "$out")" = 5 ] || fail "$last: not 5 tensors"
lacks "$out" '^pooler'
run 0 inspect "$work/listed" --sort bytes --json
python3 - "$out" <<'END'
import json, sys
sizes = [t["bytes"] for t in json.load(open(sys.argv[1]))["tensors"]]
assert len(sizes) == 39 and sizes == sorted(sizes, reverse=True), sizes
END
run 0 inspect "$work/listed" --filter nothing
shows "$out" '^listed +0 of 39 tensors$'
fails 2 "'foo' is not a key: expected name or bytes" inspect "$work/listed" --sort foo
