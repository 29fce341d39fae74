"""Where did the results go? One MLflow run per trial, written here and nowhere else.

    mlflow ui --backend-store-uri sqlite:///mlruns/mlflow.db --host 127.0.0.1 --workers 1

A run's parameters are the complete flat TrialSpec, its tags say which study, cell, phase and outcome it
belongs to, its metrics carry their unit in their name. `analysis.load` is the only reader.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException

from harness.spec import (
    EpochResult,
    Predictions,
    TrialResult,
    TrialSpec,
    UserError,
    first_line,
    without_password,
)

for _name in ("alembic", "mlflow.store.db.utils", "mlflow.store.db.base_sql_model"):
    logging.getLogger(_name).setLevel(logging.WARNING)

PER_EPOCH = ("train_loss", "val_loss", "val_accuracy", "train_seconds", "marginal_seconds")
"""Metrics with one value per epoch; MLflow shows the last, which is the trial's."""
TIMES_AMONG_OTHERS = 20
"""Times that a process tries to write tags that others write at the same moment."""
INSERTED_TWICE = ("UNIQUE constraint", "duplicate key", "Duplicate entry")
"""What SQLite, PostgreSQL and MySQL say then."""
STATUS = {"complete": "FINISHED", "pruned": "FINISHED", "killed": "KILLED"}
"""MLflow's own status of an outcome; every other outcome is FAILED."""


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
            "mlflow.note.content": f"{self.question}\n\n    {self.command}",
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


def default_tracking_uri(root: Path = Path("mlruns")) -> str:
    """The SQLite database under `root`, as MLflow wants it."""
    return f"sqlite:///{root.resolve()}/mlflow.db"


@dataclass(frozen=True)
class Recorded:
    """A run as it was recorded: name of its experiment, tags, parameters and last values of its metrics."""

    experiment: str
    tags: Mapping[str, str]
    params: Mapping[str, str]
    metrics: Mapping[str, float]


def read_runs(tracking_uri: str, phases: Sequence[str]) -> list[Recorded]:
    """Every finished run of these phases in any experiment, older first; none where there is no store.

    Raises:
        UserError: if the store cannot be read.
    """
    path = sqlite_path(tracking_uri)
    if path is not None and not path.exists():
        return []
    found: list[Recorded] = []
    try:
        if path is not None:
            require_sqlite(path)
        client = MlflowClient(tracking_uri=tracking_uri)
        for experiment in client.search_experiments():
            for phase in phases:
                found += [
                    Recorded(experiment.name, r.data.tags, r.data.params, r.data.metrics)
                    for r in _search(client, experiment.experiment_id, f"tags.phase = '{phase}'")
                    if r.info.status == "FINISHED"
                ]
    except Exception as error:  # MLflow and SQLAlchemy raise many kinds here
        raise UserError(
            f"cannot read the tracking store {without_password(tracking_uri)}: "
            f"{without_password(first_line(error))}"
        ) from error
    return found


def _search(client: MlflowClient, experiment: str, condition: str) -> Iterator[Run]:
    token = None
    while True:
        page = client.search_runs(
            [experiment],
            condition,
            max_results=1000,
            order_by=["attributes.start_time ASC"],
            page_token=token,
        )
        yield from page
        token = page.token
        if not token:
            return


