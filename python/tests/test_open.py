"""heft.open() and heft.Tensor without any other library."""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest
from conftest import safetensors_bytes

import heft
from heft import _heft


def test_import_is_quick_and_needs_nothing() -> None:
    code = (
        "import time; t = time.perf_counter(); import heft; t = time.perf_counter() - t; import sys;"
        "print(t * 1000, *[m for m in ('torch', 'numpy', 'safetensors', 'transformers', 'accelerate',"
        "'huggingface_hub', 'logging', 'asyncio', 'inspect') if m in sys.modules])"
    )
    best = 1e9
    for _ in range(5):
        out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
        assert out[1:] == []
        best = min(best, float(out[0]))
    assert best < (500 if "HEFT_PYTHON_SLOW" in os.environ else 50)


def test_a_checkpoint_is_a_mapping(simple: Path) -> None:
    checkpoint = heft.open(simple)
    assert isinstance(checkpoint, Mapping)
    assert list(checkpoint) == ["grid", "ids", "one", "none", "half"]
    assert len(checkpoint) == 5
    assert "grid" in checkpoint and "nope" not in checkpoint and 3 not in checkpoint
    assert checkpoint.metadata == {"format": "pt", "made by": "hand"}
    assert checkpoint.files[0]["format"] == "safetensors"
    assert checkpoint.nbytes == 96 + 24 + 8 + 0 + 8
    assert checkpoint.folder == str(simple.parent)
    assert checkpoint.index is None and checkpoint.skipped == [] and checkpoint.warnings == []
    assert {name: tensor.shape for name, tensor in checkpoint.items()}["grid"] == (4, 6)
    assert checkpoint.get("nope") is None
    with pytest.raises(KeyError, match="nope"):
        checkpoint["nope"]


def test_a_tensor_tells_what_it_is(simple: Path) -> None:
    tensor = heft.open(simple)["grid"]
    assert (tensor.name, tensor.dtype, tensor.shape, tensor.ndim, tensor.nbytes) == ("grid", "float32", (4, 6), 2, 96)
    assert tensor.lazy and not tensor.map().lazy and not tensor.read().lazy
    assert repr(tensor) == "heft.Tensor('grid', float32, [4, 6])"
    assert len(tensor) == 4
    with pytest.raises(TypeError):
        len(heft.open(simple)["one"])
    with pytest.raises(TypeError):
        heft.Tensor()
    with pytest.raises(TypeError):
        pickle.dumps(tensor)
    with pytest.raises(TypeError):
        pickle.dumps(heft.open(simple))


@pytest.mark.parametrize("kind", ["path", "str", "folder", "index", "bytes", "bytearray", "memoryview"])
def test_everything_can_be_opened(kind: str, simple: Path, folder: Path) -> None:
    source = {
        "path": lambda: simple,
        "str": lambda: str(simple),
        "folder": lambda: folder,
        "index": lambda: folder / "model.safetensors.index.json",
        "bytes": simple.read_bytes,
        "bytearray": lambda: bytearray(simple.read_bytes()),
        "memoryview": lambda: memoryview(simple.read_bytes()),
    }[kind]()
    with heft.open(source) as checkpoint:
        name = "layer.2.1" if kind in ("folder", "index") else "ids"
        content = struct.pack("<4f", 2, 1, 0, 1) if name == "layer.2.1" else struct.pack("<3q", 7, 8, 9)
        assert checkpoint[name].tobytes() == content
        assert bytes(checkpoint[name]) == content


