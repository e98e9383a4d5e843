"""Tied weights: which name a safetensors file keeps, and what Transformers makes of it."""

import json
import random

import pytest
import torch
from helpers import heft, load_pretrained, load_safetensors, raw
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM, AutoModelForSpeechSeq2Seq

SMALL = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "max_position_embeddings": 40}
DECODER = {**SMALL, "tie_word_embeddings": True, "pad_token_id": None, "num_key_value_heads": 2}
BART = {
    "vocab_size": 60,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "max_position_embeddings": 40,
}
T5 = {"vocab_size": 60, "d_model": 16, "d_ff": 24, "num_layers": 2, "num_heads": 2, "d_kv": 8}

MODELS = {
    "bert": (AutoModelForMaskedLM, SMALL),
    "roberta": (AutoModelForMaskedLM, {**SMALL, "pad_token_id": 1}),
    "albert": (AutoModelForMaskedLM, {**SMALL, "embedding_size": 8}),
    "electra": (AutoModelForMaskedLM, {**SMALL, "embedding_size": 16}),
    "distilbert": (AutoModelForMaskedLM, {"vocab_size": 60, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "max_position_embeddings": 40}),
    "gpt2": (AutoModelForCausalLM, {"vocab_size": 60, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 40}),
    "gpt_neox": (AutoModelForCausalLM, DECODER),
    "bloom": (AutoModelForCausalLM, {"vocab_size": 60, "hidden_size": 16, "n_layer": 2, "n_head": 2}),
    "falcon": (AutoModelForCausalLM, DECODER),
    "opt": (AutoModelForCausalLM, {**SMALL, "ffn_dim": 24, "word_embed_proj_dim": 16}),
    "llama": (AutoModelForCausalLM, DECODER),
    "qwen2": (AutoModelForCausalLM, DECODER),
    "gemma": (AutoModelForCausalLM, {**DECODER, "head_dim": 8}),
    "t5": (AutoModelForSeq2SeqLM, T5),
    "bart": (AutoModelForSeq2SeqLM, BART),
    "whisper": (AutoModelForSpeechSeq2Seq, {**BART, "max_source_positions": 20, "max_target_positions": 20, "num_mel_bins": 8, "pad_token_id": 0}),
}
ORDERS = {
    "sorted": sorted,
    "reversed": lambda names: sorted(names, reverse=True),
    "mixed": lambda names: random.Random(7).sample(sorted(names), len(names)),
}


def save_bin(folder, tensors, config):
    folder.mkdir(parents=True)
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("model_type", MODELS)
def test_converted_bin_keeps_the_names_of_save_pretrained(scratch, model_type, order):
    auto, options = MODELS[model_type]
    torch.manual_seed(3)
    model = auto.from_config(AutoConfig.for_model(model_type, **options))
    model.save_pretrained(scratch / f"ties-{model_type}-{order}-theirs")
    saved = load_safetensors(scratch / f"ties-{model_type}-{order}-theirs")
    state = model.state_dict()
    assert set(state) > set(saved)
    config = json.loads((scratch / f"ties-{model_type}-{order}-theirs" / "config.json").read_text())
    base = {**config, "architectures": [type(model.base_model).__name__]}
    nameless = {key: value for key, value in config.items() if key != "architectures"}
    custom = {**config, "architectures": ["MyOwnModel"]}
    for what, one in {"own": config, "base": base, "nameless": nameless, "custom": custom}.items():
        source, dst = scratch / f"ties-{model_type}-{order}-{what}", scratch / f"ties-{model_type}-{order}-{what}-out"
        save_bin(source, {name: state[name] for name in ORDERS[order](state)}, one)
        heft("convert", source, dst, "--format", "safetensors", "--max-shard-size", "20KB")
        assert set(load_safetensors(dst)) == set(saved), what
        for name, tensor in load_pretrained(type(model), dst).state_dict().items():
            assert raw(tensor) == raw(state[name]), name


