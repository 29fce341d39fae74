"""Measures of the similarity of source and target, and of transferability, computed from arrays.

    for name, measure in MEASURES.items():
        found = measure(**{need: data[need] for need in needs(measure)}, seed=0)

A measure returns a `Measurement`: value, interval and direction, or NaN and the reason. Wrong shapes
raise ValueError. Its positional parameters are the arrays that it needs:

    source, target                  (n, d) examples of both sides in the common embedding, projected
    source_labels, labels           (n,) integer classes of `source`, and of the target's training examples
    bandwidth                       float, of the RBF kernel, the same for all pairs
    features                        (n, d) features of the target's training examples from the source model
    probabilities                   (n, C) class probabilities of the source's head for these examples
    predicted                       (n,) the top class of the source's head for these examples

`harness.similarity.baselines` holds the rankings that a measure has to beat.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

from harness.similarity.baselines import log_source_size, source_accuracy, static_rank
from harness.similarity.distances import frechet, median_bandwidth, mmd, otdd, principal_axes
from harness.similarity.measurement import Better, Candidate, Measurement, measured
from harness.similarity.source_head import leep, nce
from harness.similarity.transferability import hscore, knn_accuracy, logme, probe_accuracy

Measure = Callable[..., Measurement]
GIVEN = frozenset(
    "source target source_labels labels bandwidth features probabilities predicted".split()
)
"""Names of the arrays that a measure may need."""

MEASURES: dict[str, Measure] = {
    "frechet": frechet,
    "mmd": mmd,
    "otdd": otdd,
    "knn_accuracy": knn_accuracy,
    "probe_accuracy": probe_accuracy,
    "logme": logme,
    "hscore": hscore,
    "nce": nce,
    "leep": leep,
}
"""Name -> measure. All of them also take `seed` and `resamples` (0 for no interval), by name."""


def needs(measure: Measure) -> tuple[str, ...]:
    """Names of the arrays that a measure needs.

    Raises:
        ValueError: if there is no array of that name.
    """
    parameters = inspect.signature(measure).parameters.values()
    names = tuple(p.name for p in parameters if p.kind is not p.KEYWORD_ONLY)
    if unknown := [name for name in names if name not in GIVEN]:
        raise ValueError(
            f"a measure needs {unknown[0]!r}, which is not among {', '.join(sorted(GIVEN))}"
        )
    return names


__all__ = [
    "MEASURES",
    "Better",
    "Candidate",
    "Measure",
    "Measurement",
    "frechet",
    "hscore",
    "knn_accuracy",
    "leep",
    "log_source_size",
    "logme",
    "measured",
    "median_bandwidth",
    "mmd",
    "nce",
    "needs",
    "otdd",
    "principal_axes",
    "probe_accuracy",
    "source_accuracy",
    "static_rank",
]
