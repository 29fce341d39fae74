"""Ranks of arms over several targets, whose scores cannot be compared with each other.

    python -c "from analysis import compare, load; t = load.load_study('two_targets'); \\
               print(compare.mean_ranks(t.trials, t.info.factors))"

A study with the factor `target` asks the same question of each target; an arm is a combination of the other
factors. Arms are ranked within a target, and the target is the unit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from analysis.compare.runs import cells, completed, mean_interval
from harness.core.study import cell_label

CONTEXT = "target"


def arms(factors: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """Of each cell: cell, context (the target; "" when it is not compared) and arm (label of the rest)."""
    rows = []
    several = CONTEXT in factors and len(factors[CONTEXT]) > 1 and len(factors) > 1
    for row in cells(factors).to_dict("records"):
        rest = {name: str(row[name]) for name in factors if name != CONTEXT or not several}
        context = str(row[CONTEXT]) if several else ""
        rows.append({"cell": row["cell"], "context": context, "arm": cell_label(rest)})
    return pd.DataFrame(rows)


def mean_ranks(trials: pd.DataFrame, factors: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """How each arm ranks over the targets, the best first.

    Returns:
        arm, targets (on which it has a score), mean_rank (1 is the best; mean of ties), low, high (95%
        t interval over targets, cut off at the first and last rank), wins (targets on which it is first) and
        behind (mean points below the best of the target). Empty when the study does not compare targets.
    """
    table = arms(factors)
    columns = ["arm", "targets", "mean_rank", "low", "high", "wins", "behind"]
    if not table["context"].any():
        return pd.DataFrame(columns=columns)
    scores = completed(trials, "repeat").groupby("cell")["test_score"].mean()
    table = table.assign(mean=table["cell"].map(scores)).dropna(subset="mean")
    groups = table.groupby("context")["mean"]
    table = table.assign(
        rank=groups.rank(ascending=False), behind=100 * (groups.transform("max") - table["mean"])
    )
    rows, most = [], table["arm"].nunique()
    for arm, own in table.groupby("arm", sort=False):
        mean, _, low, high = mean_interval(own["rank"], within=(1, most))
        rows.append(
            {"arm": arm, "targets": len(own), "mean_rank": mean, "low": low, "high": high}
            | {"wins": int((own["behind"] == 0).sum()), "behind": float(own["behind"].mean())}
        )
    ranked = pd.DataFrame(rows, columns=columns)
    return ranked.sort_values("mean_rank", kind="stable", ignore_index=True)
