"""What has one cell tried, what is left, and what did it choose? One Optuna study per cell.

The configuration of slot i is a function of (study seed, cell, i) alone for random sampling, so an
interrupted and resumed study tries what an uninterrupted one would have tried.
"""

from __future__ import annotations

import dataclasses
import traceback
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import optuna
from optuna.trial import FrozenTrial, TrialState

from harness.backbone import weights_sha256
from harness.data import load_target
from harness.search.space import CarefulTrial
from harness.spec import (
    Cell,
    Phase,
    Study,
    TrialResult,
    TrialSpec,
    UserError,
    cell_label,
    derive_seed,
    first_line,
    unknown_argument,
)

RETRIED: frozenset[str] = frozenset({"killed", "crashed", "audit_failed"})
"""Outcomes that say nothing about the configuration; a later run of the command tries again."""


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
    """A slot that is being run: its Optuna trial and the complete spec."""

    slot: Slot
    trial: optuna.Trial
    spec: TrialSpec
    attempt: int


class CellSearch:
    """One phase of one cell in Optuna.

    Args:
        study: the whole study.
        cell: one value per factor.
        storage: where Optuna keeps it.
        chosen: the cell's chosen tuning trial; given for the repeats, None while tuning.
    """

    def __init__(
        self,
        study: Study,
        cell: Cell,
        storage: optuna.storages.BaseStorage,
        chosen: FrozenTrial | None = None,
    ) -> None:
        self.study, self.cell, self._chosen = study, cell, chosen
        self.phase: Phase = "tune" if chosen is None else "repeat"
        name = f"{study.name}/{cell_label(cell)}"
        if chosen is not None:
            # A new choice (after more trials) gets repeats of its own.
            name += f"/repeats of {chosen.user_attrs['index']}"
        self._optuna = optuna.create_study(
            study_name=name,
            storage=storage,
            direction="maximize",
            load_if_exists=True,
            pruner=_pruner(study),
        )
        if [d.name for d in self._optuna.directions] != ["MAXIMIZE"]:
            raise UserError(f"Optuna study {name!r} in this storage was not made by this harness")
        self._attempts: dict[int, int] = {}
        self._done: dict[int, FrozenTrial] = {}
        for trial in self._optuna.get_trials(deepcopy=False):
            self._note(trial)

    def _note(self, trial: FrozenTrial) -> None:
        index = trial.user_attrs.get("index")
        if index is None:
            return
        self._attempts[index] = self._attempts.get(index, 0) + 1
        # A trial that a dead runner left behind is failed without an outcome: it was killed.
        if trial.state.is_finished() and trial.user_attrs.get("outcome", "killed") not in RETRIED:
            self._done[index] = trial

    @property
    def chosen_index(self) -> int:
        """Slot of the tuning trial whose configuration is repeated; only for repeats."""
        assert self._chosen is not None
        index: int = self._chosen.user_attrs["index"]
        return index

    def is_done(self, index: int) -> bool:
        """True if that slot needs no more work."""
        return index in self._done

    def check_unchanged(self) -> None:
        """Refuse to mix results of two spaces.

        Raises:
            UserError: showing what the study file now says differently for a recorded trial.
        """
        # Every trial of a cell comes from one function: one witness is enough.
        witness = next(iter(self._done.values()), None)
        if witness is None:
            return
        fixed = optuna.trial.FixedTrial(witness.params)
        seed = trial_seed(self.study, self.phase, witness.user_attrs["index"])
        try:
            # A field that TrialSpec gained since then had its default.
            defaults = {f.name: f.default for f in dataclasses.fields(TrialSpec)}
            now = self.draw(fixed, seed).flat()
            then = {k: defaults[k] for k in now if k in defaults} | witness.user_attrs["spec"]
            changes = difference(then, now)
        except Exception as error:  # whatever the user's function raises
            changes = [first_line(error)]
        ranges = (witness.distributions, fixed.distributions)
        recorded = TrialSpec.from_flat(witness.user_attrs["spec"])
        inputs = inputs_of(recorded.target, recorded.backbone, recorded.source)
        changes += difference(witness.user_attrs.get("inputs", inputs), inputs)
        changes += difference(*({f"range of {k}": str(v) for k, v in r.items()} for r in ranges))
        if changes:
            raise UserError(
                f"the space of study {self.study.name!r} changed since it was recorded: "
                f"{'; '.join(changes[:3])}; give the study another name"
            )

    def claim(self, index: int) -> Claim:
        """Open the Optuna trial of a slot and draw its spec."""
        base = _sampler(self.study, self.cell, index)
        if self._chosen is not None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                base = optuna.samplers.PartialFixedSampler(self._chosen.params, base)
        self._optuna.sampler = base
        trial = self._optuna.ask()
        seed = trial_seed(self.study, self.phase, index)
        try:
            spec = self.draw(trial, seed)
        except BaseException:
            self._optuna.tell(trial, state=TrialState.FAIL)
            raise
        self._attempts[index] = self._attempts.get(index, 0) + 1
        trial.set_user_attr("spec", spec.flat())
        trial.set_user_attr("inputs", inputs_of(spec.target, spec.backbone, spec.source))
        trial.set_user_attr("index", index)
        slot = Slot(self.cell, self.phase, index)
        return Claim(slot, trial, spec, self._attempts[index])

    def draw(self, trial: optuna.trial.BaseTrial, seed: int) -> TrialSpec:
        """The study's space at this trial, with the harness's seed.

        Raises:
            UserError: if the space fails or returns no TrialSpec.
        """
        cell = cell_label(self.cell)
        try:
            spec = self.study.space(CarefulTrial(trial), **self.cell)
        except UserError:
            raise
        except (Exception, SystemExit) as error:  # whatever the user's function raises
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

    def close(self, claim: Claim, result: TrialResult) -> None:
        """Tell Optuna how a trial ended. Until this is done the trial does not count."""
        claim.trial.set_user_attr("outcome", result.outcome)
        if result.reason:
            claim.trial.set_user_attr("reason", result.reason)
        if result.outcome == "complete":
            claim.trial.set_user_attr("val_loss", float(result.metrics["val_loss"]))
            told = self._optuna.tell(claim.trial, float(result.metrics["val_accuracy"]))
        else:
            state = TrialState.PRUNED if result.outcome == "pruned" else TrialState.FAIL
            told = self._optuna.tell(claim.trial, state=state)
        if result.outcome not in RETRIED:
            self._done[claim.slot.index] = told

    def choose(self) -> FrozenTrial | None:
        """The complete trial that is best on validation: accuracy, then loss, then the earlier one."""
        complete = [
            t
            for i, t in self._done.items()
            if i < self.study.trials and t.state == TrialState.COMPLETE
        ]
        return max(complete, key=_preference, default=None)


