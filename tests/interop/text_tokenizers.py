"""Tokenizers of each kind of family, trained on small texts with `tokenizers` and given as the text of their tokenizer.json."""

import json
from pathlib import Path

from text_samples import corpus
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
BYTES = [f"<0x{i:02X}>" for i in range(256)]


def texts():
    """What the tokenizers are trained on: the samples, and this project's documentation and sources."""
    root = Path(__file__).resolve().parents[2]
    files = sorted([*root.glob("docs/*.md"), *root.glob("src/json/*.c"), *root.glob("python/heft/*.py")])
    return corpus() * 3 + [line for file in files for line in file.read_text().splitlines(keepends=True)]


def train(tokenizer, trainer):
    tokenizer.train_from_iterator(texts(), trainer)
    return tokenizer


def byte_level(pattern=None, specials=("<|endoftext|>",), **model):
    tokenizer = Tokenizer(models.BPE(**model))
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    split = [] if pattern is None else [pre_tokenizers.Split(Regex(p), "isolated") for p in pattern]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*split, level]) if split else level
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return train(tokenizer, trainers.BpeTrainer(vocab_size=4000, special_tokens=list(specials), initial_alphabet=alphabet, show_progress=False))


def gpt2():
    return byte_level()


def roberta():
    tokenizer = byte_level(specials=("<s>", "<pad>", "</s>", "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True, normalized=False)])
    return tokenizer


def llama3():
    tokenizer = byte_level([LLAMA3], specials=("<|begin_of_text|>", "<|end_of_text|>"), ignore_merges=True)
    template = processors.TemplateProcessing(single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 0)])
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    return tokenizer


def qwen2():
    tokenizer = byte_level([QWEN2], specials=("<|endoftext|>", "<|im_start|>", "<|im_end|>"))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_tokens([AddedToken("<tool_call>", normalized=False), AddedToken("<think>", normalized=False)])
    return tokenizer


def o200k():
    return byte_level([O200K])


def deepseek():
    tokenizer = byte_level([r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", DEEPSEEK], specials=("<｜begin▁of▁sentence｜>",))
    tokenizer.add_tokens([AddedToken("<｜User｜>", normalized=True), AddedToken("Ünïcode", normalized=True, single_word=True)])
    return tokenizer


def falcon():
    tokenizer = byte_level()
    digits = pre_tokenizers.Digits(individual_digits=False)
    nines = pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Punctuation("contiguous"), pre_tokenizers.ByteLevel(add_prefix_space=False), digits, nines])
    return tokenizer


def starcoder():
    tokenizer = byte_level()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    return tokenizer


def byte_fallback(specials=("<unk>", "<s>", "</s>")):
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    return tokenizer, trainers.BpeTrainer(vocab_size=4000, special_tokens=[*specials, *BYTES], limit_alphabet=300, show_progress=False)


def unmark_bytes(tokenizer):
    """Bytes are tokens of the model only: the trainer has made them special."""
    document = json.loads(tokenizer.to_str())
    document["added_tokens"] = [t for t in document["added_tokens"] if not t["content"].startswith("<0x")]
    return Tokenizer.from_str(json.dumps(document))


def llama():
    """With the normalizers of Llama's first files: one piece, however long the text."""
    tokenizer, trainer = byte_fallback()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    train(tokenizer, trainer)
    tokenizer.pre_tokenizer = None
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])
    return unmark_bytes(tokenizer)


def llama_normalized():
    """Added tokens that are found in normalized text are shown as they are found, and special ones are not skipped."""
    tokenizer = llama()
    tokenizer.add_tokens([AddedToken("<|user|>", normalized=True), AddedToken("the cat", normalized=True)])
    tokenizer.add_special_tokens([AddedToken("<|end|>", normalized=True)])
    return tokenizer


def bert_normalized():
    tokenizer = bert()
    tokenizer.add_tokens([AddedToken("NewTok", normalized=True), AddedToken("É", normalized=True)])
    tokenizer.add_special_tokens([AddedToken("[End]", normalized=True)])
    return tokenizer


def stripped_first():
    """A text whose beginning the normalizers drop does not begin where the caller's begins."""
    tokenizer = mistral()
    tokenizer.normalizer = normalizers.Sequence([normalizers.Strip(), normalizers.BertNormalizer(True, False, True, False), normalizers.Replace("\u200b", "")])
    return tokenizer


