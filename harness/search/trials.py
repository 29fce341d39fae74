"""What does Optuna say of a trial? How it ended, whether that lasts, and in which study it is found."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import optuna
from optuna.trial import FrozenTrial, TrialState

from harness.measure import MIB
from harness.results import NOT_RUN
from harness.search.outcomes import BROKEN
from harness.spec import Study

RETRIED: frozenset[str] = BROKEN | {"killed"}
"""Outcomes that say nothing about the configuration; a later run of the command tries again."""
YIELDED = "yielded"
"""Of a trial in Optuna that was opened when another process had just taken the slot: nothing was run."""


def optuna_name(study: str, cell: str, chosen: FrozenTrial | None = None) -> str:
    """What the Optuna study of a cell is called; a new choice (after more trials) gets repeats of its own."""
    return f"{study}/{cell}" + (f"/repeats of {chosen.user_attrs['index']}" if chosen else "")


def preference(trial: FrozenTrial) -> tuple[float, float, int]:
    """Of two complete trials of a cell the one with the greater key is chosen."""
    assert trial.value is not None
    attrs = trial.user_attrs
    # Studies of before metrics were kept whole have the loss alone.
    loss = attrs["metrics"]["val_loss"] if "metrics" in attrs else attrs["val_loss"]
    return trial.value, -loss, -attrs["index"]


def outcome_of(trial: FrozenTrial) -> str:
    """Of a trial that has ended; one that a dead runner left behind was failed without an outcome."""
    outcome: str = trial.user_attrs.get("outcome", "killed")
    return outcome


def was_not_run(trial: FrozenTrial) -> bool:
    """True if its forecast alone has ended it."""
    reason: str = trial.user_attrs.get("reason", "")
    return reason.startswith(NOT_RUN)


def note_end(done: dict[int, FrozenTrial], trial: FrozenTrial) -> None:
    """Keep, by slot, the first trial whose end lasts; one that was not run gives way to a later one.

    Args:
        done: index of a slot -> its trial; changed.
        trial: of some slot.
    """
    index = trial.user_attrs["index"]
    lasts = trial.state.is_finished() and outcome_of(trial) not in RETRIED
    if lasts and (index not in done or was_not_run(done[index])):
        done[index] = trial


def needed(trial: FrozenTrial) -> float:
    """Bytes that were forecast for it."""
    mib: float = trial.user_attrs["metrics"]["forecast_peak_mib"]
    return mib * MIB


def trials_of(
    study: Study, storage: optuna.storages.BaseStorage, *states: TrialState
) -> Iterator[tuple[optuna.Study, FrozenTrial]]:
    """Every trial of the study in one of these states, with the Optuna study that holds it."""
    for name in optuna.get_all_study_names(storage):
        if name.startswith(f"{study.name}/"):
            found = optuna.load_study(study_name=name, storage=storage)
            for trial in found.get_trials(deepcopy=False, states=states):
                yield found, trial


def end_dead(found: optuna.Study, trial: FrozenTrial | optuna.Trial) -> None:
    """Fail a trial that nobody works on any more; another process may have done so a moment ago."""
    with suppress(optuna.exceptions.UpdateFinishedTrialError, ValueError):
        # A trial killed between its outcome and its end never counted; say so in the record.
        found._storage.set_trial_user_attr(trial._trial_id, "outcome", "killed")
        found.tell(trial.number, state=TrialState.FAIL)
