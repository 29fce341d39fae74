"""The plan of a study, with training replaced by a known truth: accuracy is a function of the spec.

Optuna and MLflow are real; only `start`, which makes a trial out of a spec, is a stand-in.
"""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Run
from optuna.trial import BaseTrial, TrialState
from PIL import Image

from harness import transfer
from harness.audit import AuditFailed
from harness.data import load_target
from harness.environment import look_anew
from harness.errors import UserError
from harness.forecast import forecast
from harness.measure import Cpu
from harness.record import Recorder, StudyInfo
from harness.results import EpochResult, Outcome, Predictions, TrialResult
from harness.search import attempt, cells, door
from harness.search.attempt import compared
from harness.search.bench import Bench, Limits
from harness.search.cells import CellSearch, first_draw
from harness.search.door import check_at_the_door
from harness.search.leases import Owner, Watch
from harness.outcomes import classify, reason_of
from harness.search.runner import StudyStopped, TrialDone, prepare, run_study
from harness.signals import TrialTimeout
from harness.spec import Arms, Study, TrialSpec
from harness.train import Diverged

ARMS: Arms = {"probe": lambda t: transfer.LinearProbe(), "full": lambda t: transfer.FullFineTune()}
Flat = dict[str, Any]
DEAD = dataclasses.replace(Owner.here(), pid=2**22, started="1")
"""A process of this machine that is no more."""


def space(trial: BaseTrial, strategy: str) -> TrialSpec:
    lr = trial.suggest_float("lr", 1e-4, 1e-1, log=True)
    return TrialSpec(
        target="digits",
        backbone="test_resnet",
        strategy=ARMS[strategy](trial),
        source="scratch",
        lr=lr,
        epochs=2,
    )


def make_study(**changes: Any) -> Study:
    fields: dict[str, Any] = {
        "compare": {"strategy": ARMS}, "space": space, "trials": 3, "repeats": 2, "name": "toy",
    }  # fmt: skip
    return Study(**{**fields, **changes})


def truth(spec: TrialSpec) -> tuple[float, float]:
    """Validation loss and accuracy of a spec: the nearer the rate to 0.01, the better."""
    distance = abs(np.log10(spec.lr) + 2)
    return float(distance), float(1 / (1 + distance))


class World:
    """Stands in for training: what each spec gives, and what was asked for."""

    def __init__(self) -> None:
        self.specs: list[TrialSpec] = []
        self.tested: list[TrialSpec] = []
        self.truth: Callable[[TrialSpec], tuple[float, float]] = truth
        self.disturb: Callable[[TrialSpec, int], object] = lambda spec, epoch: None

    def start(
        self, spec: TrialSpec, device: object, cache: object, checkpoint: object = None
    ) -> FakeTraining:
        self.specs.append(spec)
        return FakeTraining(self, spec)

    def fail_on(self, numbers: set[int], error: BaseException) -> None:
        """Raise in the second epoch of these trials, counted from 1."""

        def disturb(spec: TrialSpec, epoch: int) -> None:
            if epoch == 1 and len(self.specs) in numbers:
                raise error

        self.disturb = disturb


class FakeTraining:
    def __init__(self, world: World, spec: TrialSpec) -> None:
        self._world, self._spec = world, spec

    def __iter__(self) -> Iterator[EpochResult]:
        for epoch in range(self._spec.epochs):
            self._world.disturb(self._spec, epoch)
            seconds = 0.5 * (epoch + 1)
            yield EpochResult(epoch, 1.0, *self._world.truth(self._spec), seconds, seconds)

    def finish(self, test: bool) -> TrialResult:
        if not test:
            return TrialResult("complete", {"train_seconds": 1.0})
        self._world.tested.append(self._spec)
        one = np.array([1])
        found = Predictions(one, one, one, np.array([0.5]))
        return TrialResult("complete", {"train_seconds": 1.0, "test_accuracy": 0.5}, "", found)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    made = World()
    monkeypatch.setattr(attempt, "start", made.start)
    # After a trial that failed; a third of a second each, and a stand-in leaves nothing to collect.
    monkeypatch.setattr("harness.search.runner.gc.collect", lambda: 0)
    return made


class Lab:
    """One Optuna storage and one MLflow store, as they outlive a process."""

    def __init__(self, tracking_uri: str) -> None:
        self.uri = tracking_uri
        self.storage = optuna.storages.InMemoryStorage()
        self.client = MlflowClient(tracking_uri=tracking_uri)

    def recorder(self, study: Study) -> Recorder:
        info = StudyInfo(
            name=study.name, question="", command="", factors={}, baseline={},
            trials=study.trials, repeats=study.repeats, sampler=study.sampler, space_sha256="", leaks=(),
        )  # fmt: skip
        return Recorder(self.uri, info)

    def bench(self, study: Study, **options: Any) -> Bench:
        return Bench(self.storage, self.recorder(study), Cpu(), {"device": "cpu"}, **options)

    def run(self, study: Study, **options: Any) -> list[TrialDone]:
        bench = self.bench(study, **options)
        prepare(study, bench)
        return list(run_study(study, bench))

    def runs(self, **tags: object) -> list[Run]:
        experiment = self.client.get_experiment_by_name("toy")
        assert experiment is not None
        every = self.client.search_runs([experiment.experiment_id])
        found = [run for run in every if "phase" in run.data.tags]  # not the study's own run
        wanted = {k: str(v) for k, v in tags.items()}.items()
        return [r for r in found if wanted <= r.data.tags.items()]

    def trials(self) -> list[optuna.trial.FrozenTrial]:
        names = optuna.get_all_study_names(self.storage)
        return [
            t for n in names for t in optuna.load_study(study_name=n, storage=self.storage).trials
        ]

    def outcomes(self) -> Counter[str]:
        return Counter(r.data.tags.get("outcome", "none") for r in self.runs())

    def complete_slots(self) -> Counter[tuple[str, ...]]:
        keys = ("cell", "phase", "index")
        return Counter(tuple(r.data.tags[k] for k in keys) for r in self.runs(outcome="complete"))

    def assert_nothing_is_running(self) -> None:
        assert [r.info.run_id for r in self.runs() if r.info.status == "RUNNING"] == []
        assert [t.number for t in self.trials() if t.state == TrialState.RUNNING] == []


