"""How far is a study, and who works on what? Read from Optuna's storage; nothing is written.

python -m harness.status --study freeze_depth
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from statistics import median

import optuna
from optuna.trial import FrozenTrial, TrialState

from harness.display import as_table
from harness.search.leases import OWNER, died_here
from harness.search.trials import YIELDED, note_end, optuna_name, outcome_of, preference
from harness.spec import Phase, Study, cell_label

COLUMNS = ("cell", "trials", "repeats", "best validation", "median training", "peak memory")
PEAKS = ("peak_accelerator_allocated_mib", "peak_process_rss_mib")
"""Metrics that are a trial's peak memory; the first one that was measured counts."""


@dataclass(frozen=True)
class Plan:
    """What was asked for.

    Attributes:
        study: its name.
        cells: their labels.
        trials, repeats: per cell.
    """

    study: str
    cells: tuple[str, ...]
    trials: int
    repeats: int

    @classmethod
    def of(cls, study: Study) -> Plan:
        """That of a study file."""
        cells = tuple(cell_label(cell) for cell in study.cells())
        return cls(study.name, cells, study.trials, study.repeats)

    @property
    def slots(self) -> int:
        """Trials and repeats of all cells."""
        return len(self.cells) * (self.trials + self.repeats)


@dataclass(frozen=True)
class CellProgress:
    """A cell so far.

    Attributes:
        cell: its label.
        trials, repeats: done, of those that were asked for.
        best: validation accuracy of the trial that is chosen so far, a share; None without a complete one.
        seconds: median training time of a complete trial or repeat, cold-equivalent.
        peak_mib: highest peak memory of any.
    """

    cell: str
    trials: int
    repeats: int
    best: float | None
    seconds: float | None
    peak_mib: float | None


@dataclass(frozen=True)
class Working:
    """A trial that is being run.

    Attributes:
        slot: cell and number, in words.
        owner: host, boot, process and its start, as in the lease; "" where there is none.
        since: when it began, by the clock of its machine.
        gone: the process was one of this machine and is no more.
        epochs_done: of the trial.
        epochs: that it will have; None before its configuration is drawn.
        accuracy: on validation, after the last of them; a share, None before the first.
    """

    slot: str
    owner: str
    since: datetime | None
    gone: bool
    epochs_done: int = 0
    epochs: int | None = None
    accuracy: float | None = None


@dataclass(frozen=True)
class Overview:
    """A study so far.

    Attributes:
        plan: what was asked for.
        cells: in the plan's order.
        outcomes: how many trials ended how, those that were tried again too.
        working: on what, oldest first.
        seconds_left: forecast; None before anything has ended.
    """

    plan: Plan
    cells: tuple[CellProgress, ...]
    outcomes: Mapping[str, int]
    working: tuple[Working, ...]
    seconds_left: float | None

    @property
    def done(self) -> int:
        """Slots that need no more work."""
        return sum(c.trials + c.repeats for c in self.cells)

    def rows(self) -> list[tuple[str, ...]]:
        """One per cell, as in COLUMNS."""
        return [
            (
                c.cell,
                f"{c.trials}/{self.plan.trials}",
                f"{c.repeats}/{self.plan.repeats}",
                "" if c.best is None else f"{c.best:.1%}",
                "" if c.seconds is None else f"{c.seconds:.1f} s",
                "" if c.peak_mib is None else f"{c.peak_mib:.0f} MiB",
            )
            for c in self.cells
        ]

    def _repr_html_(self) -> str:
        caption = f"study {self.plan.study}: {self.done} of {self.plan.slots}, "
        return as_table(f"{caption}{len(self.working)} at work", COLUMNS, self.rows())


@dataclass(frozen=True)
class _Part:
    """One phase of one cell: every trial that counts, and the first lasting end of each slot."""

    cell: str
    phase: Phase
    asked: int
    trials: Sequence[FrozenTrial]
    done: Mapping[int, FrozenTrial]

    def durations(self) -> list[float]:
        return [t.duration.total_seconds() for t in self.done.values() if t.duration is not None]

    def complete(self) -> list[FrozenTrial]:
        return [t for t in self.done.values() if t.state == TrialState.COMPLETE]


