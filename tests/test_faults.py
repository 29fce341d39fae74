"""Whatever happens in the middle of a study, its two stores end up telling one whole story.

Numbers are rows of the issue's table of faults. Optuna and MLflow are real, training is a stand-in; after
each fault the study is run again, or not, and verified.
"""

from __future__ import annotations

import dataclasses
import math
import re
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import pytest
from harness.record import Recorder, StudyInfo
from harness.search.cells import CellSearch
from harness.search.integrity import Progress, Stores, findings
from harness.search.leases import Owner, Watch
from harness.search.repair import Verdict, verify
from harness.search.runner import StudyStopped, TrialDone
from harness.verify import main, show
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState
from tests.test_search import DEAD, Lab, World, make_study

from harness.search import attempt, runner
from harness.search.storage import open_storage
from harness.spec import Study

STUDY = make_study(compare={"strategy": ["probe", "full"]}, trials=2, repeats=1)
SMALL = make_study(compare={"strategy": ["probe"]}, trials=1, repeats=1)
STORAGE_CALLS = (
    "create_new_trial",
    "set_trial_param",
    "set_trial_user_attr",
    "set_trial_intermediate_value",
    "set_trial_state_values",
)
MLFLOW_CALLS = ("create_run", "log_batch", "log_text", "set_tag", "set_terminated")


class Place(Lab):
    """The two stores, and what verify says of them."""

    clock: Callable[[], float] = time.monotonic

    def info(self, study: Study) -> StudyInfo:
        factors = {k: list(v) for k, v in study.compare.items()}
        return StudyInfo(
            study.name, "", "", factors, {}, study.trials, study.repeats, "random", (), ""
        )

    def recorder(self, study: Study) -> Recorder:
        return Recorder(self.uri, self.info(study), self.clock)

    def stores(self, study: Study) -> Stores:
        return Stores(self.storage, self.uri, self.recorder(study), Watch(Owner.here()))

    def verify(self, study: Study) -> Verdict:
        return verify(self.info(study), self.stores(study))

    def wrong(self, study: Study) -> list[str]:
        return [f.invariant for f in findings(self.info(study), self.stores(study))]

    def assert_whole(self, study: Study) -> None:
        verdict = self.verify(study)
        assert verdict.left == ()
        self.assert_nothing_is_running()
        slots = self.complete_slots()
        assert set(slots.values()) == {1}
        assert len(slots) == len(study.cells()) * (study.trials + study.repeats)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    made = World()
    monkeypatch.setattr(attempt, "start", made.start)
    # After a trial that failed; a third of a second each, and a stand-in leaves nothing to collect.
    monkeypatch.setattr("harness.search.runner.gc.collect", lambda: 0)
    return made


@pytest.fixture
def place(tracking_uri: str) -> Place:
    return Place(tracking_uri)


class Killed(BaseException):
    """What comes instead of every call to a store once the process is dead."""


