"""The guide's example and its family: what heft writes is what Transformers writes and loads."""

import json
import shutil
import subprocess
from collections import OrderedDict

import pytest
import torch
import transformers
from helpers import (BERT_CONFIG, GUIDE, HERE, assert_same, digest, heft, load_bins, load_pretrained, load_safetensors,
                     read_safetensors, weight_map)

CLASSES = """BertModel BertForPreTraining BertForMaskedLM BertForSequenceClassification BertForTokenClassification
    BertForQuestionAnswering BertForNextSentencePrediction BertForMultipleChoice BertLMHeadModel""".split()
TINY = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 37,
        "max_position_embeddings": 50, "type_vocab_size": 3, "initializer_range": 0.02}


def golden(name):
    return json.loads((GUIDE / name).read_text())


def tensors_per_file(index):
    files = sorted(set(index["weight_map"].values()))
    return [sum(1 for f in index["weight_map"].values() if f == file) for file in files]


def test_three_shards_as_in_the_guide(bert_shards):
    index, _ = weight_map(bert_shards)
    assert index == golden("bert_base_cased_200MB.v5_v4.model.safetensors.index.json")
    assert tensors_per_file(index) == [65, 112, 22]
    assert index["metadata"] == {"total_parameters": 108310272, "total_size": 433241088}
    assert sorted(p.name for p in bert_shards.iterdir()) == [
        "config.json", *(f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)), "model.safetensors.index.json"]
    assert [p.stat().st_size for p in sorted(bert_shards.glob("*.safetensors"))] == [194627712, 198472928, 40162648]


def test_three_bins_as_in_the_guide(bert_bins):
    index, _ = weight_map(bert_bins)
    assert tensors_per_file(index) == [65, 112, 22]
    assert index["metadata"]["total_size"] == 433241088
    old = golden("bert_base_cased_200MB.v4.30.pytorch_model.bin.index.json")["weight_map"]
    del old["embeddings.position_ids"]
    assert index["weight_map"] == old
    assert sorted(p.name for p in bert_bins.iterdir()) == [
        "config.json", *(f"pytorch_model-0000{i}-of-00003.bin" for i in (1, 2, 3)), "pytorch_model.bin.index.json"]


def test_the_same_seed_gives_the_same_weights_in_both_formats(bert_shards, bert_bins):
    assert_same(load_safetensors(bert_shards), load_bins(bert_bins))


def test_shards_are_byte_identical_to_the_reference_writer(bert_shards, scratch):
    from safetensors.torch import load_file, save_file

    for file in sorted(bert_shards.glob("*.safetensors")):
        tensors, metadata = read_safetensors(file)
        assert metadata == {"format": "pt"} and tensors
        save_file(load_file(file), scratch / "reference.safetensors", metadata={"format": "pt"})
        assert (scratch / "reference.safetensors").read_bytes() == file.read_bytes()


def test_index_text_is_the_reference_text(bert_shards, scratch):
    config = transformers.BertConfig.from_pretrained(BERT_CONFIG.parent)
    transformers.BertModel(config).save_pretrained(scratch / "reference", max_shard_size="200MB")
    assert weight_map(bert_shards)[1] == weight_map(scratch / "reference")[1]
    shutil.rmtree(scratch / "reference")


def test_from_pretrained_takes_the_shards(bert_shards):
    model = load_pretrained(transformers.BertModel, bert_shards)
    assert_same(dict(model.state_dict()), load_safetensors(bert_shards))


def test_from_pretrained_takes_the_bins(bert_bins):
    model = load_pretrained(transformers.BertModel, bert_bins)
    assert_same(dict(model.state_dict()), load_bins(bert_bins))


def test_load_sharded_checkpoint_takes_both(bert_shards, bert_bins):
    try:
        from transformers.trainer_utils import load_sharded_checkpoint
    except ImportError:
        try:
            from transformers.modeling_utils import load_sharded_checkpoint
        except ImportError:
            pytest.skip("this transformers has no load_sharded_checkpoint")
    config = transformers.BertConfig.from_pretrained(BERT_CONFIG.parent)
    for folder in (bert_shards, bert_bins):
        model = transformers.BertModel(config)
        load_sharded_checkpoint(model, str(folder), strict=True)
        assert_same(dict(model.state_dict()), load_safetensors(bert_shards))


def test_accelerate_takes_the_shards(bert_shards):
    from accelerate import init_empty_weights, load_checkpoint_and_dispatch

    with init_empty_weights():
        model = transformers.BertModel(transformers.BertConfig.from_pretrained(BERT_CONFIG.parent))
    model = load_checkpoint_and_dispatch(model, str(bert_shards), device_map={"": "cpu"})
    assert_same(dict(model.state_dict()), load_safetensors(bert_shards))


