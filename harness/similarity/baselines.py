"""Baselines that every measure should beat: rankings that do not use the target.

    static_rank(accuracy, source=2, target=0).value

A measure that ranks no better than these says nothing about similarity.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from harness.similarity.measurement import CONFIDENCE, Measurement


def static_rank(accuracy: npt.NDArray[Any], source: int, target: int) -> Measurement:
    """Mean rank of a source over all targets except this one.

    Sources are ranked by accuracy after transfer; 1 is the best, and ties get their mean rank. Targets with a
    missing source are left out, because their ranks are not comparable. The interval is a t interval over the
    other targets. n is the number of those targets, d the number of sources.

    Args:
        accuracy: (targets, sources), NaN where there is no run.
        source, target: column and row in `accuracy`.

    Raises:
        ValueError: for other shapes, or a row or column that doesn't exist.
    """
    table = np.asarray(accuracy, dtype=np.float64)
    if table.ndim != 2:
        raise ValueError(f"accuracy has shape {table.shape}; it should be (targets, sources)")
    if not (0 <= target < table.shape[0] and 0 <= source < table.shape[1]):
        raise ValueError(f"no target {target} and source {source} in accuracy of {table.shape}")
    others = np.delete(table, target, axis=0)
    others = others[np.isfinite(others).all(axis=1)]
    n, d = others.shape
    found = Measurement("static_rank", math.nan, n, d, better="lower")
    if n == 0 or d < 2:
        what = "no other target has all sources" if d >= 2 else "there is only one source"
        return replace(found, reason=f"nothing to rank: {what}")
    ranks = stats.rankdata(-others, axis=1)[:, source]
    found = replace(found, value=float(ranks.mean()))
    if n < 2:
        return replace(found, reason="no interval: only one other target")
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) * stats.sem(ranks))
    low, high = max(1.0, found.value - half), min(float(d), found.value + half)
    return replace(found, low=low, high=high)


def source_accuracy(accuracy: float, images: int, classes: int) -> Measurement:
    """The source model's validation accuracy on its own data, with the interval of Wilson (1927).

    Args:
        accuracy: the accuracy, as a share.
        images: number of examples on which it was measured.
        classes: number of classes of the source; becomes d.

    Raises:
        ValueError: if there are no examples, or fewer than two classes.
    """
    if images < 1 or classes < 2:
        raise ValueError(
            f"{images} examples and {classes} classes; there should be at least 1 and 2"
        )
    if not 0 <= accuracy <= 1:
        reason = f"accuracy {accuracy:g} is outside 0 to 1"
        return Measurement("source_accuracy", math.nan, images, classes, reason=reason)
    interval = stats.binomtest(round(accuracy * images), images).proportion_ci(
        CONFIDENCE, method="wilson"
    )
    low, high = float(interval.low), float(interval.high)
    return Measurement("source_accuracy", float(accuracy), images, classes, low=low, high=high)


def log_source_size(images: int) -> Measurement:
    """Natural logarithm of the number of source training examples. The number is exact, so the interval is a
    single point.

    Raises:
        ValueError: if there are no examples.
    """
    if images < 1:
        raise ValueError(f"{images} source examples; there should be at least 1")
    size = math.log(images)
    return Measurement("log_source_size", size, images, 1, low=size, high=size)
