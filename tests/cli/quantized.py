"""Quantized checkpoints that public loaders got wrong, with the values that are right, by the formulas of
docs/formats/quantized.md in plain Python.

    quantized.py DIR        makes DIR/CASE/{config.json,model.safetensors} and DIR/CASE.expected for every case
    quantized.py --list     names them
"""
import json
import os
import struct
import sys

E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]


# ---- numbers -------------------------------------------------------------------------------------
def f32(x):
    return struct.unpack("<f", struct.pack("<f", x))[0]


def bf16(x):
    """The bytes of the nearest bfloat16, ties to even."""
    word = struct.unpack("<I", struct.pack("<f", x))[0]
    return struct.pack("<H", (word + 0x7FFF + (word >> 16 & 1)) >> 16)


def bf16_value(x):
    return struct.unpack("<f", b"\0\0" + bf16(x))[0]


def e2m1(code):
    return (-1.0 if code & 8 else 1.0) * E2M1[code & 7]


def e4m3(byte):
    exponent, mantissa = byte >> 3 & 15, byte & 7
    size = mantissa / 8 * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7)
    return -size if byte & 128 else size


class Numbers:
    """The same ones every time."""

    def __init__(self, seed):
        self.state = seed

    def below(self, most):
        self.state = (self.state * 6364136223846793005 + 1442695040888963407) % 2**64
        return (self.state >> 33) % most

    def small(self):
        return (self.below(2001) - 1000) / 8000


# ---- files ---------------------------------------------------------------------------------------
def write(path, tensors):
    header, data = {}, b""
    for name, (dtype, shape, raw) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + data)


class Case:
    """A Llama of one layer: what it stores, and what that means."""

    def __init__(self, name, quantization, tied=False, hidden=32, inner=64, rows=16):
        self.name, self.numbers = name, Numbers(sum(name.encode()))
        self.stored, self.expected = {}, {}
        self.config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden,
                       "intermediate_size": inner, "vocab_size": rows, "num_hidden_layers": 1, "num_attention_heads": 2,
                       "num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-6,
                       "tie_word_embeddings": tied, "dtype": "bfloat16", "quantization_config": quantization}
        layer = "model.layers.0."
        self.shapes = {f"{layer}self_attn.{p}_proj": (hidden, hidden) for p in "qkvo"}
        self.shapes |= {f"{layer}mlp.gate_proj": (inner, hidden), f"{layer}mlp.up_proj": (inner, hidden),
                        f"{layer}mlp.down_proj": (hidden, inner)}
        self.tables = {"model.embed_tokens": (rows, hidden)}
        if not tied:
            self.tables["lm_head"] = (rows, hidden)
        for norm in (layer + "input_layernorm", layer + "post_attention_layernorm", "model.norm"):
            self.plain(norm, (hidden,))

    def plain(self, module, shape):
        count = shape[0] * (shape[1] if len(shape) > 1 else 1)
        tensor = ("BF16", list(shape), b"".join(bf16(self.numbers.small()) for _ in range(count)))
        self.stored[module + ".weight"] = self.expected[module + ".weight"] = tensor

    def put(self, module, values, parts):
        """values: [rows][columns], rounded once; parts: {end of the name: (dtype, shape, bytes)}."""
        self.stored |= {f"{module}.{end}": part for end, part in parts.items()}
        self.expected[module + ".weight"] = ("BF16", [len(values), len(values[0])],
                                             b"".join(bf16(v) for row in values for v in row))

    def all(self, quantize, head=None, tables=()):
        """quantize(case, module, rows, columns) for every linear layer; head: for the names in `tables`."""
        for module, shape in {**self.shapes, **self.tables}.items():
            if module in self.shapes:
                quantize(self, module, *shape)
            elif module in tables:
                (head or quantize)(self, module, *shape)
            else:
                self.plain(module, shape)
        return self

    def write(self, where):
        folder = os.path.join(where, self.name)
        os.makedirs(folder)
        with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as file:
            json.dump(self.config, file, indent=1)
        write(os.path.join(folder, "model.safetensors"), self.stored)
        write(folder + ".expected", self.expected)


