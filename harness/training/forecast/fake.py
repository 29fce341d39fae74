"""Networks of fake tensors (shapes without data), which compute as on an accelerator."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

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
        if isinstance(module, nn.RNNBase):  # which keeps a list of its weights
            module._flat_weights = [module._parameters[n] for n in module._flat_weights_names]
    return Fake(mode, dataclasses.replace(backbone, groups=groups))


class Undrawn(TorchDispatchMode):
    """Sets weights to zero instead of drawing them, which takes most of the time of building a network. They
    cannot stay as they are in memory: `trunc_normal_` of torch 2.14 draws again until all are in range."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        drawn = (torch.ops.aten.uniform_, torch.ops.aten.normal_, torch.ops.aten.erfinv_)
        return args[0].zero_() if func.overloadpacket in drawn else func(*args, **(kwargs or {}))


class Workspaces(TorchDispatchMode):
    """What a recurrent layer keeps for its backward pass, which fake tensors leave out: as much as on the
    CPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if func.overloadpacket is torch.ops.aten.mkldnn_rnn_layer:
            shapes = tuple(tuple(a.shape) if isinstance(a, torch.Tensor) else a for a in args)
            kept = _workspace(shapes[:7], tuple(shapes[7:8]), tuple(args[9:]))
            if kept:
                made = (*made[:3], made[0].new_empty(kept, dtype=torch.uint8))
        return made


@lru_cache(maxsize=64)
def _workspace(
    shapes: tuple[tuple[int, ...], ...], direction: tuple[bool, ...], settings: tuple[Any, ...]
) -> int:
    """Bytes of the workspace of a recurrent layer, from running it once on zeros."""
    with _disable_current_modes():
        tensors = [torch.zeros(shape) for shape in shapes]
        made = torch.ops.aten.mkldnn_rnn_layer(*tensors, *direction, [], *settings)
        return 0 if made[3] is None else int(made[3].untyped_storage().nbytes())


class AcceleratorNorms(TorchFunctionMode):
    """Layer and group norms in float32 under autocast, as on CUDA; on the CPU, autocast leaves them in
    bfloat16 (torch's "Automatic mixed precision" page, op eligibility)."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if args and func in (F.layer_norm, F.group_norm) and torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return func(args[0].float(), *args[1:], **(kwargs or {}))
        return func(*args, **(kwargs or {}))