def mistral():
    tokenizer, trainer = byte_fallback()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    train(tokenizer, trainer)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens(["[INST]", "[/INST]"])
    return unmark_bytes(tokenizer)


def gemma():
    tokenizer, trainer = byte_fallback(("<pad>", "<eos>", "<bos>", "<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    train(tokenizer, trainer)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_tokens([AddedToken("\n\n", normalized=False), AddedToken("▁▁▁▁", normalized=False)])
    return unmark_bytes(tokenizer)


def bert(cased=False):
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=not cased)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    train(tokenizer, trainers.WordPieceTrainer(vocab_size=4000, special_tokens=special, show_progress=False))
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    tokenizer.enable_truncation(128)
    tokenizer.enable_padding(length=128)
    return tokenizer


def bert_cased():
    tokenizer = bert(cased=True)
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return tokenizer


def unigram(normalizer, byte_fallback=False):
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>", *(BYTES if byte_fallback else [])]
    train(tokenizer, trainers.UnigramTrainer(vocab_size=3000, special_tokens=special, unk_token="<unk>", show_progress=False))
    if byte_fallback:
        document = json.loads(unmark_bytes(tokenizer).to_str())
        document["model"]["byte_fallback"] = True
        tokenizer = Tokenizer.from_str(json.dumps(document))
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return tokenizer


def unigram_nfkc():
    return unigram(normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]))


def unigram_bytes():
    return unigram(normalizers.Sequence([normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()]), byte_fallback=True)


def proto_field(message, wanted):
    """The bytes of a field of a protocol buffer, whose fields have fewer than 16 numbers here."""
    at = 0

    def number():
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at, value, shift = at + 1, value | (byte & 127) << shift, shift + 7
            if byte < 128:
                return value

    while at < len(message):
        tag = number()
        if tag & 7 == 0:
            number()
        elif tag & 7 == 2:
            length = number()
            at += length
            if tag >> 3 == wanted:
                return message[at - length : at]
        else:
            at += {1: 8, 5: 4}[tag & 7]
    raise KeyError(wanted)


def charsmap(rule="nmt_nfkc"):
    """sentencepiece's table of a rule, as it puts it into a model."""
    import io

    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()), model_writer=model, vocab_size=500, hard_vocab_limit=False, normalization_rule_name=rule, minloglevel=2
    )
    normalizer_spec = proto_field(model.getvalue(), 3)
    return proto_field(normalizer_spec, 2)


def t5():
    return unigram(normalizers.Precompiled(charsmap("nmt_nfkc")))


def albert():
    steps = [normalizers.Replace("``", '"'), normalizers.Replace("''", '"'), normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()]
    return unigram(normalizers.Sequence([*steps, normalizers.Precompiled(charsmap("nmt_nfkc_cf"))]))


def clip():
    tokenizer = Tokenizer(models.BPE(unk_token="<|endoftext|>", end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])
    pattern = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.BPEDecoder()
    special = ["<|startoftext|>", "<|endoftext|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=3000, special_tokens=special, end_of_word_suffix="</w>", initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    return train(tokenizer, trainer)


def word_level():
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Strip(), normalizers.NFD()])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    train(tokenizer, trainers.WordLevelTrainer(vocab_size=2000, special_tokens=["<unk>"], show_progress=False))
    tokenizer.add_tokens([AddedToken("word", single_word=True), AddedToken("strip", lstrip=True, rstrip=True)])
    return tokenizer


def continued():
    """BPE with a prefix, and characters that are unknown one by one."""
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]", continuing_subword_prefix="##", fuse_unk=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("merged_with_next")])
    trainer = trainers.BpeTrainer(vocab_size=2000, special_tokens=["[UNK]"], continuing_subword_prefix="##", limit_alphabet=80, show_progress=False)
    return train(tokenizer, trainer)


FAMILIES = [
    gpt2, roberta, llama3, qwen2, o200k, deepseek, falcon, starcoder, llama, mistral, gemma, bert, bert_cased, unigram_nfkc, unigram_bytes, t5, albert, clip, word_level, continued,
    llama_normalized, bert_normalized, stripped_first,
]
