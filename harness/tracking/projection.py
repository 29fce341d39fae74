"""Write a study's record to MLflow, one run per trial.

While a study runs, `show` and `show_live` write each event. `sync` compares every trial with its run and
writes what is missing; it can be repeated at any time, so a failure of MLflow costs nothing but a later
`sync`. `analysis.load` reads the runs; `harness.tracking.contents` says what is in them. The tag "outcome" is
written last, so a run that has it is complete.
"""

from __future__ import annotations

import json
import math
import shlex
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mlflow.entities import Metric, Run
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from harness.core.errors import REFUSALS, UserError, first_line
from harness.core.records import StudyInfo, TrialRecord
from harness.core.stores import sqlite_path
from harness.core.study import Cell, cell_label
from harness.tracking.contents import (
    KEY,
    cell_summary,
    contradicts,
    difference,
    epoch_metrics,
    experiment_tags,
    final_metrics,
    is_closed,
    milliseconds,
    run_tags,
    status_of,
    wholeness,
)
from harness.tracking.experiment import Experiment
from harness.tracking.runs import every_run

LIVE_SECONDS = 1.0
"""Interval at which epochs of a running trial are written; those of a shorter trial are written at its
end."""
PAUSE_SECONDS = 30.0
"""Pause after a failure, unless nine times the time that the failure took is longer."""


class Source(Protocol):
    """The record that is written to MLflow."""

    def trials(self, info: StudyInfo) -> list[TrialRecord]:
        """Every attempt at every slot of the study."""

    def predictions(self, trial: TrialRecord) -> Path:
        """The file of a trial's test predictions."""


@dataclass(frozen=True)
class Difference:
    """A difference between MLflow and the record.

    Attributes:
        what: description in one sentence.
        mended: whether it has been corrected.
    """

    what: str
    mended: bool


@dataclass
class _Shown:
    """How many epochs of a trial have been written, and when."""

    run_id: str
    epochs: int
    at: float


