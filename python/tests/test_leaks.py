"""Nothing grows when operations are repeated: references, memory of heft, mappings, file descriptors."""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import run_models
from test_operations import CONFIG

import heft
import heft.run
from heft import _heft


def raises(kind: type[Exception], call: Callable[[], object]) -> None:
    try:  # not pytest.raises(), which keeps more than it needs
        call()
    except kind:
        return
    raise AssertionError(f"no {kind.__name__}")


def growth(work: Callable[[], object], times: int) -> tuple[int, int, int, int]:
    """How much grew from the first to the last repetitions: blocks of Python, heft's bytes, mappings, files."""

    def state() -> tuple[int, int, int, int]:
        gc.collect()
        maps = len(Path("/proc/self/maps").read_text().splitlines())
        return sys.getallocatedblocks(), _heft.memory()[0], maps, len(os.listdir("/proc/self/fd"))

    for _ in range(30):
        work()
    rounds = []
    for _ in range(8):  # caches and free lists fill in the first ones; a leak is in all of them
        before = state()
        for _ in range(times):
            work()
        rounds.append(tuple(b - a for a, b in zip(before, state(), strict=True)))
    return min(rounds)  # type: ignore[return-value]


def use(simple: Path) -> None:
    with heft.open(simple) as checkpoint:
        for name in checkpoint:
            tensor = checkpoint[name]
            repr(tensor), tensor.shape, tensor.dtype, tensor._stored, tensor.map()._layout
            tensor.tobytes()
            tensor.__dlpack__(max_version=(1, 0))
            tensor.__dlpack__()
            _heft.from_dlpack("x", tensor.__dlpack__())
            tensor.read()._storage()
        memoryview(checkpoint["grid"][1:, 2]).tolist()
        memoryview(checkpoint["grid"].map()[:, 1:2]).tolist()
        checkpoint["grid"].slice(0, 1, 2).read("float64")
        checkpoint.metadata, checkpoint.files, checkpoint._raw.ties()
        _heft.read_into([(checkpoint["ids"], checkpoint["ids"].read().__dlpack__())])


def fail(simple: Path) -> None:
    checkpoint = heft.open(simple)
    raises(heft.NotFoundError, lambda: heft.open(simple.parent / "nope"))
    raises(heft.FormatError, lambda: heft.open(b""))
    raises(IndexError, lambda: checkpoint["grid"][9])
    raises(TypeError, lambda: checkpoint["grid"][None])
    raises(ValueError, lambda: checkpoint["grid"].read("float4_e2m1fn_x2"))
    raises(ValueError, lambda: _heft.read_into([(checkpoint["grid"], checkpoint["ids"].read().__dlpack__())]))
    raises(TypeError, lambda: _heft.from_dlpack("x", 3))
    raises(BufferError, lambda: checkpoint["grid"].__dlpack__(stream=3))  # type: ignore[arg-type]
    raises(ValueError, lambda: heft.load(simple, dtype="nope"))
    raises(TypeError, lambda: heft.save_file({"a": 3}, simple.parent / "x.pt"))
    raises(ValueError, lambda: heft.save_file({"a": checkpoint["ids"]}, simple.parent / "x.nope"))
    raises(TypeError, lambda: heft.convert(simple, simple.parent / "y", metadata={"a": 3}))  # type: ignore[dict-item]


def operate(simple: Path) -> None:
    target = simple.parent / "target"
    heft.convert(simple.parent / "simple.safetensors", target, force=True, metadata={"a": "b"})
    heft.verify(target, deep=True)
    heft.diff(target, simple)
    config = simple.parent / "c" / "config.json"
    config.parent.mkdir(exist_ok=True)
    config.write_text(json.dumps(CONFIG))
    heft.plan(config, max_memory={"cpu": 1000, "disk": 10**9})
    heft.save_file(heft.open(simple), simple.parent / "out.pt")
    heft.open(simple.read_bytes())["ids"].tobytes()


def load(simple: Path) -> None:
    for options in ({}, {"mode": "copy"}, {"dtype": "float64"}, {"dtype": "float64", "share": True}):
        heft.load(simple, to="heft", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("work", "times"), [(use, 60), (fail, 60), (operate, 25), (load, 60)])
def test_nothing_grows(simple: Path, work: Callable[[Path], None], times: int) -> None:
    blocks, bytes_, maps, files = growth(lambda: work(simple), times)
    assert blocks < times and bytes_ == 0 and maps <= 3 and files == 0, (blocks, bytes_, maps, files)


