"""A temperature for a network's probabilities, fitted on validation images (Guo et al. 2017).

Logits are divided by it before the softmax. The predicted class is the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import softmax

from harness.training.fit import further_scores, score

LOWEST, HIGHEST = 0.05, 20.0
"""Without a maximum of the likelihood between them there is no fit: it has none at all if every image is
classified correctly, or if the network does no better than chance."""


def fit_temperature(logits: NDArray[np.float64], labels: np.ndarray) -> float | None:
    """The temperature with the lowest log loss; None if there is none between LOWEST and HIGHEST.

    The log loss is convex in the inverse of the temperature, so its minimum is where its slope is 0.

    Args:
        logits: (n, classes) outputs of the network.
        labels: (n,) true classes.
    """
    ahead = logits - logits[np.arange(len(labels)), labels][:, None]

    def slope(inverse: float) -> float:
        return float((softmax(logits * inverse, axis=1) * ahead).sum(1).mean())

    if not slope(1 / HIGHEST) < 0 < slope(1 / LOWEST):
        return None
    return 1 / float(brentq(slope, 1 / HIGHEST, 1 / LOWEST))


def measures(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Log loss, accuracy and further scores of the probabilities from these logits, by name."""
    log_p = logits.log_softmax(1)
    loss, accuracy = score(log_p, labels)
    return {"log_loss": loss, "accuracy": accuracy, **further_scores(log_p, labels)}


def calibrate(
    val: tuple[torch.Tensor, torch.Tensor], test: tuple[torch.Tensor, torch.Tensor]
) -> dict[str, Any]:
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
    val, test = ((logits.double(), labels) for logits, labels in (val, test))
    fitted = fit_temperature(val[0].numpy(), val[1].numpy())
    temperature = fitted or 1.0
    found = {
        part: {"before": measures(*own), "after": measures(own[0] / temperature, own[1])}
        for part, own in (("val", val), ("test", test))
    }
    return {
        "temperature": temperature,
        "fitted": fitted is not None,
        "val_images": len(val[1]),
        **{
            f"{part}_{name}": {when: values[name] for when, values in found[part].items()}
            for part, name in (("val", "log_loss"), ("test", "log_loss"), ("test", "ece"))
        },
    }


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
