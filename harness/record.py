"""Where did the results go? One MLflow run per trial, written here and nowhere else.

    mlflow ui --backend-store-uri sqlite:///mlruns/mlflow.db --host 127.0.0.1 --workers 1

A run's parameters are the complete flat TrialSpec, its tags say which study, cell, phase and outcome it
belongs to, its metrics carry their unit in their name. `analysis.load` is the only reader.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from harness.addresses import adopt_artifacts, artifact_location, remove_stray_folder
from harness.delivery import WHOLE_STUDY, Delivery, among_others, batch, end, search
from harness.errors import UserError, refusal, without_password
from harness.results import EpochResult, Predictions, TrialResult
from harness.spec import TrialSpec
from harness.spool import Spool
from harness.stores import create_sqlite, home_of, require_sqlite, sqlite_path, warn_of_network

for _name in ("alembic", "mlflow.store.db.base_sql_model"):
    logging.getLogger(_name).setLevel(logging.WARNING)
# Its errors come as exceptions too, of which we say one line.
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)

PER_EPOCH = ("train_loss", "val_loss", "val_accuracy", "train_seconds", "marginal_seconds")
"""Metrics with one value per epoch; MLflow shows the last, which is the trial's."""

UNFOLD = (
    "Click the + beside the study's run to see its cells, the + beside a cell to see its trials."
)
"""The UI begins with one row; this stands above it."""


@dataclass(frozen=True)
class StudyInfo:
    """What a reader needs to know about a study as a whole; kept as tags of the MLflow experiment.

    Attributes:
        name: study and experiment name.
        question: the study file's docstring.
        command: what to type to repeat the study.
        factors: factor -> compared labels, in the order written.
        baseline: one value of some factors.
        trials: configurations per cell.
        repeats: seeds per cell.
        sampler: how configurations were drawn; budget curves need "random".
        leaks: one line per target whose train, validation and test images overlap.
        space_sha256: hash of the study file.
    """

    name: str
    question: str
    command: str
    factors: Mapping[str, list[str]]
    baseline: Mapping[str, str]
    trials: int
    repeats: int
    sampler: str
    leaks: tuple[str, ...]
    space_sha256: str

    def tags(self) -> dict[str, str]:
        """The experiment's tags: lists and mappings as JSON."""
        return {
            "mlflow.experimentKind": "custom_model_development",  # the UI opens on runs, not on traces
            "mlflow.note.content": f"{self.question}\n\n    {self.command}\n\n{UNFOLD}",
            "question": self.question,
            "command": self.command,
            "factors": json.dumps({k: list(v) for k, v in self.factors.items()}),
            "baseline": json.dumps(dict(self.baseline)),
            "trials": str(self.trials),
            "repeats": str(self.repeats),
            "sampler": self.sampler,
            "leaks": "\n".join(self.leaks),
            "space_sha256": self.space_sha256,
        }

    @classmethod
    def from_tags(cls, name: str, tags: Mapping[str, str]) -> StudyInfo:
        """The same from the experiment's tags.

        Raises:
            KeyError, ValueError: if they are not those of a study.
        """
        return cls(
            name=name,
            question=tags["question"],
            command=tags["command"],
            factors=json.loads(tags["factors"]),
            baseline=json.loads(tags["baseline"]),
            trials=int(tags["trials"]),
            repeats=int(tags["repeats"]),
            sampler=tags["sampler"],
            leaks=tuple(tags.get("leaks", "").splitlines()),
            space_sha256=tags["space_sha256"],
        )


class Info(Protocol):
    """What an experiment is called, and the tags that describe it."""

    @property
    def name(self) -> str:
        """Of the experiment."""

    def tags(self) -> Mapping[str, str]:
        """Of the experiment; others are left as they are."""


@dataclass(frozen=True)
class PlainInfo:
    """An experiment with nothing but a note, or one that its study describes."""

    name: str
    note: str = ""

    def tags(self) -> dict[str, str]:
        """The note, if there is one."""
        if not self.note:
            return {}
        kind = {"mlflow.experimentKind": "custom_model_development"}
        return {**kind, "mlflow.note.content": self.note}


