"""How the package behaves: progress, logging, Control-C, threads, paths, wrong arguments."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import safetensors_bytes

import heft

MIB = 1 << 20


def sparse(path: Path, tensors: int, elements: int) -> Path:
    """A file of float32 zeros that takes no disk."""
    header = safetensors_bytes({f"w{i}": ("F32", [elements], b"") for i in range(tensors)})
    text = header[8:].decode()
    for i in range(tensors):
        text = text.replace("[0,0]", f"[{4 * elements * i},{4 * elements * (i + 1)}]", 1)
    content = text.strip().encode()
    content += b" " * (-len(content) % 8)
    path.write_bytes(struct.pack("<Q", len(content)) + content)
    os.truncate(path, path.stat().st_size + 4 * tensors * elements)
    return path


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sparse(tmp_path_factory.mktemp("large") / "model.safetensors", 4, 25 * MIB)


# ---- progress ------------------------------------------------------------------------------------------


def on_a_terminal(code: str) -> str:
    """What a program shows on a terminal as its standard error."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))  # tqdm shows nothing where there is no room
    process = subprocess.Popen([sys.executable, "-c", code], stderr=theirs, stdout=subprocess.DEVNULL)
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        shown += part
    os.close(ours)
    assert process.wait(120) == 0, shown.decode()
    return shown.decode()


BAR = "import heft, sys, heft._progress as p; p.DELAY = {delay}; {more}; heft.load({path!r}, dtype='bfloat16', to='heft'{option})"


@pytest.mark.parametrize(
    ("case", "delay", "option", "more", "shows"),
    [
        ("a bar", 0, "", "pass", True),
        ("short work", 100, "", "pass", False),
        ("always", 100, ", progress=True", "pass", True),
        ("never", 0, ", progress=False", "pass", False),
        ("a function", 0, ", progress=lambda *what: None", "pass", False),
        ("no tqdm", 0, "", "sys.modules['tqdm'] = None", False),
        ("not a terminal", 0, "", "sys.stderr = open('/dev/null', 'w')", False),
        ("no stderr", 0, "", "sys.stderr = None", False),
    ],
)
def test_a_bar_where_a_terminal_is(case: str, delay: int, option: str, more: str, shows: bool, large: Path) -> None:
    pytest.importorskip("tqdm")
    shown = on_a_terminal(BAR.format(delay=delay, more=more, path=str(large), option=option))
    assert ("reading" in shown) == shows, shown
    assert "Traceback" not in shown


# ---- Control-C -----------------------------------------------------------------------------------------

INTERRUPTED = {
    "load": "heft.load(source, dtype='bfloat16', to='heft')",
    "load, shared": "heft.load(source, dtype='bfloat16', to='heft', share=True)",
    "read": "heft.open(source)['w0'].read('bfloat16')",
    "convert": "heft.convert(source, target, dtype='bfloat16', force=True)",
    "verify": "heft.verify(source, deep=True)",
    "diff": "heft.diff(source, source)",
    "save": "heft.save_file(dict(heft.open(source)), os.path.join(target, 'saved.safetensors'))",
    "save .bin": "heft.save_file(dict(heft.open(source)), os.path.join(target, 'saved.bin'))",
}


@pytest.mark.parametrize("what", INTERRUPTED)
def test_sigint_cancels_and_leaves_nothing(what: str, large: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    code = f"""
import heft, os, sys
source, target = {str(large)!r}, {str(target)!r}
print("go", flush=True)
try:
    for n in range(1000):
        {INTERRUPTED[what]}
    print("finished")
except KeyboardInterrupt:
    print("interrupted", heft._heft.memory()[0] < 1 << 20)
    if "share" in {what!r}:
        print(len(heft.load(source, dtype='bfloat16', to='heft', share=True)))
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "go\n", process.communicate()
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=100)
    assert out.split("\n")[0] == "interrupted True", (out, errors)
    if "share" in what:
        assert out.split("\n")[1] == "4"
    names = {name for _, _, files in os.walk(target) for name in files}
    whole = {"model.safetensors", "saved.safetensors", "saved.bin"}
    assert names <= whole, names  # no temporary files
    for name in names:  # what is there is whole
        assert heft.verify(target / name).ok
        assert len(heft.open(target / name)) == 4


def test_sigint_in_modules(large: Path) -> None:
    pytest.importorskip("torch")
    code = f"""
import heft, torch, sys
heft.load_into
class M(torch.nn.Module):
    def __init__(self):
        super().__init__()
        for i in range(4):
            setattr(self, f"w{{i}}", torch.nn.Parameter(torch.empty(25 << 20, dtype=torch.bfloat16, device="meta")))
print("go", flush=True)
try:
    for n in range(1000):
        m = M()
        heft.load_into(m, {str(large)!r})
    print("finished")
except KeyboardInterrupt:
    print("interrupted", {{p.device.type for p in m.parameters()}} in ({{"meta"}}, {{"cpu"}}))
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "go\n", process.communicate()
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=100)
    assert out == "interrupted True\n", (out, errors)


# ---- logging -------------------------------------------------------------------------------------------


