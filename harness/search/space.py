"""Draw a TrialSpec from a study's `space`, and refuse suggestions that cannot be drawn, recorded or resumed.

Optuna itself takes a list as a choice, an infinite bound (which fails later, with an OverflowError) and a
second range under a known name (which is silently ignored).
"""

from __future__ import annotations

import dataclasses
import math
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from harness.core.errors import UserError, first_line
from harness.core.signals import Terminated, TrialTimeout
from harness.core.spec import TrialSpec
from harness.core.study import SAFE_NAME, Cell, Phase, Study, cell_label, unknown_argument
from harness.search.plan import trial_fold, trial_seed
from harness.search.sampling import sampler_of

OWN = frozenset({"slot", "task", "result"})
"""User attributes that the harness itself sets on a trial."""
PASSED_ON = (
    UserError,
    KeyboardInterrupt,
    Terminated,
    TrialTimeout,
    optuna.exceptions.StorageInternalError,
)
"""Exceptions that pass through unchanged: their message is complete, or they come from outside."""
Choice = bool | int | float | str | None


class CarefulTrial:
    """A wrapper of an Optuna trial that refuses invalid suggestions."""

    def __init__(self, trial: optuna.trial.BaseTrial) -> None:
        self._trial = trial
        self._asked: dict[str, BaseDistribution] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trial, name)

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """A number in [low, high]."""
        self._note(name, FloatDistribution, low=low, high=high, step=step, log=log)
        return self._trial.suggest_float(name, low, high, step=step, log=log)

    def suggest_int(
        self, name: str, low: int, high: int, *, step: int = 1, log: bool = False
    ) -> int:
        """A whole number in [low, high]."""
        self._note(name, IntDistribution, low=low, high=high, step=step, log=log)
        return self._trial.suggest_int(name, low, high, step=step, log=log)

    def suggest_categorical(self, name: str, choices: Sequence[Choice]) -> Choice:
        """One of the choices."""
        given = list(choices)
        for choice in given:
            plain = choice is None or type(choice) in (bool, int, float, str)
            if not plain or (isinstance(choice, float) and not math.isfinite(choice)):
                raise UserError(
                    f"space: choices of {name!r} must be names, finite numbers, True, False or None, "
                    f"got {choice!r} (choose a label and look the value up in a dict)"
                )
        self._note(name, CategoricalDistribution, choices=given)
        return self._trial.suggest_categorical(name, given)

    def set_user_attr(self, key: str, value: Any) -> None:
        """Set a user attribute; names that the harness uses are refused."""
        if key in OWN:
            raise UserError(
                f"space: the attribute {key!r} is reserved by the harness; choose another name"
            )
        self._trial.set_user_attr(key, value)

    def _note(self, name: object, kind: Callable[..., BaseDistribution], **options: object) -> None:
        """Raises UserError unless the name and the distribution are valid, and the same as before."""
        if not isinstance(name, str) or not SAFE_NAME.fullmatch(name):
            raise UserError(
                f"space: parameter name {str(name)[:120]!r} must be at most 100 letters, digits, '_', '.', "
                "'-'"
            )
        for bound in (options[k] for k in ("low", "high") if k in options):
            if not isinstance(bound, (int, float)) or not math.isfinite(bound):
                raise UserError(f"space: bounds of {name!r} must be finite numbers, got {bound!r}")
        try:
            distribution = kind(**options)
        except ValueError as error:  # Optuna says what must hold
            raise UserError(f"space: {name!r}: {first_line(error)}") from error
        before = self._asked.setdefault(name, distribution)
        if before != distribution:
            raise UserError(
                f"space: {name!r} is suggested twice, as {before} and as {distribution}; use two names"
            )


def draw(
    study: Study, cell: Cell, trial: optuna.trial.BaseTrial, phase: Phase, index: int
) -> TrialSpec:
    """The study's space at this trial, with the seed and fold of its place in the plan.

    Raises:
        UserError: if the space fails or returns no TrialSpec.
    """
    label = cell_label(cell)
    try:
        spec = study.space(CarefulTrial(trial), **cell)
    except PASSED_ON:
        raise
    except BaseException as error:  # whatever the user's function raises; it may call sys.exit
        where = traceback.extract_tb(error.__traceback__)[-1]
        raise UserError(
            f"study {study.name!r}: space failed for {label}: {type(error).__name__}: "
            f"{first_line(error)}{unknown_argument(error)} ({where.filename}:{where.lineno})"
        ) from error
    if not isinstance(spec, TrialSpec):
        raise UserError(
            f"study {study.name!r}: space must return a TrialSpec, "
            f"got {type(spec).__name__} for {label}"
        )
    return dataclasses.replace(
        spec, seed=trial_seed(study, phase, index), fold=trial_fold(study, phase, index)
    )


def first_draw(study: Study, cell: Cell) -> TrialSpec:
    """The spec of the cell's first trial, drawn without a storage, for the checks at the start and --dry-run.

    Raises:
        UserError: if the study's space does not work for this cell.
    """
    with quiet_optuna():
        scratch = optuna.create_study(sampler=sampler_of(study, cell, 0))
    return draw(study, cell, scratch.ask(), "tune", 0)


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Limit Optuna's log to errors inside the block."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