class Recorder:
    """Writes one study's trials to MLflow. A store that does not answer holds up nothing: what it should get
    is kept in spool/<name>/, beside its database or in mlruns/.

    Args:
        tracking_uri: MLflow tracking URI; a SQLite file is created when absent.
        info: the study, or whatever else the experiment holds, as a whole.
        clock: seconds, never going back.

    Raises:
        UserError: if the store cannot be opened or its experiment was deleted.
    """

    def __init__(
        self, tracking_uri: str, info: Info, clock: Callable[[], float] = time.monotonic
    ) -> None:
        path = sqlite_path(tracking_uri)
        try:
            if path is not None:
                create_sqlite(path, _make_mlflow_tables)
                require_sqlite(path, "MLflow", or_empty=True)
                adopt_artifacts(path)
                warn_of_network(path, "--tracking-uri http://HOST:5000 of an MLflow server")
            self._client = MlflowClient(tracking_uri=tracking_uri)
            remove_stray_folder(tracking_uri)
            self._experiment = self._open_experiment(info, path)
            spool = Spool(home_of(tracking_uri) / "spool" / info.name)
            self._delivery = Delivery(self._client, self._experiment, spool, clock)
            self._parent = self._open_parent(info) if isinstance(info, StudyInfo) else None
            self._factors = tuple(info.factors) if isinstance(info, StudyInfo) else ()
            self._cells: dict[str, str] = {}
        except UserError:
            raise
        except Exception as error:  # MLflow and SQLAlchemy raise many kinds here
            raise UserError(
                f"cannot open the tracking store {without_password(tracking_uri)}: {refusal(error)}"
            ) from error

    def _open_experiment(self, info: Info, path: Path | None) -> str:
        found = self._client.get_experiment_by_name(info.name)
        if found is not None and found.lifecycle_stage == "deleted":
            raise UserError(
                f"experiment {info.name!r} was deleted in MLflow: restore it "
                f"(mlflow experiments restore -x {found.experiment_id}) or rename the study"
            )
        if found is None:
            location = None if path is None else artifact_location(path, info.name)
            try:
                made = self._client.create_experiment(info.name, artifact_location=location)
            except MlflowException:  # another process may have made it a moment ago
                found = self._client.get_experiment_by_name(info.name)
                if found is None:
                    raise
        experiment: str = found.experiment_id if found else made
        among_others(lambda: self._describe(experiment, info))
        return experiment

    def _describe(self, experiment: str, info: Info) -> None:
        """Write the tags that are not as they should be."""
        known, tags = self._client.get_experiment(experiment).tags, info.tags()
        wrong = {key: value for key, value in tags.items() if known.get(key) != value}
        # Where none is, one is written again: who may only read is told before anything runs.
        for key, value in wrong.items() or list(tags.items())[:1]:
            self._client.set_experiment_tag(experiment, key, value)

    def _open_parent(self, info: Info) -> str:
        """The run of the study as a whole: the UI groups the trials under it, the report is its artifact.
        It is finished from the start, because nothing that runs hangs on it. "" where there is no study."""
        if not self._parents() and isinstance(info, StudyInfo):
            tags = {"kind": "study", "study": info.name, "mlflow.note.content": info.question}
            run = self._client.create_run(
                self._experiment, run_name=f"study {info.name}", tags=tags
            )
            self._client.set_terminated(run.info.run_id)
        return next(iter(self._parents()), "")

    def _parents(self) -> list[str]:
        """The first one counts, where several processes made one at once."""
        found = search(self._client, self._experiment, "tags.kind = 'study'")
        return [run.info.run_id for run in sorted(found, key=_age)]

    def _above(self, tags: Mapping[str, str]) -> dict[str, str]:
        """Tag that puts a trial under the run of its cell; under the study's while the store is away."""
        cell = tags.get("cell")
        if not self._parent or cell is None:
            return self._under_parent()
        if cell not in self._cells and self._find_cells() and cell not in self._cells:
            # Made at the cell's first trial, finished at once, and the first one counts, as of the study.
            kept = {k: v for k, v in tags.items() if k in ("study", "cell", *self._factors)}
            with suppress(MlflowException, SQLAlchemyError, OSError):
                run = self._client.create_run(
                    self._experiment,
                    run_name=cell,
                    tags={**self._under_parent(), "kind": "cell", **kept},
                )
                self._client.set_terminated(run.info.run_id)
            self._find_cells()
        known = self._cells.get(cell)
        return {"mlflow.parentRunId": known} if known else self._under_parent()

    def _find_cells(self) -> bool:
        """Look up the runs of the cells; False if the store does not answer."""
        found = self._delivery.ask("tags.kind = 'cell'")
        for run in sorted(found or [], key=_age, reverse=True):
            self._cells[run.data.tags["cell"]] = run.info.run_id
        return found is not None

    def _under_parent(self) -> dict[str, str]:
        return {"mlflow.parentRunId": self._parent} if self._parent else {}

    def start(
        self, spec: TrialSpec | Mapping[str, object], name: str, tags: Mapping[str, object]
    ) -> str:
        """Open a run with the spec, or as much of one as is known, as parameters; returns the run id."""
        written = {k: str(v) for k, v in tags.items()}
        run_id = self._delivery.create(name, {**self._above(written), **written})
        flat = spec.flat() if isinstance(spec, TrialSpec) else spec
        params = {k: str(v) for k, v in flat.items()}
        self._delivery.write(run_id, batch(params=params))
        return run_id

    def epoch(self, run_id: str, result: EpochResult) -> None:
        """One call per epoch, all its metrics in it."""
        values = {name: getattr(result, name) for name in PER_EPOCH}
        self._delivery.write(run_id, batch(_finite(values), step=result.epoch))

    def finish(self, run_id: str, result: TrialResult) -> None:
        """Everything about how a run ended. Safe to repeat."""
        self.write(run_id, result)
        self.end(run_id, result.outcome)

    def write(self, run_id: str, result: TrialResult) -> None:
        """Final metrics, notes and predictions of a run that goes on to be open. Safe to repeat."""
        tags = {name: note[:5000] for name, note in result.notes.items()}
        if result.reason:
            tags["reason"] = result.reason[:5000]
        final = {k: v for k, v in result.metrics.items() if k not in PER_EPOCH}
        self._delivery.write(run_id, batch(_finite(final), tags=tags))
        if result.predictions is not None:
            text = predictions_csv(result.predictions)
            self._delivery.write(run_id, {"do": "text", "file": "predictions.csv", "text": text})

    def end(self, run_id: str, outcome: str) -> None:
        """The outcome and the terminal status. Safe to repeat."""
        self._delivery.write(run_id, end(outcome))

    def flush(self) -> int:
        """Send what was kept while the store did not answer; returns the number of runs that still wait."""
        return self._delivery.flush()

    def summarise(self, cell: str, metrics: Mapping[str, float]) -> None:
        """Metrics of a cell as a whole, on its own run, so that cells can be compared. Safe to repeat."""
        if cell not in self._cells:
            self._find_cells()
        if cell in self._cells:  # a study of before cells had runs has none
            self._delivery.write(self._cells[cell], batch(metrics))

    def keep(
        self,
        name: str,
        params: Mapping[str, object],
        tags: Mapping[str, object],
        metrics: Mapping[str, float],
        artifacts: Mapping[str, Path] | None = None,
    ) -> None:
        """Write a run that is no trial, from start to end: a pretraining, or the measures of one pair.

        Args:
            name: of the run.
            params, tags, metrics: of it; a metric that is NaN or infinite is left out.
            artifacts: name under which each file is kept -> where it lies now.
        """
        run = self._client.create_run(
            self._experiment,
            run_name=name,
            tags={**self._under_parent(), **{k: str(v)[:5000] for k, v in tags.items()}},
        )
        status = "FAILED"
        try:
            written = [Param(k, str(v)) for k, v in params.items()]
            self._client.log_batch(run.info.run_id, _metrics(_finite(metrics)), written)
            with tempfile.TemporaryDirectory() as folder:
                for kept_as, path in (artifacts or {}).items():
                    shutil.copy(path, Path(folder, kept_as))
                    self._client.log_artifact(run.info.run_id, str(Path(folder, kept_as)))
            status = "FINISHED"
        finally:  # also after Ctrl-C or with a full disk: nobody else would end it
            self._client.set_terminated(run.info.run_id, status=status)

    def kept(self, phase: str) -> list[dict[str, str]]:
        """The tags of the finished runs of that phase."""
        condition = f"tags.phase = '{phase}' and attributes.status = 'FINISHED'"
        return [dict(r.data.tags) for r in search(self._client, self._experiment, condition)]

    def supersede(self, cell: str, chosen: int) -> None:
        """Mark the cell's repeats of any configuration but the chosen one: kept, not compared.

        Args:
            cell: label of the cell.
            chosen: index of the tuning trial whose configuration is repeated now.
        """
        self._delivery.write(WHOLE_STUDY, {"do": "supersede", "cell": cell, "chosen": chosen})

    def outcomes(self) -> dict[str, str]:
        """Outcome of each trial's run by the id that the trial knows; "" as long as it has none.

        Raises:
            UserError: if the store does not answer.
        """
        found = self._delivery.ask("")
        if found is None:
            raise UserError("the tracking store does not answer; try again later")
        recorded = {
            self._delivery.identity(run): run.data.tags.get("outcome", "")
            for run in found
            if "index" in run.data.tags
        }
        return recorded | self._delivery.kept_outcomes()

    def unfinished(self) -> dict[str, str]:
        """Runs of this study that are still marked RUNNING: run id -> owner, "" where none was recorded. None
        as long as the store does not answer."""
        found = self._delivery.ask("attributes.status = 'RUNNING'") or []
        return {self._delivery.identity(run): run.data.tags.get("owner", "") for run in found}


