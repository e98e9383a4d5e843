"""heft_writer through ctypes: its files in safetensors, PyTorch and Transformers, and beside the files that those write."""

import collections
import ctypes
import json
from ctypes import CFUNCTYPE, POINTER, Structure, byref, c_bool, c_char_p, c_int, c_int64, c_size_t, c_uint32, c_uint64, c_void_p

import pytest
import torch
from helpers import assert_same, raw, read_safetensors
from libheft import CTensor, Error, HeftError, _c, _check, _ctx_free, _ctx_new, _declare
from safetensors import safe_open
from safetensors.torch import load_file, save_file

AUTO, SAFETENSORS, TORCH = 0, 1, 2
REFUSE, DROP, COPY = 0, 1, 2


class Options(Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("format", c_int),
        ("max_shard_bytes", c_uint64),
        ("variant", c_char_p),
        ("single_file", c_bool),
        ("force", c_bool),
        ("natural_order", c_bool),
        ("dry_run", c_bool),
        ("ties", c_int),
        ("modules", POINTER(c_char_p)),
        ("module_count", c_size_t),
        ("total_parameters", c_uint64),
    ]


class Spec(Structure):
    _fields_ = [("struct_size", c_size_t), ("dtype", c_int), ("rank", c_uint32), ("shape", POINTER(c_uint64)), ("strides", POINTER(c_int64)), ("offset_bytes", c_uint64)]


Fill = CFUNCTYPE(c_int, c_void_p, c_uint64, c_void_p, c_size_t, POINTER(c_size_t), POINTER(Error))

_new = _declare(_c, "heft_writer_new", c_int, c_void_p, c_char_p, POINTER(Options), POINTER(c_void_p), POINTER(Error))
_add = _declare(_c, "heft_writer_add", c_int, c_void_p, c_char_p, POINTER(CTensor), POINTER(Error))
_add_from = _declare(_c, "heft_writer_add_from", c_int, c_void_p, c_char_p, POINTER(Spec), Fill, c_void_p, POINTER(Error))
_metadata = _declare(_c, "heft_writer_metadata", c_int, c_void_p, c_char_p, c_char_p, POINTER(Error))
_side_file = _declare(_c, "heft_writer_side_file", c_int, c_void_p, c_char_p, c_char_p, c_size_t, POINTER(Error))
_commit = _declare(_c, "heft_writer_commit", c_int, c_void_p, POINTER(c_void_p), POINTER(Error))
_writer_free = _declare(_c, "heft_writer_free", None, c_void_p)
_wrap = _declare(_c, "heft_storage_wrap", c_int, c_void_p, c_void_p, c_uint64, c_void_p, c_void_p, POINTER(c_void_p), POINTER(Error))
_unref = _declare(_c, "heft_storage_unref", None, c_void_p)
_tensor_new = _declare(_c, "heft_tensor_new", c_int, c_void_p, POINTER(Spec), POINTER(POINTER(CTensor)), POINTER(Error))
_tensor_free = _declare(_c, "heft_tensor_free", None, POINTER(CTensor))
_dtype = _declare(_c, "heft_dtype_parse", c_int, c_char_p, POINTER(c_int), POINTER(Error))


def spec_of(tensor, strided=True):
    """What the writer is told of a tensor of torch: float4 counts values there, and bytes in torch."""
    dtype, err = c_int(), Error()
    _check(_dtype(str(tensor.dtype).encode(), byref(dtype), byref(err)), err)
    shape, strides = list(tensor.shape), list(tensor.stride())
    if tensor.dtype == torch.float4_e2m1fn_x2:
        shape[-1] *= 2
        strided = False
    spec = Spec(ctypes.sizeof(Spec), dtype.value, len(shape), (c_uint64 * len(shape))(*shape), None, 0)
    if strided:
        spec.strides = (c_int64 * len(strides))(*strides)
        spec.offset_bytes = tensor.storage_offset() * tensor.element_size()
    return spec


