"""Texts: corruptions, and pictures for people."""

from __future__ import annotations

import hashlib
import re
import textwrap
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torchvision.transforms.v2 import functional as tvf

from harness.core.spec import TEXT_SHIFTS, derive_seed

CORRUPTIONS = tuple(name for name in TEXT_SHIFTS if name != "label_shift")
CHANGED = 0.2
"""Share of the words that a corruption changes."""
WORD = re.compile(r"\w+")
SIDE, SIZE, COLUMNS = 96, 11, 15
"""Side of a picture, size of its letters, both in pixels, and letters of a line."""


def corrupted(text: str, name: str) -> str:
    """A text under one corruption; the result is the same in every trial.

    Args:
        text: the text.
        name: "typos" (in a fifth of the words with at least four letters, two neighbours that are neither the
            first nor the last letter change places, as in Belinkov & Bisk 2018) or "word_dropout" (a fifth of
            the words are missing).
    """
    # Seeded by the text itself, so that the changes do not depend on what else is in the test set.
    content = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    draw = np.random.default_rng(derive_seed("shift", name, content))

    def typo(match: re.Match[str]) -> str:
        word = match[0]
        if len(word) < 4 or draw.random() >= CHANGED:
            return word
        at = int(draw.integers(1, len(word) - 2))
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]

    def missing(match: re.Match[str]) -> str:
        return match[0] if draw.random() >= CHANGED else ""

    changed = WORD.sub({"typos": typo, "word_dropout": missing}[name], text)
    return changed if WORD.search(changed) else text


def picture(text: str) -> torch.Tensor:
    """(3, SIDE, SIDE) uint8: the beginning of a text in black on white."""
    image = Image.new("RGB", (SIDE, SIDE), "white")
    lines = textwrap.wrap(text[: SIDE * COLUMNS], COLUMNS)[: SIDE // SIZE]
    ImageDraw.Draw(image).multiline_text((2, 1), "\n".join(lines), "black", _font(), spacing=1)
    made: torch.Tensor = tvf.pil_to_tensor(image)
    return made


@cache
def _font() -> ImageFont.FreeTypeFont:
    from matplotlib import get_data_path  # slow to import, and only pictures need it

    return ImageFont.truetype(Path(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), SIZE)
