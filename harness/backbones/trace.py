"""Outputs of the parts of a network that come before a depth, in the order in which they are computed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from harness.backbones.groups import Backbone


def outputs_before(
    backbone: Backbone, depth: int, images: torch.Tensor
) -> tuple[list[tuple[str, Any]], torch.Tensor]:
    """Pass images through a network and keep the outputs of its `depth` leading groups.

    Args:
        backbone: the network; it is put in eval().
        depth: number of leading groups.
        images: (n, 3, s, s) normalised images.

    Returns:
        Name and output of each of the largest modules of these groups, and of pooling and similar modules, up
        to the first module of a later group; and the logits.
    """
    backbone.model.eval()
    events: list[tuple[str, Any]] = []
    later: list[int] = []  # number of events when a module of a later group began
    hooks = []
    for name, module, early in _outermost(backbone, depth):
        if early:
            hook = module.register_forward_hook(lambda m, a, out, n=name: events.append((n, out)))
        else:
            hook = module.register_forward_pre_hook(lambda m, a: later.append(len(events)))
        hooks.append(hook)
    try:
        with torch.no_grad():
            logits = backbone.model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return events[: min(later, default=len(events))], logits


def _outermost(backbone: Backbone, depth: int) -> Iterator[tuple[str, nn.Module, bool]]:
    """Name, module, and whether it is before the depth: the largest modules that are, and the leaves that are
    not."""
    groups = {id(module): inside for module, inside in backbone.modes}
    early = frozenset(range(depth))

    def walk(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module, bool]]:
        inside = groups.get(id(module), frozenset())
        if (inside and inside <= early) or _is_plain(module):
            yield name, module, True
        elif children := list(module.named_children()):
            for child, inner in children:
                yield from walk(f"{name}.{child}" if name else child, inner)
        else:
            yield name, module, False

    return walk("", backbone.model)


def _is_plain(module: nn.Module) -> bool:
    """Whether a module has no tensors and is the same in train() and eval(), such as pooling, flattening or
    identity."""
    if any(True for _ in module.parameters()) or any(True for _ in module.buffers()):
        return False
    return "Pool" in type(module).__name__ or isinstance(module, (nn.Identity, nn.Flatten))
