"""What has one cell tried, what is left, and what did it choose? One Optuna study per cell.

The configuration of slot i is a function of (study seed, cell, i) alone for random and Sobol sampling, so
an interrupted and resumed study, or one with many workers, tries what one uninterrupted worker would try.
"""

from __future__ import annotations

import dataclasses
import math
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from statistics import fmean

import optuna
from optuna.trial import FrozenTrial, TrialState

from harness.environment import inputs_of
from harness.errors import UserError, first_line
from harness.results import TrialResult
from harness.search.leases import OWNER, SESSION, Owner, held
from harness.search.outcomes import BROKEN
from harness.search.sampling import fixed, sampler_of
from harness.search.signals import Terminated, TrialTimeout, time_limit
from harness.search.space import CarefulTrial
from harness.search.trials import (
    RETRIED,
    YIELDED,
    end_dead,
    needed,
    note_end,
    optuna_name,
    outcome_of,
    preference,
    was_not_run,
)
from harness.spec import Cell, Phase, Study, TrialSpec, cell_label, derive_seed, unknown_argument

DRAW_SECONDS = 270.0
"""So long `space` may take for one trial: what it suggests is written to the storage, which may be away for
AWAY_SECONDS."""
NOT_OF_THE_SPACE = (
    UserError,
    KeyboardInterrupt,
    Terminated,
    TrialTimeout,
    optuna.exceptions.StorageInternalError,
    optuna.exceptions.UpdateFinishedTrialError,
)
"""What passes through `space` as it is: it says by itself what is wrong, or comes from outside."""
KILLED_AT_MOST = 3
"""Times that one run of the command begins a slot whose workers die."""


@dataclass(frozen=True)
class Slot:
    """One place in the plan: the `index`-th trial, or repeat, of a cell."""

    cell: Cell
    phase: Phase
    index: int

    def __str__(self) -> str:
        kind = "trial" if self.phase == "tune" else "repeat"
        return f"{cell_label(self.cell)}, {kind} {self.index}"


@dataclass(frozen=True)
class Claim:
    """A slot that is being run.

    Attributes:
        slot: which one.
        trial: Optuna's.
        seed: of the trial.
        drawn: what the space made of it, or why it made nothing.
        attempt: counted from 1.
        broke_before: an earlier attempt ended as one that is broken.
        inputs: hashes of what it reads; none if the space made nothing.
    """

    slot: Slot
    trial: optuna.Trial
    seed: int
    drawn: TrialSpec | UserError
    attempt: int
    broke_before: bool
    inputs: Mapping[str, str]

    @property
    def spec(self) -> TrialSpec:
        """The complete spec.

        Raises:
            UserError: if the space made none.
        """
        if isinstance(self.drawn, UserError):
            raise self.drawn
        return self.drawn

    @property
    def params(self) -> Mapping[str, object]:
        """The spec as it is recorded; what was suggested, if the space made none of it."""
        failed = isinstance(self.drawn, UserError)
        return self.trial.params if failed else self.spec.flat()


