#!/usr/bin/env bash
# test_bounds - hostile files take at most 64 MB and twice their bytes, in every command; --limit moves the limits.
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"

# ---- what an error says, and what the option does -------------------------------------------------------------
make() { # make KIND: a folder of hostile.py
    mkdir "$work/$1"
    python3 "$source_dir/tests/cli/hostile.py" --make "$1" "$work/$1"
}
make st_million_dimensions
for command in inspect load plan; do
    fails 9 'more than 64 dimensions .limit rank.; --limit rank=N raises it$' "$command" "$work/st_million_dimensions"
done
make legacy_nested_lists
fails 9 '[(]limit value_bytes[)]; --limit value_bytes=N raises it$' inspect "$work/legacy_nested_lists"
run 1 verify "$work/legacy_nested_lists"
shows "$out" '; --limit value_bytes=N raises it$'
fails 9 'more than 1000 nested containers .limit pickle_depth.; --limit pickle_depth=N' inspect "$work/legacy_nested_lists" --limit value_bytes=1GB
make legacy_100000_tensors
run 0 inspect --json "$work/legacy_100000_tensors" --limit value_bytes=none
make tar_30000_tensors
run 0 inspect --json "$work/tar_30000_tensors"
fails 9 'more than 3[0-9]+ tensors: .*limit small_tensors; --limit small_tensors=N raises it$' inspect "$work/tar_30000_tensors" --limit small_tensors=30000
run 0 inspect --json "$work/tar_30000_tensors" --limit=small_tensors=none
fails 9 'more than 5 tensors .limit tensors.' inspect "$work/tar_30000_tensors" --limit tensors=5
run 0 inspect --json "$work/tar_30000_tensors" --limit tensors=5 --limit tensors=none

make index_hard_links # 500 names of one file
fails 9 'limit small_tensors' inspect "$work/index_hard_links"
make config_near_the_limit
fails 9 'limit modules, 1000; --limit modules=N raises it$' plan "$work/config_near_the_limit" --limit modules=1000
fails 9 '[(]limit config_bytes[)]; --limit config_bytes=N raises it$' plan "$work/config_near_the_limit" --limit config_bytes=10

# a config that asks for 8 bytes where the file has 1
mkdir "$work/small" "$work/wide"
cat >"$work/small/config.json" <<'END'
{"model_type": "bert", "architectures": ["BertModel"], "vocab_size": 60000, "hidden_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2,
 "intermediate_size": 64, "max_position_embeddings": 16}
END
run 0 init -q "$work/small/config.json" "$work/floats" --seed 1
run 0 convert -q "$work/floats" "$work/bytes" --dtype float8_e4m3fn
sed 's/"model_type"/"dtype": "float64", "model_type"/' "$work/small/config.json" >"$work/wide/config.json"
cp "$work/bytes/model.safetensors" "$work/wide"
fails 9 "in the config's dtype, .*the limit expanded_bytes, 33554432 .*; --limit expanded_bytes=N raises it$" load "$work/wide"
run 0 load -q "$work/wide" --limit expanded_bytes=none
run 0 load -q "$work/wide" --dtype float64

# a list of findings ends
make index_150000_keys
run 1 verify "$work/index_150000_keys"
shows "$out" '^more: more was found than is listed'
[ "$(wc -l <"$out")" -lt 10010 ] || fail "$last: $(wc -l <"$out") lines"

# ---- values that cannot be ------------------------------------------------------------------------------------
for value in '' rank rank= rank=0 rank=-1 rank=1GB rank=x =1 ranks=1 index_bytes=0 index_bytes=1XB index_bytes=-1; do
    run 2 inspect "$config" --limit "$value"
    silent "$out"
    shows "$err" '^heft inspect: --limit: .+'
    run 2 init "$config" "$work/dst" "--limit=$value" --json
    is_json
    shows "$out" '"status": "INVALID_ARG", .*"item": "--limit"'
done
run 2 shared --limit rank=1
run 0 inspect "$config" --limit index_bytes=1.5GiB --limit rank=99999999999

# ---- memory: a sample of the kinds, each with all its commands --------------------------------------------------
[ -n "$sanitized" ] && exit 0 # they have memory of their own
python3 "$source_dir/tests/cli/hostile.py" "$heft" --memory --only '^(st_(million_tensors|million_metadata|64_dimensions|9_dimensions)|legacy_(nested_lists|80000_tensors)|zip_(nones|grown_list|memoized|many_dicts|expanded_views|100000_tensors)|index_(million_keys_unordered|hard_links|metadata_tree)|config_(near_the_limit|wide_tree)|quantized_(fp8|torchao)|tar_30000_tensors)$' >"$out" ||
    fail "hostile.py: $(cat "$out")"
shows "$out" '^20 kinds, 0 failures$'