def _age(run: Run) -> tuple[int, str]:
    """Orders runs alike for every process that looks."""
    return run.info.start_time, run.info.run_id


def _finite(values: Mapping[str, float]) -> dict[str, float]:
    """Without what MLflow would turn into the largest number or into nothing that can be compared."""
    return {k: v for k, v in values.items() if math.isfinite(v)}


def _metrics(values: Mapping[str, float]) -> list[Metric]:
    now = int(time.time() * 1000)
    return [Metric(k, float(v), now, 0) for k, v in values.items()]


def predictions_csv(predictions: Predictions) -> str:
    """One line per test example: example, label, predicted, probability of the true class, and its group
    where there are any."""
    lines = ["example,label,predicted,probability"]
    lines += [
        f"{e},{y},{p},{q:.6g}"
        for e, y, p, q in zip(
            predictions.example,
            predictions.label,
            predictions.predicted,
            predictions.probability,
            strict=True,
        )
    ]
    if predictions.group is not None:
        groups = ("group", *predictions.group)
        lines = [f"{line},{group}" for line, group in zip(lines, groups, strict=True)]
    return "\n".join(lines) + "\n"


def _make_mlflow_tables(uri: str) -> None:
    MlflowClient(tracking_uri=uri).search_experiments(max_results=1)
    remove_stray_folder(uri)
