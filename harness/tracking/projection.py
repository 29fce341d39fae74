"""Show a study in MLflow while it runs.

`show` and `show_live` write each event. What fails is written later: `settle` compares trials with their runs
and writes what is missing, so a failure of MLflow costs nothing but that. The tag "outcome" of a run is
written last, so a run that has it is complete.

MLflow takes seconds to import. A new store is therefore opened at the first write, when the first trial is
done and shown.
"""

from __future__ import annotations

import math
import shlex
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from harness.core.caller import no_garbage_collection
from harness.core.errors import REFUSALS, UserError, first_line
from harness.core.records import StudyInfo, TrialRecord
from harness.core.stores import sqlite_path

if TYPE_CHECKING:
    from harness.tracking.study_runs import Source, StudyRuns

LIVE_SECONDS = 1.0
"""Interval at which epochs of a running trial are written; those of a shorter trial are written at its
end."""
PAUSE_SECONDS = 30.0
"""Pause after a failure, unless nine times the time that the failure took is longer."""


class Projection:
    """Writes one study's record to MLflow; a store that fails gives a warning and never ends the study.

    Args:
        tracking_uri: address of the MLflow store; a SQLite file is created if absent.
        info: the study as a whole.
        source: its record.
        clock: monotonic clock in seconds.

    Attributes:
        behind: whether MLflow is incomplete because its store did not answer.
    """

    def __init__(
        self,
        tracking_uri: str,
        info: StudyInfo,
        source: Source,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._uri, self._info, self._source, self._clock = tracking_uri, info, source, clock
        self._silent_until, self._warned, self.behind = -math.inf, False, False
        self._told, self._settled = False, False
        self._live: dict[str, float] = {}
        self._runs: StudyRuns | None = None

    def open(self) -> None:
        """Refuse a store that can never be used. A server that does not answer may come back, so it only
        gives a warning at the first write.

        Raises:
            UserError: if the store cannot be used.
        """
        if self._is_new():
            return
        try:
            self.runs().experiment()
        except UserError as error:
            code = getattr(error.__cause__, "error_code", None)
            if not self._uri.startswith("http") or code is None or code in REFUSALS:
                raise

    def _is_new(self) -> bool:
        path = sqlite_path(self._uri)
        return self._runs is None and path is not None and not path.exists()

    def runs(self) -> StudyRuns:
        """The study's runs, in the opened store."""
        if self._runs is None:
            with no_garbage_collection():
                from harness.tracking.study_runs import StudyRuns

            self._runs = StudyRuns(self._uri, self._info, self._source)
        return self._runs

    def show_live(self, trial: TrialRecord) -> None:
        """Write the epochs of a running trial, unless that was done a moment ago."""
        self._settled = False
        now = self._clock()
        if now - self._live.setdefault(trial.key, now) >= LIVE_SECONDS:
            self._attempt(lambda: self.runs().write(trial))
            self._live[trial.key] = self._clock()

    def show(self, trial: TrialRecord) -> None:
        """Write a finished trial."""
        self._settled = False
        self._attempt(lambda: self.runs().write(trial), synced=True)
        self._live.pop(trial.key, None)

    def settle(self) -> None:
        """Bring MLflow into agreement with the record, if its store answers. With many trials this takes
        seconds, so it is not done again if nothing was shown since."""
        if self._settled:
            return
        self._silent_until, self.behind = -math.inf, False
        if self._is_new() and not self._source.trials(self._info):
            return
        self._attempt(self._settle)

    def _settle(self) -> None:
        left = [found for found in self.runs().update() if not found.corrected]
        self._settled = True
        if left and not self._told:
            self._told = True
            more = f" (and {len(left) - 1} more)" if len(left) > 1 else ""
            self._warn(
                f"MLflow shows what the record does not say: {left[0].what}{more}; "
                f"python -m harness.sync --study {shlex.quote(self._info.name)} --check lists all differences"
            )

    def _attempt(self, write: Callable[[], object], synced: bool = False) -> None:
        """Write, unless the store has just failed to answer; the first failure gives a warning. A store that
        answers again is synced first, and with `synced` that is all."""
        began = self._clock()
        if began < self._silent_until:
            self.behind = True
            return
        try:
            if self.behind:
                self.behind = False
                self.runs().update()
                self._warn("the tracking store answers again, and has what it lacked")
                self._warned = False
                if synced:
                    return
            write()
        except _failures() as error:
            now = self._clock()
            self.behind = True
            self._silent_until = now + max(PAUSE_SECONDS, 9 * (now - began))
            if not self._warned:
                self._warned = True
                self._warn(
                    f"the tracking store does not take what is written ({first_line(error)}); the study goes "
                    "on, its record is complete without it, and the store is tried again later"
                )

    def _warn(self, message: str) -> None:
        print(f"warning: {message}", file=sys.stderr)


def _failures() -> tuple[type[Exception], ...]:
    """What a store raises that does not take what is written."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return MlflowException, SQLAlchemyError, OSError, UserError
