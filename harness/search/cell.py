"""One phase of one cell in the record: open a trial, report its epochs, record how it ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass, field

import optuna
from optuna.trial import FrozenTrial, TrialState

from harness.core.errors import UserError
from harness.core.records import Slot, TrialRecord
from harness.core.results import BROKEN, EpochResult, TrialResult
from harness.core.selection import METRICS
from harness.core.signals import TrialTimeout, time_limit
from harness.core.spec import TrialSpec
from harness.core.study import Cell, Phase, Study, cell_label
from harness.search.plan import trial_seed
from harness.search.record import (
    Attempts,
    Record,
    opened_record,
    read_trials,
    study_name,
    trial_record,
)
from harness.search.sampling import fixed, sampler_of
from harness.search.space import draw
from harness.search.storage import patiently
from harness.training.device import MIB
from harness.training.provenance import inputs_of

DRAW_SECONDS = 270.0
"""Time limit of `space` for one trial; long, because its suggestions are written to a storage that may
restart."""
DEATHS_AT_MOST = 2
"""A slot is not tried again after so many deaths of its process without a new epoch in between."""
ATTEMPTS_OF_THE_DYING = 4
"""The same with new epochs in between: the first run and three more."""


@dataclass
class OpenTrial:
    """A running trial.

    Attributes:
        trial: Optuna's trial.
        record: what is recorded so far.
        spec: the spec that the space returned, or the exception if it failed.
        broke_before: whether an earlier attempt at the slot ended as broken.
        epochs: results of its epochs so far.
        provenance: tags of the process that runs it.
    """

    trial: optuna.Trial
    record: TrialRecord
    spec: TrialSpec | UserError
    broke_before: bool
    epochs: list[EpochResult] = field(default_factory=list)
    provenance: Mapping[str, str] = field(default_factory=dict)

    @property
    def now(self) -> TrialRecord:
        """The record with the epochs so far."""
        return self.record.but(epochs=tuple(self.epochs), provenance=self.provenance)


class CellSearch:
    """One phase of one cell.

    Args:
        record: the study's record.
        study: the whole study.
        cell: one value per factor.
        chosen: a trial of the cell's chosen configuration; given for the repeats, None while tuning.
        memory: current memory limit of a trial in bytes. Trials that a lower limit kept from running are run
            now; 0 runs none of them.

    Attributes:
        attempts: every attempt at its slots that has ended.
    """

    def __init__(
        self,
        record: Record,
        study: Study,
        cell: Cell,
        chosen: TrialRecord | None = None,
        memory: float = 0,
    ) -> None:
        self.record, self.study, self.cell, self.chosen = record, study, cell, chosen
        self.phase: Phase = "tune" if chosen is None else "repeat"
        self.memory = memory
        self._metric = METRICS[study.metric]
        self._number = None if chosen is None else chosen.slot.round
        self.name = study_name(study.name, cell_label(cell), self._number)
        self._optuna = optuna.create_study(
            study_name=self.name,
            storage=record.storage,
            direction="maximize",
            load_if_exists=True,
            pruner=_pruner(study),
        )
        if [d.name for d in self._optuna.directions] != ["MAXIMIZE"]:
            raise UserError(f"Optuna study {self.name!r} was not made by this harness")
        self.attempts = self._read()

    def _read(self) -> Attempts:
        return Attempts(read_trials(self.record.storage, self.name, self.cell, self._number))

    def slot(self, index: int) -> Slot:
        """The index-th slot."""
        return Slot(self.cell, self.phase, index, self.study.fold_count)

    def close_abandoned(self) -> list[TrialRecord]:
        """End the trials that a dead process left open, and return them. If the result of one was already
        written, it ends with that result."""
        closed = []
        for trial in self._optuna.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            result = trial.user_attrs.get("result", {})
            self._tell(trial.number, result.get("outcome", "killed"), result.get("metrics", {}))
            closed.append(trial.number)
        if closed:
            self.attempts = self._read()
        return [t for t in self.attempts if t.number in closed]

    def done(self, index: int) -> TrialRecord | None:
        """The attempt that completed the slot; None as long as the slot needs work."""
        trial = self.attempts.completed(index)
        if trial is None or (trial.not_run and _needed(trial) <= self.memory):
            return None
        return trial

    def kills_its_process(self, index: int) -> bool:
        """True if attempts at that slot keep killing their process, so that it is not tried again."""
        deaths = [t for t in self.attempts.at(index) if t.died]
        stuck = 0
        for before, after in zip([None, *deaths], deaths, strict=False):
            progress = before is not None and len(after.epochs) > len(before.epochs)
            stuck = 1 if progress else stuck + 1
        return stuck >= DEATHS_AT_MOST or len(deaths) >= ATTEMPTS_OF_THE_DYING

    @property
    def reference(self) -> TrialRecord | None:
        """Any completed trial; one is enough to compare with, because one function draws all trials of a
        cell."""
        return self.attempts.any()

    def begin(self, index: int, inline: bool, workers: int = 1) -> OpenTrial:
        """Open a trial for a slot and draw from the space.

        If the space fails for these values, no error is raised; the trial's `spec` is then the exception.

        Args:
            index: index of the slot.
            inline: whether this process also runs the trial, so that the trial may end this process.
            workers: number of trials at a time.
        """
        slot = self.slot(index)
        base = sampler_of(self.study, self.cell, slot.round)
        self._optuna.sampler = fixed(dict(self.chosen.params), base) if self.chosen else base
        trial = patiently(self._optuna.ask)
        attempts = self.attempts.at(index)
        seed = trial_seed(self.study, self.phase, index)
        about = self._about(slot, seed) | {"inline": inline, "workers": workers}
        patiently(lambda: trial.set_user_attr("slot", about))
        drawn: TrialSpec | UserError
        try:
            with time_limit(DRAW_SECONDS, f"took longer than {DRAW_SECONDS:g} s"):
                drawn = draw(self.study, self.cell, trial, self.phase, index)
            inputs = inputs_of(drawn.target, drawn.backbone, drawn.source)
            task = {"spec": drawn.flat(), "inputs": inputs}
            patiently(lambda: trial.set_user_attr("task", task))
        except (UserError, TrialTimeout) as error:  # with other values the space may work
            drawn = UserError(f"space: {error}" if isinstance(error, TrialTimeout) else str(error))
        record = opened_record(self.name, trial, slot, self._number)
        return OpenTrial(trial, record, drawn, any(t.outcome in BROKEN for t in attempts))

    def _about(self, slot: Slot, seed: int | None) -> dict[str, object]:
        """What the record says of a trial when it is created."""
        attempt, metric = len(self.attempts.at(slot.index)) + 1, self.study.metric
        place = {"index": slot.index, "folds": slot.folds}
        return {**place, "attempt": attempt, "seed": seed, "metric": metric}

    def report(self, open_trial: OpenTrial, epoch: EpochResult) -> None:
        """Record an epoch."""
        open_trial.epochs.append(epoch)
        merit = self._metric.merit(epoch.validation)
        patiently(lambda: open_trial.trial.report(merit, epoch.epoch))

    def finish(
        self,
        open_trial: OpenTrial,
        result: TrialResult,
        predictions: str = "",
        died: bool = False,
    ) -> TrialRecord:
        """Record how a trial ended; it does not count before."""
        trial = open_trial.trial
        written = {
            "outcome": result.outcome,
            "reason": result.reason,
            "metrics": dict(result.metrics),
            "epochs": [list(astuple(e)) for e in open_trial.epochs],
            "notes": dict(result.notes),
            "provenance": dict(open_trial.provenance),
            "predictions": predictions,
            "died": died,
        }
        patiently(lambda: trial.set_user_attr("result", written))
        told = patiently(lambda: self._tell(trial, result.outcome, result.metrics))
        ended = trial_record(self.name, told, open_trial.record.slot, self._number)
        self.attempts.add(ended)
        return ended

    def _tell(
        self, trial: optuna.Trial | int, outcome: str, metrics: Mapping[str, float]
    ) -> FrozenTrial:
        """Set Optuna's own final state of a trial whose result is written."""
        if outcome == "complete":
            merit = float(self._metric.merit(metrics))
            return self._optuna.tell(trial, merit, skip_if_finished=True)
        state = TrialState.PRUNED if outcome == "pruned" else TrialState.FAIL
        return self._optuna.tell(trial, state=state, skip_if_finished=True)

    def give_up(self, index: int) -> TrialRecord:
        """Record, as a further trial, that a slot keeps killing its process."""
        attempts = self.attempts.at(index)
        last = attempts[-1]
        how = next((t.reason for t in reversed(attempts) if t.reason), "")
        died = sum(t.died for t in attempts)
        reason = f"its process ended {died} times ({how}); it is not tried again"
        about = self._about(last.slot, last.seed)
        result = {"outcome": "crashed", "lasting": True, "reason": reason}
        task = {"spec": dict(last.spec), "inputs": dict(last.inputs)}
        kept = self._optuna.get_trials(deepcopy=False)[last.number]
        self._optuna.add_trial(
            optuna.trial.create_trial(
                state=TrialState.FAIL,
                params=kept.params,
                distributions=kept.distributions,
                user_attrs={"slot": about, "task": task, "result": result},
            )
        )
        told = self._optuna.get_trials(deepcopy=False)[-1]
        ended = trial_record(self.name, told, self.slot(index), self._number)
        self.attempts.add(ended)
        return ended

    def choose(self) -> TrialRecord | None:
        """A trial of the configuration that is best on validation; see `Attempts.best`."""
        return self.attempts.best(self.study.metric, self.study.tuning_runs)


def _needed(trial: TrialRecord) -> float:
    """Forecast memory of the trial in bytes."""
    return trial.metrics["forecast_peak_mib"] * MIB


def _pruner(study: Study) -> optuna.pruners.BasePruner:
    return optuna.pruners.MedianPruner() if study.pruner == "median" else optuna.pruners.NopPruner()
