"""The analysis reads back what the harness recorded, from stores that the projection writes.

python -m pytest tests/test_analysis_load.py
"""

from __future__ import annotations

import math
import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient

from analysis import compare, recommend, report
from analysis.compare.runs import tuning
from analysis.load.database import Database, newest_schemas
from analysis.load.study import StudyTable, load_study, trials_frame
from analysis.text import warnings
from harness.core.errors import UserError
from harness.core.results import EpochResult, Predictions
from harness.core.spec import TrialSpec
from harness.core.strategies import DiscriminativeLR, LinearProbe
from harness.core.study import Phase
from harness.tracking.contents import experiment_tags
from harness.tracking.experiment import Experiment
from harness.tracking.runs import runs_of
from tests.processes import output_of
from tests.records import INFO, Kept, attempt, project


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database that holds another study; making one takes seconds, so tests copy it."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    other = replace(INFO, name="another")
    Experiment(f"sqlite:///{path}", other.name, experiment_tags(other))
    return path


@pytest.fixture
def uri(template: Path, tmp_path: Path) -> str:
    with (
        closing(sqlite3.connect(template)) as old,
        closing(sqlite3.connect(tmp_path / "mlflow.db")) as new,
    ):
        old.backup(new)
    return f"sqlite:///{tmp_path}/mlflow.db"


@pytest.fixture
def table(uri: str, tmp_path: Path) -> StudyTable:
    """One tuned trial, one that diverged, one still running, one repeat with predictions."""
    spec = TrialSpec("digits", "resnet18", DiscriminativeLR(0.8), lr=0.003, epochs=2)
    probe = TrialSpec("digits", "resnet18", LinearProbe(), shots=5, seed=10)
    epochs = (EpochResult(0, 0.9, 0.8, 0.5, 1.5, 0), EpochResult(1, 0.8, 0.8, 0.6, 3.0, 1))
    kept = Kept(
        [
            attempt(
                "discriminative", "tune", 0, replace(spec, seed=7), outcome="complete",
                epochs=epochs, metrics={"total_seconds": 4.0, "val_accuracy": 0.6},
            ),
            attempt(
                "discriminative", "tune", 1, replace(spec, seed=8), outcome="diverged",
                epochs=(EpochResult(0, math.inf, math.nan, 0.1, 1.0, 1.0),), reason="loss became nan",
            ),
            attempt("linear probe", "tune", 0, replace(spec, seed=9)),
            attempt(
                "linear probe", "repeat", 0, probe, outcome="complete", superseded=True,
                metrics={"test_accuracy": 0.5}, predictions="two.parquet",
            ),
        ],
        tmp_path,
    )  # fmt: skip
    predictions = Predictions(
        np.arange(2),
        np.array([1, 4]),
        np.array([1, 0]),
        np.array([0.75, 0.25]),
        np.array([0.75, 0.5]),
    )
    kept.predict("two.parquet", predictions)
    project(uri, INFO, kept)
    # The projection leaves out what is not finite; stores of before hold it.
    client = MlflowClient(tracking_uri=uri)
    [experiment] = client.search_experiments(filter_string=f"name = '{INFO.name}'")
    [run] = client.search_runs([experiment.experiment_id], "tags.outcome = 'diverged'")
    client.log_metric(run.info.run_id, "train_loss", math.inf, step=0)
    client.log_metric(run.info.run_id, "val_loss", math.nan, step=0)
    return load_study(INFO.name, uri)


def test_the_study_as_a_whole_is_read_back(table: StudyTable) -> None:
    info = table.info
    assert (info.name, info.question, info.command) == (INFO.name, INFO.question, INFO.command)
    assert (info.factors, info.baseline) == (INFO.factors, INFO.baseline)
    assert (info.trials, info.repeats) == (2, 1)


def test_trial_that_a_higher_limit_let_run_after_all_is_counted_once(table: StudyTable) -> None:
    """Slot 0 was not run at first; slot 1 never was; slot 2 ran, and ran out of memory."""
    ends = [
        ("0", "1", "oom", "not run: forecast 9 GiB, --max-memory 1 GiB"),
        ("1", "1", "oom", "not run: forecast 9 GiB, --max-memory 1 GiB"),
        ("2", "1", "oom", "CUDA out of memory"),
        ("0", "2", "complete", None),
    ]
    names = ["tags.index", "tags.attempt", "tags.outcome", "tags.reason"]
    raw = pd.DataFrame(ends, columns=names).assign(**{"tags.cell": "full", "tags.phase": "tune"})
    trials = trials_frame(raw, table.info)
    assert list(trials["superseded"]) == [True, False, False, False]
    assert list(tuning(trials)["outcome"]) == ["oom", "oom", "complete"]


