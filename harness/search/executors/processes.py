"""Run trials in several processes of this machine, with Pebble's process pool.

If a worker dies or hangs, only its own task is lost; the pool starts a new worker. Each task has its own
pipe, so a process that dies in the middle of a message does not block the others.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from concurrent.futures import TimeoutError as TookTooLong
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnContext, SpawnProcess
from pathlib import Path
from types import ModuleType
from typing import final

from pebble import ProcessExpired, ProcessFuture, ProcessPool

from harness.core.errors import UserError, first_line
from harness.core.results import TrialResult
from harness.search.executors import Died
from harness.search.executors.worker import begin_worker, run_and_send
from harness.training.trial import Message, Started, TrialTask

HUNG_SECONDS = 60.0
"""The process of a trial that no alarm has interrupted this long after its time limit is ended."""
POLL_SECONDS = 0.1
"""Interval at which the death of a worker that sends nothing is noticed."""
NOT_STARTED = "worker processes end before they can run a trial; try --workers 1 to see why"


@final
class Processes:
    """An executor of `count` processes. Tasks that run at the same time have different accelerators, as far
    as there are several.

    Args:
        count: number of workers.
        study_file: imported once by each worker; None if the tasks need none.
    """

    inline = False

    def __init__(self, count: int, study_file: Path | None) -> None:
        self.capacity = count
        threads = None if count == 1 else max(1, (os.cpu_count() or 1) // count)
        self._pool = ProcessPool(
            max_workers=count,
            initializer=begin_worker,
            initargs=(os.getpid(), study_file, threads, list(sys.path)),
            context=_WithoutMain(),
        )
        self._seats = list(range(count))
        self._tasks: dict[int, _Running] = {}
        self._stopping = False

    def submit(self, number: int, task: TrialTask) -> None:
        """Hand a task to the pool."""
        seat = self._seats.pop(0)
        ours, theirs = multiprocessing.Pipe()
        seconds = task.limits.seconds
        try:
            future = self._pool.schedule(
                run_and_send,
                args=[theirs, task, seat],
                timeout=None if seconds is None else seconds + HUNG_SECONDS,
            )
        except RuntimeError as error:  # the pool has given up
            raise UserError(NOT_STARTED) from error
        self._tasks[number] = _Running(future, ours, theirs, seat)

    def receive(self) -> tuple[int, Message | Died]:
        """Wait for the next message of any task."""
        while True:
            wait([running.ours for running in self._tasks.values()], POLL_SECONDS)
            for number, running in self._tasks.items():
                over = running.future.done()  # asked first: what was sent before counts
                try:
                    if running.ours.poll():
                        message: Message = running.ours.recv()
                        return self._received(number, message)
                except (EOFError, OSError):
                    over = True
                if over:
                    return number, self._ended(number)

    def _received(self, number: int, message: Message) -> tuple[int, Message]:
        running = self._tasks[number]
        if isinstance(message, Started):
            running.process = message.process
            running.theirs.close()  # the worker has its own end by now
            if self._stopping:  # its process was not known yet when the others were signalled
                self._tell(running)
        if isinstance(message, TrialResult):
            self._leave(number)
        return number, message

    def _leave(self, number: int) -> None:
        running = self._tasks.pop(number)
        running.ours.close()
        running.theirs.close()
        self._seats.append(running.seat)

    def _ended(self, number: int) -> TrialResult | Died:
        """Why a task ended without a result of its own."""
        error = self._tasks[number].future.exception()
        self._leave(number)
        if isinstance(error, ProcessExpired):
            return Died(_describe_exit(error.exitcode))
        if isinstance(error, TookTooLong):
            how = "took longer than --max-minutes, and could not be interrupted: its process was ended"
            return TrialResult("timeout", reason=how)
        if isinstance(error, UserError):
            raise error
        if isinstance(error, BrokenProcessPool):
            raise UserError(NOT_STARTED)
        return Died(first_line(error) if error else "no result")

    def reply(self, number: int, go_on: bool) -> None:
        """Send the answer."""
        with suppress(OSError):  # the worker has died; `receive` reports it
            self._tasks[number].ours.send(go_on)

    def request_stop(self) -> None:
        """Send SIGUSR1 to every worker that runs a task."""
        self._stopping = True
        for running in list(self._tasks.values()):
            self._tell(running)

    def _tell(self, running: _Running) -> None:
        if running.process is not None:
            with suppress(ProcessLookupError):
                os.kill(running.process, signal.SIGUSR1)

    def close(self) -> None:
        """End every process."""
        self._pool.stop()  # type: ignore[no-untyped-call]
        self._pool.join()
        for number in list(self._tasks):
            self._leave(number)


@dataclass
class _Running:
    """A task and, once it is known, the process that runs it."""

    future: ProcessFuture[None]
    ours: Connection
    theirs: Connection
    seat: int
    process: int | None = None


def _describe_exit(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name
    return f"{name}, as when memory runs out" if name == "SIGKILL" else name


class _ProcessWithoutMain(SpawnProcess):
    """A process that does not import the main script, which may lack a main guard or not be a file at all
    (`python -`, a notebook). It ignores Ctrl-C from its first moment on; the coordinator handles it."""

    def start(self) -> None:
        """Start it."""
        main = sys.modules["__main__"]
        signals = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            super().start()
        finally:
            sys.modules["__main__"] = main
            signal.pthread_sigmask(signal.SIG_SETMASK, signals)


class _WithoutMain(SpawnContext):
    Process = _ProcessWithoutMain