class Calls:
    """Every call that writes to a store, counted; from the n-th on each one raises."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, storage: bool = True) -> None:
        self.made, self.last = 0, 10**9
        self.error: BaseException = Killed()
        kinds = ((InMemoryStorage, STORAGE_CALLS), (MlflowClient, MLFLOW_CALLS))
        for kind, names in kinds if storage else kinds[1:]:
            for name in names:
                monkeypatch.setattr(kind, name, self._through(getattr(kind, name)))

    def _through(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.made += 1
            if self.made > self.last:
                raise self.error
            return call(*args, **kwargs)

        return counted

    def stop_after(self, count: int) -> None:
        self.last = self.made + count

    def go_on(self) -> None:
        self.last = 10**9


# --- 1: death at every point -------------------------------------------------------------------


def die_after(count: int, place: Place, calls: Calls, study: Study) -> bool:
    """Run until the process dies after so many writes; False if the study was done before."""
    bench = place.bench(study, watch=Watch(DEAD))
    calls.stop_after(count)
    try:
        list(runner.run_study(study, bench))
    except Killed:
        return True
    finally:
        calls.go_on()
    return False


def die_at(counts: Iterator[int], template: Path, folder: Path, calls: Calls) -> int:
    """Kill, run again and verify, for each of these counts; returns how often it died."""
    for died, count in enumerate(counts):
        path = folder / str(count) / "mlflow.db"
        path.parent.mkdir()
        shutil.copy(template, path)
        place = Place(f"sqlite:///{path}")
        if not die_after(count, place, calls, SMALL):
            return died
        place.verify(SMALL)
        place.assert_nothing_is_running()
        place.run(SMALL)
        place.assert_whole(SMALL)
    raise AssertionError("the study never came to its end")


def test_1_death_between_any_two_writes_loses_and_doubles_nothing(
    world: World, mlflow_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    died = die_at(iter(range(0, 99, 6)), mlflow_template, tmp_path, Calls(monkeypatch))
    assert died >= 6


@pytest.mark.slow
def test_1_death_after_every_write(
    world: World, mlflow_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert die_at(iter(range(99)), mlflow_template, tmp_path, Calls(monkeypatch)) > 30


def test_1_retry_of_a_killed_trial_is_no_configuration_tried_twice(
    world: World, place: Place
) -> None:
    world.fail_on({1}, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        place.run(STUDY)
    world.disturb = lambda spec, epoch: None
    place.run(STUDY)
    place.assert_whole(STUDY)
    assert world.specs[0] == world.specs[1]


# --- 7: NaN and infinity ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "score", [(0.1, math.inf), (0.1, math.nan), (math.inf, 0.5), (math.nan, 0.5)]
)
def test_7_score_that_is_no_number_is_diverged_before_optuna_takes_it_for_the_best(
    score: tuple[float, float], world: World, place: Place
) -> None:
    world.truth = lambda spec: score if len(world.specs) == 1 else (0.1, 0.5)
    place.run(STUDY)
    assert place.outcomes() == {"diverged": 1, "complete": 5}
    states = [t.state for t in place.trials()]
    assert (states.count(TrialState.FAIL), states.count(TrialState.COMPLETE)) == (1, 5)
    verdict = place.verify(STUDY)
    assert verdict.holds
    assert "probe: 1 of 2 trials complete (1 diverged)" in map(str, verdict.progress)


# --- 9, 26: what ends the study --------------------------------------------------------------------


def test_9_data_that_vanish_end_the_study_and_not_a_thousand_trials(
    world: World, place: Place
) -> None:
    world.fail_on({2, 3, 4, 5}, FileNotFoundError("pets/cat/1.png"))
    with pytest.raises(StudyStopped, match=r"3 trials in a row ended as crashed.*pets/cat/1\.png"):
        place.run(STUDY)
    assert place.outcomes() == {"complete": 1, "crashed": 3}
    verdict = place.verify(STUDY)
    assert {f.invariant for f in verdict.left} == {"I3"}
    world.disturb = lambda spec, epoch: None  # the disk is mounted again
    place.run(STUDY)
    place.assert_whole(STUDY)


# --- 13, 15: the tracking store goes away ----------------------------------------------------------


@pytest.mark.parametrize("after", [0, 1, 6, 20, 33])
def test_13_study_goes_on_without_its_tracking_store(
    after: int, world: World, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    place.clock = lambda: now
    bench = place.bench(STUDY)
    calls = Calls(monkeypatch, storage=False)
    calls.error = MlflowException("connection refused", error_code=TEMPORARILY_UNAVAILABLE)
    calls.stop_after(after)
    done = list(runner.run_study(STUDY, bench))
    assert len(done) == 6
    assert [d.result.outcome for d in done if d.result] == ["complete"] * 6
    assert "I1" in place.wrong(STUDY)
    calls.go_on()
    now = 1000.0
    place.assert_whole(STUDY)
    place.run(STUDY)
    assert len(world.specs) == 6


def test_13_study_resumed_before_the_spool_was_sent_knows_its_runs(
    world: World, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = place.bench(STUDY)
    calls = Calls(monkeypatch, storage=False)
    calls.error = MlflowException("connection refused", error_code=TEMPORARILY_UNAVAILABLE)
    calls.stop_after(9)
    list(runner.run_study(STUDY, bench))
    calls.go_on()
    assert all(d.resumed for d in place.run(STUDY))
    place.assert_whole(STUDY)


@pytest.mark.slow  # MLflow waits 20 s for a lock
def test_15_locked_database_is_waited_for_once_and_then_left_alone(
    world: World, place: Place
) -> None:
    path = place.uri.removeprefix("sqlite:///")
    bench = place.bench(STUDY)
    with closing(sqlite3.connect(path)) as other:
        other.execute("BEGIN EXCLUSIVE")
        began = time.monotonic()
        assert len(list(runner.run_study(STUDY, bench))) == 6
        assert time.monotonic() - began < 60
    place.assert_whole(STUDY)


# --- 14: the search storage fails ------------------------------------------------------------------


def test_14_search_storage_that_fails_ends_the_study_in_words(
    world: World, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = place.bench(STUDY, watch=Watch(DEAD))
    calls = Calls(monkeypatch)
    calls.error = optuna.exceptions.StorageInternalError("disk I/O error")
    calls.stop_after(30)
    with pytest.raises(StudyStopped, match="the search storage failed: disk I/O error"):
        list(runner.run_study(STUDY, bench))
    calls.go_on()
    place.run(STUDY)
    place.assert_whole(STUDY)


# --- 19: clocks ------------------------------------------------------------------------------------


def test_19_clock_that_jumps_back_a_day_changes_nothing(
    world: World, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = time.time

    def jump(spec: object, epoch: int) -> None:
        monkeypatch.setattr(time, "time", lambda: real() - 86400 * (len(world.specs) % 2))

    world.disturb = jump
    place.run(STUDY)
    place.assert_whole(STUDY)


# --- what verify finds and repairs -----------------------------------------------------------------

Harm = Callable[[Place], None]


def lose_a_run(place: Place) -> None:
    place.client.delete_run(place.runs(phase="tune", cell="probe", index=0)[0].info.run_id)


def lose_a_repeat(place: Place) -> None:
    place.client.delete_run(place.runs(phase="repeat", cell="full")[0].info.run_id)


def change_an_outcome(place: Place) -> None:
    place.client.set_tag(place.runs(phase="tune")[0].info.run_id, "outcome", "killed")


def change_a_status(place: Place) -> None:
    place.client.set_terminated(place.runs(phase="tune")[0].info.run_id, status="FAILED")


def open_a_run_again(place: Place) -> None:
    place.client.update_run(place.runs(phase="tune")[0].info.run_id, status="RUNNING")


def leave_a_run_open(place: Place) -> None:
    tags = {"index": "0", "phase": "tune", "cell": "probe", "owner": DEAD.name}
    experiment = place.client.get_experiment_by_name("toy")
    assert experiment is not None
    place.client.create_run(experiment.experiment_id, tags=tags)


def leave_a_run_of_another_machine_open(place: Place) -> None:
    """The answer to create_run was lost, and the trial's run was made a second time."""
    trial = next(t for t in place.trials() if t.user_attrs.get("index") == 0)
    tags = {"index": "0", "phase": "tune", "cell": "probe", "owner": "elsewhere/1 2 3"}
    experiment = place.client.get_experiment_by_name("toy")
    assert experiment is not None
    tags["optuna_trial"] = str(trial.number)
    place.client.create_run(experiment.experiment_id, tags=tags)


