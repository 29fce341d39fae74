"""What a source gives beyond random weights, in points and on the logit scale: by run, and by pair of a
source and a target, the observations of the similarity effect.

    python -c "import pandas as pd; from analysis.compare.responses import *; \\
               print(gains(with_scratch(pd.read_csv('scores.csv')), ['source']))"

Takes one row per run: columns source, target, accuracy (a share), and where they exist seed, strategy, size
and examples (size of the test set).
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
    """The runs with a source, and as column scratch the accuracy of the run without one, under the same
    target and, where the columns exist, seed, strategy and size.

    Args:
        scores: source ("scratch" for a run without one), target, accuracy, ...

    Raises:
        UserError: if a run has no such partner, or several.
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
    """With a column response: logit(accuracy) - logit(scratch), or logit(accuracy) without scratch.

    Args:
        scores: accuracy and perhaps scratch, shares; perhaps examples, the size of the test set. Where it is
            known for every run the logit is the empirical one, log((k + .5) / (n - k + .5)) with k hits of n
            (Haldane 1956), which is finite at 0 and 1.

    Raises:
        UserError: if a share is not in [0, 1], or is 0 or 1 and the number of examples is not given.
    """
    require(scores, ["accuracy"])
    n = None
    if "examples" in scores and scores["examples"].notna().all():
        n = scores["examples"].astype(float)

    def of(column: str) -> pd.Series:
        share = scores[column].astype(float)
        if ((share < 0) | (share > 1)).any():
            raise UserError(f"{column} holds values outside [0, 1]")
        if n is not None:
            share = (share * n + 0.5) / (n + 1)
        elif share.isin([0.0, 1.0]).any():
            raise UserError(
                f"{column} holds a 0 or 1, whose logit is infinite without a column examples"
            )
        return pd.Series(logit(share), index=scores.index)

    gain = of("accuracy") - of("scratch") if "scratch" in scores else of("accuracy")
    return scores.assign(response=gain)


def gains(scores: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Points of accuracy gained over scratch.

    Returns:
        One row per combination of the columns `by`: those, targets, gain (mean over targets of the
        mean over their runs), low, high (t interval over targets).
    """
    require(scores, ["target", "accuracy", "scratch", *by])
    points = scores.assign(gain=100 * (scores["accuracy"] - scores["scratch"]))
    table = points.groupby([*by, "target"], sort=False, as_index=False)[["gain"]].mean()
    means = mean_intervals(table, "gain", by).drop(columns="sd")
    return means.rename(columns={"n": "targets", "mean": "gain"})


def pair_gains(scores: pd.DataFrame, folds: int = 1) -> pd.DataFrame:
    """Points of accuracy gained over scratch by each pair, under each strategy and size.

    Args:
        scores: source, target, accuracy and scratch, perhaps strategy and size; one row per seed.
        folds: see `mean_interval`.

    Returns:
        source, target, those of strategy and size that there are, seeds, gain (mean of the differences to the
        run from scratch with the same seed), low, high (95% t interval over seeds).
    """
    require(scores, ["source", "target", "accuracy", "scratch"])
    keys = ["source", "target", *(name for name in CONDITIONS if name in scores)]
    points = scores.assign(gain=100 * (scores["accuracy"] - scores["scratch"]))
    means = mean_intervals(points, "gain", keys, folds=folds).drop(columns="sd")
    return means.rename(columns={"n": "seeds", "mean": "gain"})


def by_condition(scores: pd.DataFrame, measures: Sequence[str]) -> pd.DataFrame:
    """Mean response over the seeds of each pair and condition; only pairs that have every condition, or
    the mean of a pair would depend on which of its conditions failed."""
    require(scores, ["source", "target", "response", *measures])
    if (own := scores["source"] == scores["target"]).any():
        name = scores.loc[own, "source"].iloc[0]
        raise UserError(f"source and target are both {name!r}: its score is no transfer, drop it")
    conditions = [name for name in CONDITIONS if name in scores]
    known = scores.dropna(subset="response")
    keys = ["source", "target", *(name for name in ("family",) if name in scores), *conditions]
    table = known.groupby(keys, sort=False, as_index=False)[["response", *measures]].mean()
    wanted = len(table[conditions].drop_duplicates()) if conditions else 1
    full = table.groupby(["source", "target"])["response"].transform("size") == wanted
    return table[full]


def pair_means(scores: pd.DataFrame, measures: Sequence[str]) -> pd.DataFrame:
    """One row per pair: source, target, family where known, response and measures, means over its
    conditions."""
    table = by_condition(scores, measures)
    keys = ["source", "target", *(name for name in ("family",) if name in table)]
    return table.groupby(keys, sort=False, as_index=False)[["response", *measures]].mean()


def standardised(pairs: pd.DataFrame, measure: str) -> pd.DataFrame:
    """source, target, response, family where known, and z: the measure with mean 0 and standard deviation 1
    (n - 1) within each target; targets on which it is constant or has fewer than two sources drop out."""
    known = pairs.dropna(subset=[measure, "response"])
    groups = known.groupby("target")[measure]
    spread = groups.transform("std")
    z = (known[measure] - groups.transform("mean")) / spread.where(spread > 1e-12)
    kept = [c for c in ("source", "target", "response", "family") if c in known]
    return known[kept].assign(z=z).dropna(subset="z").reset_index(drop=True)
