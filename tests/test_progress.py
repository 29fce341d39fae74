"""How far a study is, from hand-made records; what a person sees of it, on a terminal and in a pipe."""

from __future__ import annotations

import dataclasses
import itertools
import re
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from harness import progress, status
from harness.progress import Detail, duration, show
from harness.record import Recorder, StudyInfo
from harness.results import TrialResult
from harness.search.cells import Slot
from harness.search.leases import Owner
from harness.search.overview import Overview, Plan, overview
from harness.search.runner import StudyStopped, TrialDone
from harness.search.storage import open_storage
from harness.spec import Study, TrialSpec

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
    epochs: tuple[float, ...] = (),
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
        attrs |= {"spec": {"epochs": 10}} if epochs else {}
    else:
        attrs["outcome"] = outcome
    trial = FrozenTrial(
        number=-1, trial_id=-1, state=state,
        value=accuracy if state == TrialState.COMPLETE else None, values=None,
        datetime_start=START,
        datetime_complete=START + timedelta(seconds=seconds) if state.is_finished() else None,
        params={}, distributions={}, user_attrs=attrs, system_attrs={},
        intermediate_values=dict(enumerate(epochs, 1)),
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
    add(storage, "probe", 1, "running", epochs=(0.3, 0.25, 0.61))
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
    assert (here.epochs_done, here.epochs, here.accuracy) == (3, 10, 0.61)
    assert (left.slot, left.gone) == ("probe, trial 2", True)
    assert (left.epochs_done, left.epochs, left.accuracy) == (0, None, None)


def test_time_left_is_what_each_part_took_shared_by_those_at_work(
    memory: optuna.storages.BaseStorage,
) -> None:
    # full: one repeat at 30; probe: two trials at 4, two repeats like its trials.
    assert overview(PLAN, memory).seconds_left == 30 + 2 * 4 + 2 * 4


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


def events(storage: optuna.storages.BaseStorage) -> Iterator[TrialDone]:
    """What one of two processes does, and, before its second trial, the other one."""
    metrics = {"val_accuracy": 0.86, "train_seconds": 1.52}
    cell = {"strategy": "probe"}
    for index in (0, 1, 2):
        yield TrialDone(Slot({"strategy": "full"}, "tune", index), resumed=True)
    yield TrialDone(Slot(cell, "tune", 0), resumed=True)
    yield TrialDone(Slot({"strategy": "full"}, "repeat", 0), resumed=True)
    add(storage, "probe", 1)
    yield TrialDone(Slot(cell, "tune", 1), False, TrialResult("complete", metrics), (0.4, 0.86))
    add(storage, "full/repeats of 2", 1)
    yield TrialDone(Slot({"strategy": "full"}, "repeat", 1), resumed=True)
    add(storage, "probe", 2, "diverged")
    yield TrialDone(Slot(cell, "tune", 2), False, TrialResult("diverged", {}, "loss [nan]"), (0.3,))


PIPED = {
    "quiet": "5 of 10 were finished before and not run again\n"
    "1 of 10 were run by other processes meanwhile\n",
    "normal": "[  6/10] probe, trial 1: validation 86.0%, trained 1.5 s\n"
    "[  8/10] probe, trial 2: DIVERGED loss [nan]\n"
    "5 of 10 were finished before and not run again\n"
    "1 of 10 were run by other processes meanwhile\n",
    "verbose": "[  6/10] probe, trial 1: validation 86.0%, trained 1.5 s\n"
    "         validation after each epoch: 40.0%, 86.0%\n"
    "[  8/10] probe, trial 2: DIVERGED loss [nan]\n"
    "         validation after each epoch: 30.0%\n"
    "5 of 10 were finished before and not run again\n"
    "1 of 10 were run by other processes meanwhile\n",
}


@pytest.mark.parametrize("detail", ["quiet", "normal", "verbose"])
def test_lines_in_a_pipe_count_the_whole_study(
    detail: Detail, memory: optuna.storages.BaseStorage, capsys: pytest.CaptureFixture[str]
) -> None:
    show(STUDY, memory, events(memory), detail, clock=lambda: 0.0)  # time to read at each line
    assert capsys.readouterr().out == PIPED[detail]


def test_lines_count_on_where_reading_at_each_would_cost_too_much(
    memory: optuna.storages.BaseStorage, capsys: pytest.CaptureFixture[str]
) -> None:
    ticks = itertools.count()  # each reading takes a second, and so do the pauses between
    show(STUDY, memory, events(memory), clock=lambda: float(next(ticks)))
    assert [x[:8] for x in capsys.readouterr().out.splitlines()[:2]] == ["[  6/10]", "[  7/10]"]


def test_trials_that_crashed_are_named_in_the_end_with_what_to_do(
    memory: optuna.storages.BaseStorage, capsys: pytest.CaptureFixture[str]
) -> None:
    slot = Slot({"strategy": "probe"}, "tune", 1)
    crashed = TrialDone(slot, False, TrialResult("crashed", {}, "KeyError: 'x'"))
    show(STUDY, memory, iter([crashed]), "quiet")
    said = "1 ended as crashed or audit_failed; the same command tries them again\n"
    assert capsys.readouterr().out == said


class Away(optuna.storages.InMemoryStorage):
    """A storage that does not answer for a while."""

    away = False

    def get_all_studies(self) -> list[Any]:
        if self.away:
            raise optuna.exceptions.StorageInternalError("away")
        return super().get_all_studies()


def test_storage_that_is_away_for_a_while_does_not_spoil_the_view(
    capsys: pytest.CaptureFixture[str],
) -> None:
    storage = Away()
    fill(storage)

    def goes_away() -> Iterator[TrialDone]:
        for done in events(storage):
            storage.away = True
            yield done

    show(STUDY, storage, goes_away())
    assert [x[:8] for x in capsys.readouterr().out.splitlines()[:2]] == ["[  6/10]", "[  7/10]"]


def test_storage_that_is_away_from_the_start_ends_the_command_in_words() -> None:
    storage = Away()
    storage.away = True
    with pytest.raises(StudyStopped, match="the search storage failed: away"):
        show(STUDY, storage, iter(()))


def test_command_that_finds_nothing_to_do_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    storage = optuna.storages.InMemoryStorage()
    for index in range(3):
        add(storage, "full", index, "diverged")
        add(storage, "probe", index, "diverged")
    plan = Study({"strategy": ["full", "probe"]}, space, trials=3, repeats=0, name="toy")
    slots = [Slot(cell, "tune", index) for cell in plan.cells() for index in range(3)]
    show(plan, storage, (TrialDone(slot, resumed=True) for slot in slots))
    said = "6 of 6 were finished before and not run again\nnothing was left to do\n"
    assert capsys.readouterr().out == said


@pytest.fixture
def on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes any output for a terminal
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")


@pytest.mark.usefixtures("on_a_terminal")
def test_terminal_shows_the_table_and_above_it_what_failed(
    memory: optuna.storages.BaseStorage, capsys: pytest.CaptureFixture[str]
) -> None:
    show(STUDY, memory, events(memory))
    out = capsys.readouterr().out
    assert "trial 2: DIVERGED" in out
    assert "trial 1: validation" not in out
    last = out[out.rindex("outcomes:") :]
    assert "outcomes: 7 complete, 2 diverged, 1 crashed" in last
    assert [line.split()[:4] for line in last.splitlines()[2:4]] == [
        ["full", "3/3", "2/2", "80.0%"],
        ["probe", "3/3", "0/2", "70.0%"],
    ]


@pytest.mark.usefixtures("on_a_terminal")
def test_epochs_of_a_long_trial_are_seen_while_it_runs(
    memory: optuna.storages.BaseStorage,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(progress, "EVERY_SECONDS", 0.01)
    seen = threading.Event()

    def drawn(found: Overview, over: bool = False) -> None:
        if [(w.epochs_done, w.epochs) for w in found.working if not w.gone] == [(4, 10)]:
            seen.set()

    def long_trial() -> Iterator[TrialDone]:
        found = optuna.load_study(study_name="toy/probe", storage=memory)
        (running,) = [t for t in found.trials if t.user_attrs.get("owner") == "node7/ab12 31 9"]
        memory.set_trial_intermediate_value(running._trial_id, 4, 0.7)
        assert seen.wait(60), "the table stands still"
        yield TrialDone(Slot({"strategy": "full"}, "tune", 0), resumed=True)

    monkeypatch.setattr(progress._OnTerminal, "draw", lambda self, found, over=False: drawn(found))
    show(STUDY, memory, long_trial())
    capsys.readouterr()


def test_notebook_has_one_output_that_changes_and_lines_only_of_what_failed(
    memory: optuna.storages.BaseStorage,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shown: list[str] = []

    class Handle:
        def update(self, data: dict[str, str], raw: bool) -> None:
            shown.append(data["text/html"])

    def display(data: dict[str, str], raw: bool, display_id: bool) -> Handle:
        assert not shown, "a second output"
        return Handle()

    monkeypatch.setattr("IPython.display.display", display)
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    show(STUDY, memory, events(memory), clock=lambda: 0.0)
    first, last = shown[0], shown[-1]
    assert "now probe, trial 1: 3 of 10 epochs, validation 61.0%</pre>" in first
    assert first.count("\n") == 5
    assert last.count("\n") == 1
    assert "8 of 10" in last
    assert last.endswith("outcomes: 7 complete, 2 diverged, 1 crashed</pre>")
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "[  8/10] probe, trial 2: DIVERGED loss [nan]"
    assert len(out) == 3


def test_at_work_names_the_epoch_of_the_living(memory: optuna.storages.BaseStorage) -> None:
    (line,) = progress.at_work(overview(PLAN, memory))
    assert line.plain == "now probe, trial 1: 3 of 10 epochs, validation 61.0%"


def test_overview_is_a_table_in_a_notebook(memory: optuna.storages.BaseStorage) -> None:
    page = overview(PLAN, memory)._repr_html_()
    assert "<caption>study toy: 5 of 10, 2 at work</caption>" in page
    assert re.findall(r"<td[^>]*>([^<]*)</td>", page)[:4] == ["full", "3/3", "1/2", "80.0%"]


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
    assert (
        "  probe, trial 1: 3 of 10 epochs, validation 61.0%; node7, process 31 since "
        "2026-03-01 12:00:00\n" in out
    )
    assert "which is no more" in out
    assert contents(stores) == before


def test_status_of_an_unknown_study_names_those_there_are(
    stores: Path, tracking_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status.main(["--study", "toi", "--tracking-uri", tracking_uri]) == 2
    assert "no study 'toi'" in (said := capsys.readouterr().err)
    assert said.rstrip().endswith("there are: toy")


def test_status_of_a_study_that_has_only_begun_says_that_it_has_no_trial(
    tracking_uri: str, optuna_template: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--study", "toy", "--tracking-uri", tracking_uri]
    assert status.main(["--study", "toy", "--tracking-uri", f"sqlite:///{tmp_path}/gone.db"]) == 2
    assert "gone.db, so no study is recorded there: name" in capsys.readouterr().err
    assert status.main(options) == 2
    assert capsys.readouterr().err.endswith("; there are: none yet\n")
    Recorder(tracking_uri, INFO)
    assert status.main(options) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: study toy has no trial yet in ")
    assert said.endswith(
        "optuna.db, which is absent; if its search has another place, name it by --storage\n"
    )
    shutil.copy(optuna_template, tmp_path / "mlruns" / "optuna.db")
    assert status.main(options) == 0
    assert capsys.readouterr().out.endswith("\n\nit has no trial yet\n")


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
