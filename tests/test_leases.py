"""Leases and many workers: who has a slot, and who takes it over. Time is handed in, nothing sleeps."""

from __future__ import annotations

import dataclasses
import inspect
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import optuna
import pytest
from harness.search.cells import CellSearch
from harness.search.leases import BEAT, OWNER, Owner, Watch, died_here, held, start_of
from harness.search.trials import YIELDED
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import event

from harness import transfer
from harness.search.sampling import value_at
from harness.search.storage import open_storage
from harness.spec import Study, TrialSpec

ELSEWHERE = "another-host/12345678 77 99"


def space(trial: optuna.trial.BaseTrial, strategy: str) -> TrialSpec:
    lr = trial.suggest_float("lr", 1e-4, 1e-1, log=True)
    decay = trial.suggest_float("weight_decay", 0, 0.1)
    return TrialSpec(
        target="digits",
        backbone="test_resnet",
        source="scratch",
        strategy=transfer.LinearProbe(),
        lr=lr,
        weight_decay=decay,
    )


STUDY = Study(compare={"strategy": ["probe"]}, space=space, trials=8, repeats=0, name="toy")
CELL = {"strategy": "probe"}


@pytest.fixture(params=["memory", "sqlite", "journal"])
def storage(
    request: pytest.FixtureRequest, tmp_path: Path, optuna_template: Path
) -> optuna.storages.BaseStorage:
    """Each kind that a lease must work with."""
    if request.param == "memory":
        return optuna.storages.InMemoryStorage()
    if request.param == "journal":
        return open_storage(f"journal:{tmp_path / 'journal.log'}")
    (tmp_path / "optuna.db").write_bytes(optuna_template.read_bytes())
    return open_storage(f"sqlite:///{tmp_path / 'optuna.db'}")


def running(owner: str | None, beat: int = 0) -> FrozenTrial:
    trial = optuna.trial.create_trial(state=TrialState.RUNNING)
    trial._trial_id = 1
    trial.user_attrs = {BEAT: beat} | ({OWNER: owner} if owner else {})
    return trial


class Time:
    now = 0.0

    def __call__(self) -> float:
        return self.now


# --- whose lease is over ---------------------------------------------------------------------------


def test_lease_of_another_host_is_over_when_its_beat_stood_still_for_the_grace() -> None:
    time = Time()
    watch = Watch(Owner.here(), grace=10, clock=time)
    assert not watch.is_over(running(ELSEWHERE, beat=1))
    time.now = 9
    assert not watch.is_over(running(ELSEWHERE, beat=2))
    time.now = 18
    assert not watch.is_over(running(ELSEWHERE, beat=2))
    time.now = 19.5
    assert watch.is_over(running(ELSEWHERE, beat=2))


def test_no_lease_is_judged_by_another_machines_clock() -> None:
    # However old the first beat that is seen: it may have been written a moment ago.
    assert not Watch(Owner.here(), grace=0.1, clock=Time()).is_over(running(ELSEWHERE, beat=10**9))


def test_process_that_is_gone_loses_its_lease_at_once() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    owner = dataclasses.replace(Owner.here(), pid=child.pid, started=start_of(child.pid)).name
    watch = Watch(Owner.here(), clock=Time())
    assert not watch.is_over(running(owner))
    child.communicate(b"\n")
    assert watch.is_over(running(owner))


def test_process_elsewhere_that_is_said_to_be_dead_loses_its_lease_at_once() -> None:
    watch = Watch(Owner.here(), clock=Time())
    assert not watch.is_over(running(ELSEWHERE))
    watch.believe_dead(ELSEWHERE)
    assert watch.is_over(running(ELSEWHERE))
    assert not watch.is_over(running("another-host/12345678 78 99"))


def test_process_number_that_is_used_again_is_another_process() -> None:
    me = Owner.here()
    assert not died_here(me.name)
    assert died_here(dataclasses.replace(me, started="1").name)


def test_what_a_process_left_open_itself_is_not_being_worked_on() -> None:
    assert Watch(Owner.here(), clock=Time()).is_over(running(Owner.here().name))


def test_trials_of_before_there_were_leases_are_over() -> None:
    assert Watch(Owner.here(), clock=Time()).is_over(running(None))


