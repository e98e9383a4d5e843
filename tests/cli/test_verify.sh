#!/usr/bin/env bash
# test_verify - a checkpoint is valid, or not: exit 0 or 1.
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"

"$heft" init -q "$config" "$work/st" --max-shard-size 40KB
"$heft" init -q "$config" "$work/bin" --max-shard-size 40KB --format bin
for folder in st bin; do
    before=$(snapshot "$work/$folder")
    for deep in '' --deep; do
        run 0 verify "$work/$folder" ${deep:+"$deep"}
        silent "$err"
        lines "$out" 1
        shows "$out" '^ok: 3 files, 39 tensors, 93568 bytes$'
        run 0 verify "$work/$folder" ${deep:+"$deep"} --json
        is_json
        has ok true
        has problems '[]'
    done
    run 0 verify -q "$work/$folder"
    silent "$out"
    same "$before" "$work/$folder"
done

broken() { # broken KIND FOLDER [OPTIONS]: exit 1, a line that begins like this, the count at the end
    local kind=$1
    shift
    run 1 verify "$@"
    silent "$err"
    shows "$out" "^$kind: "
    shows "$out" '^not valid: [1-9][0-9]* problems?$'
    run 1 verify "$@" --json
    silent "$err"
    is_json
    has ok false
    shows "$out" "[{]\"kind\": \"$kind\", \"file\": \"[^\"]*\", \"tensor\": \".*\", \"offset\": (null|[0-9]+), \"message\": \"[^\"].*\", \"fatal\": true[}]"
}
for folder in st bin; do
    shard=$(cd "$work/$folder" && echo *-00002-of-*)
    cp -r "$work/$folder" "$work/missing"
    rm "$work/missing/$shard"
    broken missing_file "$work/missing"
    shows "$out" "$shard"
    cp -r "$work/$folder" "$work/short"
    truncate -s -1 "$work/short/$shard"
    broken malformed_file "$work/short"
    shows "$out" "$shard"
    cp -r "$work/$folder" "$work/index"
    sed -i 's/"pooler.dense.bias"/"pooler.dense.bios"/' "$work/index/"*.index.json
    broken index_wrong "$work/index"
    shows "$out" 'pooler\.dense\.bios'
    rm -rf "$work/missing" "$work/short" "$work/index"
done
# tied names are one storage in a .bin: its bytes are read once, under the first name
run 0 init "$config" "$work/tied" --class BertForMaskedLM --format bin
run 0 inspect "$work/tied" --json
cp "$out" "$work/listed"
run 0 verify "$work/tied" --deep --json
python3 - "$work/listed" "$out" <<'END'
import json, sys
listed, told = (json.load(open(name)) for name in sys.argv[1:])
shapes = {t["name"]: t["bytes"] for t in listed["tensors"]}
tied = shapes["cls.predictions.decoder.weight"] + shapes["cls.predictions.decoder.bias"]
assert tied > 0 and told["bytes_read"] == sum(shapes.values()) - tied, (told["bytes_read"], sum(shapes.values()), tied)
END

# a byte of data that has changed: known by its checksum, read with --deep only
cp -r "$work/bin" "$work/flipped"
shard=$work/flipped/pytorch_model-00002-of-00003.bin
size=$(stat -c %s "$shard")
printf '\125\252\125\252' | dd of="$shard" bs=1 seek=$((size / 2)) conv=notrunc status=none
run 0 verify "$work/flipped"
broken crc "$work/flipped" --deep

# what is no fault of the checkpoint is a note
cp -r "$work/st" "$work/stale"
cp "$work/st/model-00001-of-00003.safetensors" "$work/stale/model-00001-of-00009.safetensors"
run 0 verify "$work/stale"
shows "$out" '^note: stale_file: model-00001-of-00009.safetensors: '
shows "$out" '^ok: '
run 0 verify "$work/stale" --json
has fatal false
# a single file that would win over the index is more than that
cp "$work/st/model-00001-of-00003.safetensors" "$work/stale/model.safetensors"
broken shadowed_index "$work/stale"

# manifests: their checksums are SHA-256, which a build may lack
if [ "$manifests" = ON ]; then
    run 0 verify "$work/st" --write-manifest="$work/manifest.json"
    run 0 verify "$work/st" --write-manifest -q
    [ -f "$work/st/heft-manifest.json" ] || fail "no manifest in the folder"
    run 0 verify "$work/st" --manifest "$work/st/heft-manifest.json"
    run 0 verify "$work/st/model.safetensors.index.json" --write-manifest="$work/manifest.json" -q
    cmp -s "$work/st/heft-manifest.json" "$work/manifest.json" || fail "two manifests of one checkpoint differ"
    cp -r "$work/st" "$work/changed"
    shard=$work/changed/model-00003-of-00003.safetensors
    printf '\125' | dd of="$shard" bs=1 seek=$(($(stat -c %s "$shard") - 2)) conv=notrunc status=none
    run 0 verify "$work/changed"
    run 1 verify "$work/changed" --manifest "$work/manifest.json"
    shows "$out" 'model-00003-of-00003\.safetensors'
    shows "$out" '^not valid: '
    (cd "$work/st" && rm heft-manifest.json && "$heft" verify -q --write-manifest model-00001-of-00003.safetensors) ||
        fail "a manifest of one file"
    [ -f "$work/st/heft-manifest.json" ] || fail "no manifest beside the file"
