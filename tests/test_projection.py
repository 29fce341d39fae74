"""What is in MLflow after each call, asked of MLflow itself."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import optuna
import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from analysis.topics import learning_rates
from harness.core.records import Slot, StudyInfo, TrialRecord
from harness.core.results import OUTCOMES, EpochResult, Outcome
from harness.core.spec import TrialSpec
from harness.core.strategies import DiscriminativeLR
from harness.tracking.projection import Projection

MakeSpec = Callable[..., TrialSpec]
INFO = StudyInfo(
    name="depth", question="How deep?", command="python -m harness.study --space depth.py",
    factors={"strategy": ["full", "linear probe"]}, baseline={"strategy": "full"},
    trials=3, repeats=2, sampler="random", seed=0, leaks=("digits: 2 pairs",),
    study_file="depth.py", space_sha256="ab12",
)  # fmt: skip
EPOCHS = tuple(EpochResult(e, 2.0 - e, 1.5 - e, 0.25 * e, 10.0 * e, 4.0 * e) for e in range(3))


class World:
    """A record of trials, and the MLflow that shows it."""

    def __init__(self, uri: str, spec: TrialSpec, folder: Path) -> None:
        self.uri, self.spec, self.folder, self.now = uri, spec, folder, 0.0
        self.recorded: list[TrialRecord] = []
        self.client = MlflowClient(tracking_uri=uri)

    def trials(self, info: StudyInfo) -> list[TrialRecord]:
        return self.recorded

    def predictions(self, trial: TrialRecord) -> Path:
        return self.folder / trial.predictions

    def projection(self, info: StudyInfo = INFO) -> Projection:
        made = Projection(self.uri, info, self, lambda: self.now)
        made.open()
        made.runs().experiment()  # a new store is opened at the first write
        return made

    def trial(self, cell: str = "full", index: int = 0, **changes: Any) -> TrialRecord:
        """The index-th trial of a cell; a repeat if `chosen` is among the changes."""
        chosen = changes.get("chosen")
        slot = Slot({"strategy": cell}, "tune" if chosen is None else "repeat", index)
        name = f"depth/{cell}" + ("" if chosen is None else f"/repeats of {chosen}")
        fields = {
            "key": f"{name}#{index}", "slot": slot, "number": index, "attempt": 1, "seed": 7,
            "spec": self.spec.flat(), "inputs": {"sha256 of the images": "cd34"},
            "provenance": {"device": "cpu"},
            "started": datetime(2026, 3, 1, 12), "ended": datetime(2026, 3, 1, 13), "outcome": "complete",
        }  # fmt: skip
        return TrialRecord(**{**fields, **changes})

    def runs(self, condition: str) -> list[Run]:
        experiment = self.client.get_experiment_by_name("depth")
        assert experiment is not None
        return list(self.client.search_runs([experiment.experiment_id], condition))

    def shown(self, trial: TrialRecord) -> Run:
        """The only run of that trial."""
        [run] = self.runs(f"tags.trial_key = '{trial.key}'")
        return run

    def curve(self, trial: TrialRecord, name: str) -> list[tuple[int, float]]:
        history = self.client.get_metric_history(self.shown(trial).info.run_id, name)
        return sorted((m.step, m.value) for m in history)


@pytest.fixture
def world(tracking_uri: str, make_spec: MakeSpec, tmp_path: Path) -> World:
    return World(
        tracking_uri, make_spec(strategy=DiscriminativeLR(0.6), shots=None, lr=1 / 3), tmp_path
    )


def test_experiment_describes_the_study(world: World) -> None:
    world.projection()
    experiment = world.client.get_experiment_by_name("depth")
    assert experiment is not None
    assert experiment.tags["question"] == "How deep?"
    assert experiment.tags["command"] == INFO.command
    assert json.loads(experiment.tags["factors"]) == {"strategy": ["full", "linear probe"]}
    assert json.loads(experiment.tags["baseline"]) == {"strategy": "full"}
    assert (experiment.tags["trials"], experiment.tags["repeats"]) == ("3", "2")
    assert experiment.tags["leaks"] == "digits: 2 pairs"
    assert "How deep?" in experiment.tags["mlflow.note.content"]


def test_run_has_the_whole_spec_and_says_which_trial_it_shows(world: World) -> None:
    trial = world.trial(index=2, notes={"resumed": "after epoch 0"})
    world.projection().show(trial)
    run = world.shown(trial)
    assert TrialSpec.from_flat(run.data.params) == world.spec
    wanted = {
        "cell": "full", "strategy": "full", "phase": "tune", "index": "2", "seed": "7", "attempt": "1",
        "study": "depth", "device": "cpu", "outcome": "complete", "resumed": "after epoch 0",
        "sha256.images": "cd34",
    }  # fmt: skip
    assert wanted.items() <= run.data.tags.items()
    assert run.info.run_name == "full trial 2"
    assert (run.info.start_time, run.info.end_time) == tuple(
        int(t.timestamp() * 1000) for t in (datetime(2026, 3, 1, 12), datetime(2026, 3, 1, 13))
    )


def test_running_trial_is_shown_epoch_by_epoch(world: World) -> None:
    projection, trial = world.projection(), world.trial(outcome="", ended=None)
    for count, now in ((1, 0.0), (2, 0.1), (3, 5.0)):
        world.now = now
        projection.show_live(trial.but(epochs=EPOCHS[:count]))
        assert len(world.runs("tags.index = '0'")) == (now > 1), (
            "one that ends soon costs one write"
        )
    run = world.shown(trial)
    assert (run.info.status, "outcome" in run.data.tags) == ("RUNNING", False)
    projection.show(trial.but(epochs=EPOCHS, outcome="complete"))
    for name, values in {
        "train_loss": [2.0, 1.0, 0.0],
        "val_loss": [1.5, 0.5, -0.5],
        "val_accuracy": [0.0, 0.25, 0.5],
        "train_seconds": [0.0, 10.0, 20.0],
        "marginal_seconds": [0.0, 4.0, 8.0],
    }.items():
        assert world.curve(trial, name) == list(enumerate(values))


STATUS: dict[Outcome, str] = {
    "complete": "FINISHED", "pruned": "FINISHED", "killed": "KILLED", "diverged": "FAILED", "oom": "FAILED",
    "timeout": "FAILED", "audit_failed": "FAILED", "crashed": "FAILED",
}  # fmt: skip


def test_finished_run_has_its_outcome_and_a_terminal_status(world: World) -> None:
    projection = world.projection()
    for index, outcome in enumerate(OUTCOMES):
        metrics = {"peak_process_rss_mib": 12.5, "nothing": float("nan")}
        trial = world.trial(index=index, outcome=outcome, reason="because", metrics=metrics)
        projection.show(trial)
        run = world.shown(trial)
        assert run.info.status == STATUS[outcome]
        assert (run.data.tags["outcome"], run.data.tags["reason"]) == (outcome, "because")
        assert run.data.metrics == {"peak_process_rss_mib": 12.5}


def test_predictions_lie_beside_the_database(world: World, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("example,label,predicted,probability\n4,0,0,0.75\n")
    trial = world.trial(chosen=1, predictions="x.csv")
    world.projection().show(trial)
    kept = Path(urlparse(world.shown(trial).info.artifact_uri).path)
    assert kept.is_relative_to(tmp_path / "mlruns/artifacts")
    assert (kept / "predictions.parquet").read_text() == (tmp_path / "x.csv").read_text()


def test_what_no_database_takes_is_cut_or_replaced_and_differs_from_nothing(world: World) -> None:
    trial = world.trial(reason="x" * 20_000, provenance={"path": "a\0\udce4"})
    world.recorded = [trial]
    projection = world.projection()
    projection.show(trial)
    tags = world.shown(trial).data.tags
    assert (1000 < len(tags["reason"]) <= 5000, tags["path"]) == (True, "a??")
    assert projection.runs().sync() == []


def test_trials_lie_under_their_cell_and_cells_under_the_study(world: World) -> None:
    probe = [world.trial("linear probe", index) for index in range(2)]
    world.projection().show(probe[0])
    again = world.projection()  # the command again
    again.show(probe[1])
    full = world.trial()
    again.show(full)
    [study] = world.runs("tags.kind = 'study'")
    by_name = {run.info.run_name: run for run in world.runs("tags.kind = 'cell'")}
    assert (study.info.run_name, study.info.status) == ("study depth", "FINISHED")
    assert by_name.keys() == {"linear probe", "full"}
    for name, run in by_name.items():
        assert run.data.tags["mlflow.parentRunId"] == study.info.run_id
        assert (run.data.tags["strategy"], run.info.status) == (name, "FINISHED")
    for trial in (*probe, full):
        parent = by_name[trial.slot.cell["strategy"]].info.run_id
        assert world.shown(trial).data.tags["mlflow.parentRunId"] == parent


def test_of_two_runs_of_one_cell_the_first_counts(world: World) -> None:
    first = world.trial()
    world.projection().show(first)
    parent = world.client.get_run(world.shown(first).data.tags["mlflow.parentRunId"])
    tags, later = parent.data.tags, parent.info.start_time + 1
    world.client.create_run(parent.info.experiment_id, tags=tags, start_time=later)
    second = world.trial(index=1)
    world.projection().show(second)
    assert world.shown(second).data.tags["mlflow.parentRunId"] == parent.info.run_id


def test_repeats_of_another_choice_are_superseded(world: World) -> None:
    tuned = world.trial(metrics={"val_accuracy": 0.5})
    world.recorded = [tuned, world.trial(chosen=0), world.trial(chosen=2, superseded=True)]
    world.projection().runs().sync()
    world.recorded = [t.but(superseded=t.chosen == 0) for t in world.recorded]
    world.projection().runs().sync()
    found = [world.shown(t).data.tags.get("superseded") for t in world.recorded]
    assert found == [None, "true", "false"]


def test_runs_that_agreed_are_read_again_only_when_the_record_changed(world: World) -> None:
    tuned, repeat = world.trial(), world.trial(chosen=0)
    world.recorded = [tuned, repeat]
    world.projection().settle()
    world.client.set_tag(world.shown(tuned).info.run_id, "outcome", "crashed")
    later = world.trial(index=1, started=datetime(2026, 3, 1, 12) + timedelta(seconds=90))
    running = world.trial(index=2, outcome="", ended=None, started=later.started)
    world.recorded += [later, running]
    for _ in range(2):
        world.projection().settle()
        assert world.shown(tuned).data.tags["outcome"] == "crashed", "it was not looked at"
        assert world.shown(later).data.tags["outcome"] == "complete"
    killed = running.but(outcome="killed", ended=running.started)
    world.recorded = [tuned, repeat, later, killed]
    world.projection().settle()
    assert world.shown(killed).data.tags["outcome"] == "killed"
    assert world.shown(tuned).data.tags["outcome"] == "crashed", "it was not looked at"
    world.recorded = [tuned, repeat.but(superseded=True), later, killed]
    world.projection().settle()
    assert world.shown(repeat).data.tags["superseded"] == "true"
    assert world.shown(tuned).data.tags["outcome"] == "complete"


def test_runs_that_agreed_with_another_record_are_compared(world: World) -> None:
    """A record of the same study, made earlier on another machine, was copied over this one: its trials have
    the same keys and ended in the same way."""
    world.recorded = [world.trial(index=i, metrics={"total_seconds": 0.5}) for i in range(2)]
    world.projection().settle()
    started = datetime(2026, 2, 1, 12)
    changed = {"started": started, "ended": datetime(2026, 2, 1, 13)}
    world.recorded = [t.but(metrics={"total_seconds": 0.25}, **changed) for t in world.recorded]
    world.projection().settle()
    for trial in world.recorded:
        runs = world.runs(f"tags.trial_key = '{trial.key}' and tags.outcome = 'complete'")
        assert [run.info.start_time for run in runs] == [int(started.timestamp() * 1000)]


def test_sync_reads_all_runs_whether_they_agreed_or_not(world: World) -> None:
    world.recorded = [world.trial()]
    world.projection().settle()
    run = world.shown(world.recorded[0]).info.run_id
    world.client.set_tag(run, "outcome", "crashed")
    [found] = world.projection().runs().sync()
    assert (found.corrected, world.client.get_run(run).data.tags["outcome"]) == (True, "complete")


def test_summary_of_a_cell_is_on_its_run(world: World) -> None:
    def metrics(accuracy: float) -> dict[str, float]:
        return {"val_accuracy": accuracy, "test_accuracy": accuracy / 2, "train_seconds": 2.0}

    world.recorded = [
        world.trial(index=0, metrics=metrics(0.5)),
        world.trial(index=1, metrics=metrics(0.75)),
        world.trial(index=0, chosen=1, metrics=metrics(0.25)),
        world.trial(index=1, chosen=1, metrics=metrics(0.75)),
        world.trial(index=0, chosen=0, metrics=metrics(0.0), superseded=True),
        world.trial("linear probe", metrics=metrics(1.0)),
    ]
    world.projection().runs().sync()
    found = {run.info.run_name: run.data.metrics for run in world.runs("tags.kind = 'cell'")}
    assert found["linear probe"] == {}, "there are no repeats yet"
    assert found["full"] == {
        "best_val_accuracy": 0.75, "mean_val_accuracy": 0.5,
        "mean_test_accuracy": 0.25, "mean_train_seconds": 2.0,
    }  # fmt: skip


def test_summary_of_repeats_that_do_not_count_any_more_is_withdrawn(world: World) -> None:
    """More tuning trials may choose another configuration, which has no repeats yet."""
    repeat = world.trial(chosen=0, metrics={"test_accuracy": 0.5})
    world.recorded = [repeat]
    world.projection().runs().sync()
    [cell] = world.runs("tags.kind = 'cell'")
    assert cell.data.metrics == {"mean_test_accuracy": 0.5}
    world.recorded = [dataclasses.replace(repeat, superseded=True)]
    for _ in range(2):
        world.projection().runs().sync()
        [cell] = world.runs("tags.kind = 'cell'")
        assert math.isnan(cell.data.metrics["mean_test_accuracy"])
    history = world.client.get_metric_history(cell.info.run_id, "mean_test_accuracy")
    assert len(history) == 2
    world.recorded += [world.trial(chosen=1, metrics={"test_accuracy": 0.75})]
    world.projection().runs().sync()
    [cell] = world.runs("tags.kind = 'cell'")
    assert cell.data.metrics == {"mean_test_accuracy": 0.75}


def test_runs_of_another_study_are_not_looked_at(world: World) -> None:
    other = dataclasses.replace(INFO, name="width")
    world.projection(other).show(world.trial())
    assert world.projection().runs().sync() == []


def test_run_tells_the_report_the_range_that_the_space_declares(world: World) -> None:
    drawn = optuna.distributions.FloatDistribution(1e-4, 1e-2, log=True)
    trial = world.trial(ranges={"lr": str(drawn)})
    world.projection().show(trial)
    shown = pd.DataFrame([world.shown(trial).data.tags])
    assert learning_rates.declared_range(shown, "lr") == (1e-4, 1e-2)
