"""A network small enough to train its sources oneself: small_cnn, about 61,000 parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import nn

from harness.backbones.library import Input, tensor_names
from harness.core.errors import UserError

NAMES = ("small_cnn",)
WIDTHS = (16, 32, 64, 64)
INPUT = Input(mean=(0.5,) * 3, std=(0.5,) * 3, resolution=28, interpolation="bilinear")


class SmallCNN(nn.Module):
    """Four 3 x 3 convolutions with batch norm and ReLU, halving the picture between them; the mean over
    places; a linear classifier."""

    def __init__(self) -> None:
        super().__init__()
        channels = (3, *WIDTHS)
        self.stages = nn.Sequential(
            *(_stage(channels[i], channels[i + 1], pool=i < 3) for i in range(len(WIDTHS)))
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.head = nn.Linear(WIDTHS[-1], 10)

    def forward(self, images: object) -> object:
        """(n, 3, s, s) -> (n, classes) logits."""
        return self.head(self.flatten(self.pool(self.stages(images))))


def _stage(inside: int, outside: int, pool: bool) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.Conv2d(inside, outside, 3, padding=1, bias=False),
        nn.BatchNorm2d(outside),
        nn.ReLU(inplace=True),
    ]
    return nn.Sequential(*layers, *([nn.MaxPool2d(2)] if pool else []))


def check(name: str) -> None:
    """There is one for each of NAMES, and nothing else is looked up here."""
    assert name in NAMES


def create(name: str) -> nn.Module:
    """The network with random weights."""
    return SmallCNN()


def pretrained(name: str) -> nn.Module:
    """There are no pretrained weights.

    Raises:
        UserError: always.
    """
    raise UserError(
        f"backbone {name} has no ImageNet weights; train a source for it (python -m harness.pretrain) "
        "and use source 'recorded:NAME', or 'scratch'"
    )


def reset_head(model: nn.Module, num_classes: int) -> None:
    """Put a fresh classifier in place."""
    cast(SmallCNN, model).head = nn.Linear(WIDTHS[-1], num_classes)


def head_names(model: nn.Module) -> list[str]:
    """The classifier."""
    return ["head"]


def depths(model: nn.Module) -> dict[str, int]:
    """One depth per convolution."""
    return {
        n: len(WIDTHS) if n.startswith("head.") else int(n.split(".")[1])
        for n in tensor_names(model)
    }


def input_of(model: nn.Module) -> Input:
    """28 px, as Fashion-MNIST and MNIST come, in [-1, 1]; any size from 8 px does."""
    return INPUT


def set_resolution(model: nn.Module, size: int) -> None:
    """Nothing in it depends on the size."""


def convert(model: nn.Module, state: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """There is one form and no input size."""
    return state


def no_weight_decay(model: nn.Module) -> frozenset[str]:
    """None beyond norms and biases."""
    return frozenset()
