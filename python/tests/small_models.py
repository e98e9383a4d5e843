"""Small checkpoints of other libraries, for the snippets of the documentation and for the examples."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

LETTERS = [chr(code) for code in range(ord("a"), ord("z") + 1)]


def llama(place: Path) -> None:
    """llama: bfloat16, shards and an index, tied embeddings. adapter: of PEFT, for it."""
    import torch
    import transformers

    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=64, tie_word_embeddings=True,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(place / "llama", max_shard_size="20KB")
    if importlib.util.find_spec("peft"):
        import peft

        adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
        adapted.save_pretrained(place / "adapter")


def bert(place: Path) -> None:
    """bert: float32, shards and an index, with a tokenizer. sentences: the same for sentence-transformers."""
    import transformers

    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, vocab_size=40
    )
    transformers.BertModel(config).save_pretrained(place / "bert", max_shard_size="20KB")
    (place / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS]))
    transformers.BertTokenizer(str(place / "vocab.txt")).save_pretrained(place / "bert")
    if importlib.util.find_spec("sentence_transformers"):
        import sentence_transformers

        model = sentence_transformers.SentenceTransformer(str(place / "bert"), device="cpu")  # with mean pooling
        model.save(str(place / "sentences"))


def words(place: Path) -> None:
    """words: a tokenizer that needs no library."""
    from run_models import tokenizer_json

    (place / "words").mkdir()
    (place / "words" / "tokenizer.json").write_text(tokenizer_json(around=True))
    (place / "words" / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')


def unet(place: Path) -> None:
    """unet: a component of diffusers."""
    import diffusers

    diffusers.UNet2DModel(
        sample_size=8, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    ).save_pretrained(place / "unet")  # fmt: skip


def net(place: Path) -> None:
    """net.safetensors, net.bin, net/: the state dict of a small module of torch."""
    import safetensors.torch
    import torch
    from torch import nn

    state = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)).state_dict()
    safetensors.torch.save_file(state, place / "net.safetensors", {"format": "pt"})
    torch.save(state, place / "net.bin")
    (place / "net").mkdir()
    safetensors.torch.save_file(state, place / "net" / "model.safetensors", {"format": "pt"})


MAKERS: list[tuple[str, Callable[[Path], None]]] = [
    ("safetensors", net), ("transformers", llama), ("transformers", bert), ("transformers", words), ("diffusers", unet),
]  # fmt: skip


def make_all(place: Path) -> None:
    """Make those whose libraries are installed. Needs torch."""
    import torch

    torch.manual_seed(0)
    for library, make in MAKERS:
        if importlib.util.find_spec(library):
            make(place)
