"""Tensors of heft in torch, beside torch and safetensors themselves."""

from __future__ import annotations

import copy
import gc
import io
import os
import pickle
import subprocess
import sys
import threading
from collections import OrderedDict
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")

import heft  # noqa: E402

DTYPES = [
    "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 uint16 uint32 uint64 bool complex64 "
    "float8_e4m3fn float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz float8_e8m0fnu float4_e2m1fn_x2"
][0].split()


def some(dtype: str, *shape: int) -> torch.Tensor:
    kind = getattr(torch, dtype)
    count = 1
    for size in shape:
        count *= size
    size = count * kind.itemsize
    data = torch.randint(0, 2 if dtype == "bool" else 120, (size,), dtype=torch.uint8)
    return data.view(kind).reshape(shape)


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if a.dim() == 0:
        a, b = a.reshape(1), b.reshape(1)
    a, b = (x.clone(memory_format=torch.contiguous_format).view(torch.uint8) for x in (a, b))
    return torch.equal(a, b)


def mapped(path: Path) -> int:
    return Path("/proc/self/maps").read_text().count(str(path))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "x.safetensors"
    safetensors_torch.save_file({"a": torch.arange(12.0).reshape(3, 4), "b": torch.arange(5)}, path)
    return path


# ---- dtypes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0, 4), (3, 4), (2, 3, 4)])
def test_every_dtype_of_safetensors(tmp_path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    path = tmp_path / "x.safetensors"
    if dtype == "float4_e2m1fn_x2" and shape in ((), (0, 4)):
        pytest.skip("safetensors writes no float4 of this shape")
    want = some(dtype, *shape)
    safetensors_torch.save_file({"pad": torch.zeros(3, dtype=torch.uint8), "x": want}, path)  # misaligned
    checkpoint = heft.open(path)
    for got in (
        checkpoint["x"].torch(),
        checkpoint["x"].torch(copy=True),
        checkpoint["x"].torch(copy=False),
        torch.from_dlpack(checkpoint["x"]),
        checkpoint["x"].read().torch(),
        heft.load(path)["x"],
        heft.load(path, mode="copy")["x"],
        heft.safetensors.torch.load_file(path)["x"],
        heft.safetensors.torch.load_file(path, backend="pread")["x"],
        heft.safetensors.torch.load(path.read_bytes())["x"],
    ):
        assert same(got, want)
    again = tmp_path / "y.safetensors"
    heft.safetensors.torch.save_file({"x": want}, again)
    assert same(safetensors_torch.load_file(again)["x"], want)
    heft.save_file({"x": checkpoint["x"]}, again)
    assert same(safetensors_torch.load_file(again)["x"], want)


@pytest.mark.parametrize("to", ["float32", torch.bfloat16, "torch.float16", "f64"])
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "int32"])
def test_casts_as_torch_does(tmp_path: Path, dtype: str, to: object) -> None:
    path = tmp_path / "x.safetensors"
    want = torch.randn(37, 5).to(getattr(torch, dtype))
    safetensors_torch.save_file({"x": want, "n": torch.arange(3)}, path)
    kind = {"f64": torch.float64, "float32": torch.float32, "torch.float16": torch.float16}.get(to, to)  # type: ignore[call-overload]
    assert same(heft.open(path)["x"].torch(to), want.to(kind))
    assert same(heft.open(path)["x"][3:, 2].torch(to), want[3:, 2].to(kind))
    loaded = heft.load(path, dtype=to)
    assert same(loaded["x"], want if dtype == "int32" else want.to(kind))
    assert same(loaded["n"], torch.arange(3))


def test_what_torch_has_not(tmp_path: Path) -> None:
    from conftest import safetensors_bytes

    checkpoint = heft.open(safetensors_bytes({"f6": ("F6_E2M3", [4], b"\1\2\3")}))
    assert checkpoint["f6"].tobytes() == b"\1\2\3"
    with pytest.raises(TypeError, match="float6"):
        checkpoint["f6"].torch()


# ---- writes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["open", "load", "load_file", "shared", "bytes"])
def test_an_in_place_write_stays_where_it_is(file: Path, how: str) -> None:
    content = file.read_bytes()
    make = {
        "open": lambda: heft.open(file)["a"].torch(),
        "load": lambda: heft.load(file)["a"],
        "load_file": lambda: heft.safetensors.torch.load_file(file)["a"],
        "shared": lambda: heft.load(file, dtype=torch.float64, share=True)["a"],
        "bytes": lambda: heft.open(content)["a"].torch(),
    }[how]
    tensor, other = make(), make()
    tensor.fill_(5)
    tensor.add_(1)
    assert tensor.eq(6).all() and other.flatten().tolist() == list(range(12))
    assert file.read_bytes() == content
    assert make().flatten().tolist() == list(range(12))