def messages(caplog: pytest.LogCaptureFixture, level: str = "WARNING") -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == level and record.name == "heft"]


def test_what_load_into_logs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch = pytest.importorskip("torch")
    path = tmp_path / "a.safetensors"
    path.write_bytes(
        safetensors_bytes(
            {
                "weight": ("F32", [2, 2], struct.pack("<4f", 1, 2, 3, 4)),
                "more": ("F32", [1], struct.pack("<f", 1)),
            }
        )
    )
    with caplog.at_level("INFO", "heft"):
        heft.load_into(torch.nn.Linear(2, 2), path, strict=False)
        assert messages(caplog) == [
            f"{tmp_path}: 1 tensors are not in the checkpoint, and stay as they are: bias",
            f"{tmp_path}: 1 tensors of the checkpoint are not in the module: more",
        ]
        caplog.clear()
        heft.load_into(torch.nn.Linear(2, 2, device="meta"), path, strict=False)
        assert f"{tmp_path}: 1 tensors are not in the checkpoint, and were initialized: bias" in messages(caplog)
        caplog.clear()
        heft.load_into(torch.nn.Linear(2, 2, bias=False).half(), path, strict=False)
        assert "1 tensors were cast from float32 to float16" in messages(caplog)
        caplog.clear()
        heft.load_into(torch.nn.Linear(2, 2, bias=False).double(), path, strict=False)
        assert "1 tensors were cast from float32 to float64" in messages(caplog, "INFO")
        assert not any("cast" in message for message in messages(caplog))


@pytest.mark.parametrize(
    ("old", "new", "kept"),
    [
        ("bfloat16", "float32", True),
        ("float16", "float32", True),
        ("float32", "float64", True),
        ("float16", "bfloat16", False),
        ("bfloat16", "float16", False),
        ("float32", "bfloat16", False),
        ("float8_e4m3fn", "float16", True),
        ("float8_e5m2", "float16", True),
        ("float8_e4m3fn", "bfloat16", True),
        ("float8_e5m2", "float8_e4m3fn", False),
        ("int8", "int32", True),
        ("uint8", "int8", False),
        ("int64", "float32", False),
        ("bool", "float32", True),
        ("complex64", "float32", False),
    ],
)
def test_which_casts_are_worth_a_warning(old: str, new: str, kept: bool) -> None:
    pytest.importorskip("torch")
    from heft._modules import _keeps_values

    assert _keeps_values(old, new) is kept


def test_skipped_objects_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch = pytest.importorskip("torch")
    path = tmp_path / "a.pt"
    torch.save({"model": {"w": torch.ones(2)}, "epoch": 3, "optimizer": {"lr": 0.1}}, path)
    with caplog.at_level("WARNING", "heft"):
        assert list(heft.load(path)) == ["w"]
    assert messages(caplog) == [f"{path}: 2 values are no tensors, and are skipped: epoch, optimizer.lr"]


# ---- threads -------------------------------------------------------------------------------------------


