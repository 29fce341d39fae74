"""Sixteen workers and a database server that is restarted under their hands. Trials are of a moment, the
server and both stores are real."""

from __future__ import annotations

import inspect
import multiprocessing
import re
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import Any
from unittest.mock import patch

import optuna
import pytest
from harness.record import Recorder, StudyInfo
from harness.search.bench import Bench
from harness.search.leases import Owner, Watch
from harness.search.patience import PatientStorage
from harness.search.runner import run_study
from optuna.storages import RDBStorage, _CachedStorage
from optuna.trial import BaseTrial, TrialState
from sqlalchemy import event
from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError

from analysis.load import load_study
from benchmarks.overhead import Nothing
from benchmarks.postgres import Server
from harness import transfer
from harness.errors import UserError
from harness.measure import Cpu
from harness.search import attempt, patience
from harness.search.storage import open_storage
from harness.spec import Study, TrialSpec

WORKERS, TRIALS = 16, 40


def space(trial: BaseTrial, strategy: str) -> TrialSpec:
    lr = trial.suggest_float("lr", 1e-4, 1e-1, log=True)
    return TrialSpec(
        target="digits",
        backbone="test_resnet",
        strategy=transfer.LinearProbe(),
        lr=lr,
        source="scratch",
        epochs=1,
    )


STUDY = Study(
    compare={"strategy": ["a", "b"]}, space=space, trials=TRIALS, repeats=2, name="toy", pruner="median"
)  # fmt: skip


def bench(url: str, tracking_uri: str) -> Bench:
    info = StudyInfo(
        name="toy", question="", command="", factors={}, baseline={}, trials=TRIALS, repeats=2,
        sampler="random", space_sha256="", leaks=(),
    )  # fmt: skip
    recorder = Recorder(tracking_uri, info)
    return Bench(open_storage(url), recorder, Cpu(), {}, watch=Watch(Owner.here("one session")))


def work(
    url: str, tracking_uri: str, begin: Any, said: Any
) -> None:  # pragma: no cover, in a process of its own
    """A worker: its own connections, made at the same moment as those of all others."""
    pauses: list[float] = []
    pause = time.sleep

    def count_pause(seconds: float) -> None:
        pauses.append(seconds)
        pause(seconds)

    try:
        begin.wait()
        mine = bench(url, tracking_uri)
        with patch.object(patience, "pause", count_pause), patch.object(attempt, "start", Nothing):
            for done in run_study(STUDY, mine):
                if done.result is not None:
                    said.put(done.result.outcome)
        said.put(len(pauses))
    except BaseException as error:
        said.put(f"{type(error).__name__}: {error} {error.__cause__!r}")


@pytest.mark.slow
def test_sixteen_workers_lose_nothing_when_the_server_restarts(
    server: Server, tracking_uri: str
) -> None:
    context = multiprocessing.get_context("fork")  # one import of torch for all
    begin, said = context.Barrier(WORKERS), context.Queue()
    workers = [
        context.Process(target=work, args=(server.url, tracking_uri, begin, said), daemon=True)
        for _ in range(WORKERS)
    ]
    for worker in workers:
        worker.start()
    heard: list[object] = []
    while sum(isinstance(word, int) for word in heard) < WORKERS:
        heard.append(said.get(timeout=300))
        assert heard[-1] == "complete" or isinstance(heard[-1], int), heard[-1]
        if len(heard) == TRIALS:  # about the middle
            server.stop()
            server.start()
    for worker in workers:
        worker.join(60)
    assert sum(word for word in heard if isinstance(word, int)) > 0, "nobody noticed the restart"
    slots = {(c, "tune", i) for c in "ab" for i in range(TRIALS)}
    slots |= {(c, "repeat", i) for c in "ab" for i in range(2)}
    assert complete_in_optuna(server.url) == dict.fromkeys(slots, 1)
    found = load_study("toy", tracking_uri).trials
    complete = found[found["outcome"] == "complete"]
    keys = zip(complete["cell"], complete["phase"], complete["index"].astype(int), strict=True)
    assert Counter(keys) == dict.fromkeys(slots, 1)
    assert set(found["outcome"]) <= {"complete", "killed"}


def complete_in_optuna(url: str) -> Counter[tuple[str, str, int]]:
    """How often each slot is complete; nothing may be left running."""
    storage, slots = patience.open_patiently(url), Counter[tuple[str, str, int]]()
    for found in storage.get_all_studies():
        name = found.study_name.split("/")
        phase = "tune" if len(name) == 2 else "repeat"
        for trial in storage.get_all_trials(found._study_id):
            assert trial.state.is_finished(), trial
            if trial.state == TrialState.COMPLETE:
                slots[name[1], phase, trial.user_attrs["index"]] += 1
    storage.engine.dispose()
    return slots


