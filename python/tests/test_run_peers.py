"""heft.run beside Transformers and sentence-transformers: the same logits, ids, texts and embeddings of small random models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from run_models import VOCABULARY, pools, tokenizer_json

torch = pytest.importorskip("torch")
tf = pytest.importorskip("transformers")
np = pytest.importorskip("numpy")

import heft  # noqa: E402
import heft.run  # noqa: E402

BASE: dict[str, Any] = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SMALL: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64, **BASE}


def make(head: str, config: Any, place: Path, dtype: Any = None) -> Any:
    """A model whose outputs are far from zero, saved."""
    torch.manual_seed(0)
    kind = getattr(tf, head)
    model = kind.from_config(config) if head.startswith("Auto") else kind(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4) if parameter.ndim > 1 else parameter.add_(torch.randn_like(parameter) * 0.1)
    model = model.eval().to(dtype or torch.float32)
    model.save_pretrained(place)
    return model


def inputs(rows: int = 2, tokens: int = 9, pad: int = 0) -> dict[str, Any]:
    torch.manual_seed(1)
    ids, mask = torch.randint(6, VOCABULARY, (rows, tokens)), torch.ones((rows, tokens), dtype=torch.long)
    ids[1, :pad], mask[1, :pad] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


def same(found: Any, expected: Any, tolerance: float = 1e-4) -> None:
    expected = expected.float().numpy()
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= tolerance * max(1, np.abs(expected).max())


CAUSAL: dict[str, Callable[[], Any]] = {
    "llama": lambda: tf.LlamaConfig(intermediate_size=48, num_key_value_heads=2, **SMALL),
    "gpt2": lambda: tf.GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, **BASE),
    "opt": lambda: tf.OPTConfig(ffn_dim=48, word_embed_proj_dim=32, **SMALL),
    "mixtral": lambda: tf.MixtralConfig(intermediate_size=40, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2, **SMALL),
    "qwen2": lambda: tf.Qwen2Config(intermediate_size=48, num_key_value_heads=2, **SMALL),
}


@pytest.mark.parametrize("name", CAUSAL)
def test_language_models(name: str, tmp_path: Path) -> None:
    model = make("AutoModelForCausalLM", CAUSAL[name](), tmp_path)
    with heft.run.Session(tmp_path) as session, torch.no_grad():
        plain = inputs()
        same(session.forward(plain["input_ids"]).logits, model(**plain).logits)
        same(session.forward(plain["input_ids"], logits="last").logits, model(**plain).logits[:, -1:])
        for pad in (0, 3):
            given = inputs(pad=pad)
            expected = model.generate(**given, max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0)[:, 9:]
            found = session.generate_batch(given["input_ids"], attention_mask=given["attention_mask"], max_new_tokens=12, ignore_eos=True)
            assert [one.ids for one in found] == expected.tolist()
        stop = int(expected[0, 5])  # the end of the first text, wherever that id comes first
        (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [stop, 2]}))
    with heft.run.Session(tmp_path) as session:
        ids = plain["input_ids"][:1]
        until = model.generate(ids, max_new_tokens=12, do_sample=False, eos_token_id=[stop, 2], pad_token_id=0)[0, 9:].tolist()
        assert session.stop_ids == (stop, 2)
        ended = session.generate(ids, max_new_tokens=12)
        assert ended.ids == until and ended.finish_reason == ("stop" if until[-1] in (stop, 2) else "length")


def test_bfloat16(tmp_path: Path) -> None:
    make("AutoModelForCausalLM", CAUSAL["llama"](), tmp_path, torch.bfloat16)
    ids = inputs()["input_ids"]
    with torch.no_grad():
        exact = tf.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)(ids).logits
    session = heft.run.Session(tmp_path)
    assert session.model.dtype == "bfloat16"
    same(session.forward(ids).logits, exact, 0.05)
    same(heft.run.Session(session.model, exact=True).forward(ids).logits, exact)
    same(heft.run.Session(tmp_path, dtype=torch.float32).forward(ids).logits, exact)


HEADS = [
    ("BertModel", ("last_hidden_state", "pooler_output")),
    ("BertForMaskedLM", ("logits",)),
    ("BertForSequenceClassification", ("logits",)),
    ("BertForTokenClassification", ("logits",)),
    ("BertForQuestionAnswering", ("start_logits", "end_logits")),
    ("BertForNextSentencePrediction", ("logits",)),
    ("BertForPreTraining", ("prediction_logits", "seq_relationship_logits")),
    ("ElectraForPreTraining", ("logits",)),
]


@pytest.mark.parametrize("labels", [1, 3])
@pytest.mark.parametrize(("head", "names"), HEADS)
def test_heads(head: str, names: tuple[str, ...], labels: int, tmp_path: Path) -> None:
    kind = tf.ElectraConfig if head.startswith("Electra") else tf.BertConfig
    more = {"embedding_size": 24} if kind is tf.ElectraConfig else {}
    labels = 2 if "Question" in head else labels
    model = make(head, kind(intermediate_size=48, num_labels=labels, **more, **SMALL), tmp_path)
    given = {**inputs(), "token_type_ids": torch.tensor([[0] * 4 + [1] * 5, [0] * 2 + [1] * 7])}
    with torch.no_grad():
        expected = model(**given)
    found = heft.run.Session(tmp_path).forward(**given, outputs=names)
    assert list(found) == list(names)
    for name in names:
        same(found[name], getattr(expected, name))


def test_multiple_choice(tmp_path: Path) -> None:
    model = make("BertForMultipleChoice", tf.BertConfig(intermediate_size=48, **SMALL), tmp_path)
    ids = torch.randint(6, VOCABULARY, (2, 3, 7))
    mask = torch.ones_like(ids)
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask).logits
    found = heft.run.Session(tmp_path).forward(ids, attention_mask=mask).logits
    assert found.shape == (2, 3)
    same(found, expected)


def test_hidden_states(tmp_path: Path) -> None:
    model = make("AutoModel", tf.BertConfig(intermediate_size=48, **SMALL), tmp_path)
    given = inputs()
    with torch.no_grad():
        expected = model(**given, output_hidden_states=True).hidden_states
    names = [f"hidden_states.{i}" for i in range(3)]
    found = heft.run.Session(tmp_path).forward(**given, outputs=names)
    for name, value in zip(names, expected, strict=True):
        same(found[name], value)


def test_generation_goes_on_as_whole_passes_do(tmp_path: Path) -> None:
    gpt2 = make("AutoModelForCausalLM", CAUSAL["gpt2"](), tmp_path / "gpt2")
    own = {**SMALL, "pad_token_id": 1, "bos_token_id": 0}
    roberta = make("AutoModelForCausalLM", tf.RobertaConfig(intermediate_size=48, is_decoder=True, **own), tmp_path / "roberta")
    typed, padded = inputs(), inputs(pad=3)
    typed["token_type_ids"] = torch.arange(18).reshape(2, 9)
    padded["input_ids"][1, :3] = 1
    for name, model, given in (("gpt2", gpt2, typed), ("roberta", roberta, padded)):
        whole = dict(given)
        for _ in range(6):
            with torch.no_grad():
                ids = model(**whole).logits[:, -1:].argmax(-1)
            whole = {key: torch.cat([value, ids if key == "input_ids" else value[:, -1:]], 1) for key, value in whole.items()}
        prompts = given.pop("input_ids")
        found = heft.run.Session(tmp_path / name).generate_batch(prompts, max_new_tokens=6, ignore_eos=True, **given)
        assert [one.ids for one in found] == whole["input_ids"][:, 9:].tolist()


def test_padding_has_no_penalty(tmp_path: Path) -> None:
    model = make("AutoModelForCausalLM", CAUSAL["llama"](), tmp_path)
    session, given = heft.run.Session(tmp_path), inputs(pad=3)
    options = {"max_new_tokens": 12, "repetition_penalty": 1.5}
    prompts, mask = given["input_ids"], given["attention_mask"]
    prompts[1, :3] = session.generate_batch(prompts, attention_mask=mask, max_new_tokens=1)[1].ids[0]
    expected = model.generate(prompts, attention_mask=mask, do_sample=False, eos_token_id=None, pad_token_id=0, **options)
    found = session.generate_batch(prompts, attention_mask=mask, ignore_eos=True, **options)
    assert [one.ids for one in found] == expected[:, 9:].tolist()


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_encoder_and_decoder(family: str, tmp_path: Path) -> None:
    configs: dict[str, Callable[[], Any]] = {
        "t5": lambda: tf.T5Config(d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0, **BASE),
        "bart": lambda: tf.BartConfig(
            d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=48,
            decoder_ffn_dim=48, max_position_embeddings=64, decoder_start_token_id=2, forced_eos_token_id=None, **BASE),
    }  # fmt: skip
    model = make("AutoModelForSeq2SeqLM", configs[family](), tmp_path)
    given = inputs(pad=0)
    given["attention_mask"][1, -3:] = 0
    decoder = torch.randint(6, VOCABULARY, (2, 5))
    session = heft.run.Session(tmp_path)
    assert session.has_encoder
    with torch.no_grad():
        expected = model(**given, decoder_input_ids=decoder)
        result = session.forward(**given, decoder_input_ids=decoder)
        same(result.logits, expected.logits)
        assert result.encoder_last_hidden_state.shape == expected.encoder_last_hidden_state.shape
        seen = given["attention_mask"].bool().numpy()
        same(result.encoder_last_hidden_state[seen], expected.encoder_last_hidden_state[torch.tensor(seen)])
        ids = model.generate(**given, max_new_tokens=8, do_sample=False, num_beams=1, eos_token_id=None, pad_token_id=0)
    found = session.generate_batch(given["input_ids"], attention_mask=given["attention_mask"], max_new_tokens=8, ignore_eos=True)
    assert [one.prompt_ids + one.ids for one in found] == ids.tolist()
    shifted = session.forward(given["input_ids"]).logits
    assert shifted.shape == (2, 9, VOCABULARY)
    sequence = session.sequence(6, encoded=9)
    session.forward(given["input_ids"][0], decoder_input_ids=decoder[0, :3], sequence=sequence)
    other = sequence.fork()
    with torch.no_grad():
        expected = model(given["input_ids"][:1], decoder_input_ids=decoder[:1]).logits[:, 3:]
    same(session.forward(decoder_input_ids=decoder[0, 3:], sequence=sequence).logits, expected)
    same(session.forward(decoder[:1, 3:], sequence=other).logits, expected)
    assert session.forward([7], sequence=sequence).logits.shape == (1, 1, VOCABULARY) and len(sequence) == 6
    with pytest.raises(heft.InvalidArgError, match="decoder_input_ids alone"):
        session.forward([7], decoder_input_ids=[7], sequence=other)
    for more in ({}, {"sequence": session.sequence(6, encoded=9)}, {"sequence": other, "attention_mask": [1, 1]}):
        with pytest.raises(ValueError, match="must be given"):
            session.forward(decoder_input_ids=decoder[0, 3:], **more)


def test_sound(tmp_path: Path) -> None:
    config = tf.WhisperConfig(
        vocab_size=VOCABULARY, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=48, decoder_ffn_dim=48, num_mel_bins=8, max_source_positions=20, max_target_positions=24, decoder_start_token_id=1,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    model = make("WhisperForConditionalGeneration", config, tmp_path)
    torch.manual_seed(2)
    sound, decoder = torch.randn(2, 8, 40), torch.randint(6, VOCABULARY, (2, 4))
    session = heft.run.Session(tmp_path)
    with torch.no_grad():
        expected = model(input_features=sound, decoder_input_ids=decoder)
        found = session.forward(input_features=sound, decoder_input_ids=decoder)
        same(found.logits, expected.logits)
        same(found.encoder_last_hidden_state, expected.encoder_last_hidden_state)
        ids = [[1], [1]]
        for _ in range(6):  # generate() of Whisper does more than greedy choice
            last = model(input_features=sound, decoder_input_ids=torch.tensor(ids)).logits[:, -1].argmax(-1)
            ids = [[*row, int(token)] for row, token in zip(ids, last, strict=True)]
    batch = session.generate_batch(input_features=sound, max_new_tokens=6, ignore_eos=True)
    assert [one.prompt_ids + one.ids for one in batch] == ids
    assert session.generate(input_features=sound[0], max_new_tokens=6, ignore_eos=True).ids == ids[0][1:]


def test_images(tmp_path: Path) -> None:
    config = tf.ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, image_size=16, patch_size=4, num_labels=3)
    model = make("ViTForImageClassification", config, tmp_path)
    pixels = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        expected = model(pixel_values=pixels, output_hidden_states=True)
    found = heft.run.Session(tmp_path).forward(pixel_values=pixels, outputs=["logits", "hidden_states.1"])
    same(found.logits, expected.logits)
    same(found["hidden_states.1"], expected.hidden_states[1])


def test_images_and_texts(tmp_path: Path) -> None:
    text = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 20, **BASE}
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 16, "patch_size": 4}
    model = make("CLIPModel", tf.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16), tmp_path)
    given = inputs(rows=3)
    given["input_ids"][:, -1] = VOCABULARY - 1
    pixels = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        expected = model(**given, pixel_values=pixels)
    session = heft.run.Session(tmp_path)
    found = session.forward(**given, pixel_values=pixels)
    for name in ("logits_per_image", "logits_per_text", "text_embeds", "image_embeds"):
        same(found[name], getattr(expected, name))
    texts, images = session.forward(**given), session.forward(pixel_values=pixels)
    same(texts.text_embeds, expected.text_embeds)
    same(images.image_embeds, expected.image_embeds)
    same(texts.last_hidden_state, expected.text_model_output.last_hidden_state)
    same(images.last_hidden_state, expected.vision_model_output.last_hidden_state)
    assert "image_embeds" not in texts and "logits_per_text" not in images
    with pytest.raises(ValueError, match="two calls"):
        session.forward(**given, pixel_values=pixels, outputs=["last_hidden_state"])


# ---- texts -----------------------------------------------------------------------------------------------


def fast(place: Path, around: bool) -> Any:
    (place / "tokenizer.json").write_text(tokenizer_json(around))
    tokenizer = tf.PreTrainedTokenizerFast(
        tokenizer_file=str(place / "tokenizer.json"), pad_token="<pad>", unk_token="<unk>", cls_token="<cls>", sep_token="<sep>", eos_token="</s>"
    )
    tokenizer.save_pretrained(place)
    return tokenizer


def test_texts_are_continued_as_by_transformers(tmp_path: Path) -> None:
    model = make("AutoModelForCausalLM", CAUSAL["llama"](), tmp_path)
    tokenizer = fast(tmp_path, around=False)
    with heft.run.Session(tmp_path) as session, torch.no_grad():
        for prompt in ("the cat sat", "two dogs saw a red house", "tree"):
            given = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
            ids = model.generate(**given, max_new_tokens=10, do_sample=False, eos_token_id=None, pad_token_id=0)[0, given["input_ids"].shape[1] :]
            found = session.generate(prompt, max_new_tokens=10, ignore_eos=True)
            assert found.ids == ids.tolist()
            assert found.text == tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def test_tokenizers_of_other_libraries(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    make("AutoModelForCausalLM", CAUSAL["llama"](), tmp_path)
    fast(tmp_path, around=True)
    ours = heft.run.Session(tmp_path)
    expected = ours.generate("the cat sat", max_new_tokens=10, ignore_eos=True)
    embedded = ours.embed(["two dogs saw a red house"])
    pools(tmp_path, "lasttoken", normalize=False, most=4)
    cut = ours.embed(["two dogs saw a red house"])
    assert not np.array_equal(cut, embedded)
    for theirs in (tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")), tf.AutoTokenizer.from_pretrained(tmp_path)):
        session = heft.run.Session(ours.model, tokenizer=theirs)
        assert session.tokenizer is theirs
        found = session.generate("the cat sat", max_new_tokens=10, ignore_eos=True)
        assert (found.ids, found.prompt_ids, found.text) == (expected.ids, expected.prompt_ids, expected.text)
        pieces = session.stream("the cat sat", max_new_tokens=10, ignore_eos=True)
        assert "".join(str(piece.text) for piece in pieces) == expected.text
        assert np.array_equal(session.embed(["two dogs saw a red house"]), cut)


def test_pieces_of_characters() -> None:
    """Text of bytes comes when its characters are complete."""
    from heft._generation import Pieces, Texts

    class Bytes:
        """Each id is a byte."""

        def encode(self, text: str) -> list[int]:
            return list(text.encode())

        def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
            return bytes(ids).decode(errors="replace")

    stream = Pieces(Texts(Bytes()))
    assert [stream.add(byte) for byte in "aé日".encode()] == ["a", "", "é", "", "", "日"]
    assert stream.add(0xC3) == "" and stream.finish() == "\ufffd" and stream.finish() == ""


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("mode", ["mean_tokens", "cls_token", "lasttoken"])
def test_embeddings(mode: str, normalize: bool, tmp_path: Path) -> None:
    st = pytest.importorskip("sentence_transformers")
    make("AutoModel", tf.BertConfig(intermediate_size=48, **SMALL), tmp_path)
    fast(tmp_path, around=True)
    pools(tmp_path, mode, normalize, most=12)
    texts = ["the cat sat", "two dogs saw a red house by the tree and the cat sat on a mat", "tree", "one two three run"]
    expected = st.SentenceTransformer(str(tmp_path), device="cpu").encode(texts, normalize_embeddings=False)
    found = heft.run.Session(tmp_path).embed(texts)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1e-5 * max(1, np.abs(expected).max())
