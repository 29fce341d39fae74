"""Which figures do the data of a study allow?

    python -c "from analysis import compare, load, plots; t = load.load_study('freeze_depth'); \\
               print(*plots.figures(t, compare.find(t)))"
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pandas as pd
from matplotlib.figure import Figure

from analysis import compare
from analysis.plots.canvas import MANY, Style, styles
from analysis.plots.cells import accuracy, cost, differences, matrix, ranks
from analysis.plots.shifts import shifted
from analysis.plots.similarity import agreement, gain
from analysis.plots.sizes import by_size
from analysis.plots.tuning import (
    budget,
    budget_of_many,
    budget_ranks,
    importances,
    learning_curves,
    rate_ranges,
    rates,
)

if TYPE_CHECKING:
    from analysis.compare import Findings
    from analysis.load import StudyTable

LINES = 12
"""Curves above which one picture shows none."""


def figures(table: StudyTable, found: Findings) -> dict[str, Figure]:
    """The figures that the data allow, by file stem; their captions stand in the page's template.

    Of many cells the scores become a matrix of two factors and curves a summary over cells.
    """
    summary, metric = found.summary, table.info.metric
    trials = table.trials[table.trials["cell"].isin(summary["cell"])]
    lines = compare.size_lines(table.info.factors)
    groups = {}
    if lines["line"].nunique() > 1:
        groups = dict(zip(lines["cell"], lines["line"], strict=True))
    style = styles(list(summary["cell"]), groups)
    made = _scores(table, found, trials, style)
    if found.ranks.empty:
        made |= _costs(found, trials, style, metric)
    if 0 < found.curves["cell"].nunique() <= MANY:
        made["learning_curves"] = learning_curves(found.curves, style, metric)
    return made | _tuning(table, found, trials, style) | _similarity(found)


def _scores(
    table: StudyTable, found: Findings, trials: pd.DataFrame, style: Mapping[str, Style]
) -> dict[str, Figure]:
    made: dict[str, Figure] = {}
    factors, metric = table.info.factors, table.info.metric
    factor, lines = compare.size_factor(factors), compare.size_lines(factors)
    repeats = compare.completed(trials, "repeat")
    few = lines["line"].nunique() <= MANY
    if factor and few and found.by_size["size"].nunique() > 1:
        look = styles(list(lines["line"].unique()))
        scores = repeats.merge(lines, on="cell")
        made["by_size"] = by_size(found.by_size, scores, factor, look, metric)
    scored = int(found.summary["mean"].notna().sum())
    if scored > MANY and len(factors) > 1:
        row = next(name for name in factors if name != "target")
        column = "target" if "target" in factors else list(factors)[-1]
        made["matrix"] = matrix(found.summary, row, column, metric)
    elif scored:
        made["accuracy"] = accuracy(found.summary, repeats, style, metric)
    if len(found.ranks) > 1:
        made["ranks"] = ranks(found.ranks, styles(list(found.ranks["arm"])))
    if 0 < found.differences["difference"].notna().sum() <= 2 * MANY:
        made["differences"] = differences(found.differences, style, metric)
    if len(found.shifted):
        made["shifted"] = shifted(found.shifted, style, metric)
    return made


def _costs(
    found: Findings, trials: pd.DataFrame, style: Mapping[str, Style], metric: str
) -> dict[str, Figure]:
    made: dict[str, Figure] = {}
    summary, dead = found.summary, found.censored[~found.censored["scored"]]
    cold = ", cold-equivalent" * bool(summary["marginal_seconds_median"].notna().any())
    for name, front, label, bound in (
        ("train_seconds", "time_front", f"Training time of one repeat{cold} (s)", "seconds"),
        (
            "peak_memory_mib",
            "memory_front",
            f"Peak memory, {compare.memory_kind(trials)} (MiB)",
            "memory_mib",
        ),
    ):
        if (summary["mean"].notna() & (summary[f"{name}_min"] > 0)).any():
            limits = dead.rename(columns={bound: "at_least"})
            known = limits[limits["at_least"] > 0]
            made[name] = cost(summary, name, front, label, style, metric, known)
    return made


def _tuning(
    table: StudyTable, found: Findings, trials: pd.DataFrame, style: Mapping[str, Style]
) -> dict[str, Figure]:
    made: dict[str, Figure] = {}
    metric, tuned = table.info.metric, compare.completed(trials, "tune")
    curve = found.budget
    if len(curve) and table.info.sampler != "tpe":
        if curve["cell"].nunique() > LINES:
            made["budget_of_many"] = budget_of_many(curve, metric)
        else:
            made["budget"] = budget(curve, style, "trials", metric)
            if (curve["seconds"] > 0).all() and curve["trials"].max() > 1:
                made["budget_seconds"] = budget(curve, style, "seconds", metric)
        order = found.budget_ranks
        if 1 < order["cell"].nunique() <= LINES and order["budget"].nunique() > 2:
            made["budget_ranks"] = budget_ranks(order, style)
    if "param.lr" in tuned and len(tuned.dropna(subset=["param.lr", "val_accuracy"])):
        if tuned["cell"].nunique() <= MANY:
            made["learning_rates"] = rates(tuned, style, metric)
        if len(found.rates):
            made["rate_ranges"] = rate_ranges(found.rates, style)
    if len(found.importances):
        made["importances"] = importances(found.importances, style)
    return made


def _similarity(found: Findings) -> dict[str, Figure]:
    known = found.similarity
    made = {"agreement": agreement(known.agreement, known.means)} if len(known.means) else {}
    return made | ({"gain": gain(known.points)} if len(known.points) else {})
