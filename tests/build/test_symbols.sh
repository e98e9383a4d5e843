#!/usr/bin/env bash
# test_symbols - libheft.so exports what its public headers declare, all of it with a version, and nothing else.
#   test_symbols.sh SOURCE BUILD
set -euo pipefail
source=$1 build=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fail() {
    printf 'test_symbols: %s\n' "$*" >&2
    exit 1
}

version=
if grep -q '^HEFT_LINKER_HAS_VERSIONS:[A-Z]*=1$' "$build/CMakeCache.txt"; then
    version=@@HEFT_0
fi
# "address kind name@@version"; the version itself is an absolute symbol
nm -D --defined-only "$build/libheft.so" | awk '$2 != "A" { print $3 }' | LC_ALL=C sort >"$work/exported"
[ -s "$work/exported" ] || fail "nothing is exported"
# a declaration begins with HEFT_API in the first column and ends with the first semicolon
cat "$source"/include/heft/*.h | awk '/^HEFT_API / { inside = 1 } inside { printf "%s ", $0 } inside && /;/ { inside = 0; print "" }' |
    sed -nE "s/^[^(]*[ *](heft_[a-z0-9_]+)\(.*/\1$version/p" | LC_ALL=C sort >"$work/declared"
if ! diff "$work/declared" "$work/exported" >"$work/differences"; then
    cat "$work/differences" >&2
    fail "declared (<) and exported (>) differ"
fi
if grep -vE '^heft_[a-z0-9]' "$work/exported"; then
    fail "these are not public names"
fi
echo "test_symbols: $(wc -l <"$work/exported") symbols"
