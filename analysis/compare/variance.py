"""Shares of the variance of transfer: of the target, of the source, and of their similarity.

    python -c "import pandas as pd; from analysis.compare.variance import *; \\
               print(variance_shares(pd.read_csv('responses.csv'), 'logme'))"
"""

from __future__ import annotations

import pandas as pd
import statsmodels.formula.api as smf

from analysis.compare.pairs import pair_means, standardised
from harness.core.errors import UserError


def variance_shares(scores: pd.DataFrame, measure: str) -> pd.DataFrame:
    """How much of the response each part explains: sums of squares, each after the parts before it.

    Returns:
        One row per part (target, source, measure, residual): part, df, share (in that order, so the
        measure has what neither target nor source explains), share_measure_first (order target,
        measure, source: what it could have at most). Each adds up to 1.

    Raises:
        UserError: if a column is missing, or fewer than 3 sources or 2 targets have the measure.
    """
    table = standardised(pair_means(scores, [measure]), measure)
    if table["source"].nunique() < 3 or table["target"].nunique() < 2:
        raise UserError(f"variance shares need 3 sources and 2 targets with {measure!r}")
    chains = {
        "share": ["C(target)", "C(source)", "z"],
        "share_measure_first": ["C(target)", "z", "C(source)"],
    }
    names = {"C(target)": "target", "C(source)": "source", "z": "measure"}
    parts = pd.DataFrame({"part": [*names.values(), "residual"], "df": 0}).set_index("part")
    for column, chain in chains.items():
        last = smf.ols("response ~ 1", table).fit()
        total = last.ssr
        parts[column] = 0.0
        for i, term in enumerate(chain):
            fit = smf.ols(f"response ~ {' + '.join(chain[: i + 1])}", table).fit()
            parts.loc[names[term], column] = max(0.0, (last.ssr - fit.ssr) / total)
            if column == "share":
                parts.loc[names[term], "df"] = int(last.df_resid - fit.df_resid)
            last = fit
        parts.loc["residual", column] = last.ssr / total
        parts.loc["residual", "df"] = int(last.df_resid)
    return parts.reset_index()


def variance_table(parts: pd.DataFrame) -> pd.DataFrame:
    """`variance_shares` of several measures (with a column measure), one row each.

    Returns:
        measure, n pairs, target, source, added (by the measure to both), at_most (by the measure if it comes
        before the source), residual; shares.
    """
    rows = []
    for measure, own in parts.groupby("measure", sort=False):
        share = own.set_index("part")["share"]
        first = own.set_index("part")["share_measure_first"]
        rows.append(
            {"measure": measure, "n": int(own["df"].sum()) + 1}
            | {"target": share["target"], "source": share["source"], "added": share["measure"]}
            | {"at_most": first["measure"], "residual": share["residual"]}
        )
    columns = ["measure", "n", "target", "source", "added", "at_most", "residual"]
    return pd.DataFrame(rows, columns=columns)
