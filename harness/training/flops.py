"""Count the operations of a forward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

T = TypeVar("T")


def count_flops(model: nn.Module, run: Callable[[], T]) -> tuple[int, T]:
    """Operations of `run()`, without gradients, and what it returns.

    Args:
        model: the network that runs. Its parameters require no gradients meanwhile, because torch's counter
            fails where the input of a module is a view of a parameter (attention pooling in SigLIP).
        run: the forward pass.
    """
    learn = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in learn:
        parameter.requires_grad_(False)
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            found = run()
    finally:
        for parameter in learn:
            parameter.requires_grad_()
    return counter.get_total_flops(), found