else
    fails 7 "built with OpenSSL" verify "$work/st" --write-manifest="$work/manifest.json"
    skip "manifests: built without OpenSSL"
fi

# a file that cannot be opened: an answer, and a line on stderr
cp -r "$work/st" "$work/unreadable"
ln -sf model-00002-of-00003.safetensors "$work/unreadable/model-00002-of-00003.safetensors"
run 1 verify -q "$work/unreadable"
shows "$out" '^unreadable: model-00002-of-00003[.]safetensors: '
lines "$err" 1
shows "$err" '^heft verify: model-00002-of-00003[.]safetensors: could not be read: '
run 1 verify "$work/unreadable" --json
silent "$err"
is_json

mkdir "$work/void"
fails 4 "$work/none" verify "$work/none"
fails 4 "$work/void" verify "$work/void"

# ---- a download that reserved its room and did not end ------------------------------------------------------------
mkdir "$work/reserved"
python3 - "$work/reserved" <<'EOF'
import json, os, struct, sys
header = {name: {"dtype": "F32", "shape": [1 << 18], "data_offsets": [i << 20, (i + 1) << 20]} for i, name in enumerate("abc")}
text = json.dumps(header).encode()
text += b" " * (-len(text) % 8)
for end, name in ((3 << 20, "whole"), ((3 << 19) + 4, "half"), ((3 << 20) - 8, "nearly")):
    with open(os.path.join(sys.argv[1], name + ".safetensors"), "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + b"\x3f" * end + bytes((3 << 20) - end))
EOF
run 0 verify "$work/reserved/half.safetensors" --deep
shows "$out" '^note: zeros: half\.safetensors: b: the tensors of the file end with 1572860 bytes of zeros'
run 0 verify "$work/reserved/half.safetensors"
lacks "$out" zeros
for name in whole nearly; do
    run 0 verify "$work/reserved/$name.safetensors" --deep
    lacks "$out" zeros
done
rm -r "$work/reserved"

# ---- a manifest that lies in the folder is used by --deep -------------------------------------------------------
run 0 init -q "$source_dir/tests/data/tiny-bert/config.json" "$work/vouched"
run 0 verify "$work/vouched" --write-manifest
run 0 verify "$work/vouched" --deep
printf 'x' | dd of="$work/vouched/model.safetensors" bs=1 seek=60000 conv=notrunc 2>/dev/null
run 0 verify "$work/vouched" # metadata only
run 1 verify "$work/vouched" --deep
shows "$out" '^manifest: model.safetensors: has sha256 '

# ---- layers that the config has and the files lack ---------------------------------------------------------------
run 0 init -q "$source_dir/tests/data/tiny-bert/config.json" "$work/layers"
run 0 verify "$work/layers"
sed -i 's/"num_hidden_layers": [0-9]*/"num_hidden_layers": 9/' "$work/layers/config.json"
run 1 verify "$work/layers"
shows "$out" '^missing_weights: config\.json: [0-9]+ of [0-9]+ weights of the body of BertModel are missing: '
run 0 verify "$work/layers/model.safetensors" # a file alone need not be a whole model
sed -i 's/"num_hidden_layers": [0-9]*/"num_hidden_layers": 1/' "$work/layers/config.json"
run 1 verify "$work/layers"
sed -i 's/"num_hidden_layers": 1/"num_nextn_predict_layers": 1, &/' "$work/layers/config.json"
run 0 verify "$work/layers" # it predicts a further token
sed -i 's/"num_nextn_predict_layers": 1, //' "$work/layers/config.json"
run 1 verify "$work/layers"
shows "$out" "^layers: config\\.json: encoder\\.layer\\.1\\..*: layers up to number [0-9]+ of 'encoder\\.layer' in the files, 1 layers in the config's model"
run 0 init -q "$source_dir/tests/data/tiny-bert/config.json" "$work/widths"
sed -i 's/"intermediate_size": [0-9]*/"intermediate_size": 12/' "$work/widths/config.json"
run 1 verify "$work/widths"
shows "$out" "^shape: config\\.json: encoder\\.layer\\.0\\.intermediate\\.dense\\.weight: shape \\[[0-9]+, [0-9]+\\] in file, \\[12, [0-9]+\\] in the config's model"

# what a killed write leaves, in the folder and beside it; a lock is none
"$heft" init -q "$config" "$work/killed"
mkdir "$work/.killed.heft-tmp-AbCd12" "$work/killed/.heft-tmp-EfGh34" "$work/.other.heft-tmp-AbCd12"
touch "$work/.killed.heft-tmp-lock"
for path in "$work/killed" "$work/killed/."; do
    run 0 verify "$path"
    shows "$out" '^note: leftover: .killed.heft-tmp-AbCd12: beside this folder: a write to it that .* was killed'
    shows "$out" '^note: stale_file: .heft-tmp-EfGh34: left by an interrupted save$'
    lacks "$out" 'lock|other'
done
