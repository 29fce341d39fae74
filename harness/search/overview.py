"""Progress of a study: counts, best validation accuracy and forecasts per cell, from its record."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from statistics import median

from harness.core.html import as_table
from harness.core.records import TrialRecord
from harness.core.spec import Phase, cell_label
from harness.search.plan import Plan
from harness.search.record import choose, done_of

COLUMNS = ("cell", "trials", "repeats", "best validation", "median training", "peak memory")
PEAKS = ("peak_accelerator_allocated_mib", "peak_process_rss_mib")
"""Metrics that are a trial's peak memory; the first one that was measured counts."""


@dataclass(frozen=True)
class CellProgress:
    """Progress of a cell.

    Attributes:
        cell: label of the cell.
        trials, repeats: how many of the requested ones are done.
        best: validation accuracy of the best trial so far, from 0 to 1; None without a complete trial.
        seconds: median training time of a complete trial or repeat, cold-equivalent.
        peak_mib: highest peak memory of any trial.
    """

    cell: str
    trials: int
    repeats: int
    best: float | None
    seconds: float | None
    peak_mib: float | None


@dataclass(frozen=True)
class Working:
    """A running trial.

    Attributes:
        slot: cell and number, as text.
        since: start time.
        epochs_done: completed epochs.
        epochs: total number of epochs; None before the configuration is drawn.
        accuracy: validation accuracy after the last completed epoch, from 0 to 1; None before the first.
    """

    slot: str
    since: datetime | None
    epochs_done: int = 0
    epochs: int | None = None
    accuracy: float | None = None


@dataclass(frozen=True)
class Overview:
    """Progress of a study.

    Attributes:
        plan: the requested size of the study.
        cells: progress of each cell, in the plan's order.
        outcomes: number of trials by outcome, including those that were run again.
        working: running trials, oldest first; if no process runs the study, those that a dead process left
            open.
        seconds_left: estimated time left; None before any trial has ended.
    """

    plan: Plan
    cells: tuple[CellProgress, ...]
    outcomes: Mapping[str, int]
    working: tuple[Working, ...]
    seconds_left: float | None

    @property
    def done(self) -> int:
        """Number of slots that need no more work."""
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
    """One phase of one cell: every trial that counts, and the attempt that settles each slot."""

    cell: str
    phase: Phase
    asked: int
    trials: Sequence[TrialRecord]
    done: Mapping[int, TrialRecord]

    def durations(self) -> list[float]:
        return [t.seconds for t in self.done.values() if t.seconds is not None]

    def complete(self) -> list[TrialRecord]:
        return [t for t in self.done.values() if t.outcome == "complete"]


def overview(plan: Plan, trials: Iterable[TrialRecord]) -> Overview:
    """The progress of a study.

    Args:
        plan: the requested size of the study.
        trials: every attempt at every slot.
    """
    by_cell: defaultdict[tuple[str, Phase], list[TrialRecord]] = defaultdict(list)
    for trial in trials:
        by_cell[cell_label(trial.slot.cell), trial.slot.phase].append(trial)
    pairs: list[tuple[_Part, _Part]] = []
    for cell in plan.cells:
        tried = by_cell[cell, "tune"]
        tune = _Part(cell, "tune", plan.trials, tried, done_of(tried, plan.trials))
        best = choose(tune.done.values())
        asked = plan.repeats if best or len(tune.done) < plan.trials else 0  # nothing to repeat
        chosen = None if best is None else best.slot.index
        repeated = [t for t in by_cell[cell, "repeat"] if t.chosen == chosen]
        pairs.append((tune, _Part(cell, "repeat", asked, repeated, done_of(repeated, asked))))
    every = [part for pair in pairs for part in pair]
    working = tuple(sorted(_working(every), key=lambda w: w.since or datetime.min))
    return Overview(
        plan,
        tuple(_progress(tune, repeats) for tune, repeats in pairs),
        Counter(t.outcome for p in every for t in p.trials if t.outcome),
        working,
        _seconds_left(pairs, max(1, len(working))),
    )


def _progress(tune: _Part, repeats: _Part) -> CellProgress:
    complete = tune.complete() + repeats.complete()
    ended = [t.metrics for t in (*tune.trials, *repeats.trials)]
    peaks = [next((m[name] for name in PEAKS if name in m), None) for m in ended]
    seconds = [t.metrics.get("train_seconds") for t in complete]
    best = choose(tune.complete())
    return CellProgress(
        tune.cell,
        len(tune.done),
        len(repeats.done),
        best.metrics["val_accuracy"] if best else None,
        median(known) if (known := [s for s in seconds if s is not None]) else None,
        max((p for p in peaks if p is not None), default=None),
    )


def _working(parts: Sequence[_Part]) -> list[Working]:
    found = []
    for trial in (t for part in parts for t in part.trials if not t.outcome):
        epochs = trial.spec.get("epochs")
        last = trial.epochs[-1].val_accuracy if trial.epochs else None
        asked = epochs if isinstance(epochs, int) else None
        found.append(Working(str(trial.slot), trial.started, len(trial.epochs), asked, last))
    return found


def _seconds_left(parts: Sequence[tuple[_Part, _Part]], busy: int) -> float | None:
    """Estimated time left: remaining trials of each cell times the median duration of its trials (of all
    trials if it has none), divided by the number of running trials."""
    everybody = [d for pair in parts for part in pair for d in part.durations()]
    if not everybody:
        return None
    total = 0.0
    for pair in parts:
        for part in pair:
            known = part.durations() or [d for p in pair for d in p.durations()] or everybody
            total += (part.asked - len(part.done)) * median(known)
    return total / busy
