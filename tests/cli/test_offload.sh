#!/usr/bin/env bash
# test_offload - Accelerate's offload folder: read, written, distinguished from others, and never trusted.
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"

"$heft" init -q "$config" "$work/start" --max-shard-size 40KB
start=$(snapshot "$work/start")

# ---- there and back: every tensor is a file, and the way back gives the same bytes ---------------------------------
run 0 convert "$work/start" "$work/off" --format offload --json
silent "$err"
is_json
has index '"index.json"'
has total_size 93568
[ "$(find "$work/off" -name '*.dat' | wc -l)" = 39 ] || fail "not a file for each of 39 tensors"
[ "$(stat -c %s "$work/off/embeddings.word_embeddings.weight.dat")" = "$((120 * 32 * 4))" ] || fail "a size is not its shape's"
[ "$(head -n 3 "$work/off/index.json")" = '{
  "embeddings.word_embeddings.weight": {
    "dtype": "float32",' ] || fail "the index begins with $(head -n 3 "$work/off/index.json")"
[ "$(tail -c 1 "$work/off/index.json")" = '}' ] || fail "the index ends with a newline, which Accelerate does not write"
same "$start" "$work/start"
no_traces "$work"
for path in off off/index.json; do
    run 0 inspect "$work/$path" --json
    has format '"offload"'
    has index '"index.json"'
    has total_parameters 23392
    run 0 verify "$work/$path" --deep
    shows "$out" '^ok: 39 files, 39 tensors, 93568 bytes$'
    run 0 load "$work/$path" --json --strict
    has missing '[]'
    has unexpected '[]'
    has copied_bytes 0
done
run 0 convert "$work/off" "$work/back" --max-shard-size 40KB
silent "$err"
same "$start" "$work/back"
run 0 convert "$work/off" "$work/bins" --format bin
run 0 convert "$work/bins" "$work/off2" --format offload
same "$(snapshot "$work/off")" "$work/off2"
run 0 convert "$work/off" "$work/off3" --format offload --dtype bf16
run 0 inspect "$work/off3" --json
has total_size 46784
shows "$out" '"dtype": "bfloat16"'
lacks "$out" '"dtype": "float32"'
shows "$work/off3/config.json" '"dtype": "bfloat16"'
run 0 convert "$work/start" "$work/dry" --format offload --dry-run
shows "$out" '^nothing was written [(]--dry-run[)]$'
[ ! -e "$work/dry" ] || fail "--dry-run has written"
if [ "$manifests" = ON ]; then
    run 0 verify "$work/off" --write-manifest="$work/manifest.json"
    run 0 verify "$work/off" --manifest "$work/manifest.json"
else
    fails 7 "built with OpenSSL" verify "$work/off" --write-manifest="$work/manifest.json"
fi

# ---- what is refused, and leaves everything as it was ---------------------------------------------------------------
off=$(snapshot "$work/off")
fails 2 'no shards' convert "$work/start" "$work/no" --format offload --max-shard-size 1MB
fails 2 'no variants' convert "$work/start" "$work/no" --format offload --variant fp16
fails 2 "is not a format: expected safetensors, bin or offload" convert "$work/start" "$work/no" --format dat
fails 2 "saved as safetensors or bin, not 'offload'" init "$config" "$work/no" --format offload
fails 11 "already contains '.*'; 'force' \(--force\) replaces it" convert "$work/start" "$work/off" --format offload
fails 11 "already contains '.*'" convert "$work/start" "$work/off"
write_safetensors "$work/slash.safetensors" '{"a/b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}' 4
fails 2 "a/b: 'a/b.dat' is not a valid file" convert "$work/slash.safetensors" "$work/no" --format offload
long=$(printf 'n%.0s' {1..247})
write_safetensors "$work/long.safetensors" "{\"$long\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}" 4
fails 2 'the name has 247 bytes' convert "$work/long.safetensors" "$work/no" --format offload
write_safetensors "$work/f4.safetensors" '{"a":{"dtype":"F4","shape":[2],"data_offsets":[0,1]}}' 1
fails 2 'a: an offload folder cannot hold float4' convert "$work/f4.safetensors" "$work/no" --format offload
[ ! -e "$work/no" ] || fail "something was written"
same "$off" "$work/off"

bad() { # bad CODE PATTERN: of a copy that was spoilt, for every command
    local before
    before=$(snapshot "$work/spoilt")
    fails "$1" "$2" load "$work/spoilt"
    fails "$1" "$2" inspect "$work/spoilt"
    fails "$1" "$2" convert "$work/spoilt" "$work/no"
    run 1 verify "$work/spoilt"
    same "$before" "$work/spoilt"
    [ ! -e "$work/no" ] || fail "something was written"
}
spoil() { # spoil SED-EXPRESSION: of the index; "" for none
    rm -rf "$work/spoilt"
    cp -r "$work/off" "$work/spoilt"
    [ -z "$1" ] || sed -i "$1" "$work/spoilt/index.json"
}
dat=embeddings.LayerNorm.bias.dat
spoil ''
truncate -s 127 "$work/spoilt/$dat"
bad 5 "$dat: .*byte 127: file has 127 bytes, float32 \[32\] needs 128"
spoil ''
rm "$work/spoilt/$dat"
bad 4 "$dat: .*No such file"
spoil ''
rm "$work/spoilt/$dat" && mkfifo "$work/spoilt/$dat"
bad 7 "$dat: .*a FIFO"
spoil '0,/float32/s//float16/'
bad 5 'embeddings.word_embeddings.weight.dat: .*file has 15360 bytes, float16 \[120, 32\] needs 7680'
spoil '0,/float32/s//float7/'
bad 5 "index.json: .*byte [0-9]+: unknown dtype 'float7'"
spoil '0,/120/s//18446744073709551615/'
bad 5 'index.json: .*exceeds 2\^64 bytes'
spoil 's|embeddings.word_embeddings.weight|../start/x|'
bad 8 "index.json: ../start/x: byte 4: '../start/x.dat' would not be a file in this folder"
spoil '$ d'
bad 5 'index.json: .*byte [0-9]+'
spoil 's|"embeddings.LayerNorm.bias"|"embeddings.LayerNorm.weight"|'
bad 5 'index.json: embeddings.LayerNorm.weight: byte [0-9]+: key occurs twice'
run 1 verify "$work/spoilt"
shows "$out" 'index: index.json: embeddings.LayerNorm.weight'
spoil ''
truncate -s 127 "$work/spoilt/$dat"
rm "$work/spoilt/pooler.dense.bias.dat"
cp "$work/off/$dat" "$work/spoilt/of.another.model.dat"
run 1 verify "$work/spoilt"
shows "$out" "^malformed_file: $dat: .*file has 127 bytes"
shows "$out" '^missing_file: pooler.dense.bias.dat: '
shows "$out" 'stale_file: of.another.model.dat: weights that the index does not list'

# ---- entries that point into safetensors files ------------------------------------------------------------------------
mkdir "$work/pointing"
cp "$config" "$work/pointing"
shard=$work/start/model-00001-of-00003.safetensors
entry() { # entry NAME FILE REST
    printf '{"%s": {"safetensors_file": "%s"%s}}' "$1" "$2" "$3" >"$work/pointing/index.json"
}
entry here "$shard" ', "weight_name": "embeddings.LayerNorm.bias", "dtype": "float32"'
run 0 inspect "$work/pointing" --json
has total_parameters 32
run 0 verify "$work/pointing" --deep
run 0 convert "$work/pointing" "$work/pointed"
run 0 inspect "$work/pointed"
shows "$out" '^here '
pointing() { # pointing CODE PATTERN
    fails "$1" "$2" inspect "$work/pointing"
    fails "$1" "$2" convert "$work/pointing" "$work/no"
    run 1 verify "$work/pointing"
}
entry here "$shard" ', "weight_name": "embeddings.LayerNorm.bias", "dtype": "bfloat16"'
pointing 5 'index.json: here: byte 1: dtype bfloat16 in the index, float32 in '
entry here "$shard" ', "weight_name": "embeddings.LayerNorm.bias", "shape": [31]'
pointing 5 'index.json: here: byte 1: shape \[31\] in the index, \[32\] in '
entry here "$shard" ''
pointing 5 "index.json: here: byte 1: 'here' is not in "
entry here start/model.safetensors ''
pointing 8 'index.json: here: .*must be absolute'
entry here "$work/bins/pytorch_model.bin" ''
pointing 5 "pytorch_model.bin: here: byte 0: is 'bin', expected safetensors"
entry here "$work/none" ''
pointing 4 'none: here: .*No such file'
entry here "$work" ''
pointing 7 'here: not a regular file but a folder'
entry here /dev/zero ''
pointing 7 'here: not a regular file but a device'

# ---- distinguished from others ----------------------------------------------------------------------------------------
mkdir "$work/stranger"
cp "$config" "$work/stranger"
echo '{"a": [1], "dtype": "float32", "shape": []}' >"$work/stranger/index.json"
fails 4 'no weights found' load "$work/stranger"
fails 5 "field 'weight_map' is missing" load "$work/stranger/index.json"
cp "$config" "$work/stranger/index.json"
run 0 inspect "$work/stranger/index.json"
shows "$out" 'BertModel|bert'
# a checkpoint wins over an offload folder beside it, unless that one is asked for
cp -r "$work/off" "$work/both"
cp "$work"/start/model* "$work/both"
run 0 inspect "$work/both" --json
has format '"safetensors"'
run 0 inspect "$work/both" --json --format offload
has format '"offload"'
run 0 convert "$work/both" "$work/alone"
[ -z "$(find "$work/alone" -name '*.dat' -o -name index.json)" ] || fail "the offload folder came along as side files"

# ---- what a save leaves -------------------------------------------------------------------------------------------------
cp -r "$work/both" "$work/forced"
echo mine >"$work/forced/notes.dat"
cp "$work/off/$dat" "$work/forced/gone.dat"
sed -i 's|"embeddings.LayerNorm.bias"|"gone"|' "$work/forced/index.json"
run 0 convert "$work/bins" "$work/forced" --format offload --force
[ -z "$(find "$work/forced" -name 'model*')" ] || fail "what would win was left: $(ls "$work/forced")"
[ ! -e "$work/forced/gone.dat" ] || fail "a file of the old index was left"
[ "$(cat "$work/forced/notes.dat")" = mine ] || fail "a file that is not ours is gone"
rm "$work/forced/notes.dat"
same "$off" "$work/forced"
no_traces "$work"

# ---- many files, few descriptors ---------------------------------------------------------------------------------------
header='' bytes=0
for ((i = 0; i < 3000; i++)); do
    header="$header${header:+,}\"layers.$i.weight\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[$bytes,$((bytes + 8))]}"
    bytes=$((bytes + 8))
done
write_safetensors "$work/many.safetensors" "{$header}" "$bytes"
(
    ulimit -n 256
    run 0 convert "$work/many.safetensors" "$work/many" --format offload
    run 0 verify "$work/many" --deep
    shows "$out" '^ok: 3000 files, 3000 tensors, 24000 bytes$'
    run 0 inspect "$work/many"
    run 0 convert "$work/many" "$work/few"
    cp "$work/start/config.json" "$work/many"
    sed -i 's/"model_type": "bert"/"model_type": "of_its_own"/' "$work/many/config.json"
    run 0 load "$work/many" --json --touch
    has copied_bytes 0
    run 0 load "$work/many" --json --mode copy
    has mapped_bytes 0
)
run 0 inspect "$work/few/model.safetensors"
shows "$out" '^layers.2999.weight '

# ---- load --offload-folder: what a device map leaves on the disk ----------------------------------------------------------
echo '{"": "cpu", "encoder.layer.0": "disk"}' >"$work/map.json"
map=(--device-map best --max-memory 'cpu=20KB,disk')
entries() { # entries FOLDER: names that its index has
    grep -c '^  "' "$work/$1/index.json"
}
run 0 load "$work/start" --json "${map[@]}" --offload-folder "$work/new/point"
is_json
has folder "\"$work/new/point\""
has files 0
has kept false
[ "$(ls "$work/new/point")" = index.json ] || fail "something was copied: $(ls "$work/new/point")"
[ "$(entries new/point)" -gt 10 ] || fail "hardly any entries"
shows "$work/new/point/index.json" "^    \"safetensors_file\": \"$(realpath "$work/start")/model-0000[123]-of-00003.safetensors\",$"
run 0 verify "$work/new/point" --deep
point=$(snapshot "$work/new")
run 0 load "$work/start" --json "${map[@]}" --offload-folder "$work/new/point"
has kept true
(cd "$work" && run 0 load start "${map[@]}" --offload-folder new/point) # the same paths, from wherever one stands
run 0 load "$work/new/../start" "${map[@]}" --offload-folder "$work/new/point"
same "$point" "$work/new"
# from a .bin, and cast: bytes of the folder's own, the model's values
run 0 load "$work/bins" --json "${map[@]}" --offload-folder "$work/ofbin"
lacks "$out" '"files": 0'
run 0 verify "$work/ofbin" --deep
for file in "$work"/ofbin/*.dat; do
    cmp -s "$file" "$work/off/${file##*/}" || fail "${file##*/} has other bytes"
done
run 0 load "$work/start" --json --touch --dtype bf16 "${map[@]}" --offload-folder "$work/ofcast"
mapped=$(grep -oE '"mapped_bytes": [0-9]+' "$out" | head -n 1) # of the load; the pass copies units that are small
[ "$mapped" != '"mapped_bytes": 0' ] || fail "$last: nothing is mapped from the folder"
for file in "$work"/ofcast/*.dat; do
    cmp -s "$file" "$work/off3/${file##*/}" || fail "${file##*/} is cast otherwise"
done
run 0 load "$work/start" --json --dtype bf16 "${map[@]}" --offload-folder "$work/ofcast"
has kept true
# what the checkpoint lacks is made, and lies in the folder too
run 0 load "$work/start" --json --class BertForMaskedLM --device-map best --max-memory cpu=1KB,disk --offload-folder "$work/head"
shows "$out" '"initialized": \["cls'
[ -e "$work/head/cls.predictions.transform.dense.weight.dat" ] || fail "a new weight is not there"
[ -n "$(tr -d '\0' <"$work/head/cls.predictions.transform.dense.weight.dat" | head -c 1)" ] || fail "a new weight is nothing but zeros"
run 0 load "$work/start" --json --class BertForMaskedLM --device-map best --max-memory cpu=1KB,disk --offload-folder "$work/head"
has kept true
shows "$work/head/index.json" '^  "cls.predictions.decoder.weight"' # tied: an entry for each name
shows "$work/head/index.json" '^    "weight_name": "embeddings.word_embeddings.weight",'
fails 11 'cls.predictions.bias: byte|cls.*has other values' load "$work/start" --class BertForMaskedLM --seed 7 \
    --device-map best --max-memory cpu=1KB,disk --offload-folder "$work/head"

# a folder that differs is refused with the first difference, and does not change
foreign() { # foreign CODE PATTERN FOLDER ARGUMENTS...
    local code=$1 pattern=$2 folder=$work/$3 before
    shift 3
    before=$(snapshot "$folder")
    fails "$code" "$pattern" load "$@" --offload-folder "$folder"
    same "$before" "$folder"
}
foreign 11 'index.json: .*byte [0-9]+: expected data in a .dat file, .*model-0000' new/point "$work/bins" "${map[@]}"
foreign 11 'ofbin/index.json: .*byte [0-9]+: expected dtype bfloat16, .* has float32' ofbin "$work/bins" --dtype bf16 "${map[@]}"
foreign 11 'expected tensor .*, .*no tensor of this name' new/point "$work/start" --device-map best --max-memory cpu=1KB,disk
foreign 11 'expected no tensor .*, .*has one' new/point "$work/start" --device-map "$work/map.json"
victim=$(find "$work/ofbin" -name '*.dat' -size +0 | sort | head -n 1)
cp "$victim" "$work/kept"
truncate -s -1 "$victim"
foreign 5 "${victim##*/}: .*file has [0-9]+ bytes, float32 .* needs" ofbin "$work/bins" "${map[@]}"
cp "$work/kept" "$victim"
printf '\377' | dd of="$victim" bs=1 seek=5 conv=notrunc status=none
foreign 11 "${victim##*/}: .*byte 5: has other values: found 0xff" ofbin "$work/bins" "${map[@]}"
rm "$victim"
foreign 4 "${victim##*/}: .*No such file" ofbin "$work/bins" "${map[@]}"
rm "$work/ofbin/index.json"
foreign 11 'dat: already exists, without an index' ofbin "$work/bins" "${map[@]}"
foreign 11 'index.json: already exists, and is not the index' stranger "$work/start" "${map[@]}"
run 0 load "$work/start" --json --device-map best --max-memory cpu=1GB --offload-folder "$work/nothing"
has entries 0
[ ! -e "$work/nothing" ] || fail "nothing is offloaded, and yet a folder was made"
foreign 11 'expected no tensor .*, .*has one' new/point "$work/start" --device-map best --max-memory cpu=1GB
fails 2 'requires a device map' load "$work/start" --offload-folder "$work/nothing"
fails 7 'not supported by this build' load "$work/start" --max-memory 0=1GB --offload-folder "$work/nothing"
fails 11 'a file' load "$work/bins" "${map[@]}" --offload-folder "$work/slash.safetensors"
[ ! -e "$work/nothing" ] || fail "something was written"
if mount_tmpfs "$work/small" size=16k; then
    fails 3 'no space left' load "$work/bins" "${map[@]}" --offload-folder "$work/small/off"
    [ -z "$(ls -A "$work/small")" ] || fail "left behind: $(ls -A "$work/small")"
else
    skip "a disk that is full: cannot mount here"
fi
# of 3,000 tensors, with 256 descriptors
cp "$work/many/config.json" "$work/few"
run 0 convert "$work/few" "$work/few-bin" --format bin
(
    ulimit -n 256
    for from in few few-bin many; do
        run 0 load "$work/$from" --json --device-map best --max-memory cpu=1KB,disk --offload-folder "$work/of-$from"
        run 0 load "$work/$from" --json --device-map best --max-memory cpu=1KB,disk --offload-folder "$work/of-$from"
        has kept true
    done
    run 0 load "$work/few" --json --touch --dtype f16 --device-map best --max-memory cpu=1KB,disk --offload-folder "$work/of-half"
)
no_traces "$work"
