"""Executors run trials: each takes tasks and returns their messages, and knows nothing about cells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # a worker imports this package before it may load torch
    from harness.training.trial import Message, TrialTask


@dataclass(frozen=True)
class Died:
    """The process that ran a task is gone, and the task with it.

    Attributes:
        how: cause of the death for messages, e.g. "SIGSEGV" or "exit code 3".
        final: whether the executor has already run the task again, without success.
    """

    how: str
    final: bool = False


class Executor(Protocol):
    """Runs tasks, several at a time."""

    @property
    def capacity(self) -> int:
        """Largest number of unfinished tasks."""

    @property
    def inline(self) -> bool:
        """True if tasks run in the coordinator's process."""

    def submit(self, number: int, task: TrialTask) -> None:
        """Start a task, now or as soon as resources are free; `number` identifies it from now on."""

    def receive(self) -> tuple[int, Message | Died]:
        """Wait for the next message of any task. TrialResult and Died are final messages."""

    def reply(self, number: int, go_on: bool) -> None:
        """Answer the EpochResult that was just received, if the task is `pruned`."""

    def request_stop(self) -> None:
        """Let every task end after its running epoch, which is kept (from a signal handler)."""

    def close(self) -> None:
        """End whatever still runs, at once."""
