"""A record on a PostgreSQL server that is restarted under the coordinator; and one that goes away, played on
SQLite."""

from __future__ import annotations

import gc
import shutil
import sqlite3
from pathlib import Path

import optuna
import pytest
from sqlalchemy import event
from sqlalchemy.exc import OperationalError, ProgrammingError

from benchmarks.postgres import Server
from harness.search.storage import open_storage, patiently
from harness.sync import sync_study
from tests.toy import Place

GONE = OperationalError("", None, Exception("server closed the connection unexpectedly"))


@pytest.mark.slow
# Of connections that Optuna's storages leave open: psycopg warns whenever one is collected.
@pytest.mark.filterwarnings("ignore:<psycopg.Connection object:ResourceWarning")
def test_study_loses_nothing_when_the_server_restarts(
    server: Server, tracking_uri: str, tmp_path: Path
) -> None:
    place = Place(tmp_path / "mlruns")
    place.url = server.url
    events = place.events()
    seen = [next(events)]
    for done in events:
        seen.append(done)
        server.stop()  # connections break, and come back in the middle of the next trial
        server.start()
    assert [d.trial.outcome for d in seen if d.trial] == ["complete"] * 6
    states = [t.state.name for t in place.optuna_trials()]
    assert states == ["COMPLETE"] * 6
    assert place.run_outcomes() == {"complete": 6}
    assert sync_study("toy", check=True, storage=server.url, tracking_uri=place.uri).left == ()
    assert [d.trial for d in place.run()] == [None] * 6
    gc.collect()


def lose(storage: optuna.storages.BaseStorage, times: int) -> list[float]:
    """Break the connection so often; returns where pauses are noted."""
    engine, left = storage._backend.engine, iter(range(times))  # type: ignore[attr-defined]

    @event.listens_for(engine, "before_cursor_execute")
    def _break(*_: object) -> None:
        if next(left, None) is not None:
            raise GONE

    return []


@pytest.fixture
def storage(optuna_template: Path, tmp_path: Path) -> optuna.storages.BaseStorage:
    shutil.copy(optuna_template, tmp_path / "optuna.db")
    return open_storage(f"sqlite:///{tmp_path}/optuna.db")


def test_call_is_repeated_until_the_server_is_back(storage: optuna.storages.BaseStorage) -> None:
    study = optuna.create_study(storage=storage)
    trial = study.ask()
    pauses = lose(storage, times=3)
    patiently(lambda: trial.set_user_attr("answer", 42), pauses.append)
    assert pauses == [0.5, 1.0, 2.0]
    assert study.trials[0].user_attrs == {"answer": 42}


def test_server_that_stays_away_is_given_up_after_some_minutes(
    storage: optuna.storages.BaseStorage,
) -> None:
    trial = optuna.create_study(storage=storage).ask()
    pauses = lose(storage, times=10**6)
    with pytest.raises(optuna.exceptions.StorageInternalError) as raised:
        patiently(lambda: trial.set_user_attr("answer", 42), pauses.append)
    assert raised.value.__cause__ is GONE
    assert 240 <= sum(pauses) < 260


@pytest.mark.parametrize(
    "error",
    [
        ProgrammingError("", None, Exception("no such column")),
        OperationalError("", None, sqlite3.OperationalError("database is locked")),
    ],
)
def test_what_is_wrong_for_good_is_not_repeated(error: Exception) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(type(error)):
        patiently(fail, lambda seconds: pytest.fail("it waited"))
