"""What happens to each slot of the plan? Cells x trials, then cells x repeats, one after the other.

`run_study` yields one TrialDone per slot; showing progress is the caller's business. Any number of processes
may run it at once, on any number of machines that share the stores: each takes the next slot that is free.
"""

from __future__ import annotations

import gc
import math
import os
import random
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import optuna
from optuna.trial import FrozenTrial, TrialState

from harness.environment import input_tags
from harness.errors import first_line
from harness.record import Recorder
from harness.results import TrialResult
from harness.search.attempt import Attempt, LeaseLost, told
from harness.search.bench import Bench, Limits
from harness.search.cells import CellSearch, Claim, Slot
from harness.search.leases import OWNER, Watch, held
from harness.search.outcomes import Row, classify, reason_of
from harness.search.preemption import stop_if_asked
from harness.search.signals import Terminated, if_hung, time_limit
from harness.search.trials import end_dead, trials_of
from harness.search.unchanged import Inputs, check_stores_agree, check_unchanged
from harness.spec import Study, cell_label

POLL_SECONDS = 1.0
FRESH_SECONDS = 0.2
"""So old may be what is known of a slot when it is looked at; whoever takes it looks again."""
WIDEST = 64
"""At most so many free slots are passed over, at random, by a worker whose slots others took first: many that
end a trial at once would otherwise all reach for the same next one."""
end_process = os._exit


class StudyStopped(Exception):
    """The study ended itself because going on would waste the budget."""


@dataclass(frozen=True)
class TrialDone:
    """One slot of the plan, finished by this process or (`resumed`) by another one, now or before."""

    slot: Slot
    resumed: bool
    result: TrialResult | None = None
    curve: tuple[float, ...] = ()
    """Validation accuracy after each epoch, of a trial of this process."""
    broke_before: bool = False
    """An earlier attempt at the slot ended as one that is broken."""


def prepare(study: Study, bench: Bench) -> set[str]:
    """Check that this is the study that was recorded, and end what dead processes left open. To be done once
    by whoever starts a run, not by each of its workers.

    Returns:
        Who else works on the study now.

    Raises:
        UserError: if the space or one of the stores is not what it was.
    """
    for search in _searches(study, bench.storage):
        check_unchanged(search)
    others = reap(study, bench.storage, bench.recorder, bench.watch)
    check_stores_agree(study, bench.storage, bench.recorder.outcomes)
    return others


def reap(
    study: Study, storage: optuna.storages.BaseStorage, recorder: Recorder, watch: Watch
) -> set[str]:
    """End the trials and the runs of processes that are gone; leave what others work on.

    Returns:
        The owners of those.
    """
    held_runs, outcomes, others = set[str](), dict[str, str](), set[str]()
    for found, trial in trials_of(study, storage, *TrialState):
        run_id = trial.user_attrs.get("run_id")
        if trial.state == TrialState.RUNNING and watch.is_over(trial):
            end_dead(found, trial)
        elif trial.state == TrialState.RUNNING:
            others.add(trial.user_attrs[OWNER])
            held_runs.add(run_id or "")
        elif run_id:
            outcomes[run_id] = trial.user_attrs.get("outcome", "killed")
    for run_id, owner in recorder.unfinished().items():
        if run_id in outcomes:  # its process died between Optuna's word and MLflow's
            recorder.end(run_id, outcomes[run_id])
        elif run_id not in held_runs and watch.is_gone(owner):
            recorder.finish(run_id, _its_runner_died())
    return others


def finished(study: Study, storage: optuna.storages.BaseStorage) -> Iterator[TrialDone]:
    """The slots of the plan that need no more work."""
    searches = _searches(study, storage)
    repeats = _repeats(searches)
    for count, cells in ((study.trials, searches), (study.repeats, repeats)):
        for search in cells:
            for index in filter(search.is_done, range(count)):
                yield TrialDone(Slot(search.cell, search.phase, index), resumed=True)


def _searches(
    study: Study, storage: optuna.storages.BaseStorage, limits: Limits | None = None
) -> list[CellSearch]:
    """One per cell; with limits, what lower ones have kept from being run is to be begun anew."""
    memory = 0 if limits is None else math.inf if limits.memory is None else limits.memory
    return [CellSearch(study, cell, storage, memory=memory) for cell in study.cells()]


