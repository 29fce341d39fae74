"""Costs of the cells, and the Pareto fronts of score and cost.

    python -c "from analysis import compare, load; t = load.load_study('freeze_depth'); \\
               print(compare.front_chance(t.trials, t.info))"

Time is that of training, *cold-equivalent* where the study says so: as if nothing had been kept from
other trials, so what the strategy costs someone who runs it alone. What the run itself spent is
*marginal* and never compared. Seconds and memory of different devices or numbers of threads are not
pooled: the condition with the most compared repeats counts, the others are left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from analysis.compare.runs import cells, completed, recorded
from analysis.load.study import Info
from harness.core.folds import independent_runs

FORECAST = "forecast_peak_mib"
MEMORY = {
    "peak_accelerator_allocated_mib": "accelerator, measured",
    FORECAST: "accelerator, forecast",
    "peak_process_rss_mib": "process, measured",
}
"""Metrics of memory, the one to compare first, and what they are in print."""
COSTS = ["train_seconds", "marginal_seconds", "peak_memory_mib", "latency_ms", "images_per_second"]
"""Costs that depend on the device and the number of threads."""
SIZES = ["parameters", "weights_mib", "multiply_adds"]
"""Costs that do not."""
CENSORED = ("oom", "timeout")
RESAMPLES = 1000


def memory_column(trials: pd.DataFrame) -> str:
    """The memory metric to compare: the accelerator's where any repeat has it, else its forecast, else the
    process's, most of which is libraries. One for the whole study: they measure different things and are
    never mixed."""
    repeats = completed(trials, "repeat")
    known = [column for column in MEMORY if column in repeats and repeats[column].notna().any()]
    return known[0] if known else list(MEMORY)[-1]


def memory_kind(trials: pd.DataFrame) -> str:
    """What `memory_column` is, in print."""
    return MEMORY[memory_column(trials)]


def conditions(runs: pd.DataFrame) -> pd.Series:
    """What each run ran on, in print: "cpu, 2 threads"; the part that was not recorded is left out."""
    told = pd.Series("", index=runs.index, dtype="str")
    if "device" in runs:
        told = runs["device"].astype("str").fillna("")
        told = told.mask(told.str.match(r"\d"), "device " + told)
    if "threads" in runs:
        threads = runs["threads"].map(lambda n: f"{n} thread{'s' * (n != 1)}", na_action="ignore")
        told = (told + ", " + threads.astype("str").fillna("")).str.strip(", ")
    return told


def condition(trials: pd.DataFrame) -> str:
    """The condition whose times are compared: that of most compared repeats (of equals the first in the
    alphabet); "" without any."""
    told = conditions(completed(trials, "repeat"))
    return "" if told.empty else str(told.value_counts().sort_index().idxmax())


def priced(trials: pd.DataFrame) -> pd.DataFrame:
    """The compared repeats with COSTS and SIZES; NaN where not measured. COSTS are also NaN for runs under
    another condition than the compared one."""
    repeats = completed(trials, "repeat")
    repeats = repeats.assign(peak_memory_mib=repeats[memory_column(trials)])
    repeats = repeats.assign(**{c: math.nan for c in (*COSTS, *SIZES) if c not in repeats})
    repeats.loc[conditions(repeats) != condition(trials), COSTS] = math.nan
    return repeats


def left_out(trials: pd.DataFrame) -> pd.DataFrame:
    """Compared repeats whose costs are not: condition, runs, cells (their number). Empty if none."""
    repeats = completed(trials, "repeat")
    rows = [
        {"condition": name, "runs": len(own), "cells": own["cell"].nunique()}
        for name, own in repeats.groupby(conditions(repeats))
        if name != condition(trials)
    ]
    return pd.DataFrame(rows, columns=["condition", "runs", "cells"])


def censored(trials: pd.DataFrame, info: Info) -> pd.DataFrame:
    """Cells in which a run went out of memory or of time: they cost at least what was seen, or more than
    there was.

    Returns:
        cell, outcome (oom or timeout), runs, of (all runs of the cell), scored (whether the cell has
        a test score all the same), seconds (the longest such run, a lower bound), memory_mib (the most
        such a run had measured, else its forecast; NaN when neither is known).
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
    """Means (resamples x cells) of `values` (seeds x cells, NaN if unknown) under `weights` (resamples x
    seeds). A resample that draws no known seed of a cell has that cell's mean over all of them."""
    known = ~np.isnan(values)
    total = weights @ np.where(known, values, 0.0)
    count = weights @ known
    with np.errstate(invalid="ignore"):
        plain = np.where(known, values, 0.0).sum(axis=0) / known.sum(axis=0)
        means: np.ndarray = np.where(count > 0, total / np.maximum(count, 1), plain)
    return means


def front_chance(trials: pd.DataFrame, info: Info, resamples: int = RESAMPLES) -> pd.DataFrame:
    """How surely each cell is on the Pareto front of accuracy, time and memory.

    Seeds are drawn with replacement, the same for every cell, and the front is taken of the mean of
    each of the three in that resample. A cost that no cell has plays no part; a cell that misses one of
    the others cannot be on the front. One seed: the share is 0 or 1 and says nothing about chance. Deviations
    of the accuracy of runs on folds are scaled up, as they count as fewer independent ones, see
    `harness.core.folds.independent_runs`.

    Returns:
        One row per scored cell: cell, n seeds, on_front (now), chance (share of resamples), costs
        (which ones).
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
    """Whether each row (more is better in every column) is on the front: no other row is at least as good in
    all columns and better in one. A row with a NaN is never on it and beats none."""
    at_least = np.ones((len(points), len(points)), dtype=bool)
    better = np.zeros_like(at_least)
    for column in points.T:
        at_least &= column[:, None] >= column
        better |= column[:, None] > column
    beaten = (at_least & better).any(axis=0)
    front: np.ndarray = ~beaten & ~np.isnan(points).any(axis=1)
    return front


def pareto_front(table: pd.DataFrame, value: str, costs: Sequence[str]) -> pd.Series:
    """`on_front` of the column `value` (more is better) and `costs` (less is better) of a table."""
    points = np.column_stack([table[value], *(-table[cost] for cost in costs)]).astype(float)
    return pd.Series(on_front(points), index=table.index, dtype=bool)
