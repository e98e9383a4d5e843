"""What a pass is given beside ids, and options of configs that change how tokens see each other, against Transformers."""

import json

import pytest
import torch
import transformers as tf
from forwards import BASE, ROPE, SMALL, check, compare, make, padded, positions, refused, run
from helpers import heft
from safetensors.torch import save_file

GPT_OSS = dict(intermediate_size=32, num_key_value_heads=2, head_dim=12, num_local_experts=4, num_experts_per_tok=2, sliding_window=4, **SMALL)
WINDOW = dict(intermediate_size=72, num_key_value_heads=2, sliding_window=4, rope_parameters=ROPE, **SMALL)
LATENT = dict(intermediate_size=64, moe_intermediate_size=24, num_key_value_heads=4, n_routed_experts=8, kv_lora_rank=16, qk_rope_head_dim=8,
              v_head_dim=12, qk_nope_head_dim=10, num_experts_per_tok=3, q_lora_rank=20, n_group=4, topk_group=2, first_k_dense_replace=1, **SMALL)
ROBERTA = {**SMALL, "pad_token_id": 1, "bos_token_id": 0, "intermediate_size": 72}
LONG = dict(d_model=48, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=3, encoder_ffn_dim=72, decoder_ffn_dim=80, **BASE)
WHISPER = dict(num_mel_bins=20, max_source_positions=15, max_target_positions=64, begin_suppress_tokens=None, suppress_tokens=None, decoder_start_token_id=2, **LONG)
FAMILIES = {
    "llama": lambda **own: tf.LlamaConfig(intermediate_size=72, num_key_value_heads=2, **SMALL, **own),
    "mistral": lambda **own: tf.MistralConfig(**WINDOW, **own),
    "qwen2": lambda **own: tf.Qwen2Config(use_sliding_window=True, max_window_layers=1, **WINDOW, **own),
    "qwen3": lambda **own: tf.Qwen3Config(head_dim=16, intermediate_size=72, num_key_value_heads=2, **SMALL, **own),
    "gemma3_text": lambda **own: tf.Gemma3TextConfig(head_dim=16, layer_types=["sliding_attention", "full_attention", "sliding_attention"], **{k: v for k, v in WINDOW.items() if k != "rope_parameters"}, **own),
    "gpt_oss": lambda **own: tf.GptOssConfig(rope_parameters=ROPE, **GPT_OSS, **own),
    "deepseek_v3": lambda **own: tf.DeepseekV3Config(rope_parameters=ROPE, **LATENT, **own),
    "gpt2": lambda **own: tf.GPT2Config(n_embd=48, n_layer=2, n_head=4, n_positions=64, **BASE, **own),
    "gpt_neox": lambda **own: tf.GPTNeoXConfig(intermediate_size=96, rotary_pct=0.5, **SMALL, **own),
    "opt": lambda **own: tf.OPTConfig(ffn_dim=80, **SMALL, **own),
    "bloom": lambda **own: tf.BloomConfig(hidden_size=48, n_layer=2, n_head=4, **BASE, **own),
    "falcon": lambda **own: tf.FalconConfig(multi_query=False, parallel_attn=False, alibi=True, bias=True, **SMALL, **own),
    "bert": lambda **own: tf.BertConfig(intermediate_size=72, is_decoder=True, **SMALL, **own),
    "roberta": lambda **own: tf.RobertaConfig(is_decoder=True, **ROBERTA, **own),
}


def library(name, folder, head="AutoModelForCausalLM", **own):
    """A model of a family as a folder has it, with sinks and windows in its attention."""
    model = make(head, FAMILIES[name](**own))
    model.set_attn_implementation("sdpa" if name == "falcon" else "eager")
    model.save_pretrained(folder)
    return model


# ---- positions and types ---------------------------------------------------------------------------
PLACES = torch.arange(11)[None].repeat(2, 1)
GIVEN = {"restart": torch.cat([PLACES[:, :6], PLACES[:, :5]], 1), "gaps": PLACES * 3 + 1, "backwards": PLACES.flip(1)}


@pytest.mark.parametrize("given", GIVEN)
@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "gemma3_text", "gpt_oss", "gpt2", "opt", "roberta", "falcon"])
def test_attention_goes_by_place(name, given, tmp_path):
    inputs = {**padded("none"), "position_ids": GIVEN[given]}
    check(library(name, tmp_path), tmp_path, inputs)


