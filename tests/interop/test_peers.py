"""What the suites of other libraries test, and heft has to stand as well."""

import json
import zipfile

import pytest
import torch
from helpers import heft, load_pretrained, raw, read_safetensors
from transformers import GPT2Config, GPT2DoubleHeadsModel, LlamaConfig, LlamaForCausalLM

GPT2 = {"vocab_size": 60, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 40}


@pytest.mark.parametrize("options", [{}, {"summary_use_proj": False}, {"summary_proj_to_labels": False}, {"tie_word_embeddings": False, "id2label": {0: "a", 1: "b", 2: "c"}}])
def test_double_heads(scratch, options):
    name = "-".join(options) or "plain"
    model = GPT2DoubleHeadsModel(GPT2Config(**GPT2, **options))
    model.save_pretrained(scratch / f"double-{name}")
    document = heft("load", scratch / f"double-{name}", "--strict")
    assert document["class"] == "GPT2DoubleHeadsModel"
    heft("convert", scratch / f"double-{name}", scratch / f"double-{name}-out", "--max-shard-size", "5KB")
    state = model.state_dict()
    for key, tensor in load_pretrained(GPT2DoubleHeadsModel, scratch / f"double-{name}-out").state_dict().items():
        assert raw(tensor) == raw(state[key]), key
    heft("init", scratch / f"double-{name}" / "config.json", scratch / f"double-{name}-new")
    load_pretrained(GPT2DoubleHeadsModel, scratch / f"double-{name}-new")


def test_old_spelling_of_llama(scratch):
    config = LlamaConfig(vocab_size=60, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2)
    LlamaForCausalLM(config).save_pretrained(scratch / "old-llama")
    path = scratch / "old-llama" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "architectures": ["LLaMAForCausalLM"]}))
    assert heft("load", scratch / "old-llama", "--strict")["class"] == "LlamaForCausalLM"


@pytest.mark.parametrize("name", ["Tensor", "FloatTensor"])
@pytest.mark.parametrize("opcode", [b"R", b"\x81"])
def test_tensor_by_its_class(scratch, name, opcode):
    """What torch.load makes of it, with weights_only."""
    path = scratch / f"class-{name}-{opcode.hex()}.bin"
    torch.save({"a": torch.arange(6.0)}, path)
    storage = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\0000X\x03\0\0\0cpuK\x06tQ"
    text = b"\x80\x02}X\x01\0\0\0a" + b"ctorch\n" + name.encode() + b"\n)" + opcode + b"(" + storage + b"K\x01K\x02K\x02\x86K\x03K\x01\x86tbs."
    with zipfile.ZipFile(path) as old:
        entries = {entry: old.read(entry) for entry in old.namelist()}
    with zipfile.ZipFile(path, "w") as new:
        for entry, data in entries.items():
            new.writestr(entry, text if entry.endswith("data.pkl") else data)
    expected = torch.load(path, weights_only=True)["a"]
    heft("convert", path, scratch / (path.name + "-out"), "--format", "safetensors")
    tensors, _ = read_safetensors(scratch / (path.name + "-out") / "model.safetensors")
    assert tensors["a"] == ("F32", list(expected.shape), raw(expected))


@pytest.mark.parametrize("value", [None, 3, "text", [1, 2], (1, (2,)), {1, 2}], ids=repr)
@pytest.mark.parametrize("new", [True, False])
def test_container_without_tensors(scratch, value, new):
    path = scratch / "nothing.bin"
    torch.save(value, path, _use_new_zipfile_serialization=new)
    assert heft("inspect", path, expect=7)["error"]["status"] == "UNSUPPORTED"


@pytest.mark.parametrize("new", [True, False])
def test_empty_views(scratch, new):
    tensors = {"a": torch.empty(0).view(0, 3), "b": torch.empty(0)[0:0], "c": torch.empty(2, 0, 3).transpose(0, 2), "d": torch.arange(3.0)}
    path = scratch / f"empty-{new}.bin"
    torch.save(tensors, path, _use_new_zipfile_serialization=new)
    heft("convert", path, scratch / f"empty-{new}-out", "--format", "safetensors")
    found, _ = read_safetensors(scratch / f"empty-{new}-out" / "model.safetensors")
    assert {name: shape for name, (_, shape, _) in found.items()} == {name: list(tensor.shape) for name, tensor in tensors.items()}
