"""The plan of a study, with training replaced by a known truth: accuracy is a function of the spec."""

from __future__ import annotations

import dataclasses
import hashlib
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from optuna.trial import BaseTrial, TrialState

from harness import strategies
from harness.core.errors import UserError
from harness.core.results import Outcome
from harness.core.signals import TrialTimeout
from harness.core.spec import TrialSpec
from harness.data import load_target
from harness.search import cell as cell_module
from harness.search.coordinator import SlotDone, StudyStopped
from harness.search.space import first_draw
from harness.tracking.study_runs import Difference, StudyRuns
from harness.training.audit import AuditFailed
from harness.training.fit import Diverged
from harness.training.forecast import forecast
from harness.training.outcomes import classify, reason_of
from harness.training.provenance import clear_caches
from harness.training.trial import Limits, compared
from tests.lab import ARMS, Lab, World, make_study, space, truth
from tests.pictures import paint
from tests.refusals import refused

Flat = dict[str, Any]
ALL_SLOTS = {(c, "tune", i) for c in ARMS for i in range(3)} | {
    (c, "repeat", i) for c in ARMS for i in range(2)
}
ONE_CELL: dict[str, Any] = {"compare": {"strategy": ["full"]}}


def flats(specs: list[TrialSpec]) -> list[Flat]:
    return [s.flat() for s in specs]


# --- the plan --------------------------------------------------------------------------------------


def test_cells_take_turns_and_each_gets_the_same_number_of_trials_and_repeats(lab: Lab) -> None:
    done = lab.run(make_study())
    order = [(d.slot.phase, d.slot.index, d.slot.cell["strategy"]) for d in done]
    wanted = [("tune", i, c) for i in range(3) for c in ARMS]
    assert order == wanted + [("repeat", i, c) for i in range(2) for c in ARMS]
    assert lab.complete_slots() == dict.fromkeys(ALL_SLOTS, 1)


def test_test_images_are_scored_in_repeats_only(world: World, lab: Lab) -> None:
    lab.run(make_study())
    assert world.tested == world.specs[6:]
    assert all("test_accuracy" not in t.metrics for t in lab.trials(phase="tune"))
    assert all(t.metrics["test_accuracy"] == 0.5 for t in lab.trials(phase="repeat"))


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
    lab.run(make_study(**ONE_CELL, repeats=1))
    (repeat,) = lab.trials(phase="repeat")
    assert repeat.chosen == chosen
    assert repeat.spec["lr"] == world.specs[chosen].lr


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


def test_a_study_depends_on_its_seed_alone(world: World, tmp_path: Path) -> None:
    tried = []
    for seed in (0, 0, 1):
        Lab(world, tmp_path).run(make_study(seed=seed))
        tried.append(flats(world.specs))
        world.specs = []
    assert tried[0] == tried[1]
    assert tried[0] != tried[2]
    assert len({flat["lr"] for flat in tried[0][:6]}) == 6, "cells draw values of their own"


def test_no_repeats_means_no_test(world: World, lab: Lab) -> None:
    lab.run(make_study(repeats=0))
    assert (len(world.specs), world.tested) == (6, [])


# --- resuming --------------------------------------------------------------------------------------


