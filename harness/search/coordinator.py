"""Run a study: open each slot in the record, pass its trial to the executor, and record the results.

`Coordinator.run` yields one SlotDone per slot; the caller shows the progress. This process is the only one
that writes to the record and to MLflow.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from harness.core.caller import no_garbage_collection
from harness.core.race import Entrant
from harness.core.records import Slot, StudyInfo, TrialRecord
from harness.core.results import BROKEN, EpochResult, TrialResult, predictions_parquet
from harness.core.signals import Terminated, stop_requested
from harness.core.study import Study, cell_label
from harness.data.cached import Cache
from harness.search.cell import CellSearch, OpenTrial
from harness.search.executors import Died, Executor
from harness.search.plan import Shard
from harness.search.record import Record, StorageFailed, rounds_of, storage_failures
from harness.search.unchanged import Inputs, check_unchanged, continued
from harness.tracking.projection import Projection
from harness.training.device import MIB
from harness.training.outcomes import FailureStreak
from harness.training.trial import Limits, Message, Started, TrialTask


class StudyStopped(Exception):
    """The study ended itself because going on would waste the budget."""


@dataclass(frozen=True)
class RunContext:
    """What a run of a study needs besides the study and the executor.

    Attributes:
        record: record of the study's trials.
        projection: writes the record to MLflow.
        device: name of the device.
        cache: keeps decoded examples and outputs of frozen groups.
        limits: memory and time limits of a trial.
        shard: the cells to be run.
        tags: tags of every run, in addition to those of the trial.
    """

    record: Record
    projection: Projection
    device: str = "cpu"
    cache: Cache = field(default_factory=Cache)
    limits: Limits = field(default_factory=Limits)
    shard: Shard = field(default_factory=Shard)
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SlotDone:
    """One slot of the plan that needs no more work in this run of the command.

    Attributes:
        slot: the slot.
        trial: the attempt that this run made; None if the slot was done before.
    """

    slot: Slot
    trial: TrialRecord | None = None


class Coordinator:
    """Keeps the executor busy; writes to the record first, which is authoritative, and then to MLflow.

    Checks that this is the recorded study, and ends trials that a dead process left open.

    Args:
        study: the study, with the wanted numbers of trials and repeats.
        info: the study as a whole, for the record.
        context: record, projection, device and limits.
        executor: runs the trials; closed at the end.

    Attributes:
        info: the study as a whole, as it is recorded.

    Raises:
        UserError: if the space, the examples or the weights have changed, or the record has another format.
        StorageFailed: if the record cannot be used.
    """

    def __init__(
        self, study: Study, info: StudyInfo, context: RunContext, executor: Executor
    ) -> None:
        self._study, self._context, self._executor = study, context, executor
        self._record, self._projection = context.record, context.projection
        self._running: dict[int, tuple[CellSearch, OpenTrial]] = {}
        self._submitted = 0
        self._unshown: list[TrialRecord] = []
        self._streak, self._inputs = FailureStreak(), Inputs()
        with storage_failures(), no_garbage_collection():
            self.info = continued(self._record, info)
            self._record.describe(self.info)
            self._tune = [
                CellSearch(self._record, study, cell) for cell in context.shard.cells(study)
            ]
            for search in self._tune:
                check_unchanged(search)
            self._repeat: list[CellSearch] = []
            if study.seconds is None:
                self._repeat = self._repeats()

    def _repeats(self) -> list[CellSearch]:
        """The repeats of the chosen configuration of each cell."""
        return [
            CellSearch(s.record, s.study, s.cell, best)
            for s in self._tune
            if (best := s.attempts.best(s.study.metric)) is not None
        ]

    def _begin_repeats(self, repeats: list[CellSearch]) -> None:
        self._repeat = repeats
        # These were still open when MLflow was compared with the record.
        self._unshown += [trial for search in repeats for trial in search.abandoned]

    def trials(self) -> list[TrialRecord]:
        """Every attempt at a slot, including those that run now; may be called from another thread."""
        ended = [trial for search in (*self._tune, *self._repeat) for trial in search.attempts]
        return [*ended, *(trial.record for _, trial in list(self._running.values()))]

    def run(self) -> Iterator[SlotDone]:
        """Tune every cell, choose on validation, repeat the chosen configurations and score them on test;
        with a budget as far as the race of the cells says.

        Cells take turns, so that a slowdown of the machine affects all of them equally.

        Raises:
            StudyStopped: after too many failures of one kind in a row.
            StorageFailed: if the record cannot be written.
            Terminated: on SIGTERM, and after SIGUSR1 when every running epoch has ended.
            UserError: if examples or weights have changed since the study began.
        """
        with storage_failures():
            self._projection.settle()
            try:
                yield from self._equal() if self._study.seconds is None else self._race()
            except BaseException as error:
                self._end_all(error)
                raise
            finally:
                self._executor.close()
            self._projection.settle()

    def _equal(self) -> Iterator[SlotDone]:
        """The same number of trials and repeats for every cell."""
        yield from self._work_off(_in_turns(self._tune, range(self._study.tuning_runs)))
        self._begin_repeats(self._repeats())
        yield from self._work_off(_in_turns(self._repeat, range(self._study.repeats)))

    def _race(self) -> Iterator[SlotDone]:
        """The rounds of the race. Slots that are recorded are not run again, so it is resumed by replaying
        it."""
        searches = {Entrant(cell_label(search.cell)): search for search in self._tune}
        attempts = {one: search.attempts for one, search in searches.items()}
        for now in rounds_of(self.info, attempts):
            if now.phase == "repeat" and not self._repeat:
                for one in now.entrants:
                    tuned = searches[Entrant(one.cell)]
                    drawn = tuned.attempts.completed(one.chosen or 0)
                    searches[one] = CellSearch(self._record, self._study, tuned.cell, drawn)
                    attempts[one] = searches[one].attempts
                self._begin_repeats([searches[one] for one in now.entrants])
            yield from self._work_off(_in_turns([searches[e] for e in now.entrants], now.indices))

    def _work_off(self, slots: Sequence[tuple[CellSearch, int]]) -> Iterator[SlotDone]:
        """Run every slot that is not done yet."""
        left = deque(slots)
        while left or self._running:
            while left and len(self._running) < self._executor.capacity and not stop_requested():
                search, index = left.popleft()
                done = self._begin(search, index)
                if done is not None:
                    yield done
                    self._check_streak(search, done)
            self._show_ended()
            if not self._running:
                if stop_requested():
                    raise Terminated
                continue
            number, message = self._executor.receive()
            search, _ = self._running[number]
            done = self._received(number, message)
            if done is None:
                continue
            if done.trial is not None and done.trial.died and not done.trial.lasts:
                left.appendleft((search, done.slot.index))
                continue
            yield done
            self._check_streak(search, done)
        self._show_ended()
        if stop_requested():
            raise Terminated

    def _show_ended(self) -> None:
        """Show in MLflow what ended, when the caller knows it and the workers have something to do."""
        while self._unshown:
            self._projection.show(self._unshown.pop(0))

    def _begin(self, search: CellSearch, index: int) -> SlotDone | None:
        """Submit the slot's trial; returns a SlotDone if there is nothing to run."""
        done = search.attempts.completed(index)
        if done is not None and not self._fits_now(done):
            return SlotDone(done.slot)
        trial = search.begin(index, self._executor.inline, self._executor.capacity)
        self._submitted += 1
        self._running[self._submitted] = search, trial
        if isinstance(trial.spec, Exception):
            return self._finish(self._submitted, TrialResult("crashed", reason=str(trial.spec)))
        self._inputs.check(search, trial.record)
        task = TrialTask(
            spec=trial.spec,
            test=search.phase == "repeat",
            pruned=self._prunes(search),
            device=self._context.device,
            cache=self._context.cache,
            limits=self._context.limits,
            checkpoints=self._record.folder / "checkpoints",
            inputs=trial.record.inputs,
        )
        self._executor.submit(self._submitted, task)
        return None

    def _fits_now(self, done: TrialRecord) -> bool:
        """True if a lower memory limit kept the trial from running."""
        limit = self._context.limits.memory
        return done.not_run and (limit is None or done.metrics["forecast_peak_mib"] * MIB <= limit)

    def _received(self, number: int, message: Message | Died) -> SlotDone | None:
        search, trial = self._running[number]
        if isinstance(message, Started):
            tags = {**self._context.tags, **message.provenance}
            trial.record = trial.record.but(provenance=tags)
        elif isinstance(message, EpochResult):
            search.report(trial, message)
            if self._prunes(search):
                self._executor.reply(number, not trial.trial.should_prune())
            self._projection.show_live(trial.record)
        elif isinstance(message, TrialResult):
            return self._finish(number, message)
        else:
            return self._ended(number, search.lose(trial, message.how, message.final))
        return None

    def _prunes(self, search: CellSearch) -> bool:
        """Whether trials of this phase are asked after each epoch whether to go on."""
        return search.phase == "tune" and self._study.pruner != "none"

    def _finish(self, number: int, result: TrialResult) -> SlotDone:
        """Record how a trial ended."""
        search, trial = self._running[number]
        file = ""
        if result.predictions is not None:
            content = predictions_parquet(result.predictions)
            file = self._record.keep_predictions(self._study.name, content)
        return self._ended(number, search.finish(trial, result, file))

    def _ended(self, number: int, ended: TrialRecord) -> SlotDone:
        del self._running[number]
        self._unshown.append(ended)
        stopped = ended.outcome == "killed" and stop_requested()
        return SlotDone(ended.slot, None if stopped else ended)

    def _check_streak(self, search: CellSearch, done: SlotDone) -> None:
        """Raises StudyStopped if this trial completes too long a streak of failures."""
        if done.trial is None or done.trial.outcome == "killed":
            return
        *before, _ = search.attempts.at(done.slot.index)
        broke_before = any(trial.outcome in BROKEN for trial in before)
        self._streak = self._streak.then(done.trial.outcome, done.trial.reason, broke_before)
        if self._streak.is_too_long:
            raise StudyStopped(
                f"{self._streak.length} trials in a row ended as {done.trial.outcome}, the last one "
                f"({done.slot}) with: {done.trial.reason}"
            )

    def _end_all(self, error: BaseException) -> None:
        """Record all running trials as killed, because the study ends now."""
        what = "SIGTERM" if isinstance(error, Terminated) else type(error).__name__
        self._show_ended()
        for number in list(self._running):
            try:
                self._finish(
                    number, TrialResult("killed", reason=f"stopped by {what}: {error}"[:500])
                )
            except (
                Exception
            ) as failure:  # the record may be what failed, and each attempt may wait for minutes
                if not isinstance(error, (StorageFailed, type(failure))):
                    print(f"warning: {failure}", file=sys.stderr)
                return
            self._show_ended()


def _in_turns(searches: Sequence[CellSearch], indices: range) -> list[tuple[CellSearch, int]]:
    return [(search, index) for index in indices for search in searches]
