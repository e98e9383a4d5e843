"""Every pair of dtypes that Tensor.copy_() takes: the numbers that PyTorch gives, for random bits and for numbers at the edges."""

import importlib
import inspect
import json
import re
import subprocess
from pathlib import Path

import pytest
import torch
from helpers import HEFT, assert_same, heft, load_safetensors, raw
from libheft import HeftError, cast
from safetensors.torch import load_file, save_file

INTEGERS = "int64 int32 int16 int8 uint8 uint16 uint32 uint64".split()
BYTE_FLOATS = "float8_e4m3fn float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz float8_e8m0fnu".split()
FLOATS = "float64 float32 float16 bfloat16".split() + BYTE_FLOATS
COMPLEX = "complex32 complex64 complex128".split()
REAL = INTEGERS + ["bool"] + FLOATS
VIEWS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
EDGES = [0.0, 0.5, 1.0, 1.5, 2.5, 127.0, 128.0, 255.0, 256.0, 300.7, 447.9, 448.0, 464.0, 465.0, 480.0, 57344.0, 61440.0, 65503.0, 65504.0, 65519.9, 65520.0]
EDGES += [2.0**k + d for k in (7, 8, 15, 16, 24, 31, 32, 53, 62, 63, 64, 127) for d in (-1.0, 0.0, 1.0)]
EDGES += [2.0**-k * m for k in (6, 7, 9, 10, 14, 16, 17, 24, 25, 126, 127, 149, 1074) for m in (0.5, 0.75, 1.0, 1.25, 1.5)]
EDGES += [float("inf"), 1e300, 3.4e38, 3.3e38]


def type_of(name):
    return getattr(torch, name)


def bits(tensor):
    """The bytes of each element, or of each part of a complex number, as an integer."""
    tensor = torch.view_as_real(tensor) if tensor.is_complex() and tensor.dtype != torch.complex32 else tensor
    if tensor.dtype == torch.complex32:
        tensor = tensor.view(torch.float16)
    return tensor.view(VIEWS[tensor.element_size()]).reshape(-1)


def is_nan(tensor):
    if tensor.is_complex():
        tensor = tensor.view(torch.float16) if tensor.dtype == torch.complex32 else torch.view_as_real(tensor)
    floats = tensor.dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    return torch.isnan(tensor).reshape(-1) if floats else torch.zeros(tensor.numel(), dtype=torch.bool)


def noise(name, count, seed):
    """Random bits, numbers at the edges of every format, and integers of every length."""
    dtype = type_of(name)
    generator = torch.Generator().manual_seed(seed)
    if name == "bool":
        return torch.randint(0, 2, (count,), generator=generator).to(torch.bool)
    width = torch.empty(0, dtype=dtype).element_size()
    random = torch.randint(0, 256, (count * width,), dtype=torch.uint8, generator=generator).view(dtype)
    if name in COMPLEX:
        return random
    if name in INTEGERS:  # random bits are nearly always long numbers
        long = torch.randint(-(2**63), 2**63 - 1, (count,), generator=generator) >> torch.randint(0, 64, (count,), generator=generator)
        ones = torch.tensor([s * ((1 << k) + d) for k in range(63) for d in (-1, 0, 1) for s in (1, -1)])
        return torch.cat([random, long.to(dtype), ones.to(dtype)])
    edges = torch.tensor(EDGES, dtype=torch.float64)
    near = torch.cat([torch.nextafter(edges, edges * 0), edges, torch.nextafter(edges, edges * 0 + 1e308)])
    some = torch.randn(count, generator=generator, dtype=torch.float64) * 2.0 ** torch.randint(-30, 66, (count,), generator=generator)
    return torch.cat([random, torch.cat([near, -near, some]).to(dtype)])


def is_settled(source, to):
    """Where PyTorch gives one answer. To uint32, its loops for many and for few elements differ for NaN and for what is below -2^31 or
    from 2^32 on, and so do its instruction sets; a NaN of the fnuz types and of e8m0fnu is an integer that the compiler chose."""
    settled = torch.ones(source.numel(), dtype=torch.bool)
    if to in INTEGERS and source.dtype.is_floating_point:
        wide = source.to(torch.float64)
        if to == "uint32":
            settled = (wide > -(2.0**31)) & (wide < 2.0**32)
        elif source.element_size() == 1 and source.dtype not in (torch.float8_e4m3fn, torch.float8_e5m2):
            settled = ~torch.isnan(wide)
    return settled


