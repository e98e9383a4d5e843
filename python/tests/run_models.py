"""Small models for the tests of heft.run, made by the command `heft init`, and a tokenizer that every build can read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

WORDS = "the cat sat on a mat and saw two dogs run by house tree red blue green one three".split()
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<cls>", "<sep>"]
VOCABULARY = 64

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": VOCABULARY,
    "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "rms_norm_eps": 1e-6,
    "hidden_act": "silu", "tie_word_embeddings": False, "initializer_range": 0.5, "dtype": "float32",
}  # fmt: skip
BERT = {
    "architectures": ["BertModel"], "model_type": "bert", "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": VOCABULARY, "max_position_embeddings": 40,
    "type_vocab_size": 2, "pad_token_id": 0, "initializer_range": 0.5, "dtype": "float32",
}  # fmt: skip
VIT = {
    "architectures": ["ViTModel"], "model_type": "vit", "hidden_size": 32, "intermediate_size": 48, "image_size": 8,
    "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 4, "num_channels": 3, "dtype": "float32",
}  # fmt: skip


def command(*arguments: object) -> str:
    """What the command prints."""
    if "HEFT_PYTHON_NO_COMMAND" in os.environ:
        pytest.skip("the package was built without the command")
    done = subprocess.run([sys.executable, "-m", "heft", *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def tokenizer_json(around: bool) -> str:
    """Words that stand between spaces; `around`: <cls> in front of a text and <sep> behind it."""
    special = [
        {"id": i, "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        for i, text in enumerate(SPECIAL)
    ]
    names = [*SPECIAL, *WORDS, *(f"w{i}" for i in range(VOCABULARY - len(SPECIAL) - len(WORDS)))]
    template = {"type": "BertProcessing", "sep": ["<sep>", 5], "cls": ["<cls>", 4]}
    return json.dumps(
        {
            "version": "1.0", "truncation": None, "padding": None, "added_tokens": special, "normalizer": None,
            "pre_tokenizer": {"type": "Split", "pattern": {"String": " "}, "behavior": "Removed", "invert": False},
            "post_processor": template if around else None, "decoder": None,
            "model": {"type": "WordLevel", "vocab": {name: i for i, name in enumerate(names)}, "unk_token": "<unk>"},
        }
    )  # fmt: skip


def make(place: Path, config: dict[str, Any], around: bool | None = None) -> Path:
    """A model with random weights; around: with a tokenizer."""
    source = place.with_suffix(".json")
    source.write_text(json.dumps(config))
    command("init", source, place)
    if around is not None:
        (place / "tokenizer.json").write_text(tokenizer_json(around))
    return place


def pools(place: Path, mode: str, normalize: bool, most: int) -> None:
    """The files by which sentence-transformers knows how to pool."""
    kinds = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    (place / "modules.json").write_text(json.dumps(modules))
    (place / "1_Pooling").mkdir()
    (place / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32, f"pooling_mode_{mode}": True}))
    (place / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": most, "do_lower_case": False}))
