"""Signals and time limits that end a trial or a process: SIGTERM, SIGUSR1, timeouts, death of the parent."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

ONE_REQUEST_SECONDS = 30.0
"""Further signals within this time are ignored: a batch system may signal the command and its workers, and
the command then signals its workers too. They must not interrupt the recording of a trial's end."""

_requested = (
    False  # not an Event: a handler that interrupts another one's set() would deadlock on its lock
)


class TrialTimeout(BaseException):
    """The trial exceeded its time limit. Not an Exception, because it may be raised inside a library that
    catches exceptions."""


class Terminated(BaseException):
    """SIGTERM, or SIGUSR1 before any epoch. Not an Exception, so that it is not mistaken for a failed
    trial."""


def request_stop_on_signal(pass_on: Callable[[], None] = lambda: None) -> None:
    """From now on SIGUSR1 stops this process after the running epoch.

    Args:
        pass_on: forwards the request to the worker processes.
    """

    def note(*_: object) -> None:
        global _requested
        _requested = True
        pass_on()

    if hasattr(signal, "SIGUSR1"):
        handle(signal.SIGUSR1, note)


def forget_request() -> None:
    """Clear a request to stop, because a notebook's process continues after a stopped study."""
    global _requested
    _requested = False


def stop_requested() -> bool:
    """True if SIGUSR1 was received."""
    return _requested


@contextmanager
def handlers_put_back() -> Iterator[None]:
    """Restore the handlers of SIGTERM and SIGUSR1 after the block, because a notebook's process continues.
    Outside the main thread, handlers cannot be set, and the block sets none."""
    names = [n for n in ("SIGTERM", "SIGUSR1") if hasattr(signal, n)]
    before = {getattr(signal, n): signal.getsignal(getattr(signal, n)) for n in names}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:
                handle(number, handler)


def handle(number: int, handler: Callable[[int, FrameType | None], object] | int) -> None:
    """signal.signal in the main thread; does nothing in other threads."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(number, handler)


def raise_on_terminate() -> None:
    """From now on SIGTERM raises Terminated in the main thread. So does SIGUSR1 until
    `request_stop_on_signal` is called, because there is no running epoch to complete before that."""
    heard = -float("inf")

    def terminate(*_: object) -> None:
        nonlocal heard
        if time.monotonic() - heard >= ONE_REQUEST_SECONDS:
            heard = time.monotonic()
            raise Terminated

    handle(signal.SIGTERM, terminate)
    if hasattr(signal, "SIGUSR1"):
        handle(signal.SIGUSR1, terminate)


def die_with_parent(parent: int) -> None:
    """Ask for SIGKILL when the parent process ends, however it ends (Linux only).

    Args:
        parent: its process id; if it has ended already, Terminated is raised.
    """
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
        if os.getppid() != parent:
            raise Terminated


@contextmanager
def time_limit(
    seconds: float | None,
    message: str = "",
    error: Callable[[FrameType | None], BaseException] | None = None,
    repeat: float = 0.0,
) -> Iterator[None]:
    """Raise TrialTimeout in the block after so many seconds; None is no limit.

    Uses the system's alarm, which interrupts sleeping and waiting, and takes effect as soon as a call into a
    library returns. There is no limit outside the main thread, or on systems without this alarm.

    Args:
        seconds: limit in seconds of wall time.
        message: message of the exception.
        error: makes another exception from what is being executed.
        repeat: raise again after so many seconds, if the block catches the exception.
    """
    here = threading.current_thread() is threading.main_thread()
    if seconds is None or not here or not hasattr(signal, "setitimer"):
        yield
        return

    def stop(_signal: int, frame: FrameType | None) -> None:
        timeout = TrialTimeout(message or f"took longer than {seconds:g} s")
        raise error(frame) if error else timeout

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds, repeat)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
