"""Run trials in the coordinator's process, one at a time: the default for one worker."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import final

from harness.core.results import TrialResult
from harness.search.executors import Died
from harness.training.trial import Message, Messages, TrialTask, run_trial

HUNG_SECONDS = 60.0
"""A trial that no alarm has interrupted this long after its time limit is considered hung."""
end_process = os._exit


@final
class Inline:
    """An executor without other processes and without pickling.

    A trial that exceeds its time limit is interrupted by an alarm, which takes effect only when a call into a
    library returns. If that never happens, the process is ended from another thread.

    Args:
        run: function that runs a task.
    """

    capacity = 1
    inline = True

    def __init__(self, run: Callable[[TrialTask], Messages] = run_trial) -> None:
        self.on_hang: Callable[[], None] = lambda: None
        self._run = run
        self._timer: threading.Timer | None = None
        self._number = -1
        self._answer: bool | None = None
        self._messages: Messages | None = None

    def submit(self, number: int, task: TrialTask) -> None:
        """Accept a task; it runs in `receive`."""
        self._number, self._messages, self._answer = number, self._run(task), None
        if task.limits.seconds is not None:
            self._timer = threading.Timer(task.limits.seconds + HUNG_SECONDS, self._end_process)
            self._timer.daemon = True
            self._timer.start()

    def _end_process(self) -> None:
        try:
            self.on_hang()
        finally:  # also when a store does not answer: nothing else would end it
            end_process(1)

    def receive(self) -> tuple[int, Message | Died]:
        """Run the task up to its next message."""
        assert self._messages is not None
        try:
            message = self._messages.send(self._answer)
        except BaseException:
            self._stop_timer()
            raise
        self._answer = None
        if isinstance(message, TrialResult):
            self._stop_timer()
            self._messages.close()
        return self._number, message

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def reply(self, number: int, go_on: bool) -> None:
        """Kept for the next `receive`."""
        self._answer = go_on

    def request_stop(self) -> None:
        """Nothing to do: the trial sees the signal itself."""

    def close(self) -> None:
        """Drop the task."""
        self._stop_timer()
        if self._messages is not None:
            self._messages.close()