def test_positions_of_an_encoder_that_counts_words(tmp_path):
    model = make("AutoModel", tf.RobertaConfig(**ROBERTA))
    model.save_pretrained(tmp_path)
    inputs = padded("right")
    check(model, tmp_path, {**inputs, "position_ids": PLACES + 5}, inputs["attention_mask"])


@pytest.mark.parametrize("head", ["AutoModel", "AutoModelForCausalLM", "AutoModelForTokenClassification"])
def test_types_of_gpt2_are_words(head, tmp_path):
    check(library("gpt2", tmp_path, head), tmp_path, {**padded("none"), "token_type_ids": 100 + PLACES})


def test_types_go_on_in_generation(tmp_path):
    model = library("gpt2", tmp_path)
    inputs = {**padded("none"), "token_type_ids": 100 + PLACES}
    assert continued(tmp_path, inputs, 6) == looped(model, inputs, 6)


def looped(model, inputs, count):
    """Greedy ids by whole passes; of mask and types the last column holds for what follows."""
    for _ in range(count):
        with torch.no_grad():
            ids = model(**inputs).logits[:, -1:].argmax(-1)
        inputs = {name: torch.cat([value, ids if name == "input_ids" else value[:, -1:]], 1) for name, value in inputs.items()}
    return inputs["input_ids"][:, -count:].tolist()


def continued(folder, inputs, count, *arguments):
    save_file(inputs, folder / "in.safetensors")
    return heft("run", folder, "--ids-file", folder / "in.safetensors", "--new-tokens", count, "--ignore-eos", *arguments)["ids"]


@pytest.mark.parametrize("pad", ["none", "left"])
def test_words_are_counted_over_passes(pad, tmp_path):
    """As forward() of the whole text: the library's generate() numbers from 0, its cache counts padding."""
    model = library("roberta", tmp_path)
    inputs = padded(pad, rows=2)
    inputs["input_ids"][inputs["attention_mask"] == 0] = 1
    assert continued(tmp_path, inputs, 8) == looped(model, inputs, 8)


NUMBERED_BY_PLACE = {
    "bart": lambda: make("BartForCausalLM", tf.BartConfig(max_position_embeddings=40, forced_eos_token_id=None, **LONG)),
    "whisper": lambda: make("WhisperForCausalLM", tf.WhisperConfig(**WHISPER)),
}


@pytest.mark.parametrize("name", NUMBERED_BY_PLACE)
def test_decoders_that_number_padding(name, tmp_path):
    model = NUMBERED_BY_PLACE[name]()
    model.save_pretrained(tmp_path)
    inputs = padded("left")
    expected = model.generate(**inputs, max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0)[:, 11:]
    assert continued(tmp_path, inputs, 8) == expected.tolist()
    save_file({**inputs, "position_ids": positions(inputs)}, tmp_path / "in.safetensors")
    code, line = refused(tmp_path, "--ids-file", tmp_path / "in.safetensors")
    assert code == 2 and "takes no position_ids" in line


# ---- attention -------------------------------------------------------------------------------------
@pytest.mark.parametrize("pad", ["none", "right", "left"])
@pytest.mark.parametrize("name", FAMILIES)
def test_attention_both_ways(name, pad, tmp_path):
    model = library(name, tmp_path, is_causal=False)
    inputs = padded(pad)
    inputs["input_ids"][inputs["attention_mask"] == 0] = model.config.pad_token_id
    check(model, tmp_path, inputs, inputs["attention_mask"])


@pytest.mark.parametrize("head,buckets,most,allowed", [("T5Model", 32, 16, False), ("T5Model", 32, 17, True), ("T5EncoderModel", 32, 8, False), ("T5EncoderModel", 32, 9, True)])
def test_distances_of_t5_that_have_no_bucket(head, buckets, most, allowed, tmp_path):
    own = {"relative_attention_num_buckets": buckets, "relative_attention_max_distance": most, "decoder_start_token_id": 0}
    model = make(head, tf.T5Config(d_model=48, d_kv=10, d_ff=72, num_heads=4, num_layers=1, **own, **BASE), factor=1.5)
    model.save_pretrained(tmp_path)
    if allowed:
        ids = padded("none", tokens=40)["input_ids"]
        check(model, tmp_path, {"input_ids": ids} if head == "T5EncoderModel" else {"input_ids": ids, "decoder_input_ids": ids})
    else:
        code, line = refused(tmp_path, "--ids", "3,4,5")
        assert code == 7 and f"relative_attention_max_distance is {most}" in line


