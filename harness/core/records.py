"""The recorded facts of a study and of each trial, as plain values.

They are stored in Optuna's storage (`harness.search.record`) and shown in MLflow
(`harness.tracking.projection`).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from harness.core.results import NOT_RUN, RETRIED, EpochResult
from harness.core.study import Cell, Phase, cell_label, cells_of


@dataclass(frozen=True)
class Slot:
    """One place in the plan: the `index`-th trial, or repeat, of a cell.

    With k-fold resampling, `folds` slots in a row are a round, one for each fold: a round of trials has one
    configuration, a round of repeats one division of the images. Otherwise each slot is a round.
    """

    cell: Cell
    phase: Phase
    index: int
    folds: int = 1

    def __str__(self) -> str:
        return f"{cell_label(self.cell)}, {self.name}"

    @property
    def name(self) -> str:
        """Kind and number, without the cell."""
        kind = "trial" if self.phase == "tune" else "repeat"
        if self.folds == 1:
            return f"{kind} {self.index}"
        return f"{kind} {self.round}, fold {self.index % self.folds + 1}/{self.folds}"

    @property
    def round(self) -> int:
        """Number of the slot's round: of its configuration, or of its division of the images."""
        return self.index // self.folds

    @property
    def key(self) -> tuple[str, Phase, int]:
        """The slot as a hashable key."""
        return cell_label(self.cell), self.phase, self.index


@dataclass(frozen=True)
class StudyInfo:
    """A study as a whole.

    Attributes:
        name: name of the study and of its MLflow experiment.
        question: the study file's docstring.
        command: the command line that repeats the study.
        factors: factor -> compared labels, in the order written.
        baseline: one value of some factors.
        trials: configurations per cell.
        repeats: seeds per cell.
        sampler: name of the sampler; budget curves need "random".
        seed: root of every random stream of the study.
        leaks: one line per target whose train, validation and test images overlap.
        study_file: name of the study file, without its folder.
        space_sha256: hash of the study file.
        folds: folds of k-fold resampling, on each of which a configuration is run; 1 for a single split.
        metric: name of the metric by which configurations and cells are chosen.
        budget: seconds of a race (see `harness.core.race`), in which trials and repeats have no effect; None
            with equal numbers of trials.
        screening: seconds of its first part, tuning. They stay as they were first recorded, so that a larger
            budget continues the race.
        source: text of the study file.
    """

    name: str
    question: str
    command: str
    factors: Mapping[str, list[str]]
    baseline: Mapping[str, str]
    trials: int
    repeats: int
    sampler: str
    seed: int
    leaks: tuple[str, ...]
    study_file: str
    space_sha256: str
    folds: int = 1
    metric: str = "accuracy"
    budget: float | None = None
    screening: float | None = None
    source: str = ""

    @property
    def tuning_runs(self) -> int:
        """Number of tuning runs of a cell among which its configuration is chosen; with a budget all."""
        return self.trials * self.folds if self.budget is None else sys.maxsize

    @property
    def repeat_runs(self) -> int:
        """Number of repeats of a cell; with a budget as many as fit."""
        return self.repeats if self.budget is None else sys.maxsize

    def cells(self) -> list[Cell]:
        """Every combination of one value per factor, in the order written."""
        return list(cells_of(self.factors))


@dataclass(frozen=True)
class TrialRecord:
    """One recorded attempt at a slot.

    Attributes:
        key: identifies the trial in the record: its Optuna study, "#" and its number there.
        slot: the place in the plan.
        number: Optuna's number of the trial.
        attempt: number of the attempt at this slot, counted from 1.
        seed: seed of the trial; None if it died before it was drawn.
        chosen: for a repeat, the round of the tuning trial whose configuration is repeated.
        params: suggested values, by name.
        ranges: distributions of the suggested values, as text.
        spec: the complete flat TrialSpec; empty if the space returned none.
        inputs: hashes of the images and weights that it reads.
        outcome: one of `harness.core.results.OUTCOMES`; "" while it runs.
        lasting: it is not run again, although it crashed.
        died: its process ended without reporting a result.
        reason: explanation of the outcome, if there is one.
        metrics: the measured values.
        epochs: results of its epochs.
        notes: further information for the reader, by name.
        provenance: device, versions and the like, by tag.
        predictions: name of the file of its test predictions; "" if there is none.
        started, ended: times by the coordinator's clock; None if unknown.
        superseded: whether it repeats a configuration that is not, or no longer, that of its cell.
        workers: largest number of trials that ran at the same time.
    """

    key: str
    slot: Slot
    number: int
    attempt: int
    seed: int | None = None
    chosen: int | None = None
    params: Mapping[str, object] = field(default_factory=dict)
    ranges: Mapping[str, str] = field(default_factory=dict)
    spec: Mapping[str, object] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    outcome: str = ""
    lasting: bool = False
    died: bool = False
    reason: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    epochs: tuple[EpochResult, ...] = ()
    notes: Mapping[str, str] = field(default_factory=dict)
    provenance: Mapping[str, str] = field(default_factory=dict)
    predictions: str = ""
    started: datetime | None = None
    ended: datetime | None = None
    superseded: bool = False
    workers: int = 1

    def but(self, **changes: object) -> TrialRecord:
        """A copy with some fields changed."""
        return replace(self, **changes)  # type: ignore[arg-type]

    @property
    def study(self) -> str:
        """Name of the study."""
        return self.key.partition("/")[0]

    def name(self, race: bool) -> str:
        """Kind and number; in a race, in which a cell may have several finalists, also which one."""
        of = f" of trial {self.chosen}" if race and self.chosen is not None else ""
        return f"{self.slot.name}{of}"

    def describe(self, race: bool) -> str:
        """Cell, kind and number."""
        return f"{cell_label(self.slot.cell)}, {self.name(race)}"

    @property
    def lasts(self) -> bool:
        """True if it completes its slot: the next run of the command does not try the slot again."""
        return bool(self.outcome) and (self.lasting or self.outcome not in RETRIED)

    @property
    def not_run(self) -> bool:
        """True if it was not run because of its memory forecast."""
        return self.reason.startswith(NOT_RUN)

    @property
    def seconds(self) -> float | None:
        """Wall seconds from start to end."""
        if self.started is None or self.ended is None:
            return None
        return (self.ended - self.started).total_seconds()
