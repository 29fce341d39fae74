"""Score and cost of each cell, and counts of how its runs ended.

    python -c "from analysis import compare, load; t = load.load_study('freeze_depth'); \\
               print(compare.summary(t.trials, t.info))"
"""

from __future__ import annotations

import math

import pandas as pd
from scipy import stats

from analysis.compare.costs import COSTS, FORECAST, SIZES, pareto_front, priced
from analysis.compare.runs import cells, chosen, completed, mean_interval, tuning
from analysis.load.study import Info
from harness.core.results import WAITED

SHARES = ("trained_depth", "trainable_share")


def summary(trials: pd.DataFrame, info: Info) -> pd.DataFrame:
    """One row per cell of the study, including cells without a complete run.

    Returns:
        cell, the factors, tuned and failed (numbers of tuning trials; killed ones count as neither),
        val_score of the chosen trial, n (repeats with a test score), mean, sd, low, high of test_score
        (interval over seeds), iqm (interquartile mean over seeds as in Agarwal et al. 2021; NaN with fewer
        than 4 seeds), median, min and max over repeats of COSTS (see `costs`), medians of trained_depth
        (share of the layer groups that train, counted from the head), trainable_share (of the parameters),
        SIZES, forecast_mib and waited_share, and time_front, memory_front and latency_front: whether the cell
        is on the Pareto front of accuracy and that cost.
    """
    repeats, tune = priced(trials), tuning(trials)
    repeats = repeats.assign(**{c: math.nan for c in (FORECAST, WAITED) if c not in repeats})
    best = chosen(trials, info.selection).set_index("cell")["val_score"]
    rows = []
    for row in cells(info.factors).to_dict("records"):
        ended = tune.loc[tune["cell"] == row["cell"], "outcome"]
        scores = repeats.loc[repeats["cell"] == row["cell"], "test_score"].dropna()
        mean, sd, low, high = mean_interval(scores, within=(0, 1), folds=info.folds)
        rows.append(
            row
            | {"tuned": int((ended == "complete").sum())}
            | {"failed": int((~ended.isin(["complete", "pruned", "unfinished", "killed"])).sum())}
            | {"val_score": best.get(row["cell"], math.nan), "n": len(scores)}
            | {"mean": mean, "sd": sd, "low": low, "high": high}
            | {"iqm": float(stats.trim_mean(scores, 0.25)) if len(scores) > 3 else math.nan}
        )
    groups = repeats.groupby("cell")
    costs = groups[COSTS].agg(["median", "min", "max"])
    costs.columns = ["_".join(pair) for pair in costs.columns]
    medians = groups[[*SHARES, *SIZES, FORECAST, WAITED]].median()
    medians = medians.rename(columns={FORECAST: "forecast_mib"})
    table = pd.DataFrame(rows)
    rest = medians.drop(columns=[*SHARES])
    measured = pd.concat([medians[[*SHARES]], costs, rest], axis=1).reindex(table["cell"])
    for name, values in measured.items():
        table[name] = values.to_numpy()
    table["time_front"] = pareto_front(table, "mean", ["train_seconds_median"])
    table["memory_front"] = pareto_front(table, "mean", ["peak_memory_mib_median"])
    table["latency_front"] = pareto_front(table, "mean", ["latency_ms_median"])
    return table


def outcomes(trials: pd.DataFrame, info: Info) -> pd.DataFrame:
    """Number of runs by outcome: one row per cell and phase that has runs, one column per outcome that
    occurs, and a last column for superseded runs of any outcome. Killed attempts that were run again are
    included."""
    ended = trials["outcome"].where(~trials["superseded"], "superseded")
    table = pd.crosstab([trials["cell"], trials["phase"]], ended)
    table["superseded"] = table.pop("superseded") if "superseded" in table else 0
    names = [*cells(info.factors)["cell"], "tune", "fold", "repeat"]
    order = {name: i for i, name in enumerate(names)}
    table = table.rename_axis(columns=None).reset_index()
    return table.sort_values(
        ["cell", "phase"], key=lambda names: names.map(order), ignore_index=True
    )


def prediction_mismatches(trials: pd.DataFrame, predictions: pd.DataFrame) -> list[str]:
    """Ids of complete repeats whose predictions are missing or do not agree with their test_accuracy."""
    repeats = completed(trials, "repeat").dropna(subset="test_accuracy").set_index("run_id")
    hit = predictions["label"] == predictions["predicted"]
    share = hit.groupby(predictions["run_id"]).mean().reindex(repeats.index)
    wrong = ~((share.astype(float) - repeats["test_accuracy"]).abs() < 1e-6)
    return list(repeats.index[wrong])
