"""Paired comparisons of cells over shared seeds, with one verdict per pair.

    python -c "from analysis import compare, load_study; t = load_study('freeze_depth'); \\
               print(compare.contrasts(t.trials, t.info))"

All pairs of cells form one family. Each has a paired t interval over seeds at the level 1 - .05 / number of
pairs (Bonferroni), so all intervals hold simultaneously with 95% confidence: whichever pair is selected after
seeing the results, and however the variances of the cells differ, the probability of any wrong verdict in the
study is at most 5%.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from analysis.compare.examples import hits, mcnemar_over_seeds
from analysis.compare.factors import arms
from analysis.compare.runs import CONFIDENCE, cells, completed
from analysis.load.study import Info
from harness.core.folds import independent_runs
from harness.core.power import MOST_SEEDS, least_detectable, seeds_needed
from harness.core.race import rounding_error
from harness.core.study import cell_label

ALPHA = 1 - CONFIDENCE
MAX_FLIPS = 2**15
FEWEST = 4
"""With fewer seeds, the spread of the differences is too uncertain to say how many seeds would be enough."""
WORTH = (2.0, 1.0, 0.5)
"""Differences of interest, in points: a sentence names the smallest one that cannot be detected with the
seeds."""
SAME = "All test scores are equal, so it is not known how much they vary over seeds"
MEASURED = "difference low high p alone_low alone_high least_detectable worth seeds_needed".split()
COLUMNS = ["cell", "reference", "n", "pairs", *MEASURED, "verdict"]


def contrasts(trials: pd.DataFrame, info: Info) -> pd.DataFrame:
    """All pairs of scored cells, compared over the seeds of both; if targets are compared, pairs within each
    target, because scores of different targets are not comparable. For k-fold resampling, the corrected t
    test is used (see `harness.core.folds.independent_runs`).

    Returns:
        One row per pair: cell, reference, n (shared seeds), pairs (number of tested pairs of this study),
            difference (points of test accuracy, positive if cell is better), low, high (simultaneous
            interval), p (of the paired t test, times the number of pairs), alone_low, alone_high (95%
            interval of this pair alone), least_detectable (the difference that would be found with
            probability .8 by this rule), worth (points) and seeds_needed (to find a difference of worth
            points; NaN with fewer than FEWEST), and verdict: "higher" or "lower" (the simultaneous interval
            excludes 0), "open" (it does not, or there is none because all scores are equal) or "untested"
            (fewer than two shared seeds).
    """
    scores = completed(trials, "repeat").pivot(index="seed", columns="cell", values="test_score")
    scores = 100 * scores.dropna(axis="columns", how="all")
    table = arms(info.factors)
    table = table[table["cell"].isin(scores.columns)]
    names = [
        pair
        for _, own in table.groupby("context", sort=False)
        for pair in itertools.combinations(own["cell"], 2)
    ]
    values = {cell: scores[cell].to_numpy(dtype=float) for cell in scores}
    points = [values[a] - values[b] for a, b in names]
    points = [one[~np.isnan(one)] for one in points]
    family = sum(len(one) > 1 for one in points)
    floor = rounding_error(scores.to_numpy(dtype=float))
    rows = [
        {"cell": a, "reference": b, "pairs": family} | paired_test(one, family, floor, info.folds)
        for (a, b), one in zip(names, points, strict=True)
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def paired_test(points: np.ndarray, family: int, floor: float, folds: int = 1) -> dict[str, Any]:
    """Paired t test of one of `family` tested pairs; see `contrasts`. The standard deviation is not assumed
    to be below `floor`. If it is 0, how much scores vary is not known, so only the difference is returned."""
    n = len(points)
    row: dict[str, Any] = dict.fromkeys(MEASURED, math.nan)
    row |= {"n": n, "verdict": "untested", "difference": float(points.mean()) if n else math.nan}
    if n < 2:
        return row
    sd = max(float(points.std(ddof=1)), floor)
    if not sd:
        return row | {"verdict": "open"}
    error = sd / math.sqrt(independent_runs(n, folds))
    half, alone = error * _critical(n, family), error * _critical(n, 1)
    mean = row["difference"]
    least = least_detectable(sd, n, family, folds)
    worth = next((w for w in WORTH if least > w), WORTH[-1])
    p = float(2 * stats.t.sf(abs(mean) / error, n - 1))
    verdict = "higher" if mean > half else "lower" if mean < -half else "open"
    return row | {
        # No two accuracies differ by more than 100 points, whatever two seeds leave open.
        "low": max(mean - half, -100.0),
        "high": min(mean + half, 100.0),
        "p": min(1.0, family * p),
        "alone_low": max(mean - alone, -100.0),
        "alone_high": min(mean + alone, 100.0),
        "least_detectable": least,
        "worth": worth,
        "seeds_needed": seeds_needed(sd, worth, family, folds) if n >= FEWEST else math.nan,
        "verdict": verdict,
    }


@cache
def _critical(n: int, family: int) -> float:
    return float(stats.t.isf(ALPHA / family / 2, n - 1))


def sign_flip_p(differences: Sequence[float]) -> float:
    """Exact two-sided sign-flip p of a mean difference (Fisher 1935): the share of the 2^n ways to exchange
    the two cells within seeds that give a mean at least as far from 0.

    Exact for up to 15 differences; for more, it is based on 32768 random flips with a fixed seed. It cannot
    be below 2 / 2^n, which is .0625 with 5 seeds. NaN without differences.
    """
    if len(differences) == 0:
        return math.nan
    test = stats.permutation_test(
        (np.asarray(differences, dtype=float),),
        np.mean,
        permutation_type="samples",
        n_resamples=MAX_FLIPS,
        vectorized=True,
        rng=np.random.default_rng(0),
    )
    return float(test.pvalue)


def against(table: pd.DataFrame, cell: str) -> pd.DataFrame:
    """The rows of `contrasts` that contain `cell`, oriented so that it comes first."""
    turned = table[table["reference"] == cell].rename(
        columns={"cell": "reference", "reference": "cell"}
    )
    opposite = {"low": "high", "high": "low", "alone_low": "alone_high", "alone_high": "alone_low"}
    turned = turned.rename(columns=opposite)
    signed = ["difference", *opposite]
    turned[signed] = 0.0 - turned[signed]
    turned["verdict"] = turned["verdict"].replace({"higher": "lower", "lower": "higher"})
    own = table[table["cell"] == cell]
    return pd.concat([own, turned[COLUMNS]]).sort_index().reset_index(drop=True)


def against_baseline(table: pd.DataFrame, info: Info) -> pd.DataFrame:
    """The rows of `contrasts` that compare a cell with the cell that has the baseline's values and equals it
    in the other factors; empty without a baseline."""
    parts = []
    for row in cells(info.factors).to_dict("records"):
        reference = cell_label({k: info.baseline.get(k, str(row[k])) for k in info.factors})
        if reference != row["cell"]:
            own = against(table, str(row["cell"]))
            parts.append(own[own["reference"] == reference])
    return pd.concat(parts, ignore_index=True) if parts else table[:0]


def with_other_tests(
    table: pd.DataFrame, trials: pd.DataFrame, predictions: pd.DataFrame, folds: int = 1
) -> pd.DataFrame:
    """The rows of `contrasts` with two more tests, which are not adjusted for their number and do not affect
    the verdict: p_signs (`sign_flip_p`; NaN with `folds`, because it assumes independent runs), and, from the
    test predictions, only_cell, only_reference and p_images (`mcnemar_over_seeds`; NaN without
    predictions)."""
    scores = completed(trials, "repeat").pivot(index="seed", columns="cell", values="test_score")
    tables = hits(predictions) if len(predictions) else {}
    rows = []
    for row in table.to_dict("records"):
        points = (scores[row["cell"]] - scores[row["reference"]]).dropna()
        p = sign_flip_p(list(points)) if len(points) > 1 and folds == 1 else math.nan
        images = mcnemar_over_seeds(tables, str(row["cell"]), str(row["reference"]))
        rows.append(row | {"p_signs": p} | images)
    more = ["p_signs", "only_cell", "only_reference", "p_images"]
    return pd.DataFrame(rows, columns=[*COLUMNS, *more])


def describe_contrast(row: Mapping[Hashable, Any] | pd.Series[Any]) -> str:
    """One row of `contrasts` as a sentence."""
    a, b, n = f"“{row['cell']}”", f"“{row['reference']}”", row["n"]
    if row["verdict"] == "untested":
        return (
            f"{a} and {b} share {n} scored seed{'' if n == 1 else 's'}, so the difference cannot "
            "be tested."
        )
    if row["low"] != row["low"]:
        return f"{a} and {b} have the same score on each of {n} seeds. {SAME}."
    mean, low, high = (f"{round(row[x], 1) + 0.0:+.1f}" for x in ("difference", "low", "high"))
    interval = f"{low} to {high}, {n} seeds"
    if row["verdict"] == "open":
        return (
            f"{a} is not significantly different from {b}: {mean} points ({interval}). "
            f"{describe_power(row)}{_more_seeds(row)}."
        )
    side = "above" if row["difference"] > 0 else "below"
    return f"{a} is {abs(row['difference']):.1f} points {side} {b} ({interval})."


def describe_power(row: Mapping[Hashable, Any] | pd.Series[Any]) -> str:
    """The difference that cannot be detected with this number of seeds."""
    n, least = row["n"], row["least_detectable"]
    if least != least:
        return SAME
    if least >= 100:
        return f"With {n} seeds, no difference can be shown"
    return f"With {n} seeds, a difference of {least:.1f} points is detected with 80% power"


def _more_seeds(row: Mapping[Hashable, Any] | pd.Series[Any]) -> str:
    """How many seeds would detect a difference of interest, if these do not."""
    if not row["least_detectable"] > row["worth"] or row["seeds_needed"] != row["seeds_needed"]:
        return ""
    unit = f"{row['worth']:g} point{'' if row['worth'] == 1 else 's'}"
    if row["seeds_needed"] == math.inf:
        return f"; {unit} would need more than {MOST_SEEDS} seeds"
    return f"; {unit} would need {row['seeds_needed']:.0f} seeds"
