"""Progress of a study: counts, best validation score and forecasts per cell, from its record."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from statistics import median

from harness.core.html import as_table
from harness.core.race import Entrant
from harness.core.records import StudyInfo, TrialRecord
from harness.core.selection import METRICS, Metric
from harness.core.study import Cell, Phase, cell_label
from harness.search.lock import Holder
from harness.search.record import Attempts, by_entrant, rounds_of

COLUMNS = ("cell", "trials", "repeats", "best validation", "median training", "peak memory")
PEAKS = ("peak_accelerator_allocated_mib", "peak_process_rss_mib")
"""Metrics that are a trial's peak memory; the first one that was measured counts."""


@dataclass(frozen=True)
class CellProgress:
    """Progress of a cell.

    Attributes:
        cell: label of the cell.
        trials, repeats: how many of the requested ones are done; in a race the repeats of all configurations.
        best: validation score of the best trial so far, by the study's metric; None without a complete trial.
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
class Overview:
    """Progress of a study.

    Attributes:
        info: the study as a whole.
        cells: progress of each cell.
        outcomes: number of trials by outcome, including those that were run again.
        working: running trials, oldest first; if no process runs the study, those that a dead process left
            open.
        seconds_left: estimated time left; None before any trial has ended.
        spent: seconds of all trials that have ended, divided by the number of workers.
        over: whether the study has a budget, and its race is over.
        holder: the process that runs the study, or ran it when it died; None if there is none.
    """

    info: StudyInfo
    cells: tuple[CellProgress, ...]
    outcomes: Mapping[str, int]
    working: tuple[TrialRecord, ...]
    seconds_left: float | None
    holder: Holder | None = None
    spent: float = 0.0
    over: bool = False

    @property
    def done(self) -> int:
        """Number of slots that need no more work."""
        return sum(c.trials + c.repeats for c in self.cells)

    @property
    def slots(self) -> int | None:
        """Requested trials and repeats of all cells; None with a budget."""
        info = self.info
        if info.budget is not None:
            return None
        return len(self.cells) * (info.tuning_runs + info.repeat_runs)

    @property
    def progress(self) -> str:
        """How much is done, in print."""
        if self.info.budget is None:
            return f"{self.done} of {self.slots}"
        return f"{self.spent:.0f} of {self.info.budget:.0f} s" + ", over" * self.over

    def rows(self) -> list[tuple[str, ...]]:
        """One per cell, as in COLUMNS."""
        trials, repeats = (
            "" if self.info.budget is not None else f"/{asked}"
            for asked in (self.info.tuning_runs, self.info.repeat_runs)
        )
        return [
            (
                c.cell,
                f"{c.trials}{trials}",
                f"{c.repeats}{repeats}",
                "" if c.best is None else METRICS[self.info.metric].text(c.best),
                "" if c.seconds is None else f"{c.seconds:.1f} s",
                "" if c.peak_mib is None else f"{c.peak_mib:.0f} MiB",
            )
            for c in self.cells
        ]

    def _repr_html_(self) -> str:
        caption = f"study {self.info.name}: {self.progress}, "
        return as_table(f"{caption}{len(self.working)} running", COLUMNS, self.rows())


def overview(
    info: StudyInfo, trials: Iterable[TrialRecord], cells: Iterable[Cell] | None = None
) -> Overview:
    """The progress of a study.

    Args:
        info: the study as a whole.
        trials: every attempt at every slot.
        cells: those that are run; None are all cells.
    """
    labels = tuple(map(cell_label, info.cells() if cells is None else cells))
    by_cell: defaultdict[tuple[str, Phase], list[TrialRecord]] = defaultdict(list)
    for trial in trials:
        by_cell[cell_label(trial.slot.cell), trial.slot.phase].append(trial)
    metric = METRICS[info.metric]
    parts: list[tuple[Attempts, ...]] = []  # of each cell its tuning, then its repeats
    progress: list[CellProgress] = []
    for cell in labels:
        tune = Attempts(by_cell[cell, "tune"], info.tuning_runs)
        best = tune.best(info.metric)
        repeated = by_cell[cell, "repeat"]
        if info.budget is None:
            nothing_to_repeat = best is None and len(tune.done) == info.tuning_runs
            mine = [t for t in repeated if best and t.chosen == best.slot.round]
            repeats = [Attempts(mine, 0 if nothing_to_repeat else info.repeat_runs)]
        else:
            repeats = list(by_entrant(repeated).values())
        parts.append((tune, *repeats))
        progress.append(_progress(cell, metric, tune, repeats, best))
    every = [trial for own in parts for part in own for trial in part]
    spent = sum((t.seconds or 0.0) / t.workers for t in every if t.outcome != "killed")
    working = sorted((t for t in every if not t.outcome), key=lambda t: t.started or datetime.min)
    return Overview(
        info,
        tuple(progress),
        Counter(t.outcome for t in every if t.outcome),
        tuple(working),
        _seconds_left(parts, max(1, len(working))) if info.budget is None else None,
        spent=spent,
        over=info.budget is not None and _race_is_over(info, labels, every),
    )


def _progress(
    cell: str,
    metric: Metric,
    tune: Attempts,
    repeats: Sequence[Attempts],
    best: TrialRecord | None,
) -> CellProgress:
    again = [trial for part in repeats for trial in part.done.values()]
    complete = [t.metrics for t in (*tune.done.values(), *again) if t.outcome == "complete"]
    seconds = [m["train_seconds"] for m in complete if "train_seconds" in m]
    ended = [t.metrics for part in (tune, *repeats) for t in part]
    peaks = [next((m[name] for name in PEAKS if name in m), 0.0) for m in ended]
    return CellProgress(
        cell,
        len(tune.done),
        len(again),
        best.metrics.get(metric.validation) if best else None,
        median(seconds) if seconds else None,
        max(peaks, default=0.0) or None,
    )


def _race_is_over(info: StudyInfo, cells: Iterable[str], trials: Iterable[TrialRecord]) -> bool:
    """Whether the recorded results leave no further round."""
    attempts = {Entrant(cell): Attempts() for cell in cells} | by_entrant(trials)
    return all(
        one in attempts and attempts[one].completed(index) is not None
        for now in rounds_of(info, attempts)
        for one in now.entrants
        for index in now.indices
    )


def _seconds_left(cells: Sequence[tuple[Attempts, ...]], busy: int) -> float | None:
    """Estimated time left: remaining trials of each cell times the median duration of its trials (of all
    trials if it has none), divided by the number of running trials."""
    taken = [[_durations(part) for part in parts] for parts in cells]
    everybody = [seconds for own in taken for known in own for seconds in known]
    if not everybody:
        return None
    total = 0.0
    for parts, own in zip(cells, taken, strict=True):
        for part, known in zip(parts, own, strict=True):
            alike = known or [seconds for part in own for seconds in part] or everybody
            total += (part.asked - len(part.done)) * median(alike)
    return total / busy


def _durations(part: Attempts) -> list[float]:
    return [t.seconds for t in part.done.values() if t.seconds is not None]
