"""What ends a trial or a process from outside? Time limits, SIGTERM, the death of a parent."""

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
"""A batch system signals a parent and its workers at once, and the parent then its workers. What comes soon
after a first signal asks for nothing new, and must not cut short the writing down of how a trial ended."""

HUNG_SECONDS = 60.0
"""So long after its time a trial that no alarm could interrupt is taken to hang."""


class TrialTimeout(BaseException):
    """The trial took longer than it may; no Exception, because it may come in the middle of a library
    that turns those into its own."""


class Terminated(BaseException):
    """SIGTERM; no Exception, so that nothing mistakes it for a failed trial."""


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
    `preemption.stop_on_request` gives it a gentler meaning: who trains nothing has no epoch to end."""
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
    """Ask for SIGTERM when the parent process ends, however it ends (Linux only).

    Args:
        parent: its number; if it is gone already, this raises Terminated.
    """
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
        if os.getppid() != parent:
            raise Terminated


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Raise TrialTimeout in the block after so many seconds; None is no limit.

    By the system's alarm, which interrupts sleeping and waiting and is seen as soon as a call into a library
    returns. Outside the main thread, and where there is no such alarm, nothing is limited.
    """
    here = threading.current_thread() is threading.main_thread()
    if seconds is None or not here or not hasattr(signal, "setitimer"):
        yield
        return

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise TrialTimeout(f"took longer than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def if_hung(seconds: float | None, act: Callable[[], None]) -> Iterator[None]:
    """Call `act` from another thread if the block still runs HUNG_SECONDS after it should have ended; None
    never does.

    The alarm of `time_limit` is seen only when a call into a library returns: one that waits for a device or
    a file server may never do.
    """
    if seconds is None:
        yield
        return
    timer = threading.Timer(seconds + HUNG_SECONDS, act)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()  # if it acts already, there is no going on beside it
