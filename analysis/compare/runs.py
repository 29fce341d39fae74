"""Which runs may be compared, which trial of a cell was chosen, and how far does a mean reach?

    python -c "from analysis import compare, load; t = load.load_study('freeze_depth'); \\
               print(compare.chosen(t.trials, t.info.selection))"
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
from scipy import stats

from harness.core.errors import UserError
from harness.core.spec import cell_label

CONFIDENCE = 0.95


def cells(factors: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """Every cell in the order written: one row each, columns cell and one per factor."""
    rows = [dict(zip(factors, v, strict=True)) for v in itertools.product(*factors.values())]
    return pd.DataFrame([{"cell": cell_label(row), **row} for row in rows])


def tuning(trials: pd.DataFrame) -> pd.DataFrame:
    """The tuning trials that count, however they ended: not superseded."""
    return trials[(trials["phase"] == "tune") & ~trials["superseded"]]


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


def chosen(trials: pd.DataFrame, selection: str = "val_accuracy") -> pd.DataFrame:
    """The chosen configuration of each cell; one row per cell with a validation score.

    Args:
        trials: as loaded.
        selection: the greatest "val_accuracy" (ties go to the lower val_loss, then to the lower index) or the
            least "val_loss" (ties to the lower index); "" chooses nothing. Test scores play no part.
    """
    if not selection:
        return trials[:0].reset_index(drop=True)
    tuned = completed(trials, "tune").dropna(subset=selection)
    by = {"val_accuracy": ["val_accuracy", "val_loss", "index"], "val_loss": ["val_loss", "index"]}
    order = by[selection]
    ranked = tuned.sort_values(order, ascending=[column != "val_accuracy" for column in order])
    return ranked.drop_duplicates("cell").reset_index(drop=True)


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
