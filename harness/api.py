"""What the commands do, as functions for Python and notebooks; `harness` offers them under one roof.

    from harness import dry_run, run_study
    result = run_study("studies/freeze_depth.py", trials=3)
    result          # a table in a notebook

A study is a file: its hash is recorded, and other processes read it. In a notebook `%%writefile` makes one.
"""

from __future__ import annotations

import html
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import study as command
from harness.record_runs import runs_of
from harness.spec import Study, UserError
from harness.study_file import load_study

if TYPE_CHECKING:
    from harness.winner.choice import CellRecord

COLUMNS = ("cell", "repeats", "validation, %", "test, %", "lowest to highest", "seconds")


@dataclass(frozen=True)
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

    def __str__(self) -> str:
        table = [COLUMNS, *self.rows()]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [
            "  ".join(value.ljust(w) for value, w in zip(row, widths, strict=True)).rstrip()
            for row in table
        ]
        return "\n".join([f"study {self.study}", *lines])

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{name}</th>" for name in COLUMNS)
        body = "".join(
            f"<tr>{''.join(f'<td>{html.escape(value)}</td>' for value in row)}</tr>"
            for row in self.rows()
        )
        name = html.escape(self.study)
        return f"<table><caption>study {name}</caption><tr>{head}</tr>{body}</table>"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"


def load_result(study: str, tracking_uri: str | None = None) -> StudyResult:
    """What is recorded of a study; `analysis.load_study` gives every trial of it as a data frame.

    Args:
        study: its name.
        tracking_uri: where it is recorded; None is the database in ./mlruns.

    Raises:
        UserError: if there is no such study.
    """
    from harness.winner.choice import cell_records

    return StudyResult(study, tuple(cell_records(runs_of(study, "repeat", tracking_uri))))


def run_study(path: str | Path, **options: Any) -> StudyResult:
    """Run a study file, or go on with it, as `python -m harness.study` does; progress is printed.

    Args:
        path: the study file.
        options: those of the command, with underscores: trials, repeats, device, storage, tracking_uri,
            cache_dir, cache_budget, max_memory.

    Raises:
        UserError: on bad input, or if the study ended early (what was said is printed).
    """
    if command.run(_arguments(path, options)):
        raise UserError(f"study {path} ended early; the reason is printed above")
    return load_result(load_study(Path(path)).name, options.get("tracking_uri"))


def dry_run(path: str | Path, **options: Any) -> Study:
    """Print what `run_study` would run: cells, first trials, forecasts of memory and time.

    Args:
        path: the study file.
        options: as for `run_study`.

    Returns:
        The study that the file defines.

    Raises:
        UserError: on bad input.
    """
    arguments = _arguments(path, options)
    arguments.dry_run = True
    command.run(arguments)
    return load_study(Path(path))


def _arguments(path: str | Path, options: dict[str, Any]) -> Any:
    """What the command line would give: its own parser knows the options and their defaults."""
    arguments = command.parse(["--space", str(path)])
    for name, value in options.items():
        if name in ("space", "dry_run") or not hasattr(arguments, name):
            known = ", ".join(n for n in vars(arguments) if n not in ("space", "dry_run"))
            raise UserError(f"unknown option {name!r}; there are {known}")
        setattr(arguments, name, value)
    return arguments