def test_nothing_grows_in_sessions(tmp_path: Path) -> None:
    place = run_models.make(tmp_path / "llama", run_models.LLAMA, around=False)
    (place / "other").mkdir()
    numpy = importlib.util.find_spec("numpy") is not None
    model = heft.run.Model(place)

    def work() -> None:
        with heft.run.Session(model) as session:
            session.generate("the cat", max_new_tokens=3, ignore_eos=True, temperature=1.0).text
            next(session.stream([5, 6], max_new_tokens=5))
            kept = session.sequence(8)
            if numpy:
                session.forward([[5, 6], [7, 8]], attention_mask=[[1, 1], [1, 0]]).logits
                session.forward([[5, 6], [7]], sequence=[kept, session.sequence(4)])
                session.embed([[5, 6]], pooling="mean")
                raises(heft.NotFoundError, lambda: session.forward([5], outputs=["nope"]))
            kept.fork().close()
            raises(ValueError, lambda: session.generate([64]))
            raises(ValueError, lambda: session.generate([5] * 70))
            raises(ValueError, lambda: session._raw.run([(kept._raw, b"abc", *[None] * 6, 0)], ["logits"]))
            raises(TypeError, lambda: session._raw.run([(3, *[None] * 7, 0)], ["logits"]))
            raises(TypeError, lambda: session._raw.sample(0, [5], (0, 0, 0), (0, 0, 0, 0, 0, 0)))
            session.generate([5], max_new_tokens=1)
            raises(IndexError, lambda: session._raw.sample(5, b"", (0, 0, 0), (0, 0, 0, 0, 0, 0)))
            session.facts, session.output_names, repr(session)
        raises(heft.LimitError, lambda: heft.run.Session(model, memory=1000).generate([5], max_new_tokens=1))
        raises(heft.NotFoundError, lambda: heft.run.Tokenizer(place / "other"))
        tokenizer = heft.run.Tokenizer(place)
        tokenizer.decode(tokenizer.encode("the cat")), tokenizer.special_ids, tokenizer.token(6), tokenizer.id("the")
        raises(ValueError, lambda: tokenizer.decode([-1]))
        heft.run.Session(place, threads=1).generate([5], max_new_tokens=1)
        raises(heft.HeftError, lambda: heft.run.Model(place, class_name="Nope"))

    blocks, bytes_, maps, files = growth(work, 10)
    assert blocks < 10 and bytes_ == 0 and maps <= 3 and files == 0, (blocks, bytes_, maps, files)


def test_nothing_grows_in_torch(simple: Path) -> None:
    torch = pytest.importorskip("torch")

    def work() -> None:
        with heft.open(simple) as checkpoint:
            kept = [checkpoint[name].torch() for name in checkpoint]
            checkpoint["grid"].torch("bfloat16").add_(1)
        heft.load(simple)
        heft.load(simple, dtype=torch.float64)
        heft.safetensors.torch.load_file(simple)
        heft.safetensors.torch.load(simple.read_bytes())
        heft.safetensors.torch.save_file(heft.load(simple), simple.parent / "t.safetensors")
        heft.torch.save({"a": kept[0], "b": kept[0]}, simple.parent / "t.pt")
        heft.torch.load(simple.parent / "t.pt")
        nested = {"state": {0: [kept[0], (1, "x" * 100, 1 << 80)]}, "dict": OrderedDict(a=1), "set": {1.5}, "b": b"y" * 100}
        heft.torch.save(nested, simple.parent / "t.pt")
        heft.torch.load(simple.parent / "t.pt")
        heft.torch.load(simple.parent / "t.pt", mmap=False)

    blocks, bytes_, maps, files = growth(work, 25)
    assert blocks < 25 and bytes_ == 0 and maps <= 3 and files == 0, (blocks, bytes_, maps, files)


def test_references_of_arguments(simple: Path) -> None:
    data, name, progress = simple.read_bytes(), "y" * 50, lambda *what: None
    counts = [sys.getrefcount(x) for x in (data, name, progress)]
    for _ in range(5):
        checkpoint = heft.open(data, progress=progress)
        tensor = checkpoint["grid"]
        _heft.from_dlpack(name, tensor.__dlpack__())
        heft.load(checkpoint, dtype="float64", to="heft", progress=progress)
        del checkpoint, tensor
    assert [sys.getrefcount(x) for x in (data, name, progress)] == counts
