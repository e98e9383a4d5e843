#!/usr/bin/env bash
# test_bad_input - one clear line, the documented exit code, source and destination as they were.
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"

mkdir "$work/src" "$work/dst"
"$heft" init -q "$config" "$work/src/st" --max-shard-size 40KB
"$heft" init -q "$config" "$work/src/bin" --max-shard-size 40KB --format bin
"$heft" init -q "$config" "$work/dst/old"
mkdir "$work/src/void"
cp "$config" "$work/src/void"
cp -r "$work/src/st" "$work/src/lost-st"
rm "$work/src/lost-st/model-00002-of-00003.safetensors"
cp -r "$work/src/bin" "$work/src/lost-bin"
rm "$work/src/lost-bin/pytorch_model-00002-of-00003.bin"
cp -r "$work/src/st" "$work/src/short-st"
truncate -s -1 "$work/src/short-st/model-00002-of-00003.safetensors"
cp -r "$work/src/bin" "$work/src/short-bin"
truncate -s -100 "$work/src/short-bin/pytorch_model-00002-of-00003.bin"
: >"$work/src/nothing.safetensors"
mkdir "$work/src/evil"
cp "$config" "$work/src/evil"
echo '{"metadata": {"total_size": 4}, "weight_map": {"w": "../st/model-00001-of-00003.safetensors"}}' \
    >"$work/src/evil/model.safetensors.index.json"
sources=$(snapshot "$work/src")
destinations=$(snapshot "$work/dst")

bad() { # bad CODE PATTERN ARGUMENTS...: fails as said, and nothing has changed
    fails "$@"
    same "$sources" "$work/src"
    same "$destinations" "$work/dst"
}

# ---- what is wrong with the source, for every command that reads one --------------------------------------------
while read -r code path pattern; do
    for force in '' --force; do
        bad "$code" "$pattern" convert "$work/src/$path" "$work/dst/new" ${force:+"$force"}
        bad "$code" "$pattern" convert "$work/src/$path" "$work/dst/old" --force
    done
    bad "$code" "$pattern" load "$work/src/$path"
    [ "$path" = void ] || bad "$code" "$pattern" inspect "$work/src/$path"
done <<'ROWS'
4 none none: .*[Nn]o such file
4 void void: no weights found
4 lost-st model-00002-of-00003.safetensors
4 lost-bin pytorch_model-00002-of-00003.bin
5 short-st model-00002-of-00003.safetensors.*byte [0-9]+:
5 short-bin pytorch_model-00002-of-00003.bin
5 nothing.safetensors nothing.safetensors
8 evil index.json
ROWS
bad 4 'none.json' init "$work/none.json" "$work/dst/new"

# ---- what is wrong with the destination ----------------------------------------------------------------------------
everywhere() { # everywhere CODE PATTERN DST: for both commands that write
    bad "$1" "$2" convert "$work/src/st" "$3"
    bad "$1" "$2" init "$config" "$3"
    bad "$1" "$2" convert "$work/src/st" "$3" --force
}
everywhere 11 'file' "$work/dst/old/config.json"
everywhere 3 'old/config.json' "$work/dst/old/config.json/below"
bad 11 "$work/dst/old" convert "$work/src/st" "$work/dst/old"
bad 11 "$work/dst/old" init "$config" "$work/dst/old"

if [ "$(id -u)" != 0 ]; then
    mkdir "$work/locked"
    chmod 555 "$work/locked"
    everywhere 3 'locked' "$work/locked/new"
    [ -z "$(ls -A "$work/locked")" ] || fail "something was written into $work/locked"
elif mount_tmpfs "$work/locked" ro; then
    everywhere 3 'locked' "$work/locked/new"
    everywhere 3 'locked' "$work/locked"
else
    skip "a destination that is not writable: root may write everywhere, and cannot mount here"
fi

if mount_tmpfs "$work/full" size=64k; then
    everywhere 3 '[Nn]o space' "$work/full/new"
    everywhere 3 '[Nn]o space' "$work/full/deep/er"
    [ -z "$(ls -A "$work/full")" ] || fail "something was left on a full disk: $(find "$work/full")"
    everywhere 3 '[Nn]o space' "$work/full"
    [ -z "$(ls -A "$work/full")" ] || fail "something was left on a full disk: $(find "$work/full")"
    # a checkpoint that is there stays, when the one to replace it does not fit
    sed 's/"vocab_size": 120/"vocab_size": 8/; s/"num_hidden_layers": 2/"num_hidden_layers": 1/' "$config" >"$work/.small.json"
    "$heft" init -q "$work/.small.json" "$work/full/kept"
    before=$(snapshot "$work/full")
    not_there() {
        fails 3 '[Nn]o space' "$@"
        same "$before" "$work/full"
    }
    not_there convert "$work/src/st" "$work/full/kept" --force
    not_there init "$config" "$work/full/kept" --force
else
    skip "a full destination: cannot mount a small file system"
fi
no_traces "$work"
