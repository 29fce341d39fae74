"""How far a study is, from hand-made records; what a person sees of it, on a terminal and in a pipe."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from harness import status
from harness.core.records import Slot, TrialRecord
from harness.core.results import EpochResult, TrialResult
from harness.core.selection import METRICS
from harness.search import progress
from harness.search.cell import CellSearch
from harness.search.coordinator import SlotDone
from harness.search.lock import sole_runner
from harness.search.overview import Overview, overview
from harness.search.progress import Detail, duration, show
from harness.search.record import Record
from harness.search.storage import open_storage
from tests.lab import Lab, World, info_of, make_study

START = datetime(2026, 3, 1, 12, 0, 0)
INFO = info_of(make_study(compare={"strategy": ["full", "probe"]}, trials=3, repeats=2))


def trial(
    cell: str,
    index: int,
    outcome: str = "complete",
    accuracy: float = 0.5,
    seconds: float = 60,
    chosen: int | None = None,
    epochs: tuple[float, ...] = (),
    **metrics: float,
) -> TrialRecord:
    """A trial of a cell that took some seconds; one without an outcome has no end."""
    return TrialRecord(
        key=f"toy/{cell}#{index}",
        slot=Slot({"strategy": cell}, "tune" if chosen is None else "repeat", index),
        number=index,
        attempt=1,
        chosen=chosen,
        spec={"epochs": 10} if epochs else {},
        outcome=outcome,
        metrics={"val_loss": 1.0, "val_accuracy": accuracy, **metrics} if outcome else {},
        epochs=tuple(EpochResult.of_merit(e, "accuracy", a) for e, a in enumerate(epochs)),
        started=START,
        ended=START + timedelta(seconds=seconds) if outcome else None,
    )


def half_done() -> list[TrialRecord]:
    """Cell full is tuned and repeats its trial 2; cell probe crashed once, was tried again, and runs."""
    return [
        trial("full", 0, accuracy=0.6, seconds=10, train_seconds=4, peak_process_rss_mib=900),
        trial("full", 1, "diverged", seconds=2, peak_process_rss_mib=950),
        trial("full", 2, accuracy=0.8, seconds=20, train_seconds=8, peak_process_rss_mib=910),
        trial("full", 0, seconds=30, train_seconds=9, chosen=2),
        trial("full", 0, seconds=99, train_seconds=99, chosen=0),  # of an earlier choice
        trial("probe", 0, "crashed", seconds=1),
        trial("probe", 0, accuracy=0.7, seconds=4, train_seconds=1),
        trial("probe", 1, "", epochs=(0.3, 0.25, 0.61)),
        trial("probe", 2, ""),
        trial("probe", 7, accuracy=0.9, seconds=4, train_seconds=1),  # of a longer plan
    ]


@pytest.fixture
def known() -> list[TrialRecord]:
    return half_done()


def test_cells_count_what_lasts_and_show_the_best_so_far(known: list[TrialRecord]) -> None:
    full, probe = overview(INFO, known).cells
    assert (full.trials, full.repeats, full.best) == (3, 1, 0.8)
    assert (full.seconds, full.peak_mib) == (8, 950)  # median of 4, 8, 9
    assert (probe.trials, probe.repeats, probe.best, probe.peak_mib) == (1, 0, 0.7, None)


def test_outcomes_are_of_all_attempts_but_not_of_earlier_choices(known: list[TrialRecord]) -> None:
    assert overview(INFO, known).outcomes == {"complete": 5, "diverged": 1, "crashed": 1}


def test_trials_at_work_say_how_far_they_are(known: list[TrialRecord]) -> None:
    working = overview(INFO, known).working
    assert [str(t.slot) for t in working] == ["probe, trial 1", "probe, trial 2"]
    said = [progress.describe_epochs(t, METRICS["accuracy"]) for t in working]
    assert said == ["3 of 10 epochs, validation 61.0%", "0 epochs"]


def test_time_left_is_what_each_part_took_shared_by_those_at_work(
    known: list[TrialRecord],
) -> None:
    # full: one repeat at 30; probe: two trials at 4, two repeats like its trials.
    assert overview(INFO, known).seconds_left == (30 + 2 * 4 + 2 * 4) / 2


def test_nothing_is_known_of_a_study_that_has_not_begun() -> None:
    found = overview(INFO, [])
    assert (found.done, found.outcomes, found.working, found.seconds_left) == (0, {}, (), None)


def diverged() -> list[TrialRecord]:
    return [trial(cell, index, "diverged") for cell in ("full", "probe") for index in range(3)]


def test_cell_without_a_complete_trial_has_no_repeats_to_wait_for() -> None:
    assert overview(INFO, diverged()).seconds_left == 0


# --- what is said ----------------------------------------------------------------------------------


def reads(known: list[TrialRecord]) -> Callable[[], Overview]:
    return lambda: overview(INFO, known)


def events(known: list[TrialRecord]) -> Iterator[SlotDone]:
    """What one run of the command does, which finds five slots done."""
    for index in (0, 1, 2):
        yield SlotDone(Slot({"strategy": "full"}, "tune", index))
    yield SlotDone(Slot({"strategy": "probe"}, "tune", 0))
    yield SlotDone(Slot({"strategy": "full"}, "repeat", 0))
    made = [
        trial("probe", 1, accuracy=0.86, train_seconds=1.52, epochs=(0.4, 0.86)),
        trial("full", 1, test_accuracy=0.5, train_seconds=2.0, chosen=2),
        trial("probe", 2, "diverged", epochs=(0.3,)).but(reason="loss [nan]"),
    ]
    for done in made:
        known.append(done)
        yield SlotDone(done.slot, done)


LINES = (
    "[  6/10] probe, trial 1: validation 86.0%, trained 1.5 s\n",
    "         validation after each epoch: 40.0%, 86.0%\n",
    "[  7/10] full, repeat 1: validation 50.0%, test 50.0%, trained 2.0 s\n",
    "[  8/10] probe, trial 2: DIVERGED loss [nan]\n",
    "         validation after each epoch: 30.0%\n",
)
LAST = "5 of 10 were finished before and not run again\n"
PIPED = {
    "quiet": LAST,
    "normal": "".join(line for line in LINES if line.startswith("[")) + LAST,
    "verbose": "".join(LINES) + LAST,
}


@pytest.mark.parametrize("detail", ["quiet", "normal", "verbose"])
def test_lines_in_a_pipe_count_the_whole_study(
    detail: Detail, known: list[TrialRecord], capsys: pytest.CaptureFixture[str]
) -> None:
    show(reads(known), events(known), detail)
    assert capsys.readouterr().out == PIPED[detail]


def test_trials_that_crashed_are_named_in_the_end_with_what_to_do(
    known: list[TrialRecord], capsys: pytest.CaptureFixture[str]
) -> None:
    crashed = trial("probe", 1, "crashed")
    for_good = trial("probe", 2, "crashed").but(lasting=True)
    show(reads(known), (SlotDone(t.slot, t) for t in (crashed, for_good)), "quiet")
    said = "1 ended as crashed or audit_failed; the same command tries them again\n"
    assert capsys.readouterr().out == said


def test_command_that_finds_nothing_to_do_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    known, info = diverged(), replace(INFO, repeats=0)
    show(lambda: overview(info, known), (SlotDone(t.slot) for t in known))
    said = "6 of 6 were finished before and not run again\nnothing was left to do\n"
    assert capsys.readouterr().out == said


@pytest.mark.parametrize(
    "shown",
    [
        lambda read, done: show(read, iter([SlotDone(done.slot, done)])),
        lambda read, done: status.show(read()),
    ],
    ids=["lines", "status"],
)
def test_names_are_shown_as_they_are_written(
    shown: Callable[[Callable[[], Overview], TrialRecord], None], capsys: pytest.CaptureFixture[str]
) -> None:
    name = "[/x]:cat:[bold]"
    info = info_of(make_study(compare={"strategy": [name]}))
    done = trial(name, 0, train_seconds=4)
    shown(lambda: overview(info, [done]), done)
    assert name in capsys.readouterr().out


@pytest.fixture
def on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes any output for a terminal
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")


@pytest.mark.usefixtures("on_a_terminal")
def test_terminal_shows_the_table_and_above_it_what_failed(
    known: list[TrialRecord], capsys: pytest.CaptureFixture[str]
) -> None:
    show(reads(known), events(known))
    out = capsys.readouterr().out
    assert "trial 2: DIVERGED" in out
    assert "trial 1: validation" not in out
    last = out[out.rindex("outcomes:") :]
    assert "outcomes: 7 complete, 2 diverged, 1 crashed" in last
    assert [line.split()[:4] for line in last.splitlines()[2:4]] == [
        ["full", "3/3", "2/2", "80.0%"],
        ["probe", "3/3", "0/2", "86.0%"],
    ]


@pytest.mark.usefixtures("on_a_terminal")
def test_epochs_of_a_long_trial_are_seen_while_it_runs(
    world: World, lab: Lab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "EVERY_SECONDS", 0.01)
    seen = threading.Event()

    def read() -> Overview:
        found = overview(info_of(study), coordinator.trials())
        if [len(t.epochs) for t in found.working] == [1]:
            seen.set()
        return found

    def second_epoch_waits(_: object, epoch: int) -> None:
        assert epoch == 0 or seen.wait(60), "the table stands still"

    world.disturb = second_epoch_waits
    study = make_study(trials=1, repeats=0)
    lab.record().describe(info_of(study))
    coordinator = lab.coordinator(study)
    show(read, coordinator.run())
    assert "1 of 2 epochs" in capsys.readouterr().out


def test_notebook_has_one_output_that_changes_and_lines_only_of_what_failed(
    known: list[TrialRecord],
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
    show(reads(known), events(known))
    first, last = shown[0], shown[-1]
    assert "now probe, trial 1: 3 of 10 epochs, validation 61.0%\n" in first
    assert first.count("\n") == 6
    assert last.count("\n") == 1
    assert "8 of 10" in last
    assert last.endswith("outcomes: 7 complete, 2 diverged, 1 crashed</pre>")
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "[  8/10] probe, trial 2: DIVERGED loss [nan]"
    assert len(out) == 2


def test_overview_is_a_table_in_a_notebook(known: list[TrialRecord]) -> None:
    page = overview(INFO, known)._repr_html_()
    assert "<caption>study toy: 5 of 10, 2 running</caption>" in page
    assert re.findall(r"<td[^>]*>([^<]*)</td>", page)[:4] == ["full", "3/3", "1/2", "80.0%"]


@pytest.mark.parametrize(
    ("seconds", "words"), [(4.4, "4 s"), (89, "89 s"), (600, "10 min"), (9000, "2:30 h")]
)
def test_durations_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words


# --- harness.status --------------------------------------------------------------------------------


@pytest.fixture
def stores(optuna_template: Path, tmp_path: Path) -> Path:
    """The folder of the record of a study that is half done: three trials, of which one runs."""
    shutil.copy(optuna_template, tmp_path / "optuna.db")
    study = make_study()
    record = Record(open_storage(f"sqlite:///{tmp_path}/optuna.db"), tmp_path)
    record.describe(info_of(study))
    search = CellSearch(record, study, study.cells()[0])
    complete = TrialResult("complete", {"val_accuracy": 0.8, "val_loss": 0.5})
    for index, end in enumerate((complete, None, TrialResult("diverged"))):
        running = search.begin(index, inline=False)
        search.report(running, EpochResult.of_merit(0, "accuracy", 0.61))
        if end is not None:
            search.finish(running, end)
    return tmp_path


def dump(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        return list(connection.iterdump())


def ask(folder: Path, capsys: pytest.CaptureFixture[str], study: str = "toy") -> tuple[int, str]:
    """Exit code of the command, and what it says."""
    code = status.main(["--study", study, "--storage", f"sqlite:///{folder}/optuna.db"])
    out, err = capsys.readouterr()
    return code, out + err


def test_status_tells_from_another_terminal_and_writes_nothing(
    stores: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = dump(stores / "optuna.db")
    code, said = ask(stores, capsys)
    assert code == 0
    assert "2 of 10, about" in said
    assert "outcomes: 1 complete, 1 diverged" in said
    assert re.search(
        r"^  probe, trial 1: 1 of 2 epochs, validation 61.0%, since \d{4}-", said, re.MULTILINE
    )
    assert "\nno process runs it now\n" in said
    with sole_runner(stores, "toy"):
        said = ask(stores, capsys)[1]
        assert re.search(rf"\nrunning: process {os.getpid()} on \S+, since \d{{4}}-", said)
        shutil.copy(stores / ".toy.running", stores / "kept")
    gone = (stores / "kept").read_text().replace(str(os.getpid()), str(2**22))
    (stores / ".toy.running").write_text(gone)
    said = ask(stores, capsys)[1]
    assert f"\nit was left by process {2**22} on " in said
    assert "which died: run the same command again to resume it" in said
    assert dump(stores / "optuna.db") == before


def test_status_of_an_unknown_study_names_those_there_are(
    stores: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = "error: the record has no study 'toi'; it has: toy\n"
    assert ask(stores, capsys, "toi") == (2, said)


def test_status_of_a_study_that_has_only_begun_says_that_it_has_no_trial(
    optuna_template: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = ask(tmp_path / "absent", capsys)
    assert (code, "there is no file" in said) == (2, True)
    assert not (tmp_path / "absent").exists(), "it makes no storage"
    shutil.copy(optuna_template, tmp_path / "optuna.db")
    said = "error: the record has no study 'toy'; it has: none yet\n"
    assert ask(tmp_path, capsys) == (2, said)
    study = make_study()
    record = Record(open_storage(f"sqlite:///{tmp_path}/optuna.db"), tmp_path)
    record.describe(info_of(study))
    code, said = ask(tmp_path, capsys)
    assert (code, said.endswith("\n\nit has no trial yet\n")) == (0, True)


def test_optuna_dashboard_lists_the_cells_with_their_trials(stores: Path) -> None:
    dashboard = pytest.importorskip("optuna_dashboard", reason="extra dev")
    from werkzeug.test import Client

    storage = open_storage(f"sqlite:///{stores}/optuna.db")
    client = Client(dashboard.wsgi(storage))
    listed = client.get("/api/studies").get_json()["study_summaries"]
    names = {s["study_name"]: s["study_id"] for s in listed}
    assert names.keys() == {"toy", "toy/probe"}
    detail = client.get(f"/api/studies/{names['toy/probe']}?after=0").get_json()
    attrs = [{a["key"]: a["value"] for a in t["user_attrs"]} for t in detail["trials"]]
    assert ['"complete"' in a.get("result", "") for a in attrs] == [True, False, False]
    assert [t["state"] for t in detail["trials"]] == ["Complete", "Running", "Fail"]
