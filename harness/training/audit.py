"""Check in every trial that frozen tensors did not change and that trained ones did.

A violation raises AuditFailed, which ends the trial with outcome audit_failed, so that a strategy that was
not applied as defined never enters a comparison.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from harness.backbones import Group
from harness.core.strategies import Scales
from harness.training.checkpoint import BadCheckpoint


class AuditFailed(Exception):
    """The trial did not follow its strategy."""


def digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names and bytes: equal only for bitwise equal tensors.

    Checkpoints and caches contain this hash, so it must not be replaced with `weights.tensors_sha256`.
    """
    hashed = hashlib.sha256()
    for name, tensor in tensors.items():
        hashed.update(name.encode())
        flat = tensor.detach().cpu().contiguous().flatten()
        hashed.update(flat.view(torch.uint8).numpy().tobytes())
    return hashed.hexdigest()


class Audit:
    """Checks the groups of one trial.

    Args:
        groups: the backbone's groups before the first step.
        tuned: names of the parameters that may train; None means all.
    """

    def __init__(self, groups: Sequence[Group], tuned: frozenset[str] | None = None) -> None:
        self._groups = groups
        self._tuned = frozenset(n for g in groups for n in g.parameters) if tuned is None else tuned
        self._frozen: dict[int, str] = {}
        self._start: dict[int, tuple[str, str]] = {}

    def begin_epoch(self, scales: Scales) -> None:
        """Call with the epoch's scales before its first step.

        Raises:
            AuditFailed: if a group that was frozen until now has changed.
        """
        for g, scale in enumerate(scales):
            if scale is None:
                if g not in self._frozen:
                    self._frozen[g] = self._digest(g)
            else:
                if g in self._frozen:
                    self._check_frozen(g)
                    del self._frozen[g]
                if g not in self._start:
                    self._start[g] = self._parts(g)

    def check_rates(
        self, applied: Mapping[int, set[float]], scales: Scales, rate: Sequence[float]
    ) -> None:
        """Compare the optimiser's own learning rates with the strategy's.

        Args:
            applied: group -> the learning rates of its parameters in the optimiser.
            scales: the strategy's scales of this epoch.
            rate: for each group, the learning rate at this step for scale 1, including the schedule.
        """
        for g, scale in enumerate(scales):
            want = 0.0 if scale is None else scale * rate[g]
            if any(not math.isclose(lr, want, rel_tol=1e-9) for lr in applied.get(g, {want})):
                raise AuditFailed(
                    f"group {self._groups[g].name}: learning rate {applied[g]} was applied, but the "
                    f"strategy asks for {want}"
                )

    def finish(self) -> None:
        """Call after the last step.

        Raises:
            AuditFailed: if a frozen group changed, or a group that should have been trained did not.
        """
        for g in self._frozen:
            self._check_frozen(g)
        for g, start in self._start.items():
            tuned, untuned = self._parts(g)
            if tuned == start[0] and self._tuned & self._groups[g].parameters.keys():
                raise AuditFailed(
                    f"group {self._groups[g].name} should have been trained but did not change"
                )
            if untuned != start[1]:
                raise AuditFailed(
                    f"group {self._groups[g].name}: a parameter that the strategy does not tune changed"
                )

    def state_dict(self) -> dict[str, Any]:
        """The hashes of the groups that are frozen now, and the initial hashes of the trained groups."""
        return {"frozen": dict(self._frozen), "start": dict(self._start)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint; call this while the groups are as before the first step.

        Raises:
            BadCheckpoint: if a trained group had other initial weights than now.
        """
        for g, start in state["start"].items():
            if self._parts(g) != start:
                raise BadCheckpoint(
                    f"group {self._groups[g].name} starts from other weights than when the checkpoint was "
                    "made"
                )
        self._frozen, self._start = dict(state["frozen"]), dict(state["start"])

    def frozen_digest(self, depth: int) -> str:
        """Hash of all tensors of the first `depth` groups, which are frozen now."""
        return hashlib.sha256("".join(self._frozen[g] for g in range(depth)).encode()).hexdigest()

    def _parts(self, g: int) -> tuple[str, str]:
        """Hashes of the parameters of a group that the strategy trains, and of the other ones."""
        parts: tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]] = ({}, {})
        for name, parameter in self._groups[g].parameters.items():
            parts[name not in self._tuned][name] = parameter
        return digest(parts[0]), digest(parts[1])

    def _digest(self, g: int) -> str:
        return digest({**self._groups[g].parameters, **self._groups[g].buffers})

    def _check_frozen(self, g: int) -> None:
        if self._digest(g) != self._frozen[g]:
            raise AuditFailed(f"group {self._groups[g].name} was frozen but changed")
