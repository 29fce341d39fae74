"""The results of a study, read from MLflow: one record per cell, which summarises its repeats."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count, takewhile
from statistics import fmean

from harness.core.caller import undisturbed
from harness.core.html import as_table
from harness.core.race import Entrant, standing
from harness.core.selection import METRICS, Metric
from harness.tracking.runs import Recorded, runs_of, study_tags


@dataclass(frozen=True)
class CellRecord:
    """A cell's complete repeats, one per seed, by rising index, and the metric that its study chooses by.
    `stayed` is the number of seeds for which it stayed in a race; 0 in a study without a time budget."""

    cell: str
    repeats: tuple[Recorded, ...]
    metric: Metric = METRICS["accuracy"]
    stayed: int = 0

    @property
    def merit(self) -> float:
        """Mean validation score over the repeats, negated if lower is better; NaN if they have none."""
        name = self.metric.validation
        mean = self.mean(name)
        return math.nan if mean is None else self.metric.merit({name: mean})

    @property
    def validation(self) -> str:
        """Mean validation score over the repeats in print."""
        mean = self.mean(self.metric.validation)
        return "not known" if mean is None else self.metric.text(mean)

    def mean(self, metric: str) -> float | None:
        """Of a metric over the repeats that have it; None if none has."""
        values = [run.metrics[metric] for run in self.repeats if metric in run.metrics]
        return fmean(values) if values else None

    def worst_and_best(self, metric: str) -> tuple[float, float] | None:
        """Lowest and highest value of a metric among the repeats."""
        values = [run.metrics[metric] for run in self.repeats if metric in run.metrics]
        return (min(values), max(values)) if values else None


def cell_records(
    repeats: Sequence[Recorded], metric: Metric = METRICS["accuracy"]
) -> list[CellRecord]:
    """The cells that have repeats, in the order of their first one; a seed that ran twice counts once."""
    cells: dict[str, dict[int, Recorded]] = {}
    for run in repeats:
        cells.setdefault(run.tags["cell"], {})[int(run.tags["index"])] = run
    return [
        CellRecord(c, tuple(found[i] for i in sorted(found)), metric) for c, found in cells.items()
    ]


def after_race(every: Sequence[Recorded], metric: Metric = METRICS["accuracy"]) -> list[CellRecord]:
    """The cells with the repeats that their configurations were compared on, and for how long these stayed in
    the race.

    Args:
        every: all repeats, also those that were not completed and of other configurations. Their tags
            "superseded" do not count: while the race runs they are not up to date.
        metric: the metric that the study chooses by.
    """
    merits: dict[Entrant, dict[int, float]] = {}
    complete: list[tuple[Entrant, Recorded]] = []
    for run in every:
        outcome = run.tags.get("outcome", "killed")
        one, index = Entrant(run.tags["cell"], int(run.tags["chosen"])), int(run.tags["index"])
        if outcome == "complete":
            merits.setdefault(one, {})[index] = metric.merit(run.metrics)
            complete.append((one, run))
        elif outcome != "killed":
            merits.setdefault(one, {}).setdefault(index, math.nan)
    now = standing(
        {one: [own[i] for i in takewhile(own.__contains__, count())] for one, own in merits.items()}
    )
    seeds = {cell: now.seeds[one] for cell, one in now.of_cell.items()}
    counted = [run for one, run in complete if now.of_cell.get(one.cell) == one]
    return [
        replace(r, repeats=r.repeats[: seeds[r.cell]], stayed=seeds[r.cell])
        for r in cell_records(counted, metric)
    ]


@dataclass(frozen=True, repr=False)
class StudyResult:
    """A study's cells as they are recorded; a table in a notebook and in print.

    Attributes:
        study: name.
        cells: those with complete repeats.
        metric: what it chooses by.
    """

    study: str
    cells: tuple[CellRecord, ...]
    metric: Metric = METRICS["accuracy"]

    def columns(self) -> tuple[str, ...]:
        """Heads of the rows."""
        of = "" if self.metric.name == "accuracy" else f" {self.metric.label}"
        unit = "" if self.metric.less_is_better else ", %"
        return "cell", "repeats", f"validation{of}{unit}", f"test{of}{unit}", "range", "seconds"

    def rows(self) -> list[tuple[str, ...]]:
        """One per cell: means over the repeats, and the range of the test score."""
        test = self.metric.test
        return [
            (
                record.cell,
                str(len(record.repeats)),
                self._text(record.mean(self.metric.validation)),
                self._text(record.mean(test)),
                " to ".join(map(self._text, record.worst_and_best(test) or ())),
                "" if (s := record.mean("train_seconds")) is None else f"{s:.1f}",
            )
            for record in self.cells
        ]

    def __repr__(self) -> str:
        table = [self.columns(), *self.rows()]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [
            "  ".join(value.ljust(w) for value, w in zip(row, widths, strict=True)).rstrip()
            for row in table
        ]
        return "\n".join([f"study {self.study}", *lines])

    def _repr_html_(self) -> str:
        return as_table(f"study {self.study}", self.columns(), self.rows())

    def _text(self, value: float | None) -> str:
        return "" if value is None else self.metric.text(value).removesuffix("%")


@undisturbed()
def load_result(study: str, tracking_uri: str | None = None) -> StudyResult:
    """The recorded results of a study; `analysis.load_study` gives all its trials as a data frame.

    Args:
        study: its name.
        tracking_uri: where it is recorded; None is the database in ./mlruns.

    Raises:
        UserError: if there is no such study.
    """
    tags = study_tags(study, tracking_uri)
    metric = METRICS[tags.get("metric", "accuracy")]
    if "budget" in tags:
        records = after_race(runs_of(study, "repeat", tracking_uri, every=True), metric)
    else:
        records = cell_records(runs_of(study, "repeat", tracking_uri), metric)
    return StudyResult(study, tuple(records), metric)
