"""Networks of fake tensors (shapes without data), which compute as on an accelerator."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from harness.backbones import Backbone, build
from harness.core.spec import Head


@dataclass(frozen=True)
class Fake:
    """A backbone of fake tensors, and their mode."""

    mode: FakeTensorMode
    backbone: Backbone


@lru_cache(maxsize=4)
def fake_backbone(
    name: str,
    num_classes: int,
    resolution: int | None,
    lora_rank: int,
    head: Head,
    depth: int | None,
) -> Fake:
    """The backbone with fake parameters and buffers. It is first built with real ones, because some networks
    compute settings from tensors when they are created; from scratch, because weights do not matter."""
    with Undrawn():  # type: ignore[no-untyped-call]
        backbone = build(
            name,
            "scratch",
            num_classes,
            0,
            resolution=resolution,
            lora_rank=lora_rank,
            head=head,
            depth=depth,
        )
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    model = backbone.model
    # By identity, so that a parameter that two modules share stays shared.
    parameters = {
        id(p): nn.Parameter(mode.from_tensor(p.detach()), requires_grad=False)
        for p in model.parameters()
    }
    buffers = {id(b): mode.from_tensor(b) for b in model.buffers()}
    groups = tuple(
        dataclasses.replace(
            group,
            parameters={n: parameters[id(p)] for n, p in group.parameters.items()},
            buffers={n: buffers[id(b)] for n, b in group.buffers.items()},
        )
        for group in backbone.groups
    )
    for module in model.modules():
        module._parameters |= {
            n: parameters[id(p)] for n, p in module._parameters.items() if p is not None
        }
        module._buffers |= {n: buffers[id(b)] for n, b in module._buffers.items() if b is not None}
    return Fake(mode, dataclasses.replace(backbone, groups=groups))


class Undrawn(TorchDispatchMode):
    """Sets weights to zero instead of drawing them, which takes most of the time of building a network. They
    cannot stay as they are in memory: `trunc_normal_` of torch 2.14 draws again until all are in range."""

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        drawn = (torch.ops.aten.uniform_, torch.ops.aten.normal_, torch.ops.aten.erfinv_)
        return args[0].zero_() if func.overloadpacket in drawn else func(*args, **(kwargs or {}))


class AcceleratorNorms(TorchFunctionMode):
    """Layer and group norms in float32 under autocast, as on CUDA; on the CPU, autocast leaves them in
    bfloat16 (torch's "Automatic mixed precision" page, op eligibility)."""

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if args and func in (F.layer_norm, F.group_norm) and torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return func(args[0].float(), *args[1:], **(kwargs or {}))
        return func(*args, **(kwargs or {}))
