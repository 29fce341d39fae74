"""Low-rank adapters (LoRA) in attention layers.

In networks of timm and transformers through the PEFT library, which adapts layers that are called.
Torchvision's attention and WavLM's use the weights of their layers without calling them; there the weights
themselves are parametrised by torch.
"""

from __future__ import annotations

import math

import torch
from timm.layers.attention import Attention
from timm.models.swin_transformer import WindowAttention
from torch import nn
from torch.nn.utils import parametrize

from harness.backbones.encoders import Layer
from harness.core.errors import optional_library

ATTENTION = ("qkv", "proj")
"""Linear layers of timm's attention blocks that get an adapter (W_q to W_o in Hu et al. 2022)."""
WEIGHTS = {
    "MultiheadAttention": ("in_proj_weight", "out_proj.weight"),
    "ShiftedWindowAttention": ("qkv.weight", "proj.weight"),
    "WavLMAttention": ("q_proj.weight", "k_proj.weight", "v_proj.weight", "out_proj.weight"),
}
"""The same weights in torchvision's ViT and Swin and in WavLM of transformers, by class."""
ALPHA = 2
"""Scale of the adapters' outputs: alpha / rank."""


class LowRank(nn.Module):
    """A weight plus the product of two matrices of low rank, as PEFT initialises them.

    Args:
        weight: (out, in) matrix.
        rank: of the product.
    """

    def __init__(self, weight: torch.Tensor, rank: int) -> None:
        super().__init__()
        self.lora_A = nn.Parameter(weight.new_empty(rank, weight.shape[1]))
        self.lora_B = nn.Parameter(weight.new_zeros(weight.shape[0], rank))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + ALPHA * self.lora_B @ self.lora_A


def add_lora(model: nn.Module, rank: int) -> nn.Module:
    """The model with adapters of that rank, with alpha = 2 x rank. They do not change its outputs at first
    (B = 0). A network without attention layers with the usual names stays as it is.

    Raises:
        UserError: if PEFT is not installed.
    """
    weights = _weights(model)
    for module, weight in weights:
        parametrize.register_parametrization(
            module, weight, LowRank(getattr(module, weight).detach(), rank)
        )
    layers = _linear_layers(model)
    if weights or not layers:
        return model
    peft = optional_library("peft", "LoRA needs the PEFT library: pip install -e '.[lora]'")
    config = peft.LoraConfig(r=rank, lora_alpha=ALPHA * rank, target_modules=layers)
    adapted: nn.Module = peft.inject_adapter_in_model(config, model)
    return adapted


def _linear_layers(model: nn.Module) -> list[str]:
    """Names of the linear layers of attention: those in ATTENTION in timm, all in a model of transformers."""
    found = [
        f"{path}.{n}"
        for path, attention in model.named_modules()
        if isinstance(attention, (Attention, WindowAttention))
        for n, m in attention.named_children()
        if isinstance(m, nn.Linear) and n in ATTENTION
    ]
    attentions = [
        f"{start}.block.{path}."
        for start, layer in model.named_modules()
        if isinstance(layer, Layer)
        for path, m in layer.block.named_modules()
        if "Attention" in type(m).__name__
    ]
    linear = [path for path, m in model.named_modules() if isinstance(m, nn.Linear)]
    return found + [path for path in linear if path.startswith(tuple(attentions))]


def _weights(model: nn.Module) -> list[tuple[nn.Module, str]]:
    """The weights of attention layers that are used without calling them: module and name of each."""
    found = [
        (f"{path}.{weight}".rpartition("."))
        for path, module in model.named_modules()
        for kind in type(module).__mro__
        for weight in WEIGHTS.get(kind.__name__, ())
    ]
    return [(model.get_submodule(path), weight) for path, _, weight in found]


def merge_adapters(model: nn.Module) -> nn.Module:
    """The model with its adapters merged into the layers that they adapt; unchanged if it has none."""
    for path, module in list(model.named_modules()):
        if parametrize.is_parametrized(module):
            _merge(module)
        elif hasattr(module, "lora_A") and not isinstance(module, LowRank):
            module.merge()
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, module.get_base_layer())
    return model


def _merge(module: nn.Module) -> None:
    """Turn parametrised weights into plain ones. `remove_parametrizations` of torch would change the class
    of the module, which copies of it share."""
    names = [n for n, _ in module.get_submodule("parametrizations").named_children()]
    values = {name: getattr(module, name).detach() for name in names}
    module.__class__ = parametrize.type_before_parametrizations(module)
    del module.parametrizations
    for name, value in values.items():
        module.register_parameter(name, nn.Parameter(value))
