"""Texts as tokens: ids and attention mask, for networks that read text."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, final

import torch
from torch.nn import functional as F

from harness.core.versions import versions
from harness.inputs.augment import Augment
from harness.inputs.base import Input, Prepare
from harness.inputs.text import CORRUPTIONS, corrupted, picture
from harness.inputs.tokenizer import TokenizerFile

DROPPED = 0.1
"""Share of the tokens that "token_dropout" removes."""
AUGMENTATIONS = ("none", "token_dropout")
BUCKETS, WIDTH = 2**15, 256
"""Different words of a thumbnail, and its length."""


@final
@dataclass(frozen=True)
class Tokens(Input):
    """Texts as (2, length) int32: ids of tokens, and the attention mask (1 for tokens, 0 for padding).

    The network's argument is (n, 2, length) int64.

    Attributes:
        tokenizer: what divides a text into tokens.
        length: number of tokens of every row, special ones included: longer texts lose their end, shorter
            ones are padded.
        longest: largest length that the network takes.
    """

    tokenizer: TokenizerFile
    length: int
    longest: int

    dtype: ClassVar[torch.dtype] = torch.int32
    near: ClassVar[float] = 0.95
    augmentations: ClassVar[tuple[str, ...]] = AUGMENTATIONS
    corruptions: ClassVar[tuple[str, ...]] = CORRUPTIONS

    @property
    def shape(self) -> tuple[int, ...]:
        return 2, self.length

    def __str__(self) -> str:
        return f"{self.length} tokens of text"

    def key(self) -> dict[str, str]:
        return {"text": repr(self), **versions("tokenizers")}

    def row(self, example: Any) -> torch.Tensor:
        """(2, length) int32 of a text."""
        assert isinstance(example, str)
        text = corrupted(example, self.corruption) if self.corruption else example
        found = self.tokenizer.fitted(self.length).encode(text)
        row = torch.tensor([found.ids, found.attention_mask], dtype=self.dtype)
        row[1, 0] = 1  # a text without any known token would have nothing to attend to
        return row

    def preparation(self, device: torch.device, layout: torch.memory_format) -> Prepare:
        return lambda rows: rows.long()

    def blank(self, count: int) -> torch.Tensor:
        """(count, 2, length): an ordinary token, repeated, with a mask of ones."""
        rows = torch.ones(count, *self.shape, dtype=self.dtype)
        rows[:, 0] = self.tokenizer.ordinary[0]
        return rows

    def random(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """(count, 2, length): random ordinary tokens, in texts of different lengths."""
        known = torch.tensor(self.tokenizer.ordinary, dtype=self.dtype)
        ids = known[torch.randint(len(known), (count, self.length), generator=generator)]
        lengths = 1 + torch.randperm(self.length, generator=generator)
        mask = torch.arange(self.length) < lengths[torch.arange(count) % self.length, None]
        return torch.stack([ids.where(mask, self.tokenizer.pad), mask.to(self.dtype)], 1)

    def augmentation(self, name: str, num_classes: int) -> Augment:
        """The policy of that name.

        Args:
            name: "none", or "token_dropout" (each token that is not special is removed with a probability of
                10 %, and those behind it move up; word dropout of Iyyer et al. 2015, random deletion of Wei &
                Zou 2019).
            num_classes: not used.
        """
        return {"none": Augment(name), "token_dropout": Augment(name, self._drop)}[name]

    def _drop(self, rows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        ids, mask = rows[:, 0], rows[:, 1].bool()
        every = torch.tensor(sorted(self.tokenizer.special), dtype=self.dtype, device=rows.device)
        stays = (torch.rand(ids.shape, generator=generator) >= DROPPED).to(rows.device)
        kept = mask & (torch.isin(ids, every) | stays)
        kept |= mask & ~kept.any(1, keepdim=True)  # of a text that would be empty, all tokens stay
        order = kept.logical_not().to(torch.uint8).argsort(stable=True, dim=1)
        ids, mask = ids.gather(1, order), kept.gather(1, order)
        return torch.stack([ids.where(mask, self.tokenizer.pad), mask.to(self.dtype)], 1)

    def texts(self, rows: torch.Tensor) -> list[str]:
        """The texts of rows, as far as their tokens have them, without special tokens."""
        decode = self.tokenizer.fitted(self.length).decode
        return [decode(ids[mask > 0].tolist()) for ids, mask in rows]

    def thumbnails(self, rows: torch.Tensor) -> torch.Tensor:
        """Counts of words, projected at random: their correlation is close to that of the counts."""
        words = [
            [zlib.crc32(word.encode()) % BUCKETS for word in text.lower().split()]
            for text in self.texts(rows)
        ]
        starts = torch.tensor([0, *map(len, words)][:-1]).cumsum(0)
        every = torch.tensor([word for text in words for word in text], dtype=torch.int64)
        return F.embedding_bag(every, _signs(), starts, mode="sum")

    def remark(self, rows: Iterable[torch.Tensor]) -> str:
        """How many texts have as many tokens as a row can take, and so probably more."""
        full = torch.cat([some[:, 1, -1] for some in rows]).bool()
        if not full.any():
            return ""
        return (
            f"{int(full.sum())} of {len(full)} texts have {self.length} tokens or more; what "
            "exceeds them is not read"
        )

    def pictures(self, rows: torch.Tensor) -> torch.Tensor:
        """The beginnings of the texts, in black on white."""
        return torch.stack([picture(text) for text in self.texts(rows)])

    def in_words(self) -> str:
        name = next(iter(self.files()))
        return f"""\
A text becomes {self.length} tokens: a longer one loses its end, a shorter one is padded. The network takes
ids and attention mask in one tensor of shape (texts, 2, {self.length}):

```python
import tokenizers, torch
tokenizer = tokenizers.Tokenizer.from_file("{name}")
tokenizer.enable_truncation({self.length})
tokenizer.enable_padding(length={self.length}, pad_id={self.tokenizer.pad})
found = tokenizer.encode(text)
tokens = torch.tensor([[found.ids, found.attention_mask]])
```

The network gives their logits."""

    def files(self) -> dict[str, str]:
        return {"tokenizer.json": self.tokenizer.text}

    def describe(self) -> dict[str, Any]:
        return {"kind": "tokens", "length": self.length, "longest": self.longest}


@cache
def _signs() -> torch.Tensor:
    """(BUCKETS, WIDTH) random signs."""
    draw = torch.Generator().manual_seed(0)
    return torch.randint(2, (BUCKETS, WIDTH), generator=draw).mul(2).sub(1).float()
