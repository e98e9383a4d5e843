#!/usr/bin/env python3
"""Loading, initializing and saving: heft beside its peers and beside the machine's limits, in one run.

    python3 bench/run.py [--repeats 3] [--only PART] [--data DIR] [--out FILE.json] [--svg FILE.svg]

Needs torch, transformers, accelerate and safetensors (tests/interop/requirements.txt) and the built bench_load. Models are
made by `heft init` from examples/ in a temporary folder, or once in --data. Each run is a process of its own; what is compared takes
turns. Before each run a helper touches memory and gives it back, so that nobody pays for the first touch in a virtual machine.

Columns: the least and the median of heft's seconds, the same of what it is compared with, and the ratio of the medians (how many times
longer the other takes; for limits how much of the limit is reached).
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
BUILD = os.environ.get("HEFT_BUILD", os.path.join(ROOT, "build", "release"))
HEFT, BENCH = os.path.join(BUILD, "heft"), os.path.join(BUILD, "bench_load")
PEERS = [sys.executable, os.path.join(HERE, "peers.py")]
GB = 10**9


# ---- processes ---------------------------------------------------------------------------------------------------------------
def start(command, hold=False):
    environment = dict(os.environ, HF_HUB_OFFLINE="1", HF_HUB_DISABLE_PROGRESS_BARS="1")
    environment.pop("HEFT_BENCH_HOLD", None)
    if hold:
        environment["HEFT_BENCH_HOLD"] = "1"
    begun = time.perf_counter()
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    return process, begun


def finish(process, begun, command):
    line = process.stdout.readline()
    ready = time.perf_counter() - begun
    line = process.stdout.readline() if line == "ready\n" else ""
    if not line:
        process.wait()
        raise SystemExit(f"{' '.join(command)}: {process.stderr.read()[-800:]}")
    return dict(json.loads(line), wall=ready)


def run(command):
    process, begun = start(command)
    answer = finish(process, begun, command)
    process.communicate()
    return answer


def give_memory_back(bytes_wanted):
    subprocess.run([BENCH, "warm", str(bytes_wanted)], check=True)


# ---- files -------------------------------------------------------------------------------------------------------------------
def files_of(folder):
    return [os.path.join(folder, name) for name in sorted(os.listdir(folder)) if name.endswith((".safetensors", ".bin"))]


def make_cold(folder):
    for path in files_of(folder):
        fd = os.open(path, os.O_RDONLY)
        os.fdatasync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def make_warm(folder):
    for path in files_of(folder):
        with open(path, "rb", buffering=0) as file:
            while file.read(16 << 20):
                pass


def make_model(data, name, *options):
    folder = os.path.join(data, name)
    if not os.path.exists(os.path.join(folder, "config.json")):
        config = os.path.join(ROOT, "examples", "llama-1.1b", "config.json")
        subprocess.run([HEFT, "init", config, folder, "-q", *options], check=True)
    return folder


# ---- parts -------------------------------------------------------------------------------------------------------------------
def compare(rows, repeats, prepare=lambda: None):
    """rows: [(name, command, key)]; a list of runs by name, taking turns."""
    runs = {name: [] for name, _, _ in rows}
    for _ in range(repeats):
        for name, command, key in rows:
            give_memory_back(9 * GB)
            prepare()
            answer = run(command)
            runs[name].append(dict(answer, value=answer[key]))
    return runs


def part_warm(m, repeats):
    runs = compare([
        ("heft", [BENCH, "load", "map", "auto", m["bf16"]], "wall"),
        ("transformers, import included", [*PEERS, "transformers", m["bf16"]], "wall"),
        ("safetensors, import not counted", [*PEERS, "safetensors", m["bf16"]], "seconds"),
        ("torch.load(mmap), import not counted", [*PEERS, "torch_mmap", m["bin16"]], "seconds"),
    ], repeats, lambda: (make_warm(m["bf16"]), make_warm(m["bin16"])))
    return "warm, mapped, every byte touched, process start to ready", runs, "page tables of the page cache"


def part_copy(m, repeats):
    size = sum(os.path.getsize(f) for f in files_of(m["bf16"]))
    runs = compare([
        ("heft", [BENCH, "load", "copy", "auto", m["bf16"]], "seconds"),
        ("limit: memcpy into huge pages", [BENCH, "memcpy", str(size)], "seconds"),
        ("torch.load", [*PEERS, "torch_load", m["bin16"]], "seconds"),
    ], repeats, lambda: (make_warm(m["bf16"]), make_warm(m["bin16"])))
    return "warm, copied", runs, "memory bandwidth"


def part_cold(m, repeats):
    path = files_of(m["bf16"])[0]
    runs = compare([
        ("heft, mapped", [BENCH, "load", "map", "auto", m["bf16"]], "seconds"),
        ("heft, copied", [BENCH, "load", "copy", "auto", m["bf16"]], "seconds"),
        ("limit: buffered reads", [BENCH, "read", "buffered", path], "seconds"),
        ("limit: direct reads", [BENCH, "read", "direct", path], "seconds"),
        ("transformers", [*PEERS, "transformers", m["bf16"]], "seconds"),
        ("safetensors", [*PEERS, "safetensors", m["bf16"]], "seconds"),
    ], repeats, lambda: make_cold(m["bf16"]))
    return "cold, every byte", runs, "the disk"


def part_cast(m, repeats):
    runs = compare([
        ("heft", [BENCH, "load", "map", "float32", m["bf16"]], "seconds"),
        ("transformers, import not counted", [*PEERS, "transformers_f32", m["bf16"]], "seconds"),
        ("accelerate, import not counted", [*PEERS, "accelerate", m["bf16"]], "seconds"),
    ], repeats, lambda: make_warm(m["bf16"]))
    return "bfloat16 to float32 while loading, warm", runs, "memory bandwidth: page clearing and writing"


def part_into(m, repeats):
    runs = compare([
        ("heft", [BENCH, "into", m["bin32"]], "seconds"),
        ("load_sharded_checkpoint", [*PEERS, "load_sharded", m["bin32"]], "seconds"),
        ("classic: build, load, copy", [*PEERS, "classic", m["bin32"]], "seconds"),
    ], repeats, lambda: make_warm(m["bin32"]))
    return "sharded .bin into a float32 model, warm", runs, "memory bandwidth"


def part_init(m, repeats):
    runs = compare([
        ("heft", [BENCH, "init", m["bf16"]], "seconds"),
        ("transformers from_config", [*PEERS, "from_config", m["bf16"]], "seconds"),
    ], repeats)
    return "random initialization, 1.1 billion float32", runs, "arithmetic of the generator"


def part_save(m, repeats):
    folder = tempfile.mkdtemp(dir=m["data"])
    dst = os.path.join(folder, "saved")
    size = sum(os.path.getsize(f) for f in files_of(m["bf16"]))
    source = files_of(m["bf16"])[0]

    def prepare():
        shutil.rmtree(dst, ignore_errors=True)
        os.makedirs(folder, exist_ok=True)
        subprocess.run(["sync"], check=True)
        make_warm(m["bf16"])

    runs = {"heft, fsync included": [], "limit: dd conv=fsync": [], "save_pretrained and fsync": []}
    for _ in range(repeats):
        prepare()
        answer = run([BENCH, "save", m["bf16"], dst, "200000000"])
        runs["heft, fsync included"].append(dict(answer, value=answer["seconds"]))
        prepare()
        begun = time.perf_counter()
        subprocess.run(["dd", f"if={source}", f"of={os.path.join(folder, 'dd')}", "bs=16M", "conv=fsync"], check=True, stderr=subprocess.DEVNULL)
        seconds = time.perf_counter() - begun
        runs["limit: dd conv=fsync"].append({"value": seconds, "seconds": seconds})
        os.remove(os.path.join(folder, "dd"))
        prepare()
        answer = run([*PEERS, "save", m["bf16"], dst])
        runs["save_pretrained and fsync"].append(dict(answer, value=answer["seconds"]))
    shutil.rmtree(folder)
    return f"saving {size / GB:.1f} GB in 200 MB shards", runs, "the disk"


def part_place(m, repeats):
    folder = tempfile.mkdtemp(dir=m["data"])
    cpu = str(600_000_000)

    def prepare():
        shutil.rmtree(folder, ignore_errors=True)
        os.makedirs(folder)
        make_warm(m["bf16"])

    runs = compare([
        ("heft, Accelerate's map", [BENCH, "place", "auto", cpu, m["bf16"]], "seconds"),
        ("heft, best", [BENCH, "place", "best", cpu, m["bf16"]], "seconds"),
        ("accelerate, import not counted", [*PEERS, "acc_place", m["bf16"], folder], "seconds"),
    ], repeats, prepare)
    shutil.rmtree(folder)
    return "2.2 GB with 0.6 GB for the processor: plan, load, ready; warm", runs, "copying what the processor gets"


def fio(path, bytes_wanted):
    """Sequential direct reads of 16 MB by four jobs, each of its own part, as heft asks for them; None without fio."""
    if not shutil.which("fio"):
        return None
    part = bytes_wanted // 4 // (16 << 20) * (16 << 20)
    done = subprocess.run(
        ["fio", "--name=read", f"--filename={path}", "--rw=read", "--bs=16M", "--direct=1", "--ioengine=psync", "--numjobs=4", "--thread",
         f"--size={part}", f"--offset_increment={part}", "--group_reporting", "--output-format=json"],
        check=True, capture_output=True, text=True)
    read = json.loads(done.stdout)["jobs"][0]["read"]
    return {"seconds": read["runtime"] / 1000 * bytes_wanted / read["io_bytes"], "read": read["io_bytes"]}


def passes(m, repeats, cold):
    """Takes turns; the limit is measured right behind heft, on as many bytes."""
    folder = tempfile.mkdtemp(dir=m["data"])
    cpu, path, what = str(600_000_000), files_of(m["bf16"])[0], "coldpass" if cold else "pass"
    rows = (
        ("heft, Accelerate's map", [BENCH, what, "auto", cpu, m["bf16"]]),
        ("heft, best", [BENCH, what, "best", cpu, m["bf16"]]),
        ("accelerate's hooks", [*PEERS, "acc_" + what, m["bf16"], folder]),
        ("the same in forward() of a token", [*PEERS, "acc_" + what.replace("pass", "forward"), m["bf16"], folder]),
    )
    runs = {name: [] for name, _ in rows}
    for _ in range(repeats):
        for name, command in rows:
            give_memory_back(9 * GB)
            shutil.rmtree(folder, ignore_errors=True)
            os.makedirs(folder)
            make_warm(m["bf16"])
            answer = run(command)
            runs[name].append(dict(answer, value=answer["seconds"]))
            if cold and name == "heft, Accelerate's map":
                make_cold(m["bf16"])
                limit = fio(path, answer["bytes"])
                if limit:
                    runs.setdefault("limit: fio, 16 MB, direct", []).append(dict(limit, value=limit["seconds"]))
    shutil.rmtree(folder)
    return runs


def part_pass(m, repeats):
    return "one pass over the blocks of it, warm", passes(m, repeats, False), "page tables of the page cache"


def part_coldpass(m, repeats):
    return "one pass over the blocks of it, those on the disk cold", passes(m, repeats, True), "the disk"


def together(command, count):
    begun, processes = time.perf_counter(), []
    for _ in range(count):
        processes.append(start(command, hold=True))
    answers = [finish(process, began, command) for process, began in processes]
    wall = time.perf_counter() - begun
    memory = []
    for process, _ in processes:  # while all of them are there
        process.stdin.write("\n")
        process.stdin.flush()
        process.stdout.readline()
        memory.append(json.loads(process.stdout.readline()))
    for process, _ in processes:
        process.communicate()
    return {
        "value": wall,
        "seconds": max(a["seconds"] for a in answers),
        "pss_sum": sum(a["pss"] for a in memory),
        "private_most": max(a["private"] for a in memory),
    }


def part_many(m, repeats):
    rows = [
        ("heft, float32, 1 process", [BENCH, "load", "shared", "float32", m["bf16"]], 1),
        ("heft, float32, 4 processes", [BENCH, "load", "shared", "float32", m["bf16"]], 4),
        ("heft, bfloat16, 4 processes", [BENCH, "load", "map", "auto", m["bf16"]], 4),
        ("transformers, bfloat16, 4 processes", [*PEERS, "transformers", m["bf16"]], 4),
    ]
    runs = {name: [] for name, _, _ in rows}
    for _ in range(repeats):
        for name, command, count in rows:
            give_memory_back(9 * GB)
            make_warm(m["bf16"])
            runs[name].append(together(command, count))
    return "several processes on one host, start to ready", runs, "making the shared copy: 4 KiB pages, unless the kernel has huge ones for shared memory"


PARTS = {
    "warm": part_warm, "copy": part_copy, "cold": part_cold, "cast": part_cast, "into": part_into, "init": part_init,
    "save": part_save, "many": part_many, "place": part_place, "pass": part_pass,
    "coldpass": part_coldpass,
}


# ---- what is printed ---------------------------------------------------------------------------------------------------------
def memory_text(runs):
    last = runs[-1]
    if "pss_sum" in last:
        return f"PSS of all {last['pss_sum'] / GB:.2f} GB, private at most {last['private_most'] / 1e6:.0f} MB"
    text = f"peak {last['peak_rss'] / GB:.2f} GB, anonymous {last['anon'] / GB:.2f}" if "peak_rss" in last else ""
    if last.get("read") or last.get("written"):
        text += f"; disk: read {last.get('read', 0) / GB:.2f} GB, written {last.get('written', 0) / GB:.2f}"
    return text


def print_part(title, runs, bound):
    print(f"\n### {title}\n\nBound by: {bound}.\n\n| | least s | median s | ratio | memory |\n| --- | --- | --- | --- | --- |")
    own = statistics.median(r["value"] for r in next(iter(runs.values())))
    for i, (name, all_runs) in enumerate(runs.items()):
        values = [r["value"] for r in all_runs]
        middle = statistics.median(values)
        ratio = "" if i == 0 else f"{middle / own:.2f}"
        print(f"| {name} | {min(values):.3f} | {middle:.3f} | {ratio} | {memory_text(all_runs)} |")
    sys.stdout.flush()


def draw(results, path):
    """Bars to scale within each part: the medians."""
    lines, y = [], 10
    for title, runs, _ in results:
        lines.append(f'<text x="10" y="{y + 14}" class="title">{title}</text>')
        y += 24
        middles = {name: statistics.median(r["value"] for r in all_runs) for name, all_runs in runs.items()}
        most = max(middles.values())
        for name, value in middles.items():
            kind = "own" if name.startswith("heft") else "limit" if name.startswith("limit") else "peer"
            lines.append(f'<text x="280" y="{y + 12}" text-anchor="end">{name}</text>')
            lines.append(f'<rect x="290" y="{y}" width="{max(value / most * 380, 1):.1f}" height="15" class="{kind}"/>')
            lines.append(f'<text x="{295 + value / most * 380:.1f}" y="{y + 12}">{value:.3f} s</text>')
            y += 19
        y += 12
    style = (
        "text{font:11px sans-serif;fill:#222}.title{font-weight:bold;font-size:13px}.own{fill:#2a7f62}.peer{fill:#b8b8b8}.limit{fill:#6b8fd6}"
        "rect.back{fill:#fff}@media(prefers-color-scheme:dark){text{fill:#ddd}rect.back{fill:#161616}.peer{fill:#666}}"
    )
    with open(path, "w", encoding="utf-8") as file:
        file.write(f'<svg xmlns="http://www.w3.org/2000/svg" width="760" height="{y}" viewBox="0 0 760 {y}"><style>{style}</style>')
        file.write(f'<rect class="back" width="760" height="{y}"/>' + "".join(lines) + "</svg>\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", action="append", choices=PARTS)
    parser.add_argument("--data")
    parser.add_argument("--out")
    parser.add_argument("--svg")
    options = parser.parse_args()
    data = options.data or tempfile.mkdtemp(prefix="heft-bench-")
    os.makedirs(data, exist_ok=True)
    try:
        m = {
            "data": data,
            "bf16": make_model(data, "bf16"),
            "bin16": make_model(data, "bin16", "--format", "bin"),
            "bin32": make_model(data, "bin32", "--format", "bin", "--dtype", "float32", "--max-shard-size", "400MB"),
        }
        results = []
        for name in options.only or PARTS:
            results.append(PARTS[name](m, options.repeats))
            print_part(*results[-1])
        if options.out:
            with open(options.out, "w", encoding="utf-8") as file:
                json.dump([{"part": title, "bound": bound, "runs": runs} for title, runs, bound in results], file, indent=1)
        if options.svg:
            draw(results, options.svg)
    finally:
        if not options.data:
            shutil.rmtree(data)


if __name__ == "__main__":
    main()
