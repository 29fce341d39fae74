"""How did a trial end, and how often may it end badly before the study stops?

An outcome is one word (`harness.results.Outcome`). Some of the bad ones say that something is broken, others
that a configuration was poor; many of either in a row say that going on would waste the budget.
"""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from pathlib import Path

import torch

from harness.audit import AuditFailed
from harness.errors import UserError, first_line, message_of
from harness.results import NOT_RUN, Outcome, TrialResult
from harness.search.signals import TrialTimeout
from harness.train import Diverged

BROKEN: frozenset[str] = frozenset({"crashed", "audit_failed"})
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
class Row:
    """So many trials in a row, the last ones of all, ended badly in the same way.

    Attributes:
        kind: "broken", "diverged", "oom", "timeout"; "" if the last one ended well.
        length: how many.
    """

    kind: str = ""
    length: int = 0

    def then(self, result: TrialResult, broke_before: bool = False) -> Row:
        """The row after one more trial.

        Args:
            result: how it ended.
            broke_before: an earlier attempt at the same slot was broken. That it is again is no news: else
                three such slots, which are tried first, would stop every later run of the command.
        """
        if result.outcome in ("complete", "pruned"):
            return Row()
        if result.reason.startswith(NOT_RUN) or broke_before:
            return self
        kind = "broken" if result.outcome in BROKEN else result.outcome
        return Row(kind, self.length + 1 if kind == self.kind else 1)

    @property
    def is_too_long(self) -> bool:
        """True if the study should stop."""
        return self.length >= (BROKEN_IN_A_ROW if self.kind == "broken" else POOR_IN_A_ROW)
