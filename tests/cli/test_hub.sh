#!/usr/bin/env bash
# test_hub - org/name[@revision] is found in the hub's cache, and nothing else is taken for it.
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"
unset HF_HUB_CACHE HUGGINGFACE_HUB_CACHE HF_HOME XDG_CACHE_HOME
commit=0123456789abcdef0123456789abcdef01234567
other=76543210fedcba9876543210fedcba9876543210

"$heft" init -q "$config" "$work/made"
repo=$work/home/.cache/huggingface/hub/models--org--tiny-bert
mkdir -p "$repo/refs/refs/pr" "$repo/blobs" "$repo/snapshots/$commit" "$repo/snapshots/$other"
printf '%s' "$commit" >"$repo/refs/main"
printf '%s\n' "$other" >"$repo/refs/refs/pr/1"
for file in config.json model.safetensors; do # as the hub's client lays them out
    cp "$work/made/$file" "$repo/blobs/$file.blob"
    ln -s "../../blobs/$file.blob" "$repo/snapshots/$commit/$file"
    cp "$work/made/$file" "$repo/snapshots/$other/$file" # plain files are as good
done
mkdir -p "$repo/snapshots/$commit"/{1_Pooling,additional_chat_templates}
for file in 1_Pooling/config.json additional_chat_templates/tool_use.jinja generation_config.json; do
    blob=$(tr / _ <<<"$file").blob up=../..
    [ "$(dirname "$file")" = . ] || up=../../..
    echo "$file" >"$repo/blobs/$blob"
    ln -s "$up/blobs/$blob" "$repo/snapshots/$commit/$file"
done
HOME=$work/home
export HOME
cd "$work"

for name in org/tiny-bert org/tiny-bert@main "org/tiny-bert@$commit" org/tiny-bert@refs/pr/1; do
    run 0 load "$name" --json
    has parameters 23392
done
run 0 convert -q org/tiny-bert "$work/converted" --max-shard-size 40KB
silent "$err"
for file in 1_Pooling/config.json additional_chat_templates/tool_use.jinja generation_config.json; do
    [ "$(cat "$work/converted/$file")" = "$file" ] || fail "$last: $file"
    [ ! -L "$work/converted/$file" ] || fail "$last: $file is a link"
done
run 0 verify -q org/tiny-bert@refs/pr/1

# the variables, the first that is set wins
mv "$work/home/.cache/huggingface" "$work/elsewhere"
run 4 load org/tiny-bert
shows "$err" "home/.cache/huggingface/hub/models--org--tiny-bert"
HF_HOME=$work/elsewhere run 0 load -q org/tiny-bert
HF_HOME=$work/nowhere HF_HUB_CACHE=$work/elsewhere/hub run 0 load -q org/tiny-bert
# shellcheck disable=SC2088 # as it may stand in the environment
HF_HUB_CACHE='~/../elsewhere/hub' run 0 load -q org/tiny-bert
XDG_CACHE_HOME=$work/nowhere run 4 load -q org/tiny-bert

# what is not there says where it was looked for; another commit is never taken
export HF_HOME=$work/elsewhere
run 4 load org/tiny-bert@v2
shows "$err" "models--org--tiny-bert/snapshots/v2"
rm "$work/elsewhere/hub/models--org--tiny-bert/refs/main"
run 4 load org/tiny-bert
run 4 load org/tiny-bert@../../../etc
run 4 load ../org/tiny-bert
printf '../../../made' >"$work/elsewhere/hub/models--org--tiny-bert/refs/main"
run 5 load org/tiny-bert
shows "$err" 'refs/main: byte 0: expected a commit hash'

# a folder of that name wins
mkdir -p org
cp -r made org/tiny-bert
run 0 load -q org/tiny-bert
