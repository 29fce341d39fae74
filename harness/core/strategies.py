"""Strategies: which layer groups train, and how fast, at each epoch.

A strategy is a row of learning-rate scales per epoch: one number per layer group, stem first and
head last; None is frozen. This module does not need torch, so every strategy can be printed as a table:

    python -c "from harness.core.strategies import *; print(GradualUnfreezing(every=2).lr_scales(4, epoch=3))"
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, final

from harness.core.errors import UserError

Scales = tuple[float | None, ...]
"""One learning-rate scale per layer group, stem to head; None is frozen."""

Scalar = None | bool | int | float | str


Tuned = Literal["all", "norm", "bias", "lora"]
"""Which parameters of an unfrozen group train; in the head, all of them do."""
Classifier = Literal["head", "logistic", "knn"]
"""The classifier: the network's own head, or a scikit-learn model on frozen features."""


def _hides_ours(cls: type[Strategy]) -> bool:
    return cls.__module__ != __name__ and cls.__name__ in globals()


@dataclass(frozen=True)
class Strategy(ABC):
    """One way to adapt a pretrained network: (num_groups, epoch) -> one scale per group.

    Whatever cannot be expressed by learning rates is in `tuned`, `classifier`, `l2_sp` and `lora_rank`.
    """

    tuned: ClassVar[Tuned] = "all"

    def __init_subclass__(cls) -> None:
        """Raises UserError for the name of a strategy of this module: recorded runs would name either."""
        if _hides_ours(cls):
            raise UserError(
                f"strategy {cls.__name__} in {cls.__module__}: the harness already has one of that name; "
                "choose another"
            )

    @property
    def classifier(self) -> Classifier:
        """The classifier."""
        return "head"

    @property
    def l2_sp(self) -> float:
        """Strength of the L2-SP penalty on the distance to the pretrained weights; 0 means no penalty, and
        with infinity the weights do not change."""
        return 0.0

    @property
    def lora_rank(self) -> int:
        """Rank of the low-rank adapters in attention layers; 0 means no adapters."""
        return 0

    @abstractmethod
    def lr_scales(self, num_groups: int, epoch: int) -> Scales:
        """The scales of one epoch.

        Args:
            num_groups: number of layer groups of the backbone, including the head (at least 2).
            epoch: 0 for the first epoch.

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
    """Train only the head on frozen features (Alain & Bengio 2016). The cheapest strategy with gradient
    steps: one forward pass through the backbone per image, and no backward pass."""

    def lr_scales(self, num_groups: int, epoch: int) -> Scales:
        return _tail(num_groups, 1)


@final
@dataclass(frozen=True)
class LastBlock(Strategy):
    """Train the head and the last layer group (Yosinski et al. 2014, with the cut at the last block).
    Cost: a linear probe plus the backward pass of one block."""

    def lr_scales(self, num_groups: int, epoch: int) -> Scales:
        return _tail(num_groups, 2)


@final
@dataclass(frozen=True)
class FullFineTune(Strategy):
    """Train all groups at the same rate: the common default, and the most expensive in time and memory."""

    def lr_scales(self, num_groups: int, epoch: int) -> Scales:
        return _tail(num_groups, num_groups)


@final
@dataclass(frozen=True)
class DiscriminativeLR(Strategy):
    """Train all groups, each at `decay` times the rate of the next group towards the head (Howard & Ruder
    2018, ULMFiT). Cost: as full fine-tuning."""

    decay: float = 0.75

    def __post_init__(self) -> None:
        if not 0 < self.decay <= 1:
            raise ValueError(f"DiscriminativeLR: decay must be in (0, 1], got {self.decay}")

    def lr_scales(self, num_groups: int, epoch: int) -> Scales:
        return tuple(self.decay ** (num_groups - 1 - g) for g in range(num_groups))


@final
@dataclass(frozen=True)
class GradualUnfreezing(Strategy):
    """Start with the head and unfreeze one more group, from the head down, after every `every` epochs (Howard
    & Ruder 2018, ULMFiT). Cost: grows by epoch from a linear probe towards full fine-tuning."""

    every: int = 1

    def __post_init__(self) -> None:
        _at_least_one(self, "every", self.every)

    def lr_scales(self, num_groups: int, epoch: int) -> Scales:
        return _tail(num_groups, 1 + epoch // self.every)


@final
@dataclass(frozen=True)
class LastK(Strategy):
    """Train the head and the last `k` - 1 groups (Yosinski et al. 2014): k=1 is a linear probe, k=2 the
    last block. Cost: a linear probe plus the backward pass of the trained groups."""

    k: int = 3

    def __post_init__(self) -> None:
        _at_least_one(self, "k", self.k)

    def lr_scales(self, num_groups: int, epoch: int) -> Scales:
        return _tail(num_groups, self.k)


@final
@dataclass(frozen=True)
class Surgical(Strategy):
    """Train a single block, and the head because it is new (Lee et al. 2022, surgical fine-tuning).
    `block` counts from the stem (0), or back from the head (-2 is the last block). Cost: an early block needs
    the backward pass of all groups after it."""

    block: int = 0

    def lr_scales(self, num_groups: int, epoch: int) -> Scales:
        at = self.block % num_groups if -num_groups <= self.block < num_groups else None
        if at is None:
            raise ValueError(f"Surgical: block {self.block} of a backbone with {num_groups} groups")
        return tuple(1.0 if g in (at, num_groups - 1) else None for g in range(num_groups))


@final
@dataclass(frozen=True)
class TwoPhase(Strategy):
    """The usual tutorial recipe (Keras, "Transfer learning & fine-tuning"): train only the head for
    `head_epochs`, then the head and the last block at `lower` times the rate. Cost: a linear probe, then
    LastBlock."""

    head_epochs: int = 2
    lower: float = 0.1

    def __post_init__(self) -> None:
        _at_least_one(self, "head_epochs", self.head_epochs)
        _positive(self, "lower", self.lower)

    def lr_scales(self, num_groups: int, epoch: int) -> Scales:
        return _probe_then(self, num_groups, epoch, trained=2)


@final
@dataclass(frozen=True)
class LPFT(Strategy):
    """Linear probe first, then all groups at `lower` times the rate (Kumar et al. 2022, LP-FT), so that a
    random head does not distort the features. Cost: a linear probe, then full fine-tuning."""

    head_epochs: int = 2
    lower: float = 0.1

    def __post_init__(self) -> None:
        _at_least_one(self, "head_epochs", self.head_epochs)
        _positive(self, "lower", self.lower)

    def lr_scales(self, num_groups: int, epoch: int) -> Scales:
        return _probe_then(self, num_groups, epoch, trained=num_groups)


@final
@dataclass(frozen=True)
class NormOnly(Strategy):
    """Train the scales and shifts of normalisation layers, and the head (Frankle et al. 2021). Few
    parameters and little optimiser state, but the same backward pass as full fine-tuning."""

    tuned: ClassVar[Tuned] = "norm"

    def lr_scales(self, num_groups: int, epoch: int) -> Scales:
        return _tail(num_groups, num_groups)


@final
@dataclass(frozen=True)
class BiasOnly(Strategy):
    """Train the biases, including those of normalisation layers, and the head (Ben Zaken et al. 2022,
    BitFit). No gradients of weights are stored, but the backward pass reaches the stem."""

    tuned: ClassVar[Tuned] = "bias"

    def lr_scales(self, num_groups: int, epoch: int) -> Scales:
        return _tail(num_groups, num_groups)


@final
@dataclass(frozen=True)
class L2SP(Strategy):
    """Full fine-tuning with a penalty on the distance to the pretrained weights instead of weight decay (Li
    et al. 2018, L2-SP), applied as a proximal step after each update so that any `weight` is stable. Cost: as
    full fine-tuning, plus a second copy of the weights."""

    weight: float = 0.1

    def __post_init__(self) -> None:
        _positive(self, "weight", self.weight)

    @property
    def l2_sp(self) -> float:
        return self.weight

    def lr_scales(self, num_groups: int, epoch: int) -> Scales:
        return _tail(num_groups, num_groups)


@final
@dataclass(frozen=True)
class LoRA(Strategy):
    """Train low-rank adapters in the attention layers of a ViT, and the head (Hu et al. 2022). Networks of
    timm need the PEFT library (extra `lora`). Optimiser state for about 1 % of the parameters; activations as
    in full fine-tuning."""

    tuned: ClassVar[Tuned] = "lora"
    rank: int = 8

    def __post_init__(self) -> None:
        _at_least_one(self, "rank", self.rank)

    @property
    def lora_rank(self) -> int:
        return self.rank

    def lr_scales(self, num_groups: int, epoch: int) -> Scales:
        return _tail(num_groups, num_groups)


@final
@dataclass(frozen=True)
class FeatureTransfer(Strategy):
    """Fit a scikit-learn classifier on frozen features, without gradient steps (Donahue et al. 2014, DeCAF):
    logistic regression or k nearest neighbours, with C or k chosen on validation. Cost: one forward pass per
    image."""

    classifier: Literal["logistic", "knn"] = "logistic"

    def __post_init__(self) -> None:
        if self.classifier not in ("logistic", "knn"):
            raise ValueError(
                f"FeatureTransfer: classifier must be logistic or knn, got {self.classifier!r}"
            )

    def lr_scales(self, num_groups: int, epoch: int) -> Scales:
        return (None,) * num_groups


def _probe_then(strategy: TwoPhase | LPFT, num_groups: int, epoch: int, trained: int) -> Scales:
    """Only the head at first, then the last `trained` groups at the lower rate."""
    if epoch < strategy.head_epochs:
        return _tail(num_groups, 1)
    return tuple(None if s is None else strategy.lower for s in _tail(num_groups, trained))


def _at_least_one(strategy: Strategy, name: str, value: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(
            f"{type(strategy).__name__}: {name} must be a whole number of at least 1, got {value}"
        )


def _positive(strategy: Strategy, name: str, value: float) -> None:
    if not value > 0 or math.isnan(value):
        raise ValueError(f"{type(strategy).__name__}: {name} must be above 0, got {value}")


def to_flat(strategy: Strategy) -> dict[str, Scalar]:
    """The strategy as flat entries, e.g. {"strategy": "DiscriminativeLR", "strategy.decay": 0.75}."""
    fields: dict[str, Scalar] = {}
    for f in dataclasses.fields(strategy):
        value = getattr(strategy, f.name)
        # Databases store scalars; anything else is stored as its repr().
        scalar = value is None or isinstance(value, (bool, int, float, str))
        fields[f"strategy.{f.name}"] = value if scalar else repr(value)
    return {"strategy": type(strategy).__name__, **fields}


def names() -> dict[str, type[Strategy]]:
    """Every strategy by its class name, subclasses of a strategy included."""
    found, todo = dict[str, type[Strategy]](), Strategy.__subclasses__()
    while todo:
        cls = todo.pop(0)
        if not _hides_ours(cls):
            found[cls.__name__] = cls
        todo += cls.__subclasses__()
    return found


if not TYPE_CHECKING:  # otherwise type checkers would accept any name

    def __getattr__(name: str) -> type[Strategy]:
        """For a misspelt strategy in a study file, the error lists the known ones."""
        if name.startswith("_"):
            raise AttributeError(name)
        raise AttributeError(f"unknown strategy {name}; known: {', '.join(sorted(names()))}")
