"""Every family, with configs drawn at random: Transformers saves, heft loads and cuts, Transformers loads, bit for bit."""

import random
import warnings

import pytest
from helpers import assert_same, heft
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

ROUNDS = 3


def llama_like(draw):
    heads = draw.choice([2, 4])
    yes = draw.random() < 0.5
    return {
        "vocab_size": draw.randint(40, 90),
        "hidden_size": draw.choice([24, 32, 48]),
        "num_hidden_layers": draw.randint(1, 4),
        "num_attention_heads": heads,
        "num_key_value_heads": draw.choice([1, heads]),
        "intermediate_size": draw.choice([40, 56]),
        "max_position_embeddings": 32,
        "tie_word_embeddings": draw.random() < 0.5,
        "pad_token_id": None,
        "attention_bias": yes,
        "mlp_bias": yes,
        "use_bias": yes,
        "use_qkv_bias": yes,
        "qk_layernorm": yes,
        "use_qk_norm": yes,
    }


def with_head_dim(draw):
    return {**llama_like(draw), "head_dim": draw.choice([8, 12])}


def common(draw, hidden="hidden_size", layers="num_hidden_layers", heads="num_attention_heads"):
    return {
        "vocab_size": draw.randint(40, 90),
        hidden: draw.choice([24, 32, 48]),
        layers: draw.randint(1, 4),
        heads: draw.choice([2, 4]),
        "tie_word_embeddings": draw.random() < 0.5,
    }


def gpt2(draw):
    own = common(draw, "n_embd", "n_layer", "n_head")
    return {**own, "n_positions": 32, "n_inner": draw.choice([None, 40])}


def opt(draw):
    own = common(draw)
    return {
        **own,
        "ffn_dim": 40,
        "max_position_embeddings": 32,
        "word_embed_proj_dim": draw.choice([own["hidden_size"], 16]),
        "do_layer_norm_before": draw.random() < 0.5,
        "enable_bias": draw.random() < 0.5,
        "layer_norm_elementwise_affine": draw.random() < 0.5,
    }


def distilbert(draw):
    own = common(draw, "dim", "n_layers", "n_heads")
    return {**own, "hidden_dim": 40, "max_position_embeddings": 32, "sinusoidal_pos_embds": draw.random() < 0.5}


FAMILIES = {
    "bert": lambda draw: {**common(draw), "intermediate_size": 40, "max_position_embeddings": 32},
    "bloom": lambda draw: common(draw, layers="n_layer", heads="n_head"),
    "cohere": llama_like,
    "distilbert": distilbert,
    "gemma": with_head_dim,
    "gemma2": with_head_dim,
    "gemma3_text": with_head_dim,
    "gpt2": gpt2,
    "granite": llama_like,
    "llama": with_head_dim,
    "mistral": with_head_dim,
    "olmo2": llama_like,
    "opt": opt,
    "phi": llama_like,
    "phi3": llama_like,
    "qwen2": llama_like,
    "qwen3": with_head_dim,
    "stablelm": llama_like,
    "starcoder2": llama_like,
}


@pytest.mark.parametrize("round_number", range(ROUNDS))
@pytest.mark.parametrize("family", FAMILIES)
def test_there_and_back(family, round_number, tmp_path):
    config = AutoConfig.for_model(family, **FAMILIES[family](random.Random(f"{family} {round_number}")))
    auto = AutoModelForMaskedLM if family in ("bert", "distilbert") else AutoModelForCausalLM
    model = auto.from_config(config)
    model.save_pretrained(tmp_path / "theirs")

    report = heft("load", tmp_path / "theirs", "--strict")
    assert report["missing"] == report["unexpected"] == report["mismatched"] == []
    assert report["class"] == type(model).__name__
    assert report["parameters"] == sum(p.numel() for p in model.parameters())

    size = (tmp_path / "theirs" / "model.safetensors").stat().st_size
    heft("convert", tmp_path / "theirs", tmp_path / "ours", "--max-shard-size", size // 3)
    assert len(list((tmp_path / "ours").glob("model-*.safetensors"))) >= 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again, info = auto.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert_same(model.state_dict(), again.state_dict())
