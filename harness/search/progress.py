"""Progress of a running study: a table on a terminal, one line per trial in a pipe or a log."""

from __future__ import annotations

import html
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Literal

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from harness.core.command_line import AS_WRITTEN
from harness.core.records import TrialRecord
from harness.core.results import BROKEN, BUSY, WAITED
from harness.core.selection import METRICS, Metric
from harness.search.overview import COLUMNS, Overview

if TYPE_CHECKING:
    from harness.search.coordinator import SlotDone

Detail = Literal["quiet", "normal", "verbose"]

PAUSE = 50
"""Pause between two drawings, as a multiple of the time that one takes: at most 2 % of a core."""
EVERY_SECONDS = 1.0
"""Shortest time between two drawings of the table."""
MOST_AT_WORK = 8
BUSY_MACHINE = (
    "warning: other programs use the processor, or there are more workers than cores: a trial waited for a "
    "processor {:.0%} of its time, so times of this study are not comparable"
)


def show(
    read: Callable[[], Overview], events: Iterator[SlotDone], detail: Detail = "normal"
) -> None:
    """Show the progress until the events end.

    A terminal or a notebook shows a table that is kept up to date, and above it the failed trials
    (verbose: all trials). In a pipe there is one line per trial. Verbose adds the score after each
    epoch; quiet prints only the last lines.

    Args:
        read: how far the study is now.
        events: of `Coordinator.run`.
        detail: how much is said.

    Raises:
        Exception: what the events raise.
    """
    console = Console(**AS_WRITTEN)
    found = read()
    slots, metric = found.slots, METRICS[found.info.metric]
    resumed, ran, completed, broken = 0, 0, 0, 0
    told = False
    live = (console.is_terminal or console.is_jupyter) and detail != "quiet"
    with _table(console, read) if live else nullcontext():
        for event in events:
            if event.trial is None:
                resumed += 1
                continue
            waited = event.trial.metrics.get(WAITED, 0.0)
            if waited > BUSY and not told:
                told = True
                print(BUSY_MACHINE.format(waited), file=sys.stderr)
            ran += 1
            completed += event.trial.lasts
            broken += event.trial.outcome in BROKEN and not event.trial.lasting
            failed = event.trial.outcome not in ("complete", "pruned")
            if detail == "verbose" or (detail == "normal" and (not live or failed)):
                of = "" if slots is None else f"/{slots}"
                head = f"[{resumed + completed:>3}{of}] "
                for line in _lines(head, event, metric, detail == "verbose", slots is None):
                    _say(console, line)
    if resumed:
        of = "" if slots is None else f" of {slots}"
        _say(console, f"{resumed}{of} were finished before and not run again")
    if broken:
        _say(
            console,
            f"{broken} ended as crashed or audit_failed; the same command tries them again",
        )
    if not ran:
        _say(console, "nothing was left to do")


def _say(console: Console, line: str) -> None:
    if console.is_jupyter:  # where each line of rich's would be an output of its own
        print(line)
    else:
        console.print(line, soft_wrap=True)


def _lines(
    counted: str, event: SlotDone, metric: Metric, with_curve: bool, race: bool
) -> Iterator[str]:
    assert event.trial is not None
    of = "" if metric.name == "accuracy" else f" {metric.label}"
    metrics, outcome = event.trial.metrics, event.trial.outcome
    what = f"{counted}{event.trial.describe(race)}"
    if outcome != "complete":
        yield f"{what}: {outcome.upper()} {event.trial.reason}".rstrip()
    else:
        names = {metric.validation: f"validation{of}", metric.test: f"test{of}"}
        scores = [
            f"{words} {metric.text(metrics[k])}" for k, words in names.items() if k in metrics
        ]
        seconds = f"trained {metrics['train_seconds']:.1f} s"
        yield f"{what}: {', '.join(scores)}, {seconds}"
    if with_curve and event.trial.epochs:
        values = [epoch.validation.get(metric.validation) for epoch in event.trial.epochs]
        curve = ", ".join(metric.text(value) for value in values if value is not None)
        yield f"{' ' * len(counted)}validation{of} after each epoch: {curve}"


