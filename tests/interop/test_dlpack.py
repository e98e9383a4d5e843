"""Tensors of heft in PyTorch and NumPy without a copy: dtypes, shapes, bits, flags, and how long the memory lives."""

import gc
import json
import threading
from pathlib import Path

import numpy
import pytest
import torch
from helpers import raw
from libheft import MAPPED, WRITABLE, Checkpoint, HeftError

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64)
COMPLEX = (torch.complex32, torch.complex64, torch.complex128)
BYTE_FLOATS = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.float8_e8m0fnu)
DTYPES = (*FLOATS, *INTEGERS, torch.bool, *COMPLEX, *BYTE_FLOATS, torch.float4_e2m1fn_x2)
NUMPY_LACKS = (torch.bfloat16, torch.complex32, *BYTE_FLOATS, torch.float4_e2m1fn_x2)  # NumPy 2.4


def name_of(dtype):
    return str(dtype).removeprefix("torch.")


def random_bits(dtype, *shape, seed=0):
    """Every bit pattern may come: NaN payloads too."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.empty(0, dtype=dtype).element_size()
    count = torch.Size(shape).numel() * size
    bits = torch.randint(0, 2 if dtype == torch.bool else 256, (count,), dtype=torch.uint8, generator=generator)
    return bits.view(dtype).reshape(shape) if count else torch.empty(shape, dtype=dtype)


@pytest.fixture(scope="module")
def everything():
    tensors = {}
    for number, dtype in enumerate(DTYPES):
        tensors[name_of(dtype)] = random_bits(dtype, 3, 4, seed=number)
    for dtype in (torch.float32, torch.bfloat16, torch.complex64, torch.int16, torch.bool):
        name = name_of(dtype)
        tensors[f"{name}.scalar"] = random_bits(dtype, 1, seed=1)[0].clone()
        tensors[f"{name}.empty"] = torch.empty((0, 5), dtype=dtype)
        tensors[f"{name}.empty_inside"] = torch.empty((3, 0, 2), dtype=dtype)
        base = random_bits(dtype, 6, 8, seed=2)
        tensors[f"{name}.transposed"] = base.t()
        tensors[f"{name}.every_second"] = base[1::2, ::3]
        tensors[f"{name}.expanded"] = base[2:3, :].expand(4, 8)
        tensors[f"{name}.shifted"] = base.flatten()[5:11]
    return tensors


@pytest.fixture(scope="module")
def bin_file(scratch, everything):
    path = scratch / "dlpack.bin"
    torch.save(everything, path)
    return path


def write_safetensors(path, entries):
    """entries: name -> (dtype name, shape, bytes)."""
    header, body = {}, b""
    for name, (dtype, shape, data) in entries.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)


def in_maps(path):
    return str(path) in Path("/proc/self/maps").read_text()


# ---- PyTorch ---------------------------------------------------------------------------------------
def test_torch_sees_every_dtype_and_every_view(bin_file, everything):
    checkpoint = Checkpoint(bin_file)
    for name, expected in everything.items():
        ours = checkpoint.map(name)
        found = torch.from_dlpack(ours)
        assert found.dtype == expected.dtype, name
        assert found.shape == expected.shape, name
        if expected.numel() > 1:
            assert found.stride() == expected.stride(), name
            assert ours.flags == MAPPED, name
            assert found.data_ptr() == ours.data, name
        assert raw(found) == raw(expected), name
        ours.free()
        assert raw(found) == raw(expected), name
    checkpoint.close()


def test_torch_takes_safetensors_of_small_floats(scratch):
    path = scratch / "small.safetensors"
    pairs, scales = bytes(range(24)), bytes(range(100, 106))
    write_safetensors(path, {"f4": ("F4", [6, 8], pairs), "f4.odd": ("F4", [2, 3], b"abc"), "e8m0": ("F8_E8M0", [6], scales), "f6": ("F6_E2M3", [4], b"xyz")})
    checkpoint = Checkpoint(path)
    f4 = torch.from_dlpack(checkpoint.map("f4"))
    assert f4.dtype == torch.float4_e2m1fn_x2 and f4.shape == (6, 4)
    assert f4.view(torch.uint8).numpy().tobytes() == pairs
    e8m0 = torch.from_dlpack(checkpoint.map("e8m0"))
    assert e8m0.dtype == torch.float8_e8m0fnu and raw(e8m0) == scales
    with pytest.raises(HeftError, match="UNSUPPORTED: dimension 1 of 3 elements of float4_e2m1fn_x2"):
        torch.from_dlpack(checkpoint.map("f4.odd"))
    with pytest.raises((BufferError, RuntimeError)):  # DLPack has the type, PyTorch does not
        torch.from_dlpack(checkpoint.map("f6"))
    checkpoint.close()


# ---- NumPy -----------------------------------------------------------------------------------------
def test_numpy_sees_every_dtype_that_it_has(bin_file, everything):
    checkpoint = Checkpoint(bin_file)
    for name, expected in everything.items():
        ours = checkpoint.map(name)
        if expected.dtype in NUMPY_LACKS:
            with pytest.raises((RuntimeError, BufferError)):
                numpy.from_dlpack(ours)
            ours.free()
            continue
        found = numpy.from_dlpack(ours)
        assert found.dtype == expected.numpy().dtype, name
        assert found.shape == tuple(expected.shape), name
        assert numpy.ascontiguousarray(found).tobytes() == raw(expected), name
        ours.free()
    checkpoint.close()


def test_numpy_heeds_the_read_only_flag(bin_file):
    checkpoint = Checkpoint(bin_file)
    ours = checkpoint.map("float32")
    found = numpy.from_dlpack(ours)
    assert not ours.flags & WRITABLE
    assert not found.flags.writeable
    with pytest.raises(ValueError):
        found[0, 0] = 1
    ours.free()
    checkpoint.close()


def test_numpy_may_write_what_was_copied(scratch):
    path = scratch / "conjugated.bin"
    value = random_bits(torch.complex64, 4, seed=3)
    torch.save({"a": value.conj()}, path)
    checkpoint = Checkpoint(path)
    ours = checkpoint.map("a")  # cannot be mapped: its bytes are another number's
    assert ours.flags == WRITABLE
    found = numpy.from_dlpack(ours)
    assert found.tobytes() == raw(value.conj())
    found[0] = 1 + 2j
    assert torch.from_dlpack(ours)[0] == 1 + 2j
    checkpoint.close()


# ---- private mappings ------------------------------------------------------------------------------
def test_writes_to_a_private_mapping_stay_in_the_process(scratch):
    path = scratch / "private.bin"
    weight = random_bits(torch.int32, 64, 32, seed=4)
    torch.save({"a": weight, "tied": weight.t()}, path)
    before = path.read_bytes()
    checkpoint = Checkpoint(path)
    ours, tied = checkpoint.map("a", private=True), checkpoint.map("tied", private=True)
    assert ours.flags == MAPPED | WRITABLE
    found, other, array = torch.from_dlpack(ours), torch.from_dlpack(tied), numpy.from_dlpack(ours)
    assert torch.equal(found, weight) and array.flags.writeable
    found.add_(1)
    array[0, 0] = 42
    expected = weight + 1
    expected[0, 0] = 42
    assert torch.equal(found, expected) and torch.equal(other, expected.t())
    assert torch.equal(torch.from_dlpack(checkpoint.map("a")), weight)
    ours.free()
    tied.free()
    checkpoint.close()
    assert torch.equal(other, expected.t())
    assert path.read_bytes() == before


def test_an_optimizer_steps_on_a_private_mapping(scratch):
    path = scratch / "train.bin"
    torch.save({"a": torch.ones(8)}, path)
    checkpoint = Checkpoint(path)
    parameter = torch.nn.Parameter(torch.from_dlpack(checkpoint.map("a", private=True)))
    checkpoint.close()
    parameter.square().sum().backward()
    torch.optim.SGD([parameter], lr=0.25).step()
    assert torch.equal(parameter.detach(), torch.full((8,), 0.5))
    assert torch.equal(torch.load(path)["a"], torch.ones(8))


# ---- lifetime --------------------------------------------------------------------------------------
def test_a_tensor_outlives_checkpoint_and_context(bin_file, everything):
    checkpoint = Checkpoint(bin_file)
    ours = checkpoint.map("float32.transposed")
    found, other = torch.from_dlpack(ours), numpy.from_dlpack(ours)
    ours.free()
    checkpoint.close()
    gc.collect()
    assert in_maps(bin_file)
    expected = raw(everything["float32.transposed"])
    assert raw(found) == expected
    view = found[1:]
    del found
    assert raw(view) == raw(everything["float32.transposed"][1:])
    del view
    assert in_maps(bin_file)
    assert numpy.ascontiguousarray(other).tobytes() == expected
    del other
    gc.collect()
    assert not in_maps(bin_file)


def test_tensors_may_be_freed_by_other_threads(bin_file):
    checkpoint = Checkpoint(bin_file)
    names = ("float32", "int64", "bool", "float8_e5m2")
    ours = [checkpoint.map(name) for name in names]
    tensors = [[torch.from_dlpack(tensor) for _ in range(50)] for tensor in ours]
    for tensor in ours:
        tensor.free()
    checkpoint.close()
    assert in_maps(bin_file)
    threads = [threading.Thread(target=list.clear, args=(group,)) for group in tensors]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gc.collect()
    assert not in_maps(bin_file)