def _repeats(searches: Sequence[CellSearch]) -> list[CellSearch]:
    """The repeats of every cell that has something to repeat."""
    chosen = [(search, search.choose()) for search in searches]
    return [
        CellSearch(s.study, s.cell, s.storage, best, s.memory)
        for s, best in chosen
        if best is not None
    ]


def any_complete(study: Study, storage: optuna.storages.BaseStorage) -> bool:
    """True if there is anything to report."""
    return any(True for _ in trials_of(study, storage, TrialState.COMPLETE))


def _its_runner_died() -> TrialResult:
    return TrialResult("killed", reason="its runner died")


def run_study(study: Study, bench: Bench) -> Iterator[TrialDone]:
    """Tune every cell, choose on validation, repeat the chosen configurations and score them on test.

    Cells take turns, so that a machine that slows down slows all of them alike. A slot that another process
    works on is left to it, and looked at again when nothing else is free.

    Args:
        study: the question, with trials and repeats as they are to be.
        bench: where and with what.

    Raises:
        StudyStopped: after too many bad ends of one kind in a row, or if the search storage fails.
        UserError: if results can no longer be written.
    """
    with storage_failures():
        yield from _run_study(study, bench)


@contextmanager
def storage_failures() -> Iterator[None]:
    """Raises StudyStopped, in words, for what the search storage raises in the block."""
    try:
        yield
    except (optuna.exceptions.StorageInternalError, OSError) as error:
        raise StudyStopped(
            f"the search storage failed: {first_line(error.__cause__ or error)}"
        ) from error


def _run_study(study: Study, bench: Bench) -> Iterator[TrialDone]:
    runner = _Runner(study, bench)
    searches = _searches(study, bench.storage, bench.limits)
    yield from runner.work_off([(s, i) for i in range(study.trials) for s in searches])
    repeats = _repeats(searches)
    for search in repeats:
        bench.recorder.supersede(cell_label(search.cell), search.chosen_index)
    yield from runner.work_off([(s, i) for i in range(study.repeats) for s in repeats])
    for search in repeats:
        bench.recorder.summarise(cell_label(search.cell), search.summary())
    # A call that a slow server answers too late is repeated, and opens a second run that no trial knows.
    reap(study, bench.storage, bench.recorder, bench.watch)


