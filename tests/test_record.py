"""What is in MLflow after each call, asked of MLflow itself."""

from __future__ import annotations

import csv
import io
import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from urllib.parse import urlparse

import numpy as np
import pytest
from harness.record import Recorder, StudyInfo, predictions_csv
from mlflow import MlflowClient
from mlflow.entities import Run

from harness.errors import UserError, first_line, without_password
from harness.results import OUTCOMES, EpochResult, Outcome, Predictions, TrialResult
from harness.spec import TrialSpec
from harness.stores import sqlite_path
from harness.transfer import DiscriminativeLR

MakeSpec = Callable[..., TrialSpec]
INFO = StudyInfo(
    name="depth",
    question="How deep?",
    command="python -m harness.study --space depth.py",
    factors={"strategy": ["full", "linear probe"]},
    baseline={"strategy": "full"},
    trials=3,
    repeats=2,
    sampler="random",
    space_sha256="ab12",
    leaks=("digits: 2 pairs",),
)
FOUND = Predictions(
    example=np.array([4, 7, 9]),
    label=np.array([0, 1, 1]),
    predicted=np.array([0, 0, 1]),
    probability=np.array([0.75, 0.25, 0.123456789]),
)


@pytest.fixture
def recorder(tracking_uri: str) -> Recorder:
    return Recorder(tracking_uri, INFO)


@pytest.fixture
def client(tracking_uri: str) -> MlflowClient:
    return MlflowClient(tracking_uri=tracking_uri)


@pytest.mark.usefixtures("recorder")
def test_experiment_describes_the_study(client: MlflowClient) -> None:
    experiment = client.get_experiment_by_name("depth")
    assert experiment is not None
    assert experiment.tags["question"] == "How deep?"
    assert experiment.tags["command"] == INFO.command
    assert json.loads(experiment.tags["factors"]) == {"strategy": ["full", "linear probe"]}
    assert json.loads(experiment.tags["baseline"]) == {"strategy": "full"}
    assert (experiment.tags["trials"], experiment.tags["repeats"]) == ("3", "2")
    assert experiment.tags["leaks"] == "digits: 2 pairs"
    assert "How deep?" in experiment.tags["mlflow.note.content"]


def test_started_run_is_running_with_the_whole_spec_and_its_tags(
    recorder: Recorder, client: MlflowClient, make_spec: MakeSpec
) -> None:
    spec = make_spec(strategy=DiscriminativeLR(0.6), shots=None, lr=1 / 3)
    run = client.get_run(recorder.start(spec, "full trial 0", {"cell": "full", "index": 0}))
    assert TrialSpec.from_flat(run.data.params) == spec
    assert (run.data.tags["cell"], run.data.tags["index"]) == ("full", "0")
    assert run.info.run_name == "full trial 0"
    assert run.info.status == "RUNNING"
    assert list(recorder.unfinished()) == [run.info.run_id]


def test_each_epoch_adds_one_step_to_every_curve(
    recorder: Recorder, client: MlflowClient, make_spec: MakeSpec
) -> None:
    run_id = recorder.start(make_spec(), "x", {})
    for e in range(3):
        recorder.epoch(run_id, EpochResult(e, 2.0 - e, 1.5 - e, 0.25 * e, 10.0 * e, 4.0 * e))
    wanted = {
        "train_loss": [2.0, 1.0, 0.0],
        "val_loss": [1.5, 0.5, -0.5],
        "val_accuracy": [0.0, 0.25, 0.5],
        "train_seconds": [0.0, 10.0, 20.0],
        "marginal_seconds": [0.0, 4.0, 8.0],
    }
    for name, values in wanted.items():
        history = client.get_metric_history(run_id, name)
        assert [(m.step, m.value) for m in history] == list(enumerate(values))


