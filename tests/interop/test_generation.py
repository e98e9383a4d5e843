"""generation_config.json: what `heft run --new-tokens` follows of it, as generate(do_sample=False), and what it names as not followed."""

import json

import pytest
import torch
import transformers
from forwards import SMALL, make
from helpers import heft

PROMPT = [1, 5, 9, 14, 3, 22]
# The settings, and which of them are named in a warning.
DECODER = {
    "nothing": ({}, None),
    "repetition_penalty": ({"repetition_penalty": 1.5}, None),
    "suppress_tokens": ({"suppress_tokens": "first"}, None),
    "suppress_tokens_with_minus_1": ({"suppress_tokens": [-1]}, None),
    "begin_suppress_tokens": ({"begin_suppress_tokens": "first"}, None),
    "forced_bos_is_for_a_text_of_one_token": ({"forced_bos_token_id": 7}, None),
    "forced_eos": ({"forced_eos_token_id": 9}, None),
    "forced_eos_list": ({"forced_eos_token_id": [9, 4]}, None),
    "sampling_is_left_out": ({"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 5}, None),
    "defaults": ({"num_beams": 1, "min_length": 0, "no_repeat_ngram_size": 0, "guidance_scale": 1.0, "bad_words_ids": None}, None),
    "beams": ({"num_beams": 3, "no_repeat_ngram_size": 2}, "num_beams, no_repeat_ngram_size"),
    "min_new_tokens": ({"min_new_tokens": 5, "sequence_bias": [[[44], -10.0]]}, "sequence_bias, min_new_tokens"),
}


def generated(folder, count, *arguments):
    done = heft("run", folder, *arguments, "--new-tokens", count)
    return done["ids"][0], done["not_followed"]


def assert_generates(folder, model, inputs, arguments, settings, warned, start):
    """Greedy ids of both."""
    (folder / "generation_config.json").write_text(json.dumps(settings))
    found, not_followed = generated(folder, 12, *arguments)
    assert not_followed == (warned or "")
    if not warned:
        model.generation_config = transformers.GenerationConfig.from_pretrained(folder)
        with torch.no_grad():
            expected = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, start:].tolist()
        assert found == expected


@pytest.mark.parametrize("name", DECODER)
def test_decoder(name, tmp_path):
    changes, warned = DECODER[name]
    config = transformers.LlamaConfig(intermediate_size=72, num_key_value_heads=2, **SMALL)
    model = make("AutoModelForCausalLM", config)
    model.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").unlink(missing_ok=True)
    prompt = PROMPT[:1] if "one_token" in name else PROMPT
    arguments = ["--ids", ",".join(map(str, prompt))]
    first = generated(tmp_path, 1, *arguments)[0][0]
    settings = {key: [first, 3] if value == "first" else value for key, value in changes.items()}
    ids = torch.tensor([prompt])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    settings = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, **settings}
    assert_generates(tmp_path, model, inputs, arguments, settings, warned, len(prompt))
    if name == "repetition_penalty":  # what is given counts
        plain, _ = generated(tmp_path, 12, *arguments, "--repetition-penalty", "0")
        (tmp_path / "generation_config.json").unlink()
        assert plain == generated(tmp_path, 12, *arguments)[0] != generated(tmp_path, 12, *arguments, "--repetition-penalty", "1.5")[0]
    if name == "forced_eos":  # in config.json if there is no other file
        (tmp_path / "generation_config.json").unlink()
        whole = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**whole, "forced_eos_token_id": 11}))
        assert generated(tmp_path, 12, *arguments)[0][-1] == 11


ENCODER = {
    "forced_bos": ({"forced_bos_token_id": 0}, None),
    "forced_bos_and_begin_suppress_tokens": ({"forced_bos_token_id": 0, "begin_suppress_tokens": list(range(3, 60))}, None),
    "begin_suppress_tokens": ({"begin_suppress_tokens": list(range(2, 60))}, None),
    "forced_eos": ({"forced_bos_token_id": 5, "forced_eos_token_id": 2, "suppress_tokens": [3, 6]}, None),
    "cnn": ({"forced_bos_token_id": 0, "num_beams": 4, "min_length": 56, "length_penalty": 2.0}, "num_beams, min_length"),
}


@pytest.mark.parametrize("name", ENCODER)
def test_encoder_decoder(name, tmp_path):
    changes, warned = ENCODER[name]
    sizes = dict(d_model=48, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4)
    config = transformers.BartConfig(vocab_size=SMALL["vocab_size"], encoder_ffn_dim=72, decoder_ffn_dim=72, max_position_embeddings=64, **sizes)
    model = make("AutoModelForSeq2SeqLM", config)
    model.save_pretrained(tmp_path)
    settings = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1, "decoder_start_token_id": 2, **changes}
    inputs = {"input_ids": torch.tensor([PROMPT])}
    assert_generates(tmp_path, model, inputs, ["--ids", ",".join(map(str, PROMPT))], settings, warned, 1)
