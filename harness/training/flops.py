"""Count the operations of a forward pass; those of recurrent layers are left out by torch's counter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def _recurrent(sequence: Sequence[int], *arguments: Any, **_: object) -> int:
    """Two operations per weight of the matrices and step; biases are not counted.

    Args:
        sequence: shape (steps, n, features) of the input.
        arguments: the shapes of the matrices first.
    """
    weights: int = sum(prod(matrix) for matrix in arguments[:2])
    return 2 * sequence[0] * sequence[1] * weights


FORMULAS = {torch.ops.aten.mkldnn_rnn_layer: _recurrent}


def count_flops(model: nn.Module, run: Callable[[], object]) -> int:
    """Operations of `run()`, without gradients.

    Args:
        model: the network that runs. Its parameters require no gradients meanwhile, because torch's counter
            fails where the input of a module is a view of a parameter (attention pooling in SigLIP).
        run: the forward pass.
    """
    learn = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in learn:
        parameter.requires_grad_(False)
    try:
        counter = FlopCounterMode(display=False, custom_mapping=FORMULAS)
        with torch.no_grad(), counter:
            run()
    finally:
        for parameter in learn:
            parameter.requires_grad_()
    return counter.get_total_flops()