@pytest.fixture
def lab(tracking_uri: str) -> Lab:
    return Lab(tracking_uri)


ALL_SLOTS = {(c, "tune", str(i)) for c in ARMS for i in range(3)} | {
    (c, "repeat", str(i)) for c in ARMS for i in range(2)
}


def flats(specs: list[TrialSpec]) -> list[Flat]:
    return [s.flat() for s in specs]


# --- the plan --------------------------------------------------------------------------------------


def test_every_cell_gets_the_same_number_of_trials_and_repeats(world: World, lab: Lab) -> None:
    done = lab.run(make_study())
    assert len(done) == 10
    assert lab.complete_slots() == dict.fromkeys(ALL_SLOTS, 1)
    lab.assert_nothing_is_running()


@pytest.mark.usefixtures("world")
def test_each_cell_ends_with_its_summary(lab: Lab) -> None:
    lab.run(make_study())
    [experiment] = lab.client.search_experiments(filter_string="name = 'toy'")
    cells = lab.client.search_runs([experiment.experiment_id], "tags.kind = 'cell'")
    tuned = lab.runs(phase="tune")
    for run in cells:
        mine = [r for r in tuned if r.data.tags["cell"] == run.data.tags["cell"]]
        best = max(r.data.metrics["val_accuracy"] for r in mine)
        assert run.data.metrics == {
            "best_val_accuracy": best,
            "mean_val_accuracy": best,
            "mean_test_accuracy": 0.5,
            "mean_train_seconds": 1.0,
        }
    assert {run.data.tags["cell"] for run in cells} == set(ARMS)


def test_cells_take_turns(world: World, lab: Lab) -> None:
    done = lab.run(make_study())
    order = [(d.slot.phase, d.slot.index, d.slot.cell["strategy"]) for d in done]
    wanted = [("tune", i, c) for i in range(3) for c in ARMS]
    assert order == wanted + [("repeat", i, c) for i in range(2) for c in ARMS]


def test_test_images_are_scored_in_repeats_only(world: World, lab: Lab) -> None:
    lab.run(make_study())
    assert world.tested == world.specs[6:]
    assert all("test_accuracy" not in r.data.metrics for r in lab.runs(phase="tune"))
    assert all(r.data.metrics["test_accuracy"] == 0.5 for r in lab.runs(phase="repeat"))


def test_mlflow_row_alone_repeats_the_run(world: World, lab: Lab) -> None:
    lab.run(make_study())
    recorded = [TrialSpec.from_flat(r.data.params) for r in lab.runs()]
    assert sorted(map(repr, recorded)) == sorted(map(repr, world.specs))


def test_run_carries_its_cell_and_its_place_as_tags(world: World, lab: Lab) -> None:
    lab.run(make_study())
    (run,) = lab.runs(cell="full", phase="tune", index=2)
    tags = run.data.tags
    assert (tags["strategy"], tags["study"], tags["device"]) == ("full", "toy", "cpu")
    assert (tags["attempt"], tags["outcome"]) == ("1", "complete")
    assert tags["seed"] == run.data.params["seed"]


def chosen_specs(world: World) -> dict[str, TrialSpec]:
    """Best tuning spec per strategy, by the known truth."""
    best: dict[str, TrialSpec] = {}
    for spec in world.specs[:6]:
        kind = type(spec.strategy).__name__
        if kind not in best or truth(spec)[1] > truth(best[kind])[1]:
            best[kind] = spec
    return best


def test_repeats_run_the_configuration_that_was_best_on_validation(world: World, lab: Lab) -> None:
    lab.run(make_study())
    best = chosen_specs(world)
    for spec in world.specs[6:]:
        tuned = best[type(spec.strategy).__name__]
        assert dataclasses.replace(spec, seed=tuned.seed) == tuned


@pytest.mark.parametrize(
    ("losses", "accuracies", "chosen"),
    [
        ([0.9, 0.9, 0.1], [0.5, 0.7, 0.6], 1),  # accuracy decides
        ([0.9, 0.8, 0.7], [0.6, 0.6, 0.5], 1),  # then the loss
        ([0.5, 0.5, 0.5], [0.6, 0.6, 0.6], 0),  # then the earlier one
        ([0.9, 0.5, 0.5], [0.6, 0.6, 0.6], 1),
    ],
)
def test_ties_go_to_the_lower_loss_and_then_to_the_earlier_trial(
    losses: list[float], accuracies: list[float], chosen: int, world: World, lab: Lab
) -> None:
    script = dict(enumerate(zip(losses, accuracies, strict=True)))
    world.truth = lambda spec: script[min(len(world.specs) - 1, 2)]
    lab.run(make_study(compare={"strategy": ["full"]}, repeats=1))
    (repeat,) = lab.runs(phase="repeat")
    assert repeat.data.tags["chosen"] == str(chosen)
    assert float(repeat.data.params["lr"]) == world.specs[chosen].lr


def test_configurations_compete_on_one_seed_and_repeats_share_theirs_between_cells(
    world: World, lab: Lab
) -> None:
    lab.run(make_study())
    assert len({s.seed for s in world.specs[:6]}) == 1
    by_cell: dict[str, list[int]] = {}
    for spec in world.specs[6:]:
        by_cell.setdefault(type(spec.strategy).__name__, []).append(spec.seed)
    first, second = by_cell.values()
    assert first == second
    assert len({*first, world.specs[0].seed}) == 3