def test_windows_of_qwen3_moe_are_not_by_layer(tmp_path):
    own = {**WINDOW, "use_sliding_window": True, "moe_intermediate_size": 24, "num_experts": 4, "num_experts_per_tok": 2, "head_dim": 16}
    model = make("AutoModel", tf.Qwen3MoeConfig(layer_types=["full_attention", "sliding_attention", "full_attention"], **own))
    model.save_pretrained(tmp_path)
    assert "layer_types" in json.loads((tmp_path / "config.json").read_text())
    check(model, tmp_path, padded("none"))


@pytest.mark.parametrize("seed", range(4))
def test_narrow_experts_of_few_tokens(seed, tmp_path):
    """Scratch memory is planned for all tokens: a few of them may take more for columns that are filled up."""
    sizes = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, head_dim=12, intermediate_size=17)
    config = tf.Qwen3MoeConfig(moe_intermediate_size=8, num_experts=5, num_experts_per_tok=4, max_position_embeddings=64, **sizes, **BASE)
    model = make("AutoModel", config, seed=seed)
    model.save_pretrained(tmp_path)
    for tokens in (9, 10, 11):
        check(model, tmp_path, padded("none", rows=1, tokens=tokens))


def test_attention_of_null_is_refused(tmp_path):
    """Both ways in the library's eager attention, causal in its other one."""
    library("llama", tmp_path)
    rewrite(tmp_path, lambda document: document.update(is_causal=None))
    code, line = refused(tmp_path, "--ids", "3,4,5")
    assert code == 7 and "is_causal is null" in line


def test_attention_both_ways_keeps_nothing(tmp_path):
    library("llama", tmp_path, is_causal=False)
    code, line = refused(tmp_path, "--ids", "3,4,5", "--new-tokens", 2)
    assert code == 7 and "cannot go on" in line


@pytest.mark.parametrize("config", [tf.BartConfig(is_causal=False, **LONG), tf.T5Config(d_model=48, d_kv=10, d_ff=72, num_heads=4, is_causal=False, **BASE)])
def test_attention_both_ways_behind_an_encoder_is_refused(config, tmp_path):
    config.decoder_start_token_id = 2
    make("AutoModelForSeq2SeqLM", config).save_pretrained(tmp_path)
    code, line = refused(tmp_path, "--ids", "3,4,5")
    assert code == 7 and "is_causal" in line


@pytest.mark.parametrize("name", ["bloom", "falcon"])
def test_alibi_counts_what_is_seen(name, tmp_path):
    inputs = padded("none")
    inputs["attention_mask"][1, 3:6] = inputs["attention_mask"][0, 8] = 0
    check(library(name, tmp_path), tmp_path, inputs, inputs["attention_mask"])


@pytest.mark.parametrize("heads", [4, 6])
def test_long_alibi_of_falcon(heads, tmp_path):
    """Where places are no bfloat16 any more."""
    own = {**SMALL, "num_attention_heads": heads, "max_position_embeddings": 1024}
    model = make("AutoModelForCausalLM", tf.FalconConfig(multi_query=heads == 4, parallel_attn=False, alibi=True, **own))
    model.set_attn_implementation("sdpa")
    model.save_pretrained(tmp_path)
    inputs = padded("none", tokens=700)
    check(model, tmp_path, inputs)


# ---- configs ---------------------------------------------------------------------------------------
def rewrite(folder, change):
    document = json.loads((folder / "config.json").read_text())
    change(document)
    (folder / "config.json").write_text(json.dumps(document))
    return document


