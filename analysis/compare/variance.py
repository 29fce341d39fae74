"""Shares of the variance of transfer: of the target, of the source, and of their similarity.

    python -c "import pandas as pd; from analysis.compare.variance import *; \\
               print(variance_shares(pd.read_csv('responses.csv'), 'logme'))"
"""

from __future__ import annotations

import pandas as pd
import statsmodels.formula.api as smf

from analysis.compare.pairs import pair_means, standardised
from harness.core.errors import UserError


def variance_shares(scores: pd.DataFrame, measure: str) -> dict[str, object]:
    """How much of the response each part explains: sums of squares, each after the parts before it.

    Returns:
        measure, n pairs, and as shares: target, source, added (by the measure, to both), residual, which add
        up to 1; at_most (what the measure explains if it comes before the source).

    Raises:
        UserError: if a column is missing, or fewer than 3 sources or 2 targets have the measure.
    """
    table = standardised(pair_means(scores, [measure]), measure)
    if table["source"].nunique() < 3 or table["target"].nunique() < 2:
        raise UserError(f"variance shares need 3 sources and 2 targets with {measure!r}")

    def left(terms: str) -> float:
        return float(smf.ols(f"response ~ {terms}", table).fit().ssr)

    total, of_target = left("1"), left("C(target)")
    both, all_three = left("C(target) + C(source)"), left("C(target) + C(source) + z")
    shares = {
        "target": total - of_target,
        "source": of_target - both,
        "added": max(0.0, both - all_three),
        "at_most": of_target - left("C(target) + z"),
        "residual": all_three,
    }
    return {"measure": measure, "n": len(table)} | {k: v / total for k, v in shares.items()}