def test_configurations_differ_within_a_cell_and_between_cells(world: World, lab: Lab) -> None:
    lab.run(make_study())
    assert len({s.lr for s in world.specs[:6]}) == 6


def test_a_study_depends_on_its_seed_alone(world: World, tracking_uri: str) -> None:
    tried = []
    database = tracking_uri.removeprefix("sqlite:///")
    for number, seed in enumerate((0, 0, 1)):
        copy = shutil.copy(database, f"{database}.{number}")
        Lab(f"sqlite:///{copy}").run(make_study(seed=seed))
        tried.append(flats(world.specs))
        world.specs = []
    assert tried[0] == tried[1]
    assert tried[0] != tried[2]


def test_no_repeats_means_no_test(world: World, lab: Lab) -> None:
    lab.run(make_study(repeats=0))
    assert len(world.specs) == 6
    assert world.tested == []


# --- resuming --------------------------------------------------------------------------------------


def test_lost_search_storage_is_refused_instead_of_doubling_the_study(
    world: World, lab: Lab
) -> None:
    lab.run(make_study())
    lab.storage = optuna.storages.InMemoryStorage()
    with pytest.raises(UserError, match="10 complete trials of the MLflow store are unknown"):
        lab.run(make_study())
    assert lab.complete_slots().total() == 10


def test_lost_tracking_store_is_refused_instead_of_reporting_nothing(
    world: World, lab: Lab
) -> None:
    lab.run(make_study())
    for run in lab.runs():
        lab.client.delete_run(run.info.run_id)
    with pytest.raises(UserError, match="10 complete trials of the search storage are unknown"):
        lab.run(make_study())


def test_images_that_changed_since_are_refused(
    world: World, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.run(make_study())
    look_anew()
    monkeypatch.setattr("harness.data.embedded.ArrayTarget._identity", lambda self: [b"other"])
    try:
        with pytest.raises(UserError, match="sha256 of the images was"):
            lab.run(make_study())
    finally:
        look_anew()


@pytest.mark.parametrize("when", [1, 4, 6], ids=["one cell begun", "tuning", "before repeats"])
def test_images_that_are_written_while_the_study_runs_end_it(
    when: int, world: World, lab: Lab, tmp_path: Path
) -> None:
    def paint(name: str, i: int, value: int) -> None:
        (tmp_path / "pets" / name).mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), value).save(tmp_path / "pets" / name / f"{i}.png")

    def of_a_folder(trial: BaseTrial, strategy: str) -> TrialSpec:
        spec = dataclasses.replace(space(trial, strategy), target=f"folder:{tmp_path}/pets")
        return dataclasses.replace(spec, shots=2, val_shots=2, test_shots=2)

    for n, name in enumerate("ab"):
        for i in range(8):
            paint(name, i, 100 * n + i)
    study = make_study(space=of_a_folder)
    world.disturb = lambda spec, epoch: paint("a", 0, 250 if len(world.specs) >= when else 0)
    with pytest.raises(UserError, match=r"sha256 of the images was .*written while it ran; put"):
        lab.run(study)
    assert lab.outcomes() == {"complete": when, "killed": 1}
    lab.assert_nothing_is_running()
    world.disturb = lambda spec, epoch: None
    paint("a", 0, 0)
    lab.run(study)
    assert lab.complete_slots() == dict.fromkeys(ALL_SLOTS, 1)


def test_finished_study_has_nothing_left_to_do(world: World, lab: Lab) -> None:
    lab.run(make_study())
    world.specs.clear()
    done = lab.run(make_study())
    assert world.specs == []
    assert [d.resumed for d in done] == [True] * 10
    assert len(lab.runs()) == 10


def uninterrupted(world: World, uri: str) -> list[Flat]:
    Lab(uri).run(make_study())
    specs, world.specs = flats(world.specs), []
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("toy")
    assert experiment is not None
    client.rename_experiment(experiment.experiment_id, "uninterrupted")
    return specs


