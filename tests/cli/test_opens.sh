#!/usr/bin/env bash
# test_opens - no command opens a weight file, an index or a config twice.
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"

preload=$3/tests/note_opens.so
[ -f "$preload" ] || fail "$preload is not built"
[ -z "$sanitized" ] || { skip "a sanitizer's runtime must be loaded first"; exit 0; }

# once CODE ARGUMENTS...: runs the command. It opened a file of $source, and no file of $work twice to read it, whether of
# the source, of the destination or of an offload folder; config.json of the source as often as $configs.
source='' configs=1
once() {
    local file count most seen=0
    export NOTE_OPENS=$work/.opens
    : >"$NOTE_OPENS"
    LD_PRELOAD=$preload run "$@"
    unset NOTE_OPENS
    while read -r count file; do
        [[ $file != "$source"/* ]] || seen=1
        most=1
        [ "$file" != "$source/config.json" ] || most=$configs
        ((count <= most)) || fail "$last: opens ${file#"$work"/} $count times"
    done < <(grep -F -- "$work/" "$work/.opens" | tr '\n' '\0' | xargs -0 -r realpath -m -- | sort | uniq -c)
    ((seen > 0)) || fail "$last: nothing of $source was opened"
}

"$heft" init -q "$config" "$work/single"
"$heft" init -q "$config" "$work/sharded" --max-shard-size 20KB
"$heft" init -q "$config" "$work/bin" --format bin
"$heft" init -q "$config" "$work/bins" --format bin --max-shard-size 20KB
"$heft" convert -q "$work/sharded" "$work/offload" --format offload
"$heft" init -q "$config" "$work/variant" --variant fp16 --max-shard-size 20KB
mkdir "$work/in"
cp -R "$work/sharded" "$work/in/sub"
printf '{"model_type": "not-known-here"}\n' >"$work/unknown.json"
cp -R "$work/sharded" "$work/unknown"
cp "$work/unknown.json" "$work/unknown/config.json"
# as Accelerate would write it: some tensors in the checkpoint's own files, some in .dat files
"$heft" load -q "$work/sharded" --class BertForMaskedLM --device-map best --max-memory cpu=60KB --offload-folder "$work/mixed"
cp "$work/sharded/config.json" "$work/mixed"
printf '{"": "disk"}\n' >"$work/disk.json"

for kind in single sharded bin bins offload mixed unknown; do
    source=$work/$kind
    entry=$source
    case $kind in
    single) entry=$source/model.safetensors ;;
    bin) entry=$source/pytorch_model.bin ;;
    sharded) entry=$source/model.safetensors.index.json ;;
    bins) entry=$source/pytorch_model.bin.index.json ;;
    offload | mixed) entry=$source/index.json ;;
    esac
    for path in "$source" "$entry"; do
        once 0 inspect "$path"
        once 0 load "$path"
        once 0 plan "$path" --max-memory cpu=60KB
        once 0 verify "$path"
    done
    once 0 inspect "$source" --tree --json
    once 0 inspect "$source" --html "$work/picture"
    once 0 load "$source" --json -v
    once 0 load "$source" --mode copy --dtype bf16
    once 0 load "$source" --mode shared
    [ "$kind" = mixed ] || once 0 load "$source" --strict --touch # it has a part of the model only
    once 0 load "$source" --device-map best --max-memory cpu=60KB --touch
    once 0 load "$source" --device-map auto --max-memory cpu=60KB,disk --json
    once 0 load "$source" --device-map "$work/disk.json" --touch --dtype f16
    once 0 plan "$source" --strategy best --max-memory 0=30KB,cpu=60KB --json
    once 0 plan "$source" --strategy balanced --max-memory 0=60KB,1=60KB --svg "$work/picture"
    once 0 plan "$source" --strategy "$work/disk.json" --dtype f16
    once 0 verify "$source" --deep --json
    [ "$kind" = mixed ] || [ "$kind" = sharded ] || once 0 diff "$source" "$work/sharded" --json
    if [ "$manifests" = ON ]; then
        once 0 verify "$source" --write-manifest="$work/manifest"
        once 0 verify "$source" --manifest "$work/manifest" --json
    fi
    for with in "" "--dtype bf16"; do # the second time it is there, and the third it is the source
        for device_map in "$work/disk.json" "best --max-memory cpu=36KB"; do
            rm -rf "$work/folder"
            # shellcheck disable=SC2086 # several words
            once 0 load "$source" $with --device-map $device_map --offload-folder "$work/folder"
            # shellcheck disable=SC2086
            once 0 load "$source" $with --device-map $device_map --offload-folder "$work/folder" --touch --json
            has kept true
        done
    done
    configs=2 # it is copied beside the new weights as well
    once 0 convert "$source" "$work/to" --force --max-shard-size 30KB
    once 0 convert "$source" "$work/to" --force --max-shard-size 10KB --order natural --json
    once 0 convert "$source" "$work/bf16" --force --dtype bf16 --format bin
    once 0 convert "$source" "$work/off" --force --format offload
    once 0 convert "$source" "$work/off" --force --format offload --dtype bf16
    once 0 convert "$source" "$work/fp16" --force --variant fp16
    once 0 convert "$source" "$work/resumed" --force --resume
    once 0 convert "$source" "$work/one.safetensors" --force
    once 0 convert "$source" "$work/other" --dry-run
    configs=1
done

# ---- an offload folder that is the source's own ----------------------------------------------------------------------
source=$work/offload
once 0 load "$source" --device-map "$work/disk.json" --offload-folder "$source" --json
has kept true
once 11 load "$source" --device-map "$work/disk.json" --offload-folder "$source" --dtype bf16
once 11 load "$source" --device-map "$work/disk.json" --offload-folder "$work/folder" # of another checkpoint

# ---- where the files are named otherwise -------------------------------------------------------------------------------
source=$work/variant
once 0 load "$source" --variant fp16
once 0 inspect "$source" --variant fp16
once 0 plan "$source" --variant fp16
once 0 verify "$source" --variant fp16
once 0 load "$source" --variant fp16 --device-map "$work/disk.json" --offload-folder "$work/folder-fp16" --touch
source=$work/in/sub
once 0 load "$work/in" --subfolder sub
once 0 inspect "$work/in" --subfolder sub
once 0 plan "$work/in" --subfolder sub
once 0 verify "$work/in" --subfolder sub
once 0 load "$work/in" --subfolder sub --device-map "$work/disk.json" --offload-folder "$work/folder-in" --touch
configs=2
once 0 convert "$work/in" "$work/out" --subfolder sub

# ---- a config alone ------------------------------------------------------------------------------------------------------
source=$work/alone configs=1
mkdir "$source"
cp "$config" "$source"
for path in "$source" "$source/config.json"; do
    once 0 plan "$path"
    once 0 inspect "$path" --class BertForMaskedLM
    once 0 inspect "$path" --tree
    once 0 init "$path" "$work/new" --force
    once 0 init "$path" "$work/new" --force --max-shard-size 20KB --format bin
    once 0 init "$path" "$work/new" --dry-run --force
    rm -rf "$work/new"
done