def test_training_on_mapped_parameters(file: Path) -> None:
    content = file.read_bytes()
    parameter = torch.nn.Parameter(heft.open(file)["a"].torch())
    optimizer = torch.optim.SGD([parameter], 0.1)
    (parameter**2).sum().backward()
    optimizer.step()
    assert parameter.grad is not None and file.read_bytes() == content


# ---- lifetime ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("last", ["tensor", "view", "parameter", "storage", "numpy", "memoryview"])
def test_a_mapping_lives_as_long_as_its_last_tensor(file: Path, last: str) -> None:
    checkpoint = heft.open(file)
    tensor = checkpoint["a"].torch()
    kept = {
        "tensor": lambda: tensor,
        "view": lambda: tensor[1:, 2],
        "parameter": lambda: torch.nn.Parameter(tensor),
        "storage": lambda: tensor.untyped_storage(),
        "numpy": lambda: tensor.numpy(),
        "memoryview": lambda: memoryview(tensor.numpy()),
    }[last]()
    checkpoint.close()
    assert mapped(file) == 1
    del checkpoint, tensor
    gc.collect()
    assert mapped(file) == 1
    del kept
    gc.collect()
    assert mapped(file) == 0


def test_without_close_the_checkpoint_goes_with_its_last_lazy_tensor(file: Path) -> None:
    lazy = heft.open(file)["a"]
    tensor = lazy.torch()
    assert mapped(file) == 1
    del lazy
    assert mapped(file) == 1
    del tensor
    assert mapped(file) == 0


def test_a_tensor_may_die_on_any_thread(file: Path) -> None:
    box = [heft.open(file)["a"].torch()]
    thread = threading.Thread(target=box.clear)
    thread.start()
    thread.join()
    assert mapped(file) == 0


# ---- ties -------------------------------------------------------------------------------------------


@pytest.fixture
def tied(tmp_path: Path) -> Path:
    base = torch.arange(1 << 18, dtype=torch.float32)
    path = tmp_path / "tied.bin"
    torch.save(
        {"a": base, "b": base, "row": base[10:20], "t": base[:12].reshape(3, 4).t(), "own": torch.ones(3)}, path
    )
    return path


def tied_ways() -> list[str]:
    return ["open", "load", "copy", "shared", "torch"]


@pytest.mark.parametrize("how", tied_ways())
def test_ties_are_one_storage(tied: Path, how: str) -> None:
    want = torch.load(tied)
    checkpoint = heft.open(tied)
    got = {
        "open": lambda: {name: checkpoint[name].torch() for name in checkpoint},
        "load": lambda: heft.load(tied),
        "copy": lambda: heft.load(tied, mode="copy"),
        "shared": lambda: heft.load(tied, dtype="bfloat16", share=True),
        "torch": lambda: heft.torch.load(tied),
    }[how]()
    assert list(got) == list(want)
    for name, tensor in want.items():
        assert same(got[name], tensor.to(got[name].dtype)), name
    assert got["a"].untyped_storage()._cdata == got["b"].untyped_storage()._cdata
    out = io.BytesIO()
    torch.save({"a": got["a"], "b": got["b"]}, out)
    assert len(out.getvalue()) < 1.1 * got["a"].nbytes + 4096
    got["a"][3] = -1.0
    assert got["b"][3] == -1.0
    if how in ("open", "load", "torch"):
        assert got["t"].stride() == want["t"].stride()
        assert got["row"].untyped_storage()._cdata == got["a"].untyped_storage()._cdata
    assert got["own"].untyped_storage()._cdata != got["a"].untyped_storage()._cdata


def test_tensors_of_the_shared_copy_are_saved_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    safetensors_torch.save_file({"big": torch.zeros(1 << 18), "small": torch.ones(4)}, path)
    small = heft.load(path, dtype="bfloat16", share=True)["small"]
    out = io.BytesIO()
    torch.save(small, out)
    assert len(out.getvalue()) < 4096


