"""Agreement of measures with the observed order of the sources, compared with a ranking that ignores the
target.

    python -c "import pandas as pd; from analysis.compare.agreement import *; \\
               print(rank_agreement(pd.read_csv('scores.csv'), ['logme', 'leep']))"

The input has one row per source and target: columns source, target, accuracy (the compared score, as a share)
and one per measure, for which higher means more similar (negate distances). Omit rows whose source is the
target itself, because they are not transfer.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

from analysis.compare.runs import mean_interval
from harness.core.errors import UserError

STATIC = "static"
"""The column that `static_ranking` adds; it is treated like a measure."""
PERMUTATIONS = 2000


def require(scores: pd.DataFrame, columns: Sequence[str], unique: Sequence[str] = ()) -> None:
    """Raises:
    UserError: if a column is missing, or two rows have the same values in `unique`.
    """
    if missing := [column for column in columns if column not in scores]:
        raise UserError(
            f"the scores lack {', '.join(missing)}; they have {', '.join(scores.columns)}"
        )
    if unique and (double := scores.duplicated(list(unique))).any():
        first = scores.loc[double, list(unique)].iloc[0]
        which = ", ".join(f"{name} {value}" for name, value in first.items())
        raise UserError(f"two scores for {which}: average them first")


def static_ranking(scores: pd.DataFrame) -> pd.DataFrame:
    """The scores with a column `static`, which says how good the source was on the other targets.

    It is minus the mean, over the other targets, of the source's rank by accuracy (1 is the best; ties get
    average ranks). It does not depend on the target, so a measure is informative about similarity only as far
    as it is better than this ranking. NaN for a source without another target.

    Raises:
        UserError: if a column is missing or a pair occurs twice.
    """
    require(scores, ["source", "target", "accuracy"], unique=["source", "target"])
    rank = scores.groupby("target")["accuracy"].rank(ascending=False)
    ranks = rank.groupby(scores["source"])
    others = ranks.transform("count") - rank.notna()
    total = ranks.transform("sum") - rank.fillna(0)
    return scores.assign(**{STATIC: -(total / others.where(others > 0))})


def rank_agreement(
    scores: pd.DataFrame, measures: Sequence[str], permutations: int = PERMUTATIONS
) -> pd.DataFrame:
    """Rank correlation of each measure with the accuracies of the sources, for each target.

    tau_w is `scipy.stats.weightedtau` with its default settings: Kendall's tau with additive weights 1 /
    (rank + 1) (Vigna 2015), the mean of ranking by either variable. tau is the unweighted tau-b.

    Returns:
        One row per target and measure: target, measure, n (number of sources), tau_w, null_sd (standard
            deviation of tau_w when the sources are shuffled), p (two-sided: share of shuffles at least as far
            from 0), tau. NaN with fewer than 3 sources, or if the measure or the accuracies are constant.

    Raises:
        UserError: if a column is missing or a pair occurs twice.
    """
    require(scores, ["source", "target", "accuracy", *measures], unique=["source", "target"])
    untied: dict[int, np.ndarray] = {}
    rows = []
    for target, measure in itertools.product(scores["target"].unique(), measures):
        own = scores.loc[scores["target"] == target, [measure, "accuracy"]].dropna()
        x, y = own[measure].to_numpy(dtype=float), own["accuracy"].to_numpy(dtype=float)
        n = len(own)
        row = {"target": target, "measure": measure, "n": n}
        row |= dict.fromkeys(("tau_w", "null_sd", "p", "tau"), math.nan)
        if n >= 3 and np.ptp(x) > 0 and np.ptp(y) > 0:
            tau = float(stats.weightedtau(x, y).statistic)
            if len(np.unique(x)) == len(np.unique(y)) == n:  # without ties only n matters
                if n not in untied:
                    untied[n] = null_taus(np.arange(n), np.arange(n), permutations)
                null = untied[n]
            else:
                null = null_taus(x, y, permutations)
            hits = int((np.abs(null) >= abs(tau) - 1e-12).sum())
            row |= {"tau_w": tau, "null_sd": float(null.std()), "p": (hits + 1) / (len(null) + 1)}
            row["tau"] = float(stats.kendalltau(x, y).statistic)
        rows.append(row)
    columns = ["target", "measure", "n", "tau_w", "null_sd", "p", "tau"]
    return pd.DataFrame(rows, columns=columns)


def null_taus(x: np.ndarray, y: np.ndarray, permutations: int) -> np.ndarray:
    """`permutations` values of tau_w of x, shuffled, with y; both of length n."""
    random = np.random.default_rng(0)
    shuffles = (random.permutation(x) for _ in range(permutations))
    return np.array([stats.weightedtau(shuffled, y).statistic for shuffled in shuffles])


def mean_agreement(agreement: pd.DataFrame) -> pd.DataFrame:
    """Mean tau_w of each measure over the targets, and its lead over the static ranking.

    Args:
        agreement: from `rank_agreement`; must include the measure `static` for the lead.

    Returns:
        measure, targets (their number), tau_w, low, high (t interval over targets), tau, and, over the
        targets for which both are known, static (its mean tau_w), lead, lead_low, lead_high (interval of the
        paired difference).
    """
    taus = agreement.pivot(index="target", columns="measure", values="tau_w")
    plain = agreement.groupby("measure")["tau"].mean()
    rows = []
    for measure in agreement["measure"].unique():
        mean, _, low, high = mean_interval(taus[measure], within=(-1, 1))
        row = {"measure": measure, "targets": int(taus[measure].notna().sum()), "tau_w": mean}
        row |= {"low": low, "high": high, "tau": float(plain[measure])}
        row |= dict.fromkeys(("static", "lead", "lead_low", "lead_high"), math.nan)
        if STATIC in taus and measure != STATIC:
            both = taus[[measure, STATIC]].dropna()
            lead, _, lead_low, lead_high = mean_interval(both[measure] - both[STATIC])
            row |= {"static": float(both[STATIC].mean()), "lead": lead}
            row |= {"lead_low": lead_low, "lead_high": lead_high}
        rows.append(row)
    columns = "measure targets tau_w low high tau static lead lead_low lead_high".split()
    return pd.DataFrame(rows, columns=columns)