class CellSearch:
    """One phase of one cell in Optuna.

    Args:
        study: the whole study.
        cell: one value per factor.
        storage: where Optuna keeps it.
        chosen: the cell's chosen tuning trial; given for the repeats, None while tuning.
        memory: bytes that a trial may take now. Those that a lower limit has kept from being run are begun
            anew; 0 leaves all as they are.
    """

    def __init__(
        self,
        study: Study,
        cell: Cell,
        storage: optuna.storages.BaseStorage,
        chosen: FrozenTrial | None = None,
        memory: float = 0,
    ) -> None:
        self.study, self.cell, self._chosen, self.memory = study, cell, chosen, memory
        self.phase: Phase = "tune" if chosen is None else "repeat"
        name = optuna_name(study.name, cell_label(cell), chosen)
        self._optuna = optuna.create_study(
            study_name=name,
            storage=storage,
            direction="maximize",
            load_if_exists=True,
            pruner=_pruner(study),
        )
        if [d.name for d in self._optuna.directions] != ["MAXIMIZE"]:
            raise UserError(f"Optuna study {name!r} in this storage was not made by this harness")
        self._looked = -math.inf
        self._settled = 0  # so many trials from the first on have ended and are noted
        self._attempts: dict[int, dict[int, FrozenTrial]] = {}
        self._done: dict[int, FrozenTrial] = {}
        self.refresh()

    def refresh(self, older_than: float = 0.0) -> None:
        """Look at what other processes have done meanwhile, if the last look is so many seconds old."""
        if time.monotonic() - self._looked < older_than:
            return
        self._looked = time.monotonic()
        trials = self._optuna.get_trials(deepcopy=False)
        for trial in trials[self._settled :]:
            self._note(trial)
        while self._settled < len(trials) and trials[self._settled].state.is_finished():
            self._settled += 1

    def _note(self, trial: FrozenTrial) -> None:
        index = trial.user_attrs.get("index")
        if index is None:
            return
        attempts = self._attempts.setdefault(index, {})
        if trial.user_attrs.get("outcome") == YIELDED:
            attempts.pop(trial.number, None)
            return
        attempts[trial.number] = trial
        note_end(self._done, trial)

    def holder(self, index: int) -> FrozenTrial | None:
        """The running trial of that slot; the first one where several were opened at once."""
        attempts = self._attempts.get(index, {})
        running = [n for n, t in attempts.items() if t.state == TrialState.RUNNING]
        return attempts[min(running)] if running else None

    def given_up(self, index: int, session: str) -> bool:
        """True if this run of the command has had enough of that slot: it crashed, or killed its workers."""
        ends = [
            outcome_of(t)
            for t in self._attempts.get(index, {}).values()
            if t.state.is_finished() and t.user_attrs.get(SESSION) == session
        ]
        return ends.count("killed") >= KILLED_AT_MOST or any(
            end in RETRIED and end != "killed" for end in ends
        )

    @property
    def storage(self) -> optuna.storages.BaseStorage:
        """Where Optuna keeps it."""
        return self._optuna._storage

    def end_dead(self, trial: FrozenTrial) -> None:
        """Fail a running trial of this cell whose process is gone."""
        end_dead(self._optuna, trial)
        self.refresh()

    @property
    def chosen_index(self) -> int:
        """Slot of the tuning trial whose configuration is repeated; only for repeats."""
        assert self._chosen is not None
        index: int = self._chosen.user_attrs["index"]
        return index

    def is_done(self, index: int) -> bool:
        """True if that slot needs no more work."""
        trial = self._done.get(index)
        return trial is not None and not (was_not_run(trial) and needed(trial) <= self.memory)

    def ends(self, count: int) -> tuple[str, ...]:
        """Outcomes of those of the first `count` slots that need no more work."""
        return tuple(outcome_of(self._done[i]) for i in range(count) if i in self._done)

    @property
    def witness(self) -> FrozenTrial | None:
        """Some trial that needs no more work: every trial of a cell comes from one function."""
        return next(iter(self._done.values()), None)

    def claim(self, index: int, owner: Owner) -> Claim | None:
        """Open a trial for a slot and draw from the space; None if another process was first.

        Of all trials opened for one slot at once the one with the lowest number is the one that counts,
        whatever the storage.
        """
        base = sampler_of(self.study, self.cell, index)
        self._optuna.sampler = fixed(self._chosen.params, base) if self._chosen else base
        trial_id = self._optuna._storage.create_new_trial(
            self._optuna._study_id, _opened(index, owner)
        )
        self.refresh()
        trial = optuna.Trial(self._optuna, trial_id)
        first = self.holder(index)
        if self.is_done(index) or first is None or first.number != trial.number:
            trial.set_user_attr("outcome", YIELDED)
            self._optuna.tell(trial, state=TrialState.FAIL)
            return None
        try:
            with held(self.storage, trial_id):
                return self._fill(trial, index)
        except optuna.exceptions.UpdateFinishedTrialError:
            return None  # another process took this one for dead while it drew
        except BaseException:
            end_dead(self._optuna, trial)
            raise

    def _fill(self, trial: optuna.Trial, index: int) -> Claim:
        seed = trial_seed(self.study, self.phase, index)
        drawn: TrialSpec | UserError
        inputs: dict[str, str] = {}
        try:
            with time_limit(DRAW_SECONDS):
                drawn = self.draw(trial, seed)
            inputs = inputs_of(drawn.target, drawn.backbone, drawn.source)
            trial.set_user_attr("spec", drawn.flat())
            trial.set_user_attr("inputs", inputs)
        except (UserError, TrialTimeout) as error:  # with other values the space may work
            drawn = UserError(f"space: {error}" if isinstance(error, TrialTimeout) else str(error))
        attempts = self._attempts[index].values()
        broke = any(t.state.is_finished() and outcome_of(t) in BROKEN for t in attempts)
        slot = Slot(self.cell, self.phase, index)
        return Claim(slot, trial, seed, drawn, len(attempts), broke, inputs)

    def draw(self, trial: optuna.trial.BaseTrial, seed: int) -> TrialSpec:
        """The study's space at this trial, with the harness's seed.

        Raises:
            UserError: if the space fails or returns no TrialSpec.
        """
        cell = cell_label(self.cell)
        try:
            spec = self.study.space(CarefulTrial(trial), **self.cell)
        except NOT_OF_THE_SPACE:
            raise
        except BaseException as error:  # whatever the user's function raises; it may call sys.exit
            where = traceback.extract_tb(error.__traceback__)[-1]
            raise UserError(
                f"study {self.study.name!r}: space failed for {cell}: {type(error).__name__}: "
                f"{first_line(error)}{unknown_argument(error)} ({where.filename}:{where.lineno})"
            ) from error
        if not isinstance(spec, TrialSpec):
            raise UserError(
                f"study {self.study.name!r}: space must return a TrialSpec, "
                f"got {type(spec).__name__} for {cell}"
            )
        return dataclasses.replace(spec, seed=seed)

    def close(self, claim: Claim, result: TrialResult) -> bool:
        """Tell Optuna how a trial ended; until this is done it does not count.

        Returns:
            False if the lease was lost: another process has ended the trial, and its word stands.
        """
        try:
            claim.trial.set_user_attr("outcome", result.outcome)
            if result.reason:
                claim.trial.set_user_attr("reason", result.reason)
            claim.trial.set_user_attr("metrics", dict(result.metrics))
            if result.outcome == "complete":
                told = self._optuna.tell(claim.trial, float(result.metrics["val_accuracy"]))
            else:
                state = TrialState.PRUNED if result.outcome == "pruned" else TrialState.FAIL
                told = self._optuna.tell(claim.trial, state=state)
        except optuna.exceptions.UpdateFinishedTrialError:
            return False
        except ValueError:  # tell's own word for a trial that has ended
            if not self._has_ended(claim):
                raise
            return False
        self._note(told)
        return True

    def _has_ended(self, claim: Claim) -> bool:
        found = self._optuna._storage.get_trial(claim.trial._trial_id)
        return found.state.is_finished()

    def choose(self) -> FrozenTrial | None:
        """The complete trial that is best on validation: accuracy, then loss, then the earlier one."""
        complete = [
            t
            for i, t in self._done.items()
            if i < self.study.trials and t.state == TrialState.COMPLETE
        ]
        return max(complete, key=preference, default=None)

    def summary(self) -> dict[str, float]:
        """Of a cell whose repeats are done: validation of the chosen trial, means over the repeats."""
        assert self._chosen is not None
        assert self._chosen.value is not None
        kept = [t for i, t in self._done.items() if i < self.study.repeats]
        metrics = [t.user_attrs.get("metrics", {}) for t in kept if t.state == TrialState.COMPLETE]
        means = {
            f"mean_{name}": fmean(m[name] for m in metrics)
            for name in ("val_accuracy", "test_accuracy", "train_seconds")
            if metrics and all(name in m for m in metrics)
        }
        return {"best_val_accuracy": self._chosen.value, **means}

    def curve(self, claim: Claim) -> tuple[float, ...]:
        """Validation accuracy after each epoch of a trial that was closed."""
        trial = self._attempts[claim.slot.index][claim.trial.number]
        return tuple(trial.intermediate_values[step] for step in sorted(trial.intermediate_values))


