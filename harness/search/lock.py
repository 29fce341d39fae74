"""The lock of a study: only one command at a time may run it."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from harness.core.errors import UserError, first_line


@dataclass(frozen=True)
class Holder:
    """The process that runs a study: its machine, process id and start time."""

    host: str
    process: int
    since: str

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}, since {self.since}"

    @property
    def gone(self) -> bool:
        """True if it was a process of this machine and has ended."""
        if self.host != platform.node():
            return False
        try:
            os.kill(self.process, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
        return False


def holder_of(folder: Path, name: str) -> Holder | None:
    """The process that runs the named study, or ran it when it died; None if there is none."""
    try:
        return Holder(**json.loads(_about(folder, name).read_text()))
    except (OSError, ValueError, TypeError):
        return None


@contextmanager
def sole_runner(folder: Path, name: str) -> Iterator[None]:
    """Hold the lock of that name. The system releases it when its holder dies; the next holder prints a note.

    Raises:
        UserError: if another process holds it, naming that process.
    """
    about, lock = _about(folder, name), FileLock(folder / f".{name}.lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        holder = holder_of(folder, name)
        raise UserError(
            f"{name!r} is running already ({holder or 'by an unknown process'}); wait for it or stop it"
        ) from None
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {first_line(error)}") from error
    try:
        if (before := holder_of(folder, name)) is not None:
            print(f"note: {name!r} was left by {before}, which died; resuming", file=sys.stderr)
        since = f"{datetime.now():%Y-%m-%d %H:%M:%S}"
        about.write_text(json.dumps(asdict(Holder(platform.node(), os.getpid(), since))))
        try:
            yield
        finally:
            about.unlink(missing_ok=True)
    finally:
        lock.release()


def _about(folder: Path, name: str) -> Path:
    return folder / f".{name}.running"
