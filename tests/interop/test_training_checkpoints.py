"""Training checkpoints as torch.save writes them: the weights beside objects of any class, which are skipped by name."""

import argparse
import collections
import datetime
import decimal
import enum
import functools
import io
import pathlib
import random
import types
import uuid

import numpy
import pytest
import torch
from helpers import assert_same, heft
from safetensors.torch import load_file
from torch import nn

Point = collections.namedtuple("Point", "x y")


class Color(enum.Enum):
    RED = 1


class Settings:
    def __init__(self):
        self.lr, self.tensor = 0.1, torch.ones(3)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)) for _ in range(2)])
        self.register_buffer("kept", torch.arange(3.0))
        self.register_buffer("dropped", torch.arange(3.0), persistent=False)


for shown in (Point, Color, Settings, Net):  # their names in the pickle must be found when it is written
    shown.__module__ = __name__


def weights():
    torch.manual_seed(0)
    return {"a.weight": torch.randn(3, 4), "a.bias": torch.randn(3), "b.weight": torch.randn(2, 2).to(torch.bfloat16)}


OBJECTS = {
    "namespace": argparse.Namespace(lr=0.1, nested=argparse.Namespace(x=[1, 2])),
    "simple_namespace": types.SimpleNamespace(a=1),
    "numpy_scalar": numpy.float64(0.5),
    "numpy_array": numpy.arange(3),
    "numpy_strings": numpy.array(["a", "b"]),
    "numpy_objects": numpy.array([{"a": 1}, None], dtype=object),
    "numpy_generator": numpy.random.default_rng(0),
    "numpy_state": numpy.random.get_state(),
    "path": pathlib.PurePosixPath("/x"),
    "real_path": pathlib.Path("/x"),
    "datetime": datetime.datetime(2024, 1, 1, tzinfo=datetime.timezone.utc),
    "timedelta": datetime.timedelta(1),
    "enum": Color.RED,
    "named_tuple": Point(1, 2),
    "defaultdict": collections.defaultdict(int, a=1),
    "defaultdict_of_lists": collections.defaultdict(list),
    "deque": collections.deque([1, 2], maxlen=3),
    "counter": collections.Counter("ab"),
    "ordered_dict": collections.OrderedDict(a=1),
    "partial": functools.partial(int, base=2),
    "function": print,
    "class": argparse.ArgumentParser,
    "class_as_key": {argparse.ArgumentParser: {"a": 1}},
    "odd_keys": {(1, 2): "x", None: 1, 2.5: 2, True: 3},
    "bytes_io": io.BytesIO(b"x"),
    "bytes": b"\x00\xff",
    "bytearray": bytearray(b"ab"),
    "set": {1, 2},
    "frozenset": frozenset([1]),
    "complex": 1j,
    "slice": slice(1, 2),
    "range": range(3),
    "big": 1 << 2000,
    "random_state": random.getstate(),
    "uuid": uuid.UUID(int=1),
    "decimal": decimal.Decimal("1.5"),
    "exception": ValueError("x"),
    "settings": Settings(),
    "device": torch.device("cpu"),
    "dtype": torch.bfloat16,
    "size": torch.Size([1, 2]),
    "generator_state": torch.get_rng_state(),
    "scalar_tensor": torch.tensor(76.5),
}


@pytest.mark.parametrize("protocol", (2, 4))
@pytest.mark.parametrize("name", OBJECTS)
def test_an_object_beside_the_weights_is_skipped(name, protocol, tmp_path):
    state = weights()
    torch.save({"epoch": 3, "state_dict": state, name: OBJECTS[name]}, tmp_path / "in.pt", pickle_protocol=protocol)
    heft("convert", tmp_path / "in.pt", tmp_path / "out", "--format", "safetensors")
    assert_same(state, load_file(tmp_path / "out" / "model.safetensors"))


@pytest.mark.parametrize("zipped", (True, False))
def test_all_objects_at_once(zipped, tmp_path):
    state = weights()
    optimizer = torch.optim.Adam([nn.Parameter(t.float()) for t in state.values()])
    everything = {**OBJECTS, "optimizer": optimizer.state_dict(), "model": state, "scheduler": {"base_lrs": [0.1]}}
    torch.save(everything, tmp_path / "in.pt", _use_new_zipfile_serialization=zipped)
    shown = heft("inspect", tmp_path / "in.pt")
    assert sorted(t["name"] for t in shown["tensors"]) == sorted(state)
    assert any("argparse.Namespace" in line for line in shown["warnings"])
    skipped = [line.split(".")[0] for line in shown["skipped"]]
    for name in ("namespace", "numpy_scalar", "path", "datetime", "enum", "scalar_tensor", "generator_state", "optimizer"):
        assert name in skipped, name


def test_objects_among_the_weights(tmp_path):
    state = weights()
    mixed = {**state, "a._extra_state": io.BytesIO(b"x"), "c": numpy.float32(1), "d": Settings(), "n": None}
    torch.save(mixed, tmp_path / "in.bin")
    shown = heft("inspect", tmp_path / "in.bin")
    assert sorted(t["name"] for t in shown["tensors"]) == sorted(state)
    assert any("1 tensors inside objects" in line for line in shown["warnings"])


def test_tensors_of_other_kinds_are_left_out(tmp_path):
    state = weights()
    others = {
        "sparse": torch.eye(3).to_sparse(),
        "csr": torch.eye(3).to_sparse_csr(),
        "meta": torch.empty(3, device="meta"),
        "quantized": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
    }
    torch.save({**state, **others}, tmp_path / "in.bin")
    shown = heft("inspect", tmp_path / "in.bin")
    assert sorted(t["name"] for t in shown["tensors"]) == sorted(state)
    assert sorted(shown["skipped"]) == sorted(others)
    assert any("4 tensors of unsupported kinds" in line for line in shown["warnings"])


@pytest.mark.parametrize("zipped", (True, False))
def test_a_pickled_module_has_the_names_of_its_state_dict(zipped, tmp_path):
    net = Net()
    for name, value in (("bare", net), ("inside", {"epoch": 1, "model": net, "ema": None})):
        torch.save(value, tmp_path / f"{name}.pt", _use_new_zipfile_serialization=zipped)
        heft("convert", tmp_path / f"{name}.pt", tmp_path / name, "--format", "safetensors")
        found = load_file(tmp_path / name / "model.safetensors")
        assert_same({k: v for k, v in net.state_dict().items()}, found)


@pytest.mark.parametrize("value, words", [(Settings(), "Settings"), ({"a": Settings()}, "Settings"), (print, "global")])
def test_nothing_but_objects_is_an_error(value, words, tmp_path):
    torch.save(value, tmp_path / "in.pt")
    error = heft("inspect", tmp_path / "in.pt", expect=7)["error"]
    assert words in error["message"]


def test_an_attack_is_refused(tmp_path):
    class Attack:
        def __reduce__(self):
            import os

            return os.system, ("touch " + str(tmp_path / "owned"),)

    torch.save({"state_dict": weights(), "x": Attack()}, tmp_path / "in.pt")
    error = heft("inspect", tmp_path / "in.pt", expect=8)["error"]
    assert error["status"] == "REFUSED" and "system' is refused" in error["message"]
    assert not (tmp_path / "owned").exists()
