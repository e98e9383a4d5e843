"""Files for the tests, made without any library."""

from __future__ import annotations

import importlib.util
import json
import struct
from pathlib import Path

import pytest

SIZES = {"F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "U8": 1, "I8": 1, "F8_E4M3": 1, "BOOL": 1, "F64": 8}


def pytest_report_header() -> str:
    import heft

    there = [name for name in ("torch", "numpy", "safetensors") if importlib.util.find_spec(name)]
    return f"heft {heft.__version__} at {Path(heft.__file__).parent}; beside it: {', '.join(there) or 'nothing'}"


def safetensors_bytes(tensors: dict[str, tuple[str, list[int], bytes]], metadata: dict[str, str] | None = None) -> bytes:
    """The content of a safetensors file; tensors in the order given."""
    header: dict[str, object] = {}
    if metadata is not None:
        header["__metadata__"] = metadata
    data = b""
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


@pytest.fixture
def simple(tmp_path: Path) -> Path:
    """A file with a [4, 6] of float32, three int64 and a scalar; nothing else in its folder."""
    path = tmp_path / "simple.safetensors"
    path.write_bytes(
        safetensors_bytes(
            {
                "grid": ("F32", [4, 6], struct.pack("<24f", *range(24))),
                "ids": ("I64", [3], struct.pack("<3q", 7, 8, 9)),
                "one": ("F64", [], struct.pack("<d", 2.5)),
                "none": ("F32", [0, 3], b""),
                "half": ("BF16", [2, 2], struct.pack("<4H", 0x3F80, 0x4000, 0x4040, 0x4080)),
            },
            {"format": "pt", "made by": "hand"},
        )
    )
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two shards and their index."""
    place = tmp_path / "folder"
    place.mkdir()
    weights = {}
    for i in (1, 2):
        name = f"model-{i:05}-of-00002.safetensors"
        tensors = {f"layer.{i}.{k}": ("F32", [2, 2], struct.pack("<4f", i, k, 0, 1)) for k in range(3)}
        (place / name).write_bytes(safetensors_bytes(tensors, {"format": "pt"}))
        weights.update(dict.fromkeys(tensors, name))
    (place / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": 96}, "weight_map": weights})
    )
    return place


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of other libraries, as far as these are installed: small_models.py. They are to be read only."""
    import small_models

    place = tmp_path_factory.mktemp("models")
    small_models.make_all(place)
    return place