class Writer:
    def __init__(self, path, **options):
        modules = options.pop("modules", None)
        options = Options(struct_size=ctypes.sizeof(Options), **options)
        if modules is not None:
            options.modules = (c_char_p * len(modules))(*(m.encode() for m in modules))
            options.module_count = len(modules)
        self._ctx, self._writer, self._kept = c_void_p(_ctx_new(None)), c_void_p(), []
        err = Error()
        _check(_new(self._ctx, str(path).encode(), byref(options), byref(self._writer), byref(err)), err)

    def add(self, name, tensor):
        err, storage, made = Error(), c_void_p(), POINTER(CTensor)()
        memory = tensor.untyped_storage()
        self._kept.append(tensor)
        _check(_wrap(self._ctx, memory.data_ptr(), memory.nbytes(), None, None, byref(storage), byref(err)), err)
        status = _tensor_new(storage, byref(spec_of(tensor)), byref(made), byref(err))
        _unref(storage)
        _check(status, err)
        status = _add(self._writer, name.encode(), made, byref(err))
        _tensor_free(made)
        _check(status, err)

    def add_from(self, name, tensor, piece):
        """The same bytes, through a callback, `piece` at most at a time."""
        data, err = raw(tensor), Error()

        def fill(_, offset, to, length, filled, __):
            part = data[offset : offset + min(length, piece)]
            ctypes.memmove(to, part, len(part))
            filled[0] = len(part)
            return 0

        self._kept.append(Fill(fill))
        _check(_add_from(self._writer, name.encode(), byref(spec_of(tensor, strided=False)), self._kept[-1], None, byref(err)), err)

    def metadata(self, key, value):
        err = Error()
        _check(_metadata(self._writer, key.encode(), None if value is None else value.encode(), byref(err)), err)

    def side_file(self, name, data):
        err = Error()
        _check(_side_file(self._writer, name.encode(), data, len(data), byref(err)), err)

    def commit(self):
        err = Error()
        try:
            _check(_commit(self._writer, None, byref(err)), err)
        finally:
            _writer_free(self._writer)
            _ctx_free(self._ctx)


FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64)
BYTE_FLOATS = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.float8_e8m0fnu)
DTYPES = (*FLOATS, *INTEGERS, torch.bool, torch.complex64, *BYTE_FLOATS, torch.float4_e2m1fn_x2)


def bits(dtype, *shape):
    count = torch.Size(shape).numel() * torch.empty(0, dtype=dtype).element_size()
    data = torch.randint(0, 2 if dtype == torch.bool else 256, (count,), dtype=torch.uint8, generator=torch.Generator().manual_seed(count))
    return data.view(dtype).reshape(shape) if count else torch.empty(shape, dtype=dtype)


@pytest.fixture(scope="module")
def tensors():
    made = {f"z.{str(dtype).removeprefix('torch.')}": bits(dtype, 3, 4) for dtype in DTYPES}
    made |= {"a scalar": torch.tensor(1.5), "empty": torch.empty(2, 0, 3), "é.\n\"q\"": torch.arange(5), "long": torch.randn(300, 200)}
    return made


def write(path, tensors, metadata=None, **options):
    writer = Writer(path, single_file=True, **options)
    for key, value in ({"format": None} | metadata if metadata is not None else {}).items():
        writer.metadata(key, value)
    for name, tensor in tensors.items():
        writer.add(name, tensor)
    writer.commit()


@pytest.mark.parametrize("metadata", [{}, {"format": "pt"}, {"note": "a \"quote\" and é\x01"}])
def test_save_file_gives_the_same_bytes(tensors, scratch, metadata):
    ours, theirs = scratch / "ours.safetensors", scratch / "theirs.safetensors"
    write(ours, tensors, metadata, force=True)
    save_file(tensors, theirs, metadata or None)
    assert ours.read_bytes() == theirs.read_bytes()
    with safe_open(ours, "pt") as file:
        assert (file.metadata() or {}) == metadata
        assert_same(tensors, {name: file.get_tensor(name) for name in file.keys()})


def test_many_pairs_of_metadata(tensors, scratch):
    """The order in which safetensors writes several pairs is random: what is read is compared."""
    pairs = {f"key {i}": str(i) for i in range(20)}
    write(scratch / "pairs.safetensors", tensors, pairs)
    with safe_open(scratch / "pairs.safetensors", "pt") as file:
        assert file.metadata() == pairs
    assert read_safetensors(scratch / "pairs.safetensors")[1] == dict(sorted(pairs.items()))


