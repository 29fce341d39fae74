"""How far a study is, from hand-made records; what a person sees of it, on a terminal and in a pipe."""

from __future__ import annotations

import dataclasses
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from harness import status
from harness.progress import Detail, duration, show
from harness.record import Recorder, StudyInfo
from harness.search.cells import Slot
from harness.search.leases import Owner
from harness.search.overview import Plan, overview
from harness.search.runner import TrialDone
from harness.search.storage import open_storage
from harness.spec import Study, TrialResult, TrialSpec

START = datetime(2026, 3, 1, 12, 0, 0)
PLAN = Plan("toy", ("full", "probe"), trials=3, repeats=2)
DEAD = dataclasses.replace(Owner.here(), pid=2**22, started="1").name


def space(trial: optuna.trial.BaseTrial, strategy: str) -> TrialSpec:
    raise AssertionError("nothing is drawn to look at a study")


STUDY = Study({"strategy": ["full", "probe"]}, space, trials=3, repeats=2, name="toy")
INFO = StudyInfo(
    "toy", "Which?", "run it", {"strategy": ["full", "probe"]}, {}, 3, 2, "random", (), ""
)


def add(
    storage: optuna.storages.BaseStorage,
    cell: str,
    index: int,
    outcome: str = "complete",
    accuracy: float = 0.5,
    seconds: float = 60,
    **metrics: float,
) -> None:
    """A trial of a cell that took some seconds; "running" and "left" (by a dead process) have no end."""
    found = optuna.create_study(
        study_name=f"toy/{cell}", storage=storage, direction="maximize", load_if_exists=True
    )
    states = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED}
    state = states.get(outcome, TrialState.FAIL)
    attrs: dict[str, Any] = {"index": index, "metrics": {"val_loss": 1.0, **metrics}}
    if outcome in ("running", "left"):
        state = TrialState.RUNNING
        attrs = {"index": index, "owner": "node7/ab12 31 9" if outcome == "running" else DEAD}
    else:
        attrs["outcome"] = outcome
    trial = FrozenTrial(
        number=-1, trial_id=-1, state=state,
        value=accuracy if state == TrialState.COMPLETE else None, values=None,
        datetime_start=START,
        datetime_complete=START + timedelta(seconds=seconds) if state.is_finished() else None,
        params={}, distributions={}, user_attrs=attrs, system_attrs={}, intermediate_values={},
    )  # fmt: skip
    found.add_trial(trial)


def fill(storage: optuna.storages.BaseStorage) -> None:
    """Cell full is tuned and repeats its trial 2; cell probe crashed once, was tried again, and runs."""
    add(storage, "full", 0, accuracy=0.6, seconds=10, train_seconds=4, peak_process_rss_mib=900)
    add(storage, "full", 1, "diverged", seconds=2, peak_process_rss_mib=950)
    add(storage, "full", 2, accuracy=0.8, seconds=20, train_seconds=8, peak_process_rss_mib=910)
    add(storage, "full/repeats of 2", 0, seconds=30, train_seconds=9)
    add(storage, "full/repeats of 0", 0, seconds=99, train_seconds=99)  # of an earlier choice
    add(storage, "probe", 0, "crashed", seconds=1)
    add(storage, "probe", 0, "yielded", seconds=1)
    add(storage, "probe", 0, accuracy=0.7, seconds=4, train_seconds=1)
    add(storage, "probe", 1, "running")
    add(storage, "probe", 2, "left")
    add(storage, "probe", 7, accuracy=0.9, seconds=4, train_seconds=1)  # of a longer plan


@pytest.fixture
def memory() -> optuna.storages.BaseStorage:
    made = optuna.storages.InMemoryStorage()
    fill(made)
    return made


def test_cells_count_what_lasts_and_show_the_best_so_far(
    memory: optuna.storages.BaseStorage,
) -> None:
    full, probe = overview(PLAN, memory).cells
    assert (full.trials, full.repeats, full.best) == (3, 1, 0.8)
    assert (full.seconds, full.peak_mib) == (8, 950)  # median of 4, 8, 9
    assert (probe.trials, probe.repeats, probe.best, probe.peak_mib) == (1, 0, 0.7, None)


def test_outcomes_are_of_all_attempts_but_not_of_earlier_choices_nor_of_yielded_slots(
    memory: optuna.storages.BaseStorage,
) -> None:
    assert overview(PLAN, memory).outcomes == {"complete": 5, "diverged": 1, "crashed": 1}


def test_who_works_on_what_and_whose_process_is_gone(memory: optuna.storages.BaseStorage) -> None:
    here, left = overview(PLAN, memory).working
    assert (here.slot, here.owner, here.gone) == ("probe, trial 1", "node7/ab12 31 9", False)
    assert here.since == START
    assert (left.slot, left.gone) == ("probe, trial 2", True)


def test_time_left_is_what_each_part_took_shared_by_those_at_work(
    memory: optuna.storages.BaseStorage,
) -> None:
    # full: one repeat at 30; probe: two trials at 4, two repeats like its trials.
    assert overview(PLAN, memory).seconds_left == 30 + 2 * 4 + 2 * 4
    assert overview(PLAN, memory, idle=1).seconds_left == (30 + 2 * 4 + 2 * 4) / 2


def test_nothing_is_known_of_a_study_that_has_not_begun() -> None:
    found = overview(PLAN, optuna.storages.InMemoryStorage())
    assert (found.done, found.outcomes, found.working, found.seconds_left) == (0, {}, (), None)


