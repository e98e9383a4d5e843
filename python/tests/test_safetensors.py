"""heft.safetensors beside safetensors: the same calls on the same files, with equal results and exceptions."""

from __future__ import annotations

import gc
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
numpy = pytest.importorskip("numpy")
theirs = pytest.importorskip("safetensors")
import safetensors.numpy  # noqa: E402
import safetensors.torch  # noqa: E402

import heft  # noqa: E402

ours = heft.safetensors
# ours may be a subclass of theirs; these differ by more, on purpose: docs/howto/python.md
NAMES = "save save_file load load_file save_model load_model".split()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "p.safetensors"
    safetensors.torch.save_file(
        {
            "b": torch.arange(24, dtype=torch.float32).reshape(4, 6),
            "a": torch.arange(3),
            "s": torch.tensor(2.5),
            "e": torch.zeros(0, 3),
            "h": torch.ones(2, 2, dtype=torch.bfloat16),
        },
        path,
        {"k": "v"},
    )
    return path


def outcome(call: Callable[[], Any]) -> tuple[str, Any]:
    try:
        return "value", call()
    except Exception as error:
        return "error", error


def agree(left: tuple[str, Any], right: tuple[str, Any]) -> None:
    assert left[0] == right[0], (left, right)
    if left[0] == "error":
        assert isinstance(right[1], type(left[1])) or type(left[1]) in (OSError, RuntimeError), (left, right)
        return
    equal(left[1], right[1])


