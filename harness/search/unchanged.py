"""Is this the study that was recorded, and are both of its stores the ones that recorded it?"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import optuna
from optuna.trial import TrialState

from harness.environment import IMAGES, inputs_of
from harness.errors import UserError, first_line
from harness.search.cells import CellSearch, Claim, trial_seed
from harness.search.trials import trials_of
from harness.spec import Study, TrialSpec


def check_unchanged(search: CellSearch) -> None:
    """Refuse to mix results of two spaces.

    Args:
        search: one phase of one cell, as the study file now has it.

    Raises:
        UserError: showing what the study file now says differently for a recorded trial.
    """
    witness = search.witness
    if witness is None:
        return
    fixed = optuna.trial.FixedTrial(witness.params)
    seed = trial_seed(search.study, search.phase, witness.user_attrs["index"])
    try:
        # A field that TrialSpec gained since then had its default.
        defaults = {f.name: f.default for f in dataclasses.fields(TrialSpec)}
        now = search.draw(fixed, seed).flat()
        then = {k: defaults[k] for k in now if k in defaults} | witness.user_attrs["spec"]
        changes = difference(then, now)
    except Exception as error:  # whatever the user's function raises
        changes = [first_line(error)]
    ranges = (witness.distributions, fixed.distributions)
    recorded = TrialSpec.from_flat(witness.user_attrs["spec"])
    inputs = inputs_of(recorded.target, recorded.backbone, recorded.source)
    known = witness.user_attrs.get("inputs", {})  # older studies know less of theirs
    changes += difference(known, {k: v for k, v in inputs.items() if k in known})
    changes += difference(*({f"range of {k}": str(v) for k, v in r.items()} for r in ranges))
    if changes:
        raise UserError(
            f"the space of study {search.study.name!r} changed since it was recorded: "
            f"{'; '.join(changes[:3])}; give the study another name"
        )


class Inputs:
    """What the trials of a study have read, as far as this process knows: it must stay the same."""

    def __init__(self) -> None:
        self._seen: dict[tuple[object, ...], str] = {}

    def check(self, search: CellSearch, claim: Claim) -> None:
        """Refuse to mix results from images or weights that were written while the study runs.

        Raises:
            UserError: if an earlier trial had read others under the same names.
        """
        if search.witness is not None:
            then = search.witness.user_attrs
            self._differing(then["spec"], then.get("inputs", {}))
        if changes := self._differing(claim.params, claim.inputs):
            raise UserError(
                f"study {search.study.name!r}: {'; '.join(changes)}: files were written while it ran; put "
                "them back as they were, or give the study another name"
            )

    def _differing(self, spec: Mapping[str, object], inputs: Mapping[str, str]) -> list[str]:
        """Those of the hashes that are not what was seen first under the same names, in words."""
        changes = []
        for what, now in inputs.items():
            names = ("target",) if what == IMAGES else ("source", "backbone")
            then = self._seen.setdefault((what, *(spec[name] for name in names)), now)
            changes += difference({what: then}, {what: now})
        return changes


def difference(recorded: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    """What changed between two flat specs, in words."""
    missing = "absent"
    return [
        f"{k} was {recorded.get(k, missing)}, is {now.get(k, missing)}"
        for k in {**recorded, **now}
        if recorded.get(k, missing) != now.get(k, missing)
    ]


def check_stores_agree(
    study: Study,
    storage: optuna.storages.BaseStorage,
    outcomes: Callable[[], Mapping[str, str]],
) -> None:
    """Refuse to go on when one of the two stores was lost: half of the study would be missing, or double.

    Other processes may record meanwhile: they open a run in MLflow first, end its trial in Optuna next, and
    the run in MLflow last. So each store is read before the one that must know as much.

    Args:
        study: the study.
        storage: Optuna's memory.
        outcomes: reads the outcome of each of the study's runs from MLflow, by run id; "" is unfinished.

    Raises:
        UserError: saying which store lacks what.
    """
    runs = outcomes()
    known = {
        trial.user_attrs["run_id"]
        for _, trial in trials_of(study, storage, TrialState.COMPLETE)
        if "run_id" in trial.user_attrs
    }
    complete = {run for run, outcome in runs.items() if outcome == "complete"}
    unknown = known - runs.keys()
    for lost, found, missing in (
        (unknown and unknown - outcomes().keys(), "search storage", "MLflow store"),
        (complete - known, "MLflow store", "search storage"),
    ):
        if lost:
            raise UserError(
                f"study {study.name!r}: {len(lost)} complete trials of the {found} are unknown to the "
                f"{missing}, which was deleted or is another one; give the study another name, or "
                f"delete it from the {found} too"
            )