@pytest.mark.parametrize("stop_in", [1, 4, 6, 7, 10])
def test_interrupted_study_tries_exactly_what_an_uninterrupted_one_tries(
    stop_in: int, world: World, lab: Lab
) -> None:
    wanted = uninterrupted(world, lab.uri)
    world.fail_on({stop_in}, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        lab.run(make_study())
    lab.assert_nothing_is_running()
    assert lab.outcomes()["killed"] == 1
    world.fail_on(set(), KeyboardInterrupt())
    lab.run(make_study())
    tried = flats(world.specs)
    assert tried[stop_in - 1] == tried.pop(stop_in)  # the interrupted one is run again
    assert tried == wanted
    assert lab.complete_slots() == dict.fromkeys(ALL_SLOTS, 1)
    lab.assert_nothing_is_running()


def test_second_attempt_says_so(world: World, lab: Lab) -> None:
    world.fail_on({1}, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        lab.run(make_study())
    lab.run(make_study())
    found = [r.data.tags for r in lab.runs(cell="probe", phase="tune", index=0)]
    assert {t["attempt"]: t["outcome"] for t in found} == {"1": "killed", "2": "complete"}


def kill_after_claim(lab: Lab, study: Study, chosen: Any = None) -> str:
    """What kill -9 leaves behind: an open trial in Optuna and an open run in MLflow."""
    search = CellSearch(study, study.cells()[0], lab.storage, chosen)
    claim = search.claim(0, DEAD)
    assert claim is not None
    tags = {"cell": "probe", "phase": search.phase, "index": 0}
    run_id = lab.recorder(study).start(claim.spec, "x", {**tags, "chosen": 0})
    claim.trial.set_user_attr("run_id", run_id)
    return run_id


def test_trial_that_a_killed_process_left_open_is_closed_and_run_again(
    world: World, lab: Lab
) -> None:
    run_id = kill_after_claim(lab, make_study())
    lab.run(make_study())
    left = lab.client.get_run(run_id)
    assert (left.data.tags["outcome"], left.info.status) == ("killed", "KILLED")
    assert lab.complete_slots() == dict.fromkeys(ALL_SLOTS, 1)
    lab.assert_nothing_is_running()


def test_trial_killed_between_its_outcome_and_its_closing_is_run_again(
    world: World, lab: Lab
) -> None:
    study = make_study()
    claim = CellSearch(study, study.cells()[0], lab.storage).claim(0, DEAD)
    assert claim is not None
    claim.trial.set_user_attr("outcome", "complete")
    world.fail_on({1}, KeyboardInterrupt())  # and the next run does not get far either
    with pytest.raises(KeyboardInterrupt):
        lab.run(study)
    left = [t for t in lab.trials() if t.state == TrialState.FAIL]
    assert [t.user_attrs["outcome"] for t in left] == ["killed", "killed"]
    lab.run(study)
    assert lab.complete_slots() == dict.fromkeys(ALL_SLOTS, 1)


def test_run_that_was_never_linked_to_a_trial_is_closed(world: World, lab: Lab) -> None:
    run_id = lab.recorder(make_study()).start(
        space(optuna.trial.FixedTrial({"lr": 1e-2}), "full"), "x", {}
    )
    lab.run(make_study())
    assert lab.client.get_run(run_id).data.tags["outcome"] == "killed"
    lab.assert_nothing_is_running()


def test_run_that_a_repeated_call_opened_twice_is_closed_at_the_end(
    world: World, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = MlflowClient.create_run

    def twice(self: MlflowClient, *args: Any, **options: Any) -> Run:
        if options.get("tags", {}).get("index") == "1":
            create(self, *args, **options)
        return create(self, *args, **options)

    monkeypatch.setattr(MlflowClient, "create_run", twice)
    lab.run(make_study())
    lab.assert_nothing_is_running()
    assert lab.complete_slots() == dict.fromkeys(ALL_SLOTS, 1)
    assert lab.outcomes() == {"complete": 10, "killed": 4}


@pytest.mark.parametrize("moment", ["start", "epoch", "write", "end"])
def test_interruption_while_recording_leaves_a_study_that_can_be_resumed(
    moment: str, world: World, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = getattr(Recorder, moment)
    calls: list[int] = []

    def interrupted(self: Recorder, *arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, *arguments)

    monkeypatch.setattr(Recorder, moment, interrupted)
    with pytest.raises(KeyboardInterrupt):
        lab.run(make_study())
    lab.run(make_study())
    assert lab.complete_slots() == dict.fromkeys(ALL_SLOTS, 1)
    lab.assert_nothing_is_running()


def test_more_trials_go_on_where_the_old_ones_ended(world: World, lab: Lab) -> None:
    lab.run(make_study(trials=2))
    first = world.specs[:4]
    world.specs = []
    lab.run(make_study(trials=3))
    assert len(first) == 4
    assert len([s for s in world.specs if s not in world.tested]) == 2
    assert {s.lr for s in first}.isdisjoint(s.lr for s in world.specs[:2])


def test_better_later_trial_supersedes_the_repeats_of_the_old_choice(
    world: World, lab: Lab
) -> None:
    one_cell = {"compare": {"strategy": ["full"]}}
    world.truth = lambda spec: (1.0, 0.1 * len(world.specs) if len(world.specs) != 3 else 0.0)
    lab.run(make_study(**one_cell, trials=1))
    assert [r.data.tags["chosen"] for r in lab.runs(phase="repeat")] == ["0", "0"]
    world.truth = lambda spec: (1.0, 0.9)
    lab.run(make_study(**one_cell, trials=2))
    found = {
        (r.data.tags["chosen"], r.data.tags["index"]): r.data.tags.get("superseded", "false")
        for r in lab.runs(phase="repeat")
    }
    assert found == {
        ("0", "0"): "true", ("0", "1"): "true", ("1", "0"): "false", ("1", "1"): "false",
    }  # fmt: skip


def test_repeat_of_an_old_choice_that_was_killed_is_closed_too(world: World, lab: Lab) -> None:
    one_cell = {"compare": {"strategy": ["full"]}}
    world.truth = lambda spec: (1.0, 0.1)
    lab.run(make_study(**one_cell, trials=1, repeats=0))
    study = make_study(**one_cell, trials=1)
    kill_after_claim(lab, study, CellSearch(study, study.cells()[0], lab.storage).choose())
    world.truth = lambda spec: (1.0, 0.9)
    lab.run(make_study(**one_cell, trials=2))
    assert {r.data.tags["chosen"] for r in lab.runs(phase="repeat", outcome="complete")} == {"1"}
    lab.assert_nothing_is_running()


# --- changed studies -------------------------------------------------------------------------------


def other_fixed(trial: BaseTrial, strategy: str) -> TrialSpec:
    return dataclasses.replace(space(trial, strategy), weight_decay=0.5)


def other_parameter(trial: BaseTrial, strategy: str) -> TrialSpec:
    decay = trial.suggest_float("decay", 0, 1)
    return dataclasses.replace(space(trial, strategy), weight_decay=decay)


def other_range(trial: BaseTrial, strategy: str) -> TrialSpec:
    """Every rate drawn by `space` is possible here, but others are too."""
    lr = trial.suggest_float("lr", 1e-9, 1e3, log=True)
    return dataclasses.replace(space(optuna.trial.FixedTrial({"lr": 1e-2}), strategy), lr=lr)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"space": other_fixed}, r"weight_decay was 0\.01, is 0\.5"),
        ({"space": other_parameter}, "decay"),
        ({"space": other_range}, "lr"),
        ({"seed": 7}, "seed"),
    ],
    ids=["fixed value", "parameter", "range", "seed"],
)
def test_changed_study_is_refused_with_the_difference(
    changed: dict[str, Any], said: str, world: World, lab: Lab
) -> None:
    lab.run(make_study(trials=1, repeats=0))
    with pytest.raises(UserError, match=rf"'toy' changed since .*{said}"):
        lab.run(make_study(trials=2, repeats=0, **changed))


