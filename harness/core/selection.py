"""The rule by which one cell of a study is chosen."""

from __future__ import annotations

import math


def preference(validation: float, seconds: float = math.nan) -> tuple[float, float]:
    """Sort key of a cell; the chosen cell is the one with the least key.

    The cell with the highest mean validation score over its repeats is chosen; of equals the one that trains
    faster. Test scores play no part, so that the test score of the chosen cell is an honest estimate.

    Args:
        validation: mean validation score over the repeats, more is better; NaN if it has none.
        seconds: mean training time of a repeat; NaN if unknown.
    """
    return (
        math.inf if math.isnan(validation) else -validation,
        math.inf if math.isnan(seconds) else seconds,
    )
