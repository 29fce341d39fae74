"""The outcome that an exception stands for, and how many bad outcomes in a row stop a study.

Some outcomes say that something is broken, others that a configuration was poor; many of either in a row say
that going on would waste the budget.
"""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from pathlib import Path

import torch

from harness.audit import AuditFailed
from harness.errors import UserError, first_line, message_of
from harness.fit import Diverged
from harness.results import NOT_RUN, Outcome
from harness.signals import TrialTimeout

BROKEN: frozenset[str] = frozenset({"crashed", "audit_failed"})
RETRIED: frozenset[str] = BROKEN | {"killed"}
"""Outcomes that say nothing about the configuration; the next run of the command tries it again."""
BROKEN_IN_A_ROW = 3
"""Trials that end as one of these: the code, the study file or the data are broken."""
POOR_IN_A_ROW = 10
"""Trials that end all as diverged, all as oom or all as timeout: the ranges, or somebody else's use of the
machine, are to blame rather than ten configurations."""
SAID_BY_OUTCOME = (Diverged, AuditFailed, TrialTimeout)
"""Exceptions whose name would be the outcome once more."""


def classify(error: BaseException) -> Outcome:
    """The outcome that an exception in a trial stands for."""
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
    """What an exception says, and where in the code; bad input says by itself where it is, the outcome of
    what kind our own are."""
    if isinstance(error, UserError):
        return first_line(error)
    where = traceback.extract_tb(error.__traceback__)[-1]
    file = "/".join(Path(where.filename).parts[-2:])
    kind = "" if isinstance(error, SAID_BY_OUTCOME) else f"{type(error).__name__}: "
    return f"{kind}{message_of(error)} ({file}:{where.lineno})"


@dataclass(frozen=True)
class FailureStreak:
    """So many trials in a row, the last ones of all, ended badly in the same way.

    Attributes:
        kind: "broken", "diverged", "oom", "timeout"; "" if the last one ended well.
        length: how many.
    """

    kind: str = ""
    length: int = 0

    def then(self, outcome: str, reason: str, broke_before: bool = False) -> FailureStreak:
        """The streak after one more trial.

        Args:
            outcome, reason: how it ended, and why.
            broke_before: an earlier attempt at the same slot was broken. That it is again is no news: else
                three such slots, which are tried first, would stop every later run of the command.
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
