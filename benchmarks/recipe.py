"""Settings that all programs share: data, weights, steps and learning rates."""

from __future__ import annotations

from pathlib import Path

BACKBONE = "tf_efficientnet_lite0"
SIZE = 96
CLASSES = 10
EPOCHS = 2
BATCH = 32
WEIGHT_DECAY = 0.01
MEAN = STD = (0.5, 0.5, 0.5)
WORKS = ("linear_probe", "last_block", "full")
TRIALS = {"linear_probe": 10, "last_block": 10, "full": 2}
"""Number of trials of the study that is compared."""
RATES = {"linear_probe": 1e-2, "last_block": 2e-3, "full": 1e-3}
"""Peak learning rate of a single trial."""
SPREAD = 1.5
"""A study tries rates from RATES / SPREAD to RATES * SPREAD, which give about the same accuracy."""


def rates(work: str, trials: int) -> list[float]:
    """Peak learning rates of the trials of a program: the middle one for one trial, else evenly spaced in the
    logarithm."""
    middle = RATES[work]
    if trials == 1:
        return [middle]
    return [middle * SPREAD ** (2 * i / (trials - 1) - 1) for i in range(trials)]


def per_class(data: Path) -> int:
    """Images per class in the folder of benchmarks.data. Half of them are training images, a quarter
    validation images, and a quarter the test images that the harness always sets aside."""
    first = min(p for p in (data / "all").iterdir() if p.is_dir())
    return sum(1 for _ in first.iterdir())
