"""One case of another library that runs a model, in a separate process; prints "ready" and a line of JSON, as bench_run does.

    run_peers.py gguf MODEL FILE                          write a Llama in bfloat16 as GGUF (package gguf)
    run_peers.py llamacpp FILE PROMPT STEPS REPEATS       seconds of prompts of random ids and of single tokens (package llama-cpp-python)
    run_peers.py transformers MODEL PROMPT STEPS REPEATS  the same
    run_peers.py encode MODEL SEQUENCES TOKENS REPEATS    seconds of passes of an encoder
    run_peers.py accelerate MODEL FOLDER BYTES STEPS      BYTES of the weights on the CPU, the rest in an offload folder, cold before each token
    run_peers.py airllm MODEL FOLDER STEPS                layers in a folder of its own, cold before each token

Every case runs in the Python that has its package. Loading and imports are not counted. All use every CPU.
"""

import json, os, random, sys, time

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", HF_HUB_DISABLE_PROGRESS_BARS="1", TOKENIZERS_PARALLELISM="false")
THREADS = os.cpu_count()
SEEN_FIRST, SEEN_LAST = 5, 3000  # ids that every vocabulary here has


def status(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key))


def disk_bytes():
    with open("/proc/self/io") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("read_bytes:"))


def random_ids(count):
    return [random.randint(SEEN_FIRST, SEEN_LAST) for _ in range(count)]


def timed(call):
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def answer(**facts):
    print("ready", flush=True)
    print(json.dumps(dict(facts, peak_rss=status("VmHWM:"), anon=status("RssAnon:"))), flush=True)


def make_cold(folder):
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        if os.path.isdir(path):
            make_cold(path)
            continue
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


# ---- llama.cpp ---------------------------------------------------------------------------------------------------------------
GGUF_NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}


def gguf_name(name):
    module = name.removesuffix(".weight")
    if module in GGUF_NAMES:
        return GGUF_NAMES[module] + ".weight"
    _, _, layer, part = module.split(".", 3)
    return f"blk.{layer}.{GGUF_NAMES[part]}.weight"


