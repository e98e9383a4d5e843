"""One name in two shards: heft takes the one that the index lists, Transformers and Accelerate the one that they read last."""

import json
import subprocess

import pytest
import torch
from accelerate import load_checkpoint_in_model
from helpers import HEFT, heft, load_safetensors
from safetensors.torch import save_file
from transformers import BertConfig, BertModel

CONFIG = dict(vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, max_position_embeddings=8)


def write(folder, extension, stale_first, index=True):
    """A model in two shards with a copy full of sevens in the wrong one; its name and current value."""
    torch.manual_seed(0)
    state = {name: tensor.clone() for name, tensor in BertModel(BertConfig(**CONFIG)).state_dict().items()}
    names = sorted(state)
    parts = [names[: len(names) // 2], names[len(names) // 2 :]]
    name = parts[1 if stale_first else 0][-1]
    shards = [{n: state[n] for n in part} for part in parts]
    shards[0 if stale_first else 1][name] = torch.full_like(state[name], 7)
    BertConfig(**CONFIG, architectures=["BertModel"]).save_pretrained(folder)
    stem = "model" if extension == "safetensors" else "pytorch_model"
    files = [f"{stem}-0000{i}-of-00002.{extension}" for i in (1, 2)]
    for file, shard in zip(files, shards):
        if extension == "safetensors":
            save_file(shard, folder / file, metadata={"format": "pt"})
        else:
            torch.save(shard, folder / file)
    if index:
        listed = {n: file for file, part in zip(files, parts) for n in part}
        (folder / f"{stem}.{extension}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": listed}))
    return name, state[name]


@pytest.mark.parametrize("stale_first", (True, False))
@pytest.mark.parametrize("extension", ("safetensors", "bin"))
def test_the_listed_one_counts(extension, stale_first, tmp_path):
    name, value = write(tmp_path, extension, stale_first)
    heft("convert", tmp_path, tmp_path / "ours", "--format", "safetensors")
    assert torch.equal(load_safetensors(tmp_path / "ours")[name], value)
    assert any("stale copy" in line for line in heft("load", tmp_path, "--strict")["warnings"])
    assert [p["kind"] for p in heft("verify", tmp_path, expect=1)["problems"] if p["fatal"]] == ["duplicate_tensor"]
    # what docs/formats/shard_index.md says of the others
    theirs = BertModel.from_pretrained(tmp_path).state_dict()[name]
    assert torch.equal(theirs, value) == stale_first
    model = BertModel(BertConfig(**CONFIG))
    load_checkpoint_in_model(model, tmp_path)
    assert torch.equal(model.state_dict()[name], value) == stale_first


def test_without_an_index_different_copies_are_refused(tmp_path):
    name, _ = write(tmp_path, "safetensors", stale_first=False, index=False)
    done = subprocess.run([HEFT, "load", tmp_path], capture_output=True, text=True)
    assert done.returncode == 5 and f"{name}: " in done.stderr and len(done.stderr.splitlines()) == 1