def test_lease_is_renewed_as_long_as_the_block_lasts(storage: optuna.storages.BaseStorage) -> None:
    claim = CellSearch(STUDY, CELL, storage).claim(0, Owner.here())
    assert claim is not None
    trial_id = claim.trial._trial_id
    with held(storage, trial_id, every=0.001):
        while storage.get_trial(trial_id).user_attrs.get(BEAT, 0) < 3:
            pass
    last = storage.get_trial(trial_id).user_attrs[BEAT]
    assert storage.get_trial(trial_id).user_attrs[BEAT] == last


# --- who gets a slot -------------------------------------------------------------------------------


def test_of_two_that_open_one_slot_at_once_the_first_gets_it(
    storage: optuna.storages.BaseStorage,
) -> None:
    one, other = Owner.here("one"), Owner("another-host/12345678", 77, "99", "other")
    mine, theirs = CellSearch(STUDY, CELL, storage), CellSearch(STUDY, CELL, storage)
    claim = mine.claim(0, one)  # `theirs` has not looked since
    assert claim is not None
    assert theirs.claim(0, other) is None
    holder = theirs.holder(0)
    assert holder is not None
    assert holder.number == claim.trial.number
    trials = optuna.load_study(study_name="toy/probe", storage=storage).trials
    assert [t.state for t in trials] == [TrialState.RUNNING, TrialState.FAIL]
    assert trials[1].user_attrs["outcome"] == YIELDED
    mine.refresh()
    holder = mine.holder(0)
    assert holder is not None
    assert holder.number == claim.trial.number


def test_yielding_is_no_attempt(storage: optuna.storages.BaseStorage) -> None:
    one = Owner.here()
    mine, theirs = CellSearch(STUDY, CELL, storage), CellSearch(STUDY, CELL, storage)
    first = mine.claim(0, one)
    assert first is not None
    assert theirs.claim(0, one) is None
    holder = mine.holder(0)
    assert holder is not None
    mine.end_dead(holder)
    second = theirs.claim(0, one)
    assert second is not None
    assert (first.attempt, second.attempt) == (1, 2)


def test_claim_whose_lease_ran_out_while_its_space_was_drawing_is_dropped(
    storage: optuna.storages.BaseStorage,
) -> None:
    def slow(trial: optuna.trial.BaseTrial, strategy: str) -> TrialSpec:
        if not ended:
            holder = theirs.holder(0)
            assert holder is not None
            ended.append(holder.number)
            theirs.end_dead(holder)
        return space(trial, strategy)

    ended: list[int] = []
    study = dataclasses.replace(STUDY, space=slow)
    mine, theirs = CellSearch(study, CELL, storage), CellSearch(study, CELL, storage)
    create = storage.create_new_trial

    def created(study_id: int, template_trial: FrozenTrial | None = None) -> int:
        made = create(study_id, template_trial)
        theirs.refresh()
        return made

    storage.create_new_trial = created  # type: ignore[method-assign]
    assert mine.claim(0, Owner.here()) is None
    second = mine.claim(0, Owner.here())
    assert second is not None
    assert (second.attempt, second.broke_before) == (2, False)


def test_slot_that_kills_its_workers_is_given_up_by_this_run_of_the_command_only(
    storage: optuna.storages.BaseStorage,
) -> None:
    search = CellSearch(STUDY, CELL, storage)
    for _ in range(3):
        assert not search.given_up(0, "this run")
        assert search.claim(0, Owner.here("this run")) is not None
        holder = search.holder(0)
        assert holder is not None
        search.end_dead(holder)
    assert search.given_up(0, "this run")
    assert not search.given_up(0, "a later run")
    assert not search.given_up(1, "this run")


def test_lease_is_renewed_after_a_storage_that_was_away(monkeypatch: pytest.MonkeyPatch) -> None:
    class Away(optuna.storages.InMemoryStorage):
        def set_trial_user_attr(self, trial_id: int, key: str, value: object) -> None:
            beats.append(value)
            if len(beats) < 3:
                raise optuna.exceptions.StorageInternalError("away")
            super().set_trial_user_attr(trial_id, key, value)
            renewed.set()

    beats: list[object] = []
    renewed = threading.Event()
    storage = Away()
    trial = optuna.create_study(storage=storage).ask()
    with held(storage, trial._trial_id, every=0.001):
        assert renewed.wait(60)
    assert storage.get_trial(trial._trial_id).user_attrs[BEAT] >= 3


