"""What is recorded of a study and of each of its trials, as plain values.

Optuna's storage is where they are kept (`harness.search.record`), MLflow is what shows them
(`harness.tracking.projection`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from harness.results import NOT_RUN, EpochResult
from harness.spec import Cell, Phase, cell_label, cells_of


@dataclass(frozen=True)
class Slot:
    """One place in the plan: the `index`-th trial, or repeat, of a cell."""

    cell: Cell
    phase: Phase
    index: int

    def __str__(self) -> str:
        return f"{cell_label(self.cell)}, {self.kind} {self.index}"

    @property
    def kind(self) -> str:
        """What the slot holds, in a word: "trial" or "repeat"."""
        return "trial" if self.phase == "tune" else "repeat"

    @property
    def key(self) -> tuple[str, Phase, int]:
        """The same as a value that can be looked up."""
        return cell_label(self.cell), self.phase, self.index


@dataclass(frozen=True)
class StudyInfo:
    """A study as a whole.

    Attributes:
        name: of the study, and of its MLflow experiment.
        question: the study file's docstring.
        command: what to type to repeat the study.
        factors: factor -> compared labels, in the order written.
        baseline: one value of some factors.
        trials: configurations per cell.
        repeats: seeds per cell.
        sampler: how configurations were drawn; budget curves need "random".
        seed: root of every random stream of the study.
        leaks: one line per target whose train, validation and test images overlap.
        study_file: name of the study file, without its folder.
        space_sha256: hash of the study file.
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

    def cells(self) -> list[Cell]:
        """Every combination of one value per factor, in the order written."""
        return list(cells_of(self.factors))


@dataclass(frozen=True)
class TrialRecord:
    """One attempt at a slot, as the record has it.

    Attributes:
        key: names the trial in the record: its Optuna study, "#" and its number there.
        slot: which place of the plan.
        number: Optuna's number of the trial.
        attempt: at this slot, counted from 1.
        seed: of the trial; None if it died before it was drawn.
        chosen: for a repeat, the index of the tuning trial whose configuration is repeated.
        params: what was suggested, by name.
        ranges: the distribution of each of these, as text.
        spec: the complete flat TrialSpec; empty if the space made none.
        inputs: hashes of the images and weights that it reads.
        outcome: one of `harness.results.OUTCOMES`; "" while it runs.
        lasting: it is not tried again, although it crashed.
        died: its process ended without a word.
        reason: why it ended as it did, if there is something to say.
        metrics: what was measured.
        epochs: results of its epochs.
        notes: what else a reader should know, by name.
        provenance: device, versions and the like, by tag.
        predictions: name of the file of its test predictions; "" if there is none.
        started, ended: by the clock of the coordinator; None where it is not known.
        superseded: a repeat of a configuration that is no longer the chosen one.
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

    def but(self, **changes: object) -> TrialRecord:
        """The same with some fields changed."""
        return replace(self, **changes)  # type: ignore[arg-type]

    @property
    def study(self) -> str:
        """Name of the study."""
        return self.key.partition("/")[0]

    @property
    def not_run(self) -> bool:
        """True if its memory forecast alone has ended it."""
        return self.reason.startswith(NOT_RUN)

    @property
    def seconds(self) -> float | None:
        """Wall seconds from start to end."""
        if self.started is None or self.ended is None:
            return None
        return (self.ended - self.started).total_seconds()
