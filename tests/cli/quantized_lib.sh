#!/usr/bin/env bash
# quantized_lib.sh - what the tests of quantized checkpoints share; sourced after lib.sh.

# equal FILE FILE: names, dtypes, shapes and bytes of the tensors; the rest of the header may differ
equal() {
    python3 - "$1" "$2" <<'END_OF_PYTHON'
import json, struct, sys
def read(path):
    blob = open(path, "rb").read()
    length = struct.unpack("<Q", blob[:8])[0]
    header = json.loads(blob[8:8 + length])
    header.pop("__metadata__", None)
    return {name: (t["dtype"], t["shape"], blob[8 + length + t["data_offsets"][0]:8 + length + t["data_offsets"][1]])
            for name, t in header.items()}
left, right = read(sys.argv[1]), read(sys.argv[2])
assert left.keys() == right.keys(), sorted(left.keys() ^ right.keys())
different = [name for name in left if left[name] != right[name]]
assert not different, different
END_OF_PYTHON
}

# edit FOLDER EXPRESSION: change config.json, which is `c`, and the tensors t: {name: (dtype, shape, bytes)}
edit() {
    PYTHONPATH=$(dirname "${BASH_SOURCE[0]}") PYTHONDONTWRITEBYTECODE=1 python3 - "$1" "$2" <<'END_OF_PYTHON'
import json, struct, sys
import quantized
folder = sys.argv[1]
blob = open(folder + "/model.safetensors", "rb").read()
length = struct.unpack("<Q", blob[:8])[0]
header = json.loads(blob[8:8 + length])
header.pop("__metadata__", None)
t = {n: (v["dtype"], v["shape"], blob[8 + length + v["data_offsets"][0]:8 + length + v["data_offsets"][1]])
     for n, v in header.items()}
c = json.load(open(folder + "/config.json"))
exec(sys.argv[2])
quantized.write(folder + "/model.safetensors", t)
json.dump(c, open(folder + "/config.json", "w"))
END_OF_PYTHON
}
