#!/usr/bin/env bash
# test_musl - every file of the library compiles with musl's headers, and base and io work with it.
#   test_musl.sh SOURCE BUILD
# Skipped (77) without musl-gcc. Headers of other libraries are looked for last, below /usr/include.
set -euo pipefail
source=$1
if ! command -v musl-gcc >/dev/null; then
    echo "test_musl: no musl-gcc (Debian: musl-tools)"
    exit 77
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
flags=(-std=gnu17 -D_GNU_SOURCE -D_FILE_OFFSET_BITS=64 -I"$source/include" -I"$source/src" -idirafter /usr/include
    -Wall -Wextra -Wconversion -Werror)

find "$source/src" -name '*.c' ! -path '*/cli/*' | while read -r file; do
    musl-gcc "${flags[@]}" -DHEFT__LEVEL=base -DHEFT__KERNEL_LEVEL=plain -fsyntax-only "$file"
done

cat >"$work/main.c" <<'END'
#include "io/io.h"
#include <stdatomic.h>
static heft_status add(void *user, size_t item, heft_error *err)
{
    (void)err;
    atomic_fetch_add((atomic_size_t *)user, item);
    return HEFT_OK;
}
int main(int count, char **words)
{
    heft_ctx *ctx = heft_ctx_new(&HEFT_OPTIONS(heft_ctx_options, .threads = 4));
    atomic_size_t sum = 0;
    heft_error err = {0};
    heft__input *input = NULL;
    heft__folder_writer *writer = NULL;
    for (int i = 0; i < 100; i++) {
        if (heft__parallel(ctx, 100, add, &sum, &err) != HEFT_OK) {
            return 1;
        }
    }
    if (count < 2 || sum != 100 * 4950 || heft__folder_begin(ctx, words[1], NULL, &writer, &err) != HEFT_OK ||
        heft__folder_commit(writer, &err) != HEFT_OK) {
        return 2;
    }
    heft__folder_free(writer);
    if (heft__input_open(ctx, "/there/is/none", &input, &err) != HEFT_NOT_FOUND) {
        return 3;
    }
    heft_error_print(&err, stdout);
    heft_ctx_free(ctx);
    return 0;
}
END
musl-gcc "${flags[@]}" -O1 -static -o "$work/main" "$work/main.c" "$source"/src/base/*.c "$source"/src/io/*.c -pthread
said=$("$work/main" "$work/folder")
if [ "$said" != "/there/is/none: cannot open: No such file or directory" ] || [ ! -d "$work/folder" ]; then
    echo "test_musl: it says '$said'" >&2
    exit 1
fi