def check(source, to):
    got = cast(source, to)
    want = torch.empty(source.numel(), dtype=type_of(to)).copy_(source)
    both = is_nan(got) & is_nan(want)  # a NaN is a NaN
    settled = is_settled(source, to)
    settled = settled.repeat_interleave(2) if want.is_complex() else settled
    wrong = (bits(got) != bits(want)) & ~both & settled
    per = 2 if want.is_complex() else 1
    assert not wrong.any(), [
        (bits(source)[i // per].item(), source[i // per].item(), hex(bits(got)[i].item()), hex(bits(want)[i].item())) for i in wrong.nonzero()[:5, 0].tolist()
    ]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("to", REAL)
@pytest.mark.parametrize("source", REAL)
def test_real_to_real(source, to):
    tensor = noise(source, 20000, 1)
    check(tensor, to)
    for count in (1, 2, 3, 5):  # PyTorch's loops for few elements
        for first in range(0, 400, 7):
            check(tensor[-1 - first - count : -1 - first].clone(), to)


@pytest.mark.parametrize("source", [n for n in REAL if n in FLOATS and n not in ("float64", "float32")])
def test_every_float_of_16_and_8_bits(source):
    dtype = type_of(source)
    width = torch.empty(0, dtype=dtype).element_size()
    every = torch.arange(1 << (8 * width), dtype=torch.int32).to(torch.int16 if width == 2 else torch.uint8).view(dtype)
    for to in REAL + COMPLEX:
        check(every, to)


@pytest.mark.parametrize("to", BYTE_FLOATS)
def test_float32_to_float8(to):
    """The upper 20 bits of every float32, with the lower 12 zero, one and all ones."""
    upper = torch.arange(-(1 << 19), 1 << 19, dtype=torch.int32) << 12
    for low in (0, 1, 0xFFF):
        check((upper | low).view(torch.float32), to)


@pytest.mark.parametrize("to", COMPLEX)
@pytest.mark.parametrize("source", REAL + COMPLEX)
def test_to_complex(source, to):
    check(noise(source, 20000, 2), to)


@pytest.mark.parametrize("source", COMPLEX)
def test_complex_to_real_is_refused(source):
    for to in REAL:
        with pytest.raises(HeftError, match="imaginary part would be lost"):
            cast(noise(source, 8, 3), to)


def test_packed_and_quantized_are_refused():
    packed = torch.zeros(8, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
    for to in ("float32", "int8", "complex64"):
        with pytest.raises(HeftError, match="share bytes"):
            cast(packed, to)
    with pytest.raises(HeftError, match="share bytes"):
        cast(torch.zeros(8), "float4_e2m1fn_x2")


# ---- in checkpoints ---------------------------------------------------------------------------------
BIAS = "encoder.layer.0.output.dense.bias"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("tiny")
    BertModel(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, vocab_size=10)).save_pretrained(folder)
    return folder


def with_bias(tiny, folder, dtype):
    """The tiny model with one parameter in another dtype, and a buffer of integers."""
    tensors = load_file(tiny / "model.safetensors")
    tensors[BIAS] = torch.tensor([0, 1, 2, 3, 100, -5, 7, 9]).to(type_of(dtype))
    tensors["embeddings.position_ids"] = torch.arange(512)[None]
    (folder / "config.json").write_text((tiny / "config.json").read_text())
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return tensors


@pytest.mark.parametrize("wanted", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("stored", ["int64", "int8", "uint8", "uint16", "uint64", "bool", "float64", "float8_e4m3fn", "float8_e5m2"])
def test_load_casts_as_from_pretrained(tiny, stored, wanted, tmp_path):
    """Through an offload folder, which has the cast values."""
    from transformers import AutoModel

    (tmp_path / "in").mkdir()
    with_bias(tiny, tmp_path / "in", stored)
    report = heft("load", tmp_path / "in", "--dtype", wanted, "--device-map", "disk", "--offload-folder", tmp_path / "off")
    model = AutoModel.from_pretrained(tmp_path / "in", dtype=type_of(wanted))
    for name, value in model.state_dict().items():
        file = tmp_path / "off" / f"{name}.dat"
        if file.exists():
            assert file.read_bytes() == raw(value), name
    assert (tmp_path / "off" / f"{BIAS}.dat").exists()
    told = [line for line in report["warnings"] if "stored as integers" in line]
    assert len(told) == (0 if stored.startswith("float") else 1), report["warnings"]


def test_complex_weights_are_refused(tiny, tmp_path):
    (tmp_path / "in").mkdir()
    with_bias(tiny, tmp_path / "in", "complex64")
    done = subprocess.run([HEFT, "load", tmp_path / "in"], capture_output=True, text=True)
    assert done.returncode == 7 and f"{BIAS}: complex64 cannot be cast to float32: the imaginary part would be lost" in done.stderr, done
    heft("convert", tmp_path / "in", tmp_path / "out", "--dtype", "bfloat16")  # which leaves complex numbers as they are
    assert load_safetensors(tmp_path / "out")[BIAS].dtype == torch.complex64


@pytest.mark.parametrize("wanted", ["float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "bfloat16", "float64"])
def test_convert_casts_floating_point_tensors_only(tiny, wanted, tmp_path):
    from transformers import AutoModel

    (tmp_path / "in").mkdir()
    tensors = with_bias(tiny, tmp_path / "in", "int64")
    heft("convert", tmp_path / "in", tmp_path / "out", "--dtype", wanted)
    expected = {n: t.to(type_of(wanted)) if t.is_floating_point() else t for n, t in tensors.items()}
    assert_same(expected, load_safetensors(tmp_path / "out"))
    heft("load", tmp_path / "out")  # its config names a dtype that both can load
    AutoModel.from_pretrained(tmp_path / "out")


def kept_types():
    """Model type -> what its classes keep in float32: in float16, in bfloat16 as well."""
    import transformers

    models = Path(transformers.__file__).parent / "models"
    types = {}
    for path in models.glob("*/modeling_*.py"):
        if not re.search("_keep_in_fp32_modules", path.read_text(encoding="utf-8")):
            continue
        module = importlib.import_module(f"transformers.models.{path.parent.name}.{path.stem}")
        for kind in vars(module).values():
            if not inspect.isclass(kind) or not issubclass(kind, transformers.PreTrainedModel):
                continue
            name = getattr(kind.config_class, "model_type", None)
            if kind.__module__ == module.__name__ and name:
                half, both = types.setdefault(name, (set(), set()))
                half.update(kind._keep_in_fp32_modules or [])
                both.update(kind._keep_in_fp32_modules_strict or [])
    return {name: lists for name, lists in types.items() if lists[0] | lists[1]}


def test_every_model_type_keeps_in_float32_what_transformers_does(tmp_path):
    """Also those that heft has no family for, and those of a part of the model."""
    types = kept_types()
    assert len(types) > 20
    for number, (name, (half, both)) in enumerate(sorted(types.items())):
        tensors = {f"a.{entry}.b": torch.ones(2) for entry in half | both} | {"a.qqq.b": torch.ones(2)}
        for part in (False, True):
            source = tmp_path / f"{number}{part}"
            source.mkdir()
            save_file(tensors, source / "model.safetensors")
            config = {"model_type": name, "architectures": ["Quux"]}
            config = {"model_type": "quux", "text_config": config} if part else config
            (source / "config.json").write_text(json.dumps(config))
            for dtype, kept in (("float16", half | both), ("bfloat16", both)):
                heft("convert", source, source / dtype, "--dtype", dtype)
                found = load_file(source / dtype / "model.safetensors")
                floats = {n for n, tensor in found.items() if tensor.dtype == torch.float32}
                expected = {n for n in tensors if any(re.search(entry, n) for entry in kept)}
                assert floats == expected, (name, dtype, part)
