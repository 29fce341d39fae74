"""Recurrent networks on texts, to be trained from scratch, in groups: embedding, layers, head."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from harness.backbones.encoders import TokenPool, divided, joined
from harness.backbones.transformers_models import tokenizer_of
from harness.inputs import Tokens

EMBEDDED, WIDTH, LAYERS = 128, 256, 2
DROPOUT = 0.2
"""Of the features of every token that a layer reads."""
LENGTH, LONGEST = 128, 4096


class Embedding(nn.Embedding):
    """(n, 2, tokens) ids and mask -> (n, tokens, width + 1) features and mask."""

    def forward(self, ids_and_mask: torch.Tensor) -> torch.Tensor:
        ids, mask = ids_and_mask.unbind(1)
        return joined(super().forward(ids), mask)


class Layer(nn.Module):
    """One recurrent layer on features and mask. It reads texts from the left, and padding is on the right.

    Args:
        cell: nn.LSTM or nn.GRU.
        inside: features that it reads.
    """

    def __init__(self, cell: type[nn.LSTM] | type[nn.GRU], inside: int) -> None:
        super().__init__()
        self.dropout = nn.Dropout(DROPOUT)
        self.cell = cell(inside, WIDTH, batch_first=True)

    def forward(self, carried: torch.Tensor) -> torch.Tensor:
        hidden, mask = divided(carried)
        return joined(self.cell(self.dropout(hidden))[0], mask)


class TextRecurrent(nn.Sequential):
    """Two layers on embeddings of tokens, and a linear classifier of the mean output over all tokens.

    Args:
        cell: nn.LSTM or nn.GRU.
    """

    def __init__(self, cell: type[nn.LSTM] | type[nn.GRU]) -> None:
        tokenizer = tokenizer_of("minilm")
        parts: dict[str, nn.Module] = {"embedding": Embedding(tokenizer.size, EMBEDDED)}
        for number in range(LAYERS):
            layer = Layer(cell, WIDTH if number else EMBEDDED)
            parts[f"{cell.__name__.lower()}{number}"] = layer
        parts |= {"pool": TokenPool("mean"), "head": nn.Linear(WIDTH, 10)}
        super().__init__(OrderedDict(parts))
        self.input = Tokens(tokenizer, LENGTH, LONGEST)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "text_lstm": partial(TextRecurrent, nn.LSTM),
    "text_gru": partial(TextRecurrent, nn.GRU),
}
