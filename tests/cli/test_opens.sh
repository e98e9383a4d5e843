#!/usr/bin/env bash
# test_opens - no command opens a weight file, an index or a config twice.
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"

preload=$3/tests/note_opens.so
[ -f "$preload" ] || fail "$preload is not built"
[ -z "$sanitized" ] || { skip "a sanitizer's runtime must be loaded first"; exit 0; }

# once CODE ARGUMENTS...: runs the command; the files of $source were opened once each, config.json as often as $configs
source='' configs=1
once() {
    local file count most seen=0
    export NOTE_OPENS=$work/.opens
    : >"$NOTE_OPENS"
    LD_PRELOAD=$preload run "$@"
    unset NOTE_OPENS
    for file in "$source"/*.safetensors "$source"/*.bin "$source"/*.json "$source"/*.dat; do
        [ -f "$file" ] || continue
        count=$(grep -cxF -- "$file" "$work/.opens" || true)
        most=1
        [ "$(basename "$file")" != config.json ] || most=$configs
        ((count <= most)) || fail "$last: opens $(basename "$file") $count times"
        ((seen += count)) || true
    done
    ((seen > 0)) || fail "$last: nothing of $source was opened"
}

"$heft" init -q "$config" "$work/single"
"$heft" init -q "$config" "$work/sharded" --max-shard-size 20KB
"$heft" init -q "$config" "$work/bin" --format bin --max-shard-size 20KB
"$heft" convert -q "$work/sharded" "$work/offload" --format offload
for kind in single sharded bin offload; do
    source=$work/$kind
    once 0 inspect "$source"
    once 0 inspect "$source" --tree --json
    once 0 load "$source"
    once 0 load "$source" --mode copy --dtype bf16
    once 0 load "$source" --strict --touch
    once 0 load "$source" --device-map best --max-memory cpu=60KB --touch
    once 0 plan "$source" --max-memory cpu=60KB
    once 0 verify "$source"
    once 0 verify "$source" --deep
    if [ "$manifests" = ON ]; then
        once 0 verify "$source" --write-manifest="$work/manifest"
        once 0 verify "$source" --manifest "$work/manifest" --json
    fi
    configs=2 # it is copied beside the new weights as well
    once 0 convert "$source" "$work/to" --force --max-shard-size 30KB
    once 0 convert "$source" "$work/bf16" --force --dtype bf16 --format bin
    once 0 convert "$source" "$work/other" --dry-run
    configs=1
done
source=$work/single
once 0 plan "$source/config.json"
once 0 inspect "$source/config.json"