YARN = {"rope_type": "yarn", "factor": 4.0}
LENGTHS = {  # family: what its config has, from which it takes a default
    "gpt_oss": ("gpt_oss", {k: v for k, v in GPT_OSS.items() if k != "max_position_embeddings"}),
    "gpt_oss null": ("gpt_oss", {**GPT_OSS, "rope_scaling": None}),
    "gpt_oss none": ("gpt_oss", {**GPT_OSS, "rope_scaling": {}}),
    **{name: (name, {"rope_scaling": YARN}) for name in ("llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "cohere", "starcoder2", "olmo2", "granite")},
    "stablelm": ("stablelm", {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}, "partial_rotary_factor": 0.5}),
    "mixtral": ("mixtral", {"rope_scaling": YARN, "num_local_experts": 4, "head_dim": 12}),
    "qwen3_moe": ("qwen3_moe", {"rope_scaling": YARN, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}),
    "phi3": ("phi3", {"rope_scaling": {"type": "longrope", "short_factor": [1.5] * 6, "long_factor": [3.0] * 6}, "original_max_position_embeddings": 64, "vocab_size": 32100}),
    "deepseek_v3": ("deepseek_v3", {**{k: v for k, v in LATENT.items() if k != "max_position_embeddings"}, "rope_scaling": YARN}),
    "deepseek_v3 zeros": ("deepseek_v3", {**LATENT, "rope_scaling": {**YARN, "mscale": 0, "mscale_all_dim": 0, "beta_fast": 0, "beta_slow": 0}}),
    "gpt_neox names": ("gpt_neox", {"rope_scaling": {"rope_type": "linear", "factor": 3.0}, "rotary_pct": 0.5, "rotary_emb_base": 50, "partial_rotary_factor": 1.0, "rope_theta": 7.0}),
    "gpt_neox other names": ("gpt_neox", {"partial_rotary_factor": 1.0, "rope_theta": 7.0, "num_attention_heads": 2}),
    "gemma3 old type": ("gemma3_text", {"rope_scaling": {"type": "linear", "factor": 8.0}, "head_dim": 12, "layer_types": ["full_attention"] * 3}),
    "both": ("llama", {"rope_scaling": YARN, "rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 50.0}}),
}


@pytest.mark.parametrize("case", LENGTHS)
def test_rotary_defaults(case, tmp_path):
    family, own = LENGTHS[case]
    small = {k: v for k, v in SMALL.items() if k != "max_position_embeddings"}
    raw = {"model_type": family, **small, "intermediate_size": 64, "num_key_value_heads": 2, **own}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    model = make("AutoModelForCausalLM", tf.AutoConfig.from_pretrained(tmp_path))
    model.set_attn_implementation("eager")
    model.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**raw, "architectures": [type(model).__name__]}))
    check(model, tmp_path, padded("none", tokens=40))


def test_whisper_does_not_scale_embeddings(tmp_path):
    model = make("WhisperForConditionalGeneration", tf.WhisperConfig(scale_embedding=True, **WHISPER))
    model.save_pretrained(tmp_path)
    torch.manual_seed(3)
    check(model, tmp_path, {"input_features": torch.randn(2, 20, 30), "decoder_input_ids": padded("none", tokens=7, seed=5)["input_ids"]})


CLIP_TEXT = dict(hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=20, vocab_size=120,
                 hidden_act="gelu", bos_token_id=1, pad_token_id=0, eos_token_id=98)
CLIP_VISION = dict(hidden_size=36, intermediate_size=64, num_hidden_layers=2, num_attention_heads=3, image_size=12, patch_size=4, hidden_act="gelu")
SIZES = ("size", "layers", "heads", "embeddings")
CLIP_DICTS = {
    "sizes": lambda config: {key: value for key, value in config.items() if key.endswith(SIZES)},
    "all": lambda config: config,
    "null": lambda config: None,
}


@pytest.mark.parametrize("head", ["CLIPModel", "CLIPForImageClassification", "CLIPTextModel"])
@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("dicts", CLIP_DICTS)
def test_clip_dictionaries(dicts, alone, head, tmp_path):
    if alone and (dicts == "null" or head == "CLIPTextModel"):
        pytest.skip("nothing is left")
    old = {"text_config_dict": CLIP_DICTS[dicts](CLIP_TEXT), "vision_config_dict": CLIP_DICTS[dicts](CLIP_VISION)}
    raw = {"model_type": "clip", "projection_dim": 24, **({} if alone else {"text_config": CLIP_TEXT, "vision_config": CLIP_VISION}), **old}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    model = make(head, getattr(tf, head).config_class.from_pretrained(tmp_path))
    model.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**raw, "architectures": [head], "num_labels": 3, "id2label": {"0": "a", "1": "b", "2": "c"}}))
    torch.manual_seed(3)
    inputs = {} if head == "CLIPForImageClassification" else {"input_ids": padded("none", last=97)["input_ids"]}
    if inputs:
        inputs["input_ids"][0, 6] = inputs["input_ids"][1, 9] = 98
    if head != "CLIPTextModel":
        inputs["pixel_values"] = torch.randn(3, 3, 12, 12)
    check(model, tmp_path, inputs)


