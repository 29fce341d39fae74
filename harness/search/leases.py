"""Who works on a trial, and is that process still at it? A lease is two entries in the trial's own record.

`owner` names the process; `beat` is a number that it changes every now and then. Nobody compares clocks of
two machines: a process judges others by how long it has seen the same beat itself. So leases work with every
Optuna storage, on one machine or many.
"""

from __future__ import annotations

import os
import platform
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial

OWNER, BEAT, SESSION = "owner", "beat", "session"
BEAT_SECONDS = 20.0
GRACE_SECONDS = 300.0
"""A lease that nobody renewed for so long is over: long enough for a machine that swaps or a file server
that hangs for a while."""


@dataclass(frozen=True)
class Owner:
    """A process on a machine, and the run of the command that it belongs to.

    Attributes:
        host: name of the machine and the start of its boot id.
        pid: process number there.
        started: when it started, in the kernel's ticks: numbers are used again.
        session: of the command that was typed; workers of one command share it.
    """

    host: str
    pid: int
    started: str
    session: str

    @classmethod
    def here(cls, session: str = "") -> Owner:
        """This process; without a session's name it begins a new one."""
        pid = os.getpid()
        return cls(_host(), pid, start_of(pid), session or uuid.uuid4().hex)

    @property
    def name(self) -> str:
        """As it is recorded."""
        return f"{self.host} {self.pid} {self.started}"


@cache
def _host() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
    except OSError:
        boot = "unknown"
    return f"{platform.node() or 'unnamed'}/{boot}".replace(" ", "_")


def start_of(pid: int) -> str:
    """When that process of this machine started; "" if there is none, "0" where the system does not say."""
    if sys.platform != "linux":
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return ""
        except PermissionError:
            pass
        return "0"
    try:
        # The second field is the program's name in brackets, which may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def is_here(owner: str) -> bool:
    """True if that owner is, or was, a process of this machine."""
    return owner.split(" ")[0] == _host()


def died_here(owner: str) -> bool:
    """True if that owner was a process of this machine that is no more."""
    _, pid, started = owner.split(" ")
    return is_here(owner) and start_of(int(pid)) != started


class Watch:
    """Judges leases by this process's own clock.

    Args:
        me: this process; a trial that it left open is not being worked on.
        grace: seconds without a new beat after which a lease is over.
        clock: seconds, never going back.
    """

    def __init__(
        self,
        me: Owner,
        grace: float = GRACE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.me, self.grace, self._clock = me, grace, clock
        self._seen: dict[int, tuple[object, float]] = {}
        self._told = set[str]()

    def believe_dead(self, owner: str) -> None:
        """Somebody who knows, on whatever machine, says that this process is no more."""
        self._told.add(owner)

    def is_gone(self, owner: str) -> bool:
        """True if that owner, "" where none was recorded, is known not to work any more; this process counts,
        because it is asking."""
        return owner in ("", self.me.name) or owner in self._told or died_here(owner)

    def is_over(self, trial: FrozenTrial) -> bool:
        """True if nobody works on that running trial any more."""
        if self.is_gone(trial.user_attrs.get(OWNER, "")):
            return True
        beat, now = trial.user_attrs.get(BEAT), self._clock()
        last, since = self._seen.get(trial._trial_id, (None, now))
        if trial._trial_id not in self._seen or last != beat:
            since = now
        self._seen[trial._trial_id] = (beat, since)
        return now - since > self.grace


@contextmanager
def held(
    storage: optuna.storages.BaseStorage, trial_id: int, every: float = BEAT_SECONDS
) -> Iterator[None]:
    """Renew the lease of a trial from a thread as long as the block lasts.

    A storage that is away for a while ends nothing: the next beat may get through, and if the lease was
    taken over meanwhile, the trial's next report says so.
    """
    done = threading.Event()

    def beat() -> None:
        number = 0
        while not done.wait(every):
            number += 1
            try:
                storage.set_trial_user_attr(trial_id, BEAT, number)
            except (optuna.exceptions.UpdateFinishedTrialError, KeyError):
                return
            except Exception:  # whatever the storage's driver raises
                continue

    thread = threading.Thread(target=beat, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