STATUS: dict[Outcome, str] = {
    "complete": "FINISHED",
    "pruned": "FINISHED",
    "killed": "KILLED",
    "diverged": "FAILED",
    "oom": "FAILED",
    "timeout": "FAILED",
    "audit_failed": "FAILED",
    "crashed": "FAILED",
}


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_finished_run_has_its_outcome_and_a_terminal_status(
    outcome: Outcome, recorder: Recorder, client: MlflowClient, make_spec: MakeSpec
) -> None:
    run_id = recorder.start(make_spec(), "x", {})
    recorder.finish(run_id, TrialResult(outcome, {"peak_process_rss_mib": 12.5}, "because"))
    run = client.get_run(run_id)
    assert run.info.status == STATUS[outcome]
    assert run.info.end_time is not None
    assert (run.data.tags["outcome"], run.data.tags["reason"]) == (outcome, "because")
    assert run.data.metrics == {"peak_process_rss_mib": 12.5}
    assert recorder.unfinished() == {}


def artifact(run: Run, name: str) -> str:
    return (Path(urlparse(run.info.artifact_uri).path) / name).read_text()


def test_predictions_are_kept_one_line_per_example(
    recorder: Recorder, client: MlflowClient, make_spec: MakeSpec
) -> None:
    run_id = recorder.start(make_spec(), "x", {})
    recorder.finish(run_id, TrialResult("complete", {}, predictions=FOUND))
    rows = list(csv.DictReader(io.StringIO(artifact(client.get_run(run_id), "predictions.csv"))))
    assert [int(r["example"]) for r in rows] == [4, 7, 9]
    assert [int(r["label"]) for r in rows] == [0, 1, 1]
    assert [int(r["predicted"]) for r in rows] == [0, 0, 1]
    probabilities = [float(r["probability"]) for r in rows]
    assert probabilities == pytest.approx(FOUND.probability, rel=1e-5)  # six digits are written


def test_artifacts_lie_beside_the_database(
    recorder: Recorder, client: MlflowClient, make_spec: MakeSpec, tmp_path: Path
) -> None:
    run = client.get_run(recorder.start(make_spec(), "x", {}))
    assert Path(urlparse(run.info.artifact_uri).path).is_relative_to(tmp_path / "mlruns/artifacts")


def test_finishing_twice_keeps_the_last_word(
    recorder: Recorder, client: MlflowClient, make_spec: MakeSpec
) -> None:
    run_id = recorder.start(make_spec(), "x", {})
    recorder.finish(run_id, TrialResult("complete", {"val_loss": 1.0}))
    recorder.finish(run_id, TrialResult("killed", reason="its runner died"))
    run = client.get_run(run_id)
    assert (run.info.status, run.data.tags["outcome"]) == ("KILLED", "killed")


def test_very_long_reason_is_cut_not_refused(
    recorder: Recorder, client: MlflowClient, make_spec: MakeSpec
) -> None:
    run_id = recorder.start(make_spec(), "x", {})
    recorder.finish(run_id, TrialResult("crashed", reason="x" * 20_000))
    assert 1000 < len(client.get_run(run_id).data.tags["reason"]) <= 5000


def test_csv_of_nothing_is_a_header() -> None:
    empty = np.array([], np.int64)
    assert predictions_csv(Predictions(empty, empty, empty, empty)) == (
        "example,label,predicted,probability\n"
    )


def repeat_of(recorder: Recorder, spec: TrialSpec, cell: str, chosen: int) -> str:
    return recorder.start(spec, "x", {"phase": "repeat", "cell": cell, "chosen": chosen})


def test_repeats_of_another_choice_are_superseded_in_their_cell_only(
    recorder: Recorder, client: MlflowClient, make_spec: MakeSpec
) -> None:
    old, new, other = (
        repeat_of(recorder, make_spec(), cell, chosen)
        for cell, chosen in (("full", 0), ("full", 2), ("probe", 0))
    )
    tuning = recorder.start(make_spec(), "x", {"phase": "tune", "cell": "full"})
    recorder.supersede("full", 2)
    found = [client.get_run(r).data.tags.get("superseded") for r in (old, new, other, tuning)]
    assert found == ["true", "false", None, None]
    recorder.supersede("full", 0)  # the first choice came back
    found = [client.get_run(r).data.tags.get("superseded") for r in (old, new)]
    assert found == ["false", "true"]


