"""Run trials in the coordinator's process, one at a time: the default for one worker."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

from harness.core.results import TrialResult
from harness.search.executors import Died
from harness.training.trial import Message, Messages, TrialTask, run_trial


@final
class Inline:
    """An executor without other processes and without pickling.

    Args:
        run: function that runs a task.
    """

    capacity = 1
    inline = True

    def __init__(self, run: Callable[[TrialTask], Messages] = run_trial) -> None:
        self._run = run
        self._number = -1
        self._answer: bool | None = None
        self._messages: Messages | None = None

    def submit(self, number: int, task: TrialTask) -> None:
        """Accept a task; it runs in `receive`."""
        self._number, self._messages, self._answer = number, self._run(task), None

    def receive(self) -> tuple[int, Message | Died]:
        """Run the task up to its next message."""
        assert self._messages is not None
        message = self._messages.send(self._answer)
        self._answer = None
        if isinstance(message, TrialResult):
            self._messages.close()
        return self._number, message

    def reply(self, number: int, go_on: bool) -> None:
        """Kept for the next `receive`."""
        self._answer = go_on

    def request_stop(self) -> None:
        """Nothing to do: the trial sees the signal itself."""

    def close(self) -> None:
        """Drop the task."""
        if self._messages is not None:
            self._messages.close()