def lose_an_epoch(place: Place) -> None:
    run = place.runs(phase="tune")[0].info.run_id
    with closing(sqlite3.connect(place.uri.removeprefix("sqlite:///"))) as connection:
        connection.execute("DELETE FROM metrics WHERE step = 1 AND run_uuid = ?", (run,))
        connection.commit()


REPAIRED: dict[Harm, str] = {
    lose_a_run: "I1",
    lose_a_repeat: "I1",
    change_an_outcome: "I1",
    change_a_status: "I1",
    open_a_run_again: "I2",
    leave_a_run_open: "I2",
    leave_a_run_of_another_machine_open: "I2",
    lose_an_epoch: "I5",
}


@pytest.mark.parametrize(
    ("harm", "invariant"), REPAIRED.items(), ids=lambda x: getattr(x, "__name__", x)
)
def test_verify_repairs(harm: Harm, invariant: str, world: World, place: Place) -> None:
    place.run(STUDY)
    assert place.wrong(STUDY) == []
    before = place_results(place)
    harm(place)
    assert place.wrong(STUDY) == [invariant]
    verdict = place.verify(STUDY)
    assert [f.invariant for f in verdict.repaired] == [invariant]
    assert verdict.holds
    assert place_results(place) == before
    place.run(STUDY)  # the study takes it for its own
    assert len(world.specs) == 6
    place.assert_whole(STUDY)


def place_results(place: Place) -> set[tuple[object, ...]]:
    """What the report reads of each complete run."""
    return {
        (
            *(run.data.tags.get(k) for k in ("cell", "phase", "index", "seed", "attempt")),
            run.data.tags.get("superseded") == "true",
            *(run.data.metrics.get(k) for k in ("val_loss", "val_accuracy", "test_accuracy")),
            tuple(sorted(run.data.params.items())),
        )
        for run in place.runs(outcome="complete")
    }


def complete_a_slot_twice(place: Place) -> None:
    first = next(t for t in place.trials() if t.state == TrialState.COMPLETE)
    study_id = place.storage.get_study_id_from_name("toy/probe")
    place.storage.create_new_trial(study_id, first)


