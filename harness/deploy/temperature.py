"""A temperature for a network's probabilities, fitted on validation images (Guo et al. 2017).

Logits are divided by it before the softmax. The predicted class is the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from harness.core.metrics import calibration

LOWEST, HIGHEST = 0.05, 20.0
"""Without a maximum of the likelihood between them there is no fit: it has none at all if every image is
classified correctly, or if the network does no better than chance."""

Logits = NDArray[np.float64]


def fit_temperature(logits: Logits, labels: np.ndarray) -> float | None:
    """The temperature with the lowest log loss; None if there is none between LOWEST and HIGHEST.

    The log loss is convex in the inverse of the temperature, so the minimum is the only one.

    Args:
        logits: (n, classes) outputs of the network.
        labels: (n,) true classes.
    """
    # The loss may become too small to differ before an end is reached, so its slope decides.
    if not _slope(logits, labels, 1 / HIGHEST) < 0 < _slope(logits, labels, 1 / LOWEST):
        return None
    found = minimize_scalar(
        lambda x: log_loss(logits / math.exp(x), labels),
        bounds=(math.log(LOWEST), math.log(HIGHEST)),
        method="bounded",
        options={"xatol": 1e-7},
    )
    return float(math.exp(found.x))


def _slope(logits: Logits, labels: np.ndarray, inverse: float) -> float:
    """Derivative of the log loss with respect to the inverse of the temperature."""
    ahead = logits - logits[np.arange(len(labels)), labels][:, None]
    return float((softmax(logits * inverse, axis=1) * ahead).sum(1).mean())


def log_loss(logits: Logits, labels: np.ndarray) -> float:
    """Mean negative log-probability of the true class."""
    return float(-log_softmax(logits, axis=1)[np.arange(len(labels)), labels].mean())


def calibrate(val: tuple[Logits, np.ndarray], test: tuple[Logits, np.ndarray]) -> dict[str, Any]:
    """Fit a temperature and measure what it does.

    Args:
        val: (n, classes) logits and (n,) labels of the images on which it is fitted.
        test: the same of the test images.

    Returns:
        temperature: the fitted one, or 1.
        fitted: whether there is one.
        val_images: number of images.
        val_log_loss, test_log_loss, test_ece: {"before": ..., "after": ...}; expected calibration errors.
    """
    fitted = fit_temperature(*val)
    temperature = fitted or 1.0

    def before_and_after(
        part: tuple[Logits, np.ndarray], measure: Callable[[Logits, np.ndarray], float]
    ) -> dict[str, float]:
        logits, labels = part
        return {
            "before": measure(logits, labels),
            "after": measure(logits / temperature, labels),
        }

    return {
        "temperature": temperature,
        "fitted": fitted is not None,
        "val_images": len(val[1]),
        "val_log_loss": before_and_after(val, log_loss),
        "test_log_loss": before_and_after(test, log_loss),
        "test_ece": before_and_after(test, calibration_error),
    }


def calibration_error(logits: Logits, labels: np.ndarray) -> float:
    """Expected calibration error."""
    probabilities = np.exp(log_softmax(logits, axis=1))
    return calibration(probabilities.max(1), probabilities.argmax(1) == labels).error


def describe_calibration(found: dict[str, Any], noun: str) -> str:
    """What `calibrate` found, in one line; `noun` is what an example is called."""
    error = found["test_ece"]
    if not found["fitted"]:
        return (
            f"temperature 1: none could be fitted on {found['val_images']} validation {noun}s; expected "
            f"calibration error on test {error['before']:.3f}"
        )
    return (
        f"temperature {found['temperature']:.3g}, fitted on {found['val_images']} validation {noun}s: "
        f"expected calibration error on test {error['before']:.3f} before, {error['after']:.3f} after"
    )
