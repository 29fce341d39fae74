"""Small encoders of texts with random weights, saved as the library transformers does."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch

WORDS = "the a cat dog bird fish runs swims flies eats red blue green big small fast".split()


def save_tokenizer(folder: Path) -> None:
    """A tokenizer of words."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(names)}, "[UNK]"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_special_tokens(names[:5])
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    folder.mkdir(parents=True, exist_ok=True)
    made.save(str(folder / "tokenizer.json"))


def save_encoder(folder: Path, kind: str = "bert", **settings: Any) -> str:
    """Save an encoder of that type with random weights.

    Returns:
        Name of the backbone.
    """
    library: Any = importlib.import_module("transformers")
    fields = {
        "vocab_size": 32,
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": 24,
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "cls_token_id": 2,
        "sep_token_id": 3,
        **settings,
    }
    if kind == "distilbert":
        fields |= {"dim": 16, "n_layers": 3, "n_heads": 2, "hidden_dim": 24}
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads"):
            del fields[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = library.AutoConfig.for_model(kind, **fields)
        model = library.AutoModel.from_config(config)
        for parameter in model.parameters():  # otherwise biases are 0, and attention does little
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return f"transformers:{folder}"
