"""Find the input sizes that a network accepts, from the shapes of its tensors alone."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import nn

from harness.core.errors import UserError, first_line
from harness.inputs import Pixels

USUAL = (32, 48, 64, 75, 96, 112, 128, 160, 192, 224, 240, 256, 288, 299, 320, 384, 448, 512)
SHOWN = 6


def size_refusal(
    model: nn.Module,
    name: str,
    given: Pixels,
    own: int,
    resize: Callable[[nn.Module, int], None],
    error: Exception,
) -> UserError:
    """The error for a network that does not accept an input size; it lists accepted sizes.

    Args:
        model: the network.
        name: name of the network.
        given: the refused input.
        own: the size that its weights expect.
        resize: function that sets a network to another size, if it supports that.
        error: the exception that the network raised.
    """
    size = given.resolution
    # Tensors with shapes but no data, on which trials are cheap.
    shapes = copy.deepcopy(model).to("meta")
    fits = [s for s in sorted({*USUAL, own}) if s != size and _takes(shapes, s, resize)]
    if not fits and size != own and _takes(model, own, resize):
        fits = [own]  # the network needs tensors with data, so other sizes are not tried
    nearest = sorted(fits, key=lambda s: (s != own, abs(s - size), s))[:SHOWN]
    sizes = ", ".join(str(s) for s in sorted(nearest))
    known = f"resolution can be {sizes}" if fits else "none of the usual sizes works"
    return UserError(
        f"backbone {name} does not take {size} x {size} images: {known} "
        f"({type(error).__name__}: {first_line(error)})"
    )


def _takes(model: nn.Module, size: int, resize: Callable[[nn.Module, int], None]) -> bool:
    try:
        tried = copy.deepcopy(model).eval()
        resize(tried, size)
        with torch.no_grad():
            tried(torch.empty(1, 3, size, size, device=next(tried.parameters()).device))
    except Exception:  # each architecture has its own kind
        return False
    return True
