"""Forward passes of dense decoders against Transformers: random configs and weights, all heads, padding, generation."""

import json
import random

import pytest
import torch
from helpers import heft
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    MistralConfig,
    MistralForCausalLM,
)

ROUNDS = 3
VOCABULARY = 96
HEADS = {
    "base": AutoModel,
    "causal": AutoModelForCausalLM,
    "sequences": AutoModelForSequenceClassification,
    "tokens": AutoModelForTokenClassification,
    "answers": AutoModelForQuestionAnswering,
}


# ---- configs, drawn at random ----------------------------------------------------------------------
def rope(draw, kinds=("default", "linear", "llama3", "yarn")):
    own = {"rope_type": draw.choice(kinds), "rope_theta": draw.choice([100.0, 10000.0])}
    if own["rope_type"] != "default":
        own["factor"] = draw.choice([2.0, 3.5])
    if own["rope_type"] in ("llama3", "yarn"):
        own["original_max_position_embeddings"] = draw.choice([8, 16])
    if own["rope_type"] == "llama3":
        own.update(low_freq_factor=1.0, high_freq_factor=draw.choice([2.0, 4.0]))
    if own["rope_type"] == "yarn":
        own.update(draw.choice([{}, {"beta_fast": 4.0, "beta_slow": 2.0}, {"attention_factor": 1.25}, {"truncate": False}]))
    return own


def dense(draw, **more):
    heads = draw.choice([2, 4])
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": draw.choice([32, 48]),
        "num_hidden_layers": draw.randint(2, 4),
        "num_attention_heads": heads,
        "num_key_value_heads": draw.choice([1, 2, heads]),
        "intermediate_size": draw.choice([40, 56]),
        "max_position_embeddings": 64,
        "tie_word_embeddings": draw.random() < 0.5,
        "pad_token_id": draw.choice([0, 7]),
        "bos_token_id": 1,
        "eos_token_id": 2,
        "num_labels": draw.randint(2, 5),
        "rms_norm_eps": draw.choice([1e-6, 1e-3, 0.1]),
        "layer_norm_eps": draw.choice([1e-6, 1e-3, 0.1]),
        "rope_parameters": rope(draw),
        "hidden_act": draw.choice(["silu", "gelu", "gelu_pytorch_tanh", "relu"]),
        **more,
    }


def biased(draw, **more):
    bias = {"attention_bias": draw.random() < 0.5, "mlp_bias": draw.random() < 0.5}
    return dense(draw, **bias, **more)


def llama(draw):
    return biased(draw, head_dim=draw.choice([8, 12]))


def mistral(draw):
    return dense(draw, head_dim=draw.choice([None, 12]), sliding_window=draw.choice([None, 4, 7]))


def qwen(draw, **more):
    window = {"use_sliding_window": draw.random() < 0.7, "sliding_window": draw.choice([3, 5]), "max_window_layers": draw.randint(0, 2)}
    return dense(draw, **window, **more)


def qwen3(draw):
    return qwen(draw, head_dim=draw.choice([8, 12]), attention_bias=draw.random() < 0.5)


