"""How well each measure has ranked sources in the recorded studies, and how much accuracy its choices lost.

    evidence(read_results(read_runs(uri, PHASES)))

For each target, the source that a measure ranks first is compared with the source of highest accuracy. The
same is done for the static ranking, which uses the sources' results on the other targets and nothing about
this one. A measure that does no better than that says nothing about similarity.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import weightedtau

from harness.similarity import static_rank
from harness.similarity.sources.measuring import labels_of
from harness.tracking.runs import Recorded

PHASES = ("repeat", "similarity")
PAIR = ["study", "target", "source"]
STATIC = "static_rank"
LEAST = 3
"""Smallest number of sources with which a target counts."""


@dataclass(frozen=True)
class Evidence:
    """How well one measure has chosen sources.

    Attributes:
        measure: name of the measure.
        targets: number of targets with enough results.
        regret: mean over these targets of best accuracy - accuracy of the chosen source, as a share.
        tau: mean weighted rank correlation (scipy's weightedtau) with the accuracies.
        static_regret: regret of the static ranking on the same targets; NaN if there is none.
    """

    measure: str
    targets: int
    regret: float
    tau: float
    static_regret: float

    @property
    def beats_static(self) -> bool:
        """Whether the regret is lower than that of the static ranking on the same targets."""
        return self.regret < self.static_regret


def read_results(runs: Iterable[Recorded]) -> pd.DataFrame:
    """Accuracies and measures of the pairs of recorded studies.

    Returns:
        PAIR, accuracy (mean test accuracy over conditions: strategy, size, seed; only sources and targets
        with the same conditions can be compared fairly) and one column per measure, where higher is more
        promising; NaN where there is none. Of a pair measured twice the later counts.
    """
    rows: list[dict[str, object]] = []
    for run in runs:
        source, target = labels_of(run.tags, {"source": "?", "target": "?", **run.params})
        row: dict[str, object] = dict(zip(PAIR, (run.experiment, target, source), strict=True))
        if run.tags["phase"] == "similarity":
            for tag, better in run.tags.items():
                if (name := tag.removeprefix("better.")) != tag:
                    value = run.metrics[f"similarity.{name}"]
                    row[name] = value if better == "higher" else -value
        elif run.tags.get("outcome") == "complete" and run.tags.get("superseded") != "true":
            row["accuracy"] = run.metrics["test_accuracy"]
        rows.append(row)
    every = pd.DataFrame(rows)
    every = every.reindex(columns=list(dict.fromkeys([*PAIR, "accuracy", *every.columns])))
    pairs = every.astype({"accuracy": float}).groupby(PAIR, sort=False)
    found = pairs.last().assign(accuracy=pairs["accuracy"].mean())
    return found.dropna(subset="accuracy").reset_index()


def evidence(results: pd.DataFrame) -> list[Evidence]:
    """How well each measure has chosen sources, lowest regret first, including the static ranking; `results`
    from `read_results`."""
    rows: dict[str, list[tuple[float, float, float]]] = {}
    for _, own in results.groupby("study", sort=False):
        accuracy = own.pivot(index="target", columns="source", values="accuracy")
        measures = {
            str(name): own.pivot(index="target", columns="source", values=name).to_numpy(
                dtype=float
            )
            for name in own.columns.drop([*PAIR, "accuracy"])
        }
        reached = accuracy.to_numpy(dtype=float)
        static = np.array(
            [[-static_rank(reached, s, t).value for s in range(reached.shape[1])]
             for t in range(len(reached))]
        )  # fmt: skip
        for name, values in {**measures, STATIC: static}.items():
            for of_target, of_static, scores in zip(values, static, reached, strict=True):
                if (found := _pick(of_target, scores)) is not None:
                    other = _pick(np.where(np.isfinite(of_target), of_static, math.nan), scores)
                    rows.setdefault(name, []).append((*found, other[0] if other else math.nan))
    found_all = [
        Evidence(name, len(picks), *(float(np.mean(column)) for column in zip(*picks, strict=True)))
        for name, picks in rows.items()
    ]
    return sorted(found_all, key=lambda e: (e.regret, e.measure))


def _pick(values: np.ndarray, accuracy: np.ndarray) -> tuple[float, float] | None:
    """Regret and weighted tau on one target; None if there are too few sources or the measure is constant."""
    known = np.isfinite(values) & np.isfinite(accuracy)
    values, accuracy = values[known], accuracy[known]
    if len(values) < LEAST or np.ptp(values) == 0 or np.ptp(accuracy) == 0:
        return None
    best = values == values.max()
    regret = float(accuracy.max() - accuracy[best].mean())
    return regret, float(weightedtau(values, accuracy).statistic)
