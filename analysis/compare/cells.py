"""How good is each cell, what does it cost, and how did its runs end?

    python -c "from analysis import compare, load; t = load.load_study('freeze_depth'); \
               print(compare.summary(t.trials, t.info.factors))"
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
from scipy import stats

from harness.spec import UserError, cell_label

CONFIDENCE = 0.95


def cells(factors: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """Every cell in the order written: one row each, columns cell and one per factor."""
    rows = [dict(zip(factors, v, strict=True)) for v in itertools.product(*factors.values())]
    return pd.DataFrame([{"cell": cell_label(row), **row} for row in rows])


def completed(trials: pd.DataFrame, phase: str) -> pd.DataFrame:
    """The runs of one phase that may be compared: complete and not superseded.

    Raises:
        UserError: if two of them fill the same slot, which would count it twice.
    """
    kept = trials[
        (trials["phase"] == phase) & (trials["outcome"] == "complete") & ~trials["superseded"]
    ]
    slot = "seed" if phase == "repeat" else "index"
    double = kept[kept.duplicated(["cell", slot], keep=False)]
    if len(double):
        first = double.iloc[0]
        same = double[(double["cell"] == first["cell"]) & (double[slot] == first[slot])]
        raise UserError(
            f"two complete {phase} runs for cell {first['cell']!r}, {slot} {first[slot]}: "
            f"{', '.join(same['run_id'])}; delete one in MLflow"
        )
    return kept.reset_index(drop=True)


def chosen(trials: pd.DataFrame) -> pd.DataFrame:
    """The configuration of each cell with the best validation accuracy; one row per scored cell.

    Ties go to the lower val_loss, then to the lower index. Test scores play no part.
    """
    tuned = completed(trials, "tune").dropna(subset="val_accuracy")
    ranked = tuned.sort_values(["val_accuracy", "val_loss", "index"], ascending=[False, True, True])
    return ranked.drop_duplicates("cell").reset_index(drop=True)


def memory_column(trials: pd.DataFrame) -> str:
    """The memory metric to compare: the accelerator's where any run has it, else the process's.

    One for the whole study: the two measure different things and are never mixed in one column.
    """
    gpu = "peak_accelerator_allocated_mib"
    return gpu if trials[gpu].notna().any() else "peak_process_rss_mib"


def mean_interval(
    values: Iterable[float], confidence: float = CONFIDENCE
) -> tuple[float, float, float, float]:
    """Mean, standard deviation (n - 1) and t interval (95% unless told) of `values`, NaNs left out.

    mean -+ t((1 + confidence) / 2, n - 1) sd / sqrt(n) (Student 1908). With n < 2 all but the mean are NaN.
    """
    x = np.asarray(list(values), dtype=float)
    x = x[~np.isnan(x)]
    if len(x) < 2:
        return (float(x[0]) if len(x) else math.nan), math.nan, math.nan, math.nan
    mean, sd = float(x.mean()), float(x.std(ddof=1))
    half = float(stats.t.ppf((1 + confidence) / 2, len(x) - 1)) * sd / math.sqrt(len(x))
    return mean, sd, mean - half, mean + half


def summary(trials: pd.DataFrame, factors: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """One row per cell of the study, also for cells without a single complete run.

    Returns:
        cell, the factors, tuned and failed (numbers of tuning trials), val_accuracy of the chosen
        one, n (repeats with a test score), mean, sd, low, high of test_accuracy (interval resamples
        seeds), median over repeats of trained_depth (share of the layer groups trained, from the head
        down) and trainable_share (of the parameters), and median, min and max over repeats of
        train_seconds and peak_memory_mib; time_front and memory_front: on the Pareto front of accuracy
        against that cost.
    """
    repeats = completed(trials, "repeat")
    repeats = repeats.assign(peak_memory_mib=repeats[memory_column(trials)])
    best = chosen(trials).set_index("cell")["val_accuracy"]
    tune = trials[trials["phase"] == "tune"]
    rows = []
    for row in cells(factors).to_dict("records"):
        own = repeats[repeats["cell"] == row["cell"]]
        tried = tune.loc[tune["cell"] == row["cell"], "outcome"]
        mean, sd, low, high = mean_interval(own["test_accuracy"])
        costs = {
            f"{cost}_{name}": float(getattr(own[cost], name)())
            for cost in ("train_seconds", "peak_memory_mib")
            for name in ("median", "min", "max")
        }
        rows.append(
            row
            | {"tuned": int((tried == "complete").sum())}
            | {"failed": int((~tried.isin(["complete", "pruned", "unfinished"])).sum())}
            | {"val_accuracy": best.get(row["cell"], math.nan)}
            | {"n": int(own["test_accuracy"].notna().sum())}
            | {"mean": mean, "sd": sd, "low": low, "high": high}
            | {share: float(own[share].median()) for share in ("trained_depth", "trainable_share")}
            | costs
        )
    table = pd.DataFrame(rows)
    table["time_front"] = pareto_front(table, "mean", ["train_seconds_median"])
    table["memory_front"] = pareto_front(table, "mean", ["peak_memory_mib_median"])
    return table


def pareto_front(table: pd.DataFrame, value: str, costs: Sequence[str]) -> pd.Series:
    """Whether each row is on the front: no other is at least as good in `value` (more is better)
    and in every cost (less is better), and better in one. A row with a NaN is never on it."""
    points = np.column_stack([table[value], *(-table[cost] for cost in costs)]).astype(float)
    known = ~np.isnan(points).any(axis=1)
    front = [
        bool(ok)
        and not any(
            bool((other >= point).all() and (other > point).any()) for other in points[known]
        )
        for point, ok in zip(points, known, strict=True)
    ]
    return pd.Series(front, index=table.index, dtype=bool)


def outcomes(trials: pd.DataFrame, factors: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """How many runs of each cell and phase ended how: one row per cell and phase that has runs, one
    column per outcome seen, plus superseded. Killed attempts that were tried again count here."""
    table = pd.crosstab([trials["cell"], trials["phase"]], trials["outcome"])
    table["superseded"] = trials.groupby(["cell", "phase"])["superseded"].sum()
    order = {cell: i for i, cell in enumerate(cells(factors)["cell"])}
    table = table.rename_axis(columns=None).reset_index()
    table["phase"] = table["phase"].astype(pd.CategoricalDtype(["tune", "repeat"]))
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