def phi3(draw):
    own = dense(draw, sliding_window=draw.choice([None, 4]))
    part = draw.choice([1.0, 0.5])
    half = int(own["hidden_size"] // own["num_attention_heads"] * part) // 2
    own["rope_parameters"] = {"rope_type": "default", "rope_theta": 1000.0, "partial_rotary_factor": part}
    if draw.random() < 0.7:
        factors = [[draw.uniform(1, 3) for _ in range(half)] for _ in range(2)]
        own["rope_parameters"].update(rope_type="longrope", short_factor=factors[0], long_factor=factors[1])
        own["original_max_position_embeddings"] = draw.choice([4, 32])  # shorter than all texts, or longer
    return own


def gemma(draw, **more):
    return biased(draw, head_dim=draw.choice([8, 12]), **more)


def gemma2(draw, **more):
    caps = {"final_logit_softcapping": draw.choice([None, 3.0]), "attn_logit_softcapping": draw.choice([None, 2.0])}
    act = {"hidden_activation": draw.choice(["gelu_pytorch_tanh", "silu"])}
    return gemma(draw, query_pre_attn_scalar=draw.choice([4, 20]), sliding_window=draw.choice([3, 6]), **caps, **act, **more)


def gemma3_text(draw):
    own = gemma2(draw, sliding_window_pattern=draw.choice([2, 3]))
    own["rope_parameters"] = {"full_attention": rope(draw, ("default", "linear")), "sliding_attention": rope(draw, ("default",))}
    return own


def granite(draw):
    factors = {"embedding_multiplier": 1.5, "logits_scaling": 3.0, "residual_multiplier": 0.7, "attention_multiplier": 0.4}
    return biased(draw, **{key: value for key, value in factors.items() if draw.random() < 0.7})


def olmo2(draw):
    return dense(draw, attention_bias=draw.random() < 0.5)


def starcoder2(draw):
    return dense(draw, use_bias=draw.random() < 0.5, norm_epsilon=draw.choice([1e-5, 0.1]), sliding_window=draw.choice([None, 4]))


def partial(draw, **more):
    own = dense(draw, **more)
    even = own["hidden_size"] // own["num_attention_heads"] % 8 == 0  # a quarter of a head must be
    own["rope_parameters"]["partial_rotary_factor"] = draw.choice([0.25, 0.5, 1.0] if even else [0.5, 1.0])
    return own


def stablelm(draw):
    flags = {key: draw.random() < 0.5 for key in ("use_qkv_bias", "qk_layernorm", "use_parallel_residual")}
    return partial(draw, **flags)


def cohere(draw):
    own = dense(draw, attention_bias=draw.random() < 0.5, use_qk_norm=draw.random() < 0.5, logit_scale=draw.choice([0.0625, 0.7]))
    own["rope_parameters"] = rope(draw, ("default", "linear"))
    return own


def phi(draw):
    return partial(draw, qk_layernorm=draw.random() < 0.5)


FAMILIES = {
    "cohere": cohere,
    "gemma": gemma,
    "gemma2": gemma2,
    "gemma3_text": gemma3_text,
    "granite": granite,
    "llama": llama,
    "mistral": mistral,
    "olmo2": olmo2,
    "phi": phi,
    "phi3": phi3,
    "qwen2": qwen,
    "qwen3": qwen3,
    "stablelm": stablelm,
    "starcoder2": starcoder2,
}


# ---- models and inputs --------------------------------------------------------------------------------
def make(auto, config, folder, dtype=torch.float32):
    """A model whose every parameter counts: norms and biases are random too."""
    config._attn_implementation = "eager"
    torch.manual_seed(4)
    build = auto._from_config if hasattr(auto, "_from_config") else auto.from_config
    model = build(config, attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = 0.2 if parameter.dim() > 1 or name.endswith("bias") else 0.3
            parameter.add_(torch.randn(parameter.shape, generator=generator) * spread)
    model.to(dtype).save_pretrained(folder)
    # read again: .to() rounds the rotary embedding's frequencies too
    return model if dtype == torch.float32 else again(model, folder, dtype)


def again(model, folder, dtype):
    return type(model).from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()


def draw_config(family, round_number, **more):
    own = FAMILIES[family](random.Random(f"{family} {round_number}"))
    return AutoConfig.for_model(family, **{**own, **more})


def make_inputs(config, side, rows=3, width=13):
    """Ids without the padding's, and a mask with `side` padded: 0, 4, 7 tokens."""
    ids = torch.randint(8, VOCABULARY, (rows, width), generator=torch.Generator().manual_seed(3))
    if side is None:
        return {"input_ids": ids}
    mask = torch.ones_like(ids)
    for row in range(1, rows):
        padding = slice(0, 3 * row + 1) if side == "left" else slice(width - 3 * row - 1, width)
        mask[row, padding] = 0
        ids[row, padding] = config.pad_token_id
    return {"input_ids": ids, "attention_mask": mask}


def run(folder, inputs, outputs, *more):
    save_file({name: tensor.contiguous() for name, tensor in inputs.items()}, folder / "in.safetensors")
    command = ["run", folder, "--ids-file", folder / "in.safetensors", "--save", folder / "out.safetensors"]
    heft(*command, "--outputs", ",".join(outputs), *more)
    return load_file(folder / "out.safetensors")


def assert_near(found, expected, mask=None, atol=1e-4, rtol=1e-3, what=""):
    expected = expected.float()
    assert found.shape == expected.shape, what
    assert torch.isfinite(expected).all(), what
    wrong = (found - expected).abs() - atol - rtol * expected.abs()
    if mask is not None:
        wrong = wrong[mask.bool()]
    assert wrong.max() <= 0, f"{what}: off by {wrong.max()} more than allowed"


def classes_of(family):
    config = draw_config(family, 0)
    return [head for head, auto in HEADS.items() if type(config) in auto._model_mapping]


CASES = [(family, head) for family in FAMILIES for head in classes_of(family)]


# ---- tests ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("round_number", range(ROUNDS))
@pytest.mark.parametrize("family,head", CASES)
def test_results(family, head, round_number, tmp_path):
    config = draw_config(family, round_number)
    model = make(HEADS[head], config, tmp_path)
    names = ["last_hidden_state"] if head == "base" else ["start_logits", "end_logits"] if head == "answers" else ["logits"]
    hidden = [f"hidden_states.{i}" for i in range(config.num_hidden_layers + 1)]
    for side in (None, "right", "left"):
        inputs = make_inputs(config, side)
        with torch.no_grad():
            expected = model(**inputs, output_hidden_states=True)
        found = run(tmp_path, inputs, names + hidden)
        for name in names:
            mask = None if head == "sequences" else inputs.get("attention_mask")
            assert_near(found[name], expected[name], mask, what=f"{name}, {side}")
        for i, name in enumerate(hidden):
            assert_near(found[name], expected.hidden_states[i], inputs.get("attention_mask"), what=f"{name}, {side}")


@pytest.mark.parametrize("round_number", range(2))
@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16(family, round_number, tmp_path):
    config = draw_config(family, round_number)
    model = make(AutoModelForCausalLM, config, tmp_path, torch.bfloat16)
    inputs = make_inputs(config, "left")
    mask = inputs["attention_mask"]
    with torch.no_grad():
        given = model(**inputs, output_hidden_states=True)
        exact = again(model, tmp_path, torch.float32)(**inputs).logits
    results = run(tmp_path, inputs, ["logits", "hidden_states.0"])
    # constants that embeddings are multiplied with are rounded alike
    assert torch.equal(results["hidden_states.0"].bfloat16()[mask.bool()], given.hidden_states[0][mask.bool()])
    found, theirs = results["logits"], given.logits.float()
    noise = (theirs - exact).abs()  # of the library, which rounds after each step
    assert_near(found, exact, mask, 0.3, 0.05)
    assert_near(found, theirs, mask, 0.3 + noise, 0.05)
    own = (found - exact)[mask.bool()].pow(2).mean()
    assert own <= 1.5 * noise[mask.bool()].pow(2).mean()
    assert_near(run(tmp_path, inputs, ["logits"], "--compute", "f32")["logits"], exact, mask)


def close_call(logits):
    best = logits.topk(2, dim=-1).values
    return best[..., 0] - best[..., 1] < 1e-3


@pytest.mark.parametrize("round_number", range(2))
@pytest.mark.parametrize("family", FAMILIES)
def test_generation(family, round_number, tmp_path):
    config = draw_config(family, round_number)
    model = make(AutoModelForCausalLM, config, tmp_path)
    for side in (None, "left"):
        inputs = make_inputs(config, side)
        check_generation(model, inputs, tmp_path, 12)


def check_generation(model, inputs, folder, count):
    own = {"return_dict_in_generate": True, "output_logits": True, "do_sample": False, "eos_token_id": None}
    given = {"attention_mask": torch.ones_like(inputs["input_ids"]), **inputs}
    expected = model.generate(**given, **own, max_new_tokens=count, pad_token_id=model.config.pad_token_id)
    save_file(inputs, folder / "in.safetensors")
    found = heft("run", folder, "--ids-file", folder / "in.safetensors", "--new-tokens", count, "--ignore-eos")["ids"]
    width, compared = inputs["input_ids"].shape[1], 0
    for row, ids in enumerate(found):
        assert len(ids) == count
        for i, token in enumerate(ids):
            if close_call(expected.logits[i][row]):
                break
            assert token == expected.sequences[row, width + i], f"row {row}, token {i}"
            compared += 1
    assert compared > 0


@pytest.mark.parametrize("family", ("mistral", "gemma3_text", "qwen2"))
def test_window_ring(family, tmp_path):
    """A prompt of more than one pass, in a window that is a ring."""
    window = {"sliding_window": 6, "use_sliding_window": True, "max_window_layers": 1, "max_position_embeddings": 2048}
    config = draw_config(family, 1, **window)
    model = make(AutoModelForCausalLM, config, tmp_path)
    inputs = make_inputs(config, "left", rows=2, width=600)
    with torch.no_grad():
        expected = model(**inputs).logits
    found = run(tmp_path, inputs, ["logits"])["logits"]
    assert_near(found, expected, inputs["attention_mask"])
    check_generation(model, inputs, tmp_path, 40)


@pytest.mark.parametrize("side", (None, "right", "left"))
@pytest.mark.parametrize("family", ("llama", "gemma"))
def test_long_texts_have_one_class(family, side, tmp_path):
    config = draw_config(family, 0, max_position_embeddings=2048)
    model = make(AutoModelForSequenceClassification, config, tmp_path)
    inputs = make_inputs(config, side, rows=3, width=700)
    if side:
        hidden = slice(0, 600) if side == "left" else slice(100, 700)
        inputs["attention_mask"][1, hidden] = 0
        inputs["input_ids"][1, hidden] = config.pad_token_id
    with torch.no_grad():
        expected = model(**inputs).logits
    assert_near(run(tmp_path, inputs, ["logits"])["logits"], expected)


def test_long_padding_before_generation(tmp_path):
    config = draw_config("llama", 0, max_position_embeddings=2048)
    model = make(AutoModelForCausalLM, config, tmp_path)
    inputs = make_inputs(config, "left", rows=3, width=700)
    inputs["attention_mask"][2, :600] = 0
    check_generation(model, inputs, tmp_path, 5)


@pytest.mark.parametrize("width", (8, 24, 600))
def test_dynamic_rope(width, tmp_path):
    positions = {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1000.0}, "max_position_embeddings": 16}
    config = draw_config("llama", 0, **positions)
    model = make(AutoModelForCausalLM, config, tmp_path)
    inputs = make_inputs(config, None, width=width)
    with torch.no_grad():
        expected = model(**inputs).logits
    assert_near(run(tmp_path, inputs, ["logits"])["logits"], expected)
    check_generation(model, inputs, tmp_path, 12)


@pytest.mark.parametrize("width", (520, 600))
def test_longrope_in_several_passes(width, tmp_path):
    config = draw_config("phi3", 0)
    half = int(config.hidden_size // config.num_attention_heads) // 2
    factors = {"short_factor": [1.0 + i for i in range(half)], "long_factor": [2.0 + 3 * i for i in range(half)]}
    own = {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1000.0, **factors}}
    config = draw_config("phi3", 0, **own, original_max_position_embeddings=530, max_position_embeddings=2048)
    model = make(AutoModelForCausalLM, config, tmp_path)
    inputs = make_inputs(config, None, width=width)
    with torch.no_grad():
        expected = model(**inputs).logits
    assert_near(run(tmp_path, inputs, ["logits"])["logits"], expected)
    if width < 530:
        check_generation(model, inputs, tmp_path, 531 - width)
        command = ["run", tmp_path, "--ids-file", tmp_path / "in.safetensors", "--ignore-eos", "--new-tokens"]
        assert "530 tokens" in heft(*command, 532 - width, expect=7)["error"]["message"]
    else:
        check_generation(model, inputs, tmp_path, 16)


OLD_CONFIGS = {  # what files of 4.x and older say otherwise
    "phi3 yarn": ("phi3", {"rope_scaling": {"type": "yarn", "short_factor": [1.5] * 4, "long_factor": [3.0] * 4}, "original_max_position_embeddings": 6}),
    "phi3 without length": ("phi3", {"rope_scaling": {"type": "longrope", "short_factor": [1.5] * 4, "long_factor": [3.0] * 4}, "max_position_embeddings": 8192}),
    "longrope factor": ("llama", {"rope_scaling": {"rope_type": "longrope", "factor": 3.0, "short_factor": [1.5] * 4, "long_factor": [3.0] * 4}, "original_max_position_embeddings": 6}),
    "lengths in two places": ("llama", {"rope_scaling": {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}, "original_max_position_embeddings": 8}),
    "yarn by lengths": ("llama", {"rope_scaling": {"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 8}}),
    "linear": ("llama", {"rope_scaling": {"type": "linear", "factor": 4.0}, "rope_theta": 300.0}),
    "cohere without base": ("cohere", {}),
    "gemma gelu": ("gemma", {"hidden_act": "gelu"}),
    "gemma3 bases": ("gemma3_text", {"rope_theta": 5000.0, "rope_local_base_freq": 100.0, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}),
    "gemma3 defaults": ("gemma3_text", {}),
    "mistral layer types": ("mistral", {"sliding_window": 3, "layer_types": ["full_attention", "sliding_attention"]}),
    "qwen2 layer types": ("qwen2", {"sliding_window": 3, "use_sliding_window": True, "layer_types": ["sliding_attention", "full_attention"]}),
    "stablelm part": ("stablelm", {"partial_rotary_factor": 0.5, "rope_theta": 300.0}),
    "phi part by default": ("phi", {"rope_theta": 300.0}),
}
SMALL = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40, "max_position_embeddings": 64, "head_dim": 8, "num_key_value_heads": 2}


@pytest.mark.parametrize("case", OLD_CONFIGS)
def test_old_configs(case, tmp_path):
    family, own = OLD_CONFIGS[case]
    text = json.dumps({"model_type": family, "pad_token_id": 0, **SMALL, **own})
    (tmp_path / "config.json").write_text(text)
    mistral = family == "mistral"  # with layer_types the Auto classes take it for another family
    config = (MistralConfig if mistral else AutoConfig).from_pretrained(tmp_path)
    model = make(MistralForCausalLM if mistral else AutoModelForCausalLM, config, tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**json.loads(text), "architectures": written["architectures"]}))
    inputs = make_inputs(config, None)
    with torch.no_grad():
        expected = model(**inputs).logits
    assert_near(run(tmp_path, inputs, ["logits"])["logits"], expected)


@pytest.mark.parametrize("pad", ("absent", None, 5))
@pytest.mark.parametrize("family", [family for family, head in CASES if head == "sequences"])
def test_padding_of_classifiers(family, pad, tmp_path):
    """The last token that is not pad_token_id, whose default is the family's; without a mask."""
    small = {**SMALL, "vocab_size": 32100} if family == "phi3" else SMALL
    own = {**small, **({} if pad == "absent" else {"pad_token_id": pad})}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family, **own}))
    config = AutoConfig.from_pretrained(tmp_path)
    model = make(AutoModelForSequenceClassification, config, tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    document = {"model_type": family, **own, "architectures": written["architectures"]}
    (tmp_path / "config.json").write_text(json.dumps(document))
    rows = 1 if config.pad_token_id is None else 3
    ids = make_inputs(config, None, rows=rows)["input_ids"]
    for row in range(1, rows):
        ids[row, 13 - 3 * row :] = config.pad_token_id
    with torch.no_grad():
        expected = model(input_ids=ids).logits
    assert_near(run(tmp_path, {"input_ids": ids}, ["logits"])["logits"], expected)


def test_bidirectional_gemma3(tmp_path):
    config = draw_config("gemma3_text", 0, use_bidirectional_attention=True, sliding_window=6)
    for head in ("base", "sequences"):
        model = make(HEADS[head], config, tmp_path)
        name = "last_hidden_state" if head == "base" else "logits"
        for side in (None, "right", "left"):
            inputs = make_inputs(config, side)
            with torch.no_grad():
                expected = model(**inputs)[name]
            mask = inputs.get("attention_mask") if head == "base" else None
            assert_near(run(tmp_path, inputs, [name])[name], expected, mask, what=f"{head}, {side}")


def test_sequences_in_one_pass_do_not_change_each_other(tmp_path):
    """A long text beside a short one: the short one's rotary positions stay those of short texts."""
    config = draw_config("llama", 0, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1000.0}, max_position_embeddings=16)
    make(AutoModelForCausalLM, config, tmp_path)
    texts = [",".join(str(8 + i * 7 % 80) for i in range(count)) for count in (9, 40)]
    alone = [heft("run", tmp_path, "--ids", text, "--new-tokens", 4, "--ignore-eos")["ids"][0] for text in texts]
    assert heft("run", tmp_path, "--ids", "\n".join(texts), "--new-tokens", 4, "--ignore-eos")["ids"] == alone


