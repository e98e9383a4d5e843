#!/usr/bin/env bash
# test_new_architecture - what the tool writes is registered, compiles, and is refused a second time.
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"

mkdir "$work/tree"
cp -r "$source_dir/src" "$source_dir/include" "$source_dir/tools" "$work/tree"
tool=$work/tree/tools/new_architecture
for family in "aaa Aaa" "toy_lm ToyLM" "zzz Zzz"; do
    # shellcheck disable=SC2086 # two words
    "$tool" $family >/dev/null || fail "$family was not written"
done
"$tool" toy_lm ToyLM 2>/dev/null && fail "an existing family was written over"
"$tool" 'a/b' ToyLM 2>/dev/null && fail "a path was taken for a name"
"$tool" toy 'toy;' 2>/dev/null && fail "a word was taken for a class"
for one in aaa toy_lm zzz; do
    "${CC:-cc}" -std=c17 -Wall -Wextra -Werror -I"$work/tree/include" -I"$work/tree/src" -D_GNU_SOURCE -fsyntax-only \
        "$work/tree/src/model/arch/$one.c" || fail "$one.c does not compile"
done
"${CC:-cc}" -std=c17 -I"$work/tree/include" -I"$work/tree/src" -D_GNU_SOURCE -fsyntax-only "$work/tree/src/model/registry.c" ||
    fail "the registry does not compile"
grep -o 'extern const heft__family heft__family_[a-z0-9_]*' "$work/tree/src/model/registry.c" >"$work/declared"
LC_ALL=C sort -c "$work/declared" || fail "the registry is not sorted"
[ "$(grep -c '&heft__family_' "$work/tree/src/model/registry.c")" = "$(grep -c . "$work/declared")" ] || fail "the two lists differ"
