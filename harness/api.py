"""The functions behind `python -m harness.study`, for Python and notebooks.

    from harness import dry_run, run_study
    result = run_study("studies/freeze_depth.py", trials=3)
    result          # a table in a notebook

`from harness import ...` offers these and the functions of the other commands. They return frozen objects,
which a notebook shows as tables.

A study is a file, because its hash is recorded and other processes import it. In a notebook, `%%writefile`
creates one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypedDict, Unpack

from harness import study as command
from harness.core.caller import undisturbed
from harness.core.command_line import escaped_output
from harness.core.errors import UserError
from harness.core.html import as_table
from harness.core.spec import Study
from harness.core.study_file import load_study
from harness.tracking.runs import runs_of

if TYPE_CHECKING:
    import argparse

    from harness.deploy.choice import CellRecord

COLUMNS = ("cell", "repeats", "validation, %", "test, %", "range", "seconds")


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


class StudyOptions(TypedDict, total=False):
    """How a study is run: the options of the command, all of them optional.

    Attributes:
        device: "auto", "cpu", "cuda" or "mps".
        trials: per cell, instead of the file's.
        repeats: the same.
        cells: "3/16" runs every sixteenth cell only, from the third on.
        storage: Optuna storage URL; the default is the database beside MLflow's.
        tracking_uri: MLflow's; the default is the database in ./mlruns.
        cache_dir: where outputs of frozen layers are kept.
        cache_budget: a size such as "10GiB"; "0" keeps nothing.
        max_memory: a size: a trial whose forecast is higher is recorded as oom, not run.
        max_minutes: a trial that takes longer is recorded as timeout; if it cannot be interrupted, this
            process (in a notebook the kernel) is ended a minute later.
        workers: number of trials that run at the same time, in processes or as Ray tasks.
        engine: "processes" or "ray".
        address: address of the Ray cluster.
        worker_cpus: CPUs of each Ray task.
        worker_gpus: GPUs of each Ray task; 0.5 runs two tasks on one GPU.
        detail: how much is printed for each trial.
    """

    device: str
    trials: int
    repeats: int
    cells: str
    storage: str
    tracking_uri: str
    cache_dir: str | Path
    cache_budget: str
    max_memory: str
    max_minutes: float
    workers: int
    engine: Literal["processes", "ray"]
    address: str
    worker_cpus: float
    worker_gpus: float
    detail: Literal["quiet", "normal", "verbose"]


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
    from harness.deploy.choice import cell_records

    return StudyResult(study, tuple(cell_records(runs_of(study, "repeat", tracking_uri))))


@undisturbed()
@escaped_output()
def run_study(path: str | Path, **options: Unpack[StudyOptions]) -> StudyResult:
    """Run or resume a study, as `python -m harness.study` does; progress is printed.

    Args:
        path: the study file, or the name of a shipped study.
        options: as in StudyOptions.

    Raises:
        UserError: on bad input, or if the study ended early (the reason is printed).
    """
    arguments = _arguments(path, options)
    if command.run(arguments):
        raise UserError(f"study {path} ended early; the reason is printed above")
    return load_result(load_study(arguments.space).name, options.get("tracking_uri"))


@undisturbed()
@escaped_output()
def dry_run(path: str | Path, **options: Unpack[StudyOptions]) -> Study:
    """Print what `run_study` would run: cells, first trials, forecasts of memory and time.

    Args:
        path: the study file, or the name of a shipped study.
        options: as in StudyOptions.

    Returns:
        The study that the file defines; a table in a notebook.

    Raises:
        UserError: on bad input.
    """
    arguments = _arguments(path, options)
    arguments.dry_run = True
    command.run(arguments)
    return load_study(arguments.space)


def _arguments(path: str | Path, options: StudyOptions) -> argparse.Namespace:
    """What the command line would give: its own parser knows the defaults, and what is wrong with a value."""
    if unknown := sorted(options.keys() - StudyOptions.__annotations__.keys()):
        known = ", ".join(StudyOptions.__annotations__)
        raise UserError(f"unknown option {unknown[0]!r}; there are {known}")
    given = dict(options)
    detail = given.pop("detail", "normal")
    words = [f"--{k.replace('_', '-')}={v}" for k, v in given.items() if v is not None]
    arguments = command.parse([f"--space={path}", *words])
    arguments.detail = detail
    return arguments