def test_cell_without_a_complete_trial_has_no_repeats_to_wait_for() -> None:
    storage = optuna.storages.InMemoryStorage()
    for index in range(3):
        add(storage, "full", index, "diverged")
        add(storage, "probe", index, "diverged")
    assert overview(PLAN, storage).seconds_left == 0


# --- what is said ----------------------------------------------------------------------------------


def events() -> Iterator[TrialDone]:
    metrics = {"val_accuracy": 0.86, "train_seconds": 1.52}
    cell = {"strategy": "full"}
    yield TrialDone(Slot(cell, "tune", 0), resumed=True)
    yield TrialDone(Slot(cell, "tune", 1), False, TrialResult("complete", metrics), (0.4, 0.86))
    yield TrialDone(
        Slot(cell, "tune", 2), False, TrialResult("crashed", {}, "KeyError: [x]"), (0.3,)
    )


PIPED = {
    "quiet": "1 of 10 were finished before and not run again\n",
    "normal": "[  2/10] full, trial 1: validation 86.0%, trained 1.5 s\n"
    "[  3/10] full, trial 2: CRASHED KeyError: [x]\n"
    "1 of 10 were finished before and not run again\n",
    "verbose": "[  2/10] full, trial 1: validation 86.0%, trained 1.5 s\n"
    "         validation after each epoch: 40.0%, 86.0%\n"
    "[  3/10] full, trial 2: CRASHED KeyError: [x]\n"
    "         validation after each epoch: 30.0%\n"
    "1 of 10 were finished before and not run again\n",
}


@pytest.mark.parametrize("detail", ["quiet", "normal", "verbose"])
def test_lines_in_a_pipe(
    detail: Detail, memory: optuna.storages.BaseStorage, capsys: pytest.CaptureFixture[str]
) -> None:
    show(STUDY, memory, events(), detail)
    assert capsys.readouterr().out == PIPED[detail]


def test_terminal_shows_the_table_and_above_it_what_failed(
    memory: optuna.storages.BaseStorage,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes any output for a terminal
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    show(STUDY, memory, events())
    out = capsys.readouterr().out
    assert "trial 2: CRASHED" in out
    assert "trial 1:" not in out
    last = out[out.rindex("outcomes:") :]
    assert "outcomes: 5 complete, 1 crashed, 1 diverged" in last
    assert [line.split()[:4] for line in last.splitlines()[2:4]] == [
        ["full", "3/3", "1/2", "80.0%"],
        ["probe", "1/3", "0/2", "70.0%"],
    ]


@pytest.mark.parametrize(
    ("seconds", "words"), [(4.4, "4 s"), (89, "89 s"), (600, "10 min"), (9000, "2:30 h")]
)
def test_durations_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words


# --- harness.status --------------------------------------------------------------------------------


@pytest.fixture
def stores(tracking_uri: str, optuna_template: Path) -> Path:
    """The folder of both databases of a study that is half done."""
    folder = Path(tracking_uri.removeprefix("sqlite:///")).parent
    shutil.copy(optuna_template, folder / "optuna.db")
    storage = optuna.storages.RDBStorage(f"sqlite:///{folder}/optuna.db")
    fill(storage)
    storage.engine.dispose()
    Recorder(tracking_uri, INFO)
    return folder


def contents(folder: Path) -> dict[str, list[str]]:
    found = {}
    for path in sorted(folder.glob("*.db")):
        with closing(sqlite3.connect(path)) as connection:
            found[path.name] = list(connection.iterdump())
    return found


def test_status_tells_from_another_terminal_and_writes_nothing(
    stores: Path, tracking_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(stores)
    assert status.main(["--study", "toy", "--tracking-uri", tracking_uri]) == 0
    out = capsys.readouterr().out
    assert "5 of 10, about 46 s left" in out
    assert "  probe, trial 1: node7, process 31 since 2026-03-01 12:00:00\n" in out
    assert "which is no more" in out
    assert contents(stores) == before


def test_status_of_an_unknown_study_names_those_there_are(
    stores: Path, tracking_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status.main(["--study", "toi", "--tracking-uri", tracking_uri]) == 2
    assert "no study 'toi'" in (said := capsys.readouterr().err)
    assert said.rstrip().endswith("there are: toy")


@pytest.mark.parametrize("kind", ["sqlite:///", "journal:"])
@pytest.mark.usefixtures("stores")
def test_status_makes_no_storage(
    kind: str, tracking_uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "absent" / "optuna"
    arguments = ["--study", "toy", "--tracking-uri", tracking_uri, "--storage", f"{kind}{path}"]
    assert status.main(arguments) == 2
    assert f"there is no file {path}" in capsys.readouterr().err
    assert not path.parent.exists()


def test_optuna_dashboard_lists_the_cells_with_their_trials(stores: Path) -> None:
    dashboard = pytest.importorskip("optuna_dashboard", reason="extra dev")
    from werkzeug.test import Client

    storage = open_storage(f"sqlite:///{stores}/optuna.db")
    client = Client(dashboard.wsgi(storage))
    listed = client.get("/api/studies").get_json()["study_summaries"]
    names = {s["study_name"]: s["study_id"] for s in listed}
    assert names.keys() == {
        "toy/full",
        "toy/full/repeats of 2",
        "toy/full/repeats of 0",
        "toy/probe",
    }
    detail = client.get(f"/api/studies/{names['toy/full']}?after=0").get_json()
    attrs = [{a["key"]: a["value"] for a in t["user_attrs"]} for t in detail["trials"]]
    assert [a["outcome"].strip('"') for a in attrs] == ["complete", "diverged", "complete"]
