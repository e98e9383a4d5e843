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


LLAMA = dict(
    hidden_size=16, intermediate_size=16, vocab_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2
)


def save_llama(folder, change):
    """A folder with a .bin of what `change` makes of the model: a state dict, or bytes of one that was saved."""
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(LlamaConfig(**LLAMA))
    model.config.save_pretrained(folder)
    state = change(model)
    if isinstance(state, bytes):
        (folder / "pytorch_model.bin").write_bytes(state)
    else:
        torch.save(state, folder / "pytorch_model.bin")


def one_sparse(model):
    state = model.state_dict()
    return {name: t.to_sparse() if name.endswith("up_proj.weight") else t for name, t in state.items()}


def linear_quantized(model):
    return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8).state_dict()


def one_distributed(model):
    """A ShardedTensor: its process group's state is of a class that a call returns."""
    import torch.distributed._shard.sharded_tensor as sharded
    from torch.distributed._shard.sharding_spec import ChunkShardingSpec

    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        made = sharded.ones(ChunkShardingSpec(dim=0, placements=["rank:0/cpu"]), 16, 16)
        state = {**model.state_dict(), "model.layers.0.mlp.up_proj.weight": made}
        torch.save(state, out := io.BytesIO())
    finally:
        torch.distributed.destroy_process_group()
    return out.getvalue()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("change", (one_sparse, linear_quantized, one_distributed))
def test_a_parameter_of_another_kind_is_never_random(change, tmp_path):
    save_llama(tmp_path, change)
    error = heft("load", tmp_path, expect=7)["error"]
    assert "of a kind that heft does not read" in error["message"]
    assert "_proj." in error["item"] or "lm_head" in error["item"]
    problems = heft("verify", tmp_path, expect=1)["problems"]
    assert any(p["kind"] == "left_out" and p["fatal"] and p["tensor"] == error["item"] for p in problems)
    assert heft("load", tmp_path, "--allow-missing")["initialized"]
