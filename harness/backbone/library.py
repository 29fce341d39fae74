"""What every library of models must tell us. One module per library implements these functions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import nn


@dataclass(frozen=True)
class Input:
    """What a network's weights expect to see.

    Attributes:
        mean, std: per channel, for pixels in [0, 1].
        resolution: side of the square input in pixels.
        interpolation: how to resize to it.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    resolution: int
    interpolation: str


class Library(Protocol):
    """A source of architectures, e.g. the module harness.backbone.timm_models."""

    def check(self, name: str) -> None:
        """Raises UserError, with near matches, unless there is a model of that name."""

    def create(self, name: str) -> nn.Module:
        """The network with random weights."""

    def pretrained(self, name: str) -> nn.Module:
        """The network with ImageNet weights."""

    def reset_head(self, model: nn.Module, num_classes: int) -> None:
        """Put a fresh classifier in place."""

    def head_names(self, model: nn.Module) -> list[str]:
        """Names of the classifier modules."""

    def depths(self, model: nn.Module) -> dict[str, int]:
        """Full name of every parameter and buffer -> depth of its stage."""

    def input_of(self, model: nn.Module) -> Input:
        """What the weights expect to see."""

    def set_resolution(self, model: nn.Module, size: int) -> None:
        """Let a network that fixes its input size take another, where it can."""

    def no_weight_decay(self, model: nn.Module) -> frozenset[str]:
        """Names of parameters that must not decay beyond norms and biases."""


def tensor_names(model: nn.Module) -> list[str]:
    """Full names of all parameters and buffers."""
    return [n for n, _ in [*model.named_parameters(), *model.named_buffers()]]


def depth_by_pooling(model: nn.Module) -> dict[str, int] | None:
    """Depth in a VGG: pooling stages of `features`, then the hidden fully connected layers.

    Returns:
        None for any other network.
    """
    features = getattr(model, "features", None)
    if not isinstance(features, nn.Sequential) or type(model).__name__ != "VGG":
        return None
    pools = [i for i, layer in enumerate(features) if isinstance(layer, nn.MaxPool2d)]

    def depth(name: str) -> int:
        if not name.startswith("features."):
            return len(pools)
        return sum(i < int(name.split(".")[1]) for i in pools)

    return {name: depth(name) for name in tensor_names(model)}