class Recorder:
    """Writes one study's trials to MLflow.

    Args:
        tracking_uri: MLflow tracking URI; a SQLite file is created when absent.
        info: the study, or whatever else the experiment holds, as a whole.

    Raises:
        UserError: if the store cannot be opened or its experiment was deleted.
    """

    def __init__(self, tracking_uri: str, info: Info) -> None:
        path = sqlite_path(tracking_uri)
        try:
            if path is not None:
                create_sqlite(path, _make_mlflow_tables)
                require_sqlite(path)
            self._client = MlflowClient(tracking_uri=tracking_uri)
            self._experiment = self._open_experiment(info, path)
            self._parent = self._open_parent(info) if isinstance(info, StudyInfo) else None
        except UserError:
            raise
        except Exception as error:  # MLflow and SQLAlchemy raise many kinds here
            raise UserError(
                f"cannot open the tracking store {without_password(tracking_uri)}: "
                f"{without_password(first_line(error))}"
            ) from error

    def _open_experiment(self, info: Info, path: Path | None) -> str:
        found = self._client.get_experiment_by_name(info.name)
        if found is not None and found.lifecycle_stage == "deleted":
            raise UserError(
                f"experiment {info.name!r} was deleted in MLflow: restore it "
                f"(mlflow experiments restore -x {found.experiment_id}) or rename the study"
            )
        if found is None:
            location = None if path is None else (path.parent / "artifacts" / info.name).as_uri()
            try:
                made = self._client.create_experiment(info.name, artifact_location=location)
            except MlflowException:  # another process may have made it a moment ago
                found = self._client.get_experiment_by_name(info.name)
                if found is None:
                    raise
        experiment: str = found.experiment_id if found else made
        _among_others(lambda: self._describe(experiment, info))
        return experiment

    def _describe(self, experiment: str, info: Info) -> None:
        """Write the tags that are not as they should be."""
        known = self._client.get_experiment(experiment).tags
        for key, value in info.tags().items():
            if known.get(key) != value:
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
        found = self._search("tags.kind = 'study'")
        return [
            r.info.run_id for r in sorted(found, key=lambda r: (r.info.start_time, r.info.run_id))
        ]

    def _under_parent(self) -> dict[str, str]:
        return {"mlflow.parentRunId": self._parent} if self._parent else {}

    def start(self, spec: TrialSpec, name: str, tags: Mapping[str, object]) -> str:
        """Open a run with the spec as parameters; returns the run id."""
        run = self._client.create_run(
            self._experiment,
            run_name=name,
            tags={k: str(v) for k, v in {**self._under_parent(), **tags}.items()},
        )
        params = [Param(k, str(v)) for k, v in spec.flat().items()]
        self._client.log_batch(run.info.run_id, params=params)
        run_id: str = run.info.run_id
        return run_id

    def epoch(self, run_id: str, result: EpochResult) -> None:
        """One call per epoch, all its metrics in it."""
        values = {name: getattr(result, name) for name in PER_EPOCH}
        self._client.log_batch(run_id, metrics=_metrics(values, step=result.epoch))

    def finish(self, run_id: str, result: TrialResult) -> None:
        """Everything about how a run ended. Safe to repeat."""
        self.write(run_id, result)
        self.end(run_id, result.outcome)

    def write(self, run_id: str, result: TrialResult) -> None:
        """Final metrics, notes and predictions of a run that goes on to be open. Safe to repeat."""
        tags = [RunTag(name, note[:5000]) for name, note in result.notes.items()]
        if result.reason:
            tags.append(RunTag("reason", result.reason[:5000]))
        final = {k: v for k, v in result.metrics.items() if k not in PER_EPOCH}
        self._client.log_batch(run_id, metrics=_metrics(final, step=0), tags=tags)
        if result.predictions is not None:
            self._client.log_text(run_id, predictions_csv(result.predictions), "predictions.csv")

    def end(self, run_id: str, outcome: str) -> None:
        """The outcome and the terminal status. Safe to repeat."""
        self._client.set_tag(run_id, "outcome", outcome)
        self._client.set_terminated(run_id, status=STATUS.get(outcome, "FAILED"))

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
        parent = {"mlflow.parentRunId": self._parent} if self._parent else {}
        run = self._client.create_run(
            self._experiment,
            run_name=name,
            tags={**parent, **{k: str(v)[:5000] for k, v in tags.items()}},
        )
        finite = {k: v for k, v in metrics.items() if math.isfinite(v)}
        written = [Param(k, str(v)) for k, v in params.items()]
        self._client.log_batch(run.info.run_id, _metrics(finite, step=0), written)
        with tempfile.TemporaryDirectory() as folder:
            for kept_as, path in (artifacts or {}).items():
                shutil.copy(path, Path(folder, kept_as))
                self._client.log_artifact(run.info.run_id, str(Path(folder, kept_as)))
        self._client.set_terminated(run.info.run_id, status="FINISHED")

    def kept(self, phase: str) -> list[dict[str, str]]:
        """The tags of the finished runs of that phase."""
        found = self._search(f"tags.phase = '{phase}' and attributes.status = 'FINISHED'")
        return [dict(run.data.tags) for run in found]

    def supersede(self, cell: str, chosen: int) -> None:
        """Mark the cell's repeats of any configuration but the chosen one: kept, not compared.

        Args:
            cell: label of the cell.
            chosen: index of the tuning trial whose configuration is repeated now.
        """
        _among_others(lambda: self._supersede(cell, chosen))

    def _supersede(self, cell: str, chosen: int) -> None:
        for run in self._search("tags.phase = 'repeat'"):
            stale = str(run.data.tags["chosen"] != str(chosen)).lower()
            if run.data.tags["cell"] == cell and run.data.tags.get("superseded") != stale:
                self._client.set_tag(run.info.run_id, "superseded", stale)

    def outcomes(self) -> dict[str, str]:
        """Outcome of each trial's run by its id; "" as long as it has none."""
        found = (run for run in self._search("") if "index" in run.data.tags)
        return {run.info.run_id: run.data.tags.get("outcome", "") for run in found}

    def unfinished(self) -> dict[str, str]:
        """Runs of this study that are still marked RUNNING: run id -> owner, "" where none was recorded."""
        found = self._search("attributes.status = 'RUNNING'")
        return {run.info.run_id: run.data.tags.get("owner", "") for run in found}

    def _search(self, condition: str) -> Iterator[Run]:
        return _search(self._client, self._experiment, condition)


