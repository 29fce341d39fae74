"""Merge bundles of one study, from several machines, into another record.

All bundles are read and checked before anything is written: first the predictions, then the description of
the study, then each trial. Items that are there already are not written again, so an interrupted merge can be
repeated to complete it.
"""

from __future__ import annotations

import json
import shlex
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path

from harness.core.errors import UserError, first_line, refusal, without_password
from harness.core.records import StudyInfo, TrialRecord
from harness.core.stores import record_home
from harness.search.bundles import (
    Part,
    add_trials,
    optuna_study,
    read_bundle,
)
from harness.search.lock import sole_runner
from harness.search.record import Attempts, Record, StorageFailed, storage_failures
from harness.search.space import quiet_optuna
from harness.search.storage import check_storage_url, open_storage
from harness.search.unchanged import inputs_read
from harness.tracking.experiment import check_tracking_uri
from harness.tracking.study_runs import StudyRuns

SAME = {
    "name": "name",
    "space_sha256": "hash of the study file",
    "factors": "factors",
    "trials": "trials per cell",
    "repeats": "repeats per cell",
    "sampler": "sampler",
    "seed": "seed",
    "folds": "folds",
    "metric": "metric",
    "budget": "budget",
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


@dataclass(frozen=True)
class Merged:
    """Result of a merge.

    Attributes:
        study: name of the study.
        new: for each bundle, how many of its trials were new.
        old: for each bundle, how many were there before.
        trials: number of trials in the record now.
        behind: why MLflow is not complete yet; "" if it is.
    """

    study: str
    new: tuple[int, ...]
    old: tuple[int, ...]
    trials: int
    behind: str


def plan_merge(bundles: Sequence[Part], target: Part | None = None) -> Merge:
    """Plan the merge; nothing is written.

    Args:
        bundles: bundles to be merged, at least one.
        target: the study in the target record; None if it is not there.

    Raises:
        UserError: if the bundles are of different studies, differ in their examples or weights, or two of
            them completed the same slot.
    """
    first = target or bundles[0]
    parts = [target, *bundles] if target else list(bundles)
    leaks = dict.fromkeys(line for part in parts for line in part.info.leaks)
    # Options that hold on one machine only; those of the target's own machine stay.
    foreign = ("--cells",) if target else ("--cells", "--storage", "--tracking-uri", "--cache-dir")
    command = _without(first.info.command, *foreign)
    known: set[str] = set()
    read: dict[tuple[str, ...], tuple[str, Part]] = {}
    settled: dict[tuple[str, int], tuple[TrialRecord, Part]] = {}
    additions = []
    for part in parts:
        _require_same_study(first, part)
        _require_same_inputs(part, read)
        _require_free_slots(part, known, settled)
        new = [t for t in part.trials if t.outcome and _identity(t) not in known]
        known |= set(map(_identity, new))
        if part is not target:
            additions.append((part, new))
    return Merge(replace(first.info, leaks=tuple(leaks), command=command), additions)


def merge_into(bundles: Sequence[Path], root: Path, url: str, uri: str) -> Merged:
    """Merge bundles of one study into a record, and write its runs to MLflow.

    Args:
        bundles: of one study, at least one.
        root: folder of the record, created if absent.
        url: storage of the record.
        uri: tracking URI of MLflow.

    Raises:
        UserError: as `harness.merge_bundles` says.
    """
    home = record_home(url, uri, root)
    check_storage_url(url)
    check_tracking_uri(uri)
    with tempfile.TemporaryDirectory() as folder, quiet_optuna():
        parts = [
            read_bundle(bundle, Path(folder, str(number))) for number, bundle in enumerate(bundles)
        ]
        merge, study = plan_merge(parts), parts[0].info.name
        try:
            with sole_runner(home, study), storage_failures():
                record = Record(open_storage(url), home)
                if record.has(study):
                    where = f"the record in {home}"
                    merge = plan_merge(parts, Part.of(record, study, where))
                runs = StudyRuns(uri, merge.info, record)
                write_merge(merge, record)
                behind = _sync(runs)
                trials = len(record.trials(merge.info))
        except StorageFailed as error:
            raise UserError(f"{error}; merge again") from error
    new = tuple(len(trials) for _, trials in merge.additions)
    old = tuple(len(p.trials) - n for p, n in zip(parts, new, strict=True))
    if behind:
        stores = f"--tracking-uri {shlex.quote(without_password(uri))}"
        stores += f" --storage {shlex.quote(without_password(url))}"
        behind += f"; python -m harness.sync --study {study} {stores} completes it"
    return Merged(study, new, old, trials, behind)


def _sync(runs: StudyRuns) -> str:
    """Show the record in MLflow; why that failed, or ""."""
    try:
        runs.sync()
    except Exception as error:  # MLflow, SQLAlchemy and the operating system raise many kinds
        return first_line(error) if isinstance(error, UserError) else refusal(error)
    return ""


def write_merge(merge: Merge, record: Record) -> None:
    """Write the new trials. An interrupted merge is completed by planning and writing it again."""
    for part, trials in merge.additions:
        for trial in trials:
            if trial.predictions:
                file = part.record.predictions(trial)
                record.keep_predictions(merge.info.name, file.read_bytes())
    record.describe(merge.info)
    for part, trials in merge.additions:
        add_trials(part, trials, record.storage)


def _identity(trial: TrialRecord) -> str:
    """A key that is equal for the same trial in two records, whatever its number there."""
    fields = asdict(trial.but(key=optuna_study(trial), number=0, superseded=False))
    return json.dumps(fields, sort_keys=True, default=str)


def _require_same_study(one: Part, other: Part) -> None:
    for field, what in SAME.items():
        mine, theirs = getattr(one.info, field), getattr(other.info, field)
        if json.dumps(mine) != json.dumps(theirs):  # the order of labels counts
            raise UserError(
                f"{other.where} and {one.where} are not of the same study: {what} {_brief(theirs)} and "
                f"{_brief(mine)}; nothing was merged"
            )


def _require_same_inputs(part: Part, read: dict[tuple[str, ...], tuple[str, Part]]) -> None:
    """Check that all machines had the same examples and weights: their cells are compared with each other."""
    for trial in part.trials:
        for (what, *of), found in inputs_read(trial).items():
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
    for name, trials in groupby(part.trials, optuna_study):
        for index, trial in Attempts(trials).done.items():
            before, where = settled.get((name, index), (None, part))
            if before is None or (before.not_run and not trial.not_run):
                settled[name, index] = trial, part
            elif _identity(trial) not in known and before.not_run == trial.not_run:
                raise UserError(
                    f"{trial.slot} was run twice: in {part.where} ({_describe(trial)}) and in {where.where} "
                    f"({_describe(before)}); merge one of them; nothing was merged"
                )


def _describe(trial: TrialRecord) -> str:
    host = trial.provenance.get("env.host")
    at = f" on {host}" if host else ""
    return f"{trial.outcome}{at}, {trial.started:%Y-%m-%d %H:%M:%S}"


def _brief(value: object) -> str:
    """The first characters of a hash; anything else unchanged."""
    text = value if isinstance(value, str) else json.dumps(value)
    return text[:12] if len(text) == 64 else text


def _without(command: str, *options: str) -> str:
    """The command without these options and their values."""
    words = shlex.split(command)
    kept = [
        word
        for before, word in zip(["", *words], words, strict=False)
        if word not in options and before not in options
    ]
    return command if kept == words else shlex.join(kept)
