"""Where does a trial go on that was stopped from outside? After its last kept epoch, in any process.

Every so often the state of a long trial is kept in a file, named by the hash of its complete spec; whoever
runs that trial next finds it. SIGUSR1, which batch systems send ahead of the end, asks to keep it after the
epoch that is running, and to stop.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from harness.checkpoint import BadCheckpoint, Checkpoint, trial_key
from harness.environment import premises_of
from harness.errors import first_line
from harness.fit import Fit
from harness.results import EpochResult
from harness.search.signals import Terminated, handle
from harness.spec import TrialSpec

EVERY_SECONDS = 30.0
_asked = False  # no Event: a handler that comes while another one sets it would wait for its lock


def stop_on_request(pass_on: Callable[[], None] = lambda: None) -> None:
    """From now on SIGUSR1 stops this process after the epoch that is running.

    Args:
        pass_on: tells it to the processes that run epochs for this one.
    """

    def note(*_: object) -> None:
        global _asked
        _asked = True
        pass_on()

    if hasattr(signal, "SIGUSR1"):
        handle(signal.SIGUSR1, note)


def forget_request() -> None:
    """A notebook's process outlives a study that was asked to stop."""
    global _asked
    _asked = False


def is_asked() -> bool:
    """True if SIGUSR1 has come."""
    return _asked


def stop_if_asked() -> None:
    """Raises Terminated if SIGUSR1 has come."""
    if is_asked():
        raise Terminated


@dataclass(frozen=True)
class Checkpoints:
    """What is kept of trials that have not ended.

    Attributes:
        folder: shared by all processes that may go on with a trial; None keeps nothing.
        every: seconds between two files of a trial; one that ends sooner leaves none.
    """

    folder: Path | None = None
    every: float = EVERY_SECONDS

    def find(self, spec: TrialSpec) -> Checkpoint | None:
        """What was kept of that trial. What cannot be gone on from, because it is damaged or the trial would
        now be computed from or by something else, is named in a warning, and dropped."""
        if self.folder is None:
            return None
        try:
            found = Checkpoint.load(self._file(spec))
            found.check(spec, premises_of(spec))
        except FileNotFoundError:
            return None
        except BadCheckpoint as error:
            self.drop(spec, first_line(error))
            return None
        return found

    def drop(self, spec: TrialSpec, why: str = "") -> None:
        """The trial has ended, or starts over for that reason."""
        if self.folder is None:
            return
        if why:
            print(f"warning: {why}; the trial starts over", file=sys.stderr)
        with suppress(OSError):
            self._file(spec).unlink(missing_ok=True)

    def keeping(self, spec: TrialSpec, fit: Fit) -> Iterator[EpochResult]:
        """The epochs of `fit`, some of which are kept.

        Raises:
            Terminated: after an epoch in which SIGUSR1 came; it is kept.
        """
        kept = time.monotonic()
        for epoch in fit:
            yield epoch
            if self.folder is not None and (is_asked() or time.monotonic() - kept >= self.every):
                self._save(spec, fit)
                kept = time.monotonic()
            stop_if_asked()

    def _save(self, spec: TrialSpec, fit: Fit) -> None:
        state = fit.checkpoint()
        if state is None:
            return
        try:
            state.save(self._file(spec))
        except OSError as error:
            print(
                f"warning: no checkpoint could be kept in {self.folder}: {first_line(error)}",
                file=sys.stderr,
            )

    def _file(self, spec: TrialSpec) -> Path:
        assert self.folder is not None
        return self.folder / f"{trial_key(spec)}.checkpoint"
