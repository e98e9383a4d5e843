#!/usr/bin/env bash
# test_big_endian - a big-endian machine is refused when configuring and when compiling, with one clear line.
#   test_big_endian.sh SOURCE BUILD COMPILER CMAKE
set -euo pipefail
source=$1 compiler=$3 cmake=$4
line="heft requires a little-endian machine"
fail() {
    printf 'test_big_endian: %s\n' "$*" >&2
    exit 1
}

said=$("$cmake" -DCMAKE_C_BYTE_ORDER=BIG_ENDIAN -P "$source/cmake/check_machine.cmake" 2>&1) && fail "configured"
# CMake breaks long lines
printf '%s' "$said" | tr -s ' \n' ' ' | grep -q "$line" || fail "configuring says: $said"
"$cmake" -DCMAKE_C_BYTE_ORDER=LITTLE_ENDIAN -P "$source/cmake/check_machine.cmake" || fail "little-endian is refused"

compile() {
    printf '#include "base/base.h"\n' |
        "$compiler" -std=gnu17 -D_GNU_SOURCE -I"$source/include" -I"$source/src" "$@" -fsyntax-only -x c - 2>&1
}
compile >/dev/null || fail "does not compile here"
said=$(compile -U__BYTE_ORDER__ -D__BYTE_ORDER__=__ORDER_BIG_ENDIAN__) && fail "compiled"
printf '%s' "$said" | grep -q "error.*$line" || fail "compiling says: $said"