# ---- as torch's own ---------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["map", "shared"])
def test_fork_pickle_deepcopy_share_memory(file: Path, how: str) -> None:
    tensor = heft.load(file)["a"] if how == "map" else heft.load(file, dtype="float64", share=True)["a"]
    content = file.read_bytes()
    child = os.fork()
    if child == 0:
        tensor.fill_(9)
        os._exit(0 if tensor.eq(9).all() else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert tensor[0, 1] == 1
    again = pickle.loads(pickle.dumps(tensor))
    assert same(again, tensor) and len(pickle.dumps(tensor)) < 2000
    deep = copy.deepcopy(tensor)
    deep.fill_(1)
    assert tensor[0, 0] == 0
    tensor.share_memory_()
    assert tensor.is_shared() and tensor[2, 3] == 11
    child = os.fork()
    if child == 0:
        tensor.fill_(8)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert tensor.eq(8).all() and file.read_bytes() == content


def test_a_module_takes_them(file: Path) -> None:
    module = torch.nn.Linear(4, 3, bias=False, device="meta")
    module.load_state_dict({"weight": heft.open(file)["a"].torch()}, assign=True)
    assert module(torch.ones(4)).tolist() == [6.0, 22.0, 38.0]
    module = torch.nn.Linear(4, 3, bias=False)
    module.load_state_dict({"weight": heft.load(file)["a"]})
    assert module(torch.ones(4)).tolist() == [6.0, 22.0, 38.0]


# ---- heft.torch -------------------------------------------------------------------------------------


def test_torch_save_and_load(tmp_path: Path) -> None:
    base = torch.randn(6)
    state = OrderedDict(a=base, b=base, c=torch.nn.Parameter(torch.ones(2, 2)), d=torch.arange(4).reshape(2, 2).t())
    for target in (tmp_path / "x.pt", str(tmp_path / "y.bin"), io.BytesIO()):
        heft.torch.save(state, target)
        if isinstance(target, io.BytesIO):
            target.seek(0)
        got = torch.load(target, weights_only=True)
        assert list(got) == list(state)
        assert all(same(got[name], tensor.detach()) for name, tensor in state.items())
        assert got["a"].untyped_storage()._cdata == got["b"].untyped_storage()._cdata
        if isinstance(target, io.BytesIO):
            target.seek(0)
        again = heft.torch.load(target)
        assert all(same(again[name], tensor.detach()) for name, tensor in state.items())
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    heft.torch.save(module.state_dict(), tmp_path / "m.pt")
    loaded = torch.load(tmp_path / "m.pt")
    assert loaded._metadata == module.state_dict()._metadata
    assert loaded._metadata["1"] == {"version": 2}
    module.load_state_dict(loaded)
    with pytest.raises(RuntimeError, match="Parent directory"):
        heft.torch.save(state, tmp_path / "no" / "z.pt")
    assert not (tmp_path / "no").exists()


def test_torch_load_runs_nothing(tmp_path: Path) -> None:
    with pytest.raises(heft.RefusedError, match="weights_only"):
        heft.torch.load(tmp_path / "x.pt", weights_only=False)
    with pytest.raises(FileNotFoundError):
        heft.torch.load(tmp_path / "x.pt")

    class Attack:
        def __reduce__(self) -> tuple[object, ...]:
            return os.system, (f"touch {tmp_path}/attacked",)

    torch.save({"a": torch.ones(2), "b": Attack()}, tmp_path / "x.pt")
    with pytest.raises(heft.RefusedError) as caught:
        heft.torch.load(tmp_path / "x.pt")
    assert caught.value.offset is not None
    assert not (tmp_path / "attacked").exists()


@pytest.mark.parametrize(
    ("place", "device"),
    [
        (lambda storage, _: storage, "cpu"),
        (lambda storage, _: None, "cpu"),
        ({"cuda:0": "cpu"}, "cpu"),
        ({"cpu": "meta"}, "meta"),
        (torch.device("meta"), "meta"),
    ],
)
def test_places_of_torch_load(place: object, device: str, tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "x.pt")
    assert heft.torch.load(tmp_path / "x.pt", map_location=place)["w"].device.type == device


def test_writing_what_torch_has(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tensors = {
        "grad": torch.ones(2, requires_grad=True),
        "t": torch.arange(6).reshape(2, 3).t(),
        "conj": torch.tensor([1 + 2j]).to(torch.complex64).conj(),
        "neg": torch.tensor([1 + 2j]).to(torch.complex64).conj().imag,
        "expanded": torch.ones(1).expand(3),
    }
    heft.save_file(tensors, path, {"k": "v"})
    got = safetensors_torch.load_file(path)
    assert all(same(got[name], tensor.detach().resolve_conj().resolve_neg()) for name, tensor in tensors.items())
    assert heft.open(path).metadata == {"k": "v"}
    with pytest.raises(ValueError):
        heft.save_file({"s": torch.eye(2).to_sparse()}, path)
    with pytest.raises(NotImplementedError):
        heft.save_file({"m": torch.empty(2, device="meta")}, path)
    base = torch.ones(4)
    with pytest.raises(heft.InvalidArgError):
        heft.save_file({"a": base, "b": base}, path)
    assert list(heft.open(path).keys()) == list(got) or set(heft.open(path)) == set(tensors)
    assert heft.save_file({"a": base, "b": base}, path, ties="drop").warnings
    assert list(heft.open(path)) == ["a"]


def test_one_copy_for_many_processes(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    safetensors_torch.save_file({"w": torch.randn(4 << 20)}, path)
    code = f"""
import heft, sys
w = memoryview(heft.load({str(path)!r}, dtype="float64", share=True, to="heft")["w"])
print(sum(w[i] for i in range(0, len(w), 511)), flush=True)
sys.stdin.read()
"""

    def pss(pid: int) -> int:
        total, inside = 0, False
        for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
            if "-" in line.split(" ")[0]:
                inside = "memfd:heft" in line
            elif inside and line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
        return total

    children = [
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    sums = {child.stdout.readline() for child in children if child.stdout}
    sizes = [pss(child.pid) for child in children]
    for child in children:
        child.communicate("")
    assert len(sums) == 1
    assert 0.9 * (32 << 20) < sum(sizes) < 1.05 * (32 << 20), sizes


# ---- what users have met ----------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_inside_a_device_context(file: Path, tied: Path, device: str) -> None:
    with torch.device(device):  # as Transformers has it round from_pretrained()
        checkpoint = heft.open(tied)
        tensors = [heft.open(file)["a"].torch(), heft.load(file)["a"], heft.load(file, dtype="float64")["a"]]
        tensors += [checkpoint[name].torch() for name in checkpoint]
        tensors += [*heft.load(tied).values(), *heft.safetensors.torch.load_file(file).values()]
        tensors += [heft.open(file)["b"].torch("float32"), heft.safetensors.torch.load(file.read_bytes())["a"]]
    assert {tensor.device.type for tensor in tensors} == {"cpu"}


def test_in_inference_mode(file: Path, tied: Path) -> None:
    with torch.inference_mode():
        assert heft.load(file)["a"].add_(1)[0, 0] == 1
        assert heft.load(tied)["b"][3] == 3


def test_errors_and_readers_cross_processes(tmp_path: Path, file: Path) -> None:
    (tmp_path / "bad").write_bytes(b"\x08\0\0\0\0\0\0\0nonsense")
    with pytest.raises(heft.safetensors.SafetensorError) as caught:
        heft.safetensors.safe_open(tmp_path / "bad", "pt")
    again = pickle.loads(pickle.dumps(caught.value))
    assert type(again) is heft.safetensors.SafetensorError
    assert (str(again), again.status, again.offset) == (str(caught.value), caught.value.status, caught.value.offset)
    assert pickle.loads(pickle.dumps(heft.safetensors.safe_open)) is heft.safetensors.safe_open
    for unpicklable in (heft.open(file), heft.open(file)["a"], heft.safetensors.safe_open(file, "pt")):
        with pytest.raises(TypeError, match="pickle"):
            pickle.dumps(unpicklable)


def test_several_empty_tensors(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tensors = {"a": torch.tensor([]), "b": torch.tensor([]), "c": torch.zeros(4)[:0], "d": torch.zeros(4, 4)[:, :0]}
    for module in (safetensors_torch, heft.safetensors.torch):
        module.save_file(tensors, path)
        for reader in (safetensors_torch, heft.safetensors.torch):
            assert {name: tuple(t.shape) for name, t in reader.load_file(path).items()} == {
                name: tuple(t.shape) for name, t in tensors.items()
            }
    assert all(same(tensor, tensors[name]) for name, tensor in heft.load(path).items())
    heft.torch.save(tensors, tmp_path / "x.pt")
    assert all(same(tensor, tensors[name]) for name, tensor in torch.load(tmp_path / "x.pt").items())


def test_channels_last(tmp_path: Path) -> None:
    weight = torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)
    heft.save_file({"w": weight}, tmp_path / "x.safetensors")
    heft.torch.save({"w": weight}, tmp_path / "x.pt")
    torch.save({"w": weight}, tmp_path / "y.pt")
    for name in ("x.safetensors", "x.pt", "y.pt"):
        assert torch.equal(heft.load(tmp_path / name)["w"], weight)
        assert torch.equal(heft.load(tmp_path / name, dtype="float64")["w"], weight.double())
        assert torch.equal(heft.open(tmp_path / name)["w"][1:3, :, 1].torch(), weight[1:3, :, 1])
    assert heft.load(tmp_path / "y.pt")["w"].stride() == weight.stride()
    with pytest.raises(ValueError, match="contiguous"):
        heft.safetensors.torch.save_file({"w": weight}, tmp_path / "x.safetensors")


def test_tensors_without_memory_are_refused(tmp_path: Path) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        fake = torch.empty(3)
    for tensor in (fake, torch.empty(3, device="meta"), torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])):
        with pytest.raises((heft.HeftError, NotImplementedError, RuntimeError, ValueError, BufferError, TypeError)):
            heft.save_file({"w": tensor}, tmp_path / "x.safetensors")
    assert not (tmp_path / "x.safetensors").exists()


def test_a_subclass_of_tensor(tmp_path: Path) -> None:
    class Sub(torch.Tensor):  # type: ignore[misc]
        pass

    heft.save_file({"w": torch.ones(3).as_subclass(Sub), "p": torch.nn.Parameter(torch.ones(2))}, tmp_path / "x.pt")
    assert heft.load(tmp_path / "x.pt")["w"].tolist() == [1, 1, 1]


def test_a_dead_file_of_a_tensor_in_a_checkpoint(tmp_path: Path, file: Path) -> None:
    """The file is replaced, as by a second save: what is mapped stays as it was."""
    tensor = heft.load(file)["a"]
    heft.safetensors.torch.save_file({"a": torch.zeros(3, 4)}, file)
    assert tensor.flatten().tolist() == list(range(12))
    assert heft.load(file)["a"].eq(0).all()
    heft.safetensors.torch.save_file(heft.load(file), file)  # onto itself
    assert heft.load(file)["a"].eq(0).all()


# ---- files of many kinds ----------------------------------------------------------------------------

FORMATS = Path(__file__).parents[2] / "tests" / "data" / "formats"


@pytest.mark.parametrize("name", sorted(p.name for p in FORMATS.glob("*.pt")))
def test_files_of_every_kind_as_torch_reads_them(name: str) -> None:
    try:
        want = torch.load(FORMATS / name, weights_only=True, map_location="cpu")
    except Exception as error:
        pytest.skip(f"torch: {type(error).__name__}")
    if not isinstance(want, dict) or not all(
        isinstance(key, str) and isinstance(tensor, torch.Tensor) for key, tensor in want.items()
    ):
        pytest.skip("no flat state dict")
    if name in ("zip_odd_keys.pt", "zip_quantized.pt", "zip_sparse.pt"):  # docs/formats/pickle.md
        with pytest.raises((heft.RefusedError, heft.UnsupportedError)):
            heft.open(FORMATS / name)
        return
    checkpoint = heft.open(FORMATS / name)
    left_out = [key for key in want if key not in checkpoint]
    assert all(want[key].layout != torch.strided or want[key].is_quantized or want[key].is_meta for key in left_out)
    loaded, copied = heft.torch.load(FORMATS / name), heft.torch.load(FORMATS / name, mmap=False)
    compared = 0
    for key, tensor in want.items():
        if key in left_out:
            continue
        try:
            tensor = tensor.resolve_conj().resolve_neg().detach().clone()
            tensor.reshape(-1).view(torch.uint8)
        except (RuntimeError, NotImplementedError):
            continue  # torch's own: bits and other dtypes that it cannot copy
        for got in (checkpoint[key].torch(), checkpoint[key].torch(copy=True), loaded[key], copied[key]):
            assert same(got, tensor), key
        if tensor.dim() and tensor.shape[0] > 1:
            assert same(checkpoint[key][1:].torch(), tensor[1:]), key
            assert same(checkpoint[key].slice(-1, 1, 2).torch(), tensor.chunk(2, -1)[1]) or tensor.shape[-1] < 2, key
        compared += 1
    assert compared or not set(want) - set(left_out)


def test_float4(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    want = torch.arange(32, dtype=torch.uint8).reshape(4, 8).view(torch.float4_e2m1fn_x2)
    safetensors_torch.save_file({"x": want}, path)
    tensor = heft.open(path)["x"]
    assert tensor.shape == (4, 16) and tensor.torch().shape == (4, 8)

    def values(part: torch.Tensor) -> list[list[int]]:
        return part.view(torch.uint8).tolist()

    assert values(tensor[1:3].torch()) == values(want)[1:3]
    assert values(tensor[:, 2:6].torch()) == [row[1:3] for row in values(want)]
    for part in (lambda: tensor[:, 1:3], lambda: tensor.map()[:, 1:]):
        with pytest.raises((heft.InvalidArgError, BufferError)):
            part().torch()
    with pytest.raises((heft.InvalidArgError, IndexError)):
        tensor.map()[0, 1]