def equal(a: Any, b: Any) -> None:
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    elif isinstance(a, numpy.ndarray):
        assert a.dtype == b.dtype and a.shape == b.shape and (a == b).all() and a.flags.writeable == b.flags.writeable
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            equal(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            equal(x, y)
    else:
        assert a == b


@pytest.mark.parametrize("module", ["torch", "numpy"])
def test_signatures(module: str) -> None:
    left, right = getattr(safetensors, module), getattr(ours, module)
    for name in NAMES:
        if hasattr(left, name):
            a, b = (inspect.signature(getattr(m, name)).parameters.values() for m in (left, right))
            assert [(p.name, p.kind, p.default) for p in a] == [(p.name, p.kind, p.default) for p in b], name


OPENING = {
    "missing": lambda m, p: m.safe_open(p.parent / "nope", "pt"),
    "hub name": lambda m, p: m.safe_open("org/name", "pt"),
    "directory": lambda m, p: m.safe_open(p.parent, "pt"),
    "framework": lambda m, p: m.safe_open(p, "xx"),
    "no framework": lambda m, p: m.safe_open(p),
    "backend": lambda m, p: m.safe_open(p, "pt", backend="zz"),
    "bytes": lambda m, p: m.safe_open(str(p).encode(), "pt"),
    "none": lambda m, p: m.safe_open(None, "pt"),
    "device": lambda m, p: m.safe_open(p, "pt", device="zz"),
    "meta": lambda m, p: m.safe_open(p, "pt", device="meta"),
    "torch device": lambda m, p: m.safe_open(p, "pt", device=torch.device("cpu")),
    "keys": lambda m, p: m.safe_open(str(p), "pt").keys(),
    "names": lambda m, p: [m.safe_open(p, n).keys() for n in ("pt", "torch", "pytorch", "np", "numpy")],
    "offset_keys": lambda m, p: m.safe_open(p, "pt").offset_keys(),
    "metadata": lambda m, p: m.safe_open(p, "pt").metadata(),
    "get": lambda m, p: [m.safe_open(p, f).get_tensor("b") for f in ("pt", "np")],
    "pread": lambda m, p: [m.safe_open(p, f, backend="pread").get_tensor("b") for f in ("pt", "np")],
    "all": lambda m, p: m.safe_open(p, "pt").get_tensors(),
    "no such": lambda m, p: m.safe_open(p, "pt").get_tensor("zz"),
    "no such slice": lambda m, p: m.safe_open(p, "pt").get_slice("zz"),
    "int name": lambda m, p: m.safe_open(p, "pt").get_tensor(3),
    "bf16 in numpy": lambda m, p: m.safe_open(p, "np").get_tensor("s"),
    "len": lambda m, p: len(m.safe_open(p, "pt")),
    "in": lambda m, p: "a" in m.safe_open(p, "pt"),
    "subscript": lambda m, p: m.safe_open(p, "pt")["a"],
    "shape": lambda m, p: [m.safe_open(p, "pt").get_slice(n).get_shape() for n in "abseh"],
    "dtype": lambda m, p: [m.safe_open(p, "pt").get_slice(n).get_dtype() for n in "abseh"],
}


@pytest.mark.parametrize("case", OPENING)
def test_opening(file: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent)
    agree(*(outcome(lambda m=m: OPENING[case](m, file)) for m in (theirs, ours)))


def test_closing(file: Path) -> None:
    results = []
    for module in (theirs, ours):
        with module.safe_open(file, "pt") as opened:
            part = opened.get_slice("b")
            assert opened.__enter__() is opened
        calls = (opened.keys, opened.metadata, lambda: opened.get_tensor("b"), lambda: part[1:3], opened.offset_keys)
        results.append([outcome(call) for call in calls])
    for left, right in zip(*results, strict=True):
        agree(left, right)


KEYS = [
    slice(None), slice(1, 3), slice(None, None, 2), (slice(None), slice(None, None, 2)), slice(None, None, -1), 2, -1,
    7, ..., (..., 1), (1, 2), None, [0, 1], (slice(None), [0, 2]), slice(1, 99), slice(3, 1), slice(-3, -1), (1, 1, 1),
    (), "x", slice(-9, 2), torch.tensor([1, 2]), (slice(1, 2), slice(2, 4)), (2, slice(1, 3)),
]  # fmt: skip


@pytest.mark.parametrize("framework", ["pt", "np"])
@pytest.mark.parametrize("key", KEYS, ids=repr)
@pytest.mark.filterwarnings("ignore")
def test_slices(file: Path, framework: str, key: Any) -> None:
    if framework == "np" and not (
        isinstance(key, (int, slice)) or (isinstance(key, tuple) and all(isinstance(k, (int, slice)) for k in key))
    ):
        pytest.skip("safetensors' own indexing, which takes less than numpy's")
    if framework == "np" and isinstance(key, slice) and key.step is not None:
        pytest.skip("safetensors' own indexing, which takes less than numpy's")
    results = [outcome(lambda m=m: m.safe_open(file, framework).get_slice("b")[key]) for m in (theirs, ours)]
    # safetensors takes no negative numbers and no stop beyond the end here; heft does as numpy
    if framework == "pt" or results[0][0] == "value" or results[1][0] == "error":
        agree(*results)


BAD = {
    "empty": b"",
    "short": b"\x10\0\0\0\0\0\0\0{broken",
    "huge header": b"\xff" * 20,
    "no json": b"\x08\0\0\0\0\0\0\0nonsense",
    "overlap": b'\x70\0\0\0\0\0\0\0{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
    b'"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}      \0\0\0\0',
    "hole": b'\x40\0\0\0\0\0\0\0{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}          \0\0\0\0\0\0\0\0',
    "pickle": b"\x80\x02}q\x00.",
}


@pytest.mark.parametrize("case", BAD)
def test_malformed(tmp_path: Path, case: str) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(BAD[case])
    for call in (
        lambda m: m.safe_open(path, "pt"),
        lambda m: m.torch.load_file(path),
        lambda m: m.numpy.load_file(path),
        lambda m: m.torch.load(BAD[case]),
        lambda m: m.numpy.load(BAD[case]),
    ):
        left, right = (outcome(lambda m=m: call(m)) for m in (theirs, ours))
        agree(left, right)
        assert isinstance(right[1], (theirs.SafetensorError, heft.HeftError)) and right[1].status != "ERROR"


def test_a_pickle_is_not_opened_as_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    torch.save({"a": torch.ones(2)}, path)
    agree(*(outcome(lambda m=m: m.safe_open(path, "pt")) for m in (theirs, ours)))


SAVING = {
    "plain": lambda: ({"b": torch.zeros(2, 3), "a": torch.ones(1, dtype=torch.int8), "c": torch.ones(2).half()}, None),
    "metadata": lambda: ({"a": torch.ones(1)}, {"é": "\n"}),
    "scalar and empty": lambda: ({"s": torch.tensor(3), "e": torch.zeros(0, 4)}, None),
    "nothing": lambda: ({}, None),
    "grad": lambda: ({"a": torch.zeros(4, requires_grad=True)}, None),
    "parameter": lambda: ({"a": torch.nn.Parameter(torch.zeros(4))}, None),
    "parts of one storage": lambda: (dict(zip("ab", torch.arange(8).split(4), strict=True)), None),
    "names": lambda: ({"a.b/c\\\"": torch.ones(1), "日本": torch.ones(1)}, None),
    "tied": lambda: ((lambda x: ({"a": x, "b": x}, None))(torch.zeros(4))),
    "overlap": lambda: ((lambda x: ({"a": x[:3], "b": x[2:]}, None))(torch.zeros(4))),
    "transposed": lambda: ({"a": torch.zeros(4, 3).t()}, None),
    "int": lambda: ({"a": 1}, None),
    "list": lambda: ([torch.zeros(1)], None),
    "sparse": lambda: ({"a": torch.eye(3).to_sparse()}, None),
    "meta": lambda: ({"a": torch.zeros(3, device="meta")}, None),
    "int key": lambda: ({3: torch.zeros(3)}, None),
    "int value": lambda: ({"a": torch.zeros(3)}, {"k": 3}),
    "complex128": lambda: ({"a": torch.zeros(3, dtype=torch.complex128)}, None),
}


@pytest.mark.parametrize("case", SAVING)
def test_saving_torch(tmp_path: Path, case: str) -> None:
    results = []
    for module in (theirs, ours):
        path = tmp_path / module.__name__
        tensors, metadata = SAVING[case]()
        memory = outcome(lambda m=module: m.torch.save(tensors, metadata))
        on_disk = outcome(lambda m=module: m.torch.save_file(tensors, path, metadata))
        assert memory[0] == on_disk[0] and path.exists() == (on_disk[0] == "value")
        results.append((memory, ("value", path.read_bytes()) if path.exists() else on_disk))
    for left, right in zip(*results, strict=True):
        agree(left, right)


@pytest.mark.parametrize(
    "arrays",
    [
        {"a": numpy.zeros(2), "c": numpy.ones(1, dtype=numpy.int8)},
        {"a": numpy.arange(2, dtype=">i4"), "b": numpy.array(True)},
        {"a": numpy.zeros((0, 2), dtype=numpy.float16), "c": numpy.array([1j], dtype=numpy.complex64)},
        {"a": numpy.array([None])},
        {"a": [1]},
        {"a": numpy.array("x")},
        {"a": numpy.zeros(2, dtype=complex)},
    ],
)
def test_saving_numpy(tmp_path: Path, arrays: dict[str, Any]) -> None:
    agree(*(outcome(lambda m=m: m.numpy.save(arrays, {"k": "v"})) for m in (theirs, ours)))
    left, right = tmp_path / "left", tmp_path / "right"
    agree(outcome(lambda: theirs.numpy.save_file(arrays, left)), outcome(lambda: ours.numpy.save_file(arrays, right)))
    assert left.exists() == right.exists()
    if left.exists():
        assert left.read_bytes() == right.read_bytes()
        equal(theirs.numpy.load_file(left), ours.numpy.load_file(left))


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    for call in (
        lambda m: m.torch.save_file({"a": torch.ones(1)}, tmp_path / "no" / "x"),
        lambda m: m.torch.save_file({"a": torch.ones(1)}, tmp_path),
        lambda m: m.numpy.save_file({"a": numpy.ones(1)}, tmp_path / "no" / "x"),
    ):
        agree(*(outcome(lambda m=m: call(m)) for m in (theirs, ours)))
    assert not (tmp_path / "no").exists()


def test_load_file_and_load(file: Path) -> None:
    equal(theirs.torch.load_file(file), ours.torch.load_file(file))
    equal(theirs.torch.load_file(file, backend="pread"), ours.torch.load_file(file, backend="pread"))
    a, b = theirs.torch.load(file.read_bytes()), ours.torch.load(file.read_bytes())
    equal(dict(sorted(a.items())), dict(sorted(b.items())))  # theirs are in no order
    for wrong in ("x", None, 3):
        agree(*(outcome(lambda m=m: m.torch.load(wrong)) for m in (theirs, ours)))


@pytest.mark.parametrize("framework", ["pt", "np"])
@pytest.mark.parametrize("backend", ["mmap", "pread"])
def test_who_sees_a_write(file: Path, framework: str, backend: str) -> None:
    """Arrays are copies, and so are tensors that were read; mapped tensors show the same memory."""
    seen = []
    for library in (theirs, ours):
        with library.safe_open(file, framework, backend=backend) as opened:
            whole, part = opened.get_tensor("b"), opened.get_slice("b")
            some = part[1:3]
            whole[1], some[1] = 100, 200
            seen.append([opened.get_tensor("b"), part[1:3], part[...], opened.get_slice("b")[:2], some, whole])
    equal(*seen)
    equal(theirs.torch.load_file(file), ours.torch.load_file(file))  # the file is as it was


class Tied(torch.nn.Module):  # type: ignore[misc]
    def __init__(self, extra: bool = False) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(5, 3)
        self.head = torch.nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight
        self.norm = torch.nn.BatchNorm1d(3)
        if extra:
            self.extra = torch.nn.Linear(2, 2)


@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize("strict", [False, True])
def test_models(tmp_path: Path, saved: bool, loaded: bool, strict: bool) -> None:
    torch.manual_seed(1)
    model = Tied(saved)
    paths = [tmp_path / "left", tmp_path / "right"]
    for module, path in zip((theirs, ours), paths, strict=True):
        module.torch.save_model(model, str(path), {"k": "v"})
    # safetensors writes metadata in no order; the tensors follow the header
    headers = [theirs.safe_open(path, "pt") for path in paths]
    assert headers[0].metadata() == headers[1].metadata() and headers[0].offset_keys() == headers[1].offset_keys()
    assert paths[0].stat().st_size == paths[1].stat().st_size
    equal(theirs.torch.load_file(paths[0]), theirs.torch.load_file(paths[1]))
    results, models = [], [Tied(loaded), Tied(loaded)]
    models[1].load_state_dict(models[0].state_dict())
    for module, target in zip((theirs, ours), models, strict=True):
        results.append(outcome(lambda m=module, t=target: m.torch.load_model(t, paths[0], strict=strict)))
    agree(*results)
    if results[0][0] == "error":
        assert str(results[0][1]) == str(results[1][1])
    for name, tensor in models[0].state_dict().items():
        assert torch.equal(tensor, models[1].state_dict()[name]), name
    assert models[1].head.weight is models[1].embed.weight


def test_parts_of_a_storage_are_no_model(tmp_path: Path) -> None:
    class Parts(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            base = torch.zeros(6)
            self.a, self.b = torch.nn.Parameter(base[:4]), torch.nn.Parameter(base[2:])

    agree(*(outcome(lambda m=m: m.torch.save_model(Parts(), str(tmp_path / "x"))) for m in (theirs, ours)))


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("call", ["load_file", "load", "broken"])
def test_the_garbage_collector_is_as_it_was(call: str, enabled: bool, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    import_torch = ours.import_torch

    def watched(*args: Any) -> Any:
        seen.append(gc.isenabled())
        if call == "broken":
            raise KeyboardInterrupt
        return import_torch(*args)

    monkeypatch.setattr(ours, "import_torch", watched)
    monkeypatch.setattr(ours.torch, "import_torch", watched)
    was = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        if call == "load":
            ours.torch.load(file.read_bytes())
        elif call == "load_file":
            ours.torch.load_file(file)
        else:
            with pytest.raises(KeyboardInterrupt):
                ours.torch.load_file(file)
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if was else gc.disable)()
    assert seen and not any(seen)
