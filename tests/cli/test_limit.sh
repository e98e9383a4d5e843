#!/usr/bin/env bash
# test_limit - what does not fit below a limit of memory is refused with both numbers, and not killed.
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"
free=$(df -Pk "$work" | awk 'NR == 2 { print $4 }')
if [ "$free" -lt 600000 ]; then
    skip "600 MB of disk needed below ${TMPDIR:-/tmp}"
    exit 0
fi
export XDG_RUNTIME_DIR=$work

size=216620544 # BERT-base in half precision
run 0 init "$source_dir/examples/bert-base-cased/config.json" "$work/st" --dtype bf16 --json
has total_size "$size"
run 0 load "$work/st" --mode copy --over-limit --json # whatever this machine has
lacks "$out" 'while loading'

numbers='[0-9.]+ [KMG]B' refusal="LIMIT"
# refused WHAT ARGUMENTS...: exit 9 with both numbers, the limit, and the way out
refused() {
    local what=$1
    shift
    fails 9 "needs $numbers, but ([0-9]+ bytes|$numbers) are available \\($what of $numbers\\); .*'over_limit' \(--over-limit\) loads anyway" load "$@"
    has status "\"$refusal\""
}

# ---- address space -----------------------------------------------------------------------------------------------
if [ -n "$sanitized" ]; then
    skip 'a limit of address space: sanitizers have memory of their own'
else
    (
        ulimit -v 150000
        refused 'address space limit' "$work/st" --mode copy
        refused 'address space limit' "$work/st" --dtype f16
        refused 'address space limit' "$work/st" --dtype f16 --mode shared
        refused 'address space limit' "$work/st" --device-map auto --max-memory cpu=1GB
        fails 10 '.' load "$work/st" --mode copy --over-limit # there is no such space
        run 0 load "$work/st" --device-map auto --json        # by the same limit
    )
    (
        ulimit -v 400000
        run 0 load "$work/st" --mode copy --json
        has copied_bytes "$size"
        run 0 load "$work/st" --json
        has mapped_bytes "$size"
    )
    (
        ulimit -v 190000
        run 0 run "$work/st" --ids 5,6,7 --threads 1 --save "$work/limited.safetensors" --json # reads what does not fit
        has bytes_read "$size"
    )
    run 0 run "$work/st" --ids 5,6,7 --save "$work/copied.safetensors" --json
    has bytes_read 0
    cmp "$work/limited.safetensors" "$work/copied.safetensors" || fail "a run within a limit differs"
fi

# ---- a container's memory ----------------------------------------------------------------------------------------
group=
leave() {
    [ -z "$group" ] || rmdir "$group" || true
    cleanup
}
trap leave EXIT
# enter FOLDER FILE: a group in it, the name of whose limit is FILE; with a limit of 150 MB and no swap
enter() {
    local own=$1/heft-limit-$$
    if ! mkdir "$own" 2>/dev/null; then
        return 1
    fi
    if [ ! -e "$own/$2" ] || ! { echo 150000000 >"$own/$2"; } 2>/dev/null; then # no cgroup, or no limits in it
        rmdir "$own"
        return 1
    fi
    { echo 0 >"$own/memory.swap.max" || echo 150000000 >"$own/memory.memsw.limit_in_bytes"; } 2>/dev/null || true
    group=$own
}
if [ -n "$sanitized" ]; then
    skip 'a cgroup: sanitizers have memory of their own'
elif enter /sys/fs/cgroup memory.max; then
    version=2
elif enter /sys/fs/cgroup/memory memory.limit_in_bytes; then
    version=1
else
    skip 'no cgroup with a limit of memory can be made here'
fi
if [ -n "$group" ]; then
    (
        echo "$BASHPID" >"$group/cgroup.procs"
        what="cgroup v$version limit"
        refused "$what" "$work/st" --mode copy
        refused "$what" "$work/st" --dtype f16
        refused "cgroup v$version limit" "$work/st" --dtype f16 --mode shared
        run 0 load "$work/st" --touch --json # its pages can go
        has mapped_bytes "$size"
        # the page cache is full of the files now: they are no reason to refuse
        run 0 load "$work/st" --device-map auto --max-memory cpu=100MB,disk --json
        cat "$work/st"/*.safetensors >/dev/null
        refused "cgroup v$version limit" "$work/st" --mode copy
        for memory in "" "--memory 150MB" "--memory 100MB"; do # a run reads what does not fit
            # shellcheck disable=SC2086
            run 0 run "$work/st" --ids 5,6,7 $memory --json
            has bytes_read "$size"
        done
        # and this is what a refusal spares
        code=0
        "$heft" load "$work/st" --mode copy --over-limit >"$out" 2>"$err" || code=$?
        [ "$code" = 137 ] || fail "$last: over the limit: exit $code, expected to be killed: $(cat "$out" "$err")"
    )
    # a pass over what stays on the disk: one unit at a time has to fit
    case $version in
        2) echo 40000000 >"$group/memory.max" ;;
        1) echo 40000000 >"$group/memory.limit_in_bytes" ;;
    esac
    echo '{"": "disk"}' >"$work/disk.json"
    (
        echo "$BASHPID" >"$group/cgroup.procs"
        pass=("$work/st" --dtype f16 --device-map "$work/disk.json" --touch)
        fails 9 "needs $numbers, but $numbers are available \\(cgroup v$version limit of $numbers\\); a smaller budget .*'over_limit'" \
            load "${pass[@]}" --max-memory cpu=1GB
        run 0 load "$work/st" --device-map "$work/disk.json" --touch --max-memory cpu=1GB --json # its pages can go
        shows "$out" '"least_bytes": 0, "most_bytes": [0-9]+'
        shows "$out" 'may need up to [^"]* while units are brought in'
    )
    # within it
    case $version in
        2) echo 400000000 >"$group/memory.max" ;;
        1)
            { echo 400000000 >"$group/memory.memsw.limit_in_bytes"; } 2>/dev/null || true
            echo 400000000 >"$group/memory.limit_in_bytes"
            ;;
    esac
    (
        echo "$BASHPID" >"$group/cgroup.procs"
        cat "$work/st"/*.safetensors >/dev/null
        run 0 load "$work/st" --mode copy --json
        has copied_bytes "$size"
        has warnings '[]'
        run 0 load "$work/st" --dtype f16 --mode shared --json
        has shared_bytes "$size"
    )
    echo "test_limit: tried in a cgroup of version $version"
fi