def test_space_that_fails_for_some_values_costs_those_trials_only(world: World, lab: Lab) -> None:
    def fragile(trial: BaseTrial, strategy: str) -> TrialSpec:
        spec = space(trial, strategy)
        if strategy == "full" and spec.lr > 3e-3:
            raise ZeroDivisionError("in the user's code")
        return spec

    study = make_study(space=fragile, trials=6)
    lab.run(study)
    failed = lab.runs(outcome="crashed")
    rates = [float(r.data.params["lr"]) for r in failed]
    assert 0 < len(rates) < 6
    assert min(rates) > 3e-3, "what was suggested is recorded, though there is no spec"
    assert all("ZeroDivisionError: in the user's code" in r.data.tags["reason"] for r in failed)
    assert {r.data.tags["cell"] for r in failed} == {"full"}
    assert lab.outcomes() == {"complete": 12 - len(rates) + 4, "crashed": len(rates)}
    lab.assert_nothing_is_running()
    world.specs = []
    lab.run(make_study(trials=6))  # the study file was mended: the same values are tried again
    assert sorted(s.lr for s in world.specs if s not in world.tested) == sorted(rates)


def test_space_that_loops_for_some_values_costs_those_trials_only(
    world: World, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    loops: list[float] = []

    def loop_once(trial: BaseTrial, strategy: str) -> TrialSpec:
        spec = space(trial, strategy)
        if not loops:
            loops.append(spec.lr)
            while True:
                pass
        return spec

    monkeypatch.setattr(cells, "DRAW_SECONDS", 5)
    lab.run(make_study(space=loop_once))
    assert lab.outcomes() == {"complete": 9, "crashed": 1}
    (run,) = lab.runs(outcome="crashed")
    assert run.data.tags["reason"] == "space: took longer than 5 s"


class Mute(Exception):
    """Of somebody's own making."""

    def __str__(self) -> str:
        raise AttributeError("no message")


@pytest.mark.parametrize(
    "error", [SystemExit(3), GeneratorExit("odd"), Mute()], ids=["exits", "odd", "mute"]
)
def test_space_that_would_end_the_command_costs_that_trial_only(
    error: BaseException, world: World, lab: Lab
) -> None:
    def leaves(trial: BaseTrial, strategy: str) -> TrialSpec:
        spec = space(trial, strategy)
        if getattr(trial, "number", -1) == 1 and strategy == "full":
            raise error
        return spec

    lab.run(make_study(space=leaves, repeats=0))
    assert lab.outcomes() == {"complete": 5, "crashed": 1}
    (run,) = lab.runs(outcome="crashed")
    assert f"space failed for full: {type(error).__name__}" in run.data.tags["reason"]


def test_slots_that_crash_every_time_do_not_keep_a_later_run_from_the_rest(
    world: World, lab: Lab
) -> None:
    """Nothing was mended; what crashed is tried first again, and what comes after it is not to suffer."""

    def crash(spec: TrialSpec, epoch: int) -> None:
        if isinstance(spec.strategy, transfer.FullFineTune):
            raise KeyError("x")

    world.disturb = crash
    study = make_study(trials=3, repeats=0)
    lab.run(study)
    assert lab.outcomes() == {"complete": 3, "crashed": 3}, "every second one: not in a row"
    lab.run(dataclasses.replace(study, trials=4))
    assert lab.outcomes() == {"complete": 4, "crashed": 3 + 4}


def test_attribute_that_would_deceive_the_harness_costs_the_trial(world: World, lab: Lab) -> None:
    def deceives(trial: BaseTrial, strategy: str) -> TrialSpec:
        trial.set_user_attr("my own", 1)
        if strategy == "full":
            trial.set_user_attr("index", 0)
        return space(trial, strategy)

    lab.run(make_study(space=deceives, trials=2, repeats=0))
    assert lab.outcomes() == {"complete": 2, "crashed": 2}
    assert "'index' is the harness's own" in lab.runs(outcome="crashed")[0].data.tags["reason"]


def test_space_that_always_fails_stops_the_study(world: World, lab: Lab) -> None:
    def broken(trial: BaseTrial, strategy: str) -> TrialSpec:
        raise UserError("TrialSpec: lr must be a positive number, got -1")

    with pytest.raises(StudyStopped, match=r"3 trials in a row ended as crashed.* got -1$"):
        lab.run(make_study(space=broken))
    assert lab.outcomes() == {"crashed": 3}


# --- trials that end badly -------------------------------------------------------------------------

ENDS: list[tuple[Exception, Outcome]] = [
    (Diverged("training loss nan in epoch 1"), "diverged"),
    (torch.OutOfMemoryError("CUDA out of memory"), "oom"),
    (MemoryError("no more"), "oom"),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "oom"),
    (AuditFailed("group stem was frozen but changed"), "audit_failed"),
    (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), "crashed"),
    (KeyError("x"), "crashed"),
]


