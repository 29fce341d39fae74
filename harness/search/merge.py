"""Merge bundles of one study, from several machines, into another record.

All bundles are read and checked before anything is written: first the predictions, then the description of
the study, then each trial. Items that are there already are not written again, so an interrupted merge can be
repeated to complete it.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from harness.core.errors import UserError, first_line
from harness.core.records import StudyInfo, TrialRecord
from harness.search.bundle_file import DATABASE, PREDICTIONS, unpack_bundle
from harness.search.bundles import Part, add_trials, kept_study_file, optuna_study
from harness.search.record import Record, done_of
from harness.search.storage import read_storage
from harness.training.provenance import IMAGES, WEIGHTS

SAME = {
    "space_sha256": "hash of the study file",
    "factors": "factors",
    "trials": "trials per cell",
    "repeats": "repeats per cell",
    "sampler": "sampler",
    "seed": "seed",
}
"""Fields that must be equal for two records to be of one study -> their names in messages."""


@dataclass(frozen=True)
class Merge:
    """The planned merge.

    Attributes:
        info: the study as a whole.
        additions: each bundle with its new trials.
    """

    info: StudyInfo
    additions: Sequence[tuple[Part, Sequence[TrialRecord]]]


def read_bundle(path: Path, folder: Path) -> Part:
    """Read a bundle.

    Args:
        path: path of the bundle.
        folder: an empty folder, into which it is unpacked.

    Raises:
        UserError: if it cannot be read, is damaged, has a newer format, or is not a bundle.
    """
    manifest = unpack_bundle(path, folder)
    try:
        record = Record(read_storage(f"sqlite:///{folder / DATABASE}"), folder)
        part = Part.of(record, manifest.study, f"bundle {path}")
        # Checked now, so that a damaged file does not stop the merge half way.
        for trial in part.trials:
            _identity(trial)
            if trial.predictions and (
                not PREDICTIONS.fullmatch(trial.predictions)
                or not record.predictions(trial).is_file()
            ):
                raise UserError(f"it lacks the test predictions of {trial.slot}")
        done_of(part.trials, sys.maxsize)
    except UserError as error:
        raise UserError(f"bundle {path}: {error}") from error
    except Exception as error:  # a record of somebody else's making may hold anything
        raise UserError(f"bundle {path}: its record cannot be read: {first_line(error)}") from error
    return part


def plan_merge(bundles: Sequence[Part], target: Part | None = None) -> Merge:
    """Plan the merge; nothing is written.

    Args:
        bundles: bundles to be merged, at least one.
        target: the study in the target record; None if it is not there.

    Raises:
        UserError: if the bundles are of different studies, or two of them completed the same slot.
    """
    first = target or bundles[0]
    info = first.info if target else replace(first.info, command=_anywhere(first.info.command))
    leaks: dict[str, None] = {}
    settled: dict[tuple[str, int], tuple[TrialRecord, Part]] = {}
    read: dict[tuple[str, ...], tuple[str, Part]] = {}
    known: set[str] = set()
    additions = []
    for part in ([target] if target else []) + list(bundles):
        _require_same_study(first, part)
        _require_same_inputs(part, read)
        _require_free_slots(part, known, settled)
        new = []
        for trial in part.trials:
            if trial.outcome and (identity := _identity(trial)) not in known:
                known.add(identity)
                new.append(trial)
        leaks |= dict.fromkeys(part.info.leaks)
        if part is not target:
            additions.append((part, new))
    command = _without(info.command, "--cells")
    return Merge(replace(info, leaks=tuple(leaks), command=command), additions)


def write_merge(merge: Merge, record: Record) -> None:
    """Write the new trials. An interrupted merge is completed by planning and writing it again."""
    name = merge.info.name
    for part, trials in merge.additions:
        for trial in trials:
            if trial.predictions:
                record.keep_predictions(name, part.record.predictions(trial).read_bytes().decode())
        if part.study_file is not None and kept_study_file(record, merge.info) is None:
            kept = record.folder / "studies" / name / merge.info.study_file
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_bytes(part.study_file.read_bytes())
    record.describe(merge.info)
    for part, trials in merge.additions:
        add_trials(part, trials, record.storage)


def _identity(trial: TrialRecord) -> str:
    """A key that is equal for the same trial in two records, whatever its number there."""
    told = asdict(trial.but(key=optuna_study(trial), number=0, superseded=False))
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()


def _require_same_study(one: Part, other: Part) -> None:
    if one.info.name != other.info.name:
        raise UserError(
            f"{other.where} is of study {other.info.name!r}, {one.where} of {one.info.name!r}: "
            "one merge is of one study; nothing was merged"
        )
    for field, what in SAME.items():
        mine, theirs = getattr(one.info, field), getattr(other.info, field)
        if json.dumps(mine) != json.dumps(theirs):  # the order of labels counts
            raise UserError(
                f"{other.where} and {one.where} are not of the same study {one.info.name!r}: {what} "
                f"{_brief(theirs)} and {_brief(mine)}; nothing was merged"
            )


def _require_same_inputs(part: Part, read: dict[tuple[str, ...], tuple[str, Part]]) -> None:
    """Check that all machines had the same images and weights, because cells are compared with each other."""
    for trial in part.trials:
        names = {IMAGES: ("target",), WEIGHTS: ("backbone", "source")}
        for what, found in trial.inputs.items():
            of = tuple(str(trial.spec.get(name)) for name in names.get(what, ()))
            before, where = read.setdefault((what, *of), (found, part))
            if before != found:
                raise UserError(
                    f"{part.where} and {where.where} differ in the {what} of {' from '.join(of)}: "
                    f"{_brief(found)} and {_brief(before)}; nothing was merged"
                )


def _require_free_slots(
    part: Part, known: set[str], settled: dict[tuple[str, int], tuple[TrialRecord, Part]]
) -> None:
    """Raises UserError if another trial has already completed a slot. A trial that was not run because of
    its memory forecast is replaced by one that was."""
    by_study: defaultdict[str, list[TrialRecord]] = defaultdict(list)
    for trial in part.trials:
        by_study[optuna_study(trial)].append(trial)
    for name, trials in by_study.items():
        for index, trial in done_of(trials, sys.maxsize).items():
            before, where = settled.get((name, index), (None, part))
            if before is None or (before.not_run and not trial.not_run):
                settled[name, index] = trial, part
            elif _identity(trial) not in known and before.not_run == trial.not_run:
                raise UserError(
                    f"{trial.slot} was run twice: in {part.where} ({_told(trial)}) and in {where.where} "
                    f"({_told(before)}); merge one of them; nothing was merged"
                )


def _told(trial: TrialRecord) -> str:
    host = trial.provenance.get("env.host")
    at = f" on {host}" if host else ""
    return f"{trial.outcome}{at}" + (
        f", {trial.started:%Y-%m-%d %H:%M:%S}" if trial.started else ""
    )


def _brief(value: object) -> str:
    """The first characters of a hash; anything else unchanged."""
    text = value if isinstance(value, str) else json.dumps(value)
    return text[:12] if len(text) == 64 else text


def _anywhere(command: str) -> str:
    """The command without paths and addresses of one machine."""
    return _without(command, "--storage", "--tracking-uri", "--cache-dir")


def _without(command: str, *options: str) -> str:
    words = shlex.split(command)
    kept = [
        word
        for before, word in zip(["", *words], words, strict=False)
        if word not in options and before not in options
    ]
    return command if kept == words else shlex.join(kept)
