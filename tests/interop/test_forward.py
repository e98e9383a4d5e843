"""Forward passes of families against Transformers: small random models, all main heads, padding on both sides."""

import pytest
import torch
import transformers as tf
from helpers import heft
from safetensors.numpy import load_file, save_file
from forwards import BASE, DECODER_HEADS, ROPE, SMALL, check, check_greedy, compare, make, padded, positions, refused, run

YARN = {"rope_type": "yarn", "rope_theta": 1000.0, "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 32.0, "beta_slow": 1.0}
LATENT = dict(intermediate_size=64, moe_intermediate_size=24, num_key_value_heads=4, n_routed_experts=8, kv_lora_rank=16, qk_rope_head_dim=8,
              v_head_dim=12, qk_nope_head_dim=10, num_experts_per_tok=3, **SMALL)
SHARED = dict(intermediate_size=64, moe_intermediate_size=24, shared_expert_intermediate_size=40, num_key_value_heads=2, num_experts=6,
              rope_parameters=ROPE, **SMALL)
DECODERS = {
    "bloom": lambda: tf.BloomConfig(hidden_size=48, n_layer=2, n_head=4, **BASE),
    "bloom_after_norm": lambda: tf.BloomConfig(hidden_size=48, n_layer=2, n_head=6, apply_residual_connection_post_layernorm=True, **BASE),
    "falcon_new": lambda: tf.FalconConfig(new_decoder_architecture=True, num_kv_heads=2, **SMALL),
    "falcon_new_one_norm": lambda: tf.FalconConfig(new_decoder_architecture=True, num_kv_heads=2, num_ln_in_parallel_attn=1, **SMALL),
    "falcon_multi_query": lambda: tf.FalconConfig(multi_query=True, parallel_attn=True, **SMALL),
    "falcon_alibi": lambda: tf.FalconConfig(multi_query=False, parallel_attn=False, alibi=True, bias=True, **SMALL),
    "falcon_all_heads": lambda: tf.FalconConfig(multi_query=False, parallel_attn=True, bias=True, **SMALL),
    "gpt_oss": lambda: tf.GptOssConfig(intermediate_size=32, num_key_value_heads=2, head_dim=12, num_local_experts=4, num_experts_per_tok=2,
                                       sliding_window=4, rope_parameters=ROPE, **SMALL),
    "gpt_oss_yarn": lambda: tf.GptOssConfig(intermediate_size=40, num_key_value_heads=2, head_dim=16, num_local_experts=6, num_experts_per_tok=3,
                                            sliding_window=4, rope_parameters={**YARN, "truncate": False}, **SMALL),
    "deepseek_v3": lambda: tf.DeepseekV3Config(n_shared_experts=1, q_lora_rank=20, n_group=4, topk_group=2, first_k_dense_replace=1, norm_topk_prob=True,
                                               rope_parameters=ROPE, **LATENT),
    "deepseek_v3_yarn": lambda: tf.DeepseekV3Config(n_shared_experts=2, q_lora_rank=None, n_group=1, topk_group=1, first_k_dense_replace=2,
                                                    norm_topk_prob=False, routed_scaling_factor=1.5, rope_interleave=False,
                                                    rope_parameters={**YARN, "mscale": 1.0, "mscale_all_dim": 0.7}, **LATENT),
    "qwen2_moe": lambda: tf.Qwen2MoeConfig(num_experts_per_tok=2, **SHARED),
    "qwen2_moe_some": lambda: tf.Qwen2MoeConfig(num_experts_per_tok=3, norm_topk_prob=True, decoder_sparse_step=2, mlp_only_layers=[0],
                                                use_sliding_window=True, sliding_window=4, max_window_layers=2, **SHARED),
    "qwen3_moe": lambda: tf.Qwen3MoeConfig(intermediate_size=64, moe_intermediate_size=24, num_key_value_heads=2, head_dim=16, num_experts=6,
                                           num_experts_per_tok=3, norm_topk_prob=True, rope_parameters=ROPE, **SMALL),
    "mixtral": lambda: tf.MixtralConfig(intermediate_size=40, num_key_value_heads=2, num_local_experts=6, num_experts_per_tok=3, sliding_window=4,
                                        rope_parameters=ROPE, **SMALL),
    "gpt_neox": lambda: tf.GPTNeoXConfig(intermediate_size=96, rotary_pct=0.5, **SMALL),
    "gpt_neox_sequential": lambda: tf.GPTNeoXConfig(intermediate_size=96, rotary_pct=1.0, attention_bias=False, use_parallel_residual=False, **SMALL),
    "gpt2": lambda: tf.GPT2Config(n_embd=48, n_layer=2, n_head=4, n_positions=64, **BASE),
    "gpt2_scaled": lambda: tf.GPT2Config(n_embd=48, n_layer=2, n_head=3, n_positions=64, n_inner=70, activation_function="relu",
                                         scale_attn_by_inverse_layer_idx=True, **BASE),
    "opt": lambda: tf.OPTConfig(ffn_dim=80, **SMALL),
    "opt_after": lambda: tf.OPTConfig(ffn_dim=80, word_embed_proj_dim=24, do_layer_norm_before=False, **SMALL),
}


@pytest.mark.parametrize("head", DECODER_HEADS)
@pytest.mark.parametrize("name", DECODERS)
def test_decoder(name, head, tmp_path):
    model = make(head, DECODERS[name]())
    if model is None:
        pytest.skip(f"{name} has no {head}")
    if name.startswith("gpt_oss"):
        model.set_attn_implementation("eager")  # the other has no sinks on a CPU
    model.save_pretrained(tmp_path)
    for pad in ("none", "right", "left"):
        inputs = padded(pad)
        # bloom and opt number positions by the mask themselves, falcon's alibi too
        if pad == "left" and not name.startswith(("bloom", "opt")):
            inputs["position_ids"] = positions(inputs)
        check(model, tmp_path, inputs, inputs["attention_mask"])
    if head == "AutoModelForCausalLM":
        check_greedy(model, tmp_path, padded("none"))
        check_greedy(model, tmp_path, padded("left"))


WIDE = dict(intermediate_size=72, type_vocab_size=3, **SMALL)
ENCODERS = {
    "bert": lambda: tf.BertConfig(hidden_act="relu", **WIDE),
    "roberta": lambda: tf.RobertaConfig(**{**WIDE, "pad_token_id": 1, "bos_token_id": 0}),
    "electra": lambda: tf.ElectraConfig(embedding_size=20, **WIDE),
    "electra_wide": lambda: tf.ElectraConfig(embedding_size=48, hidden_act="gelu_new", **WIDE),
    "albert": lambda: tf.AlbertConfig(embedding_size=16, num_hidden_groups=1, **WIDE),
    "albert_groups": lambda: tf.AlbertConfig(embedding_size=16, num_hidden_groups=3, inner_group_num=2, hidden_act="gelu", **WIDE),
    "distilbert": lambda: tf.DistilBertConfig(dim=48, n_layers=3, n_heads=4, hidden_dim=72, max_position_embeddings=64, **BASE),
    "distilbert_relu": lambda: tf.DistilBertConfig(dim=48, n_layers=2, n_heads=6, hidden_dim=72, activation="relu", sinusoidal_pos_embds=True,
                                                   max_position_embeddings=64, **BASE),
}
ENCODER_HEADS = ["AutoModel", "AutoModelForPreTraining", "AutoModelForMaskedLM", "AutoModelForSequenceClassification", "AutoModelForTokenClassification",
                 "AutoModelForQuestionAnswering", "AutoModelForNextSentencePrediction"]


@pytest.mark.parametrize("head", ENCODER_HEADS)
@pytest.mark.parametrize("name", ENCODERS)
def test_encoder(name, head, tmp_path):
    config = ENCODERS[name]()
    model = make(head, config)
    if model is None:
        pytest.skip(f"{name} has no {head}")
    model.save_pretrained(tmp_path)
    for pad in ("none", "right", "left"):
        inputs = padded(pad)
        inputs["input_ids"][inputs["attention_mask"] == 0] = config.pad_token_id
        if not name.startswith("distilbert"):
            inputs["token_type_ids"] = torch.arange(22).reshape(2, 11) % 3
        check(model, tmp_path, inputs, inputs["attention_mask"])


@pytest.mark.parametrize("name", ENCODERS)
def test_multiple_choice_is_a_row_for_each_choice(name, tmp_path):
    model = make("AutoModelForMultipleChoice", ENCODERS[name]())
    model.save_pretrained(tmp_path)
    inputs = padded("none", rows=3)
    with torch.no_grad():
        expected = model(**{key: value[None] for key, value in inputs.items()}).logits.reshape(3, 1).numpy()

    compare(run(tmp_path, inputs, ["logits"]), {"logits": expected}, None)


LONG = dict(d_model=48, encoder_layers=3, decoder_layers=3, encoder_attention_heads=4, decoder_attention_heads=3, encoder_ffn_dim=72, decoder_ffn_dim=80,
            decoder_start_token_id=2, **BASE)
T5 = dict(d_model=48, d_kv=10, d_ff=72, num_heads=4, relative_attention_num_buckets=8,
          relative_attention_max_distance=9, decoder_start_token_id=0, **BASE)
SEQ2SEQ = {
    "bart": lambda: tf.BartConfig(max_position_embeddings=40, **LONG),
    "bart_scaled": lambda: tf.BartConfig(max_position_embeddings=40, scale_embedding=True, activation_function="relu", **LONG),
    "t5": lambda: tf.T5Config(feed_forward_proj="relu", num_layers=2, **T5),
    "t5_gated": lambda: tf.T5Config(feed_forward_proj="gated-gelu", num_layers=2, num_decoder_layers=3, tie_word_embeddings=False, **T5),
}
SEQ2SEQ_HEADS = ["AutoModel", "AutoModelForSeq2SeqLM", "AutoModelForSequenceClassification", "AutoModelForQuestionAnswering",
                 "AutoModelForTokenClassification", "T5EncoderModel", "BartForCausalLM"]


@pytest.mark.parametrize("head", SEQ2SEQ_HEADS)
@pytest.mark.parametrize("name", SEQ2SEQ)
def test_encoder_and_decoder(name, head, tmp_path):
    if not head.startswith(("Auto", "Bart" if name.startswith("bart") else "T5")):
        pytest.skip("another family's class")
    model = make(head, SEQ2SEQ[name](), factor=1.5 if name.startswith("t5") else 4)
    if model is None:
        pytest.skip(f"{name} has no {head}")
    model.save_pretrained(tmp_path)
    alone = head in ("T5EncoderModel", "BartForCausalLM", "AutoModelForTokenClassification")
    for pad in ("none", "right"):
        inputs = padded(pad)
        inputs["input_ids"][:, 5] = 2
        if head in ("AutoModel", "AutoModelForSeq2SeqLM"):
            inputs["decoder_input_ids"] = padded("none", tokens=7, seed=5)["input_ids"]
        check(model, tmp_path, inputs, inputs["attention_mask"] if alone else None)
    if head == "AutoModelForSeq2SeqLM" and name != "t5_gated":  # whose sides differ in layers: generate() fails on them
        check_greedy(model, tmp_path, padded("right"))


WHISPER = dict(num_mel_bins=20, max_source_positions=15, max_target_positions=30, begin_suppress_tokens=None, suppress_tokens=None, **LONG)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("head", ["WhisperModel", "WhisperForConditionalGeneration", "WhisperForAudioClassification"])
def test_whisper(head, weighted, tmp_path):
    model = make(head, tf.WhisperConfig(classifier_proj_size=24, use_weighted_layer_sum=weighted, **WHISPER))
    model.save_pretrained(tmp_path)
    torch.manual_seed(3)
    inputs = {"input_features": torch.randn(2, 20, 30)}
    if head != "WhisperForAudioClassification":
        inputs["decoder_input_ids"] = padded("none", tokens=7, seed=5)["input_ids"]
    check(model, tmp_path, inputs)


@pytest.mark.parametrize("head", ["AutoModel", "AutoModelForImageClassification"])
@pytest.mark.parametrize("size", [(12, 4), ((12, 20), (4, 5))])
def test_vit(size, head, tmp_path):
    config = tf.ViTConfig(hidden_size=48, num_hidden_layers=3, num_attention_heads=4, intermediate_size=72, image_size=size[0], patch_size=size[1],
                          qkv_bias=head == "AutoModel")
    model = make(head, config)
    model.save_pretrained(tmp_path)
    torch.manual_seed(3)
    height, width = size[0] if isinstance(size[0], tuple) else (size[0], size[0])
    check(model, tmp_path, {"pixel_values": torch.randn(2, 3, height, width)})


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_vit_reconstructs(stride, tmp_path):
    config = tf.ViTConfig(hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=72, image_size=12, patch_size=4, encoder_stride=stride)
    model = make("ViTForMaskedImageModeling", config)
    model.save_pretrained(tmp_path)
    inputs = {"pixel_values": torch.randn(2, 3, 12, 12)}
    with torch.no_grad():
        expected = model(**inputs).reconstruction.flatten(1).numpy()
    compare(run(tmp_path, inputs, ["reconstruction"]), {"reconstruction": expected}, None)


@pytest.mark.parametrize("options", [{}, {"summary_activation": "tanh", "summary_proj_to_labels": False}, {"summary_use_proj": False}, {"summary_type": "last"}])
def test_gpt2_double_heads(options, tmp_path):
    model = make("GPT2DoubleHeadsModel", tf.GPT2Config(n_embd=48, n_layer=2, n_head=4, n_positions=64, **BASE, **options))
    model.save_pretrained(tmp_path)
    inputs = {"input_ids": torch.randint(3, 110, (3, 9))}
    with torch.no_grad():
        result = model(**inputs)
    expected = {"logits": result.logits.numpy(), "mc_logits": result.mc_logits.reshape(3, -1).numpy()}
    compare(run(tmp_path, inputs, expected), expected, None)


def test_gpt2_double_heads_that_take_a_mean(tmp_path):
    make("GPT2DoubleHeadsModel", tf.GPT2Config(n_embd=48, n_layer=1, n_head=4, n_positions=64, summary_type="mean", **BASE)).save_pretrained(tmp_path)
    code, line = refused(tmp_path, "--ids", "3,4,5")
    assert code == 7 and "summary_type is 'mean'" in line


CLIP_TEXT = dict(hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=20, vocab_size=120,
                 bos_token_id=1, pad_token_id=0)
CLIP_VISION = dict(hidden_size=36, intermediate_size=64, num_hidden_layers=2, num_attention_heads=3, image_size=12, patch_size=4)


@pytest.mark.parametrize("eos", [2, 98])
@pytest.mark.parametrize("head", ["CLIPModel", "CLIPTextModel", "CLIPVisionModel", "CLIPTextModelWithProjection", "CLIPVisionModelWithProjection",
                                  "CLIPForImageClassification"])
def test_clip(head, eos, tmp_path):
    text, vision = dict(CLIP_TEXT, eos_token_id=eos), CLIP_VISION
    if head.startswith("CLIPText"):
        config = tf.CLIPTextConfig(projection_dim=24, **text)
    elif head.startswith("CLIPVision"):
        config = tf.CLIPVisionConfig(projection_dim=24, **vision)
    else:
        config = tf.CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
    model = make(head, config)
    model.save_pretrained(tmp_path)
    torch.manual_seed(3)
    inputs = {}
    if not head.startswith(("CLIPVision", "CLIPForImage")):
        inputs["input_ids"] = padded("none", last=97)["input_ids"]
        inputs["input_ids"][0, 6] = inputs["input_ids"][1, 9] = eos
    if not head.startswith("CLIPText"):
        inputs["pixel_values"] = torch.randn(3, 3, 12, 12)
    check(model, tmp_path, inputs)


def run_features(folder, name, value, outputs, *arguments):
    save_file({name: value.numpy()}, folder / "features.safetensors")
    option = "--image" if name == "pixel_values" else "--audio"
    heft("run", folder, option, folder / "features.safetensors", "--save", folder / "option.safetensors", "--outputs", ",".join(outputs), *arguments)
    return load_file(folder / "option.safetensors")


def same(found, expected):
    assert all((found[name] == expected[name]).all() for name in expected)


def test_image_alone(tmp_path):
    make("AutoModel", tf.ViTConfig(hidden_size=48, num_hidden_layers=1, num_attention_heads=4, intermediate_size=72, image_size=12, patch_size=4)).save_pretrained(tmp_path)
    pixels, outputs = torch.randn(2, 3, 12, 12), ["last_hidden_state", "pooler_output"]
    same(run_features(tmp_path, "pixel_values", pixels, outputs), run(tmp_path, {"pixel_values": pixels}, outputs))


def test_image_beside_texts(tmp_path):
    config = tf.CLIPConfig(text_config=dict(CLIP_TEXT, eos_token_id=98), vision_config=CLIP_VISION, projection_dim=24)
    make("CLIPModel", config).save_pretrained(tmp_path)
    pixels, outputs = torch.randn(2, 3, 12, 12), ["logits_per_image", "text_embeds"]
    inputs = {"input_ids": torch.tensor([[5, 6, 98], [7, 8, 98], [9, 9, 98]]), "pixel_values": pixels}
    same(run_features(tmp_path, "pixel_values", pixels, outputs, "--ids", "5,6,98\n7,8,98\n9,9,98"), run(tmp_path, inputs, outputs))


def test_audio_with_what_the_decoder_begins_with(tmp_path):
    make("WhisperForConditionalGeneration", tf.WhisperConfig(**WHISPER)).save_pretrained(tmp_path)
    sound, outputs = torch.randn(2, 20, 30), ["logits"]
    ids = torch.tensor([[5, 6], [7, 8]])
    expected = run(tmp_path, {"input_features": sound, "decoder_input_ids": ids}, outputs)
    same(run_features(tmp_path, "input_features", sound, outputs, "--ids", "5,6\n7,8"), expected)
    code, line = refused(tmp_path, "--audio", tmp_path / "features.safetensors", "--ids", "5,6")
    assert code == 2 and "has 2 rows, for 1 texts" in line
    code, line = refused(tmp_path, "--image", tmp_path / "features.safetensors")
    assert code == 2 and "has no tensor pixel_values" in line