def test_albert_is_no_decoder(tmp_path):
    model = make("AutoModel", tf.AlbertConfig(embedding_size=16, intermediate_size=72, **SMALL))
    model.save_pretrained(tmp_path)
    rewrite(tmp_path, lambda document: document.update(is_decoder=True))
    check(tf.AlbertModel.from_pretrained(tmp_path).eval(), tmp_path, padded("none"))


def test_exact_products_of_bloom_are_refused(tmp_path):
    library("bloom", tmp_path, slow_but_exact=True, pretraining_tp=2)
    code, line = refused(tmp_path, "--ids", "3,4,5")
    assert code == 7 and "slow_but_exact" in line


# ---- generation ------------------------------------------------------------------------------------
@pytest.mark.parametrize("penalty", [1.1, 2.0])
def test_padding_is_not_penalized(penalty, tmp_path):
    model = library("llama", tmp_path)
    inputs = padded("left")
    inputs["input_ids"][inputs["attention_mask"] == 0] = continued(tmp_path, inputs, 1)[1][0]  # what would come next
    expected = model.generate(**inputs, max_new_tokens=12, do_sample=False, repetition_penalty=penalty, eos_token_id=None, pad_token_id=0)[:, 11:]
    assert continued(tmp_path, inputs, 12, "--repetition-penalty", penalty) == expected.tolist()


# ---- files of inputs -------------------------------------------------------------------------------
IDS = [[5, 6, 7]]
BAD_FILES = {
    "id past 32 bits": ({"input_ids": torch.tensor([[5, 6, 2**32 + 7]])}, "input_ids: element 2 is 4294967303"),
    "id below 32 bits": ({"input_ids": torch.tensor([[5, 6, 7 - 2**32]])}, "input_ids: element 2 is -4294967289"),
    "id past 63 bits": ({"input_ids": torch.tensor([[5, 6, 2**64 - 1]], dtype=torch.uint64)}, "input_ids: element 2"),
    "fraction": ({"input_ids": torch.tensor([[5, 6, 7.9]])}, "input_ids: has dtype float32"),
    "position past 32 bits": ({"input_ids": torch.tensor(IDS), "position_ids": torch.tensor([[0, 1, 2**32 + 2]])}, "position_ids: element 2"),
    "type below zero": ({"input_ids": torch.tensor(IDS), "token_type_ids": torch.tensor([[0, -1, 0]])}, "token_type_ids: element 1"),
    "mask of 256": ({"input_ids": torch.tensor(IDS), "attention_mask": torch.tensor([[256, 1, 1]])}, "attention_mask: element 0 is 256, expected 0 to 1"),
    "mask of -1": ({"input_ids": torch.tensor(IDS), "attention_mask": torch.tensor([[1, -1, 1]])}, "attention_mask: element 1 is -1"),
    "mask of halves": ({"input_ids": torch.tensor(IDS), "attention_mask": torch.tensor([[0.5, 1, 1]])}, "attention_mask: has dtype float32"),
    "unknown": ({"input_ids": torch.tensor(IDS), "decoder_attention_mask": torch.tensor(IDS)}, "tensor 'decoder_attention_mask'"),
    "two kinds of features": ({"pixel_values": torch.zeros(1, 3, 4, 4), "input_features": torch.zeros(1, 8, 4)}, "both pixel_values and input_features"),
}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    library("llama", folder)
    return folder


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files_are_refused(case, small):
    tensors, message = BAD_FILES[case]
    save_file(tensors, small / "bad.safetensors")
    code, line = refused(small, "--ids-file", small / "bad.safetensors")
    assert code == 2 and message in line


def test_files_of_any_integers(small):
    expected = run(small, {"input_ids": torch.tensor(IDS)}, ["logits"])
    for dtype in (torch.int16, torch.uint8, torch.int32, torch.uint64):
        mask = torch.ones((1, 3), dtype=torch.bool)
        compare(run(small, {"input_ids": torch.tensor(IDS, dtype=dtype), "attention_mask": mask}, ["logits"]), expected, None)