def test_second_recorder_goes_on_in_the_same_experiment(
    tracking_uri: str, recorder: Recorder, make_spec: MakeSpec
) -> None:
    run_id = recorder.start(make_spec(), "x", {})
    assert Recorder(tracking_uri, INFO).unfinished() == {run_id: ""}


def test_other_studies_runs_are_not_ours(
    tracking_uri: str, recorder: Recorder, make_spec: MakeSpec
) -> None:
    recorder.start(make_spec(), "x", {})
    other = Recorder(tracking_uri, StudyInfo(**{**vars(INFO), "name": "width"}))
    assert other.unfinished() == {}


@pytest.mark.usefixtures("recorder")
def test_deleted_experiment_is_refused_with_the_way_out(
    tracking_uri: str, client: MlflowClient
) -> None:
    experiment = client.get_experiment_by_name("depth")
    assert experiment is not None
    client.delete_experiment(experiment.experiment_id)
    with pytest.raises(UserError, match=r"'depth' was deleted .*mlflow experiments restore -x"):
        Recorder(tracking_uri, INFO)


# --- databases -------------------------------------------------------------------------------------

RACER = """
import sys
from pathlib import Path
from harness.record import _make_mlflow_tables
from harness.stores import create_sqlite
print("ready", flush=True)
sys.stdin.readline()
create_sqlite(Path(sys.argv[1]), _make_mlflow_tables)
"""


def test_four_processes_that_start_at_once_make_one_usable_database(tmp_path: Path) -> None:
    path = tmp_path / "new" / "mlflow.db"
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        racer.communicate("go\n")
    assert [racer.returncode for racer in racers] == [0] * 4
    assert [p.name for p in path.parent.iterdir()] == ["mlflow.db"]
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    Recorder(f"sqlite:///{path}", INFO)


def test_database_that_is_there_is_left_alone(tracking_uri: str, recorder: Recorder) -> None:
    path = sqlite_path(tracking_uri)
    assert path is not None
    inode = path.stat().st_ino
    Recorder(tracking_uri, INFO)
    assert path.stat().st_ino == inode


def test_only_sqlite_uris_have_a_file(tmp_path: Path) -> None:
    assert sqlite_path(f"sqlite:///{tmp_path}/a.db") == tmp_path / "a.db"
    assert sqlite_path("sqlite:///b.db") == Path.cwd() / "b.db"
    assert sqlite_path("http://localhost:5000") is None


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql+psycopg://ann:s3cret@db/x", "postgresql+psycopg://ann:***@db/x"),
        ("mysql://ann:p:q/r@db", "mysql://ann:***@db"),
        ("cannot reach http://u:pw@h and http://v:pw2@h", "cannot reach http://u:***@h and http://v:***@h"),
        ("http://host:5000/path", "http://host:5000/path"),
        ("redis://:pw@h/0", "redis://:***@h/0"),
        ("postgresql://ann@h/x?password=pw&sslmode=require", "postgresql://ann@h/x?password=***&sslmode=require"),
        ("mysql://h/x?user=ann&PASSWD=pw", "mysql://h/x?user=ann&PASSWD=***"),
        ("http://h/?access_token=abc#x y", "http://h/?access_token=*** y"),
        ("host=h user=ann password='p w' dbname=x", "host=h user=ann password=*** dbname=x"),
        ("postgresql://ann:p%40w:d@h:5432/x", "postgresql://ann:***@h:5432/x"),
        ("sqlite:////tmp/a@b.db", "sqlite:////tmp/a@b.db"),
    ],
)  # fmt: skip
def test_passwords_are_not_shown(text: str, shown: str) -> None:
    assert without_password(text) == shown