def test_lease_ends_without_a_word_when_its_trial_was_ended() -> None:
    study = optuna.create_study()
    trial = study.ask()
    study.tell(trial, 1.0)
    with held(study._storage, trial._trial_id, every=0.001):
        until(lambda: not any(t.name == "lease" for t in threading.enumerate()))


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_leases_are_judged_by_a_clock_that_never_goes_back() -> None:
    assert inspect.signature(Watch).parameters["clock"].default is time.monotonic


def test_writes_to_a_file_take_its_lock_before_they_read(tmp_path: Path) -> None:
    """Else two processes read the same state, and the second to write overwrites or fails."""
    storage = open_storage(f"sqlite:///{tmp_path}/optuna.db")
    engine = storage._backend.engine  # type: ignore[attr-defined]
    said: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *a: said.append(a[2]))
    optuna.create_study(study_name="toy", storage=storage)
    writes = [i for i, words in enumerate(said) if words.startswith("INSERT")]
    assert writes
    assert all("BEGIN IMMEDIATE" in said[:i] for i in writes)
    assert "BEGIN" not in said


def test_tree_parzen_slots_draw_different_values_and_again_the_same() -> None:
    study = dataclasses.replace(STUDY, sampler="tpe")
    twice = []
    for _ in range(2):
        storage = optuna.storages.InMemoryStorage()
        twice.append([draw(study, storage, i) for i in range(8)])
    assert twice[0] == twice[1]
    assert len(set(twice[0])) == 8


@pytest.mark.parametrize("sampler", ["random", "qmc"])
def test_what_a_slot_tries_does_not_hang_on_who_asks_when(
    sampler: Literal["random", "qmc"],
) -> None:
    study = dataclasses.replace(STUDY, sampler=sampler)
    forwards = {i: draw(study, optuna.storages.InMemoryStorage(), i) for i in range(8)}
    shared = optuna.storages.InMemoryStorage()
    backwards = {i: draw(study, shared, i) for i in reversed(range(8))}
    assert forwards == backwards
    assert len(set(forwards.values())) == 8


def draw(study: Study, storage: optuna.storages.BaseStorage, index: int) -> tuple[float, float]:
    claim = CellSearch(study, CELL, storage).claim(index, Owner.here())
    assert claim is not None
    return claim.spec.lr, claim.spec.weight_decay


def test_sobol_points_fill_every_eighth_of_a_range_once() -> None:
    study = dataclasses.replace(STUDY, sampler="qmc")
    drawn = [draw(study, optuna.storages.InMemoryStorage(), i) for i in range(8)]
    eighths = Counter(int(decay / 0.1 * 8) for _, decay in drawn)
    assert eighths == dict.fromkeys(range(8), 1)


@pytest.mark.parametrize(
    ("distribution", "shares", "values"),
    [
        (optuna.distributions.FloatDistribution(2, 4), (0, 0.5), (2, 3)),
        (optuna.distributions.FloatDistribution(1, 100, log=True), (0, 0.5), (1, 10)),
        (optuna.distributions.FloatDistribution(0, 1, step=0.5), (0, 0.5, 0.99), (0, 0.5, 1)),
        (optuna.distributions.IntDistribution(1, 3), (0, 0.34, 0.99), (1, 2, 3)),
        (optuna.distributions.IntDistribution(2, 8, step=3), (0, 0.5, 0.99), (2, 5, 8)),
        (optuna.distributions.IntDistribution(1, 8, log=True), (0, 0.999999), (1, 8)),
        (optuna.distributions.CategoricalDistribution(("a", "b")), (0.49, 0.5), ("a", "b")),
    ],
)
def test_quantiles_of_each_kind_of_range(
    distribution: optuna.distributions.BaseDistribution,
    shares: tuple[float, ...],
    values: tuple[object, ...],
) -> None:
    found = [value_at(share, distribution) for share in shares]
    assert found == pytest.approx(list(values)) if values[0] != "a" else found == list(values)


def test_this_process_has_a_start() -> None:
    assert start_of(os.getpid())
    assert start_of(2**22) == ""