class _Runner:
    """Runs slots and writes down how they ended: what was measured to MLflow, then the end to Optuna, whose
    word counts, then the end to MLflow."""

    def __init__(self, study: Study, bench: Bench) -> None:
        self._study, self._bench = study, bench
        self._recorder, self._device, self._watch = bench.recorder, bench.device, bench.watch
        self._row, self._inputs = Row(), Inputs()
        # Others may be quicker at a slot: the more often, the more free ones are left to them.
        self._random, self._window, self._leave_free = random.Random(self._watch.me.name), 1, 0

    def work_off(self, slots: Sequence[tuple[CellSearch, int]]) -> Iterator[TrialDone]:
        """Run every slot that no other process runs, until all are done."""
        left = list(slots)
        while left:
            elsewhere, all_held = [], True
            for search, index in left:
                done = self._run_slot(search, index)
                if done is None:
                    elsewhere.append((search, index))
                    all_held &= search.holder(index) is not None
                    continue
                yield done
                if done.result is not None:
                    self._row = self._row.then(done.result, done.broke_before)
                    stop_if_too_long(self._row, done.slot, done.result)
            if len(elsewhere) == len(left) and all_held:
                time.sleep(POLL_SECONDS)
            left = elsewhere

    def _run_slot(self, search: CellSearch, index: int) -> TrialDone | None:
        """The slot's end; None as long as another process has it."""
        stop_if_asked()
        if not search.is_done(index):
            search.refresh(older_than=FRESH_SECONDS)
        if search.is_done(index) or search.given_up(index, self._watch.me.session):
            return TrialDone(Slot(search.cell, search.phase, index), resumed=True)
        holder = search.holder(index)
        if holder is not None:
            if not self._watch.is_over(holder):
                return None
            self._end(search, holder)
        if self._leave_free:
            self._leave_free -= 1
            return None
        claim = search.claim(index, self._watch.me)
        self._window = min(4 * self._window, WIDEST) if claim is None else max(1, self._window // 2)
        self._leave_free = self._random.randrange(self._window)
        if claim is None:
            return None
        with held(search.storage, claim.trial._trial_id):
            result = self._run_claim(search, claim)
        if result is None:
            return None
        return TrialDone(claim.slot, False, result, search.curve(claim), claim.broke_before)

    def _end(self, search: CellSearch, holder: FrozenTrial) -> None:
        search.end_dead(holder)
        if "run_id" in holder.user_attrs:
            self._recorder.finish(holder.user_attrs["run_id"], _its_runner_died())

    def _run_claim(self, search: CellSearch, claim: Claim) -> TrialResult | None:
        """Run it and write down how it ended; None if the lease was lost meanwhile."""
        run_id = self._recorder.start(claim.params, _run_name(claim), self._run_tags(search, claim))
        try:
            told(lambda: claim.trial.set_user_attr("run_id", run_id))
            self._inputs.check(search, claim)
            result = self._run(search, claim, run_id)
        except LeaseLost:
            self._recorder.finish(run_id, _taken_over())
            return None
        except BaseException as error:  # Ctrl-C ends the study, but not silently
            killed = TrialResult("killed", reason=f"{type(error).__name__}: {error}"[:500])
            self._close(search, claim, run_id, killed)
            raise
        return result if self._close(search, claim, run_id, result) else None

    def _close(self, search: CellSearch, claim: Claim, run_id: str, result: TrialResult) -> bool:
        self._recorder.write(run_id, result)
        if search.close(claim, result):
            self._recorder.end(run_id, result.outcome)
            return True
        self._recorder.finish(run_id, _taken_over())
        return False

    def _leave(self, search: CellSearch, claim: Claim, run_id: str) -> None:
        """Nothing but the end of its process ends that trial: write down why, and end it."""
        reason = (
            "took longer than --max-minutes, and could not be interrupted: its process was ended"
        )
        try:
            self._close(search, claim, run_id, TrialResult("timeout", reason=reason))
            print(f"{claim.slot} {reason}; run the same command again to go on", file=sys.stderr)
        finally:  # also when a store does not answer: nothing else would
            end_process(1)

    def _run(self, search: CellSearch, claim: Claim, run_id: str) -> TrialResult:
        seconds = self._bench.limits.seconds
        try:
            with if_hung(seconds, partial(self._leave, search, claim, run_id)), time_limit(seconds):
                return Attempt(self._bench, claim, run_id).run()
        except (LeaseLost, Terminated, KeyboardInterrupt):
            raise
        except BaseException as error:
            # Only words leave this block: the traceback would keep the model's tensors alive.
            outcome, reason = classify(error), reason_of(error)
        gc.collect()
        return TrialResult(outcome, self._device.peaks(), reason)

    def _run_tags(self, search: CellSearch, claim: Claim) -> dict[str, object]:
        chosen = {} if search.phase == "tune" else {"chosen": search.chosen_index}
        return {
            "study": self._study.name,
            **self._bench.tags,
            **input_tags(claim.inputs),
            **claim.slot.cell,
            "cell": cell_label(claim.slot.cell),
            "phase": claim.slot.phase,
            "index": claim.slot.index,
            "seed": claim.seed,
            "attempt": claim.attempt,
            "optuna_trial": claim.trial.number,
            OWNER: self._watch.me.name,
            **chosen,
        }


def stop_if_too_long(row: Row, slot: Slot, result: TrialResult) -> None:
    """Raises StudyStopped, in words, if so many trials in a row, that one the last, ended badly."""
    if row.is_too_long:
        raise StudyStopped(
            f"{row.length} trials in a row ended as {result.outcome}, the last one ({slot}) with: "
            f"{result.reason}"
        )


def _taken_over() -> TrialResult:
    return TrialResult("killed", reason="another process took it for dead and took it over")


def _run_name(claim: Claim) -> str:
    kind = "trial" if claim.slot.phase == "tune" else "repeat"
    return f"{cell_label(claim.slot.cell)} {kind} {claim.slot.index}"
