"""Gain from a source over random weights, in points and on the logit scale: by run, and by pair of source and
target.

    python -c "import pandas as pd; from analysis.compare.responses import *; \\
               print(gains(with_scratch(pd.read_csv('scores.csv')), ['source']))"

The input has one row per run: columns source, target, accuracy (a share) and, if they were varied, seed,
strategy, size and examples (size of the test set).
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from scipy.special import logit

from analysis.compare.agreement import require
from analysis.compare.runs import mean_intervals
from harness.core.errors import UserError

CONDITIONS = ("strategy", "size")


def with_scratch(scores: pd.DataFrame) -> pd.DataFrame:
    """The runs with a source, with the column scratch: accuracy of the run without a source that has the same
    target and, if these columns exist, the same seed, strategy and size.

    Args:
        scores: columns source ("scratch" for a run without one), target, accuracy, ...

    Raises:
        UserError: if a run has no counterpart, or several.
    """
    require(scores, ["source", "target", "accuracy"])
    keys = [key for key in ("target", "seed", *CONDITIONS) if key in scores]
    partners = scores.loc[scores["source"] == "scratch", [*keys, "accuracy"]]
    require(partners, keys, unique=keys)
    runs = scores[scores["source"] != "scratch"].drop(columns="scratch", errors="ignore")
    joined = runs.merge(
        partners.rename(columns={"accuracy": "scratch"}), on=keys, how="left", indicator=True
    )
    if (alone := joined["_merge"] == "left_only").any():
        first = joined.loc[alone, keys].iloc[0]
        which = ", ".join(f"{name} {value}" for name, value in first.items())
        raise UserError(f"no run from 'scratch' for {which}")
    return joined.drop(columns="_merge")


def responses(scores: pd.DataFrame) -> pd.DataFrame:
    """The scores with the column response: logit(accuracy) - logit(scratch), or logit(accuracy) without the
    column scratch.

    Args:
        scores: columns accuracy and optionally scratch (shares) and examples (size of the test set). If
            examples is known for every run, the empirical logit log((k + .5) / (n - k + .5)) with k hits of n
            is used (Haldane 1956), which is finite at 0 and 1.

    Raises:
        UserError: if a share is not in [0, 1], or is 0 or 1 and the number of examples is unknown.
    """
    require(scores, ["accuracy"])
    n = None
    if "examples" in scores and scores["examples"].notna().all():
        n = scores["examples"].astype(float)

    def of(column: str) -> pd.Series:
        share = scores[column].astype(float)
        if ((share < 0) | (share > 1)).any():
            raise UserError(f"{column} has values outside of [0, 1]")
        if n is not None:
            share = (share * n + 0.5) / (n + 1)
        elif share.isin([0.0, 1.0]).any():
            raise UserError(
                f"{column} has a value of 0 or 1, whose logit is infinite; add the column examples"
            )
        return pd.Series(logit(share), index=scores.index)

    gain = of("accuracy") - of("scratch") if "scratch" in scores else of("accuracy")
    return scores.assign(response=gain)


def gains(scores: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Gain over scratch, in points of accuracy.

    Returns:
        One row per combination of the columns `by`: these columns, targets (their number), gain (mean over
            targets of the mean over their runs), low, high (t interval over targets).
    """
    require(scores, ["target", "accuracy", "scratch", *by])
    points = scores.assign(gain=100 * (scores["accuracy"] - scores["scratch"]))
    table = points.groupby([*by, "target"], sort=False, as_index=False)[["gain"]].mean()
    means = mean_intervals(table, "gain", by).drop(columns="sd")
    return means.rename(columns={"n": "targets", "mean": "gain"})


def pair_gains(scores: pd.DataFrame, folds: int = 1) -> pd.DataFrame:
    """Gain over scratch of each pair, in points of accuracy, for each strategy and size.

    Args:
        scores: columns source, target, accuracy, scratch, and optionally strategy and size; one row per seed.
        folds: see `mean_interval`.

    Returns:
        source, target, strategy and size if they exist, seeds (their number), gain (mean difference to the
        run from scratch with the same seed), low, high (95% t interval over seeds).
    """
    require(scores, ["source", "target", "accuracy", "scratch"])
    keys = ["source", "target", *(name for name in CONDITIONS if name in scores)]
    points = scores.assign(gain=100 * (scores["accuracy"] - scores["scratch"]))
    means = mean_intervals(points, "gain", keys, folds=folds).drop(columns="sd")
    return means.rename(columns={"n": "seeds", "mean": "gain"})


def by_condition(scores: pd.DataFrame, measures: Sequence[str]) -> pd.DataFrame:
    """Mean response over the seeds of each pair and condition. Pairs that lack a condition are omitted,
    because their means would depend on which condition is missing."""
    require(scores, ["source", "target", "response", *measures])
    if (own := scores["source"] == scores["target"]).any():
        name = scores.loc[own, "source"].iloc[0]
        raise UserError(
            f"source and target are both {name!r}; remove the row, because it is not transfer"
        )
    conditions = [name for name in CONDITIONS if name in scores]
    known = scores.dropna(subset="response")
    keys = ["source", "target", *(name for name in ("family",) if name in scores), *conditions]
    table = known.groupby(keys, sort=False, as_index=False)[["response", *measures]].mean()
    wanted = len(table[conditions].drop_duplicates()) if conditions else 1
    full = table.groupby(["source", "target"])["response"].transform("size") == wanted
    return table[full]


def pair_means(scores: pd.DataFrame, measures: Sequence[str]) -> pd.DataFrame:
    """One row per pair: source, target, family if known, response and measures, averaged over its
    conditions."""
    table = by_condition(scores, measures)
    keys = ["source", "target", *(name for name in ("family",) if name in table)]
    return table.groupby(keys, sort=False, as_index=False)[["response", *measures]].mean()


def standardised(pairs: pd.DataFrame, measure: str) -> pd.DataFrame:
    """source, target, response, family if known, and z: the measure standardised to mean 0 and standard
    deviation 1 (n - 1) within each target. Targets with fewer than two sources, or for which the measure is
    constant, are omitted."""
    known = pairs.dropna(subset=[measure, "response"])
    groups = known.groupby("target")[measure]
    spread = groups.transform("std")
    z = (known[measure] - groups.transform("mean")) / spread.where(spread > 1e-12)
    kept = [c for c in ("source", "target", "response", "family") if c in known]
    return known[kept].assign(z=z).dropna(subset="z").reset_index(drop=True)