def test_each_run_is_one_typed_row(table: StudyTable) -> None:
    trials = table.trials
    assert list(trials["outcome"]) == ["complete", "diverged", "unfinished", "complete"]
    assert list(trials["seed"]) == [7, 8, 9, 10]
    assert list(trials["strategy"]) == list(trials["cell"])
    assert trials["chosen"].isna().tolist() == [True, True, True, False]
    assert list(trials["superseded"]) == [False, False, False, True]
    assert trials["reason"].notna().tolist() == [False, True, False, False]
    assert trials["param.lr"].dtype == float
    assert trials["param.lr"].iloc[0] == 0.003
    assert trials["param.strategy"].iloc[3] == "LinearProbe"
    assert trials["param.shots"].tolist()[3] == 5
    assert trials["env.torch"].unique().tolist() == ["2.14.0"]
    assert str(trials["start_time"].dt.tz) == "UTC"


def test_what_was_not_measured_is_missing_and_never_zero(table: StudyTable) -> None:
    trials = table.trials
    assert trials["total_seconds"].isna().tolist() == [False, True, True, True]
    assert trials["peak_accelerator_allocated_mib"].isna().all()
    assert trials["param.shots"].isna().tolist() == [True, True, True, False]


def test_metrics_of_a_run_are_those_of_its_last_epoch(table: StudyTable) -> None:
    assert table.trials.loc[0, "val_accuracy"] == pytest.approx(0.6)
    assert table.trials.loc[0, "train_seconds"] == pytest.approx(3.0)


def test_epochs_are_read_in_full_infinities_included(table: StudyTable) -> None:
    first, second = table.trials["run_id"].iloc[:2]
    epochs = table.epochs.set_index(["run_id", "epoch"])
    assert len(epochs) == 3
    assert epochs.loc[(first, 0), "train_loss"] == pytest.approx(0.9)
    assert epochs.loc[(first, 1), "train_loss"] == pytest.approx(0.8)
    assert epochs.loc[(first, 0), "val_accuracy"] == pytest.approx(0.5)  # not the final one, 0.6
    assert epochs.loc[(second, 0), "train_loss"] == math.inf
    assert math.isnan(float(epochs.loc[(second, 0), "val_loss"]))


def test_predictions_come_back_with_their_cell_and_seed(table: StudyTable) -> None:
    rows = table.predictions.drop(columns="run_id").to_numpy().tolist()
    assert rows == [
        ["linear probe", 10, 0, 1, 1, 0.75, 0.75],
        ["linear probe", 10, 1, 4, 0, 0.25, 0.5],
    ]


def test_a_study_can_be_read_without_its_predictions(uri: str, table: StudyTable) -> None:
    read = load_study(INFO.name, uri, predictions=False)
    pd.testing.assert_frame_equal(read.trials, table.trials)
    assert len(table.predictions) > 0
    assert read.predictions.empty
    assert read.ensembles.empty


def test_a_lost_prediction_file_does_not_stop_the_reading(uri: str, table: StudyTable) -> None:
    folder = Path(uri.removeprefix("sqlite:///")).parent / "artifacts"
    shutil.rmtree(folder)
    again = load_study(INFO.name, uri)
    assert again.predictions.empty
    assert list(again.predictions.columns) == list(table.predictions.columns)


def test_measures_of_pairs_are_a_table_of_their_own_and_no_trials(
    uri: str, table: StudyTable
) -> None:
    Experiment(uri, "pretraining", {}).keep(
        "a.0", {"data": "permute(digits)"}, {"phase": "source", "source": "a", "model": "a.0"}, {}
    )
    pair = {"phase": "similarity", "source": "a", "target": "digits", "backbone": "resnet18"}
    pair |= {"model": "a.0", "better.frechet": "lower", "reason.leep": "no class scores"}
    experiment = Experiment(uri, INFO.name, {})
    for value in (4.0, 3.0):  # measured again: the later counts
        metrics = {"similarity.frechet": value, "similarity.frechet.low": 2.0}
        experiment.keep("a -> digits", {"only_here": 1}, pair, metrics)
    again = load_study(INFO.name, uri)
    pd.testing.assert_frame_equal(again.trials, table.trials)
    frechet, leep = again.measures.sort_values("measure").to_dict("records")
    assert (frechet["source"], frechet["target"]) == ("a", "digits")
    assert (frechet["value"], frechet["low"], frechet["better"]) == (3.0, 2.0, "lower")
    assert math.isnan(frechet["high"])
    assert frechet["source_data"] == "permute(digits)"
    assert math.isnan(leep["value"])
    assert leep["reason"] == "no class scores"
    assert table.measures.empty