def _opened(index: int, owner: Owner) -> FrozenTrial:
    """A running trial with its slot and its lease from the first moment on."""
    return FrozenTrial(
        number=-1,
        trial_id=-1,
        state=TrialState.RUNNING,
        value=None,
        values=None,
        datetime_start=datetime.now(),
        datetime_complete=None,
        params={},
        distributions={},
        user_attrs={"index": index, OWNER: owner.name, SESSION: owner.session},
        system_attrs={},
        intermediate_values={},
    )


def trial_seed(study: Study, phase: Phase, index: int) -> int:
    """One seed for all tuning (configurations compete on equal images), one per repeat, shared by cells."""
    return (
        derive_seed(study.seed, "tune")
        if phase == "tune"
        else derive_seed(study.seed, phase, index)
    )


def first_draw(study: Study, cell: Cell) -> TrialSpec:
    """The spec of the cell's first trial, without a storage: what the door checks and --dry-run shows.

    Raises:
        UserError: if the study's space does not work for this cell.
    """
    scratch = optuna.create_study(sampler=sampler_of(study, cell, 0))
    search = CellSearch(study, cell, optuna.storages.InMemoryStorage())
    return search.draw(scratch.ask(), trial_seed(study, "tune", 0))


def _pruner(study: Study) -> optuna.pruners.BasePruner:
    return optuna.pruners.MedianPruner() if study.pruner == "median" else optuna.pruners.NopPruner()
