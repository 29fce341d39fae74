"""Costs of the cells, and Pareto fronts of score and cost.

    python -c "from analysis import compare, load; t = load.load_study('freeze_depth'); \\
               print(compare.front_chance(t.trials, t.info))"

Time is training time. If the study states so, it is *cold-equivalent*: the time without anything cached by
other trials, which is what the strategy costs if it is run alone. The time that the run itself took is
*marginal* and is not compared. Times and memory of different devices or numbers of threads are not pooled:
only the condition with the most compared repeats is used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from analysis.compare.runs import cells, completed, recorded
from analysis.load.study import Info
from harness.core.errors import counted
from harness.core.folds import independent_runs

FORECAST = "forecast_peak_mib"
MEMORY = {
    "peak_accelerator_allocated_mib": "accelerator, measured",
    FORECAST: "accelerator, forecast",
    "peak_process_rss_mib": "process, measured",
}
"""Metrics of memory, in order of preference, and their names in print."""
COSTS = ["train_seconds", "marginal_seconds", "peak_memory_mib", "latency_ms", "images_per_second"]
"""Costs that depend on the device and the number of threads."""
SIZES = ["parameters", "weights_mib", "multiply_adds"]
"""Costs that do not depend on them."""
CENSORED = ("oom", "timeout")
RESAMPLES = 1000


def memory_column(trials: pd.DataFrame) -> str:
    """The memory metric to compare: the accelerator's if any repeat has it, else its forecast, else the
    process's, most of which is used by libraries. It is the same for the whole study, because the metrics are
    not comparable with each other."""
    repeats = completed(trials, "repeat")
    known = [column for column in MEMORY if column in repeats and repeats[column].notna().any()]
    return known[0] if known else list(MEMORY)[-1]


def memory_kind(trials: pd.DataFrame) -> str:
    """Name of `memory_column` in print."""
    return MEMORY[memory_column(trials)]


def conditions(runs: pd.DataFrame) -> pd.Series:
    """The device and threads of each run in print, such as "cpu, 2 threads", as far as they were recorded."""
    told = pd.Series("", index=runs.index, dtype="str")
    if "device" in runs:
        told = runs["device"].astype("str").fillna("")
        told = told.mask(told.str.match(r"\d"), "device " + told)
    if "threads" in runs:
        threads = runs["threads"].map(lambda n: counted(n, "thread"), na_action="ignore")
        told = (told + ", " + threads.astype("str").fillna("")).str.strip(", ")
    return told


def condition(trials: pd.DataFrame) -> str:
    """The condition whose times are compared: that of the most compared repeats (of ties, the first in
    alphabetical order); "" if there are none."""
    told = conditions(completed(trials, "repeat"))
    return "" if told.empty else str(told.value_counts().sort_index().idxmax())


def priced(trials: pd.DataFrame) -> pd.DataFrame:
    """The compared repeats with COSTS and SIZES; NaN if not measured. COSTS are also NaN for runs under
    another condition than the compared one."""
    repeats = completed(trials, "repeat")
    repeats = repeats.assign(peak_memory_mib=repeats[memory_column(trials)])
    repeats = repeats.assign(**{c: math.nan for c in (*COSTS, *SIZES) if c not in repeats})
    repeats.loc[conditions(repeats) != condition(trials), COSTS] = math.nan
    return repeats


def left_out(trials: pd.DataFrame) -> pd.DataFrame:
    """Compared repeats whose costs are not compared: condition, runs, cells (numbers). Empty if there are
    none."""
    repeats = completed(trials, "repeat")
    rows = [
        {"condition": name, "runs": len(own), "cells": own["cell"].nunique()}
        for name, own in repeats.groupby(conditions(repeats))
        if name != condition(trials)
    ]
    return pd.DataFrame(rows, columns=["condition", "runs", "cells"])


def censored(trials: pd.DataFrame, info: Info) -> pd.DataFrame:
    """Cells in which a run exceeded the memory or the time limit, so that their costs are only known to be at
    least as high.

    Returns:
        cell, outcome (oom or timeout), runs, of (all runs of the cell), scored (whether the cell nevertheless
        has a test score), seconds (the longest such run, a lower bound), memory_mib (the highest measured in
        such a run, or else its forecast; NaN if neither is known).
    """
    rows = []
    counted = recorded(trials[~trials["superseded"]])
    ended = counted[counted["outcome"].isin(CENSORED)]
    done = set(completed(trials, "repeat").dropna(subset="test_score")["cell"])
    for cell in cells(info.factors)["cell"]:
        for outcome, own in ended[ended["cell"] == cell].groupby("outcome"):
            memory = own[memory_column(trials)]
            if FORECAST in own:
                memory = memory.fillna(own[FORECAST])
            seconds = own["train_seconds"]
            if "total_seconds" in own:
                seconds = seconds.fillna(own["total_seconds"])
            rows.append(
                {"cell": cell, "outcome": outcome, "runs": len(own)}
                | {"of": int((counted["cell"] == cell).sum()), "scored": cell in done}
                | {"seconds": float(seconds.max()), "memory_mib": float(memory.max())}
            )
    columns = ["cell", "outcome", "runs", "of", "scored", "seconds", "memory_mib"]
    return pd.DataFrame(rows, columns=columns).astype({"scored": bool})


def seed_weights(seeds: int, resamples: int = RESAMPLES) -> np.ndarray:
    """How often each seed is drawn in each bootstrap resample (resamples x seeds)."""
    random = np.random.default_rng(0)
    weights: np.ndarray = random.multinomial(seeds, [1 / seeds] * seeds, size=resamples)
    return weights


def drawn_means(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Means (resamples x cells) of `values` (seeds x cells, NaN if unknown) with `weights` (resamples x
    seeds). If a resample contains no known seed of a cell, the mean over all of its seeds is used."""
    known = ~np.isnan(values)
    total = weights @ np.where(known, values, 0.0)
    count = weights @ known
    with np.errstate(invalid="ignore"):
        plain = np.where(known, values, 0.0).sum(axis=0) / known.sum(axis=0)
        means: np.ndarray = np.where(count > 0, total / np.maximum(count, 1), plain)
    return means


