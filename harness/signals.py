"""Time limits, SIGTERM, SIGUSR1 and the death of a parent: what ends a trial or a process from outside."""

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
"""A batch system signals a command and its workers at once, and the command then its workers. What comes soon
after a first signal asks for nothing new, and must not interrupt the recording of how a trial ended."""

_requested = (
    False  # no Event: a handler that comes while another one sets it would wait for its lock
)


class TrialTimeout(BaseException):
    """The trial took longer than it may; no Exception, because it may come in the middle of a library
    that turns those into its own."""


class Terminated(BaseException):
    """SIGTERM, or SIGUSR1 before any epoch; no Exception, so that nothing mistakes it for a failed trial."""


def request_stop_on_signal(pass_on: Callable[[], None] = lambda: None) -> None:
    """From now on SIGUSR1 stops this process after the epoch that is running.

    Args:
        pass_on: tells it to the processes that run epochs for this one.
    """

    def note(*_: object) -> None:
        global _requested
        _requested = True
        pass_on()

    if hasattr(signal, "SIGUSR1"):
        handle(signal.SIGUSR1, note)


def forget_request() -> None:
    """Forget a request to stop: a notebook's process outlives a study that was stopped."""
    global _requested
    _requested = False


def stop_requested() -> bool:
    """True if SIGUSR1 has come."""
    return _requested


@contextmanager
def handlers_put_back() -> Iterator[None]:
    """Whatever the block does about SIGTERM and SIGUSR1 ends with it: the process may go on, as a notebook's
    does. In another thread than the main one, which alone may set handlers, the block sets none."""
    names = [n for n in ("SIGTERM", "SIGUSR1") if hasattr(signal, n)]
    before = {getattr(signal, n): signal.getsignal(getattr(signal, n)) for n in names}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:
                handle(number, handler)


def handle(number: int, handler: Callable[[int, FrameType | None], object] | int) -> None:
    """signal.signal; nothing in another thread than the main one."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(number, handler)


def raise_on_terminate() -> None:
    """From now on SIGTERM raises Terminated in the main thread, and so does SIGUSR1 until
    `request_stop_on_signal` gives it a gentler meaning: without a trial there is no epoch to end."""
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
        parent: its number; if it is gone already, this raises Terminated.
    """
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
        if os.getppid() != parent:
            raise Terminated


@contextmanager
def time_limit(seconds: float | None, message: str = "") -> Iterator[None]:
    """Raise TrialTimeout in the block after so many seconds; None is no limit.

    By the system's alarm, which interrupts sleeping and waiting and is seen as soon as a call into a library
    returns. Outside the main thread, and where there is no such alarm, nothing is limited.

    Args:
        seconds: of wall time.
        message: of the exception.
    """
    here = threading.current_thread() is threading.main_thread()
    if seconds is None or not here or not hasattr(signal, "setitimer"):
        yield
        return

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise TrialTimeout(message or f"took longer than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