# --- a server that goes away, played on SQLite ------------------------------------------------------


GONE = OperationalError("", None, Exception("server closed the connection unexpectedly"))


@pytest.fixture
def storage(optuna_template: Path, tmp_path: Path) -> PatientStorage:
    shutil.copy(optuna_template, tmp_path / "optuna.db")
    return patience.open_patiently(f"sqlite:///{tmp_path}/optuna.db")


def open_trial(storage: PatientStorage) -> tuple[optuna.Study, optuna.Trial]:
    study = optuna.create_study(storage=storage, direction="maximize")
    return study, study.ask()


def lose(storage: PatientStorage, when: str, times: int = 1) -> None:
    """Break the connection `times` times, at that moment of the engine's life."""
    left = iter(range(times))

    @event.listens_for(storage.engine, when)
    def _break(*_: object) -> None:
        if next(left, None) is not None:
            raise GONE


def test_every_call_of_optunas_front_is_patient() -> None:
    asked = set(re.findall(r"self\._backend\.(\w+)\(", inspect.getsource(_CachedStorage)))
    unused = {n for n in asked if "heartbeat" in n} | {
        "delete_study", "_get_best_trial_id", "_get_stale_trial_ids",
    }  # fmt: skip
    assert asked - unused <= {*patience.CALLS, "set_trial_state_values"}


def test_calls_are_repeated_until_the_server_is_back(storage: PatientStorage) -> None:
    study, trial = open_trial(storage)
    lose(storage, "before_cursor_execute", times=3)
    trial.set_user_attr("answer", 42)
    assert study.trials[0].user_attrs == {"answer": 42}


def test_trial_whose_end_was_written_but_not_confirmed_has_ended_once(
    storage: PatientStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, trial = open_trial(storage)
    write = RDBStorage.set_trial_state_values
    left = iter([True])

    def write_and_lose(*arguments: Any, **options: Any) -> bool:
        done = write(*arguments, **options)
        if next(left, False):
            raise optuna.exceptions.StorageInternalError from GONE
        return done

    monkeypatch.setattr(RDBStorage, "set_trial_state_values", write_and_lose)
    study.tell(trial, 0.5)
    assert [(t.state, t.value) for t in study.trials] == [(TrialState.COMPLETE, 0.5)]


def test_trial_that_another_process_ended_while_the_server_was_away_is_lost(
    storage: PatientStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, trial = open_trial(storage)
    write = RDBStorage.set_trial_state_values
    left = iter([True])

    def lose_to_another(*arguments: Any, **options: Any) -> bool:
        if next(left, False):
            write(storage, trial._trial_id, TrialState.FAIL)
            raise optuna.exceptions.StorageInternalError from GONE
        return write(*arguments, **options)

    monkeypatch.setattr(RDBStorage, "set_trial_state_values", lose_to_another)
    with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
        study.tell(trial, 0.5)
    assert [t.state for t in study.trials] == [TrialState.FAIL]


def test_server_that_stays_away_is_named_and_not_waited_for_again(
    storage: PatientStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, trial = open_trial(storage)
    storage.url = "postgresql+psycopg://me:canary@host/db"
    lose(storage, "before_cursor_execute", times=2)
    monkeypatch.setattr(patience, "AWAY_SECONDS", 0.0)
    with pytest.raises(UserError, match=r"host/db is away: .*server closed") as raised:
        trial.set_user_attr("answer", 42)
    assert "canary" not in str(raised.value)
    monkeypatch.setattr(patience, "AWAY_SECONDS", 1e9)
    with pytest.raises(UserError, match="is away"):
        trial.set_user_attr("answer", 42)


def test_what_is_wrong_for_good_is_not_repeated(storage: PatientStorage) -> None:
    assert not patience.is_away(ProgrammingError("", None, Exception("no such column")))
    with pytest.raises(KeyError):
        storage.get_trial(12345)


def test_tables_that_others_are_making_are_waited_for() -> None:
    for words, kind in (
        (
            'duplicate key value violates unique constraint "pg_type_typname_nsp_index"',
            IntegrityError,
        ),
        ('relation "studies" already exists', ProgrammingError),
        ("FATAL:  the database system is starting up", OperationalError),
    ):
        assert patience.will_open(kind("", None, Exception(words)))
    assert not patience.will_open(OperationalError("", None, Exception("password failed")))