def draw_alike(place: Place) -> None:
    first = next(t for t in place.trials() if t.state == TrialState.COMPLETE)
    first.user_attrs = {**first.user_attrs, "index": 1, "outcome": "killed"}
    first.state, first.values = TrialState.FAIL, None
    place.storage.create_new_trial(place.storage.get_study_id_from_name("toy/probe"), first)


def complete_unknown_to_optuna(place: Place) -> None:
    recorder = place.recorder(STUDY)
    spec = CellSearch(STUDY, {"strategy": "probe"}, InMemoryStorage()).draw(
        optuna.trial.FixedTrial({"lr": 0.01}), 0
    )
    recorder.end(
        recorder.start(spec, "x", {"index": 9, "phase": "tune", "cell": "probe"}), "complete"
    )


BEYOND: dict[Harm, str] = {
    complete_a_slot_twice: "I4",
    draw_alike: "I4",
    complete_unknown_to_optuna: "I1",
}


@pytest.mark.parametrize(
    ("harm", "invariant"), BEYOND.items(), ids=lambda x: getattr(x, "__name__", x)
)
def test_verify_does_not_hide_what_it_cannot_repair(
    harm: Harm, invariant: str, world: World, place: Place
) -> None:
    place.run(STUDY)
    harm(place)
    verdict = place.verify(STUDY)
    assert invariant in {f.invariant for f in verdict.left}


