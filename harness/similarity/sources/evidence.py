"""How well each measure has ranked sources in the recorded studies, and how much accuracy its choices lost.

    evidence(read_results(read_runs(uri, PHASES)))

For each target, the source that a measure ranks first is compared with the source of highest accuracy. The
same is done for the static ranking, which uses the sources' results on the other targets and nothing about
this one. A measure that does no better than that says nothing about similarity.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import weightedtau

from harness.similarity import static_rank
from harness.similarity.sources.measuring import labels_of
from harness.tracking.runs import Recorded

PHASES = ("repeat", "similarity")
STATIC = "static_rank"
LEAST = 3
"""Smallest number of sources with which a target counts."""


@dataclass(frozen=True)
class Results:
    """Accuracies and measures of one study.

    Attributes:
        study: name of the study.
        targets, sources: names of the rows and columns below.
        accuracy: (targets, sources) mean test accuracy, as a share; NaN where there is no run.
        measures: name -> (targets, sources) values, where higher is more promising; NaN where there is none.
    """

    study: str
    targets: tuple[str, ...]
    sources: tuple[str, ...]
    accuracy: np.ndarray
    measures: Mapping[str, np.ndarray]


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


def read_results(runs: Iterable[Recorded]) -> list[Results]:
    """One entry per study with results. Results are averaged over conditions (strategy, size, seed); only
    sources and targets with the same conditions can be compared fairly."""
    scores: dict[str, dict[tuple[str, str], list[float]]] = {}
    measures: dict[str, dict[str, dict[tuple[str, str], float]]] = {}
    for run in runs:
        source, target = labels_of(run.tags, {"source": "?", "target": "?", **run.params})
        if run.tags["phase"] == "similarity":
            for name, better in run.tags.items():
                if name.startswith("better."):
                    name = name.removeprefix("better.")
                    value = run.metrics[f"similarity.{name}"] * (1 if better == "higher" else -1)
                    own = measures.setdefault(run.experiment, {}).setdefault(name, {})
                    own[target, source] = value
        elif run.tags.get("outcome") == "complete" and run.tags.get("superseded") != "true":
            own_scores = scores.setdefault(run.experiment, {})
            own_scores.setdefault((target, source), []).append(run.metrics["test_accuracy"])
    return [_results(study, own, measures.get(study, {})) for study, own in scores.items()]


def _results(
    study: str,
    scores: Mapping[tuple[str, str], Sequence[float]],
    measures: Mapping[str, Mapping[tuple[str, str], float]],
) -> Results:
    targets = tuple(dict.fromkeys(target for target, _ in scores))
    sources = tuple(dict.fromkeys(source for _, source in scores))

    def table(values: Mapping[tuple[str, str], float]) -> np.ndarray:
        return np.array([[values.get((t, s), math.nan) for s in sources] for t in targets])

    accuracy = table({key: float(np.mean(own)) for key, own in scores.items()})
    return Results(study, targets, sources, accuracy, {n: table(v) for n, v in measures.items()})


def evidence(results: Sequence[Results]) -> list[Evidence]:
    """How well each measure has chosen sources, lowest regret first, including the static ranking."""
    rows: dict[str, list[tuple[float, float, float]]] = {}
    for result in results:
        static = _static(result)
        for name, values in {**result.measures, STATIC: static}.items():
            for t in range(len(result.targets)):
                found = _pick(values[t], result.accuracy[t])
                if found is not None:
                    both = np.where(np.isfinite(values[t]), static[t], math.nan)
                    other = _pick(both, result.accuracy[t])
                    rows.setdefault(name, []).append((*found, other[0] if other else math.nan))
    found_all = [
        Evidence(name, len(own), *(float(np.mean(column)) for column in zip(*own, strict=True)))
        for name, own in rows.items()
    ]
    return sorted(found_all, key=lambda e: (e.regret, e.measure))


def _static(result: Results) -> np.ndarray:
    """(targets, sources) negative mean rank on the other targets."""
    rows = [
        [-static_rank(result.accuracy, s, t).value for s in range(len(result.sources))]
        for t in range(len(result.targets))
    ]
    return np.array(rows)


def _pick(values: np.ndarray, accuracy: np.ndarray) -> tuple[float, float] | None:
    """Regret and weighted tau on one target; None if there are too few sources or the measure is constant."""
    known = np.isfinite(values) & np.isfinite(accuracy)
    values, accuracy = values[known], accuracy[known]
    if len(values) < LEAST or np.ptp(values) == 0 or np.ptp(accuracy) == 0:
        return None
    best = values == values.max()
    regret = float(accuracy.max() - accuracy[best].mean())
    return regret, float(weightedtau(values, accuracy).statistic)
