"""Factors with a special meaning: targets, whose scores cannot be compared with each other, and sizes.

    python -c "from analysis import compare, load; t = load.load_study('two_targets'); \\
               print(compare.mean_ranks(t.trials, t.info))"

In a study with the factor `target`, an arm is a combination of the other factors. Arms are ranked within each
target, and the target is the unit of analysis. The size is the first compared factor whose labels are all
positive numbers; a line is a combination of the other factors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pandas as pd

from analysis.compare.runs import cells, completed, mean_interval
from analysis.load.study import Info
from harness.core.study import cell_label

CONTEXT = "target"


def without(factors: Mapping[str, Sequence[str]], factor: str | None) -> dict[str, tuple[str, str]]:
    """The label of each cell for a factor, and the label of the rest ("" if there are no other factors)."""
    found = {}
    for row in cells(factors).to_dict("records"):
        rest = {name: str(row[name]) for name in factors if name != factor}
        own = "" if factor is None else str(row[factor])
        found[str(row["cell"])] = own, cell_label(rest) if rest else ""
    return found


def arms(factors: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """Target and arm of each cell: cell, context (the target; "" if targets are not compared) and arm."""
    several = CONTEXT in factors and len(factors[CONTEXT]) > 1 and len(factors) > 1
    parts = without(factors, CONTEXT if several else None)
    return pd.DataFrame([(c, *p) for c, p in parts.items()], columns=["cell", "context", "arm"])


def size_factor(factors: Mapping[str, Sequence[str]]) -> str | None:
    """The first factor with at least two labels, all of them different positive numbers; None if there is
    none."""
    for factor, labels in factors.items():
        sizes = {_positive(label) for label in labels}
        if len(sizes) == len(labels) > 1 and None not in sizes:
            return factor
    return None


def _positive(label: str) -> float | None:
    try:
        value = float(label)
    except ValueError:
        return None
    return value if 0 < value < math.inf else None


def size_lines(factors: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """Line and size of each cell: cell, line (values of the other factors; the name of the size factor if
    there are none), size. Empty without a size factor."""
    factor = size_factor(factors)
    parts = without(factors, factor) if factor else {}
    rows = [(cell, rest or factor, float(size)) for cell, (size, rest) in parts.items()]
    return pd.DataFrame(rows, columns=["cell", "line", "size"]).astype({"size": float})


def mean_ranks(trials: pd.DataFrame, info: Info) -> pd.DataFrame:
    """Mean rank of each arm over the targets, best first.

    Returns:
        arm, targets (on which it has a score), mean_rank (1 is the best; ties get average ranks), low, high
        (95% t interval over targets, limited to the first and last rank), wins (targets on which it is first)
        and behind (mean points below the best arm of the target). Empty if the study does not compare
        targets.
    """
    table = arms(info.factors)
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
