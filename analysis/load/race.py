"""Which configuration a race compared in each cell, and for how many seeds; see `harness.core.race`."""

from __future__ import annotations

import math
from itertools import count, takewhile

import pandas as pd

from harness.core.race import Entrant, Standing, standing
from harness.core.selection import Metric

NO_RESULT = ("unfinished", "killed")
"""Outcomes of runs whose slot is still to be run."""


def race_standing(trials: pd.DataFrame, selection: str, metric: Metric) -> Standing:
    """Which finalists were retired, and after how many seeds. They are configurations of cells, so they also
    include superseded ones: those that are not the configuration of their cell.

    Args:
        trials: as loaded.
        selection: the column of the scores by which the study chooses.
        metric: the metric by which it chooses.
    """
    repeats = trials[(trials["phase"] == "repeat") & ~trials["outcome"].isin(NO_RESULT)]
    repeats = repeats.sort_values(["index", "attempt"])
    scores: dict[Entrant, list[float]] = {}
    sign = -1.0 if metric.less_is_better else 1.0
    of_entrant = repeats.groupby(["cell", "chosen"])
    for one, own in ((Entrant(str(c), int(i)), own) for (c, i), own in of_entrant):  # type: ignore[call-overload]
        by_index = {
            int(row["index"]): row[selection] if row["outcome"] == "complete" else math.nan
            for row in own.to_dict("records")
        }
        in_a_row = takewhile(by_index.__contains__, count())
        scores[one] = [sign * by_index[n] for n in in_a_row]
    return standing(scores)


def of_other_configurations(trials: pd.DataFrame, selection: str, metric: Metric) -> pd.Series:
    """True for repeats of a configuration that is not that of its cell; arguments are those of
    `race_standing`. The tags in MLflow say the same when the race has ended, but not while it runs."""
    now = race_standing(trials, selection, metric)
    own = {cell: one.chosen for cell, one in now.of_cell.items()}
    of_cell = pd.to_numeric(trials["cell"].map(own), errors="coerce").astype("Int64")
    other = (trials["phase"] == "repeat") & (trials["chosen"] != of_cell)
    return other.fillna(False).astype(bool)