def test_many_threads_on_one_mapping_and_on_several(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    paths = []
    for k in range(3):
        paths.append(tmp_path / f"{k}.safetensors")
        paths[-1].write_bytes(
            safetensors_bytes({f"t{i}": ("F32", [32, 32], struct.pack("<1024f", *([k * 100.0 + i] * 1024))) for i in range(30)})
        )
    one = heft.open(paths[0])
    wrong: list[Any] = []

    def work(seed: int) -> None:
        try:
            for n in range(60):
                k, i = (seed + n) % 4, (seed * 7 + n) % 30
                if k == 3:  # the common mapping
                    content = one[f"t{i}"].torch(torch.float64 if n % 2 else None)
                    expected = float(i)
                elif n % 3 == 0:
                    content = heft.load(paths[k], dtype="float64", share=bool(n % 2))[f"t{i}"]
                    expected = k * 100.0 + i
                else:
                    with heft.open(paths[k]) as mine:
                        content = mine[f"t{i}"].slice(n % 2, seed % 4, 4).torch()
                    expected = k * 100.0 + i
                if not bool((content == expected).all()):
                    wrong.append((seed, n))
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert wrong == [] and not any(thread.is_alive() for thread in threads)


# ---- paths, arguments, errors --------------------------------------------------------------------------


class Place:
    """An os.PathLike that is not a pathlib.Path."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __fspath__(self) -> str:
        return str(self.path)


def test_path_like_everywhere(folder: Path, tmp_path: Path) -> None:
    source = Place(folder)
    assert len(heft.open(source)) == len(heft.load(source, to="heft")) == 6
    assert heft.verify(source, deep=True)
    assert heft.convert(source, Place(tmp_path / "out")).files
    with pytest.raises(heft.NotFoundError, match=r"config\.json"):
        heft.plan(source)
    tensors = heft.load(source, to="heft")
    heft.save_file(tensors, Place(tmp_path / "saved.safetensors"))
    assert len(heft.open(Place(tmp_path / "saved.safetensors"))) == 6


def test_path_like_with_torch(folder: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    heft.torch.save({"a": torch.ones(2)}, Place(tmp_path / "a.pt"))  # type: ignore[arg-type]
    assert heft.torch.load(Place(tmp_path / "a.pt"))["a"].tolist() == [1, 1]  # type: ignore[arg-type]
    heft.safetensors.torch.save_file({"a": torch.ones(2)}, Place(tmp_path / "a.safetensors"))  # type: ignore[arg-type]
    assert heft.safetensors.torch.load_file(Place(tmp_path / "a.safetensors"))["a"].tolist() == [1, 1]
    module = torch.nn.ParameterDict({"a": torch.nn.Parameter(torch.zeros(2))})
    heft.load_into(module, Place(tmp_path / "a.safetensors"))  # type: ignore[arg-type]
    assert module["a"].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("kind", "call"),
    [
        (TypeError, lambda h, p: h.open(3)),
        (TypeError, lambda h, p: h.open(None)),
        (TypeError, lambda h, p: h.open(p, variant=3)),
        (TypeError, lambda h, p: h.load(p, dtype=3)),
        (ValueError, lambda h, p: h.load(p, dtype="float33")),
        (ValueError, lambda h, p: h.load(p, mode="x")),
        (ValueError, lambda h, p: h.load(p, to="x")),
        (TypeError, lambda h, p: h.load(p, progress=3)),
        (TypeError, lambda h, p: h.load(p, progress="bar")),
        (ValueError, lambda h, p: h.open(p)["grid"].slice(0, 2, 2)),
        (ValueError, lambda h, p: h.open(p)["grid"].slice(0, 0, 0)),
        (IndexError, lambda h, p: h.open(p)["grid"].slice(2, 0, 1)),
        (TypeError, lambda h, p: h.open(p)["grid"].slice(0, "a", 2)),
        (KeyError, lambda h, p: h.open(p)["nope"]),
        (ValueError, lambda h, p: h.convert(p, "x", format="zip")),
        (ValueError, lambda h, p: h.convert(p, "x", max_shard_size="9 bananas")),
        (TypeError, lambda h, p: h.convert(p, None)),
        (TypeError, lambda h, p: h.verify(None)),
        (TypeError, lambda h, p: h.verify(p, progress=3)),
        (TypeError, lambda h, p: h.diff(p, None)),
        (TypeError, lambda h, p: h.diff(p)),
        (TypeError, lambda h, p: h.diff(p, p, progress=3)),
        (TypeError, lambda h, p: h.diff(p, p, tolerance="1")),
        (TypeError, lambda h, p: bool(h.diff(p, p))),
        (ValueError, lambda h, p: h.diff(p, p, tolerance=-1)),
        (ValueError, lambda h, p: h.diff(p, p, tolerance=float("nan"))),
        (ValueError, lambda h, p: h.diff(p, p, format="gguf")),
        (ValueError, lambda h, p: h.plan(p, strategy="x")),
        (TypeError, lambda h, p: h.save_file([1], "x.pt")),
        (TypeError, lambda h, p: h.save_file({"a": 3}, p.parent / "x.pt")),
        (ValueError, lambda h, p: h.save_file({}, p.parent / "x.foo")),
    ],
)
def test_wrong_arguments(kind: type[Exception], call: Any, simple: Path) -> None:
    with pytest.raises(kind):
        call(heft, simple)


@pytest.mark.parametrize(
    ("kind", "call"),
    [
        (TypeError, lambda h, p: h.load_into(3, p)),
        (TypeError, lambda h, p: h.load_sharded_checkpoint(3, p.parent)),
        (TypeError, lambda h, p: h.from_pretrained(3, p.parent)),
        (TypeError, lambda h, p: h.save_pretrained(3, p.parent / "out")),
        (TypeError, lambda h, p: h.torch.load(p, map_location=lambda storage, place: 3)),
        (heft.RefusedError, lambda h, p: h.torch.load(p, weights_only=False)),
    ],
)
def test_wrong_arguments_with_torch(kind: type[Exception], call: Any, simple: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    with pytest.raises(kind):
        call(heft, simple)


def test_an_error_says_where(tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(safetensors_bytes({"w": ("F32", [4], b"\0" * 16)})[:-4])
    with pytest.raises(heft.HeftError) as caught:
        heft.open(path)
    error = caught.value
    assert error.status == "FORMAT" and error.path == str(path) and error.offset is not None
    assert isinstance(error, ValueError) and str(path) in str(error)


def test_names_of_64_kib_load_in_every_mode(tmp_path: Path) -> None:
    path = tmp_path / "long.safetensors"
    names = ["layers.0." + "n" * 2000, "a." * 20000 + "w", "x" * (64 << 10)]
    path.write_bytes(safetensors_bytes({name: ("F32", [2], struct.pack("<2f", i, 5)) for i, name in enumerate(names)}))
    for options in ({}, {"mode": "copy"}, {"dtype": "float64"}, {"dtype": "float64", "share": True}):
        state = heft.load(path, to="heft", **options)
        code = "d" if "dtype" in options else "f"
        assert {name: memoryview(tensor).cast("B").cast(code)[0] for name, tensor in state.items()} == dict(
            zip(names, range(3), strict=True)
        )
