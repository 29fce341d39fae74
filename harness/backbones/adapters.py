"""Low-rank adapters (LoRA) in attention layers, through the PEFT library."""

from __future__ import annotations

from timm.layers.attention import Attention
from timm.models.swin_transformer import WindowAttention
from torch import nn

from harness.core.errors import UserError

ATTENTION = ("qkv", "proj")
"""Linear layers of timm's attention blocks that get an adapter (W_q to W_o in Hu et al. 2022)."""


def add_lora(model: nn.Module, name: str, rank: int) -> nn.Module:
    """The model with adapters of that rank, with alpha = 2 x rank. They do not change its outputs at first
    (B = 0).

    Raises:
        UserError: if PEFT is not installed, or the network has no attention layers with the usual names.
    """
    layers = [
        f"{path}.{n}"
        for path, attention in model.named_modules()
        if isinstance(attention, (Attention, WindowAttention))
        for n, m in attention.named_children()
        if isinstance(m, nn.Linear) and n in ATTENTION
    ]
    if not layers:
        raise UserError(
            f"LoRA needs attention layers (qkv, proj), which {name} does not have; use a vit_*, deit_* or "
            "swin_* backbone of timm"
        )
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise UserError("LoRA needs the PEFT library: pip install -e '.[lora]'") from None
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=layers)
    adapted: nn.Module = inject_adapter_in_model(config, model)
    return adapted


def merge_adapters(model: nn.Module) -> nn.Module:
    """The model with its adapters merged into the layers that they adapt; unchanged if it has none."""
    for path, module in list(model.named_modules()):
        if hasattr(module, "lora_A"):
            module.merge()
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, module.get_base_layer())
    return model
