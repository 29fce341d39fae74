"""The memory order in which a network computes, and a check that its gradients do not depend on it.

Channels-last order is faster. On a CPU, however, torch 2.14 (oneDNN 3.x) computes the backward pass of a
strided 1x1 convolution with few input channels wrongly in that order: it writes out of bounds, so that the
process crashes, hangs, or continues with wrong gradients (uxlfoundation/oneDNN#6035, pytorch#136348).

Observed on 2026-11-29 with torch 2.14.1 on a Xeon with AVX-512 and AMX, with one thread, each case in a
process of its own, compared with float64 in contiguous order; reproduced by tests/test_layout.py:

- float32, kernel 1x1, no padding, stride 2 or 3, one group: crashes with 2 to 15 input channels; with
  ONEDNN_MAX_CPU_ISA=AVX2, with 2 to 7. Results with 1, 16, 17 and 24 input channels are correct. So the limit
  is one vector of channels, and small images (32 px) may give correct results by chance.
- Correct in all of 800 cases: contiguous order; stride 1; kernels 2x2, 3x3, 5x5; 1x1 with padding; grouped
  and depthwise convolutions (groups of 1 to 8 channels); bfloat16; forward passes.

The usual networks of torchvision and timm have no such layer. MobileOne, RepVGG, FastViT, GhostNetV3 and
gernet_s have such layers, in branches parallel to 3x3 convolutions.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from harness.backbones.groups import Backbone
from harness.core.errors import UserError

FEWEST = 16
"""Number of input channels per group from which a strided 1x1 convolution is correct on any CPU."""
ALLOWED = 1e-2
"""Largest allowed relative difference of a tensor's gradient; the observed errors were 14 % and more."""
DRAWS = 3


def memory_format(model: nn.Module, device: torch.device) -> torch.memory_format:
    """Channels-last order; on a CPU contiguous order if the network has a layer that needs it."""
    if device.type == "cpu" and any(_is_at_risk(m) for m in model.modules()):
        return torch.contiguous_format
    return torch.channels_last


def _is_at_risk(module: nn.Module) -> bool:
    """Whether channels-last order may give wrong gradients. Grouped convolutions are included, although none
    was observed to fail."""
    return (
        isinstance(module, nn.Conv2d)
        and module.kernel_size == (1, 1)
        and max(module.stride) > 1
        and module.in_channels // module.groups < FEWEST
    )


def check_gradients(backbone: Backbone, name: str) -> None:
    """Compare the gradients of one step with those in contiguous order, on two random examples; the network
    does not change.

    The network is in eval(), so that nothing is random. Rounding may move a value across the kink of a
    ReLU, which in a deep network with few pixels can change a gradient by one per cent; with other images,
    the gradients then agree. A real error occurs for all images, and only in one of the orders.

    Args:
        backbone: the network.
        name: name of the network, for the message.

    Raises:
        UserError: if this machine computes wrong gradients.
    """
    if backbone.layout != torch.channels_last:
        return
    for draw in range(DRAWS):
        images = _images(backbone, draw)
        wanted = _gradients(backbone.model, images, torch.contiguous_format)
        found = _gradients(backbone.model, images, torch.channels_last)
        worst, where = _difference(found, wanted)
        if worst <= ALLOWED:
            return
    truth = _gradients(backbone.model, images, torch.contiguous_format, torch.float64)
    if _difference(wanted, truth)[0] <= ALLOWED:  # otherwise both orders differ by rounding
        raise UserError(
            f"backbone {name} on {backbone.input}: torch {torch.__version__} computes wrong gradients on "
            f"this {'CPU' if backbone.device.type == 'cpu' else 'device'} (in channels-last order, that of "
            f"{where} is wrong by {worst:.0%}); use another backbone, device or version of torch"
        )


def _images(backbone: Backbone, seed: int) -> torch.Tensor:
    return backbone.prepared(backbone.input.random(2, torch.Generator().manual_seed(seed)))


def _gradients(
    model: nn.Module,
    images: torch.Tensor,
    order: torch.memory_format,
    dtype: torch.dtype = torch.float32,
) -> dict[str, torch.Tensor]:
    """Name of a parameter -> gradient of a random linear combination of the logits."""
    network = copy.deepcopy(model).eval().requires_grad_(True).to(dtype).to(memory_format=order)
    where = next(network.parameters()).device
    with torch.enable_grad():
        logits = network(images.to(where, dtype).contiguous(memory_format=order))
        weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))
        (logits * weights.to(where, dtype)).sum().backward()
    return {
        name: parameter.grad.double().contiguous()
        for name, parameter in network.named_parameters()
        if parameter.grad is not None
    }


def _difference(
    found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]
) -> tuple[float, str]:
    """The largest relative difference of a gradient, and the name of its parameter. Where a gradient is
    negligible, and thus mostly rounding, the difference is relative to the largest gradient."""
    sizes = {name: float(gradient.norm()) for name, gradient in wanted.items()}
    least = 1e-4 * max(sizes.values(), default=0.0) + 1e-30
    differences = {
        name: float((found[name] - gradient).norm()) / max(sizes[name], least)
        for name, gradient in wanted.items()
    }
    where = max(differences, key=lambda n: differences[n], default="")
    return differences.get(where, 0.0), where
