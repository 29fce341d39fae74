"""Measures from the predictions of the source's classifier: NCE and LEEP.

    leep(probabilities, labels).value

Even without any signal, both rise with the number of source classes, so compare only heads of equal size.
Intervals: see `harness.similarity.measurement`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from harness.similarity.measurement import (
    Floats,
    Ints,
    Measurement,
    Refusal,
    Statistic,
    as_features,
    as_labels,
    measured,
    require_classes,
    require_finite,
)

Array = npt.NDArray[Any]


def nce(predicted: Array, labels: Array, *, seed: int = 0, resamples: int = 200) -> Measurement:
    """Negative conditional entropy -H(label | source class), in nats (Tran et al. 2019).

    sum P(y, z) log P(y | z) over the classes y and the source classes z predicted for the examples. It is
    between -H(y), the negative entropy of the labels, and 0. d is the number of source classes that occur.

    Args:
        predicted: (n,) integers, the most probable source class of each target train example.
        labels: (n,) integer classes.

    Raises:
        ValueError: for other shapes.
    """
    z = as_labels(predicted, len(np.atleast_1d(predicted)), "predicted")
    y = as_labels(labels, len(z), "labels")
    hard = np.eye(int(z.max(initial=0)) + 1)[z]
    return _measured("nce", hard, y, seed, resamples)


def leep(
    probabilities: Array, labels: Array, *, seed: int = 0, resamples: int = 200
) -> Measurement:
    """Log expected empirical prediction, in nats per example (Nguyen et al. 2020).

    mean log sum_z P(y | z) theta_z, where P(y, z) is the sum of theta_z over the examples of class y, divided
    by n. Equal to NCE for one-hot theta. It is between -H(y) and 0, because it is one EM step from P(y | z) =
    P(y).

    Args:
        probabilities: theta, (n, source classes), of the target train examples; rows sum to 1.
        labels: (n,) integer classes.

    Raises:
        ValueError: for other shapes.
    """
    theta = as_features(probabilities, "probabilities")
    y = as_labels(labels, len(theta), "labels")
    return _measured("leep", theta, y, seed, resamples)


def leep_value(theta: Floats, y: Ints) -> float:
    """LEEP, or NCE for one-hot theta, of theta (n, C_s) and y (n,) from 0; -H(y) if theta is constant."""
    joint = np.eye(int(y.max()) + 1)[y].T @ theta / len(y)  # P(y, z), (C, C_s)
    conditional = joint / np.maximum(joint.sum(axis=0), np.finfo(np.float64).tiny)
    return float(np.mean(np.log(np.sum(conditional[y] * theta, axis=1))))


def _measured(name: str, theta: Floats, y: Ints, seed: int, resamples: int) -> Measurement:
    shares = np.bincount(y) / len(y) if len(y) else np.ones(1)
    entropy = float(-np.sum(shares * np.log(shares)))

    def prepare() -> Statistic:
        require_finite(theta, "probabilities")
        if theta.min() < 0 or np.abs(theta.sum(axis=1) - 1).max() > 1e-4:
            raise Refusal("probabilities should be at least 0 and sum to 1 for every example")
        require_classes(y, 1, "labels")
        if np.ptp(theta, axis=0).max() <= 1e-9:
            raise Refusal(
                f"the source head gives the same output for every example, so {name} is -H(y) = "
                f"{-entropy:.6g} as for any such head"
            )
        return lambda rows: leep_value(theta[rows], y[rows])

    options = {"seed": seed, "resamples": resamples}
    return measured(
        name, "higher", prepare, (y,), d=theta.shape[1], bounds=(-entropy, 0), **options
    )
