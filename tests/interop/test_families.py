"""Every family, with configs drawn at random: Transformers saves, heft loads and cuts, Transformers loads, bit for bit."""

import json
import random
import warnings

import pytest
import torch
from helpers import assert_same, heft, load_safetensors
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForSpeechSeq2Seq,
    AutoModelForZeroShotImageClassification,
)

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


def encoder(draw):
    return {**common(draw), "intermediate_size": 40, "max_position_embeddings": 32}


def albert(draw):
    groups = {"num_hidden_groups": draw.randint(1, 3), "inner_group_num": draw.randint(1, 2)}
    return {**encoder(draw), "embedding_size": draw.choice([16, 20]), **groups}


def electra(draw):
    own = encoder(draw)
    return {**own, "embedding_size": draw.choice([16, own["hidden_size"]])}


def falcon(draw):
    flags = {key: draw.random() < 0.5 for key in ("new_decoder_architecture", "multi_query", "parallel_attn", "bias", "alibi")}
    return {**common(draw), **flags, "num_kv_heads": draw.choice([1, 2]), "ffn_hidden_size": draw.choice([None, 40])}


def mixture(draw):
    return {
        **llama_like(draw),
        "num_local_experts": draw.randint(2, 12),
        "num_experts": draw.randint(2, 12),
        "num_experts_per_tok": 2,
        "moe_intermediate_size": draw.choice([12, 16]),
        "shared_expert_intermediate_size": 20,
        "decoder_sparse_step": draw.choice([1, 2]),
        "mlp_only_layers": draw.choice([[], [0]]),
        "qkv_bias": draw.random() < 0.5,
    }


def qwen3_moe(draw):
    own = mixture(draw)
    del own["num_experts"]  # another name of num_local_experts here
    return own


def deepseek(draw):
    return {
        **qwen3_moe(draw),
        "num_hidden_layers": draw.randint(2, 3),
        "n_routed_experts": 4,
        "num_local_experts": 4,
        "n_group": 2,
        "topk_group": 1,
        "n_shared_experts": draw.randint(1, 2),
        "first_k_dense_replace": draw.randint(0, 1),
        "q_lora_rank": draw.choice([None, 12]),
        "kv_lora_rank": 10,
        "qk_nope_head_dim": 6,
        "qk_rope_head_dim": 4,
        "v_head_dim": draw.choice([6, 8]),
    }


def t5(draw):
    own = common(draw, "d_model", "num_layers", "num_heads")
    gated = draw.choice(["relu", "gated-gelu"])
    return {**own, "d_kv": draw.choice([6, 8]), "d_ff": 40, "num_decoder_layers": draw.randint(1, 3), "feed_forward_proj": gated}


def seq2seq(draw):
    own = common(draw, "d_model", "encoder_layers", "encoder_attention_heads")
    ffn = {"encoder_ffn_dim": 40, "decoder_ffn_dim": 32}
    return {**own, **ffn, "decoder_layers": draw.randint(1, 3), "decoder_attention_heads": 2, "max_position_embeddings": 32}


def whisper(draw):
    sizes = {"num_mel_bins": draw.choice([4, 8]), "max_source_positions": 20, "max_target_positions": 16}
    return {**seq2seq(draw), **sizes, "pad_token_id": 3, "decoder_start_token_id": 4}


def vision(draw):
    own = {key: value for key, value in encoder(draw).items() if key not in ("vocab_size", "tie_word_embeddings")}
    return {**own, "image_size": draw.choice([8, 12]), "patch_size": 4, "num_channels": draw.choice([1, 3])}


def clip(draw):
    return {"text_config": encoder(draw), "vision_config": vision(draw), "projection_dim": draw.choice([8, 12])}


def gpt_neox(draw):
    return {**common(draw), "intermediate_size": 40, "attention_bias": draw.random() < 0.5}


FAMILIES = {
    "albert": albert,
    "bart": seq2seq,
    "bert": encoder,
    "bloom": lambda draw: common(draw, layers="n_layer", heads="n_head"),
    "clip": clip,
    "cohere": llama_like,
    "deepseek_v3": deepseek,
    "distilbert": distilbert,
    "electra": electra,
    "falcon": falcon,
    "gemma": with_head_dim,
    "gemma2": with_head_dim,
    "gemma3_text": with_head_dim,
    "gpt2": gpt2,
    "gpt_neox": gpt_neox,
    "gpt_oss": qwen3_moe,
    "granite": llama_like,
    "llama": with_head_dim,
    "mistral": with_head_dim,
    "mixtral": qwen3_moe,
    "olmo2": llama_like,
    "opt": opt,
    "phi": llama_like,
    "phi3": llama_like,
    "qwen2": llama_like,
    "qwen2_moe": mixture,
    "qwen3": with_head_dim,
    "qwen3_moe": qwen3_moe,
    "roberta": encoder,
    "stablelm": llama_like,
    "starcoder2": llama_like,
    "t5": t5,
    "vit": vision,
    "whisper": whisper,
}

