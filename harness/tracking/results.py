"""The results of a study, as MLflow has them: one record per cell, of its repeats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from harness.core.caller import undisturbed
from harness.core.html import as_table
from harness.tracking.runs import Kept, runs_of

COLUMNS = ("cell", "repeats", "validation, %", "test, %", "range", "seconds")


@dataclass(frozen=True)
class CellRecord:
    """A cell's complete repeats, one per seed, by rising index."""

    cell: str
    repeats: tuple[Kept, ...]

    def mean(self, metric: str) -> float | None:
        """Of a metric over the repeats that have it; None if none has."""
        values = [k.run.metrics[metric] for k in self.repeats if metric in k.run.metrics]
        return fmean(values) if values else None

    def worst_and_best(self, metric: str) -> tuple[float, float] | None:
        """Lowest and highest value of a metric among the repeats."""
        values = [k.run.metrics[metric] for k in self.repeats if metric in k.run.metrics]
        return (min(values), max(values)) if values else None


def cell_records(repeats: Sequence[Kept]) -> list[CellRecord]:
    """The cells that have repeats, in the order of their first one; a seed that ran twice counts once."""
    cells: dict[str, dict[int, Kept]] = {}
    for kept in repeats:
        cells.setdefault(kept.run.tags["cell"], {})[int(kept.run.tags["index"])] = kept
    return [CellRecord(c, tuple(found[i] for i in sorted(found))) for c, found in cells.items()]


@dataclass(frozen=True, repr=False)
class StudyResult:
    """A study's cells as they are recorded; a table in a notebook and in print.

    Attributes:
        study: name.
        cells: those with complete repeats.
    """

    study: str
    cells: tuple[CellRecord, ...]

    def rows(self) -> list[tuple[str, ...]]:
        """One per cell, as in COLUMNS: means over the repeats, and the range of test accuracy."""
        return [
            (
                record.cell,
                str(len(record.repeats)),
                _percent(record.mean("val_accuracy")),
                _percent(record.mean("test_accuracy")),
                " to ".join(map(_percent, record.worst_and_best("test_accuracy") or ())),
                "" if (s := record.mean("train_seconds")) is None else f"{s:.1f}",
            )
            for record in self.cells
        ]

    def __repr__(self) -> str:
        table = [COLUMNS, *self.rows()]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [
            "  ".join(value.ljust(w) for value, w in zip(row, widths, strict=True)).rstrip()
            for row in table
        ]
        return "\n".join([f"study {self.study}", *lines])

    def _repr_html_(self) -> str:
        return as_table(f"study {self.study}", COLUMNS, self.rows())


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"


@undisturbed()
def load_result(study: str, tracking_uri: str | None = None) -> StudyResult:
    """The recorded results of a study; `analysis.load_study` gives all its trials as a data frame.

    Args:
        study: its name.
        tracking_uri: where it is recorded; None is the database in ./mlruns.

    Raises:
        UserError: if there is no such study.
    """
    return StudyResult(study, tuple(cell_records(runs_of(study, "repeat", tracking_uri))))
