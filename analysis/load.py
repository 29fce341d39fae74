"""What did a study record? MLflow read into typed tables; the only file here that knows MLflow.

    python -c "from analysis.load import *; print(load_study('freeze_depth').trials)"

The writer, and so the contract, is `harness.record`.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sqlite3
import sys
import tempfile
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")

import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import Experiment, Run
from mlflow.exceptions import MlflowException

from harness.spec import UserError, without_password

for _name in ("alembic", "mlflow.store.db.utils"):
    logging.getLogger(_name).setLevel(logging.WARNING)

EPOCH_METRICS = ["train_loss", "val_loss", "val_accuracy", "train_seconds"]
FINAL_METRICS = [
    "total_seconds",
    "trainable_share",
    "trained_depth",
    "peak_process_rss_mib",
    "peak_accelerator_allocated_mib",
    "peak_accelerator_reserved_mib",
    "test_accuracy",
    "test_loss",
]
INTEGER_TAGS = ["index", "seed", "attempt", "chosen", "threads"]
TEXT_TAGS = ["study", "cell", "phase", "outcome", "reason", "device"]
PREDICTION_TYPES = {"example": int, "label": int, "predicted": int, "probability": float}


@dataclass(frozen=True)
class Info:
    """A study as a whole, as the tags of its experiment tell it.

    Attributes:
        name: study and experiment name.
        question: the study file's docstring.
        command: what to type to repeat the study.
        factors: factor -> compared labels, in the order written.
        baseline: one value of some factors; empty when nothing was declared.
        trials: configurations asked for per cell.
        repeats: seeds asked for per cell.
        sampler: "random", "tpe" or "" when it was not recorded.
        leaks: one line per target whose train, validation and test images overlap.
    """

    name: str
    question: str
    command: str
    factors: dict[str, list[str]]
    baseline: dict[str, str]
    trials: int
    repeats: int
    sampler: str = ""
    leaks: tuple[str, ...] = ()


@dataclass(frozen=True)
class StudyTable:
    """Everything one study recorded.

    Attributes:
        info: the study as a whole.
        tracking_uri: where it was read from; may hold a password, show `without_password` of it.
        trials: one row per run: run_id, study, cell, one column per factor, phase, index, seed,
            outcome ("unfinished" when the run never ended), reason, superseded, attempt, chosen
            (index of the tuning trial that a repeat runs again), device, threads, start_time, every
            metric (float, NaN where not measured), `param.<name>` and
            `env.<name>`. Accuracies are shares in [0, 1], times seconds, memory MiB.
        epochs: one row per run and epoch: run_id, epoch, EPOCH_METRICS.
        predictions: one row per complete repeat and test example: run_id, cell, seed, example,
            label, predicted, probability (of the true class).
    """

    info: Info
    tracking_uri: str
    trials: pd.DataFrame
    epochs: pd.DataFrame
    predictions: pd.DataFrame


def default_tracking_uri(root: Path = Path("mlruns")) -> str:
    """The SQLite database under `root`, as MLflow wants it."""
    return f"sqlite:///{root.resolve()}/mlflow.db"


def load_study(name: str, tracking_uri: str | None = None) -> StudyTable:
    """Read one study.

    Args:
        name: study name.
        tracking_uri: MLflow tracking URI; None is the database under ./mlruns.

    Raises:
        UserError: if there is no such store or study, or the store cannot be read.
    """
    uri = tracking_uri or default_tracking_uri()
    client = open_client(uri)
    try:
        experiment = find_experiment(client, name, uri)
        info = read_info(experiment)
        runs = read_runs(client, experiment.experiment_id)
        trials = trials_frame(runs, info)
        return StudyTable(
            info,
            uri,
            trials,
            epochs_frame(client, trials["run_id"]),
            predictions_frame(client, trials),
        )
    except UserError:
        raise
    except Exception as error:  # MLflow, SQLAlchemy and requests raise many kinds here
        raise _unreadable(uri, error) from error


def open_client(uri: str) -> MlflowClient:
    """A client for a store that exists. Never makes one: MLflow itself would, from a mistyped path.

    Raises:
        UserError: if the store is absent, is not MLflow's, or cannot be opened.
    """
    if uri.startswith("sqlite:///"):
        _require_database(Path(uri.removeprefix("sqlite:///")).resolve())
    try:
        return MlflowClient(tracking_uri=uri)
    except Exception as error:  # MLflow and SQLAlchemy raise many kinds here
        raise _unreadable(uri, error) from error


def _require_database(path: Path) -> None:
    if not path.is_file():
        raise UserError(
            f"no tracking database at {path}: run a study first, or give --tracking-uri"
        )
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
            tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master")}
    except sqlite3.Error as error:
        raise UserError(f"cannot read the tracking database {path}: {error}") from error
    if "experiments" not in tables:
        raise UserError(f"{path} is a database, but not one of MLflow's")


def _unreadable(uri: str, error: Exception) -> UserError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return UserError(
        f"cannot read the tracking store {without_password(uri)}: {without_password(reason)}"
    )


def find_experiment(client: MlflowClient, name: str, uri: str) -> Experiment:
    """The experiment of study `name`, or a UserError that lists the studies there are."""
    studies: dict[str, Experiment] = {}
    token = None
    while True:
        page = client.search_experiments(page_token=token)
        studies |= {e.name: e for e in page if "factors" in e.tags}
        if not (token := page.token):
            break
    if name not in studies:
        known = ", ".join(sorted(studies)) or "none yet"
        raise UserError(f"no study {name!r} in {without_password(uri)}; studies: {known}")
    return studies[name]


def read_info(experiment: Experiment) -> Info:
    """The study as a whole, from the tags of its experiment."""
    tags = experiment.tags
    try:
        return Info(
            name=experiment.name,
            question=tags.get("question", ""),
            command=tags.get("command", ""),
            factors={str(k): [str(v) for v in vs] for k, vs in json.loads(tags["factors"]).items()},
            baseline={str(k): str(v) for k, v in json.loads(tags.get("baseline", "{}")).items()},
            trials=int(tags.get("trials", 0)),
            repeats=int(tags.get("repeats", 0)),
            sampler=tags.get("sampler", ""),
            leaks=tuple(tags.get("leaks", "").splitlines()),
        )
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(f"the tags of study {experiment.name!r} are damaged: {error}") from error


def read_runs(client: MlflowClient, experiment_id: str) -> list[Run]:
    """Every run of the experiment that is a trial, oldest first."""
    runs: list[Run] = []
    token = None
    while True:
        page = client.search_runs(
            [experiment_id],
            max_results=1000,
            order_by=["attributes.start_time ASC"],
            page_token=token,
        )
        runs += [run for run in page if "phase" in run.data.tags]
        if not (token := page.token):
            return runs


def trials_frame(runs: Iterable[Run], info: Info) -> pd.DataFrame:
    """One typed row per run, in the columns that StudyTable.trials promises."""
    rows = [_row(run, list(info.factors)) for run in runs]
    always = ["run_id", *TEXT_TAGS, *info.factors, *INTEGER_TAGS, "superseded", "start_time"]
    metrics = EPOCH_METRICS + FINAL_METRICS
    extra = {key: None for row in rows for key in row if key not in (*always, *metrics)}
    frame = pd.DataFrame(rows, columns=[*always, *metrics, *extra])
    for column in INTEGER_TAGS:
        frame[column] = pd.to_numeric(frame[column], errors="coerce").astype("Int64")
    for column in ("run_id", *TEXT_TAGS, *info.factors):
        frame[column] = frame[column].astype("str")
    frame["superseded"] = frame["superseded"].astype(bool)
    frame["start_time"] = pd.to_datetime(frame["start_time"], unit="ms", utc=True)
    for column in [*metrics, *(k for k in extra if not k.startswith(("param.", "env.")))]:
        frame[column] = frame[column].astype(float)
    for column in (k for k in extra if k.startswith("param.")):
        frame[column] = _number_or_text(frame[column])
    return frame


def _row(run: Run, factors: list[str]) -> dict[str, object]:
    tags = run.data.tags
    return {
        "run_id": run.info.run_id,
        **{key: tags.get(key) for key in (*TEXT_TAGS, *INTEGER_TAGS, *factors)},
        "outcome": tags.get("outcome", "unfinished"),
        "superseded": tags.get("superseded") == "true",
        "start_time": run.info.start_time,
        **{key: _unclipped(value) for key, value in run.data.metrics.items()},
        **{f"param.{key}": value for key, value in run.data.params.items()},
        **{key: value for key, value in tags.items() if key.startswith("env.")},
    }


def _unclipped(value: float) -> float:
    """MLflow's databases keep an infinity as the largest float; give it back."""
    return math.copysign(math.inf, value) if abs(value) == sys.float_info.max else value


