"""Runs that may be compared, the chosen trial of each cell, and the interval of a mean.

    python -c "from analysis import compare, load; t = load.load_study('freeze_depth'); \\
               print(compare.chosen(t.trials, t.info.selection))"
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress

import numpy as np
import pandas as pd
from scipy import stats

from analysis.load.study import DERIVED, ranked
from harness.core.errors import UserError
from harness.core.folds import independent_runs
from harness.core.study import cell_label, cells_of

CONFIDENCE = 0.95


def cells(factors: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """All cells in the order written: one row each, columns cell and one per factor."""
    return pd.DataFrame([{"cell": cell_label(row), **row} for row in cells_of(factors)])


def recorded(trials: pd.DataFrame) -> pd.DataFrame:
    """The rows that are recorded runs; other rows are derived from them."""
    return trials[~trials[DERIVED]] if DERIVED in trials else trials


def tuning(trials: pd.DataFrame) -> pd.DataFrame:
    """The tuning trials that count, with any outcome: those that are not superseded."""
    return trials[(trials["phase"] == "tune") & ~trials["superseded"]]


def completed(trials: pd.DataFrame, phase: str) -> pd.DataFrame:
    """The runs of one phase that may be compared: complete and not superseded.

    Raises:
        UserError: if two of them have the same slot, which would be counted twice.
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


def best_tuned(trials: pd.DataFrame, selection: str = "val_score") -> pd.DataFrame:
    """The best tuning trial of each cell: one row per cell with a validation score.

    Args:
        trials: as loaded.
        selection: "val_score" for the highest (of ties the one with the lower val_loss, then the lower
            index), "val_loss" for the lowest (of ties the lower index), "" to choose nothing.
    """
    if not selection:
        return trials[:0].reset_index(drop=True)
    tuned = completed(trials, "tune").dropna(subset=selection)
    return ranked(tuned, selection).drop_duplicates("cell").reset_index(drop=True)


def chosen(trials: pd.DataFrame, selection: str = "val_score") -> pd.DataFrame:
    """The tuning trial of each cell whose configuration was repeated; without repeats the best one. Test
    scores have no influence. Arguments and result are those of `best_tuned`."""
    best = best_tuned(trials, selection)
    repeated = completed(trials, "repeat").drop_duplicates("cell").set_index("cell")["chosen"]
    index = best["cell"].map(repeated).fillna(best["index"])
    tuned = completed(trials, "tune").set_index(["cell", "index"], drop=False)
    kept = [
        place if place in tuned.index else (cell, before)
        for cell, before, place in zip(
            best["cell"], best["index"], zip(best["cell"], index, strict=True), strict=True
        )
    ]
    return tuned.loc[kept].reset_index(drop=True)


def class_counts(
    runs: pd.DataFrame, classes: int = 0
) -> Iterator[tuple[str, list[tuple[int, str]], int]]:
    """The parts of the split, with the numbers of examples of its classes, in each way that was recorded.

    Args:
        runs: as loaded.
        classes: number of classes, for the total if all have equally many in every part.

    Yields:
        The part; numbers of examples with their classes (at least the smallest and the largest), none if all
        are equal; and the total.
    """
    for recorded in runs["images_per_class"].dropna().unique():
        with suppress(
            ValueError, KeyError, TypeError, AttributeError
        ):  # not written by the harness
            parts = json.loads(recorded)
            by_class = [counts for counts in parts.values() if not isinstance(counts, int)]
            for part, counts in parts.items():
                if isinstance(counts, int):
                    yield part, [], counts * (len(by_class[0]) if by_class else classes)
                elif counts.keys() == {"least", "most", "all"}:
                    ends = [(int(n), str(name)) for n, name in (counts["least"], counts["most"])]
                    yield part, ends, int(counts["all"])
                else:
                    named = [(int(n), str(name)) for name, n in counts.items()]
                    yield part, named, sum(n for n, _ in named)


def split_sizes(runs: pd.DataFrame, predictions: pd.DataFrame) -> dict[str, int]:
    """Number of training, validation and test examples of runs, as far as recorded and equal for all of
    them."""
    if "images_per_class" not in runs:
        return {}
    classes = predictions.groupby("cell")["label"].nunique().to_dict()
    found: dict[str, set[int]] = {}
    for cell, own in runs.groupby("cell"):
        for part, _, total in class_counts(own, classes.get(cell, 0)):
            found.setdefault(part, set()).add(total)
    return {part: min(n) for part, n in found.items() if len(n) == 1 and min(n) > 0}


def mean_interval(
    values: Iterable[float],
    within: tuple[float, float] = (-math.inf, math.inf),
    folds: int = 1,
) -> tuple[float, float, float, float]:
    """Mean, standard deviation (n - 1) and 95% t interval of `values`, without NaNs.

    mean -+ t(.975, n - 1) sd / sqrt(n) (Student 1908), limited to the possible range of the mean, `within`.
    With n < 2 all but the mean are NaN, and the ends are NaN if all values are equal, as in scipy: how much
    others would differ is not known. Values of k-fold runs count as fewer than n (see
    `harness.core.folds.independent_runs`).
    """
    x = np.asarray(list(values), dtype=float)
    x = x[~np.isnan(x)]
    if len(x) < 2:
        return (float(x[0]) if len(x) else math.nan), math.nan, math.nan, math.nan
    mean, sd = float(x.mean()), float(x.std(ddof=1))
    if (x == x[0]).all():  # the sum may be rounded
        return mean, 0.0, math.nan, math.nan
    error = sd / math.sqrt(independent_runs(len(x), folds))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(x) - 1)) * error
    return mean, sd, max(within[0], mean - half), min(within[1], mean + half)


def mean_intervals(
    rows: pd.DataFrame,
    value: str,
    by: Sequence[str],
    within: tuple[float, float] = (-math.inf, math.inf),
    folds: int = 1,
) -> pd.DataFrame:
    """`mean_interval` of the column `value` for each combination of the columns `by`, in their order: these
    columns, n (known values), mean, sd, low and high."""
    found = [
        (*key, int(own.notna().sum()), *mean_interval(own, within=within, folds=folds))
        for key, own in rows.groupby(list(by), sort=False)[value]
    ]
    return pd.DataFrame(found, columns=[*by, "n", "mean", "sd", "low", "high"])
