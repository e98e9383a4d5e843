#!/usr/bin/env python3
"""Opening (all names and shapes, no tensor byte): heft compared with other libraries in the same run.

    python3 bench/open.py build/release/bench_open

Needs torch and safetensors (tests/interop/requirements.txt). Files are made in a temporary folder and removed. Each
figure is the minimum of several runs in one process, in milliseconds; a ratio is the other library's time divided by heft's.
"""
import json, os, subprocess, sys, tempfile, time
import torch
from safetensors import safe_open

BENCH = sys.argv[1] if len(sys.argv) > 1 else "build/release/bench_open"


def heft(path):
    ms, count, peak = subprocess.run([BENCH, path], check=True, capture_output=True, text=True).stdout.split()[:3]
    return float(ms), int(count), int(peak)


def least(call, runs=5):
    best = 1e99
    for _ in range(runs):
        start = time.perf_counter()
        call()
        best = min(best, (time.perf_counter() - start) * 1e3)
    return best


def entry(name, begin):
    return f'"{name}":{{"dtype":"F32","shape":[2,3],"data_offsets":[{begin},{begin + 24}]}}'


def write_safetensors(path, names, sparse=0):
    items = [entry(n, 24 * i) for i, n in enumerate(names)]
    size = 24 * len(names)
    if sparse:
        items.append(f'"big":{{"dtype":"U8","shape":[{sparse}],"data_offsets":[{size},{size + sparse}]}}')
    head = ("{" + ",".join(items) + "}").encode()
    head += b" " * (-len(head) % 8)
    with open(path, "wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        file.truncate(8 + len(head) + size + sparse)


def list_safetensors(path):
    with safe_open(path, "pt") as file:
        return [(k, file.get_slice(k).get_shape()) for k in file.keys()]


def list_with_json(index):
    """Names and shapes with nothing but Python's json: shapes are in the shards' headers."""
    folder, found = os.path.dirname(index), []
    for shard in sorted(set(json.load(open(index))["weight_map"].values())):
        with open(os.path.join(folder, shard), "rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        found += [(k, v["shape"]) for k, v in header.items()]
    return found


def main():
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        names = sorted(f"model.layers.{i // 10}.block.{i % 10}.weight" for i in range(100_000))  # as writers lay them out
        one = os.path.join(folder, "one.safetensors")
        write_safetensors(one, names)
        rows.append(("100,000 tensors, one safetensors file", heft(one), "safe_open", least(lambda: list_safetensors(one))))

        many = os.path.join(folder, "many")
        os.mkdir(many)
        shard = [f"model-{s + 1:05d}-of-01000.safetensors" for s in range(1000)]
        for s in range(1000):
            write_safetensors(os.path.join(many, shard[s]), names[100 * s : 100 * s + 100])
        index = os.path.join(many, "model.safetensors.index.json")
        with open(index, "w") as file:
            json.dump({"metadata": {"total_size": 2_400_000}, "weight_map": {n: shard[i // 100] for i, n in enumerate(names)}}, file)
        rows.append(("100,000 keys, the index alone", heft(index), "json", least(lambda: json.load(open(index)))))
        shards = heft(many)
        rows.append(("100,000 tensors, index and 1,000 shards", shards, "json, index and headers", least(lambda: list_with_json(index), 3)))
        rows.append(("", shards, "safe_open of each", least(lambda: [list_safetensors(os.path.join(many, s)) for s in shard], 3)))
        rows.append(("", shards, "heft, one file", rows[0][1][0]))

        pickle = os.path.join(folder, "p.bin")
        torch.save({f"layer.{i}.weight": torch.zeros(2, 3) for i in range(2000)}, pickle)
        rows.append((".bin with 2,000 records", heft(pickle), "torch.load(mmap=True)", least(lambda: torch.load(pickle, mmap=True, weights_only=True))))

        sparse = os.path.join(folder, "sparse.safetensors")
        write_safetensors(sparse, names[:100], 20 << 30)
        rows.append(("20 GB sparse file, 101 tensors", heft(sparse), "safe_open", least(lambda: list_safetensors(sparse))))
    print(f"{'opening':42}{'heft ms':>9}{'heap MB':>9}   {'peer':26}{'ms':>9}{'ratio':>8}")
    for what, (ms, _, peak), peer, other in rows:
        print(f"{what:42}{ms:9.2f}{peak / 1e6:9.1f}   {peer:26}{other:9.2f}{other / ms:8.2f}")


main()
