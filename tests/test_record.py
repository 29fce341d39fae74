"""The record: what Optuna keeps of a trial, read back, and by Optuna's own means."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from harness.core.errors import UserError
from harness.core.results import EpochResult, TrialResult
from harness.core.spec import TrialSpec
from harness.search.cell import CellSearch
from harness.search.record import Record
from tests.lab import info_of
from tests.toy import Place, make_study

STUDY = make_study(compare={"strategy": ["probe"]}, trials=3)
INFO = info_of(STUDY)
EPOCH = EpochResult(0, 2.0, 1.5, 0.25, 10.0, 4.0)
LAST = EpochResult(1, 1.0, 0.5, 0.75, 20.0, 8.0)


@pytest.fixture
def place(tmp_path: Path, with_stores: Callable[[Path], Path]) -> Place:
    made = Place(with_stores(tmp_path))
    made.record().describe(INFO)
    return made


def search(place: Place, chosen: int | None = None) -> CellSearch:
    """The only cell, as a new process opens it."""
    record = place.record()
    best = (
        None if chosen is None else next(t for t in record.trials(INFO) if t.slot.index == chosen)
    )
    return CellSearch(record, STUDY, {"strategy": "probe"}, best)


def end(
    cell: CellSearch,
    index: int,
    outcome: str = "complete",
    accuracy: float = 0.5,
) -> None:
    """Run the slot's trial, which ends so."""
    opened = cell.begin(index, inline=False)
    cell.report(opened, EPOCH)
    metrics = {"val_accuracy": accuracy, "val_loss": 1.0}
    result = TrialResult(outcome, metrics, "because", notes={"a": "b"})  # type: ignore[arg-type]
    cell.finish(opened, result, "x.csv")


def test_everything_about_a_trial_is_read_back(place: Place) -> None:
    cell = search(place)
    opened = cell.begin(1, inline=True)
    assert isinstance(opened.spec, TrialSpec)
    [running] = place.record().trials(INFO)
    assert (running.outcome, running.seed, running.spec) == (
        "",
        opened.spec.seed,
        opened.spec.flat(),
    )
    for epoch in (EPOCH, LAST):
        cell.report(opened, epoch)
    metrics = {"val_accuracy": 0.75, "val_loss": 0.5, "odd": float("inf")}
    result = TrialResult("complete", metrics, "because", notes={"prefix": "found"})
    opened.record = opened.record.but(provenance={"device": "cpu"})
    returned = cell.finish(opened, result, "x.csv")
    [read] = place.record().trials(INFO)
    assert read == returned
    assert read.key == "toy/probe#0"
    assert str(read.slot) == "probe, trial 1"
    assert (read.outcome, read.reason, read.attempt) == ("complete", "because", 1)
    assert TrialSpec.from_flat({k: str(v) for k, v in read.spec.items()}) == opened.spec
    assert read.params == {"lr": opened.spec.lr}
    assert "log=True" in read.ranges["lr"]
    assert read.inputs.keys() >= {"images"} or read.inputs
    assert (read.metrics, read.epochs) == (metrics, (EPOCH, LAST))
    assert (read.notes, read.provenance) == ({"prefix": "found"}, {"device": "cpu"})
    assert read.predictions == "x.csv"
    assert read.seconds is not None


def test_optuna_alone_makes_sense_of_it(place: Place) -> None:
    cell = search(place)
    for index, outcome in enumerate(("complete", "pruned", "diverged")):
        end(cell, index, outcome)
    study = optuna.load_study(study_name="toy/probe", storage=place.url)
    assert study.direction == optuna.study.StudyDirection.MAXIMIZE
    states = [t.state for t in study.trials]
    assert states == [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL]
    assert study.best_value == 0.5
    assert study.best_trial.intermediate_values == {0: 0.25}
    assert json.loads(json.dumps(study.best_trial.user_attrs))["result"]["outcome"] == "complete"
    about = optuna.load_study(study_name="toy", storage=place.url).user_attrs["info"]
    assert (about["question"], about["factors"]) == ("Does it?", {"strategy": ["probe"]})