def test_message_that_is_cut_in_the_middle_of_a_url_shows_no_password() -> None:
    for blanks in range(150, 200):
        said = first_line(OSError(f"{'x' * blanks} postgresql://ann:secret@host/x"))
        assert len(said) <= 200
        assert "sec" not in said


def test_trials_lie_under_one_run_of_their_study(
    recorder: Recorder, client: MlflowClient, make_spec: MakeSpec, tracking_uri: str
) -> None:
    first = client.get_run(recorder.start(make_spec(), "x", {"phase": "tune"}))
    Recorder(tracking_uri, INFO)  # the command again
    [parent] = client.search_runs([first.info.experiment_id], "tags.kind = 'study'")
    assert first.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert parent.info.status == "FINISHED"
    assert parent.info.run_name == f"study {INFO.name}"
    assert list(recorder.unfinished()) == [first.info.run_id]


def test_trials_lie_under_their_cell_and_cells_under_the_study(
    recorder: Recorder, client: MlflowClient, make_spec: MakeSpec, tracking_uri: str
) -> None:
    tags = {"phase": "tune", "study": "depth", "index": 0}
    probe = {**tags, "cell": "linear probe", "strategy": "linear probe"}
    runs = [client.get_run(r.start(make_spec(), "x", probe)) for r in (recorder,) * 2]
    again = Recorder(tracking_uri, INFO)  # a worker that joins
    runs.append(client.get_run(again.start(make_spec(), "x", probe)))
    full = {**tags, "cell": "full", "strategy": "full"}
    other = client.get_run(again.start(make_spec(), "x", full))
    [study] = client.search_runs([other.info.experiment_id], "tags.kind = 'study'")
    cells = client.search_runs([other.info.experiment_id], "tags.kind = 'cell'")
    by_name = {run.info.run_name: run for run in cells}
    assert by_name.keys() == {"linear probe", "full"}
    assert len(cells) == 2
    for run in cells:
        assert run.data.tags["mlflow.parentRunId"] == study.info.run_id
        assert run.data.tags["strategy"] == run.info.run_name
        assert run.info.status == "FINISHED"
    assert {r.data.tags["mlflow.parentRunId"] for r in runs} == {
        by_name["linear probe"].info.run_id
    }
    assert other.data.tags["mlflow.parentRunId"] == by_name["full"].info.run_id


def test_of_two_runs_made_at_once_for_a_cell_the_first_counts_for_everybody(
    recorder: Recorder, client: MlflowClient, make_spec: MakeSpec, tracking_uri: str
) -> None:
    tags = {"phase": "tune", "cell": "full", "index": 0}
    first = client.get_run(recorder.start(make_spec(), "x", tags))
    parent = client.get_run(first.data.tags["mlflow.parentRunId"])
    client.create_run(
        first.info.experiment_id, tags=parent.data.tags, start_time=parent.info.start_time + 1
    )
    last = client.get_run(Recorder(tracking_uri, INFO).start(make_spec(), "y", tags))
    assert last.data.tags["mlflow.parentRunId"] == parent.info.run_id


def test_summary_of_a_cell_is_on_its_run(
    recorder: Recorder, client: MlflowClient, make_spec: MakeSpec, tracking_uri: str
) -> None:
    trial = client.get_run(recorder.start(make_spec(), "x", {"cell": "full", "index": 0}))
    Recorder(tracking_uri, INFO).summarise("full", {"mean_test_accuracy": 0.75})
    recorder.summarise("no such cell", {"mean_test_accuracy": 0.5})
    found = client.search_runs([trial.info.experiment_id], "metrics.mean_test_accuracy > 0")
    assert [r.info.run_id for r in found] == [trial.data.tags["mlflow.parentRunId"]]
