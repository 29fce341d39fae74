"""Score and cost of each cell, and how its runs ended.

    python -c "from analysis import compare, load; t = load.load_study('freeze_depth'); \\
               print(compare.summary(t.trials, t.info.factors))"
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pandas as pd
from scipy import stats

from analysis.compare.costs import COSTS, FORECAST, SIZES, pareto_front, priced
from analysis.compare.runs import cells, chosen, completed, mean_interval, tuning
from harness.core.results import WAITED

SHARES = ("trained_depth", "trainable_share")


def summary(
    trials: pd.DataFrame,
    factors: Mapping[str, Sequence[str]],
    selection: str = "val_score",
    folds: int = 1,
) -> pd.DataFrame:
    """One row per cell of the study, also for cells without a single complete run.

    Args:
        trials: as loaded.
        factors: the cells.
        selection: the score that configurations are chosen by; see `runs.chosen`.
        folds: see `mean_interval`.

    Returns:
        cell, the factors, tuned and failed (numbers of tuning trials), val_score of the trial chosen by
        `selection`, n (repeats with a test score), mean, sd, low, high of test_score (interval resamples
        seeds), iqm (mean of the middle half of the seeds, as of Agarwal 2021; NaN under 4 seeds), median over
        repeats of trained_depth (share of the layer groups trained, from the head down) and trainable_share
        (of the parameters), median, min and max over repeats of COSTS, and medians of SIZES (see `costs`),
        forecast_mib and waited_share (medians), and time_front, memory_front and latency_front: on the Pareto
        front of accuracy against that cost.
    """
    repeats = priced(trials)
    repeats = repeats.assign(**{c: math.nan for c in (FORECAST, WAITED) if c not in repeats})
    best = chosen(trials, selection).set_index("cell")["val_score"]
    groups = dict(iter(repeats.groupby("cell")))
    tune = tuning(trials)
    tried = dict(iter(tune.groupby("cell")["outcome"]))
    rows = []
    for row in cells(factors).to_dict("records"):
        own = groups.get(row["cell"], repeats[:0])
        ended = tried.get(row["cell"], tune["outcome"][:0])
        scores = own["test_score"].dropna()
        mean, sd, low, high = mean_interval(scores, within=(0, 1), folds=folds)
        rows.append(
            row
            | {"tuned": int((ended == "complete").sum())}
            | {"failed": int((~ended.isin(["complete", "pruned", "unfinished"])).sum())}
            | {"val_score": best.get(row["cell"], math.nan), "n": len(scores)}
            | {"mean": mean, "sd": sd, "low": low, "high": high}
            | {"iqm": float(stats.trim_mean(scores, 0.25)) if len(scores) > 3 else math.nan}
            | {share: float(own[share].median()) for share in SHARES}
            | {
                f"{cost}_{name}": float(getattr(own[cost], name)())
                for cost in COSTS
                for name in ("median", "min", "max")
            }
            | {size: float(own[size].median()) for size in SIZES}
            | {"forecast_mib": float(own[FORECAST].median())}
            | {WAITED: float(own[WAITED].median())}
        )
    table = pd.DataFrame(rows)
    table["time_front"] = pareto_front(table, "mean", ["train_seconds_median"])
    table["memory_front"] = pareto_front(table, "mean", ["peak_memory_mib_median"])
    table["latency_front"] = pareto_front(table, "mean", ["latency_ms_median"])
    return table


def outcomes(trials: pd.DataFrame, factors: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """How many runs of each cell and phase ended how: one row per cell and phase that has runs, one
    column per outcome seen, and last those that are superseded, however they ended. Killed attempts that were
    tried again count here."""
    ended = trials["outcome"].where(~trials["superseded"], "superseded")
    table = pd.crosstab([trials["cell"], trials["phase"]], ended)
    table["superseded"] = table.pop("superseded") if "superseded" in table else 0
    order = {cell: i for i, cell in enumerate(cells(factors)["cell"])}
    table = table.rename_axis(columns=None).reset_index()
    table["phase"] = table["phase"].astype(pd.CategoricalDtype(["tune", "fold", "repeat"]))
    rank = table["cell"].map(lambda cell: order.get(cell, len(order)))
    table = table.assign(_rank=rank).sort_values(["_rank", "phase"]).drop(columns="_rank")
    table["phase"] = table["phase"].astype("str")
    return table.reset_index(drop=True)


def prediction_mismatches(trials: pd.DataFrame, predictions: pd.DataFrame) -> list[str]:
    """Run ids of complete repeats whose predictions are missing or disagree with test_accuracy."""
    repeats = completed(trials, "repeat").dropna(subset="test_accuracy").set_index("run_id")
    hit = predictions["label"] == predictions["predicted"]
    share = hit.groupby(predictions["run_id"]).mean().reindex(repeats.index)
    wrong = ~((share.astype(float) - repeats["test_accuracy"]).abs() < 1e-6)
    return list(repeats.index[wrong])
