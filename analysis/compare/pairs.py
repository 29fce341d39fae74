"""Pairs of a source and a target: the observations of the similarity effect, which runs are not.

    python -c "import pandas as pd; from analysis.compare.pairs import *; \\
               print(standardised(pair_means(pd.read_csv('responses.csv'), ['logme']), 'logme'))"
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from analysis.compare.agreement import require
from analysis.compare.responses import CONDITIONS
from harness.core.errors import UserError


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
