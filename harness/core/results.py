"""Results of a trial: one value per epoch, the outcome and metrics at the end, and the test predictions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import nan
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    import numpy as np

Outcome = Literal[
    "complete", "pruned", "diverged", "oom", "timeout", "audit_failed", "crashed", "killed"
]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
BROKEN: frozenset[str] = frozenset({"crashed", "audit_failed"})
RETRIED: frozenset[str] = BROKEN | {"killed"}
"""Outcomes that say nothing about the configuration; the next run of the command tries the slot again."""
NOT_RUN = "not run: "
"""The reason of a trial that was not run because of its memory forecast begins with this. Such trials do not
count as failures in a row, and their slots are run if the limit is raised."""


@dataclass(frozen=True)
class EpochResult:
    """Results of one epoch. Losses are mean cross-entropies in nats, accuracies shares in [0, 1]."""

    epoch: int
    train_loss: float
    val_loss: float
    val_accuracy: float
    train_seconds: float
    """Cold-equivalent seconds of training since the trial began, without evaluation and data preparation:
    what the strategy would take with an empty cache. Outputs of frozen groups that come from the cache count
    with the time that was measured when they were computed."""
    marginal_seconds: float
    """The same, but counting only the time that this trial itself spent."""

    @classmethod
    def of_accuracy(cls, epoch: int, val_accuracy: float) -> EpochResult:
        """An epoch of which only the accuracy is known, because the process died; other values are NaN."""
        return cls(epoch, nan, nan, val_accuracy, nan, nan)


@dataclass(frozen=True)
class Predictions:
    """Test predictions of one repeat, one entry per test example.

    Attributes:
        example: (n,) position of the example in the target, equal between repeats.
        label: (n,) true class.
        predicted: (n,) class of highest probability.
        probability: (n,) probability given to the true class.
        group: (n,) group (patient, sequence, product) of the example; None if examples stand alone.
    """

    example: np.ndarray
    label: np.ndarray
    predicted: np.ndarray
    probability: np.ndarray
    group: np.ndarray | None = None


@dataclass(frozen=True)
class TrialResult:
    """How a trial ended. `metrics` contains only what was measured; what was not is absent, never 0."""

    outcome: Outcome
    metrics: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""
    predictions: Predictions | None = None
    notes: Mapping[str, str] = field(default_factory=dict)
    """Further information by name, e.g. "prefix": which frozen outputs were cached."""


def predictions_csv(predictions: Predictions) -> str:
    """One line per test example: example, label, predicted class, probability of the true class, and the
    group if there are groups."""
    lines = ["example,label,predicted,probability"]
    lines += [
        f"{e},{y},{p},{q:.6g}"
        for e, y, p, q in zip(
            predictions.example,
            predictions.label,
            predictions.predicted,
            predictions.probability,
            strict=True,
        )
    ]
    if predictions.group is not None:
        groups = ("group", *predictions.group)
        lines = [f"{line},{group}" for line, group in zip(lines, groups, strict=True)]
    return "\n".join(lines) + "\n"
