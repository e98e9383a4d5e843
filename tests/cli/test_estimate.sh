#!/usr/bin/env bash
# test_estimate - the table of dtypes against accelerate estimate-memory's nine, cell by cell; where they differ, why.
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"

cat >"$work/estimate.py" <<'END'
import json
import subprocess
import sys

heft, golden_path, folder = sys.argv[1:]
golden = json.load(open(golden_path))
# Bytes of integer buffers, which heft casts to nothing: position_ids and token_type_ids.
INTEGERS = {"bert-base-uncased": 2 * 512 * 8}
# A tied tensor counts once: Transformers' own count is in the file too.
TIED = {"t5-small", "t5-11b"}
cells = 0
for name, model in golden.items():
    assert (model["total_if_tied"] != model["raw"][0][2]) == (name in TIED), name
    config = dict(model["config"], architectures=[model["class"]])
    with open(f"{folder}/config.json", "w") as file:
        json.dump(config, file)
    done = subprocess.run([heft, "plan", f"{folder}/config.json", "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    plan = json.loads(done.stdout)
    rows = {row["dtype"]: row for row in plan["dtypes"]}
    assert set(rows) == {"float32", "bfloat16", "float16", "int8", "int4"}
    assert rows["bfloat16"] == dict(rows["float16"], dtype="bfloat16")
    for dtype, largest, total, training in model["raw"]:
        part = {"float32": 1, "float16": 0.5, "int8": 0.25, "int4": 0.125}[dtype]
        more = INTEGERS.get(name, 0) * (1 - part)
        if name in TIED:
            total = model["total_if_tied"] * part
        # in the largest block too: BERT's embeddings have them
        wanted = {"total_bytes": total + more, "largest_block_bytes": largest + more, "training_bytes": None}
        if training["step"] >= 0:
            assert training["step"] == max(training.values()) or dtype == "float16", name
            wanted["training_bytes"] = 4 * wanted["total_bytes"]
            if name not in TIED and not more:
                assert wanted["training_bytes"] == training["step"], (name, dtype)
        for key, value in wanted.items():
            assert rows[dtype][key] == value, (name, dtype, key, rows[dtype][key], value)
            cells += 1
    assert plan["largest_block"]["bytes"] == model["largest_layer_names"] or name in TIED, name
assert cells == 9 * 4 * 3, cells

# A head counts, unlike there: it is what gets loaded. A tied one costs nothing.
for name, more in (("llama-7b", 32000 * 4096 * 4), ("gpt2", 0)):
    config = dict(golden[name]["config"], architectures=[{"llama-7b": "LlamaForCausalLM", "gpt2": "GPT2LMHeadModel"}[name]])
    with open(f"{folder}/config.json", "w") as file:
        json.dump(config, file)
    plan = json.loads(subprocess.run([heft, "plan", f"{folder}/config.json", "--json"], capture_output=True, text=True).stdout)
    assert plan["dtypes"][0]["total_bytes"] == golden[name]["raw"][0][2] + more, name
END
python3 "$work/estimate.py" "$heft" "$source_dir/tests/data/device_maps/estimate_memory.json" "$work" || fail "differs"