AUTO = {
    **dict.fromkeys(("albert", "bert", "distilbert", "electra", "roberta"), AutoModelForMaskedLM),
    **dict.fromkeys(("bart", "t5"), AutoModelForSeq2SeqLM),
    "clip": AutoModelForZeroShotImageClassification,
    "vit": AutoModelForImageClassification,
    "whisper": AutoModelForSpeechSeq2Seq,
}


@pytest.mark.parametrize("round_number", range(ROUNDS))
@pytest.mark.parametrize("family", FAMILIES)
def test_there_and_back(family, round_number, tmp_path):
    config = AutoConfig.for_model(family, **FAMILIES[family](random.Random(f"{family} {round_number}")))
    auto = AUTO.get(family, AutoModelForCausalLM)
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


KEPT = {  # what of the names stays float32, and in which dtypes: the families that have such a list at all
    ("deepseek_v3", "float16"): "e_score_correction_bias",
    ("deepseek_v3", "bfloat16"): "e_score_correction_bias",
    ("gpt_oss", "float16"): "norm",
    ("t5", "float16"): ".wo.",
}


@pytest.mark.parametrize("dtype", ("float16", "bfloat16"))
@pytest.mark.parametrize("family", FAMILIES)
def test_float32_is_kept_where_theirs_is(family, dtype, tmp_path):
    """`_keep_in_fp32_modules` and `_strict`, by what they do to every tensor: a list that changes fails here."""
    drawn = {**FAMILIES[family](random.Random(family)), **({"first_k_dense_replace": 0} if family == "deepseek_v3" else {})}
    auto = AUTO.get(family, AutoModelForCausalLM)
    auto.from_config(AutoConfig.for_model(family, **drawn)).save_pretrained(tmp_path / "float32")
    auto.from_pretrained(tmp_path / "float32", dtype=getattr(torch, dtype)).save_pretrained(tmp_path / "theirs")
    theirs = load_safetensors(tmp_path / "theirs")
    kept = [name for name, tensor in theirs.items() if tensor.dtype == torch.float32]
    part = KEPT.get((family, dtype))
    assert kept == ([name for name in theirs if part in name] if part else []) and bool(kept) == bool(part)
    heft("convert", tmp_path / "float32", tmp_path / "ours", "--dtype", dtype)
    assert_same(theirs, load_safetensors(tmp_path / "ours"))
    loaded = heft("load", tmp_path / "float32", "--dtype", dtype, "--mode", "copy")
    assert loaded["bytes"] == sum(tensor.nbytes for tensor in theirs.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_config_is_written_as_theirs(family, tmp_path):
    config = AutoConfig.for_model(family, **FAMILIES[family](random.Random(family)))
    AUTO.get(family, AutoModelForCausalLM).from_config(config).save_pretrained(tmp_path / "theirs")
    heft("init", tmp_path / "theirs", tmp_path / "ours")
    assert (tmp_path / "ours" / "config.json").read_bytes() == (tmp_path / "theirs" / "config.json").read_bytes()
    again = AUTO.get(family, AutoModelForCausalLM).from_pretrained(tmp_path / "ours", output_loading_info=True)[1]
    assert not any(again[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))


@pytest.mark.parametrize("family", ("deepseek_v3", "gpt_neox", "mixtral", "qwen2_moe", "qwen3_moe", "vit"))
def test_names_of_memory_are_read(family, tmp_path):
    config = AutoConfig.for_model(family, **FAMILIES[family](random.Random(family)))
    model = AUTO.get(family, AutoModelForCausalLM).from_config(config)
    model.save_pretrained(tmp_path / "stacked", save_original_format=False)
    report = heft("load", tmp_path / "stacked", "--strict")
    assert report["missing"] == report["unexpected"] == report["mismatched"] == []
    assert report["parameters"] == sum(p.numel() for p in model.parameters())
    assert report["copied_bytes"] == 0


CACHED = {  # what else the config needs, and the most tokens that Transformers keeps of a window of 6
    **dict.fromkeys(("bart", "bloom", "cohere", "falcon", "gemma", "gpt2", "gpt_neox", "granite", "llama", "olmo2", "opt"), {}),
    **dict.fromkeys(("phi", "stablelm", "t5", "whisper"), {}),
    **dict.fromkeys(("gemma2", "gemma3_text", "gpt_oss", "mistral", "mixtral", "phi3", "starcoder2"), {"sliding_window": 6}),
    **dict.fromkeys(("qwen2", "qwen3", "qwen2_moe", "qwen3_moe"), {"sliding_window": 6, "use_sliding_window": True, "max_window_layers": 2}),
}


@pytest.mark.parametrize("context", (4, 12))
@pytest.mark.parametrize("family", CACHED)
def test_cache_is_predicted(family, context, tmp_path):
    own = {**FAMILIES[family](random.Random(f"{family} cache")), **CACHED[family]}
    own["num_hidden_layers"] = 4
    if family == "falcon":
        own.update(new_decoder_architecture=False, multi_query=True)  # the new one keeps a copy of each key for every head
    config = AutoConfig.for_model(family, **{k: v for k, v in own.items() if k != "num_hidden_layers" or family not in ("t5", "gpt2", "bloom", "bart", "whisper")})
    model = AUTO.get(family, AutoModelForCausalLM).from_config(config).eval()
    config.save_pretrained(tmp_path)
    inputs = torch.randint(5, 30, (2, context))
    with torch.no_grad():
        if family == "whisper":
            sound = torch.zeros(2, config.num_mel_bins, 2 * config.max_source_positions)
            cache = model(input_features=sound, decoder_input_ids=inputs, use_cache=True).past_key_values
        elif family in ("bart", "t5"):
            cache = model(input_ids=inputs, decoder_input_ids=inputs, use_cache=True).past_key_values
        else:
            cache = model(input_ids=inputs, use_cache=True).past_key_values
    expected, windows = 0, 0
    for part in (cache.self_attention_cache, cache.cross_attention_cache) if hasattr(cache, "cross_attention_cache") else (cache,):
        for layer in part.layers:
            # heft keeps the whole window, Transformers one token less between two calls
            short = layer.is_sliding and layer.keys.shape[-2] == 5
            windows += short
            expected += (layer.keys.nbytes + layer.values.nbytes) * (6 if short else 5) // 5
    assert windows > 0 or context < 6 or not CACHED[family]
    plan = heft("plan", tmp_path / "config.json", "--dtype", "float32", "--context", context, "--batch", 2, "--max-memory", "cpu=1GB")
    assert plan["reserve"]["cpu"]["cache_bytes"] == expected


@pytest.mark.parametrize("family", ("albert", "bert", "clip", "distilbert", "electra", "roberta", "vit"))
def test_encoders_have_no_cache(family, tmp_path):
    AutoConfig.for_model(family, **FAMILIES[family](random.Random(family))).save_pretrained(tmp_path)
    plan = heft("plan", tmp_path / "config.json", "--context", 100, "--max-memory", "cpu=1GB")
    assert plan["reserve"]["cpu"]["cache_bytes"] == 0 < plan["reserve"]["cpu"]["activation_bytes"]


def test_latent_cache(tmp_path):
    config = AutoConfig.for_model("deepseek_v3", **deepseek(random.Random("latent")))
    config.save_pretrained(tmp_path)
    plan = heft("plan", tmp_path / "config.json", "--dtype", "bf16", "--context", 100, "--max-memory", "cpu=1GB")
    assert plan["reserve"]["cpu"]["cache_bytes"] == 100 * config.num_hidden_layers * (10 + 4) * 2


@pytest.mark.parametrize(
    "labels",
    (
        {"num_labels": 5, "id2label": {"0": "a", "1": "b", "2": "c"}},
        {"num_labels": 2, "id2label": {"0": "a", "1": "b", "2": "c"}},
        {"num_labels": 8, "id2label": {"0": "a", "7": "b"}},
        {"num_labels": 3, "id2label": {}},
        {"num_labels": 3, "id2label": None},
        {"num_labels": 4},
        {"id2label": {"0": "a", "1": "b", "2": "c"}},
        {},
    ),
)
@pytest.mark.parametrize("family", ("bert", "bart", "llama"))
def test_number_of_labels(family, labels, tmp_path):
    config = AutoConfig.for_model(family, **FAMILIES[family](random.Random("labels"))).to_dict()
    for key in ("num_labels", "id2label", "label2id"):
        config.pop(key, None)
    (tmp_path / "config.json").write_text(json.dumps({**config, "pad_token_id": 0, **labels}))
    model = AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(tmp_path))
    ours = heft("inspect", tmp_path / "config.json", "--class", type(model).__name__)
    assert {t["name"]: t["shape"] for t in ours["tensors"]} == {n: list(p.shape) for n, p in model.state_dict().items()}
