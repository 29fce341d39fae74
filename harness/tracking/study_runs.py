"""Write the MLflow runs of a study, one per trial; compare them with the record and correct them."""

from __future__ import annotations

import json
import math
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mlflow.entities import Metric, Run

from harness.core.caller import no_garbage_collection
from harness.core.records import StudyInfo, TrialRecord
from harness.core.results import PREDICTIONS_FILE
from harness.core.stores import sqlite_path
from harness.core.study import Cell, cell_label
from harness.tracking.contents import (
    AGREED,
    KEY,
    agreed_until,
    agreement,
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
        corrected: whether it has been corrected.
    """

    what: str
    corrected: bool


class StudyRuns:
    """The runs of one study.

    Args:
        tracking_uri: address of the MLflow store; a SQLite file is created if absent, when it is first used.
        info: the study as a whole.
        source: its record.
    """

    def __init__(self, tracking_uri: str, info: StudyInfo, source: Source) -> None:
        self._uri, self._info, self._source = tracking_uri, info, source
        self._path = sqlite_path(tracking_uri)
        # Trial -> its run, and how many of its epochs the run has.
        self._written: dict[str, tuple[str, int]] = {}
        self._parents: dict[str, str] = {}
        self._opened: Experiment | None = None
        self._file: tuple[int, int] | None = None

    def experiment(self) -> Experiment:
        """The opened experiment.

        Raises:
            UserError: if the store cannot be used.
            OSError: if the store's file was deleted; MLflow would keep writing to the open deleted file.
        """
        if self._opened is None:
            self._opened = Experiment(self._uri, self._info.name, experiment_tags(self._info))
            self._file = _identity(self._path)
        elif self._file != _identity(self._path):
            raise OSError("its file was deleted or replaced")
        return self._opened

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
        if check:
            return self._sync(trials, every_run(self._info.name, self._uri), check=True)
        found = self._sync(trials, self.experiment().search(deleted=True), restore=restore)
        self._finish(trials, found)
        return found

    def update(self) -> list[Difference]:
        """Like `sync`, without the trials that agreed with their runs the last time and have not changed
        since: reading a run takes MLflow two milliseconds."""
        trials, experiment = self._source.trials(self._info), self.experiment()
        since = agreed_until(trials, experiment.tag(AGREED))
        later = [trial for trial in trials if milliseconds(trial) >= since]
        stored = experiment.search(f"attributes.start_time >= {since}", deleted=True)
        found = self._sync(later, stored)
        self._finish(trials, found)
        return found

    def _finish(self, trials: Sequence[TrialRecord], found: Iterable[Difference]) -> None:
        """Write what concerns all trials: the summaries, and up to when the runs agree with the record."""
        self._summarise(trials)
        if all(difference.corrected for difference in found):
            self.experiment().set_tag(AGREED, agreement(trials))

    def _sync(
        self,
        trials: Iterable[TrialRecord],
        stored: Iterable[Run],
        check: bool = False,
        restore: bool = False,
    ) -> list[Difference]:
        """Compare these trials with these runs, and unless `check` correct the runs."""
        with no_garbage_collection():
            runs, deleted = _by_trial(stored)
        if not check:
            self._parent()
        found: list[Difference] = []
        for trial in trials:
            mine, gone = runs.pop(trial.key, []), deleted.get(trial.key)
            name = f"{trial.describe(self._info.budget is not None)}, attempt {trial.attempt}"
            if not mine and gone is not None and trial.outcome:
                corrected = restore and not check
                hint = "" if restore else "; --restore brings it back"
                found.append(Difference(f"{name} was deleted in MLflow{hint}", corrected))
                if not corrected:
                    continue
                self.experiment().client.restore_run(gone.info.run_id)
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
        return found

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
        if best is not None:
            wrong = difference(trial, best)
        else:
            wrong = f"({trial.outcome}) has no run" if trial.outcome else ""
        if wrong:
            yield wrong
        if not check:
            self._written.pop(trial.key, None)
            if best is not None and (wrong or not trial.outcome):
                self._written[trial.key] = best.info.run_id, 0
            if wrong:
                self.write(trial)

    def _close(self, run: Run) -> None:
        """Mark a run as superfluous because another run shows the same trial."""
        experiment, reason = self.experiment(), "another run shows the same trial"
        experiment.write(run.info.run_id, [], tags={"outcome": "killed", "reason": reason})
        experiment.client.set_terminated(run.info.run_id, status="KILLED")

    def write(self, trial: TrialRecord) -> None:
        """Write everything that the record has of a trial to its run, which is made if there is none."""
        experiment = self.experiment()
        if fresh := trial.key not in self._written:
            parent = self._parent(trial.slot.cell)
            tags = {"mlflow.parentRunId": parent, **run_tags(trial)}
            name = f"{cell_label(trial.slot.cell)} {trial.name(self._info.budget is not None)}"
            self._written[trial.key] = experiment.create(name, tags, milliseconds(trial)), 0
        run_id, epochs = self._written[trial.key]
        metrics = [m for e in trial.epochs[epochs:] for m in epoch_metrics(trial, e)]
        params = (trial.spec or trial.params) if trial.outcome or not epochs else {}
        tags = {}
        if trial.outcome:
            ended = milliseconds(trial, over=True)
            metrics += [Metric(k, v, ended, 0) for k, v in final_metrics(trial).items()]
            if trial.predictions:
                file = self._source.predictions(trial)
                experiment.attach(run_id, PREDICTIONS_FILE, file)
            reason = {"reason": trial.reason} if trial.reason else {}
            again = {} if fresh else run_tags(trial)
            drawn = {"ranges": json.dumps(trial.ranges)} if trial.ranges else {}
            tags = {**again, **drawn, **trial.notes, **reason, "outcome": trial.outcome}
        experiment.write(run_id, metrics, params, tags)
        self._written[trial.key] = run_id, len(trial.epochs)
        if trial.outcome:
            experiment.client.set_terminated(run_id, status_of(trial), ended)
            del self._written[trial.key]

    def _parent(self, cell: Cell | None = None) -> str:
        """The run of a cell, or of the study. The UI groups trials under them, and the report becomes an
        artifact of the study's run. Their status is finished from the start."""
        experiment = self.experiment()
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
            by_cell[cell_label(trial.slot.cell)].append(trial)
        experiment, now = self.experiment(), int(time.time() * 1000)
        known = {r.info.run_id: r.data.metrics for r in experiment.search("tags.kind = 'cell'")}
        for mine in by_cell.values():
            run_id = self._parent(mine[0].slot.cell)
            shown, summary = known.get(run_id, {}), cell_summary(mine)
            new = summary.items() - shown.items()
            # MLflow cannot delete the values of a configuration that is no longer the chosen one.
            old = {name for name, value in shown.items() if name not in summary and value == value}
            if metrics := [*new, *((name, math.nan) for name in old)]:
                experiment.write(run_id, [Metric(k, v, now, 0) for k, v in metrics])


def _identity(path: Path | None) -> tuple[int, int] | None:
    """Identity of a SQLite store's file; None for other stores, and for a deleted file."""
    if path is None or not path.exists():
        return None
    found = path.stat()
    return found.st_dev, found.st_ino


def _by_trial(stored: Iterable[Run]) -> tuple[dict[str, list[Run]], dict[str, Run]]:
    """Runs of trials by key, and those that were deleted."""
    runs: defaultdict[str, list[Run]] = defaultdict(list)
    deleted: dict[str, Run] = {}
    for run in stored:
        key = run.data.tags.get(KEY)
        if key is not None and run.info.lifecycle_stage == "deleted":
            deleted[key] = run
        elif key is not None:
            runs[key].append(run)
    return dict(runs), deleted