def test_names_of_the_hub_are_found_in_its_cache(tmp_path: Path, simple: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--org--name"
    (repository / "snapshots" / commit).mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots" / commit / "model.safetensors").write_bytes(simple.read_bytes())
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    assert len(heft.open("org/name")) == 5
    with pytest.raises(heft.NotFoundError):
        heft.open("org/other")


def test_bytes_are_borrowed_and_released(simple: Path) -> None:
    data = bytearray(simple.read_bytes())
    checkpoint = heft.open(data)
    with pytest.raises(BufferError):
        data.append(0)  # it cannot move while it is used
    kept = memoryview(checkpoint["ids"])
    checkpoint.close()
    data.append(0)
    assert kept.tolist() == [7, 8, 9]  # a copy
    with pytest.raises(heft.FormatError):
        heft.open(b"\x10\0\0\0\0\0\0\0{")
    with pytest.raises(TypeError):
        heft.open(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        heft.open(None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="null"):
        heft.open("a\0b")


# ---- indexing ---------------------------------------------------------------------------------------


def grid(rows: range, columns: range) -> list[list[float]]:
    return [[float(6 * row + column) for column in columns] for row in rows]


@pytest.mark.parametrize("state", ["lazy", "map", "read"])
def test_slices(simple: Path, state: str) -> None:
    lazy = heft.open(simple)["grid"]
    tensor = lazy if state == "lazy" else getattr(lazy, state)()

    def values(part: heft.Tensor) -> object:
        return memoryview(part).tolist()

    assert values(tensor[:]) == grid(range(4), range(6))
    assert values(tensor[...]) == grid(range(4), range(6))
    assert values(tensor[()]) == grid(range(4), range(6))
    assert values(tensor[1:3]) == grid(range(1, 3), range(6))
    assert values(tensor[-3:-1, 4:99]) == grid(range(1, 3), range(4, 6))
    assert values(tensor[2]) == grid(range(2, 3), range(6))[0]
    assert values(tensor[-1, -1]) == 23.0
    assert values(tensor[..., 1]) == [1.0, 7.0, 13.0, 19.0]
    assert values(tensor[1:, 2:4][1:, 1]) == [15.0, 21.0]
    assert values(tensor[1:, 2:4][..., 1][2]) == 21.0
    assert tensor[3:1].shape == (0, 6) and values(tensor[3:1]) == []
    assert tensor[:, 2:2].shape == (4, 0)
    assert tensor[:, 2:4].tobytes() == struct.pack("<8f", 2, 3, 8, 9, 14, 15, 20, 21)


@pytest.mark.parametrize(
    ("key", "error"),
    [
        (4, IndexError),
        (-5, IndexError),
        ((0, 6), IndexError),
        ((0, 0, 0), IndexError),
        ((..., ...), IndexError),
        (2**70, IndexError),
        (slice(None, None, 2), ValueError),
        (slice(None, None, -1), ValueError),
        (slice(None, None, 0), ValueError),
        (None, TypeError),
        (True, TypeError),
        ("a", TypeError),
        (1.0, TypeError),
        ([0, 1], TypeError),
    ],
)
def test_wrong_slices(simple: Path, key: object, error: type[Exception]) -> None:
    checkpoint = heft.open(simple)
    for tensor in (checkpoint["grid"], checkpoint["grid"].map()):
        with pytest.raises(error):
            tensor[key]


def test_slices_of_a_scalar(simple: Path) -> None:
    tensor = heft.open(simple)["one"]
    assert memoryview(tensor[...]).tolist() == 2.5
    assert memoryview(tensor[()]).tolist() == 2.5
    with pytest.raises(IndexError):
        tensor[0]
    with pytest.raises(IndexError):
        tensor.slice(0, 0, 1)


def test_ranks_get_what_torch_chunk_gives(simple: Path) -> None:
    tensor = heft.open(simple)["grid"]
    assert [tensor.slice(0, rank, 3).shape[0] for rank in range(3)] == [2, 2, 0]
    assert [tensor.slice(1, rank, 4).shape[1] for rank in range(4)] == [2, 2, 2, 0]
    assert [tensor.slice(-1, rank, 9).shape[1] for rank in range(9)] == [1] * 6 + [0] * 3
    assert memoryview(tensor.slice(1, 1, 2)).tolist() == grid(range(4), range(3, 6))
    for arguments in ((0, 2, 2), (0, -1, 2), (0, 0, 0)):
        with pytest.raises(ValueError):
            tensor.slice(*arguments)
    with pytest.raises(IndexError):
        tensor.slice(2, 0, 1)


def test_a_slice_reads_only_its_bytes(tmp_path: Path) -> None:
    rows, columns = 4096, 4096
    path = tmp_path / "big.safetensors"
    head = safetensors_bytes({"w": ("F32", [rows, columns], b"")})
    head = head.replace(b"[0,0]", b"[0,%d]" % (rows * columns * 4))
    head = struct.pack("<Q", len(head) - 8) + head[8:]
    with open(path, "wb") as file:
        file.write(head)
        file.truncate(len(head) + rows * columns * 4)

    def read_by_the_process() -> int:
        lines = Path("/proc/self/io").read_text().splitlines()
        return int(dict(line.split(": ") for line in lines)["rchar"])

    tensor = heft.open(path)["w"]
    before = read_by_the_process()
    assert len(tensor.slice(0, 1, 64).read().tobytes()) == rows * columns * 4 // 64
    rows_read = read_by_the_process() - before
    assert rows_read < 2 * rows * columns * 4 // 64
    before = read_by_the_process()
    assert len(tensor.slice(1, 1, 2).read().tobytes()) == rows * columns * 4 // 2
    assert read_by_the_process() - before < 1.1 * rows * columns * 4


# ---- buffers and DLPack -----------------------------------------------------------------------------


def test_buffers(simple: Path) -> None:
    checkpoint = heft.open(simple)
    view = memoryview(checkpoint["grid"])
    assert (view.format, view.shape, view.strides, view.readonly, view.nbytes) == ("f", (4, 6), (24, 4), False, 96)
    view[1, 1] = 100.0
    assert memoryview(checkpoint["grid"])[1, 1] == 100.0  # one mapping
    assert memoryview(heft.open(simple)["grid"])[1, 1] == 7.0  # another one, and the file
    assert memoryview(checkpoint["none"]).tolist() == []
    assert memoryview(checkpoint["one"]).shape == ()
    half = memoryview(checkpoint["half"])  # a dtype without a code of the struct module
    assert (half.format, half.itemsize, half.shape) == ("2x", 2, (2, 2))
    packed = memoryview(heft.open(safetensors_bytes({"f4": ("F4", [2, 4], b"1234")}))["f4"])
    assert (packed.itemsize, packed.shape, packed.tobytes()) == (1, (4,), b"1234")
    assert b"".join([checkpoint["half"]]) == checkpoint["half"].tobytes()


def test_a_buffer_outlives_everything(simple: Path) -> None:
    checkpoint = heft.open(simple)
    view = memoryview(checkpoint["ids"].map())
    checkpoint.close()
    del checkpoint
    assert view.tolist() == [7, 8, 9]
    assert str(simple) in Path("/proc/self/maps").read_text()
    view.release()
    assert str(simple) not in Path("/proc/self/maps").read_text()


def test_dlpack(simple: Path) -> None:
    checkpoint = heft.open(simple)
    tensor = checkpoint["grid"]
    assert tensor.__dlpack_device__() == (1, 0)
    assert '"dltensor"' in repr(tensor.__dlpack__())
    assert '"dltensor"' in repr(tensor.__dlpack__(max_version=(0, 8)))
    assert '"dltensor_versioned"' in repr(tensor.__dlpack__(max_version=(1, 0)))
    assert '"dltensor_versioned"' in repr(tensor.__dlpack__(max_version=(2, 0), dl_device=(1, 0), copy=True))
    for wrong in ({"stream": 1}, {"dl_device": (2, 0)}):
        with pytest.raises(BufferError):
            tensor.__dlpack__(**wrong)  # type: ignore[arg-type]
    for wrong in ({"max_version": 1}, {"max_version": (1,)}, {"dl_device": ("cpu", 0)}):
        with pytest.raises(TypeError):
            tensor.__dlpack__(**wrong)  # type: ignore[arg-type]
    assert tensor.__dlpack__(copy=False) and tensor[1:3].__dlpack__(copy=False)
    with pytest.raises(BufferError, match="copied"):
        tensor[:, 1:3].__dlpack__(copy=False)
    capsule = tensor.__dlpack__(max_version=(1, 0))
    again = _heft.from_dlpack("again", capsule)
    assert again.name == "again" and again.tobytes() == tensor.tobytes()
    with pytest.raises(TypeError, match="used"):
        _heft.from_dlpack("twice", capsule)
    with pytest.raises(TypeError):
        _heft.from_dlpack("no capsule", tensor)
    assert _heft.from_dlpack("t", checkpoint["half"][:, 1].__dlpack__()).tobytes() == b"\x00\x40\x80\x40"


def test_read_into_memory_of_others(simple: Path) -> None:
    checkpoint = heft.open(simple)
    target, ids = checkpoint["grid"].read("bfloat16"), checkpoint["ids"].read()
    part = checkpoint["grid"][1:3, 2:4].read()
    memoryview(ids)[:] = memoryview(checkpoint["ids"].read())
    for tensor in (ids, part):
        ctypes.memset((ctypes.c_char * tensor.nbytes).from_buffer(tensor), 0, tensor.nbytes)
    _heft.read_into(
        [
            (checkpoint["grid"], target.__dlpack__(max_version=(1, 0))),
            (checkpoint["ids"], ids.__dlpack__()),
            (checkpoint["grid"][1:3, 2:4], part.__dlpack__()),
        ]
    )
    assert ids.tobytes() == checkpoint["ids"].tobytes()
    assert memoryview(part).tolist() == grid(range(1, 3), range(2, 4))
    assert target.tobytes() == checkpoint["grid"].read("bfloat16").tobytes()
    _heft.read_into([])
    for pairs in ([(checkpoint["grid"], ids.__dlpack__())], [(ids, ids.__dlpack__())]):
        with pytest.raises(ValueError):
            _heft.read_into(pairs)
    with pytest.raises(ValueError):  # of another checkpoint
        _heft.read_into([(checkpoint["ids"], ids.__dlpack__()), (heft.open(simple)["ids"], ids.__dlpack__())])
    with pytest.raises(TypeError):
        _heft.read_into([3])  # type: ignore[list-item]


# ---- casts ------------------------------------------------------------------------------------------


def test_casts(simple: Path) -> None:
    checkpoint = heft.open(simple)
    assert memoryview(checkpoint["half"].read("float32")).tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert memoryview(checkpoint["half"][1].read("f64")).tolist() == [3.0, 4.0]
    assert memoryview(checkpoint["grid"].map()[:, 1].read("float64")).tolist() == [1.0, 7.0, 13.0, 19.0]
    assert memoryview(checkpoint["grid"][1].read("int32")).tolist() == [6, 7, 8, 9, 10, 11]
    assert memoryview(checkpoint["ids"].read("float32")).tolist() == [7.0, 8.0, 9.0]
    for tensor in (checkpoint["grid"], checkpoint["grid"].map()):
        with pytest.raises(heft.InvalidArgError, match="float4_e2m1fn_x2"):
            tensor.read("float4_e2m1fn_x2")
        with pytest.raises(ValueError, match="nonsense"):
            tensor.read("nonsense")
        with pytest.raises(TypeError):
            tensor.read(3)  # type: ignore[arg-type]


# ---- errors -----------------------------------------------------------------------------------------


def test_each_status_has_a_class() -> None:
    from heft import _errors

    assert set(_errors.CLASSES) == set(_heft.STATUSES) - {"OK"}
    for status, kind in _errors.CLASSES.items():
        error = _errors.make(status, "what", "/a/b", "item", 17, 5)
        assert type(error) is kind and error.status == status
        assert str(error) == "/a/b: item: byte 17: what"
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is kind and vars(again) == vars(error) and str(again) == str(error)
        if isinstance(error, OSError):
            assert (error.errno, error.filename) == (5, "/a/b")
    assert str(_errors.make("FORMAT", "what", "", "", None, 0)) == "what"


@pytest.mark.parametrize(
    ("content", "kind", "offset"),
    [
        (b"", heft.FormatError, 0),
        (b"\x08\0\0\0\0\0\0\0", heft.FormatError, 0),
        (safetensors_bytes({"a": ("F32", [3], b"\0" * 8)}), heft.FormatError, None),
        (safetensors_bytes({"a": ("F32", [2**62, 4], b"\0" * 8)}), heft.FormatError, None),
        (safetensors_bytes({"a": ("F99", [2], b"\0" * 8)}), heft.HeftError, None),
        (safetensors_bytes({"a": ("F32", [2], b"\0" * 8)})[:-1], heft.FormatError, None),
        (b"\x80\x02cposix\nsystem\nq\x00X\x02\x00\x00\x00idq\x01\x85q\x02Rq\x03.", heft.HeftError, None),
    ],
)
def test_malformed_files(tmp_path: Path, content: bytes, kind: type[heft.HeftError], offset: int | None) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(kind) as caught:
        heft.open(path)
    assert caught.value.path == str(path)
    assert str(path) in str(caught.value)
    if offset is not None:
        assert caught.value.offset == offset
    with pytest.raises(heft.HeftError):  # without a name, what is no format at all is not supported
        heft.open(content)


def test_missing_things(tmp_path: Path, folder: Path) -> None:
    for path in (tmp_path / "nope", tmp_path / "nope.safetensors"):
        with pytest.raises(FileNotFoundError) as caught:
            heft.open(path)
        assert isinstance(caught.value, heft.NotFoundError) and caught.value.status == "NOT_FOUND"
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError):
        heft.open(tmp_path / "empty")
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(heft.NotFoundError, match="00002"):
        heft.open(folder)


def test_a_file_cut_after_opening(tmp_path: Path) -> None:
    path = tmp_path / "cut.safetensors"
    path.write_bytes(safetensors_bytes({"w": ("U8", [100000], b"x" * 100000)}))
    checkpoint = heft.open(path)
    os.truncate(path, 5000)
    with pytest.raises(heft.HeftError) as caught:
        checkpoint["w"].read()
    assert caught.value.status in ("IO", "FORMAT") and caught.value.item == "w"
    assert caught.value.offset == 5000
    with pytest.raises(heft.HeftError):
        checkpoint["w"][60000:].read()


def test_huge_shapes_of_nothing(tmp_path: Path) -> None:
    path = tmp_path / "huge.safetensors"
    path.write_bytes(safetensors_bytes({"w": ("F32", [0, 2**62], b""), "v": ("F32", [2**62, 0], b"")}))
    try:
        checkpoint = heft.open(path)
    except heft.HeftError:
        return  # may be refused as a whole
    for tensor in checkpoint.values():
        assert tensor.nbytes == 0 and tensor.tobytes() == b""
        assert tensor[:, 0:1].nbytes == 0 or tensor.shape[1] == 0
        tensor.slice(0, 1, 3)
        tensor.slice(1, 1, 3)
        try:
            tensor.__dlpack__()
        except BufferError:
            pass


# ---- closing, threads, signals ----------------------------------------------------------------------


def test_a_closed_checkpoint(simple: Path) -> None:
    checkpoint = heft.open(simple)
    tensor, mapped = checkpoint["grid"], checkpoint["ids"].map()
    checkpoint.close()
    checkpoint.close()
    assert checkpoint.closed and list(checkpoint) == ["grid", "ids", "one", "none", "half"]
    assert checkpoint.metadata["format"] == "pt"
    for use in (tensor.read, tensor.map, tensor.tobytes, tensor.__dlpack__, lambda: memoryview(tensor), checkpoint.items):
        with pytest.raises(ValueError, match="closed"):
            list(use())  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="closed"):
        checkpoint["grid"]
    assert tensor[1:].shape == (3, 6)
    assert mapped.tobytes() == struct.pack("<3q", 7, 8, 9)


