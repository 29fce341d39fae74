"""Whatever happens in the middle of a study, its record and MLflow end up telling one whole story.

Numbers are rows of docs/pages/faults.md. Optuna and MLflow are real, training is a stand-in.
"""

from __future__ import annotations

import faulthandler
import math
import os
import shutil
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.server import app, handlers
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import event
from sqlalchemy.engine import Engine
from werkzeug.serving import make_server

from harness.core.errors import UserError
from harness.core.spec import TrialSpec
from harness.search.cell import CellSearch
from harness.search.coordinator import StudyStopped
from harness.search.record import StorageFailed
from harness.search.space import first_draw
from harness.sync import sync_study
from harness.training.forecast import forecast
from tests.lab import info_of
from tests.toy import SMALL, STUDY, Place, make_study

MLFLOW_CALLS = ("create_run", "log_batch", "log_text", "set_tag", "set_terminated", "search_runs")


@pytest.fixture
def place(
    tmp_path: Path, with_stores: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> Place:
    # After a trial that failed; a third of a second each, and a stand-in leaves nothing to collect.
    monkeypatch.setattr("harness.training.trial.gc.collect", lambda: 0)
    for cell in STUDY.cells():  # remembered, because torch cannot compute gradients after a fork
        forecast(first_draw(STUDY, cell))
    return Place(with_stores(tmp_path / "mlruns"))


# --- 1: the process is killed, at any point --------------------------------------------------------


def kill_at_write(number: int) -> None:
    """From now on this process is killed before its n-th write to a database or rename of a file."""
    left = iter(range(number))

    def count(*_: object) -> None:
        if next(left, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)

    def statement(_a: object, _b: object, words: str, *_: object) -> None:
        if words.split(maxsplit=1)[0] in ("INSERT", "UPDATE", "DELETE"):
            count()

    def rename(*arguments: Any) -> None:
        count()
        real(*arguments)

    real = os.replace
    vars(os)["replace"] = rename
    event.listen(Engine, "before_cursor_execute", statement)
    event.listen(Engine, "commit", count)


def in_a_process(work: Callable[[], object]) -> int:
    """Do it in a process of its own, which knows nothing after; returns its exit code, 0 if all is well."""
    child = os.fork()
    if child == 0:
        faulthandler.disable()  # a death that was asked for needs no traceback
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed(place: Place, number: int) -> bool:
    """A process that runs the study and is killed at its n-th write; False if it came to its end."""

    def run() -> None:
        kill_at_write(number)
        place.run(SMALL)

    code = in_a_process(run)
    assert code in (0, -signal.SIGKILL)
    return code != 0


def die_at(numbers: Iterable[int], place: Place) -> int:
    """Kill at each of these writes, and run again; returns how often it was killed."""
    for died, number in enumerate(numbers):
        folder = place.folder / str(number)
        folder.mkdir()
        again = Place(folder)
        shutil.copy(place.mlflow, again.mlflow)
        shutil.copy(place.optuna, again.optuna)
        if not killed(again, number):
            return died
        again.run(SMALL)
        again.assert_whole(SMALL)
        assert again.differences() == []
    raise AssertionError("the study never came to its end")


def test_1_death_between_writes_loses_and_doubles_nothing(place: Place) -> None:
    assert die_at(range(3, 999, 25), place) >= 3


@pytest.mark.slow
def test_1_death_at_every_write(place: Place) -> None:
    assert die_at(range(999), place) > 60


def test_1_slot_that_ends_its_process_each_time_is_crashed_after_the_second_death(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    deadly = first_draw(STUDY, {"strategy": "probe"})

    def crash(spec: TrialSpec, epoch: int) -> None:
        if spec == deadly:
            os.kill(os.getpid(), signal.SIGSEGV)

    def die() -> None:
        place.world.disturb = crash
        place.run()

    assert [in_a_process(die) for _ in range(2)] == [-signal.SIGSEGV] * 2
    done = place.run()
    assert [d.trial.outcome for d in done if d.trial] == ["complete"] * 5
    assert "warning: probe, trial 0: its process ended 2 times" in capsys.readouterr().err
    assert place.run_outcomes() == {"complete": 5, "killed": 1, "crashed": 1}
    [given_up] = place.runs(outcome="crashed")
    assert "its process ended 2 times" in given_up.data.tags["reason"]
    assert (given_up.data.tags["cell"], given_up.data.tags["index"]) == ("probe", "0")
    assert [d.trial for d in place.run()] == [None] * 6, "the slot is settled for good"


def test_1_last_repeat_of_a_race_that_died_with_its_result_is_shown_by_the_next_run(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    race = make_study(compare={"strategy": ["probe", "full"]}, budget="1s")
    # So little time that each of the four finalists, the first two trials of both cells, is repeated once.
    monkeypatch.setattr(place, "info", lambda study: info_of(study, budget=1e-6, screening=5e-7))
    tell, repeats = CellSearch._tell, list[CellSearch]()

    def die_before_the_last(search: CellSearch, *arguments: Any) -> FrozenTrial:
        repeats.extend([search] * (search.phase == "repeat"))
        if len(repeats) == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return tell(search, *arguments)

    def die() -> None:
        monkeypatch.setattr(CellSearch, "_tell", die_before_the_last)
        place.run(race)

    assert in_a_process(die) == -signal.SIGKILL
    assert {d.trial for d in place.run(race)} == {None}, "only its end was missing"
    assert place.differences() == []
    assert set(place.run_outcomes()) == {"complete"}


# --- 7: NaN and infinity ---------------------------------------------------------------------------


@pytest.mark.parametrize("score", [(0.1, math.inf), (0.1, math.nan), (math.inf, 0.5)])
def test_7_score_that_is_no_number_is_diverged_before_optuna_takes_it_for_the_best(
    score: tuple[float, float], place: Place
) -> None:
    place.world.truth = lambda spec: score if len(place.world.specs) == 1 else (0.1, 0.5)
    place.run()
    assert place.run_outcomes() == {"diverged": 1, "complete": 5}
    states = [t.state for t in place.optuna_trials()]
    assert (states.count(TrialState.FAIL), states.count(TrialState.COMPLETE)) == (1, 5)


# --- 9, 14: what ends the study --------------------------------------------------------------------


def test_9_data_that_vanish_end_the_study_and_not_a_thousand_trials(place: Place) -> None:
    place.world.fail_on({2, 3, 4, 5}, FileNotFoundError("pets/cat/1.png"))
    with pytest.raises(StudyStopped, match=r"3 trials in a row ended as crashed.*pets/cat/1\.png"):
        place.run()
    assert place.run_outcomes() == {"complete": 1, "crashed": 3}
    place.world.disturb = lambda spec, epoch: None  # the disk is mounted again
    place.run()
    place.assert_whole()


@pytest.mark.parametrize("word", ["disk I/O error", "database disk image is malformed"])
def test_14_record_that_fails_ends_the_study_in_words(word: str, place: Place) -> None:
    def fail(_connection: Any, _cursor: Any, words: str, *_: object) -> None:
        if "trial_intermediate_values" in words and len(place.world.specs) == 3:
            raise sqlite3.OperationalError(word)

    event.listen(Engine, "before_cursor_execute", fail)
    try:
        with pytest.raises(StorageFailed, match=f"the search storage failed: .*{word}"):
            place.run()
    finally:
        event.remove(Engine, "before_cursor_execute", fail)
    place.run()
    place.assert_whole()


def test_14_record_that_is_locked_for_too_long_ends_the_study_in_words(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.search.storage.SQLITE_TIMEOUT_SECONDS", 0.1)
    events = place.events()
    next(events)
    with closing(sqlite3.connect(place.optuna)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageFailed, match=r"the search storage failed: .*locked"):
            list(events)
    place.run()
    place.assert_whole()


# --- 13, 15: MLflow does not answer, or is gone ----------------------------------------------------


class Away:
    """MLflow's calls fail from the n-th on, until told otherwise."""

    def __init__(self, patch: pytest.MonkeyPatch, after: int) -> None:
        self.left, self.asked = float(after), 0
        for name in MLFLOW_CALLS:
            patch.setattr(MlflowClient, name, self._through(getattr(MlflowClient, name)))

    def _through(self, call: Any) -> Any:
        def counted(*arguments: Any, **options: Any) -> Any:
            self.left -= 1
            if self.left < 0:
                self.asked += 1
                raise MlflowException("connection refused")
            return call(*arguments, **options)

        return counted


@pytest.mark.parametrize("after", [4, 5, 14, 27])
def test_13_study_goes_on_without_mlflow_and_the_next_command_completes_it(
    after: int, place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        away = Away(patch, after)
        done = place.run()
        assert [d.trial.outcome for d in done if d.trial] == ["complete"] * 6
        assert away.asked <= 3, "when it failed, and at the end"
    said = capsys.readouterr().err
    assert said.count("warning: the tracking store does not take what is written") == 1
    assert place.run() is not None
    assert len(place.world.specs) == 6, "nothing was trained again"
    place.assert_whole()


def test_13_mlflow_that_answers_again_is_completed_while_the_study_runs(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    place.clock = lambda: now
    events = place.events()
    with monkeypatch.context() as patch:
        next(events)
        next(events)  # the first trial is shown before the second is run
        Away(patch, 0)
        next(events)
    next(events)
    assert sum(place.run_outcomes().values()) == 1, "it is not asked again at once"
    now = 100.0
    next(events)
    assert sum(place.run_outcomes().values()) == 4
    list(events)
    place.assert_whole()
    said = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert ["does not take" in said[0], "answers again" in said[1], len(said)] == [True, True, 2]


class Server:
    """A real MLflow server in a thread of this process, which can go away, fail or hang."""

    def __init__(self, place: Place) -> None:
        vars(handlers)["_tracking_store"] = None  # of the server before
        handlers.initialize_backend_stores(
            place.uri, default_artifact_root=f"{place.folder}/artifacts"
        )
        self.mood, self._port = "", 0
        self.start()
        self.uri = f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        self._server = make_server("127.0.0.1", self._port, self._answer, threaded=True)
        self._port = self._server.port
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, environ: Any, start_response: Any) -> Any:
        if (mood := self.mood) == "hangs":
            time.sleep(3)
        if mood:
            start_response("500 Internal Server Error", [])
            return [b""]
        return app(environ, start_response)


@pytest.mark.filterwarnings("ignore:starlette")  # MLflow's server, on its own imports
@pytest.mark.parametrize("mood", ["is down", "fails", "hangs"])
def test_13_server_that_goes_away_costs_one_warning_and_is_completed_when_it_is_back(
    mood: str, place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    server, behind = Server(place), place.uri
    try:
        place.uri = server.uri
        events = place.events()
        next(events)
        server.mood = mood
        if mood == "is down":
            server.stop()
        began = time.monotonic()
        assert len(list(events)) == 5, "training goes on"
        assert time.monotonic() - began < 30
        said = capsys.readouterr().err
        assert said.count("warning: the tracking store does not take what is written") == 1
        server.mood = ""
        if mood == "is down":
            server.start()
        assert sync_study("toy", storage=place.url, tracking_uri=server.uri).left == ()
    finally:
        server.stop()
    place.uri = behind
    place.assert_whole()


def spoil(place: Place, how: Callable[[Path], object]) -> str:
    """Do something to MLflow's database after the first of the trials; what the study says of it."""
    said = place.folder / "said"

    def run() -> None:
        with said.open("w") as sys.stderr:
            events = place.events()
            next(events)
            with closing(sqlite3.connect(place.mlflow)) as connection:
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            how(place.mlflow)
            assert len(list(events)) == 5

    assert in_a_process(run) == 0
    return said.read_text()


def remove(folder: Path) -> None:
    for path in folder.glob("mlflow.db*"):
        path.unlink()


def test_13_database_that_is_deleted_while_the_study_runs_comes_back_whole(place: Place) -> None:
    said = spoil(place, lambda path: remove(path.parent))
    assert said.count("warning: the tracking store does not take what is written") == 1
    assert "its file was deleted or replaced" in said
    sync_study("toy", tracking_uri=place.uri)
    place.assert_whole()


def test_13_database_that_is_damaged_while_the_study_runs_is_refused_then_made_again(
    place: Place,
) -> None:
    said = spoil(place, lambda path: path.write_bytes(b"\xff" * path.stat().st_size))
    assert said.count("warning: the tracking store does not take what is written") == 1
    with pytest.raises(UserError, match=r"cannot open the tracking store .*not a database"):
        place.run()
    remove(place.folder)
    place.run()
    place.assert_whole()
    assert len(place.world.specs) == 0, "nothing was trained again"


@pytest.mark.slow  # MLflow waits 20 s for a lock
def test_15_locked_database_is_waited_for_once_and_then_left_alone(place: Place) -> None:
    events = place.events()
    next(events)
    with closing(sqlite3.connect(place.mlflow)) as other:
        other.execute("BEGIN EXCLUSIVE")
        began = time.monotonic()
        assert len(list(events)) == 5
        assert time.monotonic() - began < 100, "when it failed, and at the end"
    place.run()
    place.assert_whole()


# --- 19: clocks ------------------------------------------------------------------------------------


def test_19_clock_that_jumps_back_a_day_changes_nothing(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = time.time

    def jump(spec: object, epoch: int) -> None:
        monkeypatch.setattr(time, "time", lambda: real() - 86400 * (len(place.world.specs) % 2))

    place.world.disturb = jump
    place.run()
    place.assert_whole()


# --- 25, 29: many trials ---------------------------------------------------------------------------

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
        found = database.execute("SELECT min(trial_id) FROM trials WHERE state = 'COMPLETE'")
        numbers = {"first": first, "count": count, "model": found.fetchone()[0]}
        database.execute(MULTIPLY, numbers)
        for table, columns in COLUMNS.items():
            database.execute(
                f"INSERT INTO {table} (trial_id, {columns}) SELECT copy.trial_id, {columns} "
                f"FROM {table} m, trials copy WHERE m.trial_id = :model AND copy.trial_id >= 1000000",
                numbers,
            )
        database.execute(
            "INSERT INTO trial_user_attributes (trial_id, key, value_json) SELECT copy.trial_id, m.key, "
            "CASE m.key WHEN 'slot' THEN json_set(m.value_json, '$.index', copy.number) "
            "ELSE m.value_json END FROM trial_user_attributes m, trials copy "
            "WHERE m.trial_id = :model AND copy.trial_id >= 1000000",
            numbers,
        )


@pytest.mark.slow
def test_25_ten_thousandth_trial_costs_little_more_than_the_hundredth(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By this process's own time, which other programs hardly change; MLflow's part is in the next test."""
    monkeypatch.setattr("harness.tracking.projection.Projection.settle", lambda self: None)

    def seconds(trials: int) -> float:
        study = make_study(compare={"strategy": ["probe"]}, trials=trials, repeats=0)
        began = time.process_time()
        fresh = [d for d in place.run(study) if d.trial is not None]
        assert len(fresh) == 10
        return (time.process_time() - began) / 10

    place.run(make_study(compare={"strategy": ["probe"]}, trials=100, repeats=0))
    few = seconds(110)
    multiply(place.optuna, 110, 10_000)
    assert seconds(10_010) < 5 * few + 2  # the start, which reads ten thousand trials, counts too


@pytest.mark.slow
def test_25_mlflow_is_made_from_a_thousand_trials_and_compared_with_them_in_seconds(
    place: Place,
) -> None:
    place.run(make_study(compare={"strategy": ["probe"]}, trials=10, repeats=0))
    multiply(place.optuna, 10, 1000)
    made, compared = (sync_study("toy", tracking_uri=place.uri) for _ in range(2))
    assert (len(made.differences), len(compared.differences)) == (990, 0)


@pytest.mark.slow
def test_29_two_hundred_trials_leave_no_memory_files_or_threads_behind(place: Place) -> None:
    events = place.events(make_study(compare={"strategy": ["probe"]}, trials=250, repeats=0))
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