@pytest.mark.parametrize(("error", "outcome"), ENDS, ids=lambda x: str(x)[:20])
def test_bad_end_is_recorded_in_both_places_and_the_study_goes_on(
    error: Exception, outcome: Outcome, world: World, lab: Lab
) -> None:
    world.fail_on({2}, error)
    done = lab.run(make_study())
    assert len(done) == 10
    (run,) = lab.runs(outcome=outcome)
    (trial,) = [t for t in lab.trials() if t.user_attrs["outcome"] == outcome]
    assert run.info.status == "FAILED"
    assert trial.state == TrialState.FAIL
    assert trial.user_attrs["run_id"] == run.info.run_id
    assert str(error.args[0]) in run.data.tags["reason"]
    assert lab.outcomes() == {"complete": 9, outcome: 1}
    lab.assert_nothing_is_running()


@pytest.mark.parametrize(
    ("error", "outcome"), [*ENDS, (TrialTimeout("took longer than 1 s"), "timeout")]
)
def test_reason_does_not_say_the_outcome_again(error: BaseException, outcome: Outcome) -> None:
    try:
        raise error
    except BaseException as caught:
        said = reason_of(caught)
    named = said.startswith(f"{type(error).__name__}: ")
    assert named == (outcome in ("oom", "crashed"))
    assert str(error) in said


@pytest.mark.parametrize(
    "allocate", [lambda: torch.empty(2**60), lambda: np.empty(2**58)], ids=["torch", "numpy"]
)
def test_allocation_that_the_machine_refuses_is_oom(
    allocate: Callable[[], object], world: World, lab: Lab
) -> None:
    world.disturb = lambda spec, epoch: len(world.specs) == 2 and allocate()
    lab.run(make_study())
    assert lab.outcomes() == {"complete": 9, "oom": 1}


@pytest.mark.parametrize(
    ("error", "again"),
    [(Diverged("nan"), False), (MemoryError(), False), (KeyError("x"), True)],
)
def test_only_ends_that_say_nothing_of_the_configuration_are_tried_again(
    error: Exception, again: bool, world: World, lab: Lab
) -> None:
    world.fail_on({2}, error)
    lab.run(make_study())
    world.specs = []
    world.fail_on(set(), error)
    lab.run(make_study(repeats=2))
    assert bool([s for s in world.specs if s not in world.tested]) == again


@pytest.mark.parametrize("error", [KeyError("x"), AuditFailed("moved")])
def test_three_crashes_in_a_row_stop_the_study(error: Exception, world: World, lab: Lab) -> None:
    world.fail_on(set(range(2, 100)), error)
    seen: list[TrialDone] = []
    events = map(seen.append, run_study(make_study(), lab.bench(make_study())))
    with pytest.raises(StudyStopped, match="3 trials in a row"):
        deque(events, maxlen=0)
    assert len(world.specs) == len(seen) == 4, "the last one is told too"
    lab.assert_nothing_is_running()


def test_crashes_that_are_not_in_a_row_do_not_stop_the_study(world: World, lab: Lab) -> None:
    world.fail_on({1, 2, 4, 5}, KeyError("x"))
    assert len(lab.run(make_study())) == 10


@pytest.mark.parametrize("error", [Diverged("nan"), MemoryError(), TrialTimeout("too long")])
def test_ten_poor_trials_of_a_kind_in_a_row_stop_the_study(
    error: BaseException, world: World, lab: Lab
) -> None:
    world.fail_on(set(range(2, 100)), error)
    with pytest.raises(StudyStopped, match=f"10 trials in a row ended as {classify(error)}"):
        lab.run(make_study(trials=8))
    assert len(world.specs) == 11
    lab.assert_nothing_is_running()


def test_fewer_poor_trials_or_of_several_kinds_do_not_stop_the_study(
    world: World, lab: Lab
) -> None:
    kinds = [Diverged("nan"), MemoryError(), TrialTimeout("too long")]

    def disturb(spec: TrialSpec, epoch: int) -> None:
        number = len(world.specs)
        raise kinds[number // 6 % 3]

    world.disturb = disturb
    done = lab.run(make_study(trials=8))
    assert len(done) == sum(lab.outcomes().values()) == 16
    assert [d for d in done if d.slot.phase == "repeat"] == [], "nothing to choose from"


def test_failed_trial_is_never_chosen(world: World, lab: Lab) -> None:
    world.fail_on({1}, Diverged("nan"))
    lab.run(make_study(compare={"strategy": ["full"]}, trials=2))
    assert {r.data.tags["chosen"] for r in lab.runs(phase="repeat")} == {"1"}


def test_bad_input_that_only_a_trial_meets_costs_that_trial(world: World, lab: Lab) -> None:
    world.fail_on({3}, UserError("torchvision's ViT takes 224 px only, not 32"))
    lab.run(make_study())
    assert lab.outcomes() == {"complete": 9, "crashed": 1}
    (run,) = lab.runs(outcome="crashed")
    assert run.data.tags["reason"] == "torchvision's ViT takes 224 px only, not 32"


def test_weights_that_a_trial_asks_for_in_vain_cost_that_trial(world: World, lab: Lab) -> None:
    def absent(trial: BaseTrial, strategy: str) -> TrialSpec:
        source = "scratch" if strategy == "probe" else "file:none.pt"
        return dataclasses.replace(space(trial, strategy), source=source)

    lab.run(make_study(space=absent, trials=1, repeats=0))
    assert lab.outcomes() == {"complete": 1, "crashed": 1}
    (run,) = lab.runs(outcome="crashed")
    assert "weights file none.pt cannot be read" in run.data.tags["reason"]
    assert "sha256.images" not in run.data.tags
    lab.assert_nothing_is_running()


def test_run_says_what_its_trial_read(world: World, lab: Lab, tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(1)}, tmp_path / "w.pt")

    def from_file(trial: BaseTrial, strategy: str) -> TrialSpec:
        return dataclasses.replace(space(trial, strategy), source=f"file:{tmp_path}/w.pt")

    lab.run(make_study(space=from_file, compare={"strategy": ["full"]}, trials=1, repeats=1))
    for run in lab.runs():
        assert run.data.tags["sha256.images"] == load_target("digits").fingerprint()
        digest = hashlib.sha256((tmp_path / "w.pt").read_bytes()).hexdigest()
        assert run.data.tags["sha256.weights"] == digest


