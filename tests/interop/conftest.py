"""Checkpoints that several tests use, made once."""

import os
import shutil

import pytest
from helpers import BERT_CONFIG, heft


def pytest_report_header(config):
    import safetensors
    import torch
    import transformers

    return f"torch {torch.__version__}, transformers {transformers.__version__}, safetensors {safetensors.__version__}"


@pytest.fixture(scope="session")
def scratch(tmp_path_factory):
    """A folder that goes away at the end, whatever happens: the tests write some gigabytes."""
    folder = tmp_path_factory.mktemp("interop")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def bert_shards(scratch):
    """BERT-base-cased with random weights in three safetensors shards."""
    folder = scratch / "bert-shards"
    heft("init", BERT_CONFIG, folder, "--seed", 7, "--max-shard-size", "200MB", "--format", "safetensors")
    return folder


@pytest.fixture(scope="session")
def bert_bins(scratch):
    """The same model in three .bin shards, made without a detour over the safetensors."""
    folder = scratch / "bert-bins"
    heft("init", BERT_CONFIG, folder, "--seed", 7, "--max-shard-size", "200MB", "--format", "bin")
    return folder


@pytest.fixture(scope="session")
def old_torch():
    """The Python of an environment with PyTorch 1.13, or a skip with the reason."""
    python = os.environ.get("HEFT_OLD_TORCH_PYTHON")
    if not python:
        pytest.skip(os.environ.get("HEFT_OLD_TORCH_REASON", "no PyTorch 1.13 here: tests/interop/run looks for it"))
    return python