def overview(plan: Plan, storage: optuna.storages.BaseStorage) -> Overview:
    """Read the whole study; seconds for tens of thousands of trials.

    Args:
        plan: what was asked for.
        storage: Optuna's memory.
    """
    ids = {study.study_name: study._study_id for study in storage.get_all_studies()}
    parts: list[tuple[_Part, _Part]] = []
    for cell in plan.cells:
        tune = _read(storage, ids, optuna_name(plan.study, cell), (cell, "tune", plan.trials))
        best = max(tune.complete(), key=preference, default=None)
        asked = plan.repeats if best or len(tune.done) < plan.trials else 0  # nothing to repeat
        name = optuna_name(plan.study, cell, best) if best else ""
        parts.append((tune, _read(storage, ids, name, (cell, "repeat", asked))))
    every = [part for pair in parts for part in pair]
    working = tuple(sorted(_working(every), key=lambda w: w.since or datetime.min))
    busy = sum(not w.gone for w in working)
    return Overview(
        plan,
        tuple(_progress(tune, repeats) for tune, repeats in parts),
        Counter(outcome_of(t) for p in every for t in p.trials if t.state.is_finished()),
        working,
        _seconds_left(parts, max(1, busy)),
    )


def _read(
    storage: optuna.storages.BaseStorage,
    ids: Mapping[str, int],
    name: str,
    what: tuple[str, Phase, int],
) -> _Part:
    cell, phase, asked = what
    found = storage.get_all_trials(ids[name], deepcopy=False) if name in ids else []
    trials = [
        t for t in found if "index" in t.user_attrs and t.user_attrs.get("outcome") != YIELDED
    ]
    done: dict[int, FrozenTrial] = {}
    for trial in trials:
        if trial.user_attrs["index"] < asked:
            note_end(done, trial)
    return _Part(cell, phase, asked, trials, done)


def _progress(tune: _Part, repeats: _Part) -> CellProgress:
    complete = tune.complete() + repeats.complete()
    ended = [t.user_attrs.get("metrics", {}) for t in (*tune.trials, *repeats.trials)]
    peaks = [next((m[name] for name in PEAKS if name in m), None) for m in ended]
    seconds = [t.user_attrs.get("metrics", {}).get("train_seconds") for t in complete]
    best = max(tune.complete(), key=preference, default=None)
    return CellProgress(
        tune.cell,
        len(tune.done),
        len(repeats.done),
        best.value if best else None,
        median(known) if (known := [s for s in seconds if s is not None]) else None,
        max((p for p in peaks if p is not None), default=None),
    )


def _working(parts: Sequence[_Part]) -> list[Working]:
    words = {"tune": "trial", "repeat": "repeat"}
    found = []
    for part in parts:
        for trial in (t for t in part.trials if t.state == TrialState.RUNNING):
            owner = trial.user_attrs.get(OWNER, "")
            slot = f"{part.cell}, {words[part.phase]} {trial.user_attrs['index']}"
            gone = bool(owner) and died_here(owner)
            epochs = trial.user_attrs.get("spec", {}).get("epochs")
            after = trial.intermediate_values
            last = after[max(after)] if after else None
            found.append(Working(slot, owner, trial.datetime_start, gone, len(after), epochs, last))
    return found


def _seconds_left(parts: Sequence[tuple[_Part, _Part]], busy: int) -> float | None:
    """What is left of each cell, at the median time that its own trials (else everybody's) took from start to
    end, shared by those who work now."""
    everybody = [d for pair in parts for part in pair for d in part.durations()]
    if not everybody:
        return None
    total = 0.0
    for pair in parts:
        for part in pair:
            known = part.durations() or [d for p in pair for d in p.durations()] or everybody
            total += (part.asked - len(part.done)) * median(known)
    return total / busy