@pytest.mark.parametrize(
    ("outcomes", "settled"),
    [
        (("complete",), "complete"),
        (("killed", "complete"), "complete"),
        (("crashed", "audit_failed", "diverged"), "diverged"),
        (("oom",), "oom"),
        (("timeout",), "timeout"),
        (("killed", "crashed"), None),
    ],
)
def test_slot_is_settled_by_what_says_something_of_its_configuration(
    outcomes: tuple[str, ...], settled: str | None, place: Place
) -> None:
    for outcome in outcomes:
        end(search(place), 0, outcome)
    found = search(place).attempts.completed(0)
    assert (found.outcome if found else None) == settled
    assert [t.attempt for t in place.record().trials(INFO)] == list(range(1, 1 + len(outcomes)))


def test_trial_that_a_dead_process_left_is_killed(place: Place) -> None:
    cell = search(place)
    cell.report(cell.begin(0, inline=True), EPOCH)
    [closed] = search(place).attempts
    assert (closed.outcome, closed.reason, closed.died) == ("killed", "its process died", True)
    assert [e.val_accuracy for e in closed.epochs] == [0.25]
    assert [t.state for t in place.optuna_trials()] == [TrialState.FAIL]
    assert list(search(place).attempts) == [closed]


def test_trial_whose_result_a_dead_process_had_written_ends_as_that_says(place: Place) -> None:
    opened = search(place).begin(0, inline=True)
    result = {"outcome": "complete", "metrics": {"val_accuracy": 0.75, "val_loss": 0.5}}
    opened.trial.set_user_attr("result", result)
    [closed] = search(place).attempts
    assert (closed.outcome, closed.died) == ("complete", False)
    assert [(t.state, t.value) for t in place.optuna_trials()] == [(TrialState.COMPLETE, 0.75)]


@pytest.mark.parametrize(
    ("epochs", "given_up"),
    [
        ([0, 0], True),
        ([1], False),
        ([1, 1], True),
        ([0, 1], False),
        ([0, 1, 1], True),
        ([1, 2, 3, 4], True),
    ],
)
def test_slot_is_given_up_when_its_process_dies_without_a_new_epoch(
    epochs: list[int], given_up: bool, place: Place
) -> None:
    for count in epochs:
        cell = search(place)
        opened = cell.begin(0, inline=True)
        for epoch in (EPOCH, LAST, LAST, LAST)[:count]:
            number = len(opened.record.epochs)
            cell.report(opened, EpochResult(number, *list(vars(epoch).values())[1:]))
    found = search(place)
    *_, ended = found.attempts
    assert (ended.attempt, ended.died) == (len(epochs), True)
    assert (ended.outcome, ended.lasting) == (("crashed", True) if given_up else ("killed", False))
    assert found.attempts.completed(0) == (ended if given_up else None)
    if given_up:
        assert found.attempts.any() == ended, "it is known by its parameters like any other"
        assert ended.params != {}


def test_predictions_are_kept_under_their_hash(place: Place) -> None:
    record = place.record()
    name = record.keep_predictions("toy", b"a table")
    assert record.keep_predictions("toy", b"a table") == name
    [kept] = (place.folder / "predictions" / "toy").iterdir()
    assert (kept.name, kept.read_bytes()) == (name, b"a table")


def test_study_as_a_whole_is_read_back_and_may_grow(place: Place) -> None:
    assert place.record().info("toy") == INFO
    more = info_of(make_study(compare={"strategy": ["probe"]}, trials=9))
    place.record().describe(more)
    assert place.record().info("toy") == more
    with pytest.raises(UserError, match="the record has no study 'gone'; it has: toy"):
        place.record().info("gone")


@pytest.mark.parametrize("attributes", [{}, {"format": 1, "info": {}}, {"format": 3}])
def test_record_of_another_edition_is_refused(
    attributes: dict[str, object], tmp_path: Path, with_stores: Callable[[Path], Path]
) -> None:
    url = f"sqlite:///{with_stores(tmp_path)}/optuna.db"
    if attributes:
        study = optuna.create_study(study_name="toy", storage=url)
        for name, value in attributes.items():
            study.set_user_attr(name, value)
    optuna.create_study(study_name="toy/probe", storage=url)
    record: Record = Place(tmp_path).record()
    for refused in (lambda: record.describe(INFO), lambda: record.info("toy")):
        with pytest.raises(UserError, match="'toy' is recorded here by another version"):
            refused()
