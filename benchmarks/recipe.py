"""What does every program do, whoever's loop it uses? The same data, weights, steps and rates."""

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
"""Trials of the study that is compared."""
RATES = {"linear_probe": 1e-2, "last_block": 2e-3, "full": 1e-3}
"""Peak learning rate of a single trial."""
SPREAD = 1.5
"""A study tries rates from RATES / SPREAD to RATES * SPREAD: other trials, about the same accuracy."""


def rates(work: str, trials: int) -> list[float]:
    """Peak learning rates of a program's trials: the middle one, or all of them evenly in the logarithm."""
    middle = RATES[work]
    if trials == 1:
        return [middle]
    return [middle * SPREAD ** (2 * i / (trials - 1) - 1) for i in range(trials)]


def per_class(data: Path) -> int:
    """Images per class of the folder that benchmarks.data made: half train, a quarter validates, a quarter
    is the test part that the harness always sets aside."""
    first = min(p for p in (data / "all").iterdir() if p.is_dir())
    return sum(1 for _ in first.iterdir())
