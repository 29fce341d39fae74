"""What does a person see of a study? A table on a terminal, calm lines in a pipe or a log.

python -m harness.study --space studies/freeze_depth.py
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime, timedelta
from typing import Literal

import optuna
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from harness.search.overview import CellProgress, Overview, Plan, Working, overview
from harness.search.runner import TrialDone
from harness.spec import Study

Detail = Literal["quiet", "normal", "verbose"]

PAUSE = 50
"""The table is read again after so many times as long as reading it takes: at most 2 % of a study."""


def show(
    study: Study,
    storage: optuna.storages.BaseStorage,
    events: Iterator[TrialDone],
    detail: Detail = "normal",
) -> None:
    """Progress until the events end.

    On a terminal a table that is kept up to date, above it trials that failed (verbose: all of them). In a
    pipe one line per trial. Verbose adds the accuracy after each epoch, quiet leaves only the last lines.

    Args:
        study: that is run.
        storage: its Optuna storage, where also the work of other processes is seen.
        events: of run_study or run_in_processes.
        detail: how much is said.
    """
    console = Console(highlight=False)
    plan, resumed = Plan.of(study), 0
    live = console.is_terminal and detail != "quiet"
    shown: AbstractContextManager[_Board | None]
    shown = _Board(console, plan, storage) if live else nullcontext()
    with shown as board:
        for number, event in enumerate(events, 1):
            if event.result is None:
                resumed += 1
            elif detail == "verbose" or (detail == "normal" and (not live or _failed(event))):
                for line in _lines(f"[{number:>3}/{plan.slots}] ", event, detail == "verbose"):
                    console.print(line, markup=False, soft_wrap=True)
            if board:
                board.refresh()
    if resumed:
        console.print(f"{resumed} of {plan.slots} were finished before and not run again")
    if resumed == plan.slots:
        console.print("nothing was left to do")


def _failed(event: TrialDone) -> bool:
    return event.result is not None and event.result.outcome not in ("complete", "pruned")


def _lines(counted: str, event: TrialDone, with_curve: bool) -> Iterator[str]:
    assert event.result is not None
    metrics, outcome = event.result.metrics, event.result.outcome
    if outcome != "complete":
        yield f"{counted}{event.slot}: {outcome.upper()} {event.result.reason}".rstrip()
    else:
        names = {"val_accuracy": "validation", "test_accuracy": "test"}
        scores = [f"{words} {metrics[k]:.1%}" for k, words in names.items() if k in metrics]
        seconds = f"trained {metrics['train_seconds']:.1f} s"
        yield f"{counted}{event.slot}: {', '.join(scores)}, {seconds}"
    if with_curve and event.curve:
        curve = ", ".join(f"{accuracy:.1%}" for accuracy in event.curve)
        yield f"{' ' * len(counted)}validation after each epoch: {curve}"


class _Board(AbstractContextManager["_Board"]):
    """The table on a terminal, read anew between trials, so that nothing runs beside what is measured."""

    def __init__(self, console: Console, plan: Plan, storage: optuna.storages.BaseStorage) -> None:
        self._plan, self._storage = plan, storage
        self._view = Live(console=console, auto_refresh=False)
        self._due = 0.0

    def __enter__(self) -> _Board:
        self._view.__enter__()
        self.refresh()
        return self

    def __exit__(self, *error: object) -> None:
        try:
            if error == (None, None, None):
                self._due = 0.0
                self.refresh()
        finally:
            self._view.__exit__(None, None, None)

    def refresh(self) -> None:
        """Read and show it again, unless that was done a moment ago."""
        started = time.monotonic()
        if started >= self._due:
            self._view.update(picture(overview(self._plan, self._storage, idle=1)), refresh=True)
            now = time.monotonic()
            self._due = now + PAUSE * (now - started)


def picture(found: Overview) -> Group:
    """The study so far, for rich: what is done, how trials ended, one row per cell."""
    done, total = found.done, found.plan.slots
    left = "" if found.seconds_left is None else f", about {duration(found.seconds_left)} left"
    head = Table.grid(padding=(0, 1))
    now = f"{datetime.now():%H:%M:%S}"
    head.add_row(
        found.plan.study,
        ProgressBar(total, done, width=16),
        f"{done} of {total}{left if done < total else ', done'} ({now})",
    )
    table = Table("cell", box=None, pad_edge=False, header_style="bold")
    for name in ("trials", "repeats", "best validation", "median training", "peak memory"):
        table.add_column(name, justify="right")
    for cell in found.cells:
        table.add_row(*(Text(value) for value in _row(found.plan, cell)))
    return Group(head, f"outcomes: {outcomes_in_words(found)}", table)


def _row(plan: Plan, cell: CellProgress) -> tuple[str, ...]:
    return (
        cell.cell,
        f"{cell.trials}/{plan.trials}",
        f"{cell.repeats}/{plan.repeats}",
        "" if cell.best is None else f"{cell.best:.1%}",
        "" if cell.seconds is None else f"{cell.seconds:.1f} s",
        "" if cell.peak_mib is None else f"{cell.peak_mib:.0f} MiB",
    )


def outcomes_in_words(found: Overview) -> str:
    """How many ended how, most first."""
    ranked = sorted(found.outcomes.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count} {name}" for name, count in ranked) or "none yet"


def working_in_words(work: Working) -> str:
    """Who is at it, and since when."""
    host, pid, *_ = [*work.owner.split(" "), "?", "?"]
    since = "" if work.since is None else f" since {work.since:%Y-%m-%d %H:%M:%S}"
    gone = ", which is no more: the next run of the command begins it again" if work.gone else ""
    return f"{work.slot}: {host.partition('/')[0] or '?'}, process {pid}{since}{gone}"


def duration(seconds: float) -> str:
    """In words, to the nearest second, minute or part of an hour."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{timedelta(seconds=round(seconds / 60) * 60)}"[:-3] + " h"