def _number_or_text(column: pd.Series) -> pd.Series:
    """Parameters come back as strings: a column of numbers ("None" is missing) becomes floats."""
    values = column.where(column != "None")
    try:
        return pd.to_numeric(values).astype(float)
    except ValueError:
        return column.astype("str")


def epochs_frame(client: MlflowClient, run_ids: Iterable[str]) -> pd.DataFrame:
    """The per-epoch metrics of each run.

    One call per run and metric, about 1 ms each on SQLite: MLflow's client has no public bulk call.
    Of two values at one epoch the earlier counts: at its end a run logs some metrics again, at step 0.
    """
    rows = [
        {"run_id": run_id, "epoch": point.step, "metric": metric, "value": _unclipped(point.value)}
        for run_id in run_ids
        for metric in EPOCH_METRICS
        for point in sorted(client.get_metric_history(run_id, metric), key=lambda p: p.timestamp)
    ]
    long = pd.DataFrame(rows, columns=["run_id", "epoch", "metric", "value"])
    long = long.drop_duplicates(["run_id", "epoch", "metric"], keep="first")
    wide = long.pivot(index=["run_id", "epoch"], columns="metric", values="value")
    wide = wide.reindex(columns=EPOCH_METRICS).astype(float).rename_axis(columns=None).reset_index()
    return wide.astype({"run_id": "str", "epoch": int})


def predictions_frame(client: MlflowClient, trials: pd.DataFrame) -> pd.DataFrame:
    """Test predictions of every complete repeat; a repeat whose file is missing has no rows."""
    repeats = trials[(trials["phase"] == "repeat") & (trials["outcome"] == "complete")]
    frames = []
    with tempfile.TemporaryDirectory() as folder:
        for run_id, cell, seed in zip(
            repeats["run_id"], repeats["cell"], repeats["seed"], strict=True
        ):
            target = Path(folder, run_id)
            target.mkdir()
            try:
                path = client.download_artifacts(run_id, "predictions.csv", str(target))
                table = pd.read_csv(path, dtype=PREDICTION_TYPES)
            except (MlflowException, OSError, ValueError):
                continue
            table.insert(0, "run_id", run_id)
            table.insert(1, "cell", cell)
            table.insert(2, "seed", seed)
            frames.append(table)
    columns = ["run_id", "cell", "seed", *PREDICTION_TYPES]
    if not frames:
        return pd.DataFrame(columns=columns)
    return pd.concat(frames, ignore_index=True)[columns]