def pairs_together(matrix, heads):
    """Rows of a head as llama.cpp rotates them: 0, w/2, 1, w/2 + 1, ... instead of halves."""
    rows, columns = matrix.shape
    return matrix.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write_gguf(model, path):
    import gguf
    import numpy

    with open(os.path.join(model, "config.json")) as file:
        config = json.load(file)
    file = os.path.join(model, "model.safetensors")
    with open(file, "rb") as opened:
        header_bytes = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(header_bytes))
    data = numpy.memmap(file, dtype=numpy.uint8, mode="r", offset=8 + header_bytes)
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    for name, facts in header.items():
        if name == "__metadata__":
            continue
        if facts["dtype"] != "BF16":
            sys.exit(f"{file}: '{name}' is {facts['dtype']}, BF16 expected")
        first, end = facts["data_offsets"]
        tensor = data[first:end].view(numpy.uint16).reshape(facts["shape"])
        if tensor.ndim == 1:  # norms are float32 there
            writer.add_tensor(gguf_name(name), (tensor.astype(numpy.uint32) << 16).view(numpy.float32))
            continue
        if "q_proj" in name or "k_proj" in name:
            tensor = pairs_together(tensor, heads if "q_proj" in name else kv_heads)
        raw = numpy.ascontiguousarray(tensor).view(numpy.uint8).reshape(tensor.shape[0], -1)
        writer.add_tensor(gguf_name(name), raw, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def llamacpp(path, prompt, steps, repeats):
    """The default way: the file is mapped."""
    import llama_cpp

    started = time.perf_counter()
    model = llama_cpp.Llama(path, n_ctx=max(prompt + steps, 64), n_batch=512, n_threads=THREADS, n_threads_batch=THREADS, verbose=False)
    load = time.perf_counter() - started
    prefill, step = [], []
    for _ in range(repeats):
        model.reset()
        ids = random_ids(prompt)
        prefill.append(timed(lambda: model.eval(ids)))
        for id_ in random_ids(steps):
            step.append(timed(lambda: model.eval([id_])))
    answer(prefill=prefill, step=step, load=load, version=llama_cpp.__version__, read=disk_bytes())


# ---- PyTorch -----------------------------------------------------------------------------------------------------------------
def transformers(path, prompt, steps, repeats):
    import torch
    from transformers import AutoModelForCausalLM, __version__

    torch.set_num_threads(THREADS)
    model = AutoModelForCausalLM.from_pretrained(path, dtype="auto").eval()
    prefill, step = [], []
    with torch.inference_mode():
        for _ in range(repeats):
            cache = None
            for i in range(steps + 1):
                ids = torch.tensor([random_ids(prompt if i == 0 else 1)])
                started = time.perf_counter()
                out = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
                (step if i else prefill).append(time.perf_counter() - started)
                cache = out.past_key_values
    answer(prefill=prefill, step=step, version=__version__)


def encode(path, sequences, tokens, repeats):
    import torch
    from transformers import AutoModel, __version__

    torch.set_num_threads(THREADS)
    model = AutoModel.from_pretrained(path).eval()
    batch = []
    with torch.inference_mode():
        for _ in range(repeats):
            ids = torch.tensor([random_ids(tokens) for _ in range(sequences)])
            batch.append(timed(lambda: model(input_ids=ids)))
    answer(batch=batch, version=__version__)


def cold_steps(model, folders, steps):
    """Generate greedily; before each token nothing of the folders is in the page cache. The first token is not counted."""
    import torch

    seconds, read, cache = [], [], None
    with torch.inference_mode():
        for i in range(steps + 1):
            for folder in folders:
                make_cold(folder)
            ids = torch.tensor([random_ids(4 if i == 0 else 1)])
            before, started = disk_bytes(), time.perf_counter()
            out = model(input_ids=ids, past_key_values=cache, use_cache=True)
            seconds.append(time.perf_counter() - started)
            read.append(disk_bytes() - before)
            cache = out.past_key_values
    return seconds[1:], max(read[1:])


def accelerate(path, folder, cpu_bytes, steps):
    import accelerate as library
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.set_num_threads(THREADS)
    with library.init_empty_weights():
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path), dtype=torch.bfloat16)
    model.tie_weights()
    placed = library.infer_auto_device_map(
        model, max_memory={"cpu": cpu_bytes}, no_split_module_classes=["LlamaDecoderLayer"], dtype=torch.bfloat16)
    model = library.load_checkpoint_and_dispatch(model.eval(), path, device_map=placed, offload_folder=folder, dtype=torch.bfloat16)
    step, read = cold_steps(model, [path, folder], steps)
    answer(step=step, read=read, version=library.__version__)


def airllm(path, folder, steps):
    """It splits the model into the folder the first time. It asks for a tokenizer, which is not used here."""
    import contextlib
    from importlib.metadata import version

    import torch

    torch.set_num_threads(THREADS)
    with contextlib.redirect_stdout(sys.stderr), contextlib.redirect_stderr(sys.stderr):
        import airllm as library

        class WithoutTokenizer(library.AirLLMBaseModel):
            def get_tokenizer(self, hf_token=None):
                return None

        model = WithoutTokenizer(path, device="cpu", layer_shards_saving_path=folder)
        step, read = cold_steps(lambda **inputs: model(**inputs), [path, folder], steps)
    answer(step=step, read=read, version=version("airllm"))


CASES = {"gguf": write_gguf, "llamacpp": llamacpp, "transformers": transformers, "encode": encode, "accelerate": accelerate, "airllm": airllm}


if __name__ == "__main__":
    random.seed(1)
    if len(sys.argv) < 3 or sys.argv[1] not in CASES:
        sys.exit(__doc__)
    CASES[sys.argv[1]](*(int(word) if word.isdigit() else word for word in sys.argv[2:]))
