#!/usr/bin/env bash
# test_install - what `cmake --install` installs is sufficient for pkg-config, find_package, examples/load.c.
#
#   test_install.sh HEFT SOURCE_DIR BUILD_DIR
set -euo pipefail
heft=$1 source=$2 build=$3

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
prefix=$work/prefix

fail() {
    printf 'test_install: %s\n' "$*" >&2
    exit 1
}
expect_output() { # expect_output FILE: what examples/load.c says of the tiny checkpoint
    grep -q '^23 tensors, [0-9]* bytes$' "$1" || fail "no count in: $(cat "$1")"
    grep -q '^embeddings.word_embeddings.weight float32 \[40, 8\] in model.safetensors, mapped$' "$1" ||
        fail "tensor not described: $(cat "$1")"
    [ "$(sed -n 3p "$1" | wc -w)" = 8 ] || fail "eight values expected: $(cat "$1")"
}

# a sanitized library needs the same sanitizer in the program
sanitize=$(sed -n 's/^HEFT_SANITIZE:[A-Z]*=//p' "$build/CMakeCache.txt")
flags=()
[ -z "$sanitize" ] || flags=("-fsanitize=$sanitize")
compiler=$(sed -n 's/^CMAKE_C_COMPILER:[A-Z]*=//p' "$build/CMakeCache.txt")

cat >"$work/config.json" <<'JSON'
{"model_type": "bert", "architectures": ["BertModel"], "vocab_size": 40, "hidden_size": 8, "num_hidden_layers": 1,
 "num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": 12, "type_vocab_size": 2}
JSON
"$heft" init -q "$work/config.json" "$work/tiny"

cmake --install "$build" --prefix "$prefix" >"$work/log" || fail "cmake --install: $(cat "$work/log")"
for header in base checkpoint dlpack heft load model tensor; do
    [ -f "$prefix/include/heft/$header.h" ] || fail "heft/$header.h is not installed"
done
"$prefix/bin/heft" --help >/dev/null || fail "the installed command does not run"

# pkg-config, shared library
pc=$(find "$prefix" -name heft.pc)
[ -n "$pc" ] || fail "heft.pc is not installed"
PKG_CONFIG_PATH=$(dirname "$pc")
export PKG_CONFIG_PATH
read -r -a heft_flags <<<"$(pkg-config --cflags --libs heft)"
lib=$(pkg-config --variable=libdir heft)
[ "$(cd "$lib" && pwd -P)" = "$(cd "$(dirname "$pc")/.." && pwd -P)" ] || fail "heft.pc points to $lib, it lies in $pc"
"$compiler" -std=c17 -Wall -Wextra -Werror "${flags[@]}" "$source/examples/load.c" -o "$work/load" "${heft_flags[@]}" \
    "-Wl,-rpath,$lib" || fail "load.c does not build with pkg-config's flags"
"$work/load" "$work/tiny" embeddings.word_embeddings.weight >"$work/out"
expect_output "$work/out"
if "$work/load" "$work/none" 2>"$work/err"; then
    fail "a missing folder is no error"
fi
grep -q "$work/none" "$work/err" || fail "the error does not name the folder: $(cat "$work/err")"

# the headers hold in C++ too, where there is a compiler for it
if command -v g++ >/dev/null; then
    printf '#include <heft/%s.h>\n' heft dlpack | g++ -x c++ -std=c++17 -Wall -Wextra -Werror -fsyntax-only \
        "-I$prefix/include" - || fail "the headers do not hold in C++"
fi

# find_package, static library
mkdir "$work/app"
cp "$source/examples/load.c" "$work/app"
cat >"$work/app/CMakeLists.txt" <<'CMAKE'
cmake_minimum_required(VERSION 3.25)
project(app LANGUAGES C)
find_package(heft REQUIRED)
add_executable(load load.c)
target_link_libraries(load PRIVATE heft::static)
CMAKE
cmake -S "$work/app" -B "$work/app/build" -G Ninja "-DCMAKE_PREFIX_PATH=$prefix" "-DCMAKE_C_COMPILER=$compiler" \
    "-DCMAKE_C_FLAGS=${flags[*]:-}" >"$work/log" 2>&1 || fail "find_package(heft): $(cat "$work/log")"
cmake --build "$work/app/build" >"$work/log" 2>&1 || fail "heft::static: $(cat "$work/log")"
"$work/app/build/load" "$work/tiny" embeddings.word_embeddings.weight >"$work/out"
expect_output "$work/out"
