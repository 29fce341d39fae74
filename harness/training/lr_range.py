"""A learning rate range test: which rates are worth searching, from the losses at rising rates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from harness.core.errors import UserError


@dataclass(frozen=True)
class LrRange:
    """Where to search in one cell.

    Attributes:
        cell: its label.
        low, high: learning rates; None where no gradient steps are taken.
        rates: that were tried, rising, one per batch.
        losses: after each, in nats.
    """

    cell: str
    low: float | None = None
    high: float | None = None
    rates: tuple[float, ...] = ()
    losses: tuple[float, ...] = ()

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.cell}: takes no gradient steps"
        return f"{self.cell}: search between {self.low:.1e} and {self.high:.1e}"


def suggest(
    rates: Sequence[float], losses: Sequence[float], smoothing: float = 0.8
) -> tuple[float, float]:
    """Two rates from a range test: steepest fall of the smoothed loss, a tenth of the rate of its minimum.

    Args:
        rates: learning rates in rising order, at least 4.
        losses: loss after each, in nats.
        smoothing: of the exponential moving average (bias-corrected).

    Raises:
        UserError: if the test gave fewer than 4 finite losses.
    """
    finite = np.isfinite(losses)
    if finite.sum() < 4:
        raise UserError("the range test diverged at once: the data or the weights may be broken")
    smooth = pd.Series(np.asarray(losses)[finite]).ewm(alpha=1 - smoothing).mean().to_numpy()
    kept = np.asarray(rates)[finite]
    lowest = int(smooth.argmin())
    slope = np.gradient(smooth, np.log(kept))[: lowest + 1]
    return float(kept[int(slope.argmin())]), float(kept[lowest] / 10)
