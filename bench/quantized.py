"""Quantized models of random values, and one case of another library that dequantizes one.

    quantized.py make METHOD FOLDER [LAYERS]   a model with the layers of the Llama with 1.1 billion parameters, or fewer of them
    quantized.py METHOD FOLDER                 dequantize every weight on the CPU, and keep the results

Methods: nf4, gptq, awq, fp8, mxfp4 (experts, a billion weights). Prints "ready" and a line of JSON, as bench_load does; imports are not counted.
The libraries' own functions are called: bitsandbytes, gptqmodel (gptq, awq), transformers (fp8, mxfp4).
"""

import json, math, os, resource, sys, time

LAYERS, HIDDEN, INNER, HEADS, KV = 22, 2048, 5632, 32, 256
EXPERTS, EXPERT_LAYERS = 16, 5
GROUP = 128
LINEARS = {
    "self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.k_proj": (KV, HIDDEN), "self_attn.v_proj": (KV, HIDDEN), "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INNER, HIDDEN), "mlp.up_proj": (INNER, HIDDEN), "mlp.down_proj": (HIDDEN, INNER),
}
NF4 = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
]
SETTINGS = {
    "nf4": {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": "bfloat16"},
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "sym": False, "desc_act": False, "checkpoint_format": "gptq"},
    "awq": {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"},
    "fp8": {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"},
    "mxfp4": {"quant_method": "mxfp4"},
}


# ---- models ------------------------------------------------------------------------------------------------------------------
def packed(method, name, out, size, torch):
    def words(*shape):
        return torch.randint(-(2**31), 2**31 - 1, shape, dtype=torch.int32)

    if method == "nf4":
        state = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [out, size]}
        return {
            name + ".weight": torch.randint(0, 256, (out * size // 2, 1), dtype=torch.uint8),
            name + ".weight.absmax": torch.rand(out * size // 64),
            name + ".weight.quant_map": torch.tensor(NF4),
            name + ".weight.quant_state.bitsandbytes__nf4": torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8),
        }
    if method == "fp8":
        values = torch.randint(0, 255, (out, size), dtype=torch.uint8)
        values[values & 127 == 127] = 0  # no NaN
        return {name + ".weight": values.view(torch.float8_e4m3fn), name + ".weight_scale_inv": torch.rand(math.ceil(out / 128), math.ceil(size / 128))}
    groups = size // GROUP
    scales = torch.rand(groups, out).to(torch.float16)
    if method == "awq":
        return {name + ".qweight": words(size, out // 8), name + ".qzeros": words(groups, out // 8), name + ".scales": scales}
    index = torch.arange(size, dtype=torch.int32) // GROUP
    return {name + ".qweight": words(size // 8, out), name + ".qzeros": words(groups, out // 8), name + ".scales": scales, name + ".g_idx": index}


def make(method, folder, layers):
    import torch
    from safetensors.torch import save_file

    here = os.path.dirname(os.path.abspath(__file__))
    if method == "mxfp4":
        config = {
            "architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", "dtype": "bfloat16", "hidden_size": HIDDEN, "intermediate_size": HIDDEN,
            "num_hidden_layers": EXPERT_LAYERS, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64, "num_local_experts": EXPERTS,
            "num_experts_per_tok": 4, "vocab_size": 1024, "layer_types": ["full_attention"] * EXPERT_LAYERS,
        }
    else:
        config = json.load(open(os.path.join(here, "..", "examples", "llama-1.1b", "config.json"), encoding="utf-8"))
        config["vocab_size"] = 1024  # what is measured is the quantized part
        config["dtype"] = "float16" if method in ("gptq", "awq") else "bfloat16"
    config["quantization_config"] = SETTINGS[method]
    if layers:
        config["num_hidden_layers"] = layers
        if "layer_types" in config:
            config["layer_types"] = config["layer_types"][:1] * layers
    dtype = getattr(torch, config["dtype"])
    os.makedirs(folder, exist_ok=True)
    tensors = {"model.embed_tokens.weight": torch.zeros(1024, HIDDEN, dtype=dtype), "model.norm.weight": torch.ones(HIDDEN, dtype=dtype)}
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        if method == "mxfp4":
            for name, rows in (("gate_up_proj", 2 * HIDDEN), ("down_proj", HIDDEN)):
                whole = at + "mlp.experts." + name
                tensors[whole + "_blocks"] = torch.randint(0, 256, (EXPERTS, rows, HIDDEN // 32, 16), dtype=torch.uint8)
                tensors[whole + "_scales"] = torch.randint(110, 130, (EXPERTS, rows, HIDDEN // 32), dtype=torch.uint8)
            continue
        for name, (out, size) in LINEARS.items():
            tensors.update(packed(method, at + name, out, size, torch))
    save_file(tensors, os.path.join(folder, "model.safetensors"))
    with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as file:
        json.dump(config, file, indent=2)


# ---- other libraries ---------------------------------------------------------------------------------------------------------
def reference(method):
    """A function of a file, a key and the tensor under it: the weight, or None if the key does not begin one."""
    import torch

    if method == "nf4":
        import bitsandbytes.functional as bnb

        def weight(file, key, _):
            end = ".quant_state.bitsandbytes__nf4"
            if not key.endswith(end):
                return None
            name = key[: -len(end)]
            parts = {k: file.get_tensor(f"{name}.{k}") for k in ("absmax", "quant_map", end[1:])}
            return bnb.dequantize_4bit(file.get_tensor(name), bnb.QuantState.from_dict(parts, device=torch.device("cpu")))
    elif method == "gptq":
        from gptqmodel.nn_modules.qlinear.torch import TorchLinear
        from gptqmodel.utils.model import convert_gptq_v1_to_v2_format_module

        def weight(file, key, read):
            if not key.endswith(".qweight"):
                return None
            tensor, name = read(), key[:-8]
            linear = TorchLinear(bits=4, group_size=GROUP, sym=False, desc_act=False, in_features=tensor.shape[0] * 8, out_features=tensor.shape[1],
                                 bias=False, register_buffers=True)
            linear.optimized = True  # torch.compile() would take longer than all weights
            linear.qweight, linear.qzeros = tensor, file.get_tensor(name + ".qzeros").clone()
            linear.scales, linear.g_idx = file.get_tensor(name + ".scales"), file.get_tensor(name + ".g_idx")
            linear.post_init()
            convert_gptq_v1_to_v2_format_module(linear, bits=4, pack_dtype=torch.int32)
            return linear.dequantize_weight()
    elif method == "awq":
        from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm

        def weight(file, key, read):
            if not key.endswith(".qweight"):
                return None
            return dequantize_gemm(read(), file.get_tensor(key[:-8] + ".qzeros"), file.get_tensor(key[:-8] + ".scales"), 4, GROUP)
    elif method == "fp8":
        from transformers.integrations.finegrained_fp8 import Fp8Dequantize

        def weight(file, key, read):
            if not key.endswith(".weight_scale_inv"):
                return None
            return Fp8Dequantize(None)._dequantize_one(file.get_tensor(key[: -len("_scale_inv")]), read(), output_dtype=torch.bfloat16)
    else:
        from transformers.integrations.mxfp4 import convert_moe_packed_tensors

        def weight(file, key, read):
            return convert_moe_packed_tensors(read(), file.get_tensor(key[:-7] + "_scales")) if key.endswith("_blocks") else None
    return weight


def status(key):
    for line in open("/proc/self/status", encoding="ascii"):
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    return 0


def processor():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main():
    if sys.argv[1] == "make":
        make(sys.argv[2], sys.argv[3], int(sys.argv[4]) if len(sys.argv) > 4 else 0)
        return
    import torch
    from safetensors import safe_open

    torch.set_num_threads(os.cpu_count())
    weight, results = reference(sys.argv[1]), []
    begun, used = time.perf_counter(), processor()
    with torch.no_grad(), safe_open(os.path.join(sys.argv[2], "model.safetensors"), "pt") as file:
        for key in file.keys():
            made = weight(file, key, lambda key=key: file.get_tensor(key))
            if made is not None:
                results.append(made)
    seconds, used = time.perf_counter() - begun, processor() - used
    print("ready")
    print(json.dumps({"seconds": seconds, "cpu": used, "bytes": sum(r.nbytes for r in results), "peak_rss": status("VmHWM:"), "anon": status("RssAnon:")}),
          flush=True)


main()