class Projection:
    """Writes one study's record to MLflow.

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
        self._told = False
        self._shown: dict[str, _Shown] = {}
        self._parents: dict[str, str] = {}
        self._opened: Experiment | None = None
        self._file: tuple[int, int] | None = None

    def open(self) -> None:
        """Refuse a store that can never be used. A server that does not answer may come back, so it only
        gives a warning at the first write.

        Raises:
            UserError: if the store cannot be used.
        """
        try:
            self._experiment()
        except UserError as error:
            code = getattr(error.__cause__, "error_code", None)
            if not self._uri.startswith("http") or code is None or code in REFUSALS:
                raise

    def _experiment(self) -> Experiment:
        """Raises OSError if the store's file was deleted; MLflow would keep writing to the open deleted
        file."""
        if self._opened is None:
            self._opened = Experiment(self._uri, self._info.name, experiment_tags(self._info))
            self._file = _identity(self._uri)
        elif self._file != _identity(self._uri):
            raise OSError("its file was deleted or replaced")
        return self._opened

    # --- while the study runs ----------------------------------------------------------------------

    def show_live(self, trial: TrialRecord) -> None:
        """Write the epochs of a running trial, unless that was done a moment ago."""
        now, shown = self._clock(), self._shown.get(trial.key)
        if shown is None:
            self._shown[trial.key] = _Shown("", 0, now)
        elif now - shown.at >= LIVE_SECONDS:
            self._attempt(lambda: self._write(trial))

    def show(self, trial: TrialRecord) -> None:
        """Write a finished trial."""
        self._attempt(lambda: self._write(trial))
        self._shown.pop(trial.key, None)

    def settle(self) -> None:
        """Bring MLflow into agreement with the record, if its store answers."""
        self._silent_until, self.behind = -math.inf, False
        self._attempt(self._settle)

    def _settle(self) -> None:
        left = [found for found in self.sync() if not found.mended]
        if left and not self._told:
            self._told = True
            more = f" (and {len(left) - 1} more)" if len(left) > 1 else ""
            self._warn(
                f"MLflow shows what the record does not say: {left[0].what}{more}; "
                f"python -m harness.sync --study {shlex.quote(self._info.name)} --check names all"
            )

    def _attempt(self, write: Callable[[], object]) -> None:
        """Write, unless the store has just failed to answer; the first failure gives a warning."""
        began = self._clock()
        if began < self._silent_until:
            self.behind = True
            return
        try:
            if self.behind:
                self.behind = False
                self.sync()
                self._warn("the tracking store answers again, and has what it lacked")
                self._warned = False
            write()
        except (MlflowException, SQLAlchemyError, OSError, UserError) as error:
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

    # --- the whole study ---------------------------------------------------------------------------

    def sync(self, check: bool = False, restore: bool = False) -> list[Difference]:
        """Compare every trial with its run, and write what is missing or wrong.

        Args:
            check: only compare.
            restore: bring back runs that were deleted in MLflow's UI.

        Returns:
            What was found.

        Raises:
            UserError, MlflowException: if the store cannot be read or written.
        """
        trials = self._source.trials(self._info)
        stored = every_run(self._info.name, self._uri) if check else self._every_run()
        runs, deleted, others = _by_trial(stored)
        if not check:
            self._parent()
        found: list[Difference] = []
        for trial in trials:
            mine, gone = runs.pop(trial.key, []), deleted.get(trial.key)
            name = f"{trial.slot}, attempt {trial.attempt}"
            if not mine and gone is not None and trial.outcome:
                mended = restore and not check
                hint = "" if restore else "; --restore brings it back"
                found.append(Difference(f"{name} was deleted in MLflow{hint}", mended))
                if not mended:
                    continue
                self._experiment().client.restore_run(gone.info.run_id)
                mine = [gone]
            found += [
                Difference(f"{name} {what}", not check)
                for what in self._compare(trial, mine, check)
            ]
        for key, unknown in runs.items():
            found += [
                Difference(f"run {run.info.run_id} ({key}) is of no trial in the record", False)
                for run in unknown
                if not is_closed(run)
            ]
        if others:
            found.append(Difference(f"{others} runs say of no trial which it is", False))
        if not check:
            self._summarise(trials)
        return found

    def _every_run(self) -> Iterable[Run]:
        return self._experiment().search(deleted=True)

    def _compare(self, trial: TrialRecord, runs: list[Run], check: bool) -> Iterator[str]:
        """Describe the differences between a trial and its runs; unless `check`, correct them."""
        own = [run for run in runs if not contradicts(trial, run)]
        best = max(own, key=wholeness, default=None)
        for run in runs:
            if run is not best and not is_closed(run):
                which = "a second run" if run in own else "a run with other values,"
                yield f"has {which} {run.info.run_id}"
                if not check:
                    self._close(run)
        if best is None and trial.outcome:
            yield f"({trial.outcome}) has no run"
            if not check:
                self._write(trial)
        elif best is not None and (wrong := difference(trial, best)):
            yield wrong
            if not check:
                client, run_id = self._experiment().client, best.info.run_id
                known = client.get_metric_history(run_id, "val_accuracy")
                self._shown[trial.key] = _Shown(run_id, len(known), self._clock())
                self._write(trial)
        if best is not None:
            self._shown.pop(trial.key, None)

    def _close(self, run: Run) -> None:
        """Mark a run as superfluous because another run shows the same trial."""
        experiment, reason = self._experiment(), "another run shows the same trial"
        experiment.write(run.info.run_id, [], tags={"outcome": "killed", "reason": reason})
        experiment.client.set_terminated(run.info.run_id, status="KILLED")

    # --- one run -----------------------------------------------------------------------------------

    def _write(self, trial: TrialRecord) -> None:
        """Write everything that the record has of a trial to its run."""
        experiment, shown = self._experiment(), self._shown.get(trial.key)
        fresh = shown is None or not shown.run_id
        if shown is None or fresh:
            parent = self._parent(trial.slot.cell)
            tags = {"mlflow.parentRunId": parent, **run_tags(trial)}
            name = f"{cell_label(trial.slot.cell)} {trial.slot.name}"
            run_id = experiment.create(name, tags, milliseconds(trial))
            shown = self._shown[trial.key] = _Shown(run_id, 0, self._clock())
        metrics = [m for e in trial.epochs[shown.epochs :] for m in epoch_metrics(trial, e)]
        params = (trial.spec or trial.params) if trial.outcome or not shown.epochs else {}
        tags = {}
        if trial.outcome:
            ended = milliseconds(trial, over=True)
            metrics += [Metric(k, v, ended, 0) for k, v in final_metrics(trial).items()]
            if trial.predictions:
                file = self._source.predictions(trial)
                experiment.attach(shown.run_id, f"predictions{file.suffix}", file)
            reason = {"reason": trial.reason} if trial.reason else {}
            again = {} if fresh else run_tags(trial)
            drawn = {"ranges": json.dumps(trial.ranges)} if trial.ranges else {}
            tags = {**again, **drawn, **trial.notes, **reason, "outcome": trial.outcome}
        experiment.write(shown.run_id, metrics, params, tags)
        shown.epochs, shown.at = len(trial.epochs), self._clock()
        if trial.outcome:
            experiment.client.set_terminated(shown.run_id, status_of(trial), ended)

    def _parent(self, cell: Cell | None = None) -> str:
        """The run of a cell, or of the study. The UI groups trials under them, and the report becomes an
        artifact of the study's run. Their status is finished from the start."""
        experiment = self._experiment()
        if not self._parents:
            for kind in ("study", "cell"):
                for run in experiment.search(f"tags.kind = '{kind}'"):
                    self._parents.setdefault(run.data.tags.get("cell", ""), run.info.run_id)
                    if run.info.status == "RUNNING":  # its process died before it could finish it
                        experiment.client.set_terminated(run.info.run_id)
        label, study = "" if cell is None else cell_label(cell), self._info.name
        if label not in self._parents:
            if cell is None:
                tags = {"kind": "study", "mlflow.note.content": self._info.question}
            else:
                tags = {"kind": "cell", "cell": label, **cell}
                tags["mlflow.parentRunId"] = self._parent()
            run_id = experiment.create(label or f"study {study}", {"study": study, **tags})
            experiment.client.set_terminated(run_id)
            self._parents[label] = run_id
        return self._parents[label]

    def _summarise(self, trials: Iterable[TrialRecord]) -> None:
        """Write the metrics of each cell as a whole to its own run, so that cells can be compared."""
        by_cell: defaultdict[str, list[TrialRecord]] = defaultdict(list)
        for trial in trials:
            by_cell[self._parent(trial.slot.cell)].append(trial)
        experiment, now = self._experiment(), int(time.time() * 1000)
        known = {r.info.run_id: r.data.metrics for r in experiment.search("tags.kind = 'cell'")}
        for run_id, mine in by_cell.items():
            new = cell_summary(mine).items() - known.get(run_id, {}).items()
            if new:
                experiment.write(run_id, [Metric(k, v, now, 0) for k, v in new])


def _identity(uri: str) -> tuple[int, int] | None:
    """Identity of a SQLite store's file; None for other stores, and for a deleted file."""
    path = sqlite_path(uri)
    if path is None or not path.exists():
        return None
    found = path.stat()
    return found.st_dev, found.st_ino


def _by_trial(stored: Iterable[Run]) -> tuple[dict[str, list[Run]], dict[str, Run], int]:
    """Runs of trials by key, those that were deleted, and how many have no key."""
    runs: defaultdict[str, list[Run]] = defaultdict(list)
    deleted: dict[str, Run] = {}
    others = 0
    for run in stored:
        key = run.data.tags.get(KEY)
        gone = run.info.lifecycle_stage == "deleted"
        if key is None:
            others += "index" in run.data.tags and not gone
        elif gone:
            deleted[key] = run
        else:
            runs[key].append(run)
    return dict(runs), deleted, others
