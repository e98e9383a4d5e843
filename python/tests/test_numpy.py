"""Tensors of heft in numpy."""

from __future__ import annotations

from pathlib import Path

import pytest

numpy = pytest.importorskip("numpy")

import heft  # noqa: E402


def test_arrays(simple: Path) -> None:
    checkpoint = heft.open(simple)
    array = checkpoint["grid"].numpy()
    assert array.dtype == "float32" and array.flags.writeable and not array.flags.owndata
    assert (array == numpy.arange(24).reshape(4, 6)).all()
    array[:] = 0  # copy-on-write
    assert heft.open(simple)["grid"].numpy()[3, 5] == 23
    assert checkpoint["one"].numpy() == 2.5 and checkpoint["none"].numpy().shape == (0, 3)
    assert (numpy.asarray(checkpoint["ids"]) == [7, 8, 9]).all()
    assert (numpy.from_dlpack(checkpoint["ids"]) == [7, 8, 9]).all()
    assert numpy.asarray(checkpoint["ids"], dtype="float32").dtype == "float32"
    assert checkpoint["ids"].numpy(numpy.float64).tolist() == [7.0, 8.0, 9.0]
    assert checkpoint["half"].numpy("float32").tolist() == [[1, 2], [3, 4]]
    assert (heft.open(simple)["grid"][:, 1:3].numpy() == heft.open(simple)["grid"].numpy()[:, 1:3]).all()
    assert checkpoint["grid"].numpy(copy=False).base is not None
    for wrong in (lambda: checkpoint["grid"].numpy("float64", copy=False), lambda: checkpoint["grid"][:, 1].numpy(copy=False)):
        with pytest.raises(ValueError, match="copy|run"):
            wrong()
    assert heft.load(simple, dtype="float32", to="numpy")["half"].tolist() == [[1, 2], [3, 4]]


def test_dtypes_that_numpy_has_not(simple: Path) -> None:
    tensor = heft.open(simple)["half"]
    try:
        import ml_dtypes
    except ImportError:
        with pytest.raises(TypeError, match="bfloat16"):
            tensor.numpy()
    else:
        assert tensor.numpy().dtype == ml_dtypes.bfloat16
        assert tensor.numpy().astype("float32").tolist() == [[1, 2], [3, 4]]
    void = numpy.asarray(tensor)  # bytes, no numbers
    assert (void.dtype.kind, void.dtype.itemsize, void.shape) == ("V", 2, (2, 2))
    assert numpy.frombuffer(tensor, "uint16").tolist() == [0x3F80, 0x4000, 0x4040, 0x4080]
    assert numpy.frombuffer(tensor[1], "uint16").tolist() == [0x4040, 0x4080]


def test_an_array_keeps_only_its_mapping(simple: Path) -> None:
    array = heft.open(simple)["grid"].numpy()
    assert str(simple) in Path("/proc/self/maps").read_text()
    del array
    assert str(simple) not in Path("/proc/self/maps").read_text()


def test_saving(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    arrays = {
        "a": numpy.arange(6).reshape(2, 3).T,
        "be": numpy.arange(3, dtype=">i4"),
        "b": numpy.array([True, False]),
        "c": numpy.array([1 + 2j], dtype=numpy.complex64),
        "s": numpy.float32(3.5),
        "e": numpy.zeros((0, 2)),
    }
    heft.save_file(arrays, path)
    for name, array in heft.load(path, to="numpy").items():
        assert array.shape == numpy.shape(arrays[name]) and (array == arrays[name]).all()
    read_only = numpy.arange(4)
    read_only.flags.writeable = False
    heft.save_file({"r": read_only}, path)
    for wrong in (numpy.array([None]), numpy.array("x"), [1, 2]):
        with pytest.raises(TypeError):
            heft.save_file({"w": wrong}, path)
    with pytest.raises(TypeError):
        heft.save_file({3: read_only}, path)  # type: ignore[dict-item]
    assert list(heft.open(path)) == ["r"]


def test_random_slices_are_numpys(tmp_path: Path) -> None:
    random = numpy.random.default_rng(5)
    arrays = {}
    for i in range(12):
        shape = tuple(int(n) for n in random.integers(0, 6, random.integers(0, 5)))
        array = random.integers(0, 100, shape).astype(["f4", "i8", "u1", "f2", "c8", "?"][i % 6])
        arrays[f"t{i}"] = array.T if i % 2 else array
    heft.save_file(arrays, tmp_path / "x.safetensors")
    heft.save_file(arrays, tmp_path / "x.pt")
    for path in (tmp_path / "x.safetensors", tmp_path / "x.pt"):
        checkpoint = heft.open(path)
        for _ in range(600):
            name = f"t{random.integers(12)}"
            lazy, want = checkpoint[name], arrays[name]
            for step in range(int(random.integers(1, 4))):
                key: list[object] = []
                for length in want.shape[: random.integers(0, want.ndim + 1)]:
                    if length and random.random() < 0.25:
                        key.append(int(random.integers(-length, length)))
                    else:
                        bounds = [None if random.random() < 0.2 else int(n) for n in random.integers(-7, 8, 2)]
                        key.append(slice(*bounds))
                if random.random() < 0.2:
                    key.append(...)
                lazy, want = lazy[tuple(key)], numpy.asarray(want[tuple(key)])
                if step == 1 and random.random() < 0.3:
                    lazy = lazy.map() if random.random() < 0.5 else lazy.read()
            got = lazy.numpy() if random.random() < 0.5 else lazy.read().numpy()
            assert got.shape == want.shape == lazy.shape and got.dtype == want.dtype
            assert (got == want).all() and lazy.tobytes() == want.tobytes()
