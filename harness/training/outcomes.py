"""Map exceptions to outcomes, and count the failures in a row that stop a study.

Some outcomes mean that something is broken, others that a configuration was poor. After many of one kind in a
row, going on would waste the budget.
"""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from pathlib import Path

import torch

from harness.core.errors import UserError, first_line, message_of
from harness.core.results import BROKEN, NOT_RUN, Outcome
from harness.core.signals import TrialTimeout
from harness.training.audit import AuditFailed
from harness.training.fit import Diverged

BROKEN_IN_A_ROW = 3
"""So many broken trials in a row stop the study: the code, the study file or the data are broken."""
POOR_IN_A_ROW = 10
"""So many trials in a row that all end as diverged, oom or timeout stop the study: the cause is then more
likely the ranges, or other programs on the machine, than the configurations."""
SAID_BY_OUTCOME = (Diverged, AuditFailed, TrialTimeout)
"""Exceptions whose name would only repeat the outcome."""


def classify(error: BaseException) -> Outcome:
    """The outcome of a trial that raised this exception."""
    if isinstance(error, Diverged):
        return "diverged"
    if isinstance(error, AuditFailed):
        return "audit_failed"
    if isinstance(error, TrialTimeout):
        return "timeout"
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return "oom"
    if isinstance(error, RuntimeError) and "can't allocate memory" in str(error):
        return "oom"
    return "crashed"


def reason_of(error: BaseException) -> str:
    """The message and code location of an exception. A UserError needs no location, and the harness's own
    exceptions need no type name, because the outcome tells it."""
    if isinstance(error, UserError):
        return first_line(error)
    where = traceback.extract_tb(error.__traceback__)[-1]
    file = "/".join(Path(where.filename).parts[-2:])
    kind = "" if isinstance(error, SAID_BY_OUTCOME) else f"{type(error).__name__}: "
    return f"{kind}{message_of(error)} ({file}:{where.lineno})"


@dataclass(frozen=True)
class FailureStreak:
    """The latest trials in a row that failed in the same way.

    Attributes:
        kind: "broken", "diverged", "oom", "timeout"; "" if the last one did not fail.
        length: number of trials.
    """

    kind: str = ""
    length: int = 0

    def then(self, outcome: str, reason: str, broke_before: bool = False) -> FailureStreak:
        """The streak after one more trial.

        Args:
            outcome, reason: how it ended, and why.
            broke_before: whether an earlier attempt at the same slot was broken. Such a trial is not counted:
                otherwise three such slots, which are tried first, would stop every later run of the command.
        """
        if outcome in ("complete", "pruned"):
            return FailureStreak()
        if reason.startswith(NOT_RUN) or broke_before:
            return self
        kind = "broken" if outcome in BROKEN else outcome
        return FailureStreak(kind, self.length + 1 if kind == self.kind else 1)

    @property
    def is_too_long(self) -> bool:
        """True if the study should stop."""
        return self.length >= (BROKEN_IN_A_ROW if self.kind == "broken" else POOR_IN_A_ROW)
