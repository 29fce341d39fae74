"""`harness.sync`: MLflow shows what the record says, however it came to say something else."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlparse

import optuna
import pytest
from mlflow.entities import Metric, Param
from optuna.distributions import json_to_distribution
from optuna.trial import BaseTrial, TrialState

from harness.core.spec import TrialSpec
from harness.search.lock import sole_runner
from harness.sync import Synced, main, sync_study
from tests.lab import info_of, space
from tests.toy import Place, make_study

STUDY = make_study(compare={"strategy": ["probe"]})
RUNS = 3


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, with_stores: Callable[[Path], Path]) -> Path:
    """The folder of a study that has been run."""
    place = Place(with_stores(tmp_path_factory.mktemp("finished")))
    place.run(STUDY)
    return place.folder


@pytest.fixture
def place(finished: Path, tmp_path: Path) -> Place:
    """A copy of it; MLflow keeps absolute paths of artifacts, but makes new ones here."""
    for name in ("mlflow.db", "optuna.db"):
        with closing(sqlite3.connect(finished / name)) as connection:
            connection.execute("VACUUM INTO ?", (str(tmp_path / name),))
    shutil.copytree(finished / "predictions", tmp_path / "predictions")
    return Place(tmp_path)


def sync(place: Place, check: bool = False, restore: bool = False) -> Synced:
    return sync_study("toy", check=check, restore=restore, tracking_uri=place.uri)


def shown(place: Place) -> set[tuple[object, ...]]:
    """What the report reads of each run that is no attempt too many."""
    return {
        (
            run.info.status,
            *(
                run.data.tags.get(k)
                for k in ("cell", "phase", "index", "seed", "attempt", "outcome")
            ),
            tuple(sorted(run.data.metrics.items())),
            tuple(sorted(run.data.params.items())),
        )
        for run in place.runs()
        if run.data.tags.get("outcome") != "killed"
    }


def test_study_that_was_run_needs_nothing(place: Place) -> None:
    assert sync(place, check=True) == Synced("toy", RUNS, ())
    assert sync(place) == Synced("toy", RUNS, ())


def first(place: Place) -> str:
    """Id of the run of the first trial."""
    run_id: str = place.runs(phase="tune", index=0)[0].info.run_id
    return run_id


def lag(place: Place) -> None:
    """The run as it is in the middle of the trial: one epoch, no end."""
    with closing(sqlite3.connect(place.mlflow)) as database, database:
        run = (first(place),)
        database.execute("DELETE FROM tags WHERE key = 'outcome' AND run_uuid = ?", run)
        last = "(step = 1 OR key IN ('forecast_peak_mib', 'waited_share'))"
        database.execute(f"DELETE FROM metrics WHERE {last} AND run_uuid = ?", run)
        database.execute("DELETE FROM latest_metrics WHERE run_uuid = ?", run)
    place.client.update_run(first(place), status="RUNNING")


def lose(place: Place) -> None:
    """The run is gone for good."""
    with closing(sqlite3.connect(place.mlflow)) as database, database:
        run = (first(place),)
        database.execute("PRAGMA foreign_keys = OFF")
        for table in ("tags", "params", "metrics", "latest_metrics", "runs"):
            database.execute(f"DELETE FROM {table} WHERE run_uuid = ?", run)


def double(place: Place) -> None:
    """The answer to create_run was lost, so it was made twice."""
    run = place.client.get_run(first(place))
    place.client.create_run(run.info.experiment_id, tags={**run.data.tags, "outcome": "complete"})


def change_outcome(place: Place) -> None:
    place.client.set_tag(first(place), "outcome", "killed")


def change_status(place: Place) -> None:
    place.client.set_terminated(first(place), status="FAILED")


def change_cell(place: Place) -> None:
    place.client.set_tag(first(place), "cell", "full")


DIFFERENCES: dict[Callable[[Place], None], str] = {
    lag: r"probe, trial 0, attempt 1 is complete, its run says nothing \(RUNNING\)",
    lose: r"probe, trial 0, attempt 1 \(complete\) has no run",
    double: r"probe, trial 0, attempt 1 has a second run \w+",
    change_outcome: r"probe, trial 0, attempt 1 is complete, its run says killed \(FINISHED\)",
    change_status: r"probe, trial 0, attempt 1 is complete, its run says complete \(FAILED\)",
    change_cell: r"probe, trial 0, attempt 1 differs from its run in cell",
}


@pytest.mark.parametrize(
    ("harm", "words"), DIFFERENCES.items(), ids=lambda x: getattr(x, "__name__", "")
)
def test_what_differs_is_told_by_check_and_corrected_by_sync(
    harm: Callable[[Place], None], words: str, place: Place
) -> None:
    before = shown(place)
    harm(place)
    [found] = sync(place, check=True).left
    assert re.fullmatch(words, found.what)
    [corrected] = sync(place).differences
    assert (corrected.what == found.what, corrected.corrected) == (True, True)
    assert sync(place).differences == ()
    assert shown(place) == before
    assert len(place.run(STUDY)) == RUNS
    assert place.world.specs == [], "nothing is trained again"


def test_run_that_was_deleted_in_the_ui_stays_so_until_it_is_asked_back(place: Place) -> None:
    before = shown(place)
    place.client.delete_run(first(place))
    for check in (True, False):
        [found] = sync(place, check=check).left
        assert (
            found.what
            == "probe, trial 0, attempt 1 was deleted in MLflow; --restore brings it back"
        )
    assert len(place.runs()) == RUNS - 1
    assert sync(place, check=True, restore=True).left != ()
    assert sync(place, restore=True).left == ()
    assert shown(place) == before


def test_database_that_was_deleted_is_made_again_with_the_predictions(finished: Path) -> None:
    place = Place(finished.parent / "again")
    place.folder.mkdir()
    with closing(sqlite3.connect(finished / "optuna.db")) as connection:
        connection.execute("VACUUM INTO ?", (str(place.optuna),))
    shutil.copytree(finished / "predictions", place.folder / "predictions")
    checked = sync(place, check=True)
    assert len(checked.left) == RUNS
    assert not list(place.folder.glob("mlflow*"))
    assert not (place.folder / "artifacts").exists()
    assert sync(place).left == ()
    place.assert_whole(STUDY)
    assert shown(place) == shown(Place(finished))
    [repeat] = place.runs(phase="repeat")
    [kept] = (place.folder / "predictions" / "toy").iterdir()
    sent = Path(urlparse(repeat.info.artifact_uri).path) / "predictions.parquet"
    assert sent.read_bytes() == kept.read_bytes()


def test_check_writes_nothing_into_a_database_either(place: Place) -> None:
    for harm in (lag, double):
        harm(place)
    with closing(sqlite3.connect(place.mlflow)) as connection:
        before = list(connection.iterdump())
        assert len(sync(place, check=True).left) == 2
        assert list(connection.iterdump()) == before


def test_run_of_no_trial_is_told_and_left_as_it_is(place: Place) -> None:
    tags = place.client.get_run(first(place)).data.tags
    experiment = place.client.get_experiment_by_name("toy")
    assert experiment is not None
    place.client.create_run(experiment.experiment_id, tags={**tags, "trial_key": "toy/probe#99"})
    [found] = sync(place).left
    assert "(toy/probe#99) is of no trial in the record" in found.what


def test_command_says_what_it_did_and_by_its_exit_code_whether_all_is_shown(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    change_status(place)
    options = ["--study", "toy", "--tracking-uri", place.uri]
    words = "probe, trial 0, attempt 1 is complete, its run says complete (FAILED)"
    assert main([*options, "--check"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        f"differs: {words}",
        "study toy: 3 trials in the record; 0 differences corrected, 1 left",
    ]
    assert main(options) == 0
    assert capsys.readouterr().out.splitlines()[0] == f"corrected: {words}"
    assert main(options) == 0
    assert (
        capsys.readouterr().out
        == "study toy: 3 trials in the record, and MLflow shows them as they are\n"
    )


def test_study_that_is_running_is_checked_and_not_written(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--study", "toy", "--tracking-uri", place.uri]
    with sole_runner(place.folder, "toy"):
        assert main([*options, "--check"]) == 0
        assert main(options) == 2
    assert "'toy' is running already (process" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--study", "gone"], "the record has no study 'gone'; it has: toy"),
        (["--study", "toy", "--tracking-uri", "sqlite:///no/gone.db"], "there is no file"),
        (["--study", "toy", "--storage", "sqlite:///gone.db"], "there is no file"),
    ],
)
def test_command_refuses_in_one_line(
    options: list[str],
    said: str,
    place: Place,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(place.folder)
    before = sorted(place.folder.rglob("*"))
    assert main(["--tracking-uri", place.uri, *options]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert said in line
    assert sorted(place.folder.rglob("*")) == before


def test_study_that_gained_trials_is_known_from_its_record(place: Place) -> None:
    place.record().describe(info_of(make_study(compare={"strategy": ["probe"]}, trials=9)))
    assert sync(place) == Synced("toy", RUNS, ())


def recorded_earlier(place: Place) -> None:
    """Both stores as the harness wrote them in November 2026: `record_of_format_2.json`."""
    kept = json.loads((Path(__file__).parent / "record_of_format_2.json").read_text())
    for study in kept["studies"]:
        made = optuna.create_study(
            study_name=study["name"], storage=place.url, direction=study["direction"].lower()
        )
        for name, value in study["user_attrs"].items():
            made.set_user_attr(name, value)
        for trial in study["trials"]:
            drawn = {k: json_to_distribution(v) for k, v in trial["distributions"].items()}
            reported = {int(k): v for k, v in trial["intermediate_values"].items()}
            frozen = optuna.trial.create_trial(
                state=TrialState[trial["state"]],
                value=trial["value"],
                params=trial["params"],
                distributions=drawn,
                user_attrs=trial["user_attrs"],
                intermediate_values=reported,
            )
            made.add_trial(frozen)
    experiment = place.client.create_experiment(
        "toy",
        tags=kept["experiment_tags"],
        artifact_location=f"file://{place.folder}/artifacts/toy",
    )
    ids: dict[str, str] = {}
    for run in kept["runs"]:  # parents come before their children
        tags = {k: ids.get(v, v) for k, v in run["tags"].items()}
        made_run = place.client.create_run(experiment, run["start"], tags, run["name"])
        ids[run["id"]] = made_run.info.run_id
        metrics = [Metric(*values) for values in run["metrics"]]
        params = [Param(k, v) for k, v in run["params"].items()]
        place.client.log_batch(made_run.info.run_id, metrics, params)
        place.client.set_terminated(made_run.info.run_id, run["status"], run["end"])


def as_recorded(trial: BaseTrial, strategy: str) -> TrialSpec:
    """The study's space with the default of `batch_norm` of that time."""
    return replace(space(trial, strategy), batch_norm="train")


def test_study_that_was_recorded_earlier_needs_nothing_and_resumes(
    tmp_path: Path, with_stores: Callable[[Path], Path]
) -> None:
    place = Place(with_stores(tmp_path))
    recorded_earlier(place)
    found = sync(place, check=True)
    assert (found.trials, found.differences) == (7, ()), "one is open, and has no run yet"
    place.run(make_study(trials=3, space=as_recorded))
    # The open trial was killed after an epoch and is run again, like the third trial of the other cell.
    assert [s.epochs for s in place.world.tuned] == [2, 2]
    assert place.outcomes() == {"complete": 8, "killed": 1}
    assert sync(place).differences == ()
