"""Optimiser with a learning-rate scale for each trained layer group, and a schedule by step."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from harness.backbones import Backbone
from harness.core.spec import TrialSpec
from harness.core.strategies import Scales

RANGE_LOWEST = 1e-6
"""Initial rate of a learning-rate range test, as a share of its highest rate."""


@dataclass(frozen=True)
class Schedule:
    """Share of the peak rate at each step.

    A group warms up linearly from the step in which it is unfrozen, because its Adam state is empty at first;
    the other factor depends only on the step.

    Attributes:
        steps: number of steps of the whole trial.
        warmup_steps: number of steps of a group's warm-up.
        kind: "cosine", to zero (Loshchilov & Hutter 2017); "constant"; "one_cycle", a cosine from 1/25 up to
            1 over 30 % of the steps, then down to 1/250,000 (Smith & Topin 2018, torch's defaults), in which
            only groups that are unfrozen later warm up; or "range", exponential growth from 1e-6 to 1, for
            the learning-rate range test (Smith 2017).
    """

    steps: int
    warmup_steps: int
    kind: Literal["cosine", "constant", "one_cycle", "range"] = "cosine"

    def factor(self, step: int, born: int) -> float:
        """Factor in (0, 1] at step `step` (from 0) for a group that was unfrozen before step `born`."""
        warm = min(1.0, (step - born + 1) / max(1, self.warmup_steps))
        if self.kind == "constant":
            return warm
        if self.kind == "range":
            return float(RANGE_LOWEST ** (1 - step / max(1, self.steps - 1)))
        if self.kind == "cosine":
            return warm * _cosine(1.0, 0.0, step / self.steps)
        top = max(1.0, 0.3 * self.steps - 1)
        if step <= top:
            cycle = _cosine(1 / 25, 1.0, step / top)
        else:
            cycle = _cosine(1.0, 1 / 25e4, (step - top) / max(1.0, self.steps - 1 - top))
        return cycle if born == 0 else warm * cycle


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * share))


class GroupedOptimizer:
    """A torch optimiser whose learning rates follow the layer groups.

    It contains all groups from the start. A frozen parameter has no gradient (None, not zero), so that
    neither moments nor weight decay are applied to it.

    Args:
        backbone: the model and its groups.
        spec: optimiser, peak rate, weight decay and strategy.
        schedule: share of the peak rate by step.
    """

    def __init__(self, backbone: Backbone, spec: TrialSpec, schedule: Schedule) -> None:
        self._backbone, self._schedule, self._lr = backbone, schedule, spec.lr
        self._tuned = backbone.tuned_names(spec.strategy.tuned)
        self._l2_sp = spec.strategy.l2_sp
        self._batch_norm = spec.batch_norm
        self._scales: Scales = ()
        self._born: dict[int, int] = {}
        self._anchors: dict[torch.nn.Parameter, torch.Tensor] = {}
        entries = self._entries(spec.weight_decay)
        if spec.optimizer == "adamw":
            self._torch: torch.optim.Optimizer = torch.optim.AdamW(entries, lr=spec.lr, fused=True)
        else:
            self._torch = torch.optim.SGD(entries, lr=spec.lr, momentum=0.9, fused=True)

    def _entries(self, weight_decay: float) -> list[dict[str, object]]:
        """Two parameter groups of torch per layer group, with and without decay; L2-SP replaces decay."""
        entries: list[dict[str, object]] = []
        last = len(self._backbone.groups) - 1
        for g, group in enumerate(self._backbone.groups):
            tuned = {n: p for n, p in group.parameters.items() if n in self._tuned}
            anchored = self._l2_sp > 0 and g < last
            if anchored:
                self._anchors |= {p: p.detach().clone() for p in tuned.values()}
            plain = {n for n, p in tuned.items() if anchored or self._never_decays(n, p)}
            decayed = [p for n, p in tuned.items() if n not in plain]
            for tensors, decay in (
                (decayed, weight_decay),
                ([tuned[n] for n in tuned if n in plain], 0.0),
            ):
                if tensors:
                    entries.append({"params": tensors, "weight_decay": decay, "group": g})
        return entries

    def _never_decays(self, name: str, parameter: torch.nn.Parameter) -> bool:
        return parameter.ndim <= 1 or name in self._backbone.no_decay or name.endswith(".bias")

    def begin_epoch(self, scales: Scales, step: int) -> None:
        """Freeze and unfreeze groups by the scales of an epoch; call this before its first step."""
        self._torch.zero_grad(set_to_none=True)
        self._scales = scales
        for g, (group, scale) in enumerate(zip(self._backbone.groups, scales, strict=True)):
            for name, parameter in group.parameters.items():
                parameter.requires_grad_(scale is not None and name in self._tuned)
            if scale is None:
                self._born.pop(g, None)
            else:
                self._born.setdefault(g, step)
        self._backbone.train_mode(self._born, self._follow_the_batch())

    def _follow_the_batch(self) -> list[int]:
        """Groups whose batch norms use the statistics of the batch, if they train."""
        if self._batch_norm == "train":
            return list(self._born)
        if self._batch_norm == "auto":
            return [g for g, born in self._born.items() if born == 0]
        return []

    def state_dict(self) -> dict[str, Any]:
        """Moments by the number of the parameter, and the step before which each group was unfrozen."""
        return {"moments": self._torch.state_dict()["state"], "born": dict(self._born)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state. Rates and decay are those of the spec, and L2-SP uses the weights that the
        network had when this optimiser was created."""
        entries = self._torch.state_dict()["param_groups"]
        moments = copy.deepcopy(state["moments"])  # torch would modify these tensors in training
        self._torch.load_state_dict({"state": moments, "param_groups": entries})
        self._born = dict(state["born"])

    def rate(self, step: int) -> list[float]:
        """For each group, the learning rate at this step for scale 1."""
        return [
            self._lr * self._schedule.factor(step, self._born.get(g, step))
            for g in range(len(self._scales))
        ]

    def step(self, loss: torch.Tensor, step: int) -> None:
        """One update from a scalar loss."""
        rate = self.rate(step)
        for entry in self._torch.param_groups:
            scale = self._scales[entry["group"]]
            entry["lr"] = 0.0 if scale is None else scale * rate[entry["group"]]
        loss.backward()
        self._torch.step()
        # Now rather than before the next step, so that they take no memory during its forward pass.
        self._torch.zero_grad(set_to_none=True)
        if self._anchors:
            self._pull_back()

    @torch.no_grad()
    def _pull_back(self) -> None:
        """The proximal step of pull/2 |w - w0|^2: w <- (w + lr pull w0) / (1 + lr pull)."""
        for entry in self._torch.param_groups:
            towards = 1 - 1 / (1 + entry["lr"] * self._l2_sp) if entry["lr"] > 0 else 0.0
            for parameter in entry["params"]:
                if parameter in self._anchors and towards:
                    parameter.lerp_(self._anchors[parameter], towards)

    def applied(self) -> dict[int, set[float]]:
        """Group -> the current learning rates of its parameters."""
        found: dict[int, set[float]] = {}
        for entry in self._torch.param_groups:
            found.setdefault(entry["group"], set()).add(float(entry["lr"]))
        return found


def batches(count: int, size: int, generator: torch.Generator) -> Sequence[torch.Tensor]:
    """Shuffled positions 0..count-1 in batches of `size`. A last batch of one image is merged with the one
    before, because batch norm cannot train on a single image."""
    return in_batches(torch.randperm(count, generator=generator), size)


def in_batches(positions: torch.Tensor, size: int) -> Sequence[torch.Tensor]:
    """Positions in batches of `size`, the last one merged with the one before if it is a single image."""
    parts = list(positions.split(size))
    if len(parts) > 1 and len(parts[-1]) == 1:
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts
