"""Compute metrics of predictions: from class probabilities, true classes and predicted classes.

All take (n,) labels and predicted classes, and (n, classes) probabilities. A metric that is not defined for
the given labels is absent, or NaN in an array; it is never 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BINS = 15
"""Bins of confidence, as in Guo et al. (2017)."""
Floats = NDArray[np.float64]


def scores(
    probabilities: np.ndarray, labels: np.ndarray, predicted: np.ndarray
) -> dict[str, float]:
    """Balanced accuracy, macro F1, AUROC, Brier score and expected calibration error, by name.

    AUROC is the mean over the classes of that of one class against the others. Brier's score is the sum over
    the classes, from 0 to 2, as in Brier (1950). Means over classes leave out classes without examples (F1:
    classes that are also never predicted).
    """
    found = by_class(confusion(labels, predicted, probabilities.shape[1]))
    rows = np.arange(len(labels))
    confidence, hit = probabilities[rows, predicted], labels == predicted
    wanted = np.zeros(probabilities.shape, np.float32)
    wanted[rows, labels] = 1
    squares = np.square(probabilities - wanted).sum(1, dtype=np.float64)
    values = {
        "balanced_accuracy": float(np.nanmean(found.recall)),
        "macro_f1": float(np.nanmean(found.f1)),
        "brier": float(squares.mean()),
        "ece": calibration(confidence, hit).error,
    }
    areas = aurocs(probabilities, labels)
    return values if np.isnan(areas).all() else values | {"auroc": float(np.nanmean(areas))}


def confusion(labels: np.ndarray, predicted: np.ndarray, classes: int) -> NDArray[np.int64]:
    """(classes, classes) number of examples by true class (rows) and predicted class (columns)."""
    pairs = labels.astype(np.int64) * classes + predicted
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


@dataclass(frozen=True)
class ByClass:
    """Metrics of each class, as (classes,) arrays.

    Attributes:
        recall: share of the examples of the class that are predicted as such; NaN without examples.
        precision: share of the examples predicted as the class that are of it; NaN without any.
        f1: harmonic mean of the two, 0 if one is 0 or NaN; NaN if both are NaN.
        examples: number of examples.
    """

    recall: Floats
    precision: Floats
    f1: Floats
    examples: NDArray[np.int64]


def by_class(table: NDArray[np.int64]) -> ByClass:
    """Metrics of each class from a confusion matrix."""
    hits, examples, guesses = np.diag(table), table.sum(1), table.sum(0)
    return ByClass(
        recall=_ratio(hits, examples),
        precision=_ratio(hits, guesses),
        f1=_ratio(2 * hits, examples + guesses),
        examples=examples,
    )


def _ratio(above: np.ndarray, below: np.ndarray) -> Floats:
    ratio: Floats = np.divide(above, below, out=np.full(len(below), np.nan), where=below > 0)
    return ratio


def aurocs(probabilities: np.ndarray, labels: np.ndarray) -> Floats:
    """(classes,) area under the ROC curve of each class against the others, by ranks (Mann and Whitney 1947);
    NaN for a class that none or all of the examples are of."""
    areas = np.full(probabilities.shape[1], np.nan)
    counts = np.bincount(labels, minlength=len(areas))
    for k in np.flatnonzero((counts > 0) & (counts < len(labels))):
        column = probabilities[:, k]
        ordered, mine = np.sort(column), column[labels == k]
        below, up_to = (np.searchsorted(ordered, mine, side) for side in ("left", "right"))
        ranks = (below + up_to + 1) / 2  # from 1; equal values share their mean rank
        n = len(mine)
        areas[k] = (ranks.sum() - n * (n + 1) / 2) / (n * (len(labels) - n))
    return areas


@dataclass(frozen=True)
class Calibration:
    """Reliability of confidences, as (bins,) arrays over equal parts of (0, 1].

    Attributes:
        examples: number of examples.
        confidence: their mean confidence; NaN for an empty bin.
        accuracy: share of them that are correct; NaN for an empty bin.
    """

    examples: NDArray[np.int64]
    confidence: Floats
    accuracy: Floats

    @property
    def error(self) -> float:
        """Expected calibration error: mean over the examples of the gap of their bin."""
        gaps = np.abs(self.confidence - self.accuracy)[self.examples > 0]
        return float((gaps * self.examples[self.examples > 0]).sum() / self.examples.sum())


def calibration(confidence: np.ndarray, hit: np.ndarray, bins: int = BINS) -> Calibration:
    """How often predictions of each confidence are correct.

    Args:
        confidence: (n,) probability of the predicted class.
        hit: (n,) whether it is the true class.
        bins: number of bins.
    """
    at = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], confidence)
    examples = np.bincount(at, minlength=bins)
    sums = [np.bincount(at, values.astype(float), bins) for values in (confidence, hit)]
    return Calibration(examples, *(_ratio(total, examples) for total in sums))
