"""Which parts of the network learn, and how fast? Each answer is a strategy.

A strategy is a row of learning-rate scales per epoch: one number per layer group, stem first and
head last; None is frozen. Nothing here knows torch, so every strategy can be read as a table:

    python -c "from harness.transfer import *; print(GradualUnfreezing(every=2).lr_scales(4, epoch=3))"
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

Scales = tuple[float | None, ...]
"""One learning-rate scale per layer group, stem to head; None is frozen."""

Scalar = None | bool | int | float | str


@dataclass(frozen=True)
class Strategy(ABC):
    """One way to adapt a pretrained network: (num_groups, epoch) -> one scale per group."""

    @abstractmethod
    def lr_scales(self, num_groups: int, epoch: int) -> Scales:
        """The scales of one epoch.

        Args:
            num_groups: layer groups of the backbone, the head included (at least 2).
            epoch: 0 for the first.

        Returns:
            `num_groups` scales that multiply the trial's learning rate, stem first, head last.
        """


def _tail(num_groups: int, trained: int) -> Scales:
    """The last `trained` groups at scale 1, the others frozen."""
    trained = min(trained, num_groups)
    return (None,) * (num_groups - trained) + (1.0,) * trained


@final
@dataclass(frozen=True)
class LinearProbe(Strategy):
    """Train the head alone on frozen features (Alain & Bengio 2016). One forward pass through the
    backbone per image, no backward pass through it: the cheapest strategy that takes gradient steps."""

    def lr_scales(self, num_groups: int, epoch: int) -> Scales:
        return _tail(num_groups, 1)


@final
@dataclass(frozen=True)
class LastBlock(Strategy):
    """Train the head and the last layer group (Yosinski et al. 2014, with the cut at the last block).
    Costs a linear probe plus the backward pass of one block."""

    def lr_scales(self, num_groups: int, epoch: int) -> Scales:
        return _tail(num_groups, 2)


@final
@dataclass(frozen=True)
class FullFineTune(Strategy):
    """Train everything at one rate: the common default, and the most expensive in time and memory."""

    def lr_scales(self, num_groups: int, epoch: int) -> Scales:
        return _tail(num_groups, num_groups)


@final
@dataclass(frozen=True)
class DiscriminativeLR(Strategy):
    """Train everything, each group `decay` times slower than the one above it (Howard & Ruder 2018,
    ULMFiT). Costs a full fine-tune."""

    decay: float = 0.75

    def __post_init__(self) -> None:
        if not 0 < self.decay <= 1:
            raise ValueError(f"DiscriminativeLR: decay must be in (0, 1], got {self.decay}")

    def lr_scales(self, num_groups: int, epoch: int) -> Scales:
        return tuple(self.decay ** (num_groups - 1 - g) for g in range(num_groups))


@final
@dataclass(frozen=True)
class GradualUnfreezing(Strategy):
    """Start with the head and thaw one more group, from the top, after every `every` epochs (Howard &
    Ruder 2018, ULMFiT). Costs between a linear probe and a full fine-tune, growing by epoch."""

    every: int = 1

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"GradualUnfreezing: every must be at least 1 epoch, got {self.every}")

    def lr_scales(self, num_groups: int, epoch: int) -> Scales:
        return _tail(num_groups, 1 + epoch // self.every)


def to_flat(strategy: Strategy) -> dict[str, Scalar]:
    """The strategy as flat entries, e.g. {"strategy": "DiscriminativeLR", "strategy.decay": 0.75}."""
    fields = {f"strategy.{f.name}": getattr(strategy, f.name) for f in dataclasses.fields(strategy)}
    return {"strategy": type(strategy).__name__, **fields}


def names() -> dict[str, type[Strategy]]:
    """Every strategy by its class name."""
    return {cls.__name__: cls for cls in Strategy.__subclasses__()}