def test_threads_share_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "many.safetensors"
    path.write_bytes(
        safetensors_bytes({f"t{i}": ("F32", [64, 64], struct.pack("<4096f", *([float(i)] * 4096))) for i in range(40)})
    )
    checkpoint = heft.open(path)
    wrong: list[object] = []

    def work(seed: int) -> None:
        for n in range(200):
            i = (seed * 7 + n) % 40
            try:
                tensor = checkpoint[f"t{i}"]
                content = (tensor.read("float64"), tensor[3:5].map(), tensor[:, 3:5], tensor.read())[n % 4]
                if set(memoryview(content).cast("B").cast("d" if n % 4 == 0 else "f")) != {float(i)}:
                    wrong.append((i, n))
            except ValueError:
                if not checkpoint.closed:
                    raise

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads[:4]:
        thread.join()
    checkpoint.close()  # while others use it
    for thread in threads[4:]:
        thread.join()
    assert wrong == []


def test_the_gil_is_free_while_reading(tmp_path: Path) -> None:
    fifo_wait = tmp_path / "fifo"
    os.mkfifo(fifo_wait)
    # a call that waits in the library: a big deep verification, and a counter that must go on
    path = tmp_path / "model.safetensors"
    size = 256 << 20
    head = safetensors_bytes({"w": ("U8", [size], b"")}).replace(b"[0,0]", b"[0,%d]" % size)
    path.write_bytes(struct.pack("<Q", len(head) - 8) + head[8:])
    os.truncate(path, path.stat().st_size + size)
    ticks = 0
    stop = threading.Event()

    def count() -> None:
        nonlocal ticks
        while not stop.is_set():
            ticks += 1
            stop.wait(0.0005)

    thread = threading.Thread(target=count)
    thread.start()
    before = ticks
    assert heft.open(path)["w"].read().nbytes == size
    after = ticks
    stop.set()
    thread.join()
    assert after - before > 5


