"""Two studies side by side: which cells do they share, and did these change?

    python -c "from analysis import compare, load; \\
               a, b = map(load.load_study, ('freeze_depth', 'freeze_depth_again')); \\
               print(compare.side_by_side(a.trials, b.trials))"
"""

from __future__ import annotations

import math

import pandas as pd
from scipy import stats
from statsmodels.stats.multitest import multipletests

from analysis.compare.contrasts import ALPHA, sign_flip_p
from analysis.compare.runs import completed, mean_interval


def side_by_side(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """Test accuracy of the cells of two studies, cells of the same label in one row.

    Cells with at least two shared seeds are compared seed by seed (t interval of the differences, exact sign
    flip); others by Welch's t test of the means.

    Returns:
        cell, n_first, first (mean), n_second, second, pairs (shared seeds; 0: Welch), difference
        (points, second minus first), low, high, p, p_holm (over the cells that are compared), changed
        (p_holm at most .05).
    """
    scores = [
        completed(trials, "repeat").dropna(subset="test_accuracy") for trials in (first, second)
    ]
    names = list(dict.fromkeys([*scores[0]["cell"], *scores[1]["cell"]]))
    rows = []
    for cell in names:
        a, b = (
            own[own["cell"] == cell].set_index("seed")["test_accuracy"].astype(float)
            for own in scores
        )
        row = {"cell": cell, "n_first": len(a), "first": float(a.mean())}
        row |= {"n_second": len(b), "second": float(b.mean()), "pairs": 0}
        rows.append(row | _difference(a, b))
    columns = "cell n_first first n_second second pairs difference low high p p_holm".split()
    table = pd.DataFrame(rows, columns=columns)
    table["p_holm"] = table["p_holm"].astype(float)
    tested = table["p"].notna()
    if tested.any():
        table.loc[tested, "p_holm"] = multipletests(table.loc[tested, "p"], method="holm")[1]
    return table.assign(changed=table["p_holm"] <= ALPHA)


def _difference(a: pd.Series, b: pd.Series) -> dict[str, float]:
    """difference, low, high, p and pairs of one cell; NaN where there is nothing to compare."""
    row: dict[str, float] = dict.fromkeys(("difference", "low", "high", "p"), math.nan)
    if a.empty or b.empty:
        return row
    points = (100 * (b - a)).dropna()
    if len(points) > 1:
        mean, _, low, high = mean_interval(points)
        row |= {"difference": mean, "low": low, "high": high, "pairs": len(points)}
        return row | {"p": sign_flip_p(list(points))}
    row["difference"] = 100 * float(b.mean() - a.mean())
    if len(a) > 1 and len(b) > 1 and (a.std() > 0 or b.std() > 0):
        test = stats.ttest_ind(100 * b, 100 * a, equal_var=False)
        interval = test.confidence_interval(0.95)
        row |= {"low": float(interval.low), "high": float(interval.high), "p": float(test.pvalue)}
    return row