def test_pruned_trials_are_recorded_as_such_and_repeats_are_never_pruned(
    world: World, lab: Lab
) -> None:
    # The median pruner watches five trials first; every later one is worse than all before it.
    world.truth = lambda spec: (1.0, 1.0 / len(world.specs))
    lab.run(make_study(compare={"strategy": ["full"]}, trials=8, pruner="median"))
    assert lab.outcomes() == {"complete": 5 + 2, "pruned": 3}
    assert {r.data.tags["index"] for r in lab.runs(outcome="pruned")} == {"5", "6", "7"}
    assert {t.state for t in lab.trials() if t.user_attrs["outcome"] == "pruned"} == {
        TrialState.PRUNED
    }
    assert {r.info.status for r in lab.runs(outcome="pruned")} == {"FINISHED"}
    assert len(lab.runs(phase="repeat", outcome="complete")) == 2
    lab.assert_nothing_is_running()


# --- forecasts -------------------------------------------------------------------------------------


def test_what_would_not_fit_ends_as_oom_without_being_run(world: World, lab: Lab) -> None:
    study = make_study(trials=2, repeats=1)
    sizes = {cell["strategy"]: forecast(first_draw(study, cell)).peak_mib for cell in study.cells()}
    (small, low), (large, high) = sorted(sizes.items(), key=lambda item: item[1])
    assert low < high
    lab.run(study, limits=Limits(memory=int((low + high) / 2 * 2**20)))
    assert lab.outcomes() == {"complete": 3, "oom": 2}
    refused = lab.runs(outcome="oom")
    assert {run.data.tags["strategy"] for run in refused} == {large}
    assert all("not run: forecast" in run.data.tags["reason"] for run in refused)
    assert refused[0].data.metrics["forecast_peak_mib"] == pytest.approx(high)
    assert lab.runs(strategy=small)[0].data.metrics["forecast_peak_mib"] == pytest.approx(low)
    assert len(world.specs) == 3
    world.specs.clear()
    assert not lab.run(study, limits=Limits(memory=1))[0].result, "it would not fit now either"
    assert world.specs == []
    done = lab.run(study, limits=Limits(memory=int(2 * high * 2**20)))
    assert len(world.specs) == len([d for d in done if d.result]) == 3, "two trials and a repeat"
    assert lab.outcomes() == {"complete": 6, "oom": 2}
    lab.assert_nothing_is_running()
    assert not any(d.result for d in lab.run(study)), "those that were run since count"


