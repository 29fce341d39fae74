"""Texts made by the tests: two classes with words of their own, and a small tokenizer of whole words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from harness.inputs import TokenizerFile

SHARED = "the a of and to in it is was for".split()
OWN = {
    "animals": "horse sheep goat donkey rabbit chicken kitten puppy".split(),
    "tools": "hammer pliers chisel ladder drill wrench shovel bucket".split(),
}
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def sentence(name: str, words: int, seed: int) -> str:
    """Words of a class among words of both classes."""
    draw = np.random.default_rng(seed)
    found = [str(draw.choice(OWN[name] if i % 2 else SHARED)) for i in range(words)]
    return " ".join(found).capitalize() + "."


def write_texts(folder: Path, count: int = 12) -> Path:
    """A folder of two classes, with `count` files each of 6, 7, ... words."""
    for label, name in enumerate(OWN):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            text = sentence(name, 6 + i, seed=100 * label + i)
            (folder / name / f"{name}{i:02}.txt").write_text(text)
    return folder


def word_tokenizer(special: bool = True) -> TokenizerFile:
    """A tokenizer of the words above; with [CLS] and [SEP] around a text if `special`."""
    words = [*SHARED, *(word for own in OWN.values() for word in own), "."]
    names = [*SPECIAL, *words] if special else ["[UNK]", *words]
    made = Tokenizer(models.WordLevel({n: i for i, n in enumerate(names)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    if special:
        made.add_special_tokens(SPECIAL)
        made.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    return TokenizerFile(made.to_str())