@pytest.fixture
def large(tmp_path: Path) -> Path:
    path = tmp_path / "large.safetensors"
    size = 400 << 20
    head = safetensors_bytes({"w": ("F32", [size // 4], b"")}).replace(b"[0,0]", b"[0,%d]" % size)
    path.write_bytes(struct.pack("<Q", len(head) - 8) + head[8:])
    os.truncate(path, path.stat().st_size + size)
    return path


def test_progress_and_cancelling(large: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    tensors = heft.load(large, dtype="bfloat16", to="heft", progress=lambda *what: seen.append(what))
    assert tensors["w"].dtype == "bfloat16"
    assert seen and seen[-1][1] == seen[-1][2] > 0

    class Stop(Exception):
        pass

    def stop(what: str, done: int, total: int) -> None:
        raise Stop(done)

    with pytest.raises(Stop):
        heft.load(large, dtype="bfloat16", to="heft", progress=stop)
    with pytest.raises(TypeError):
        heft.load(large, dtype="bfloat16", to="heft", progress=3)  # type: ignore[arg-type]

    def nested(what: str, done: int, total: int) -> None:
        assert len(heft.open(large)) == 1  # a call inside a call

    heft.load(large, dtype="bfloat16", to="heft", progress=nested)


def test_keyboard_interrupt_cancels(large: Path, tmp_path: Path) -> None:
    code = f"""
import heft, os, signal, threading
target = {str(tmp_path / "out")!r}
timer = threading.Timer(0.15, lambda: os.kill(os.getpid(), signal.SIGINT))
timer.start()
try:
    for _ in range(100):
        heft.convert({str(large)!r}, target, force=True)
    print("finished")
except KeyboardInterrupt:
    print("interrupted", sorted(name for name in os.listdir(target) if "tmp" in name) if os.path.exists(target) else [])
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert out.stdout.strip() == "interrupted []", out.stderr


def test_a_signal_handler_runs_during_a_call(large: Path) -> None:
    calls: list[int] = []
    old = signal.signal(signal.SIGALRM, lambda number, frame: calls.append(number))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        for _ in range(1000):  # a fast machine loads it in less
            heft.load(large, dtype="bfloat16", to="heft")
            if calls:
                break
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    assert calls == [signal.SIGALRM]


def test_a_child_may_go_on_after_fork(simple: Path) -> None:
    checkpoint = heft.open(simple)
    view = memoryview(checkpoint["grid"].map())
    heft.load(simple, dtype="float64", to="heft")  # threads of the context exist
    child = os.fork()
    if child == 0:
        try:
            view[0, 0] = 55.0
            ok = memoryview(checkpoint["ids"].read()).tolist() == [7, 8, 9]
            ok = ok and heft.load(simple, dtype="float64", to="heft")["grid"].dtype == "float64"
            os._exit(0 if ok else 1)
        except BaseException:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    assert view[0, 0] == 0.0


# ---- load -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["map", "copy", "auto", "share"])
def test_load(simple: Path, mode: str) -> None:
    options = {"share": True} if mode == "share" else {"mode": mode}
    tensors = heft.load(simple, dtype="float64", to="heft", **options)  # type: ignore[arg-type]
    assert list(tensors) == ["grid", "ids", "one", "none", "half"]
    assert memoryview(tensors["grid"]).tolist() == grid(range(4), range(6))
    assert memoryview(tensors["half"]).tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert memoryview(tensors["ids"]).tolist() == [7, 8, 9]
    memoryview(tensors["grid"])[0, 0] = 77.0  # no crash, and nobody else sees it
    memoryview(tensors["ids"])[0] = 77
    again = heft.load(heft.open(simple), dtype="float64", to="heft", **options)  # type: ignore[arg-type]
    assert memoryview(again["grid"])[0, 0] == 0.0 and memoryview(again["ids"])[0] == 7


def test_load_refuses_nonsense(simple: Path) -> None:
    for wrong in ({"to": "jax"}, {"mode": "fast"}, {"dtype": "float99"}, {"to": "heft", "device": "cpu"}):
        with pytest.raises(ValueError):
            heft.load(simple, **wrong)  # type: ignore[arg-type]


def test_load_says_when_memory_is_lacking(tmp_path: Path) -> None:
    path = tmp_path / "sparse.safetensors"
    size = 1 << 42  # 4 TiB, all holes
    head = safetensors_bytes({"w": ("F32", [size // 4], b"")}).replace(b"[0,0]", b"[0,%d]" % size)
    path.write_bytes(struct.pack("<Q", len(head) - 8) + head[8:])
    os.truncate(path, path.stat().st_size + size)
    checkpoint = heft.open(path)
    assert checkpoint["w"].map().nbytes == size  # mapped: costs nothing
    for use in (lambda: checkpoint["w"].read(), lambda: heft.load(path, dtype="bfloat16", to="heft")):
        with pytest.raises(heft.HeftError) as caught:
            use()
        assert caught.value.status in ("LIMIT", "NOMEM")


def test_warnings_go_to_the_logger(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "model.safetensors.index.json").unlink()
    with caplog.at_level("WARNING", "heft"):
        checkpoint = heft.open(folder)
    assert checkpoint.warnings and [record.getMessage() for record in caplog.records] == checkpoint.warnings