def test_strided_tensors(scratch):
    base = torch.arange(60.0).reshape(3, 4, 5)
    views = {"t": base.transpose(0, 2), "s": base[:, 1::2, ::3], "e": base[:1, :1].expand(2, 3, 5), "o": base[1, 2]}
    write(scratch / "views.safetensors", views, {}, ties=COPY)
    save_file({name: view.contiguous() for name, view in views.items()}, scratch / "copies.safetensors")
    assert (scratch / "views.safetensors").read_bytes() == (scratch / "copies.safetensors").read_bytes()
    write(scratch / "views.pt", views)
    assert_same(views, torch.load(scratch / "views.pt", weights_only=True))


@pytest.mark.parametrize("piece", [1000, 1 << 30])
def test_bytes_from_a_callback(tensors, scratch, piece):
    for name in ("made.safetensors", "made.pt"):
        writer = Writer(scratch / name, single_file=True, force=True)
        for key, tensor in tensors.items():
            writer.add_from(key, tensor, piece)
        writer.commit()
    assert_same(tensors, load_file(scratch / "made.safetensors"))
    assert_same(tensors, torch.load(scratch / "made.pt", weights_only=True))


@pytest.mark.parametrize("mmap", [False, True])
def test_torch_load(tensors, scratch, mmap):
    tensors = tensors | {"c": bits(torch.complex128, 2, 3), "h": bits(torch.complex32, 2)}
    write(scratch / "plain.pt", tensors, force=True)
    found = torch.load(scratch / "plain.pt", weights_only=True, mmap=mmap)
    assert type(found) is dict and list(found) == list(tensors)
    assert_same(tensors, found)


def test_a_state_dict_with_its_modules(scratch):
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    write(scratch / "state.bin", model.state_dict(), modules=[name for name, _ in model.named_modules()])
    found = torch.load(scratch / "state.bin", weights_only=True)
    assert type(found) is collections.OrderedDict
    assert list(found._metadata) == list(model.state_dict()._metadata)
    assert_same(model.state_dict(), found)
    model.load_state_dict(found)


def test_ties(scratch):
    tensor = torch.randn(4, 5)
    tied = {"a": tensor, "b": tensor, "c": torch.randn(2)}
    with pytest.raises(HeftError, match="shares memory with"):
        write(scratch / "no.safetensors", tied)
    with pytest.raises(RuntimeError, match="share memory"):
        save_file(tied, scratch / "no.safetensors")
    assert not (scratch / "no.safetensors").exists()
    write(scratch / "tied.pt", tied)
    found = torch.load(scratch / "tied.pt", weights_only=True)
    assert found["a"].data_ptr() == found["b"].data_ptr()
    assert_same(tied, found)
    write(scratch / "dropped.safetensors", tied, ties=DROP)
    assert sorted(load_file(scratch / "dropped.safetensors")) == ["a", "c"]
    write(scratch / "copied.safetensors", tied, ties=COPY)
    assert_same(tied, load_file(scratch / "copied.safetensors"))


def test_save_pretrained_gives_the_same_files(scratch):
    from transformers import AutoModelForMaskedLM, BertConfig, BertForMaskedLM

    torch.manual_seed(0)
    config = BertConfig(vocab_size=99, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=24, max_position_embeddings=20)
    model = BertForMaskedLM(config)
    ours, theirs = scratch / "written", scratch / "pretrained"
    model.save_pretrained(theirs, max_shard_size="8KB")
    index = json.loads((theirs / "model.safetensors.index.json").read_text())
    writer = Writer(ours, max_shard_bytes=8000, ties=DROP, total_parameters=index["metadata"]["total_parameters"])
    for name, tensor in model.state_dict().items():
        writer.add(name, tensor)
    for path in theirs.iterdir():
        if ".safetensors" not in path.name:
            writer.side_file(path.name, path.read_bytes())
    writer.commit()
    assert sorted(p.name for p in ours.iterdir()) == sorted(p.name for p in theirs.iterdir())
    for path in theirs.iterdir():
        assert (ours / path.name).read_bytes() == path.read_bytes(), path.name
    again = AutoModelForMaskedLM.from_pretrained(ours)
    assert_same(model.state_dict(), again.state_dict())