def test_a_study_without_runs_gives_empty_tables(uri: str) -> None:
    project(uri, INFO, Kept([]))
    table = load_study(INFO.name, uri)
    assert (len(table.trials), len(table.epochs), len(table.predictions)) == (0, 0, 0)


def test_mlflows_own_client_gives_the_same_tables(
    uri: str, table: StudyTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Database, "known", lambda _: False)
    slow = load_study(INFO.name, uri)
    assert slow.info == table.info
    trials = slow.trials[table.trials.columns]  # tags come in another order
    assert set(slow.trials.columns) == set(table.trials.columns)
    pd.testing.assert_frame_equal(trials, table.trials)
    pd.testing.assert_frame_equal(slow.epochs, table.epochs)
    pd.testing.assert_frame_equal(slow.predictions, table.predictions)


def test_a_deleted_run_and_another_study_stay_out(uri: str, table: StudyTable) -> None:
    with closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as connection:
        gone = table.trials["run_id"].iloc[0]
        connection.execute("UPDATE runs SET lifecycle_stage='deleted' WHERE run_uuid=?", (gone,))
        connection.commit()
    other = attempt("linear probe", "tune", 0, TrialSpec("digits", "resnet18", LinearProbe()))
    project(uri, replace(INFO, name="third"), Kept([other]))
    again = load_study(INFO.name, uri)
    assert list(again.trials["run_id"]) == list(table.trials["run_id"].iloc[1:])
    assert gone not in set(again.epochs["run_id"])


def test_marginal_seconds_and_the_prefix_of_a_run_are_read(uri: str) -> None:
    spec = TrialSpec("digits", "resnet18", LinearProbe(), seed=3)
    trial = attempt("linear probe", "tune", 0, spec, outcome="complete").but(
        epochs=(EpochResult(0, 0.9, 0.8, 0.5, 4.0, 0.5),),
        metrics={"train_seconds": 4.0, "marginal_seconds": 0.5, "forecast_peak_mib": 70.0},
        notes={"prefix": "kept after layer4"},
    )
    project(uri, INFO, Kept([trial]))
    read = load_study(INFO.name, uri)
    row = read.trials.iloc[0]
    assert (row["train_seconds"], row["marginal_seconds"]) == (4.0, 0.5)
    assert (row["prefix"], row["forecast_peak_mib"]) == ("kept after layer4", 70.0)
    assert read.epochs["marginal_seconds"].tolist() == [0.5]


def test_reading_a_sqlite_file_does_not_wait_for_mlflow(uri: str) -> None:
    project(uri, INFO, Kept([]))
    code = (
        "import sys; from analysis.load import load_study; "
        f"load_study({INFO.name!r}, {uri!r}); print('mlflow' in sys.modules)"
    )
    assert output_of("-c", code) == "False"


def test_run_that_was_deleted_written_again_and_restored_is_counted_once_and_named(
    uri: str, tmp_path: Path
) -> None:
    """One of the two counts, and the report names the other."""
    spec = TrialSpec("digits", "resnet18", LinearProbe(), seed=3)
    metrics = {"test_accuracy": 0.5, "test_loss": 0.7}
    epochs = (EpochResult(0, 0.9, 0.8, 0.5, 1.0, 1.0),)
    twice = [
        attempt(
            cell, "repeat", 0, spec, key=f"{INFO.name}/{cell}#{number}", outcome="complete",
            metrics=metrics, epochs=epochs, predictions="p.parquet",
            started=datetime(2026, 1, 2, i, number),
        )
        for i, cell in enumerate(INFO.factors["strategy"])
        for number in range(2)
    ]  # fmt: skip
    kept = Kept(twice, tmp_path)
    predictions = Predictions(
        np.arange(2), np.array([1, 4]), np.array([1, 0]), np.array([0.9, 0.2]), np.array([0.9, 0.5])
    )
    kept.predict("p.parquet", predictions)
    project(uri, INFO, kept)
    read = load_study(INFO.name, uri)
    found = compare.find(read)
    assert list(found.summary["n"]) == [1, 1]
    counted = read.trials[~read.trials["superseded"]]["run_id"]
    assert len(counted) == 2
    assert set(counted) < set(read.predictions["run_id"])
    said = [line for line in warnings(found) if line.startswith("Recorded twice")]
    for line, cell in zip(said, INFO.factors["strategy"], strict=True):
        runs = read.trials[read.trials["cell"] == cell].sort_values("superseded")["run_id"]
        assert f"a trial of “{cell}”. Run {runs.iloc[0]} is counted, {runs.iloc[1]} not" in line


