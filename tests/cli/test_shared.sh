#!/usr/bin/env bash
# test_shared - heft shared, and shared copies of checkpoints that only their file systems tell apart.
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"

hold=$3/tests/hold_shared
[ -x "$hold" ] || fail "$hold is not built"
export XDG_RUNTIME_DIR=$work/runtime
mkdir -m 700 "$XDG_RUNTIME_DIR"
registers=$XDG_RUNTIME_DIR/heft-$(id -u)

# begin NAME PATH: a process loads PATH as a shared copy, prints a line to $work/NAME, and holds it until `end NAME`.
# pid_NAME is its number.
begin() {
    local i
    : >"$work/$1.held"
    "$hold" "$2" shared bf16 "$work/$1.held" >"$work/$1" 2>&1 &
    printf -v "pid_$1" %d $!
    for ((i = 0; i < 2000; i++)); do
        [ ! -s "$work/$1" ] || return 0
        sleep 0.01
    done
    fail "$1 says nothing"
}
end() {
    local pid=pid_$1
    rm "$work/$1.held"
    wait "${!pid}" || fail "$1 ended with $?: $(cat "$work/$1")"
}
how() { # how NAME WORD: built, joined or private, with the bytes of $sum
    [ "$(cat "$work/$1")" = "$sum $2" ] || fail "$1: $(cat "$work/$1"), expected $sum $2"
}
sum_of() { "$hold" "$1" copy bf16 "$work/none" | cut -d ' ' -f 1; }
count() { find "$registers" -type f | wc -l; }

"$heft" init -q "$config" "$work/a" --dtype f32
"$heft" init -q "$config" "$work/b" --dtype f32 --seed 2

# ---- nothing is there --------------------------------------------------------------------------------------
run 0 shared
silent "$err"
shows "$out" '^no shared copies$'
run 0 shared -q
silent "$out"
run 0 shared --json
is_json
[ "$(cat "$out")" = '{"copies": [], "bytes": 0}' ] || fail "$last: $(cat "$out")"
run 0 shared --all
shows "$out" '^removed 0 shared copies$'

# ---- two copies, one with two processes ---------------------------------------------------------------------
sum=$(sum_of "$work/a")
begin first "$work/a"
how first built
begin second "$work/a"
how second joined
begin other "$work/b"
run 0 shared
silent "$err"
lines "$out" 3
shows "$out" '^id +bytes +age +processes +source$'
# shellcheck disable=SC2154 # set by begin
shows "$out" "^[0-9a-f]{16}  +[0-9,]+  +[0-9]+ s  $pid_first, $pid_second  +$(realpath "$work/a")\$"
# shellcheck disable=SC2154
shows "$out" "^[0-9a-f]{16}  +[0-9,]+  +[0-9]+ s  $pid_other  +$(realpath "$work/b")\$"
id=$(sed -n "s|^\([0-9a-f]*\) .*$(realpath "$work/a")\$|\1|p" "$out")
run 0 shared --json
is_json
shows "$out" "[{]\"id\": \"$id\", \"source\": \"$(realpath "$work/a")\", \"bytes\": [0-9]+, \"building\": false, \"pids\": \[$pid_first, $pid_second\], \"created\": [0-9]+, \"age_seconds\": [0-9]+[}]"
shows "$out" '\], "bytes": [0-9]+[}]$'

# ---- removing: who holds it keeps it, the next one builds anew ------------------------------------------------
fails 2 '--all: cannot be combined' shared --remove "$id" --all
fails 2 '16 digits' shared --remove ../x
fails 4 'no such shared copy' shared --remove 0123456789abcdef
[ "$(count)" = 2 ] || fail "$last: removed something"
run 0 shared --remove "$id"
shows "$out" '^removed 1 shared copy$'
[ "$(count)" = 1 ] || fail "$last: $(count) registers"
begin third "$work/a"
how third built
end first
end second
begin fourth "$work/a"
how fourth joined
run 0 shared --remove --all --json
is_json
[ "$(cat "$out")" = '{"removed": 2}' ] || fail "$last: $(cat "$out")"
end third
end fourth
end other
[ "$(count)" = 0 ] || fail "$(count) registers are left"

# ---- a killed process leaves nothing that is listed -----------------------------------------------------------
begin killed "$work/a"
# shellcheck disable=SC2154
kill -KILL "$pid_killed"
wait "$pid_killed" || true
[ "$(count)" = 1 ] || fail "a killed process took its register away"
run 0 shared
shows "$out" '^no shared copies$'
[ "$(count)" = 0 ] || fail "$last: $(count) registers are left"

# ---- file systems that were made alike: names, sizes, inodes and all times are the same -------------------------
# Two images are copies of each other, but for the bytes of the tensors.
alike() {
    local offset bytes
    [ "$(id -u)" = 0 ] && command -v mkfs.ext4 >/dev/null || return 1
    mkdir "$work/model" "$work/m1" "$work/m2"
    cp "$work/a/config.json" "$work/a/model.safetensors" "$work/model"
    truncate -s 8M "$work/image1"
    mkfs.ext4 -q -F -O ^has_journal -d "$work/model" "$work/image1" 2>/dev/null || return 1
    cp "$work/image1" "$work/image2"
    # the first tensors' bytes, one block of the file
    bytes=$(head -c 12288 "$work/a/model.safetensors" | tail -c 4096 | xxd -p | tr -d '\n')
    offset=$(xxd -p "$work/image1" | tr -d '\n' | grep -abo "$bytes" | head -n 1 | cut -d : -f 1)
    [ -n "$offset" ] || return 1
    head -c 12288 "$work/b/model.safetensors" | tail -c 4096 |
        dd of="$work/image2" bs=1 seek=$((offset / 2)) conv=notrunc status=none
    for i in 1 2; do
        mount -o loop,ro "$work/image$i" "$work/m$i" 2>/dev/null || return 1
        mounted+=("$work/m$i")
    done
}
if alike; then
    [ "$(cd "$work/m1" && stat -c '%n %i %s %Y %Z' -- *)" = "$(cd "$work/m2" && stat -c '%n %i %s %Y %Z' -- *)" ] ||
        fail "the file systems are not alike"
    sum=$(sum_of "$work/m1")
    [ "$sum" != "$(sum_of "$work/m2")" ] || fail "the checkpoints are the same"
    begin one "$work/m1"
    how one built
    sum=$(sum_of "$work/m2")
    begin two "$work/m2"
    how two built
    end one
    end two
else
    skip "file systems that are alike: needs root, loop mounts, mkfs.ext4 and xxd"
fi
