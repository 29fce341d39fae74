"""Read a recorded study from MLflow into typed tables.

    python -c "from analysis.load import *; print(load_study('freeze_depth').trials)"

`harness.tracking.projection` writes the runs. A SQLite file is read by `analysis.load.database`, any other
store by `analysis.load.client`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from analysis.load.averages import AVERAGE_COLUMNS, PHASE, averages_frame
from analysis.load.client import Client
from analysis.load.database import Database, Experiment
from analysis.load.folds import by_configuration
from analysis.load.predictions import ENSEMBLE_COLUMNS, PREDICTION_COLUMNS, predictions_frames
from analysis.load.race import of_other_configurations
from harness.core.addresses import current_uri, sqlite_path
from harness.core.caller import undisturbed
from harness.core.errors import UserError, counted, one_line, without_password
from harness.core.html import as_table
from harness.core.results import NOT_RUN, WAITED
from harness.core.selection import METRICS, Metric
from harness.core.stores import default_tracking_uri

RECORDED_BY_EPOCH = ["train_loss", "val_loss", "val_accuracy", "train_seconds", "marginal_seconds"]
EPOCH_METRICS = [*RECORDED_BY_EPOCH, "val_score"]
FINAL_METRICS = [
    "total_seconds",
    "trainable_share",
    "trained_depth",
    "peak_process_rss_mib",
    "peak_accelerator_allocated_mib",
    "peak_accelerator_reserved_mib",
    "forecast_peak_mib",
    WAITED,
    "test_accuracy",
    "test_loss",
    *("parameters", "weights_mib", "multiply_adds", "latency_ms", "images_per_second"),
    "test_score",
]
INTEGER_TAGS = ["index", "seed", "attempt", "chosen", "threads"]
TEXT_TAGS = [
    *("study", "cell", "phase", "outcome", "reason", "device", "prefix"),
    *("images_per_class", "class_names", "unfreezing", "ranges"),
]
MEASURE_COLUMNS = ["source", "target", "backbone", "source_data", "measure", "value", "low", "high", "n",
                   "better", "reason"]  # fmt: skip
PRETRAINING = "pretraining"
"""Name of the experiment that records the data of each source model."""
ONE_TRIAL = ["cell", "phase", "chosen", "index", "seed", "train_loss", "val_loss", "test_loss"]
"""Columns whose equality means that two runs are of the same trial."""
DERIVED = "row.derived"
"""Column that is True for rows that are computed from other rows; factors cannot have a dot in their
names."""


@dataclass(frozen=True)
class Info:
    """A study as a whole, from the tags of its experiment.

    Attributes:
        name: name of the study and of its experiment.
        factors: factor -> compared labels, in the order written.
        question: the study file's docstring.
        command: the command that repeats the study.
        baseline: one value of some factors; empty if none was declared.
        trials: requested configurations per cell.
        repeats: requested seeds per cell.
        sampler: "random", "qmc", "tpe" or "" if it was not recorded.
        leaks: one line per target whose train, validation and test examples overlap.
        metric: the metric of val_score and test_score in text, such as "balanced accuracy"; in an external
            table, for example "AUC".
        score: name of that metric in `harness.core.selection`; "" in an external table.
        selection: how the trial of a cell is chosen: "val_score" for the highest, "val_loss" for the lowest,
            or "" if nothing is chosen.
        experiment_id: MLflow's id of the experiment; "" if the study is not from MLflow.
        rows: number of rows of the external table; 0 if the study is from MLflow.
        over_seeds: whether a configuration was chosen by its mean over seeds, which are the repeats.
        notes: notes for readers on how the study was read.
        folds: folds of k-fold resampling; 1 for a single split. Runs on folds share examples, so their
            intervals need a correction (`harness.core.folds.independent_runs`).
        budget: seconds of a race (`harness.core.race`), in which numbers of trials and repeats are not given;
            None if all cells get equally many.
    """

    name: str
    factors: dict[str, list[str]]
    question: str = ""
    command: str = ""
    baseline: dict[str, str] = field(default_factory=dict)
    trials: int = 0
    repeats: int = 0
    sampler: str = ""
    leaks: tuple[str, ...] = ()
    metric: str = "accuracy"
    score: str = "accuracy"
    selection: str = "val_score"
    experiment_id: str = ""
    rows: int = 0
    over_seeds: bool = False
    notes: tuple[str, ...] = ()
    folds: int = 1
    budget: float | None = None

    @property
    def choosing(self) -> Metric:
        """The metric of the column `selection`, named as in text."""
        loss = replace(METRICS["log_loss"], label="loss")
        return loss if self.selection == "val_loss" else Metric(self.score, self.metric)


@dataclass(frozen=True)
class StudyTable:
    """Everything that was recorded of one study.

    Attributes:
        info: the study as a whole.
        tracking_uri: address of the store; it may contain a password, so print only `without_password` of it.
        trials: one row per run: run_id, study, cell, one column per factor, phase, index, seed, outcome
            ("unfinished" if the run did not end), reason, superseded (a repeat of a configuration that is not
            that of its cell, or not run because of its memory forecast and run later), row.derived (only in
            external tables and with k-fold resampling: the row is computed from others and is not counted as
            a run), attempt, chosen
            (index of the tuning trial that a repeat runs again), device, threads, prefix (description of the
            cached part of the frozen groups), images_per_class (JSON: what each class contributed to each
            part of the split), class_names (JSON: a list), unfreezing (validation accuracy before and after
            groups were unfrozen, if it fell by more than half), ranges (JSON: the distribution of each tuned
            parameter), start_time, all metrics (float, NaN if not measured), val_score and test_score (values
            of the compared metric, `info.metric`), `param.<name>` and `env.<name>`. Scores are shares in [0,
            1], times are in seconds, memory in MiB. train_seconds are cold-equivalent (as if nothing had been
            cached), marginal_seconds are what the run itself took. With k-fold resampling, a row of phase
            "tune" is a configuration with means over its folds, and its runs have the phase "fold".
        epochs: one row per run and epoch: run_id, epoch, EPOCH_METRICS.
        predictions: one row per complete repeat and test example: run_id, cell, seed, example, label,
            predicted, probability (of the true class), confidence (probability of the predicted class);
            group, if examples have groups; and file, if they are files.
        measures: similarity of sources and targets, one row per pair and measure: MEASURE_COLUMNS. `value` is
            as measured, NaN if the measure was refused for `reason`; `better` ("higher" or "lower") says
            which values promise better transfer; low and high are the ends of the 95% interval; n is the
            number of examples; source_data is the data that the source was trained on, "" if unknown. Of
            duplicates, the latest.
        ensembles: one row per cell and test example on which all of its repeats were scored, if they recorded
            the probabilities of all classes: ENSEMBLE_COLUMNS.
        averages: one row per repeat and average of weights that `harness.average` recorded: AVERAGE_COLUMNS.
    """

    info: Info
    tracking_uri: str
    trials: pd.DataFrame
    epochs: pd.DataFrame = field(default_factory=lambda: typed_epochs(pd.DataFrame()))
    predictions: pd.DataFrame = field(
        default_factory=lambda: pd.DataFrame(columns=PREDICTION_COLUMNS)
    )
    measures: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=MEASURE_COLUMNS))
    ensembles: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=ENSEMBLE_COLUMNS))
    averages: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=AVERAGE_COLUMNS))

    def _repr_html_(self) -> str:
        counts = self.trials.groupby(["cell", "phase", "outcome"], sort=False).size()
        rows = [(*key, n) for key, n in counts.items()]  # type: ignore[misc]
        caption = f"study {self.info.name}: {counted(len(self.trials), 'run')}"
        return as_table(caption, ("cell", "phase", "outcome", "runs"), rows)


@undisturbed()
def load_study(name: str, tracking_uri: str | None = None, predictions: bool = True) -> StudyTable:
    """Read one study.

    Args:
        name: name of the study.
        tracking_uri: MLflow tracking URI; None is the database in ./mlruns.
        predictions: whether to read the test predictions; otherwise they and the ensembles are empty.

    Raises:
        UserError: if there is no such store or study, or the store cannot be read.
    """
    uri = tracking_uri or default_tracking_uri()
    with one_line(f"cannot read the tracking store {without_password(uri)}"):
        if (path := sqlite_path(uri)) is not None:
            with closing(Database(path)) as database:
                if database.known():
                    return _read(database, name, uri, predictions)
        return _read(Client(uri), name, uri, predictions)


def _read(store: Database | Client, name: str, uri: str, with_predictions: bool) -> StudyTable:
    experiments = store.experiments()
    experiment = find_experiment(experiments, name, uri)
    info = read_info(experiment)
    every = store.runs(experiment.id)
    phase, raw = _column(every, "tags.phase"), every
    others = phase.isin(["similarity", PHASE])
    if others.any():  # no trials: neither their rows nor the columns that only they have
        raw = every[~others].dropna(axis="columns", how="all").reset_index(drop=True)
    measures = pd.DataFrame(columns=MEASURE_COLUMNS)
    if (measured := every[phase == "similarity"]).size:
        measures = measures_frame(measured, _learned_from(store, experiments))
    compared = METRICS[info.score]
    averages = averages_frame(every[phase == PHASE], compared, info.choosing)
    trials = trials_frame(raw, info)
    score = compared.validation
    epochs = store.history(list(trials["run_id"]), list(dict.fromkeys([*RECORDED_BY_EPOCH, score])))
    epochs["val_score"] = epochs[score]
    located = zip(trials["run_id"], _column(raw, "artifact_uri"), strict=True)
    folders = {run_id: current_uri(location, info.name, uri) for run_id, location in located}
    predictions, ensembles = predictions_frames(
        trials if with_predictions else trials[:0], folders, uri
    )
    if info.folds > 1:
        trials, notes = by_configuration(trials, info.folds, DERIVED)
        info = replace(info, notes=(*info.notes, *notes))
    return StudyTable(
        info, uri, trials, typed_epochs(epochs), predictions, measures, ensembles, averages
    )


def typed_epochs(epochs: pd.DataFrame) -> pd.DataFrame:
    """The frame with the columns and types of StudyTable.epochs; it may be empty."""
    types: dict[str, Any] = {"run_id": "str", "epoch": int, **dict.fromkeys(EPOCH_METRICS, float)}
    return epochs.reindex(columns=list(types)).astype(types)


def _learned_from(store: Database | Client, experiments: Sequence[Experiment]) -> dict[str, str]:
    """Source model -> the data it was trained on, for models that were trained with this harness."""
    found: dict[str, str] = {}
    for experiment in (e for e in experiments if e.name == PRETRAINING):
        runs = store.runs(experiment.id)
        models = zip(_column(runs, "tags.model"), _column(runs, "params.data"), strict=True)
        found |= {model: data for model, data in models if isinstance(data, str)}
    return found


def find_experiment(experiments: Sequence[Experiment], name: str, uri: str) -> Experiment:
    """The experiment of study `name`.

    Raises:
        UserError: if there is none, listing the studies.
    """
    studies = {e.name: e for e in experiments if "factors" in e.tags}
    if name not in studies:
        known = ", ".join(sorted(studies)) or "none yet"
        raise UserError(f"no study {name!r} in {without_password(uri)}; studies: {known}")
    return studies[name]


def read_info(experiment: Experiment) -> Info:
    """The study as a whole, from the tags of its experiment."""
    tags = experiment.tags
    metric = METRICS.get(tags.get("metric", "accuracy"), METRICS["accuracy"])
    by_loss = metric.less_is_better  # the test scores that are compared are then accuracies
    compared = METRICS["accuracy"] if by_loss else metric
    try:
        budget = float(tags["budget"]) if "budget" in tags else None
        asked = (0, 0) if budget else (int(tags.get("trials", 0)), int(tags.get("repeats", 0)))
        return Info(
            name=experiment.name,
            question=tags.get("question", ""),
            command=tags.get("command", ""),
            factors={str(k): [str(v) for v in vs] for k, vs in json.loads(tags["factors"]).items()},
            baseline={str(k): str(v) for k, v in json.loads(tags.get("baseline", "{}")).items()},
            trials=asked[0],
            repeats=asked[1],
            budget=budget,
            sampler=tags.get("sampler", ""),
            folds=int(tags.get("folds", 1)),
            leaks=tuple(tags.get("leaks", "").splitlines()),
            metric=compared.label,
            score=compared.name,
            selection="val_loss" if by_loss else "val_score",
            experiment_id=experiment.id,
        )
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(f"the tags of study {experiment.name!r} are damaged: {error}") from error


def trials_frame(raw: pd.DataFrame, info: Info) -> pd.DataFrame:
    """One typed row per run, with the columns of StudyTable.trials.

    Args:
        raw: runs as read from a store; may be empty.
        info: the study.
    """
    factors = list(info.factors)
    metrics = EPOCH_METRICS + FINAL_METRICS
    columns: dict[str, Any] = {"run_id": _text(raw, "run_id")}
    for name in (*TEXT_TAGS, *factors):
        columns[name] = _text(raw, f"tags.{name}")
    columns["outcome"] = columns["outcome"].fillna("unfinished")
    for name in INTEGER_TAGS:
        values = pd.to_numeric(_column(raw, f"tags.{name}"), errors="coerce")
        columns[name] = values.astype("Int64")
    columns["superseded"] = (_column(raw, "tags.superseded") == "true").astype(bool)
    columns["start_time"] = pd.to_datetime(_column(raw, "start_time"), unit="ms", utc=True)
    named = {c.partition(".")[2]: c for c in raw.columns if c.startswith("metrics.")}
    for name in dict.fromkeys([*metrics, *named]):
        columns[name] = _column(raw, f"metrics.{name}").astype(float)
    if score := METRICS.get(info.score):
        for ours, theirs in (("val_score", score.validation), ("test_score", score.test)):
            columns[ours] = _column(raw, f"metrics.{theirs}").astype(float)
    for column in (c for c in raw.columns if c.startswith("params.")):
        columns[f"param.{column.removeprefix('params.')}"] = _number_or_text(raw[column])
    if "param.target" in columns and "tags.sha256.images" in raw:
        # Equal images at another path are the same target: all their runs have its first name.
        images = _text(raw, "tags.sha256.images")
        first = columns["param.target"].groupby(images).transform("first")
        columns["param.target"] = first.fillna(columns["param.target"])
    for column in (c for c in raw.columns if c.startswith("tags.env.")):
        columns[column.removeprefix("tags.")] = _text(raw, column)
    frame = pd.DataFrame(columns)
    if info.budget is not None:
        frame["superseded"] = of_other_configurations(frame, info.selection, info.choosing)
    frame["superseded"] |= _run_after_all(frame)
    frame["superseded"] |= _shown_twice(frame)
    return frame


def ranked(tuned: pd.DataFrame, selection: str) -> pd.DataFrame:
    """Scored trials, best first: by the highest "val_score" or the lowest "val_loss"; of equals the one with
    the lower loss, if it is known, then the lower index."""
    order = [c for c in dict.fromkeys([selection, "val_loss", "index"]) if c in tuned]
    return tuned.sort_values(order, ascending=[column != "val_score" for column in order])


def _run_after_all(trials: pd.DataFrame) -> pd.Series:
    """True for trials that were not run because of their memory forecast, and were run later with a higher
    limit."""
    slot = ["cell", "phase", "chosen", "index"]
    last = trials.groupby(slot, dropna=False)["attempt"].transform("max")
    not_run = trials["reason"].str.startswith(NOT_RUN).fillna(False)
    return (not_run & (trials["attempt"] < last).fillna(False)).astype(bool)


def _shown_twice(trials: pd.DataFrame) -> pd.Series:
    """True for the second run of a trial. A run that was deleted in MLflow, written again and then restored
    exists twice, until `harness.sync` closes one of the two."""
    complete = trials[(trials["outcome"] == "complete") & ~trials["superseded"]]
    ordered = complete.sort_values("start_time", kind="stable")
    return ordered.duplicated(ONE_TRIAL).reindex(trials.index, fill_value=False)


def _column(raw: pd.DataFrame, name: str) -> pd.Series:
    return raw[name] if name in raw else pd.Series(None, index=raw.index, dtype=object)


def _text(raw: pd.DataFrame, name: str) -> pd.Series:
    return _column(raw, name).astype("str")


def _number_or_text(column: pd.Series) -> pd.Series:
    """Parameters are stored as text; a column of numbers (with "None" for missing ones) becomes floats."""
    values = column.where(column != "None")
    try:
        return pd.to_numeric(values).astype(float)
    except ValueError:
        return column.astype("str")


def measures_frame(raw: pd.DataFrame, learned_from: Mapping[str, str]) -> pd.DataFrame:
    """One row per pair and measure, as in StudyTable.measures.

    Args:
        raw: the runs of phase "similarity", oldest first.
        learned_from: model -> its training data.
    """
    prefix, why = "metrics.similarity.", "tags.reason."
    named = [c.removeprefix(prefix) for c in raw.columns if c.startswith(prefix)]
    refused = [c.removeprefix(why) for c in raw.columns if c.startswith(why)]
    names = [n for n in dict.fromkeys([*named, *refused]) if "." not in n]
    pair = pd.DataFrame({k: _text(raw, f"tags.{k}") for k in ("source", "target", "backbone")})
    data = _column(raw, "tags.model").map(dict(learned_from))
    pair["source_data"] = data.fillna("").astype("str")
    parts = []
    for name in names:
        one = pair.assign(measure=name, value=_column(raw, prefix + name).astype(float))
        for end in ("low", "high", "n"):
            one[end] = _column(raw, f"{prefix}{name}.{end}").astype(float)
        one["better"] = _text(raw, f"tags.better.{name}")
        one["reason"] = _text(raw, why + name)
        parts.append(one[one["value"].notna() | one["reason"].notna()])
    if not parts:
        return pd.DataFrame(columns=MEASURE_COLUMNS)
    long = pd.concat(parts)[MEASURE_COLUMNS]
    keys = ["source", "target", "backbone", "measure"]
    return long.drop_duplicates(keys, keep="last").reset_index(drop=True)