# ---- batches of more tokens than a pass ------------------------------------------------------------
ENDS = torch.tensor([40, 59, 5]).repeat(4)  # of each text, at which it has its class
WHOLE = {
    "CLIPTextModel": lambda: tf.CLIPTextConfig(**{**CLIP_TEXT, "max_position_embeddings": 64}),
    "CLIPTextModelWithProjection": lambda: tf.CLIPTextConfig(projection_dim=24, **{**CLIP_TEXT, "max_position_embeddings": 64}),
    "BartForSequenceClassification": lambda: tf.BartConfig(max_position_embeddings=64, **LONG),
    "T5ForSequenceClassification": lambda: tf.T5Config(d_model=48, d_kv=10, d_ff=72, num_heads=4, decoder_start_token_id=0, num_layers=2, **BASE),
    "BertModel": lambda: tf.BertConfig(intermediate_size=72, is_decoder=True, **SMALL),
    "ElectraForSequenceClassification": lambda: tf.ElectraConfig(intermediate_size=72, embedding_size=48, is_decoder=True, **SMALL),
}


@pytest.mark.parametrize("head", WHOLE)
def test_results_of_whole_texts(head, tmp_path):
    """Texts are not split where their result is made of a token in their midst or at their beginning."""
    model = make(head, WHOLE[head](), factor=1.5 if head.startswith("T5") else 4)
    model.save_pretrained(tmp_path)
    ids = padded("none", rows=12, tokens=60, last=97)["input_ids"]
    ids[torch.arange(12), ENDS] = 98 if head.startswith("CLIP") else 2
    check(model, tmp_path, {"input_ids": ids})


@pytest.mark.parametrize("texts,images", [(12, 3), (2, 70)])
def test_logits_of_all_texts_and_images(texts, images, tmp_path):
    config = tf.CLIPConfig(text_config={**CLIP_TEXT, "max_position_embeddings": 64}, vision_config=CLIP_VISION, projection_dim=24)
    model = make("CLIPModel", config)
    model.save_pretrained(tmp_path)
    ids = padded("none", rows=texts, tokens=60, last=97)["input_ids"]
    ids[torch.arange(texts), ENDS[:texts]] = 98
    check(model, tmp_path, {"input_ids": ids, "pixel_values": torch.randn(images, 3, 12, 12)})


def test_texts_of_clip_alone(tmp_path):
    config = tf.CLIPConfig(text_config=CLIP_TEXT, vision_config=CLIP_VISION, projection_dim=24)
    model = make("CLIPModel", config)
    model.save_pretrained(tmp_path)
    ids = padded("none", last=97)["input_ids"]
    ids[:, 7] = 98
    with torch.no_grad():
        expected = model.get_text_features(ids).pooler_output
    expected = {"text_embeds": (expected / expected.norm(dim=-1, keepdim=True)).numpy()}
    compare(run(tmp_path, {"input_ids": ids}, expected), expected, None)
    save_file({"input_ids": ids}, tmp_path / "in.safetensors")
    code, line = refused(tmp_path, "--ids-file", tmp_path / "in.safetensors", "--outputs", "logits_per_text", "--save", tmp_path / "out.safetensors")
    assert code == 2 and "needs pixel_values beside the ids" in line


@pytest.mark.parametrize("name", ["llama", "mistral", "gpt2"])
def test_class_before_much_padding(name, tmp_path):
    """Without a mask, the last token that is not padding may be in an earlier pass."""
    length = {"n_positions": 800} if name == "gpt2" else {"max_position_embeddings": 800}
    own = {**{key: value for key, value in SMALL.items() if key != "max_position_embeddings"}, "intermediate_size": 72, **length}
    window = {"sliding_window": 5, "num_key_value_heads": 2} if name == "mistral" else {}
    config = tf.GPT2Config(n_embd=48, n_layer=2, n_head=4, **BASE, **length) if name == "gpt2" else tf.AutoConfig.for_model(name, **own, **window)
    model = make("AutoModelForSequenceClassification", config)
    model.save_pretrained(tmp_path)
    ids = padded("none", rows=3, tokens=700)["input_ids"]
    ids[1, 20:], ids[2, 600:] = 0, 0
    with torch.no_grad():
        expected = {"logits": model(input_ids=ids).logits.numpy()}
    compare(run(tmp_path, {"input_ids": ids}, expected), expected, None)