def test_images_that_changed_since_are_refused(
    world: World, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.run(make_study())
    clear_caches()
    monkeypatch.setattr("harness.data.embedded.ArrayTarget._identity", lambda self: [b"other"])
    try:
        with refused("sha256 of the images was"):
            lab.run(make_study())
    finally:
        clear_caches()


@pytest.mark.parametrize("when", [1, 4, 6], ids=["one cell begun", "tuning", "before repeats"])
def test_images_that_are_written_while_the_study_runs_end_it(
    when: int, world: World, lab: Lab, tmp_path: Path
) -> None:
    def of_a_folder(trial: BaseTrial, strategy: str) -> TrialSpec:
        spec = dataclasses.replace(space(trial, strategy), target=f"folder:{tmp_path}/pets")
        return dataclasses.replace(spec, shots=2, val_shots=2, test_shots=2)

    for n, name in enumerate("ab"):
        for i in range(8):
            paint(tmp_path / "pets" / name / f"{i}.png", 100 * n + i)
    study = make_study(space=of_a_folder)
    first = tmp_path / "pets" / "a" / "0.png"
    world.disturb = lambda spec, epoch: paint(first, 250 if len(world.specs) >= when else 0)
    with refused(r"sha256 of the images was .*written while it ran; put"):
        lab.run(study)
    assert lab.outcomes() == {"complete": when, "killed": 1}
    world.disturb = lambda spec, epoch: None
    paint(first)
    lab.run(study)
    assert lab.complete_slots() == dict.fromkeys(ALL_SLOTS, 1)


def test_finished_study_has_nothing_left_to_do(
    world: World, shown: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown.run(make_study())
    world.specs.clear()
    real, compared_with = StudyRuns.update, []

    def update(runs: StudyRuns) -> list[Difference]:
        compared_with.append(runs)
        return real(runs)

    monkeypatch.setattr(StudyRuns, "update", update)
    done = shown.run(make_study())
    assert world.specs == []
    assert len(compared_with) == 1, "with many trials it takes seconds"
    assert [d.trial for d in done] == [None] * 10
    assert len(shown.runs()) == 10


@pytest.mark.parametrize("stop_in", [1, 4, 6, 7, 10])
def test_interrupted_study_tries_exactly_what_an_uninterrupted_one_tries(
    stop_in: int, world: World, lab: Lab
) -> None:
    Lab(world, lab.folder).run(make_study())
    wanted, world.specs = flats(world.specs), []
    world.fail_on({stop_in}, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        lab.run(make_study())
    assert (lab.outcomes()["killed"], lab.outcomes()[""]) == (1, 0)
    world.fail_on(set(), KeyboardInterrupt())
    lab.run(make_study())
    tried = flats(world.specs)
    assert tried[stop_in - 1] == tried.pop(stop_in)  # the interrupted one is run again
    assert tried == wanted
    assert lab.complete_slots() == dict.fromkeys(ALL_SLOTS, 1)
    again = [t for t in lab.trials(attempt=2) if t.outcome == "complete"]
    assert len(again) == 1


def test_mlflow_shows_the_record_even_if_an_earlier_one_was_lost(
    shown: Lab, capfd: pytest.CaptureFixture[str]
) -> None:
    shown.run(make_study())
    earlier = {r.info.run_id for r in shown.runs()}
    shown.kept = optuna.storages.InMemoryStorage()
    shown.run(make_study(seed=1))
    of_the_record = [r for r in shown.runs(outcome="complete") if r.info.run_id not in earlier]
    assert sorted(r.data.params["lr"] for r in of_the_record) == sorted(
        str(t.spec["lr"]) for t in shown.trials()
    )
    # Those of repeats of a trial that this record did not choose may be all that is left of the earlier one.
    left = [r for r in shown.runs(outcome="complete") if r.info.run_id in earlier]
    assert [d.corrected for d in shown.differences()] == [False] * len(left)
    assert capfd.readouterr().err.count("MLflow shows what the record does not say") == bool(left)


def test_more_trials_go_on_where_the_old_ones_ended(world: World, lab: Lab) -> None:
    lab.run(make_study(trials=2))
    first, world.specs = world.specs[:4], []
    lab.run(make_study(trials=3))
    assert len(world.tuned) == 2
    assert {s.lr for s in first}.isdisjoint(s.lr for s in world.specs[:2])


def test_better_later_trial_supersedes_the_repeats_of_the_old_choice(
    world: World, shown: Lab
) -> None:
    world.truth = lambda spec: (1.0, 0.1 * len(world.specs) if len(world.specs) != 3 else 0.0)
    shown.run(make_study(**ONE_CELL, trials=1))
    assert [t.chosen for t in shown.trials(phase="repeat")] == [0, 0]
    world.truth = lambda spec: (1.0, 0.9)
    shown.run(make_study(**ONE_CELL, trials=2))
    found = {
        (r.data.tags["chosen"], r.data.tags["index"]): r.data.tags["superseded"]
        for r in shown.runs(phase="repeat")
    }
    assert found == {
        ("0", "0"): "true", ("0", "1"): "true", ("1", "0"): "false", ("1", "1"): "false",
    }  # fmt: skip
    assert shown.differences() == []


def test_repeat_of_an_old_choice_that_was_killed_is_closed_too(world: World, lab: Lab) -> None:
    world.truth = lambda spec: (1.0, 0.1)
    lab.run(make_study(**ONE_CELL, trials=1, repeats=0))
    study = make_study(**ONE_CELL, trials=1)
    lab.search(study, chosen=lab.search(study).attempts.best("accuracy")).begin(0, inline=True)
    world.truth = lambda spec: (1.0, 0.9)
    lab.run(make_study(**ONE_CELL, trials=2))
    assert {t.chosen for t in lab.trials(phase="repeat", outcome="complete")} == {1}
    assert lab.outcomes()[""] == 0


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
    with refused(rf"'toy' changed since .*{said}"):
        lab.run(make_study(trials=2, repeats=0, **changed))


def test_space_that_fails_for_some_values_costs_those_trials_only(world: World, shown: Lab) -> None:
    def fragile(trial: BaseTrial, strategy: str) -> TrialSpec:
        spec = space(trial, strategy)
        if strategy == "full" and spec.lr > 3e-3:
            raise ZeroDivisionError("in the user's code")
        return spec

    shown.run(make_study(space=fragile, trials=6))
    failed = shown.runs(outcome="crashed")
    rates = [float(r.data.params["lr"]) for r in failed]
    assert 0 < len(rates) < 6
    assert min(rates) > 3e-3, "what was suggested is recorded, though there is no spec"
    assert all("ZeroDivisionError: in the user's code" in r.data.tags["reason"] for r in failed)
    assert {r.data.tags["cell"] for r in failed} == {"full"}
    assert shown.outcomes() == {"complete": 12 - len(rates) + 4, "crashed": len(rates)}
    world.specs = []
    shown.run(make_study(trials=6))  # the study file was corrected: the same values are tried again
    assert sorted(s.lr for s in world.tuned) == sorted(rates)


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

    monkeypatch.setattr(cell_module, "DRAW_SECONDS", 2)
    lab.run(make_study(space=loop_once))
    assert lab.outcomes() == {"complete": 9, "crashed": 1}
    assert lab.trials(outcome="crashed")[0].reason == "space: took longer than 2 s"


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
    (trial,) = lab.trials(outcome="crashed")
    assert f"space failed for full: {type(error).__name__}" in trial.reason


@pytest.mark.parametrize("where", ["training", "space"])
def test_slots_that_crash_every_time_do_not_keep_a_later_run_from_the_rest(
    where: str, world: World, lab: Lab
) -> None:
    """Nothing was corrected; what crashed is tried first again, and what comes after it is not to suffer."""

    def crash(spec: TrialSpec, epoch: int) -> None:
        if where == "training" and isinstance(spec.strategy, strategies.FullFineTune):
            raise KeyError("x")

    def broken(trial: BaseTrial, strategy: str) -> TrialSpec:
        if where == "space" and strategy == "full":
            raise KeyError("x")
        return space(trial, strategy)

    world.disturb = crash
    study = make_study(space=broken, trials=3, repeats=0)
    lab.run(study)
    assert lab.outcomes() == {"complete": 3, "crashed": 3}, "every second one: not in a row"
    lab.run(dataclasses.replace(study, trials=4))
    assert lab.outcomes() == {"complete": 4, "crashed": 3 + 4}


def test_attribute_that_would_deceive_the_harness_costs_the_trial(world: World, lab: Lab) -> None:
    def deceives(trial: BaseTrial, strategy: str) -> TrialSpec:
        trial.set_user_attr("my own", 1)
        if strategy == "full":
            trial.set_user_attr("slot", 0)
        return space(trial, strategy)

    lab.run(make_study(space=deceives, trials=2, repeats=0))
    assert lab.outcomes() == {"complete": 2, "crashed": 2}
    assert "'slot' is reserved by the harness" in lab.trials(outcome="crashed")[0].reason


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


def test_bad_end_is_recorded_in_both_places_and_the_study_goes_on(world: World, shown: Lab) -> None:
    def disturb(spec: TrialSpec, epoch: int) -> None:
        number = len(world.specs) - 1
        if epoch == 1 and number % 2 and number // 2 < len(ENDS):
            raise ENDS[number // 2][0]

    world.disturb = disturb
    assert (
        len(shown.run(make_study(**ONE_CELL, trials=2 * len(ENDS), repeats=1))) == 2 * len(ENDS) + 1
    )
    states = [t.state for t in shown.optuna_trials("toy/full")]
    for number, (error, outcome) in enumerate(ENDS):
        (trial,) = shown.trials(phase="tune", index=2 * number + 1)
        (run,) = shown.runs(phase="tune", index=2 * number + 1)
        assert (trial.outcome, states[trial.number]) == (outcome, TrialState.FAIL)
        assert (run.data.tags["outcome"], run.info.status) == (outcome, "FAILED")
        assert str(error.args[0]) in run.data.tags["reason"] == trial.reason
    assert shown.outcomes()["complete"] == len(ENDS) + 1


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
    ("error", "limit"),
    [
        *((error, 3) for error in (KeyError("x"), AuditFailed("moved"))),
        *((error, 10) for error in (Diverged("nan"), MemoryError(), TrialTimeout("too long"))),
    ],
)
def test_bad_ends_of_a_kind_in_a_row_stop_the_study(
    error: BaseException, limit: int, world: World, lab: Lab
) -> None:
    world.fail_on(set(range(2, 100)), error)
    seen: list[SlotDone] = []
    with pytest.raises(StudyStopped, match=f"{limit} trials in a row ended as {classify(error)}"):
        deque(map(seen.append, lab.events(make_study(trials=8))), maxlen=0)
    assert len(world.specs) == len(seen) == limit + 1, "the last one is told too"
    assert lab.outcomes()[""] == 0


def test_crashes_that_are_not_in_a_row_do_not_stop_the_study(world: World, lab: Lab) -> None:
    world.fail_on({1, 2, 4, 5}, KeyError("x"))
    assert len(lab.run(make_study())) == 10


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
    lab.run(make_study(**ONE_CELL, trials=2))
    assert {t.chosen for t in lab.trials(phase="repeat")} == {1}


def test_bad_input_that_only_a_trial_meets_costs_that_trial(world: World, lab: Lab) -> None:
    world.fail_on({3}, UserError("torchvision's ViT takes only images of 224 px, not 32"))
    lab.run(make_study())
    assert lab.outcomes() == {"complete": 9, "crashed": 1}
    (trial,) = lab.trials(outcome="crashed")
    assert trial.reason == "torchvision's ViT takes only images of 224 px, not 32"


def test_weights_that_a_trial_asks_for_in_vain_cost_that_trial(lab: Lab) -> None:
    def absent(trial: BaseTrial, strategy: str) -> TrialSpec:
        source = "scratch" if strategy == "probe" else "file:none.pt"
        return dataclasses.replace(space(trial, strategy), source=source)

    lab.run(make_study(space=absent, trials=1, repeats=0))
    assert lab.outcomes() == {"complete": 1, "crashed": 1}
    (trial,) = lab.trials(outcome="crashed")
    assert "weights file none.pt cannot be read" in trial.reason
    assert trial.inputs == {}


def test_run_says_what_its_trial_read(shown: Lab, tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(1)}, tmp_path / "w.pt")

    def from_file(trial: BaseTrial, strategy: str) -> TrialSpec:
        return dataclasses.replace(space(trial, strategy), source=f"file:{tmp_path}/w.pt")

    shown.run(make_study(space=from_file, **ONE_CELL, trials=1, repeats=1))
    for run in shown.runs():
        assert run.data.tags["sha256.images"] == load_target("digits").fingerprint()
        digest = hashlib.sha256((tmp_path / "w.pt").read_bytes()).hexdigest()
        assert run.data.tags["sha256.weights"] == digest


def test_pruned_trials_are_recorded_as_such_and_repeats_are_never_pruned(
    world: World, shown: Lab
) -> None:
    # The median pruner watches five trials first; every later one is worse than all before it.
    world.truth = lambda spec: (1.0, 1.0 / len(world.specs))
    shown.run(make_study(**ONE_CELL, trials=8, pruner="median"))
    assert shown.outcomes() == {"complete": 5 + 2, "pruned": 3}
    assert {t.slot.index for t in shown.trials(outcome="pruned")} == {5, 6, 7}
    states = [t.state for t in shown.optuna_trials("toy/full")]
    assert states == [TrialState.COMPLETE] * 5 + [TrialState.PRUNED] * 3
    assert {r.info.status for r in shown.runs(outcome="pruned")} == {"FINISHED"}
    assert len(shown.trials(phase="repeat", outcome="complete")) == 2


def test_trial_that_takes_too_long_ends_as_timeout(world: World, lab: Lab) -> None:
    def hang(spec: TrialSpec, epoch: int) -> None:
        if len(world.specs) == 2:
            threading.Event().wait(60)

    world.disturb = hang
    lab.run(make_study(), limits=Limits(seconds=0.5))
    assert lab.outcomes() == {"complete": 9, "timeout": 1}
    assert "longer than 0.5 s" in lab.trials(outcome="timeout")[0].reason


# --- forecasts -------------------------------------------------------------------------------------


def test_what_would_not_fit_ends_as_oom_without_being_run(world: World, lab: Lab) -> None:
    study = make_study(trials=2, repeats=1)
    sizes = {cell["strategy"]: forecast(first_draw(study, cell)).peak_mib for cell in study.cells()}
    (small, low), (large, high) = sorted(sizes.items(), key=lambda item: item[1])
    assert low < high
    lab.run(study, limits=Limits(memory=int((low + high) / 2 * 2**20)))
    assert lab.outcomes() == {"complete": 3, "oom": 2}
    refused = lab.trials(outcome="oom")
    assert {t.slot.cell["strategy"] for t in refused} == {large}
    assert all("not run: forecast" in t.reason for t in refused)
    assert refused[0].metrics["forecast_peak_mib"] == pytest.approx(high)
    assert lab.trials(cell=small)[0].metrics["forecast_peak_mib"] == pytest.approx(low)
    assert len(world.specs) == 3
    world.specs.clear()
    assert not lab.run(study, limits=Limits(memory=1))[0].trial, "it would not fit now either"
    assert world.specs == []
    done = lab.run(study, limits=Limits(memory=int(2 * high * 2**20)))
    assert len(world.specs) == len([d for d in done if d.trial]) == 3, "two trials and a repeat"
    assert lab.outcomes() == {"complete": 6, "oom": 2}
    assert not any(d.trial for d in lab.run(study)), "those that were run since count"


def test_every_trial_records_its_forecast_where_there_is_one(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_study(trials=1, repeats=1)
    lab.run(study)
    for cell in study.cells():
        expected = forecast(first_draw(study, cell)).peak_mib
        found = [t.metrics["forecast_peak_mib"] for t in lab.trials(cell=cell["strategy"])]
        assert found == pytest.approx([expected] * 2)

    def by_values(spec: TrialSpec) -> None:
        raise UserError("depends on values")

    monkeypatch.setattr("harness.training.trial.forecast", by_values)
    lab.run(make_study(trials=2, repeats=1))
    assert set(lab.outcomes()) == {"complete"}
    lab.run(make_study(trials=3, repeats=0), limits=Limits(memory=2**40))
    assert [t.reason for t in lab.trials(outcome="crashed")] == ["depends on values"] * 2


def test_measured_peak_is_set_against_the_forecast() -> None:
    expected = {"forecast_peak_mib": 200.0}
    measured = {"peak_accelerator_allocated_mib": 250.0}
    assert compared(expected, measured) == {**expected, "measured_over_forecast": 1.25}
    assert compared(expected, {}) == expected
    assert compared({}, measured) == {}