def _preference(trial: FrozenTrial) -> tuple[float, float, int]:
    assert trial.value is not None
    return trial.value, -trial.user_attrs["val_loss"], -trial.user_attrs["index"]


def trial_seed(study: Study, phase: Phase, index: int) -> int:
    """One seed for all tuning (configurations compete on equal images), one per repeat, shared by cells."""
    return (
        derive_seed(study.seed, "tune")
        if phase == "tune"
        else derive_seed(study.seed, phase, index)
    )


def difference(recorded: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    """What changed between two flat specs, in words."""
    missing = "absent"
    return [
        f"{k} was {recorded.get(k, missing)}, is {now.get(k, missing)}"
        for k in {**recorded, **now}
        if recorded.get(k, missing) != now.get(k, missing)
    ]


@lru_cache(maxsize=64)
def inputs_of(target: str, backbone: str, source: str) -> dict[str, str]:
    """Hashes of the data and, where they are one file, of the weights behind these names."""
    weights = weights_sha256(source, backbone)
    inputs = {"sha256 of the images": load_target(target).fingerprint()}
    return inputs | ({"sha256 of the weights": weights} if weights else {})


def check_stores_agree(study: Study, storage: optuna.storages.BaseStorage, runs: set[str]) -> None:
    """Refuse to go on when one of the two stores was lost: half of the study would be missing, or double.

    Args:
        study: the study.
        storage: Optuna's memory.
        runs: ids of the study's complete MLflow runs.

    Raises:
        UserError: saying which store lacks what.
    """
    known = {
        trial.user_attrs["run_id"]
        for name in optuna.get_all_study_names(storage)
        if name.startswith(f"{study.name}/")
        for trial in optuna.load_study(study_name=name, storage=storage).get_trials(deepcopy=False)
        if trial.state == TrialState.COMPLETE and "run_id" in trial.user_attrs
    }
    for lost, found, missing in (
        (known - runs, "search storage", "MLflow store"),
        (runs - known, "MLflow store", "search storage"),
    ):
        if lost:
            raise UserError(
                f"study {study.name!r}: {len(lost)} complete trials of the {found} are unknown to the "
                f"{missing}, which was deleted or is another one; give the study another name, or "
                f"delete it from the {found} too"
            )


def first_draw(study: Study, cell: Cell) -> TrialSpec:
    """The spec of the cell's first trial, without a storage: what the door checks and --dry-run shows.

    Raises:
        UserError: if the study's space does not work for this cell.
    """
    scratch = optuna.create_study(sampler=_sampler(study, cell, 0))
    search = CellSearch(study, cell, optuna.storages.InMemoryStorage())
    return search.draw(scratch.ask(), trial_seed(study, "tune", 0))


def reap(study: Study, storage: optuna.storages.BaseStorage) -> list[str]:
    """Fail every trial of the study that a dead runner left running; returns their MLflow run ids."""
    run_ids = []
    for name in optuna.get_all_study_names(storage):
        if not name.startswith(f"{study.name}/"):
            continue
        found = optuna.load_study(study_name=name, storage=storage)
        for trial in found.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            # A trial killed between its outcome and its end never counted; say so in the record.
            storage.set_trial_user_attr(trial._trial_id, "outcome", "killed")
            found.tell(trial.number, state=TrialState.FAIL)
            if "run_id" in trial.user_attrs:
                run_ids.append(trial.user_attrs["run_id"])
    return run_ids


def _sampler(study: Study, cell: Cell, index: int) -> optuna.samplers.BaseSampler:
    seed = derive_seed(study.seed, study.name, cell_label(cell), index)
    if study.sampler == "tpe":
        return optuna.samplers.TPESampler(seed=seed, group=True, multivariate=True)
    return optuna.samplers.RandomSampler(seed=seed)


def _pruner(study: Study) -> optuna.pruners.BasePruner:
    return optuna.pruners.MedianPruner() if study.pruner == "median" else optuna.pruners.NopPruner()