# ---- ways of storing -----------------------------------------------------------------------------
def float8(scale_end, grid, block=None, exponents=False, short=False):
    """grid(rows, columns): shape of the scales; block: (rows, columns) of one; None: of what the grid says.
    exponents: scales are powers of two; short: they are bfloat16."""
    def quantize(case, module, rows, columns):
        q = bytes(case.numbers.below(127) | case.numbers.below(2) << 7 for _ in range(rows * columns))
        shape = grid(rows, columns)
        lines = shape[0] if shape else 1
        across = shape[1] if len(shape) > 1 else 1
        height, width = block or (-(-rows // lines), -(-columns // across))
        if exponents:
            raw = bytes(115 + case.numbers.below(9) for _ in range(lines * across))
            scales = [2.0 ** (b - 127) for b in raw]
        else:
            scales = [f32(0.001 + case.numbers.below(1000) / 1e5) for _ in range(lines * across)]
            scales = [bf16_value(s) for s in scales] if short else scales
            raw = b"".join(bf16(s) if short else struct.pack("<f", s) for s in scales)
        values = [[f32(e4m3(q[o * columns + i]) * scales[o // height * across + i // width]) for i in range(columns)]
                  for o in range(rows)]
        case.put(module, values, {"weight": ("F8_E4M3", [rows, columns], q),
                                  scale_end: ("F8_E8M0" if exponents else "BF16" if short else "F32", list(shape), raw)})
    return quantize


def half_bytes(case, rows, columns):
    codes = [[case.numbers.below(16) for _ in range(columns)] for _ in range(rows)]
    return codes, bytes(row[i] | row[i + 1] << 4 for row in codes for i in range(0, columns, 2))


def fp4_experts(scale_dtype, value_dtype="I8"):
    def quantize(case, module, rows, columns):
        codes, raw = half_bytes(case, rows, columns)
        across = columns // 32
        scales = bytes(110 + case.numbers.below(30) for _ in range(rows * across))
        values = [[e2m1(codes[o][i]) * 2.0 ** (scales[o * across + i // 32] - 127) for i in range(columns)]
                  for o in range(rows)]
        case.put(module, values, {"weight": (value_dtype, [rows, columns // 2], raw),
                                  "scale": (scale_dtype, [rows, across], scales)})
    return quantize


def nvfp4(case, module, rows, columns):
    codes, raw = half_bytes(case, rows, columns)
    across = columns // 16
    scales = bytes(40 + case.numbers.below(80) for _ in range(rows * across))
    divisor = 1700.5
    values = [[f32(e2m1(codes[o][i]) * f32(e4m3(scales[o * across + i // 16]) / divisor)) for i in range(columns)]
              for o in range(rows)]
    case.put(module, values, {"weight_packed": ("U8", [rows, columns // 2], raw),
                              "weight_scale": ("F8_E4M3", [rows, across], scales),
                              "weight_global_scale": ("F32", [1], struct.pack("<f", divisor)),
                              "input_global_scale": ("F32", [1], struct.pack("<f", 3.0))})


def stream(numbers, bits):
    """A little-endian stream of bits in 32-bit words."""
    words = -(-len(numbers) * bits // 32)
    return sum(n << k * bits for k, n in enumerate(numbers)).to_bytes(4 * words, "little")


def packed(bits, group, zeros=None):
    """compressed-tensors' integers in words; zeros: None, "words", or "bytes" as before its version 0.10."""
    def quantize(case, module, rows, columns):
        q = [[case.numbers.below(1 << bits) for _ in range(columns)] for _ in range(rows)]
        groups, half = -(-columns // group), 1 << (bits - 1)
        scales = [[bf16_value(case.numbers.small()) for _ in range(groups)] for _ in range(rows)]
        z = [[case.numbers.below(1 << bits) if zeros else half for _ in range(groups)] for _ in range(rows)]
        values = [[f32((q[o][i] - z[o][i // group]) * scales[o][i // group]) for i in range(columns)]
                  for o in range(rows)]
        raw = b"".join(stream(row, bits) for row in q)
        parts = {"weight_packed": ("I32", [rows, len(raw) // rows // 4], raw),
                 "weight_scale": ("BF16", [rows, groups], b"".join(bf16(s) for row in scales for s in row)),
                 "weight_shape": ("I64", [2], struct.pack("<qq", rows, columns))}
        if zeros == "words":
            each = [stream([z[o][g] for o in range(rows)], bits) for g in range(groups)]
            lines = len(each[0]) // 4
            parts["weight_zero_point"] = ("I32", [lines, groups],
                                          b"".join(each[g][4 * k:4 * k + 4] for k in range(lines) for g in range(groups)))
        elif zeros == "bytes":
            parts["weight_zero_point"] = ("I8", [rows, groups], bytes((n - half) % 256 for row in z for n in row))
        case.put(module, values, parts)
    return quantize


# ---- settings ------------------------------------------------------------------------------------
def fp8_settings(block, **more):
    return {"quant_method": "fp8", "weight_block_size": block, "modules_to_not_convert": ["lm_head"], **more}


def group(bits, size, targets, **more):
    weights = {"num_bits": bits, "type": "int", "strategy": "group", "group_size": size, "symmetric": True, **more}
    return {"targets": targets, "weights": weights}


def compressed(*groups, form="pack-quantized"):
    return {"quant_method": "compressed-tensors", "format": form,
            "config_groups": {f"group_{k}": one for k, one in enumerate(groups)}, "ignore": []}


def by_module(ways):
    """ways: [(part of a module's path, way of storing)], the first that matches."""
    def quantize(case, module, rows, columns):
        next(way for part, way in ways if part in module)(case, module, rows, columns)
    return quantize


def cases():
    # fp8: one scale for the tensor, as a scalar or a list of one; scales of rows; short last blocks
    yield Case("fp8_scalar", fp8_settings(None)).all(float8("weight_scale_inv", lambda o, i: ()))
    yield Case("fp8_list_of_one", fp8_settings(None)).all(float8("weight_scale_inv", lambda o, i: (1,)))
    yield Case("fp8_rows", fp8_settings(None)).all(float8("weight_scale_inv", lambda o, i: (o, 1)))
    yield Case("fp8_rows_flat", fp8_settings(None)).all(float8("weight_scale", lambda o, i: (o,)))
    yield Case("fp8_short_blocks", fp8_settings([24, 20])).all(
        float8("weight_scale_inv", lambda o, i: (-(-o // 24), -(-i // 20)), (24, 20)))
    # a block size in the config, and weights with one scale, or with exponents for 32 columns, among the others
    yield Case("fp8_scalar_among_blocks", fp8_settings([16, 16])).all(
        by_module([("mlp", float8("weight_scale_inv", lambda o, i: ())),
                   ("q_proj", float8("weight_scale_inv", lambda o, i: (o, i // 32), (1, 32), exponents=True)),
                   ("", float8("weight_scale_inv", lambda o, i: (-(-o // 16), -(-i // 16)), (16, 16)))]))
    # DeepSeek-V4: exponents as scales, and experts of half-bytes among float8
    block = float8("scale", lambda o, i: (-(-o // 16), -(-i // 16)), (16, 16), exponents=True)
    for dtype in ("F8_E8M0", "U8"):
        for values in ("I8", "U8"):
            yield Case(f"fp8_half_bytes_{dtype}_{values}", fp8_settings([16, 16], scale_fmt="ue8m0", expert_dtype="fp4")).all(
                by_module([("mlp", fp4_experts(dtype, values)), ("", block)]))
    # compressed-tensors: two formats in one checkpoint, groups by expressions only
    rows8 = float8("weight_scale", lambda o, i: (o, 1), short=True)
    yield Case("mixed_formats", compressed(group(8, None, ["re:.*self_attn.*"], type="float", strategy="channel"),
                                           group(4, 16, ["re:.*mlp.*"], type="float", strategy="tensor_group"),
                                           form="mixed-precision")).all(by_module([("mlp", nvfp4), ("", rows8)]), rows8, ["lm_head"])
    yield Case("mixed_bits", compressed(group(8, 32, ["re:.*down_proj"]), group(4, 32, ["re:.*(up|gate)_proj"]),
                                        group(3, 16, ["re:.*self_attn.*"]))).all(
        by_module([("down", packed(8, 32)), ("mlp", packed(4, 32)), ("", packed(3, 16))]))
    # a last group that is short; zero points in words, and in bytes as older versions stored them
    yield Case("short_group", compressed(group(4, 24, ["Linear"]))).all(packed(4, 24))
    yield Case("zeros_in_words", compressed(group(4, 16, ["Linear"], symmetric=False))).all(packed(4, 16, "words"))
    yield Case("zeros_in_bytes", compressed(group(4, 16, ["Linear"], symmetric=False))).all(packed(4, 16, "bytes"))
    # a quantized head, a quantized table, and ties of them
    both = compressed(group(4, 32, ["Linear", "Embedding"]))
    yield Case("head", both).all(packed(4, 32), tables=["lm_head"])
    yield Case("table", both).all(packed(4, 32), tables=["model.embed_tokens"])
    yield Case("tied_table", both, tied=True).all(packed(4, 32), tables=["model.embed_tokens"])


def main():
    if sys.argv[1] == "--list":
        print("\n".join(case.name for case in cases()))
        return
    for case in cases():
        case.write(sys.argv[1])


if __name__ == "__main__":
    main()