def test_a_checkpoint_with_position_ids_keeps_them(bert_bins, scratch):
    """Transformers 4.30 saved embeddings.position_ids, and the guide's total_size counts them."""
    state = OrderedDict([("embeddings.position_ids", torch.arange(512).expand(1, -1))])
    shards = load_bins(bert_bins)
    names = heft("inspect", BERT_CONFIG)["tensors"]
    state.update((t["name"], shards[t["name"]]) for t in names)
    source = scratch / "era-4.30"
    source.mkdir()
    torch.save(state, source / "pytorch_model.bin")
    shutil.copy(BERT_CONFIG, source)
    done = heft("convert", source, scratch / "era-out", "--max-shard-size", "200MB")
    index, _ = weight_map(scratch / "era-out")
    assert done["total_size"] == index["metadata"]["total_size"] == 433245184
    assert index["weight_map"] == golden("bert_base_cased_200MB.v4.30.pytorch_model.bin.index.json")["weight_map"]
    assert tensors_per_file(index) == [66, 112, 22]
    assert_same(dict(state), load_bins(scratch / "era-out"))
    load_pretrained(transformers.BertModel, scratch / "era-out")
    loaded = heft("load", scratch / "era-out")
    assert loaded["missing"] == loaded["unexpected"] == loaded["mismatched"] == []
    shutil.rmtree(source)
    shutil.rmtree(scratch / "era-out")


def test_old_torch_reads_the_bins(old_torch, bert_bins):
    files = sorted(bert_bins.glob("*.bin"))
    done = subprocess.run([old_torch, HERE / "old_torch.py", *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["torch"].startswith("1.13")
    assert found["tensors"] == {n: [str(t.dtype), list(t.shape), digest(t)] for n, t in load_bins(bert_bins).items()}


def test_peak_memory(bert_shards, scratch):
    size = 433241088
    mapped = heft("load", bert_shards, "--mode", "map")
    assert mapped["bytes"] == size and mapped["parameters"] == 108310272
    assert mapped["memory"]["peak_anon_bytes"] < 8e6
    copied = heft("load", bert_shards, "--mode", "copy")
    assert copied["memory"]["peak_anon_bytes"] < size + 64e6
    done = heft("convert", bert_shards, scratch / "peak", "--format", "bin", "--max-shard-size", "100MB")
    assert done["memory"]["peak_anon_bytes"] < 96e6
    assert_same(load_safetensors(bert_shards), load_bins(scratch / "peak"))
    shutil.rmtree(scratch / "peak")


def test_random_weights_follow_the_model(bert_shards):
    """Normal with the config's deviation, zeros for biases and the padding row, ones for LayerNorm."""
    for name, tensor in load_safetensors(bert_shards).items():
        if name.endswith("LayerNorm.weight"):
            assert (tensor == 1).all(), name
        elif name.endswith("bias"):
            assert (tensor == 0).all(), name
        else:
            rows = tensor[1:] if name == "embeddings.word_embeddings.weight" else tensor
            spread = 0.02 / rows.numel() ** 0.5
            assert abs(rows.mean()) < 6 * spread, name
            assert abs(rows.std() - 0.02) < 6 * spread, name
    assert (load_safetensors(bert_shards)["embeddings.word_embeddings.weight"][0] == 0).all()


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_each_head(name, form, tmp_path):
    """Names, order, ties, index text: of each class, as save_pretrained of a model that was just made."""
    cls = getattr(transformers, name)
    config = transformers.BertConfig(**TINY)
    reference = cls(config)
    reference.save_pretrained(tmp_path / "reference", max_shard_size="20KB")
    ours = tmp_path / "ours"
    heft("init", tmp_path / "reference" / "config.json", ours, "--class", name, "--max-shard-size", "20KB", "--format", form)
    loaded = load_pretrained(cls, ours)
    saved = load_safetensors(ours) if form == "safetensors" else load_bins(ours)
    state = dict(loaded.state_dict())
    assert_same({n: state[n] for n in saved}, saved)
    if form == "safetensors":
        assert weight_map(ours)[1] == weight_map(tmp_path / "reference")[1]
        assert sorted(saved) == sorted(load_safetensors(tmp_path / "reference"))
    assert transformers.AutoConfig.from_pretrained(ours).architectures == [name]
    back = heft("load", tmp_path / "reference")
    assert back["class"] == name
    assert back["missing"] == back["unexpected"] == back["mismatched"] == []
    assert back["parameters"] == reference.num_parameters()


@pytest.mark.parametrize("name", CLASSES[1:])
def test_base_checkpoint_into_a_head_and_back(name, tmp_path):
    cls = getattr(transformers, name)
    config = transformers.BertConfig(**TINY)
    transformers.BertModel(config).save_pretrained(tmp_path / "base")
    _, info = cls.from_pretrained(tmp_path / "base", output_loading_info=True)
    ours = heft("load", tmp_path / "base", "--class", name)
    assert sorted(ours["missing"]) == sorted(info["missing_keys"])
    assert sorted(ours["unexpected"]) == sorted(info["unexpected_keys"])
    cls(config).save_pretrained(tmp_path / "head")
    _, info = transformers.BertModel.from_pretrained(tmp_path / "head", output_loading_info=True)
    ours = heft("load", tmp_path / "head", "--class", "BertModel")
    assert sorted(ours["missing"]) == sorted(info["missing_keys"])
    assert sorted(ours["unexpected"]) == sorted(info["unexpected_keys"])