def _among_others(write: Callable[[], None]) -> None:
    """Of processes that insert one tag at the same moment MLflow fails all but one. Who looks again finds
    what it wanted to write, and goes on.

    Args:
        write: writes only what is not there yet.
    """
    for left in reversed(range(TIMES_AMONG_OTHERS)):
        try:
            write()
            break
        except MlflowException as error:
            if not left or not any(words in str(error) for words in INSERTED_TWICE):
                raise


def _metrics(values: Mapping[str, float], step: int) -> list[Metric]:
    now = int(time.time() * 1000)
    return [Metric(k, float(v), now, step) for k, v in values.items()]


def predictions_csv(predictions: Predictions) -> str:
    """One line per test example: example, label, predicted, probability of the true class."""
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
    return "\n".join(lines) + "\n"


def sqlite_path(uri: str) -> Path | None:
    """The database file of a sqlite:/// URI, or None for any other store."""
    return Path(uri.removeprefix("sqlite:///")).resolve() if uri.startswith("sqlite:///") else None


def create_sqlite(path: Path, make_tables: Callable[[str], object]) -> None:
    """Make a complete SQLite database at `path` unless one is there.

    The tables are made in a temporary file in the same folder that is then linked into place: a kill
    in the middle of the migrations, or several processes starting at once, would otherwise leave a
    database that no later process can open. WAL makes each later write several times cheaper.

    Args:
        path: where the database belongs.
        make_tables: opens the sqlite:/// URI it is given and makes all tables.
    """
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    try:
        make_tables(f"sqlite:///{temporary}")
        with closing(sqlite3.connect(temporary)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
        # A FileExistsError says that another process was first; its database is as good as ours.
        with suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        for leftover in path.parent.glob(f"{temporary.name}*"):
            leftover.unlink()


def require_sqlite(path: Path) -> None:
    """Raises OSError or sqlite3.Error unless `path` is a SQLite database; MLflow and Optuna would retry a
    folder or a text file for minutes."""
    if not path.is_file():
        raise OSError(f"{path} is not a file")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA schema_version")


def _make_mlflow_tables(uri: str) -> None:
    MlflowClient(tracking_uri=uri).search_experiments(max_results=1)