def test_model_with_weights_shared_against_its_config(scratch):
    """Both names are parameters of their own: without one of them it would be random."""
    config = AutoConfig.for_model("gpt2", **MODELS["gpt2"][1], tie_word_embeddings=False)
    model = AutoModelForCausalLM.from_config(config)
    model.lm_head.weight = model.transformer.wte.weight
    state = model.state_dict()
    save_bin(scratch / "ties-off", state, {**config.to_dict(), "architectures": ["GPT2LMHeadModel"]})
    heft("convert", scratch / "ties-off", scratch / "ties-off-out", "--format", "safetensors")
    assert set(load_safetensors(scratch / "ties-off-out")) == set(state)
    for name, tensor in load_pretrained(type(model), scratch / "ties-off-out").state_dict().items():
        assert raw(tensor) == raw(state[name]), name


# What Transformers' `_tied_weights_keys` keep, and what others tie: the name that stays, and those that go.
UNKNOWN = [
    ("model.embed_tokens.weight", "lm_head.weight"),
    ("backbone.embeddings.weight", "lm_head.weight"),
    ("transformer.wte.weight", "lm_head.weight"),
    ("_orig_mod.transformer.wte.weight", "_orig_mod.lm_head.weight"),
    ("rwkv.embeddings.weight", "head.weight"),
    ("emb.weight", "head.weight"),
    ("tok_embeddings.weight", "output.weight"),
    ("model.decoder.embed_tokens.weight", "model.decoder.output_projection.weight"),
    ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"),
    ("model.shared.weight", "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight"),
    ("prophetnet.word_embeddings.weight", "prophetnet.decoder.word_embeddings.weight", "lm_head.weight"),
    ("deberta.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"),
    ("cls.predictions.bias", "cls.predictions.decoder.bias"),
    ("lm_head.bias", "lm_head.decoder.bias"),
    ("model.embeddings.tok_embeddings.weight", "decoder.weight"),
    ("git.embeddings.word_embeddings.weight", "output.weight"),
    ("transformer.word_embedding.weight", "lm_loss.weight"),
    ("esm.embeddings.word_embeddings.weight", "lm_head.decoder.weight"),
    ("token_emb.emb.weight", "to_logits.weight"),
    ("gpt_neox_japanese.embed_in.weight", "embed_out.weight"),
    ("encoder.weight", "decoder.weight"),
    ("model.wide.weight", "narrow.weight"),
    ("model.embed_tokens.embedding_projection.weight", "unembedding_projection.weight"),
]


@pytest.mark.parametrize("names", UNKNOWN, ids=[names[0] for names in UNKNOWN])
@pytest.mark.parametrize("order", ORDERS)
def test_unknown_type_keeps_the_base_models_name(scratch, names, order):
    weight = torch.randn(6, 4)
    tensors = {name: weight for name in names}
    tensors.update({f"model.layers.{i}.dense.weight": torch.randn(4, 4) for i in range(3)})
    source = scratch / f"ties-unknown-{names[0]}-{order}"
    save_bin(source, {name: tensors[name] for name in ORDERS[order](tensors)}, {"model_type": "nobody_knows"})
    dst = source.with_name(source.name + "-out")
    document = heft("convert", source, dst, "--format", "safetensors")
    kept = load_safetensors(dst)
    assert set(kept) == set(tensors) - set(names[1:])
    assert all(raw(kept[name]) == raw(tensors[name]) for name in kept)
    told = [line for line in document["warnings"] if "is an alias of" in line]
    assert len(told) == len(names) - 1 and all(f"'{names[0]}'" in line for line in told)
    tied = heft("load", source)["tied"]
    assert [set(group) for group in tied] == [set(names)]


def test_views_that_differ_are_no_ties(scratch):
    """Overlapping parts of one storage, and the same bytes in another shape, have bytes of their own."""
    base = torch.arange(24.0)
    tensors = {"lm_head.weight": base[:12].view(3, 4), "model.embed.weight": base[6:18].view(3, 4), "model.flat.weight": base[:12], "model.turned.weight": base[:12].view(3, 4).t()}
    save_bin(scratch / "ties-views", tensors, {"model_type": "nobody_knows"})
    heft("convert", scratch / "ties-views", scratch / "ties-views-out", "--format", "safetensors")
    kept = load_safetensors(scratch / "ties-views-out")
    assert set(kept) == set(tensors)
    assert all(torch.equal(kept[name], tensors[name]) for name in kept)
