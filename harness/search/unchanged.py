"""Refuse to resume a study whose space, examples or weights have changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import optuna

from harness.core.errors import UserError, first_line
from harness.core.records import StudyInfo, TrialRecord
from harness.core.spec import TrialSpec
from harness.core.units import Seconds
from harness.search.cell import CellSearch
from harness.search.record import Record
from harness.search.space import draw
from harness.training.provenance import IMAGES, WEIGHTS, inputs_of


def check_unchanged(search: CellSearch) -> None:
    """Refuse to resume a study whose space has changed.

    Args:
        search: one phase of one cell, from the current study file.

    Raises:
        UserError: naming the fields of a recorded trial that the current study file sets differently.
    """
    # One trial is enough to compare with, because one function draws all trials of a cell.
    recorded = search.attempts.any()
    if recorded is None:
        return
    fixed = optuna.trial.FixedTrial(dict(recorded.params))
    try:
        # A field that TrialSpec gained since then had its default.
        defaults = {f.name: f.default for f in dataclasses.fields(TrialSpec)}
        spec = draw(search.study, search.cell, fixed, search.phase, recorded.slot.index)
        known = recorded.inputs
        now: dict[str, object] = {**spec.flat()}
        then = {k: defaults[k] for k in now if k in defaults} | dict(recorded.spec)
        inputs = inputs_of(spec.target, spec.backbone, spec.source)
        # Equal files at another path are the same examples, or weights.
        for name, what in (("target", IMAGES), ("source", WEIGHTS)):
            if what in known and known[what] == inputs.get(what):
                now[name] = then[name]
        changes = difference(then, now)
        changes += difference(known, {k: v for k, v in inputs.items() if k in known})
    except Exception as error:  # whatever the user's function raises
        changes = [first_line(error)]
    ranges = {k: str(v) for k, v in fixed.distributions.items()}
    changes += difference(
        *({f"range of {k}": v for k, v in r.items()} for r in (recorded.ranges, ranges))
    )
    if changes:
        raise UserError(
            f"the space of study {search.study.name!r} changed since it was recorded: "
            f"{'; '.join(changes[:3])}; give the study another name"
        )


def continued(record: Record, info: StudyInfo) -> StudyInfo:
    """The description of a study that may have been recorded before. The time for screening stays as it was
    first recorded, so that a race with a changed budget continues with the same finalists.

    Raises:
        UserError: if it had another metric or another number of folds, by which other configurations would
            have been chosen, or a budget and has none now, or the reverse; naming both.
    """
    if not record.has(info.name):
        return info
    recorded, other = record.info(info.name), ""
    if recorded.metric != info.metric:
        other = f"chooses by {recorded.metric} in its record, now by {info.metric}"
    elif recorded.folds != info.folds:
        then, now = (
            "a single split" if n == 1 else f"{n} folds" for n in (recorded.folds, info.folds)
        )
        other = f"has {then} in its record, now {now}"
    elif (recorded.budget is None) != (info.budget is None):
        then, now = (
            "equal numbers of trials" if b is None else f"a budget of {Seconds(b)}"
            for b in (recorded.budget, info.budget)
        )
        other = f"has {then} in its record, now {now}"
    if other:
        raise UserError(f"study {info.name!r} {other}; give the study another name")
    return dataclasses.replace(info, screening=recorded.screening)


class Inputs:
    """Hashes of the examples and weights that this process has seen trials read; they must not change."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, ...], str] = {}

    def check(self, search: CellSearch, trial: TrialRecord) -> None:
        """Refuse examples or weights that have changed while the study runs.

        Raises:
            UserError: if an earlier trial read different files under the same names.
        """
        if (recorded := search.attempts.any()) is not None:
            self._seen = inputs_read(recorded) | self._seen
        now = inputs_read(trial)
        self._seen = now | self._seen
        if changes := [
            f"{what} was {self._seen[what, *of]}, is {found}"
            for (what, *of), found in now.items()
            if self._seen[what, *of] != found
        ]:
            raise UserError(
                f"study {search.study.name!r}: {'; '.join(changes)}: files were written while it ran; put "
                "them back as they were, or give the study another name"
            )


def inputs_read(trial: TrialRecord) -> dict[tuple[str, ...], str]:
    """What a trial read, the examples of a target or the weights of a backbone from a source -> its hash."""
    names = {IMAGES: ("target",), WEIGHTS: ("backbone", "source")}
    return {
        (what, *(str(trial.spec.get(name)) for name in names.get(what, ()))): found
        for what, found in trial.inputs.items()
    }


def difference(recorded: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    """Describe the differences between two flat specs."""
    missing = "absent"
    return [
        f"{k} was {recorded.get(k, missing)}, is {now.get(k, missing)}"
        for k in {**recorded, **now}
        if recorded.get(k, missing) != now.get(k, missing)
    ]
