"""One case of another library in a separate process; prints "ready" and a line of JSON, as bench_load does.

    peers.py CASE PATH [DST]

Cases: transformers, transformers_f32, safetensors, torch_load, torch_mmap, classic, load_sharded, accelerate, from_config, save;
acc_place, acc_pass, acc_coldpass, acc_forward and acc_coldforward: DST is an offload folder, the budget of cpu is 0.6 GB.
`seconds` does not include imports.
"""

import json, os, sys, time

CASE, PATH = sys.argv[1], sys.argv[2]
os.environ["HF_HUB_OFFLINE"] = "1"


def status(key, path="/proc/self/status"):
    for line in open(path):
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    return 0


import torch  # noqa: E402

torch.set_num_threads(os.cpu_count())


def touch(tensors):
    """One byte of each page, as every engine's first use would."""
    total = 0
    for tensor in tensors:
        flat = tensor.detach().contiguous().view(-1).view(torch.uint8)
        total += int(flat[::4096].sum())
    return total


def weights(folder):
    return sorted(os.path.join(folder, f) for f in os.listdir(folder) if f.endswith((".bin", ".safetensors")))


def model_class():
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM


def from_pretrained(**kwargs):
    model = model_class().from_pretrained(PATH, **kwargs)
    touch(model.state_dict().values())
    return model


def disk_bytes(key):
    return status(key, "/proc/self/io") // 1024


def acc_place():
    """Weights that are not on the CPU are copied into the offload folder."""
    import accelerate

    with accelerate.init_empty_weights():
        model = model_class().from_config(CONFIG, dtype=torch.bfloat16)
    model.tie_weights()
    placed = accelerate.infer_auto_device_map(
        model, max_memory={"cpu": 600_000_000}, no_split_module_classes=["LlamaDecoderLayer"], dtype=torch.bfloat16)
    return accelerate.load_checkpoint_and_dispatch(model, PATH, device_map=placed, offload_folder=sys.argv[3], dtype=torch.bfloat16)


def make_cold(*folders):
    for folder in folders:
        for name in os.listdir(folder):
            fd = os.open(os.path.join(folder, name), os.O_RDONLY)
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


def acc_pass():
    """The hooks that forward() would call, module by module, without the computation between them."""
    for _, module in MODEL.named_modules():
        hook = getattr(module, "_hf_hook", None)
        if hook is not None:
            hook.pre_forward(module)  # copies out of the folder's mapping
            hook.post_forward(module, None)


def acc_forward():
    """One token through the same hooks."""
    with torch.inference_mode():
        return MODEL(input_ids=torch.ones((1, 1), dtype=torch.long), use_cache=False)


def run():
    if CASE in ("acc_forward", "acc_coldforward"):
        return acc_forward()
    if CASE == "acc_place":
        return acc_place()
    if CASE in ("acc_pass", "acc_coldpass"):
        return acc_pass()
    if CASE == "transformers":
        return from_pretrained()
    if CASE == "transformers_f32":
        return from_pretrained(dtype=torch.float32)
    if CASE == "safetensors":
        return touch([t for f in weights(PATH) for t in LOAD_FILE(f).values()])
    if CASE in ("torch_load", "torch_mmap"):
        mmap = CASE == "torch_mmap"
        return touch([t for f in weights(PATH) for t in torch.load(f, mmap=mmap, weights_only=True).values()])
    if CASE == "classic":  # build, load, copy
        model = model_class().from_config(CONFIG)
        state = {}
        for file in weights(PATH):
            state.update(LOAD_FILE(file) if file.endswith(".safetensors") else torch.load(file, weights_only=True))
        model.load_state_dict(state)
        return model
    if CASE == "load_sharded":
        return LOAD_SHARDED(MODEL, PATH, strict=True)
    if CASE == "accelerate":
        import accelerate

        with accelerate.init_empty_weights():
            model = model_class().from_config(CONFIG)
        model = accelerate.load_checkpoint_and_dispatch(model, PATH, device_map={"": "cpu"}, dtype=torch.float32)
        touch(model.state_dict().values())
        return model
    if CASE == "from_config":
        return model_class().from_config(CONFIG, dtype=torch.float32)
    if CASE == "save":
        MODEL.save_pretrained(sys.argv[3], max_shard_size="200MB")
        for name in os.listdir(sys.argv[3]):
            fd = os.open(os.path.join(sys.argv[3], name), os.O_RDONLY)
            os.fsync(fd)
            os.close(fd)
        return None
    sys.exit(f"no case {CASE}")


if CASE in ("safetensors", "classic"):
    from safetensors.torch import load_file as LOAD_FILE
if CASE in ("classic", "load_sharded", "from_config", "accelerate") or CASE.startswith("acc_"):
    from transformers import AutoConfig

    CONFIG = AutoConfig.from_pretrained(PATH)
if CASE == "load_sharded":
    from transformers.trainer_utils import load_sharded_checkpoint as LOAD_SHARDED

    MODEL = model_class().from_config(CONFIG, dtype=torch.float32)
if CASE.startswith("acc_") and CASE != "acc_place":
    MODEL = acc_place()
if CASE.startswith("acc_cold"):
    make_cold(PATH, sys.argv[3])
if CASE == "acc_place":
    import accelerate  # noqa: F401
if CASE == "save":
    MODEL = from_pretrained()
elif CASE.startswith("transformers") or CASE in ("classic", "from_config"):
    import transformers.models.llama.modeling_llama  # noqa: F401 - not the loader's work

before = status("RssAnon:")
read, written = disk_bytes("read_bytes:"), disk_bytes("write_bytes:")
start = time.perf_counter()
result = run()
seconds = time.perf_counter() - start
print("ready", flush=True)
print(json.dumps({
    "seconds": seconds, "peak_rss": status("VmHWM:"), "anon": status("RssAnon:"), "anon_before": before,
    "pss": status("Pss:", "/proc/self/smaps_rollup"), "private": status("Private_Dirty:", "/proc/self/smaps_rollup"),
    "read": disk_bytes("read_bytes:") - read, "written": disk_bytes("write_bytes:") - written,
}), flush=True)
if os.environ.get("HEFT_BENCH_HOLD"):
    for _ in sys.stdin:
        print("ready")
        print(json.dumps({"pss": status("Pss:", "/proc/self/smaps_rollup"),
                          "private": status("Private_Dirty:", "/proc/self/smaps_rollup")}), flush=True)
