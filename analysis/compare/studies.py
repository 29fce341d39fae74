"""Two studies side by side: their shared cells, and which of these changed.

    python -c "from analysis import compare, load_study; \\
               a, b = map(load_study, ('freeze_depth', 'freeze_depth_again')); \\
               print(compare.side_by_side(a.trials, b.trials))"
"""

from __future__ import annotations

import math

import pandas as pd
from scipy import stats

from analysis.compare.contrasts import ALPHA, paired_test
from analysis.compare.runs import completed
from harness.core.folds import independent_runs
from harness.core.race import rounding_error


def side_by_side(
    first: pd.DataFrame, second: pd.DataFrame, folds: tuple[int, int] = (1, 1)
) -> pd.DataFrame:
    """Test accuracy of the cells of two studies, cells with the same label in one row.

    Cells with at least two shared seeds are compared by a paired t test over seeds, others by Welch's t test.
    The intervals hold for all cells simultaneously (Bonferroni), as in `contrasts`.

    Args:
        first, second: trials of the two studies.
        folds: of each study, see `contrasts`; runs on different folds are not paired.

    Returns:
        cell, n_first, first (mean), n_second, second, pairs (shared seeds; 0 for Welch's test), difference
        (points, second minus first), low, high (simultaneous 95% interval), p (times the number of compared
        cells), changed (whether the interval excludes 0).
    """
    scores = [completed(trials, "repeat").dropna(subset="test_score") for trials in (first, second)]
    names = list(dict.fromkeys([*scores[0]["cell"], *scores[1]["cell"]]))
    both = {
        cell: tuple(
            own[own["cell"] == cell].set_index("seed")["test_score"].astype(float) for own in scores
        )
        for cell in names
    }
    family = max(1, sum(len(a) > 1 and len(b) > 1 for a, b in both.values()))
    every = pd.concat(scores)["test_score"].to_numpy(dtype=float)
    floor, rows = rounding_error(100 * every), []
    for cell, (a, b) in both.items():
        row = {"cell": cell, "n_first": len(a), "first": float(a.mean())}
        row |= {"n_second": len(b), "second": float(b.mean()), "pairs": 0}
        rows.append(row | _difference(a, b, family, floor, folds))
    columns = "cell n_first first n_second second pairs difference low high p".split()
    table = pd.DataFrame(rows, columns=columns)
    return table.assign(changed=(table["low"] > 0) | (table["high"] < 0))


def _difference(
    a: pd.Series, b: pd.Series, family: int, floor: float, folds: tuple[int, int]
) -> dict[str, float]:
    """difference, low, high, p and pairs of one cell; NaN if there is nothing to compare."""
    row: dict[str, float] = dict.fromkeys(("difference", "low", "high", "p"), math.nan)
    if a.empty or b.empty:
        return row
    points = (100 * (b - a)).dropna().to_numpy(dtype=float)
    if len(points) > 1 and len(set(folds)) == 1:
        test = paired_test(points, family, floor, folds[0])
        return {name: test[name] for name in row} | {"pairs": len(points)}
    row["difference"] = 100 * float(b.mean() - a.mean())
    if len(a) > 1 and len(b) > 1 and (a.std() > 0 or b.std() > 0):
        a, b = (_stretched(own, count) for own, count in zip((a, b), folds, strict=True))
        welch = stats.ttest_ind(100 * b, 100 * a, equal_var=False)
        interval = welch.confidence_interval(1 - ALPHA / family)
        p = min(1.0, family * float(welch.pvalue))
        row |= {"low": float(interval.low), "high": float(interval.high), "p": p}
    return row


def _stretched(values: pd.Series, folds: int) -> pd.Series:
    """The values; for k-fold runs, with deviations from the mean scaled so that the usual standard error is
    the corrected one."""
    if folds == 1:
        return values
    mean, n = values.mean(), len(values)
    return mean + (values - mean) * math.sqrt(n / independent_runs(n, folds))