def test_two_runs_of_one_slot_that_differ_are_refused(uri: str) -> None:
    spec = TrialSpec("digits", "resnet18", LinearProbe(), seed=3)
    twice = [
        attempt(
            "linear probe", "repeat", 0, spec, key=f"depth/linear probe#{i}", outcome="complete",
            metrics={"test_accuracy": 0.5, "test_loss": loss},
        )
        for i, loss in enumerate((0.7, 0.8))
    ]  # fmt: skip
    project(uri, INFO, Kept(twice))
    with pytest.raises(UserError, match="two complete repeat runs"):
        compare.find(load_study(INFO.name, uri))


def test_database_of_another_mlflow_is_refused_with_the_way_to_upgrade_it(
    table: StudyTable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By all commands, in the words of MLflow, as the study refuses it."""
    assert len(newest_schemas()) == 1
    older = tmp_path / "older" / "mlflow.db"  # MLflow remembers the databases that it has opened
    older.parent.mkdir()
    shutil.copy(tmp_path / "mlflow.db", older)
    uri = f"sqlite:///{older}"
    with closing(sqlite3.connect(older)) as connection:
        (version,) = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        assert {version} == newest_schemas()
        connection.execute("UPDATE alembic_version SET version_num = '0584bdc529eb'")
        connection.commit()
    said = "mlflow db upgrade"
    with pytest.raises(UserError, match=said):
        load_study(INFO.name, uri)
    with pytest.raises(UserError, match=said):
        Experiment(uri, INFO.name, {})
    with pytest.raises(UserError, match=said):
        runs_of(INFO.name, "repeat", uri)
    for command in (report, recommend):
        assert command.main(["--study", INFO.name, "--tracking-uri", uri]) == 2
        assert said in capsys.readouterr().err


@pytest.mark.usefixtures("undrawn")
def test_the_report_goes_from_store_to_page(
    uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two repeats, of which the first is wrong on one of two examples."""
    ends: tuple[tuple[Phase, dict[str, float]], ...] = (
        ("tune", {}), ("repeat", {"test_accuracy": 0.5}), ("repeat", {"test_accuracy": 1.0}),
    )  # fmt: skip
    kept = Kept(
        [
            attempt(
                "linear probe", phase, i, TrialSpec("digits", "resnet18", LinearProbe(), seed=i),
                outcome="complete", metrics=score, epochs=(EpochResult(0, 1.0, 1.0, 0.6, 2.0, 2.0),),
                predictions=f"{i}.parquet" if score else "",
            )
            for i, (phase, score) in enumerate(ends)
        ],
        tmp_path,
    )  # fmt: skip
    for i, wrong in ((1, 1), (2, 0)):
        predicted = np.array([0, wrong])
        guess = Predictions(np.arange(2), np.zeros(2, int), predicted, np.ones(2), np.ones(2))
        kept.predict(f"{i}.parquet", guess)
    project(uri, INFO, kept)
    out = tmp_path / "out"
    assert report.main(["--study", INFO.name, "--tracking-uri", uri, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    page = out / INFO.name / "index.html"
    assert str(page) in printed
    assert f"--backend-store-uri {uri} --host 127.0.0.1 --workers 1" in printed
    assert "“linear probe” is recommended: test accuracy 75.0%" in page.read_text(encoding="utf-8")


def test_an_absent_database_is_refused_and_not_created(tmp_path: Path) -> None:
    path = tmp_path / "nowhere" / "mlflow.db"
    with pytest.raises(UserError, match="no tracking database"):
        load_study("depth", f"sqlite:///{path}")
    assert not path.parent.exists()


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    path.write_text("not a database, but long enough to have a header to look at" * 20)
    with pytest.raises(UserError, match="cannot read the tracking database"):
        load_study("depth", f"sqlite:///{path}")


def test_an_unknown_study_is_refused_with_the_studies_there_are(uri: str) -> None:
    project(uri, INFO, Kept([]))
    with pytest.raises(UserError, match=r"no study 'dpeth'.*studies: another, depth$"):
        load_study("dpeth", uri)
