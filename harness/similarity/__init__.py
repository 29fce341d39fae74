"""Measures of the similarity of source and target, and of transferability, computed from arrays.

    for name, measure in MEASURES.items():
        found = measure.compute(**{need: data[need] for need in measure.needs}, seed=0)

A measure returns a `Measurement`: value, interval and direction, or NaN and the reason. Wrong shapes
raise ValueError. The arguments that a measure may need:

    source, target                  (n, d) images of both sides in the common embedding, projected
    source_labels, labels           (n,) integer classes of `source`, and of the target's training images
    bandwidth                       float, of the RBF kernel, the same for all pairs
    features                        (n, d) features of the target's training images from the source model
    probabilities                   (n, C) class probabilities of the source's head for these images
    predicted                       (n,) the top class of the source's head for these images
    before, after                   (n, d) features of the same images from two networks
    accuracy, images, classes, ...  see `baselines`
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from harness.similarity.baselines import log_source_size, source_accuracy, static_rank
from harness.similarity.cka import cka
from harness.similarity.distances import frechet, median_bandwidth, mmd, otdd, principal_axes
from harness.similarity.measurement import Better, Measurement, measured
from harness.similarity.source_head import leep, nce
from harness.similarity.transferability import (
    hscore,
    hscore_null,
    knn_accuracy,
    logme,
    probe_accuracy,
)

GIVEN = frozenset(
    "source target source_labels labels bandwidth features probabilities predicted before after "
    "accuracy images classes".split()
)
"""Names of the arguments that a measure may need."""


@dataclass(frozen=True)
class Measure:
    """A function and the names of its required arguments.

    Raises:
        ValueError: if there is no argument of that name.
    """

    compute: Callable[..., Measurement]
    needs: tuple[str, ...]

    def __post_init__(self) -> None:
        if unknown := [need for need in self.needs if need not in GIVEN]:
            raise ValueError(
                f"a measure needs {unknown[0]!r}, which is not among {', '.join(sorted(GIVEN))}"
            )


MEASURES: dict[str, Measure] = {
    "frechet": Measure(frechet, ("source", "target")),
    "mmd": Measure(mmd, ("source", "target", "bandwidth")),
    "otdd": Measure(otdd, ("source", "source_labels", "target", "labels")),
    "knn_accuracy": Measure(knn_accuracy, ("features", "labels")),
    "probe_accuracy": Measure(probe_accuracy, ("features", "labels")),
    "logme": Measure(logme, ("features", "labels")),
    "hscore": Measure(hscore, ("features", "labels")),
    "nce": Measure(nce, ("predicted", "labels")),
    "leep": Measure(leep, ("probabilities", "labels")),
    "cka": Measure(cka, ("before", "after")),
}
"""Name -> measure. All of them also take `seed` and `resamples` (0 for no interval)."""

BASELINES: dict[str, Measure] = {
    "static_rank": Measure(static_rank, ("accuracy", "source", "target")),
    "source_accuracy": Measure(source_accuracy, ("accuracy", "images", "classes")),
    "log_source_size": Measure(log_source_size, ("images",)),
}
"""Name -> baseline. Baselines use no images of the target and no random numbers, so they take no seed; their
arguments have names of their own."""

__all__ = [
    "BASELINES",
    "MEASURES",
    "Better",
    "Measure",
    "Measurement",
    "cka",
    "frechet",
    "hscore",
    "hscore_null",
    "knn_accuracy",
    "leep",
    "log_source_size",
    "logme",
    "measured",
    "median_bandwidth",
    "mmd",
    "nce",
    "otdd",
    "principal_axes",
    "probe_accuracy",
    "source_accuracy",
    "static_rank",
]
