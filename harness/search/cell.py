"""One phase of one cell in the record: open a trial, report its epochs, record how it ended."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from itertools import pairwise
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from harness.core.errors import UserError
from harness.core.records import Slot, TrialRecord
from harness.core.results import EpochResult, TrialResult
from harness.core.selection import METRICS
from harness.core.signals import TrialTimeout, time_limit
from harness.core.spec import TrialSpec
from harness.core.study import Cell, Phase, Study, cell_label
from harness.search.plan import trial_seed
from harness.search.record import (
    DIED,
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
        record: what is known of it so far.
        spec: the spec that the space returned, or the exception if it failed.
    """

    trial: optuna.Trial
    record: TrialRecord
    spec: TrialSpec | UserError


class CellSearch:
    """One phase of one cell. Trials that a dead process left open are ended.

    Args:
        record: the study's record.
        study: the whole study.
        cell: one value per factor.
        chosen: a trial of the cell's chosen configuration; given for the repeats, None while tuning.

    Attributes:
        attempts: every attempt at its slots that has ended.
        abandoned: those of them that a dead process left open.
    """

    def __init__(
        self,
        record: Record,
        study: Study,
        cell: Cell,
        chosen: TrialRecord | None = None,
    ) -> None:
        self.record, self.study, self.cell, self.chosen = record, study, cell, chosen
        self.phase: Phase = "tune" if chosen is None else "repeat"
        self._metric = METRICS[study.metric]
        self._number = None if chosen is None else chosen.slot.round
        self.name = study_name(study.name, cell_label(cell), self._number)
        median = study.pruner == "median"
        self._optuna = optuna.create_study(
            study_name=self.name,
            storage=record.storage,
            direction="maximize",
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner() if median else optuna.pruners.NopPruner(),
        )
        if [d.name for d in self._optuna.directions] != ["MAXIMIZE"]:
            raise UserError(f"Optuna study {self.name!r} was not made by this harness")
        self.attempts = self._read()
        ended = self._end_abandoned()
        if ended:
            self.attempts = self._read()
        self.abandoned = [trial for trial in self.attempts if trial.number in ended]

    def _read(self) -> Attempts:
        trials = read_trials(self.record.storage, self.name, self.cell, self._number)
        return Attempts(trials, self.study.tuning_runs if self.phase == "tune" else sys.maxsize)

    def _end_abandoned(self) -> set[int]:
        """End the trials that a dead process left open, and return their numbers. If the result of one was
        already written, it ends with that result."""
        found = self._optuna.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        for trial in found:
            result = trial.user_attrs.get("result") or self._result_of_abandoned(trial)
            self._tell(trial.number, result)
        return {trial.number for trial in found}

    def _result_of_abandoned(self, trial: FrozenTrial) -> Mapping[str, Any]:
        """The result of a trial of a dead process. A crash is written, because it depends on earlier
        attempts; readers take a trial without a result as killed."""
        about = trial.user_attrs.get("slot", {})
        if not about.get("inline", False):
            return {"outcome": "killed"}
        *before, last = self.attempts.at(about["index"])
        result = result_of_dead(before, last, DIED)
        if result["outcome"] == "crashed":
            storage = self.record.storage
            study = storage.get_study_id_from_name(self.name)
            number = storage.get_trial_id_from_study_id_trial_number(study, trial.number)
            storage.set_trial_user_attr(number, "result", result)
            print(f"warning: {last.slot}: {result['reason']}", file=sys.stderr)
        return result

    def begin(self, index: int, inline: bool, workers: int = 1) -> OpenTrial:
        """Open a trial for a slot and draw from the space.

        If the space fails for these values, no error is raised; the trial's `spec` is then the exception.

        Args:
            index: index of the slot.
            inline: whether this process also runs the trial, so that the trial may end this process.
            workers: number of trials at a time.
        """
        slot = Slot(self.cell, self.phase, index, self.study.fold_count)
        base = sampler_of(self.study, self.cell, slot.round)
        self._optuna.sampler = fixed(dict(self.chosen.params), base) if self.chosen else base
        trial = patiently(self._optuna.ask)
        about = {
            "index": index,
            "folds": slot.folds,
            "attempt": len(self.attempts.at(index)) + 1,
            "seed": trial_seed(self.study, self.phase, index),
            "metric": self.study.metric,
            "inline": inline,
            "workers": workers,
        }
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
        return OpenTrial(trial, record, drawn)

    def report(self, open_trial: OpenTrial, epoch: EpochResult) -> None:
        """Record an epoch."""
        open_trial.record = open_trial.record.but(epochs=(*open_trial.record.epochs, epoch))
        merit = self._metric.merit(epoch.validation)
        patiently(lambda: open_trial.trial.report(merit, epoch.epoch))

    def finish(
        self, open_trial: OpenTrial, result: TrialResult, predictions: str = ""
    ) -> TrialRecord:
        """Record how a trial ended; it does not count before."""
        written = {
            "outcome": result.outcome,
            "reason": result.reason,
            "metrics": dict(result.metrics),
            "notes": dict(result.notes),
            "predictions": predictions,
        }
        return self._end(open_trial, written)

    def lose(self, open_trial: OpenTrial, how: str, final: bool = False) -> TrialRecord:
        """Record that the process of a trial died.

        Args:
            open_trial: the trial.
            how: cause of the death.
            final: whether it was already run again without success.
        """
        now = open_trial.record
        before = self.attempts.at(now.slot.index)
        return self._end(open_trial, result_of_dead(before, now, f"{DIED}: {how}", final))

    def _end(self, open_trial: OpenTrial, result: Mapping[str, Any]) -> TrialRecord:
        trial, now = open_trial.trial, open_trial.record
        epochs = [list(astuple(e)) for e in now.epochs]
        written = {**result, "epochs": epochs, "provenance": dict(now.provenance)}
        patiently(lambda: trial.set_user_attr("result", written))
        told = patiently(lambda: self._tell(trial, result))
        ended = trial_record(self.name, told, now.slot, self._number)
        self.attempts.add(ended)
        return ended

    def _tell(self, trial: optuna.Trial | int, result: Mapping[str, Any]) -> FrozenTrial:
        """Set Optuna's own final state of a trial whose result is written."""
        if result["outcome"] == "complete":
            merit = float(self._metric.merit(result["metrics"]))
            return self._optuna.tell(trial, merit, skip_if_finished=True)
        state = TrialState.PRUNED if result["outcome"] == "pruned" else TrialState.FAIL
        return self._optuna.tell(trial, state=state, skip_if_finished=True)


def result_of_dead(
    before: Sequence[TrialRecord], now: TrialRecord, how: str, final: bool = False
) -> dict[str, Any]:
    """The result of a trial whose process died: killed, and its slot is tried again from the last
    checkpoint; crashed for good if the slot keeps ending its process.

    Args:
        before: earlier attempts at the slot.
        now: the trial.
        how: cause of the death.
        final: whether it was already run again without success.
    """
    deaths = [t for t in before if t.died] + [now]
    stuck = 1
    for earlier, later in pairwise(len(t.epochs) for t in deaths):
        stuck = 1 if later > earlier else stuck + 1
    if final or stuck >= DEATHS_AT_MOST or len(deaths) >= ATTEMPTS_OF_THE_DYING:
        reason = f"its process ended {len(deaths)} times ({how}); it is not tried again"
        return {"outcome": "crashed", "lasting": True, "reason": reason, "died": True}
    return {"outcome": "killed", "reason": how, "died": True}
