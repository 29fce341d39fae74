"""What was tuning worth, and how did the compared runs learn?

    python -c "from analysis import compare, load; \
               print(compare.budget_curve(load.load_study('freeze_depth').trials))"
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from analysis.compare.cells import chosen, completed

WORTHLESS = ("diverged", "oom", "timeout", "pruned")
"""Outcomes that used up a tuning trial and gave nothing that could be chosen; the other incomplete
outcomes (crashed, killed, audit_failed) are faults of the run, not of its configuration."""


def expected_best(values: Sequence[float]) -> list[float]:
    """Expected best of n draws without replacement from `values`, for n = 1..N.

    sum_i v_(i) C(i - 1, n - 1) / C(N, n) with v sorted ascending (the unbiased form of Dodge et al.
    2019). An estimate of best-of-n only when the values come from independent, identical draws.
    """
    ordered = sorted(values)
    total = len(ordered)
    return [
        sum(v * (math.comb(i, n - 1) / math.comb(total, n)) for i, v in enumerate(ordered))
        for n in range(1, total + 1)
    ]


def budget_curve(trials: pd.DataFrame) -> pd.DataFrame:
    """Expected best validation accuracy of a cell after n tuning trials.

    A trial that was wasted (WORTHLESS) counts as the lowest accuracy any trial of the study had: it
    used up budget. Faulty runs are left out. Valid only for an i.i.d. sampler ("random").

    Returns:
        cell, trials (n), val_accuracy; cells without a complete trial have no rows.
    """
    tuned = completed(trials, "tune").dropna(subset="val_accuracy")
    wasted = trials[(trials["phase"] == "tune") & trials["outcome"].isin(WORTHLESS)]
    wasted = wasted.drop_duplicates(["cell", "index"])
    worst = float(tuned["val_accuracy"].min()) if len(tuned) else math.nan
    rows = []
    for cell, own in tuned.groupby("cell", sort=False):
        lost = int((wasted["cell"] == cell).sum())
        curve = expected_best([*own["val_accuracy"], *[worst] * lost])
        rows += [{"cell": cell, "trials": n, "val_accuracy": v} for n, v in enumerate(curve, 1)]
    return pd.DataFrame(rows, columns=["cell", "trials", "val_accuracy"])


def learning_curves(trials: pd.DataFrame, epochs: pd.DataFrame) -> pd.DataFrame:
    """Validation accuracy by epoch of the compared repeats; without any, of the chosen trials.

    Returns:
        run_id, cell, epoch, val_accuracy, and mean: over the runs of the cell at that epoch.
    """
    runs = completed(trials, "repeat")
    runs = runs if len(runs) else chosen(trials)
    curves = epochs.merge(runs[["run_id", "cell"]], on="run_id", validate="many_to_one")
    curves = curves.dropna(subset="val_accuracy")
    mean = curves.groupby(["cell", "epoch"])["val_accuracy"].transform("mean")
    return curves[["run_id", "cell", "epoch", "val_accuracy"]].assign(mean=mean)
