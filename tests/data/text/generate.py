"""Make the small tokenizers of this folder and cases.json: texts, and the ids and texts that `tokenizers` makes of them.

tokenizers 0.23.3 and sentencepiece 0.2.3; run from the folder: python generate.py
"""

import io
import json
import sys
import tempfile

import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

sys.path.insert(0, "../../interop")
from text_samples import CODE, LANGUAGES, ODD  # noqa: E402
from text_tokenizers import BYTES, LLAMA3, proto_field, unmark_bytes  # noqa: E402

TRAINED_ON = [LANGUAGES["english"], LANGUAGES["german"], LANGUAGES["russian"], CODE]
RULES = {"\u00a0": " ", "\ufb01": "fi", "\u2460": "1", "\uff21": "A", "e\u0301": "\u00e9", "\t": " ", "\u200b": "", "\u00bd": "1/2", "\u1100\u1161": "\uac00"}


def charsmap():
    model = io.BytesIO()
    with tempfile.NamedTemporaryFile("w", suffix=".tsv") as rules:
        for source, target in RULES.items():
            rules.write(" ".join(f"{ord(c):X}" for c in source) + "\t" + " ".join(f"{ord(c):X}" for c in target) + "\n")
        rules.flush()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(TRAINED_ON), model_writer=model, vocab_size=200, hard_vocab_limit=False, normalization_rule_tsv=rules.name, minloglevel=2
        )
    return proto_field(proto_field(model.getvalue(), 3), 2)


def byte_level():
    t = Tokenizer(models.BPE(ignore_merges=True))
    t.normalizer = normalizers.NFC()
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3), "isolated"), pre_tokenizers.ByteLevel(False, True, False)])
    t.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    t.train_from_iterator(TRAINED_ON, trainers.BpeTrainer(vocab_size=400, special_tokens=["<s>"], initial_alphabet=alphabet, show_progress=False))
    t.post_processor = processors.Sequence([processors.ByteLevel(), processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])])
    t.add_tokens([AddedToken("<think>", normalized=False, rstrip=True), AddedToken("\u00e9t\u00e9", normalized=True, single_word=True)])
    return t


def byte_fallback():
    t = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    t.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    special = ["<unk>", "<s>", "</s>", *BYTES]
    t.train_from_iterator(TRAINED_ON, trainers.BpeTrainer(vocab_size=450, limit_alphabet=60, special_tokens=special, show_progress=False))
    t.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return unmark_bytes(t)


def word_piece():
    t = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=20))
    t.normalizer = normalizers.BertNormalizer()
    t.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    t.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    t.train_from_iterator(TRAINED_ON, trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False))
    t.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    t.enable_truncation(8)
    t.enable_padding(length=8)
    return t


def unigram():
    t = Tokenizer(models.Unigram())
    t.normalizer = normalizers.Sequence([normalizers.Precompiled(charsmap()), normalizers.Replace(Regex(" {2,}"), " ")])
    t.pre_tokenizer = pre_tokenizers.Metaspace()
    t.decoder = decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    t.train_from_iterator(TRAINED_ON, trainers.UnigramTrainer(vocab_size=250, special_tokens=special, unk_token="<unk>", show_progress=False))
    t.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return t


def plain_bpe():
    """Only ASCII and literal patterns: needs neither libonig nor utf8proc."""
    t = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    t.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    t.decoder = decoders.BPEDecoder()
    t.train_from_iterator(TRAINED_ON, trainers.BpeTrainer(vocab_size=200, limit_alphabet=60, special_tokens=["<unk>"], end_of_word_suffix="</w>", show_progress=False))
    return t


cases = []
for make in (byte_level, byte_fallback, word_piece, unigram, plain_bpe):
    name = f"{make.__name__}.json"
    made = make()
    with open(name, "w") as file:
        json.dump(json.loads(made.to_str()), file, ensure_ascii=False, separators=(",", ":"))
        file.write("\n")
    t = Tokenizer.from_file(name)
    t.no_truncation()
    t.no_padding()
    extra = ["a <think>  b \u00e9t\u00e9 e\u0301te\u0301x", "\ufb01n \u2460\u00a0\uff21\u200b e\u0301 \u1100\u1161", "<s>x</s> [MASK] [mask]"]
    for text in [*LANGUAGES.values(), CODE, *ODD, *extra]:
        if len(text) > 100:
            text = text[:100]
        ids = t.encode(text).ids
        bare = t.encode(text, add_special_tokens=False).ids
        cases.append({"tokenizer": name, "text": text, "ids": ids, "bare": bare, "decoded": t.decode(ids), "whole": t.decode(ids, skip_special_tokens=False)})
with open("cases.json", "w") as file:
    file.write("[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]\n")