def test_what_another_process_works_on_is_left_alone(
    world: World, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Owner("elsewhere/12345678", 7, "9", "other")
    search = CellSearch(STUDY, {"strategy": "probe"}, place.storage)
    claim = search.claim(0, other)
    assert claim is not None
    run_id = place.recorder(STUDY).start(claim.spec, "x", {"index": 0, "owner": other.name})
    claim.trial.set_user_attr("run_id", run_id)
    verdict = place.verify(STUDY)
    assert {f.invariant for f in verdict.left} == {"I3"}
    assert verdict.at_work == (other.name,)
    show("toy", verdict)
    assert "only its own machine knows whether it lives" in capsys.readouterr().out
    assert verdict.repaired == ()


# --- the command -----------------------------------------------------------------------------------


class OnDisk(Place):
    """With Optuna's memory in a file, made from a template or there already."""

    def __init__(self, tracking_uri: str, optuna_template: Path | None = None) -> None:
        super().__init__(tracking_uri)
        self.path = Path(tracking_uri.removeprefix("sqlite:///")).with_name("optuna.db")
        if optuna_template is not None:
            shutil.copy(optuna_template, self.path)
        self.storage: Any = open_storage(f"sqlite:///{self.path}")


def test_command_says_what_it_did_and_by_its_exit_code_whether_all_holds(
    world: World, tracking_uri: str, optuna_template: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place, options = OnDisk(tracking_uri, optuna_template), ["--study", "toy", "--tracking-uri"]
    place.run(SMALL)
    lose_a_run(place)
    assert main([*options, tracking_uri]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.splitlines() == [
        "probe: 1 of 1 trials complete",
        "probe: 1 of 1 repeats complete",
        "repaired: I1: probe, trial 0 (complete) is missing in MLflow",
        "study toy is whole: both stores agree, nothing is missing, nothing is double",
    ]
    place.recorder(dataclasses.replace(SMALL, trials=3))
    assert main([*options, tracking_uri]) == 1
    out, _ = capsys.readouterr()
    asked = "probe: 1 of 3 trials complete (2 missing); run the study's command again"
    assert f"unfinished: I3: {asked}" in out
    assert "wrong" not in out


def test_progress_names_what_ended_otherwise_and_what_is_missing() -> None:
    said = str(Progress("probe", "tune", 4, ("complete", "diverged", "diverged")))
    assert said == "probe: 1 of 4 trials complete (2 diverged, 1 missing)"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--study", "gone"], "no study 'gone' in sqlite:.*; there are: toy"),
        (["--study", "toy", "--tracking-uri", "sqlite:///gone.db"], "there is no tracking store"),
        (["--study", "toy", "--storage", "sqlite:///gone.db"], "there is no file"),
    ],
)
def test_command_refuses_in_one_line(
    options: list[str], said: str, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    place.recorder(SMALL)
    before = sorted(Path.cwd().glob("*.db"))
    assert main(["--tracking-uri", place.uri, *options]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert re.search(said, line), line
    assert sorted(Path.cwd().glob("*.db")) == before


# --- 25, 29: many trials ---------------------------------------------------------------------------


def seconds_of(events: list[TrialDone], began: float) -> float:
    """Of this process's own work, which other programs hardly change."""
    fresh = [e for e in events if not e.resumed]
    return (time.process_time() - began) / len(fresh)


@pytest.mark.slow
def test_25_ten_thousandth_trial_costs_little_more_than_the_hundredth(
    world: World, place: Place
) -> None:
    study = make_study(compare={"strategy": ["probe"]}, trials=110, repeats=0)
    place.run(dataclasses.replace(study, trials=100))
    began = time.process_time()
    few = seconds_of(place.run(study), began)
    found = next(t for t in place.trials() if t.state == TrialState.COMPLETE)
    study_id = place.storage.get_study_id_from_name("toy/probe")
    for index in range(110, 10_000):
        found.user_attrs = {k: v for k, v in found.user_attrs.items() if k != "run_id"}
        found.user_attrs["index"] = index
        place.storage.create_new_trial(study_id, found)
    bench = place.bench(dataclasses.replace(study, trials=10_010))
    more = runner._Runner(study, bench)
    search = CellSearch(study, {"strategy": "probe"}, place.storage)
    began = time.process_time()
    many = seconds_of(list(more.work_off([(search, i) for i in range(10_000, 10_010)])), began)
    assert many < 5 * few + 0.2


MULTIPLY = """
WITH RECURSIVE copies(number) AS (
    SELECT :first UNION ALL SELECT number + 1 FROM copies WHERE number + 1 < :count
)
INSERT INTO trials (trial_id, number, study_id, state, datetime_start, datetime_complete)
SELECT 1000000 + copies.number, copies.number, study_id, state, datetime_start, datetime_complete
FROM copies, trials WHERE trials.trial_id = :model;
"""
COLUMNS = {
    "trial_values": "objective, value, value_type",
    "trial_params": "param_name, param_value, distribution_json",
    "trial_intermediate_values": "step, intermediate_value, intermediate_value_type",
}


def multiply(path: Path, first: int, count: int) -> None:
    """Copy the first complete trial into slots `first` to `count` - 1: optuna would take two minutes."""
    with closing(sqlite3.connect(path)) as database, database:
        (model,) = database.execute(
            "SELECT min(trial_id) FROM trials WHERE state = 'COMPLETE'"
        ).fetchone()
        numbers = {"first": first, "count": count, "model": model}
        database.execute(MULTIPLY, numbers)
        for table, columns in COLUMNS.items():
            database.execute(
                f"INSERT INTO {table} (trial_id, {columns}) SELECT copy.trial_id, {columns} "
                f"FROM {table} m, trials copy WHERE m.trial_id = :model AND copy.trial_id >= 1000000",
                numbers,
            )
        database.execute(
            "INSERT INTO trial_user_attributes (trial_id, key, value_json) SELECT copy.trial_id, m.key, "
            "CASE m.key WHEN 'index' THEN copy.number ELSE m.value_json END FROM trial_user_attributes m, "
            "trials copy WHERE m.trial_id = :model AND copy.trial_id >= 1000000 AND m.key != 'run_id'",
            numbers,
        )


@pytest.mark.slow
def test_25_ten_thousand_trials_in_a_file_are_resumed_as_a_hundred_are(
    world: World, tracking_uri: str, optuna_template: Path
) -> None:
    place = OnDisk(tracking_uri, optuna_template)
    study = make_study(compare={"strategy": ["probe"]}, trials=110, repeats=0)
    place.run(dataclasses.replace(study, trials=100))
    began = time.process_time()
    few = seconds_of(place.run(study), began)
    multiply(place.path, 110, 10_000)
    place = OnDisk(tracking_uri)
    began = time.process_time()
    events = place.run(dataclasses.replace(study, trials=10_010))
    assert len(events) == 10_010
    assert [e.resumed for e in events] == [True] * 10_000 + [False] * 10
    many = seconds_of(events, began)  # the start, which reads ten thousand trials, counts too
    assert many < 5 * few + 2
    assert len(world.specs) == 120


@pytest.mark.slow
def test_29_two_hundred_trials_leave_no_memory_files_or_threads_behind(
    world: World, place: Place
) -> None:
    study = make_study(compare={"strategy": ["probe"]}, trials=250, repeats=0)
    events = runner.run_study(study, place.bench(study))
    for _ in range(50):  # what is kept for good is kept by then
        next(events)
    before = resident_mib(), open_files(), threading.active_count()
    assert sum(1 for _ in events) == 200
    assert open_files() <= before[1] + 2
    assert threading.active_count() <= before[2]
    assert resident_mib() < before[0] + 30


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))
