"""Results of a trial: one value per epoch, the outcome and metrics at the end, and the test predictions."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import nan
from typing import TYPE_CHECKING, Literal, get_args

from harness.core.selection import METRICS

if TYPE_CHECKING:
    import numpy as np

Outcome = Literal[
    "complete", "pruned", "diverged", "oom", "timeout", "audit_failed", "crashed", "killed"
]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
BROKEN: frozenset[str] = frozenset({"crashed", "audit_failed"})
RETRIED: frozenset[str] = BROKEN | {"killed"}
"""Outcomes that say nothing about the configuration; the next run of the command tries the slot again."""
WAITED = "waited_share"
"""Metric of a run: share of its time that it waited for a processor."""
BUSY = 0.1
"""Above this share other programs slowed a run down: alone on a machine it is below 1 %."""
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

    val_scores: Mapping[str, float] = field(default_factory=dict)
    """Further metrics on the validation images, by name; what is not defined for them is absent."""

    @property
    def validation(self) -> dict[str, float]:
        """Every metric on the validation images, under the names by which they are recorded."""
        further = {METRICS[name].validation: value for name, value in self.val_scores.items()}
        return {"val_loss": self.val_loss, "val_accuracy": self.val_accuracy, **further}

    @classmethod
    def of_merit(cls, epoch: int, metric: str, merit: float) -> EpochResult:
        """An epoch of which only the merit of one metric is known, because the process died; other values are
        NaN."""
        value = -merit if METRICS[metric].less_is_better else merit
        known = {"val_loss": nan, "val_accuracy": nan, METRICS[metric].validation: value}
        further = {} if metric in ("accuracy", "log_loss") else {metric: value}
        return cls(epoch, nan, known["val_loss"], known["val_accuracy"], nan, nan, further)


PREDICTIONS_FILE = "predictions.parquet"
"""Name of the artifact with the test predictions of a run."""
CLASS_COLUMN = "p."
"""A column with the probability of one class has this name and the number of the class."""
OPTIONAL_COLUMNS = ("group", "file", "image")
MOST_PROBABILITIES = 5_000_000
"""Largest number of class probabilities that are kept of one repeat; 10,000 images of 500 classes."""

MOST_MISTAKES = 24
"""Largest number of misclassified images that are kept of one repeat."""


@dataclass(frozen=True)
class Predictions:
    """Test predictions of one repeat, one entry per test example.

    Attributes:
        example: (n,) position of the example in the target, equal between repeats.
        label: (n,) true class.
        predicted: (n,) class of highest probability.
        probability: (n,) probability given to the true class.
        confidence: (n,) probability given to the predicted class.
        probabilities: (n, classes) probability given to each class; None if there are more than
            `MOST_PROBABILITIES` numbers.
        group: (n,) group (patient, sequence, product) of the example; None if examples stand alone.
        file: (n,) path of the example's file; None if examples are not in files of their own.
        image: (n,) the example as a small JPEG file for the `MOST_MISTAKES` most confident mistakes, None for
            all others; None without mistakes.
    """

    example: np.ndarray
    label: np.ndarray
    predicted: np.ndarray
    probability: np.ndarray
    confidence: np.ndarray
    probabilities: np.ndarray | None = None
    group: np.ndarray | None = None
    file: np.ndarray | None = None
    image: np.ndarray | None = None


@dataclass(frozen=True)
class TrialResult:
    """How a trial ended. `metrics` contains only what was measured; what was not is absent, never 0."""

    outcome: Outcome
    metrics: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""
    predictions: Predictions | None = None
    notes: Mapping[str, str] = field(default_factory=dict)
    """Further information by name, e.g. "prefix": which frozen outputs were cached."""


def predictions_parquet(predictions: Predictions) -> bytes:
    """The predictions as a Parquet file with one row per test example.

    Its columns are example, label, predicted, probability, confidence, group, file and image if there are
    any, and a column per class, "p.0", "p.1" and so on, if all probabilities are kept. Probabilities are
    float32.
    """
    import pyarrow as pa  # only for repeats
    from pyarrow import parquet

    columns = {name: getattr(predictions, name) for name in ("example", "label", "predicted")}
    columns |= {
        name: getattr(predictions, name).astype("float32") for name in ("probability", "confidence")
    }
    for name in OPTIONAL_COLUMNS:
        if (values := getattr(predictions, name)) is not None:
            columns[name] = values
    if predictions.probabilities is not None:
        by_class = predictions.probabilities.astype("float32").T
        columns |= {f"{CLASS_COLUMN}{k}": column for k, column in enumerate(by_class)}
    buffer = io.BytesIO()
    parquet.write_table(pa.table(columns), buffer, compression="zstd")
    return buffer.getvalue()