@contextmanager
def _table(console: Console, read: Callable[[], Overview]) -> Iterator[None]:
    """Show the table during the block. A thread updates it, so that the epochs of long trials are shown."""
    with ExitStack() as stack:
        if console.is_jupyter:
            draw = _notebook_output()
        else:
            live = stack.enter_context(Live(console=console, auto_refresh=False))
            draw = partial(live.update, refresh=True)
        over = threading.Event()

        def keep() -> None:
            pause = EVERY_SECONDS
            while not over.wait(pause):
                began = time.monotonic()
                # A trial was added meanwhile, or the terminal is gone: the next drawing may show it.
                with suppress(Exception):
                    draw(_whole(read()))
                pause = max(EVERY_SECONDS, PAUSE * (time.monotonic() - began))

        draw(_whole(read()))
        thread = threading.Thread(target=keep, name="progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
        found = read()
        # In a notebook the table of results follows.
        draw(Group(*_head(found)) if console.is_jupyter else picture(found))


def _notebook_output() -> Callable[[RenderableType], None]:
    """A function that shows its argument in one output of a notebook cell, in place of what was there."""
    from IPython.display import display

    handle = display({"text/plain": ""}, raw=True, display_id=True)  # type: ignore[no-untyped-call]

    def draw(shown: RenderableType) -> None:
        made = Console(width=100, color_system=None, force_jupyter=False, **AS_WRITTEN)
        with made.capture() as captured:
            made.print(shown)
        text = captured.get().rstrip()
        page = {"text/plain": text, "text/html": f"<pre>{html.escape(text)}</pre>"}
        handle.update(page, raw=True)

    return draw


def _head(found: Overview) -> tuple[Table, str]:
    """The number of completed slots, and the outcomes of trials."""
    budget = found.info.budget
    done: float = found.done if budget is None else min(found.spent, budget)
    total: float = (found.slots or 0) if budget is None else budget
    left = "" if found.seconds_left is None else f", about {duration(found.seconds_left)} left"
    if budget is None and done >= total:
        left = ", done"
    head = Table.grid(padding=(0, 1))
    now = f"{datetime.now():%H:%M:%S}"
    head.add_row(
        found.info.name,
        ProgressBar(total, done, width=16),
        f"{found.progress}{left} ({now})",
    )
    return head, f"outcomes: {describe_outcomes(found)}"


def picture(found: Overview) -> Group:
    """The progress of the study for rich: completed slots, outcomes, one row per cell."""
    table = Table(COLUMNS[0], box=None, pad_edge=False, header_style="bold")
    for name in COLUMNS[1:]:
        table.add_column(name, justify="right")
    for row in found.rows():
        table.add_row(*map(Text, row))
    return Group(*_head(found), table)


def _whole(found: Overview) -> Group:
    """The progress of the study and of the running trials."""
    working = found.working
    metric = METRICS[found.info.metric]
    race = found.info.budget is not None
    shown = working[:MOST_AT_WORK]
    lines = [f"{t.describe(race)}: {describe_epochs(t, metric)}" for t in shown]
    more = [f"and {len(working) - MOST_AT_WORK} more"] if len(working) > MOST_AT_WORK else []
    now = [Text(f"now {line}", style="dim") for line in (*lines, *more)]
    return Group(picture(found), *now)


def describe_outcomes(found: Overview) -> str:
    """Number of trials by outcome, most frequent first."""
    ranked = sorted(found.outcomes.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count} {name}" for name, count in ranked) or "none yet"


def describe_epochs(trial: TrialRecord, metric: Metric) -> str:
    """Progress of a trial."""
    of = f" of {trial.spec['epochs']}" if trial.spec else ""
    last = trial.epochs[-1].validation.get(metric.validation) if trial.epochs else None
    after = "" if last is None else f", validation {metric.text(last)}"
    return f"{len(trial.epochs)}{of} epochs{after}"


def duration(seconds: float) -> str:
    """In words, to the nearest second, minute or part of an hour."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{timedelta(seconds=round(seconds / 60) * 60)}"[:-3] + " h"