def test_odd_rotary_part_is_refused(tmp_path):
    config = draw_config("phi", 0, hidden_size=48, num_attention_heads=4, num_key_value_heads=4)
    config.rope_parameters["partial_rotary_factor"] = 0.25
    make(AutoModelForCausalLM, config, tmp_path)
    report = heft("run", tmp_path, "--ids", "9,10", expect=7)
    assert "odd" in report["error"]["message"]


def test_masked_inputs_are_refused(tmp_path):
    config = draw_config("llama", 0)
    make(AutoModelForCausalLM, config, tmp_path)
    inputs = make_inputs(config, "left")
    inputs["attention_mask"][1] = 0
    save_file(inputs, tmp_path / "in.safetensors")
    assert "masked" in heft("run", tmp_path, "--ids-file", tmp_path / "in.safetensors", expect=2)["error"]["message"]


def test_only_language_models_generate(tmp_path):
    make(AutoModelForSequenceClassification, draw_config("llama", 0), tmp_path)
    report = heft("run", tmp_path, "--ids", "9,10", "--new-tokens", 2, expect=2)
    assert "not a language model" in report["error"]["message"]


REFUSED = {
    "gemma": {"use_bidirectional_attention": True},
    "gemma2": {"use_bidirectional_attention": True},
    "gemma3_text": {"use_bidirectional_attention": True},
    "llama": {"hidden_act": "mish"},
}


@pytest.mark.parametrize("family", REFUSED)
def test_refused(family, tmp_path):
    key = next(iter(REFUSED[family]))
    config = draw_config(family, 0, **REFUSED[family])
    make(AutoModelForCausalLM, config, tmp_path)
    report = heft("run", tmp_path, "--ids", "1,2,3", expect=7)
    assert key in json.dumps(report)
