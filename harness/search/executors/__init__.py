"""Executors: where trials run. Each takes tasks and gives back their messages; none knows what a cell is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # a worker imports this package before it may load torch
    from harness.trial import Message, TrialTask


@dataclass(frozen=True)
class Died:
    """The process that ran a task is gone, and the task with it.

    Attributes:
        how: for a reader, e.g. "SIGSEGV" or "exit code 3".
        outcome: "killed", or "timeout" if it was ended because it took too long.
        final: it has been run again already, without success.
    """

    how: str
    outcome: str = "killed"
    final: bool = False


class Executor(Protocol):
    """Runs tasks, several at a time.

    Attributes:
        on_hang: called before this very process is ended, because a task in it hangs.
    """

    on_hang: Callable[[], None]

    @property
    def capacity(self) -> int:
        """So many tasks may be submitted and not ended."""

    @property
    def inline(self) -> bool:
        """True if tasks run in this very process."""

    def submit(self, number: int, task: TrialTask) -> None:
        """Begin a task, now or as soon as there is room; `number` names it from now on."""

    def receive(self) -> tuple[int, Message | Died]:
        """Wait for the next message of any task. A TrialResult or Died is a task's last."""

    def reply(self, number: int, go_on: bool) -> None:
        """Answer the EpochResult that was just received, if the task is `pruned`."""

    def request_stop(self) -> None:
        """Let every task end after its running epoch, which is kept (from a signal handler)."""

    def close(self) -> None:
        """End whatever still runs, at once."""