def test_every_trial_records_its_forecast_where_there_is_one(
    lab: Lab, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_study(trials=1, repeats=1)
    lab.run(study)
    for cell in study.cells():
        expected = forecast(first_draw(study, cell)).peak_mib
        found = [r.data.metrics["forecast_peak_mib"] for r in lab.runs(strategy=cell["strategy"])]
        assert found == pytest.approx([expected] * 2)

    def by_values(spec: TrialSpec) -> None:
        raise UserError("depends on values")

    monkeypatch.setattr(attempt, "forecast", by_values)
    lab.run(make_study(trials=2, repeats=1))
    assert set(lab.outcomes()) == {"complete"}
    lab.run(make_study(trials=3, repeats=0), limits=Limits(memory=2**40))
    assert [r.data.tags["reason"] for r in lab.runs(outcome="crashed")] == ["depends on values"] * 2


def test_limit_of_memory_that_no_forecast_can_keep_is_refused_at_the_door(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def by_values(spec: TrialSpec) -> None:
        raise UserError("depends on values")

    monkeypatch.setattr(door, "forecast", by_values)
    check_at_the_door(make_study(space=scratch()))
    with pytest.raises(UserError, match="depends on values"):
        check_at_the_door(make_study(space=scratch()), memory_is_limited=True)


def test_measured_peak_is_set_against_the_forecast() -> None:
    expected = {"forecast_peak_mib": 200.0}
    measured = {"peak_accelerator_allocated_mib": 250.0}
    assert compared(expected, measured) == {**expected, "measured_over_forecast": 1.25}
    assert compared(expected, {}) == expected
    assert compared({}, measured) == {}


# --- lock and door ---------------------------------------------------------------------------------


def scratch(**changes: Any) -> Callable[..., TrialSpec]:
    def made(trial: BaseTrial, strategy: str) -> TrialSpec:
        plain = dataclasses.replace(space(trial, strategy), source="scratch", resolution=32)
        return dataclasses.replace(plain, **{k: v(strategy) for k, v in changes.items()})

    return made


def test_door_shows_the_first_spec_of_every_cell() -> None:
    specs = check_at_the_door(make_study(space=scratch())).specs
    assert {k: type(s.strategy).__name__ for k, s in specs.items()} == {
        "probe": "LinearProbe", "full": "FullFineTune",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["shots", "val_shots", "test_shots"])
def test_cell_whose_split_is_impossible_is_refused_at_the_door(name: str) -> None:
    sizes = scratch(**{name: lambda strategy: 5 if strategy == "probe" else 500})
    with pytest.raises(UserError, match="too few"):
        check_at_the_door(make_study(space=sizes))


def test_resolution_that_a_network_cannot_take_is_refused_at_the_door() -> None:
    tiny = scratch(resolution=lambda _: 33, backbone=lambda _: "test_vit")
    with pytest.raises(UserError, match=r"test_vit .*33"):
        check_at_the_door(make_study(space=tiny))


def test_strategy_that_freezes_everything_for_an_epoch_is_refused_at_the_door() -> None:
    @dataclasses.dataclass(frozen=True)
    class Rests(transfer.Strategy):
        def lr_scales(self, num_groups: int, epoch: int) -> transfer.Scales:
            return (None,) * num_groups if epoch == 1 else (1.0,) * num_groups

    def resting(trial: optuna.trial.BaseTrial, strategy: str) -> TrialSpec:
        spec = space(trial, "full")
        return dataclasses.replace(spec, strategy=Rests(), epochs=2, source="scratch")

    with pytest.raises(UserError, match="freezes every group in epoch 1"):
        check_at_the_door(make_study(space=resting))


# --- many processes --------------------------------------------------------------------------------


ANOTHER = "another-host/12345678 77 99"


def test_two_runners_of_one_study_share_its_slots(world: World, lab: Lab) -> None:
    """They take turns, each starting a trial while the other is in the middle of one."""
    study = make_study()
    mine, theirs = (
        run_study(study, lab.bench(study, watch=Watch(Owner(h, 1, "1", h), clock=lambda: 0.0)))
        for h in ("one/1", "two/2")
    )
    first = next(theirs)
    nested: list[TrialDone] = []

    def disturb(spec: TrialSpec, epoch: int) -> None:
        if epoch == 1:
            world.disturb = lambda spec, epoch: None
            nested.append(next(theirs))

    world.disturb = disturb
    done = [first, *mine, *nested, *theirs]
    ran = [(d.slot.phase, str(d.slot)) for d in done if d.result is not None]
    assert len(ran) == len(set(ran)) == 10
    assert lab.complete_slots() == dict.fromkeys(ALL_SLOTS, 1)
    lab.assert_nothing_is_running()


def test_worker_whose_slots_others_take_first_steps_aside_and_leaves_none_out(
    world: World, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where sixteen end a trial at once, and reach for the same next slot."""
    claim, asked = CellSearch.claim, list[tuple[str, int]]()

    def lose_four(self: CellSearch, index: int, owner: Owner) -> object:
        asked.append((self.cell["strategy"], index))
        return None if len(asked) <= 4 else claim(self, index, owner)

    monkeypatch.setattr(CellSearch, "claim", lose_four)
    monkeypatch.setattr("harness.search.runner.time.sleep", None)  # what is free is not waited for
    lab.run(make_study(trials=20, repeats=0))
    in_order = [(c, i) for i in range(20) for c in ARMS]
    assert sorted(asked[4:]) == sorted(in_order), "every slot once"
    assert asked[:5] != in_order[:1] * 5, "it does not insist"
    assert len(world.specs) == 40


def open_elsewhere(lab: Lab, study: Study) -> None:
    search = CellSearch(study, study.cells()[0], lab.storage)
    assert search.claim(0, Owner(ANOTHER.split()[0], 77, "99", "elsewhere")) is not None


def test_slot_that_another_host_holds_is_run_here_when_its_lease_is_over(
    world: World, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, now = make_study(), [0.0]
    open_elsewhere(lab, study)
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        now[0] += 4

    monkeypatch.setattr("harness.search.runner.time.sleep", wait)
    watch = Watch(Owner.here(), grace=10, clock=lambda: now[0])
    done = lab.run(study, watch=watch)
    assert str(done[5].slot) == "probe, trial 0", "the last tuning slot to be run"
    assert len(waits) == 3
    assert lab.complete_slots() == dict.fromkeys(ALL_SLOTS, 1)


def test_starting_a_run_leaves_what_others_work_on(world: World, lab: Lab) -> None:
    study = make_study()
    open_elsewhere(lab, study)
    bench = lab.bench(study)
    assert prepare(study, bench) == {ANOTHER}
    assert [t.state for t in lab.trials()] == [TrialState.RUNNING]


def test_result_of_a_worker_that_was_taken_for_dead_is_dropped(world: World, lab: Lab) -> None:
    """It was suspended for longer than its lease: another one has run the slot meanwhile."""
    study = make_study(compare={"strategy": ["probe"]}, trials=1, repeats=0)
    other: list[TrialDone] = []
    late = Watch(Owner("other/2", 2, "2", "2"), grace=-1, clock=lambda: 0.0)

    def disturb(spec: TrialSpec, epoch: int) -> None:
        world.disturb = lambda spec, epoch: None
        other.extend(run_study(study, lab.bench(study, watch=late)))

    world.disturb = disturb
    done = list(run_study(study, lab.bench(study)))
    assert [d.resumed for d in done] == [True]
    assert [d.result.outcome for d in other if d.result] == ["complete"]
    assert lab.outcomes() == {"complete": 1, "killed": 1}
    (lost,) = lab.runs(outcome="killed")
    assert "took it over" in lost.data.tags["reason"]
    lab.assert_nothing_is_running()


def test_death_between_optunas_word_and_mlflows_is_made_good(
    world: World, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Dead(BaseException):
        pass

    def die(*_: object) -> None:
        raise Dead

    study = make_study()
    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "end", die)
        with pytest.raises(Dead):
            lab.run(study)
    assert [r.info.status for r in lab.runs()] == ["RUNNING"]
    world.specs.clear()
    lab.run(study)
    assert len(world.specs) == 9, "the trial counts, and is not run again"
    assert lab.complete_slots() == dict.fromkeys(ALL_SLOTS, 1)
    lab.assert_nothing_is_running()


def test_trial_that_takes_too_long_ends_as_timeout(world: World, lab: Lab) -> None:
    def hang(spec: TrialSpec, epoch: int) -> None:
        if len(world.specs) == 2:
            threading.Event().wait(60)

    world.disturb = hang
    lab.run(make_study(), limits=Limits(seconds=0.5))
    assert lab.outcomes() == {"complete": 9, "timeout": 1}
    assert "longer than 0.5 s" in lab.runs(outcome="timeout")[0].data.tags["reason"]