def front_chance(trials: pd.DataFrame, info: Info, resamples: int = RESAMPLES) -> pd.DataFrame:
    """Share of bootstrap resamples in which each cell is on the Pareto front of accuracy, time and memory.

    Seeds are drawn with replacement, the same for all cells, and the front is computed from the means of each
    resample. A cost that no cell has is ignored; a cell that lacks one of the others is not on the front.
    With a single seed the share is 0 or 1 and carries no information. Deviations of the accuracies of runs on
    folds are scaled up, because they count as fewer independent ones (see
    `harness.core.folds.independent_runs`).

    Returns:
        One row per scored cell: cell, n (seeds), on_front (for the means of all seeds), chance (share of
            resamples), costs (which ones).
    """
    repeats = priced(trials).dropna(subset="test_score")
    names = [cell for cell in cells(info.factors)["cell"] if cell in set(repeats["cell"])]
    used = [c for c in ("train_seconds", "peak_memory_mib") if repeats[c].notna().any()]
    columns = ["cell", "n", "on_front", "chance", "costs"]
    if not names or not used:
        return pd.DataFrame(columns=columns)
    table = repeats.pivot(index="seed", columns="cell", values=["test_score", *used])
    measured = [table[name][names].to_numpy(dtype=float) for name in ("test_score", *used)]
    weights = np.vstack([np.ones((1, len(table))), seed_weights(len(table), resamples)])
    drawn = [drawn_means(weights, values) for values in measured]
    if info.folds > 1:
        stretch = math.sqrt(len(table) / independent_runs(len(table), info.folds))
        drawn[0] = drawn[0][0] + stretch * (drawn[0] - drawn[0][0])
    points = np.stack([drawn[0], *(-cost for cost in drawn[1:])], axis=-1)
    fronts = np.stack([on_front(cloud) for cloud in points])
    return pd.DataFrame(
        {
            "cell": names,
            "n": (~np.isnan(measured[0])).sum(axis=0),
            "on_front": fronts[0],
            "chance": fronts[1:].mean(axis=0),
            "costs": " and ".join(used),
        },
        columns=columns,
    )


def on_front(points: np.ndarray) -> np.ndarray:
    """Whether each row (higher is better in all columns) is on the front: no other row is at least as good in
    all columns and better in one. A row with a NaN is not on the front and does not dominate any row."""
    at_least = np.ones((len(points), len(points)), dtype=bool)
    better = np.zeros_like(at_least)
    for column in points.T:
        at_least &= column[:, None] >= column
        better |= column[:, None] > column
    beaten = (at_least & better).any(axis=0)
    front: np.ndarray = ~beaten & ~np.isnan(points).any(axis=1)
    return front


def pareto_front(table: pd.DataFrame, value: str, costs: Sequence[str]) -> pd.Series:
    """`on_front` for the column `value` (higher is better) and `costs` (lower is better) of a table."""
    points = np.column_stack([table[value], *(-table[cost] for cost in costs)]).astype(float)
    return pd.Series(on_front(points), index=table.index, dtype=bool)
