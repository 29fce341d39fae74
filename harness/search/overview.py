"""How far a study is: counts, best validation and forecasts per cell, from its record."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from statistics import median

from harness.display import as_table
from harness.recorded import TrialRecord
from harness.search.plan import Plan
from harness.search.record import choose, done_of
from harness.spec import Phase, cell_label

COLUMNS = ("cell", "trials", "repeats", "best validation", "median training", "peak memory")
PEAKS = ("peak_accelerator_allocated_mib", "peak_process_rss_mib")
"""Metrics that are a trial's peak memory; the first one that was measured counts."""


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
        slot: cell and number, as text.
        since: when it began, by the clock of its machine.
        epochs_done: of the trial.
        epochs: that it will have; None before its configuration is drawn.
        accuracy: on validation, after the last of them; a share, None before the first.
    """

    slot: str
    since: datetime | None
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
        working: trials that are being run, oldest first; where nobody works on the study, those that a
            process left open when it died.
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
    """The study so far.

    Args:
        plan: what was asked for.
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
