#!/usr/bin/env python3
"""heft.load_checkpoint_and_dispatch() compared with Accelerate's, in one run: time to ready, passes over what is on disk, bytes written.

    PYTHONPATH=build/release/python python3 bench/python_dispatch.py [--repeats 3] [--only PART] [--data DIR] [--out FILE.json]

Needs what run.py needs, and the package: built with -DHEFT_BUILD_PYTHON=ON, or installed. A Llama of 1.1 billion parameters in bfloat16 (2.2 GB,
made by `heft init`, or the one in DATA/llama-1b) with 0.6 GB of it on the CPU. Cases take turns, each in a new process; its imports are done before the
clock starts, and for the passes the dispatch, too. Before each run a helper touches memory and frees it, so that no run pays for the first
touch in a virtual machine (run.py). Cold: the page cache has nothing of the checkpoint and the offload folder.

    place      load_checkpoint_and_dispatch(), to ready
    pass       the hooks of one pass, module by module, without the computation between them
    forward    one token
    coldpass, coldforward, castpass, coldcastpass: the same cold, and with dtype=float32
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time

import run

HERE = os.path.abspath(__file__)
GB = run.GB
CPU_BYTES = 600_000_000


# ---- a case, in a process of its own -----------------------------------------------------------------------------------------
def status(key, path="/proc/self/status"):
    with open(path) as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key))


def disk_bytes(key):
    with open("/proc/self/io") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(key))


def skeleton(path):
    import accelerate
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with accelerate.init_empty_weights():
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path), dtype=torch.bfloat16)
    model.tie_weights()
    return model.eval()


def placing(how, path, folder, dtype):
    """Return what loads and dispatches."""
    import accelerate
    import torch

    model = skeleton(path)
    kind = getattr(torch, dtype)
    device_map = accelerate.infer_auto_device_map(
        model, max_memory={"cpu": CPU_BYTES}, no_split_module_classes=["LlamaDecoderLayer"], dtype=torch.bfloat16)
    if how == "heft":
        import heft

        load = heft.load_checkpoint_and_dispatch
    else:
        load = accelerate.load_checkpoint_and_dispatch
    return lambda: load(model, path, device_map=device_map, offload_folder=folder, dtype=kind)


def one_pass(model):
    """The hooks that forward() would call."""
    for module in model.modules():
        hook = getattr(module, "_hf_hook", None)
        if hook is not None:
            hook.pre_forward(module)
            hook.post_forward(module, None)


def forward(model):
    import torch

    with torch.inference_mode():
        return float(model(input_ids=torch.ones((1, 1), dtype=torch.long), use_cache=False).logits.double().sum())


def case(part, how, path, folder):
    """Print one line of JSON."""
    import transformers.models.llama.modeling_llama  # noqa: F401 - not the loader's work

    call = placing(how, path, folder, "float32" if "cast" in part else "bfloat16")
    if part != "place":
        model = call()
        run_one = forward if part.endswith("forward") else one_pass
        run_one(model)  # what is on the CPU has its pages then, and the order is known
        if part.startswith("cold"):
            run.make_cold(path)
            for name in os.listdir(folder):
                make_file_cold(os.path.join(folder, name))
        call = lambda: run_one(model)  # noqa: E731
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the highest resident size is that of now
    before, written, read = status("VmRSS:"), disk_bytes("write_bytes:"), disk_bytes("read_bytes:")
    begun, cpu = time.perf_counter(), time.process_time()
    result = call()
    seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
    print("ready", flush=True)
    print(json.dumps({
        "seconds": seconds, "cpu": cpu, "peak_rss": status("VmHWM:") - before, "written": disk_bytes("write_bytes:") - written,
        "read": disk_bytes("read_bytes:") - read, "result": result if isinstance(result, float) else None}), flush=True)


def make_file_cold(path):
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


# ---- parts -------------------------------------------------------------------------------------------------------------------
TITLES = {
    "place": "2.2 GB with 0.6 GB for the CPU, to ready, warm",
    "pass": "hooks of a pass, warm",
    "coldpass": "hooks of a pass, cold",
    "castpass": "hooks of a pass, cast to float32, warm",
    "coldcastpass": "hooks of a pass, cast to float32, cold",
    "forward": "one token, warm",
    "coldforward": "one token, cold",
}


def compare(part, path, data, repeats):
    runs = {"heft": [], "accelerate": []}
    for _ in range(repeats):
        for how in runs:
            folder = tempfile.mkdtemp(dir=data)
            run.give_memory_back(9 * GB)
            run.make_warm(path)
            runs[how].append(run.run([sys.executable, HERE, "case", part, how, path, folder]))
            runs[how][-1]["files"] = len(os.listdir(folder))
            shutil.rmtree(folder)
    results = {r["result"] for rs in runs.values() for r in rs}
    if len(results) > 1:
        raise SystemExit(f"{part}: the results differ: {results}")
    return runs


def print_table(part, runs):
    base = statistics.median(r["seconds"] for r in runs["heft"])
    print(f"\n{TITLES[part]}")
    print(f"{'':12}{'min s':>9}{'median s':>10}{'times':>8}{'cpu s':>8}{'memory MB':>11}{'read MB':>9}{'written MB':>12}{'files':>7}")
    for name, rs in runs.items():
        middle = statistics.median(r["seconds"] for r in rs)
        most = {key: max(r[key] for r in rs) for key in ("peak_rss", "read", "written", "files")}
        print(f"{name:12}{min(r['seconds'] for r in rs):9.3f}{middle:10.3f}{middle / base:8.2f}{statistics.median(r['cpu'] for r in rs):8.2f}"
              f"{most['peak_rss'] / 1e6:11.0f}{most['read'] / 1e6:9.0f}{most['written'] / 1e6:12.1f}{most['files']:7}", flush=True)


def main():
    if sys.argv[1:2] == ["case"]:
        case(*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=TITLES, action="append")
    parser.add_argument("--data")
    parser.add_argument("--out")
    options = parser.parse_args()
    data = options.data or tempfile.mkdtemp(prefix="heft-bench-")
    os.makedirs(data, exist_ok=True)
    path = os.path.join(data, "llama-1b")
    if not os.path.exists(os.path.join(path, "config.json")):
        path = run.make_model(data, "bf16", "--dtype", "bfloat16")
    answers = {}
    try:
        for part in options.only or TITLES:
            answers[part] = compare(part, path, data, options.repeats)
            print_table(part, answers[part])
    finally:
        if not options.data:
            shutil.rmtree(data)
    if options.out:
        with open(options.out, "w") as file:
            json.dump(answers, file, indent=1)


if __name__ == "__main__":
    main()
