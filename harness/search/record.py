"""The record of a study: everything about its trials, in one Optuna storage.

A study is recorded in several Optuna studies. "NAME" describes it as a whole, "NAME/CELL" holds the trials of
one cell, "NAME/CELL/repeats of I" the repeats of the configuration that its trial I drew. Every trial has

    slot      user attribute, set when the trial is created: index, folds, attempt, seed, metric, whether it
              runs in the coordinator's process, number of workers
    task      user attribute, set when it is drawn: the complete flat TrialSpec, hashes of the
              examples and weights
    result    user attribute, set at the end: outcome, reason, metrics, epochs, notes, provenance, predictions

and a reported value per epoch: the study's metric, negated if lower is better. Test predictions are files
beside the storage. Only the coordinator writes; if a trial is still open when the next coordinator starts,
its process has died.
"""

from __future__ import annotations

import hashlib
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

import optuna
from optuna.trial import BaseTrial, FrozenTrial
from sqlalchemy.exc import SQLAlchemyError

from harness.core.caller import no_garbage_collection
from harness.core.errors import UserError, first_line
from harness.core.race import Entrant, Result, Results, Round, Standing, race, standing
from harness.core.records import Slot, StudyInfo, TrialRecord
from harness.core.results import EpochResult
from harness.core.selection import METRICS
from harness.core.stores import record_home, record_url
from harness.core.study import Cell, Phase, cell_label
from harness.search.storage import read_storage

FORMAT = 2
"""Format of the record; in the first edition no Optuna study described the study as a whole."""


class StorageFailed(Exception):
    """The storage of the record failed; the message is one line."""


@contextmanager
def storage_failures() -> Iterator[None]:
    """Turn exceptions of the storage inside the block into StorageFailed."""
    try:
        yield
    except (optuna.exceptions.StorageInternalError, SQLAlchemyError, OSError) as error:
        raise StorageFailed(
            f"the search storage failed: {first_line(error.__cause__ or error)}"
        ) from error


def read_record(storage: str | None, tracking_uri: str | None) -> Record:
    """The record at these addresses, or at their defaults, to be read.

    Raises:
        UserError: if there is none or it cannot be read.
    """
    home = record_home(storage, tracking_uri)
    return Record(read_storage(record_url(storage, tracking_uri)), home)


class Record:
    """The record of all studies in one storage.

    Args:
        storage: Optuna storage.
        folder: folder for files of trials: predictions, checkpoints.
    """

    def __init__(self, storage: optuna.storages.BaseStorage, folder: Path) -> None:
        self.storage, self.folder = storage, folder

    def names(self) -> list[str]:
        """Names of all Optuna studies in the storage."""
        return list(optuna.get_all_study_names(self.storage))

    def has(self, name: str) -> bool:
        """True if anything of that study is recorded, in any format. A study whose process died while it was
        being described for the first time does not count."""
        names = self.names()
        if any(n.startswith(f"{name}/") for n in names):
            return True
        if name not in names:
            return False
        head = optuna.load_study(study_name=name, storage=self.storage)
        return bool(head.user_attrs.keys() - {"info"} or head.get_trials(deepcopy=False))

    def info(self, name: str) -> StudyInfo:
        """The study of that name as a whole.

        Raises:
            UserError: if the record has no such study, or it has an older or newer format.
        """
        names = self.names()
        if name in names:
            found = optuna.load_study(study_name=name, storage=self.storage).user_attrs
            if found.get("format") == FORMAT:
                return StudyInfo(**{**found["info"], "leaks": tuple(found["info"]["leaks"])})
        if self.has(name):
            raise UserError(
                f"study {name!r} is recorded here by another version of the harness: give the study another "
                "name, or move that record away (optuna.db and mlflow.db)"
            )
        known = ", ".join(sorted(n for n in names if "/" not in n and n != name))
        raise UserError(f"the record has no study {name!r}; it has: {known or 'none yet'}")

    def describe(self, info: StudyInfo) -> None:
        """Write the description of the study as a whole.

        Raises:
            UserError: if a study of that name is recorded in another format.
        """
        if self.has(info.name) and self.info(info.name) == info:
            return
        head = optuna.create_study(study_name=info.name, storage=self.storage, load_if_exists=True)
        head.set_user_attr("info", asdict(info))
        head.set_user_attr("format", FORMAT)

    @no_garbage_collection()
    def trials(self, info: StudyInfo) -> list[TrialRecord]:
        """Every attempt at every slot of the study, cell by cell, tuning before repeats."""
        found: list[TrialRecord] = []
        names = self.names()
        for cell in info.cells():
            label = cell_label(cell)
            name = study_name(info.name, label)
            if name not in names:
                continue
            tuned = read_trials(self.storage, name, cell)
            best = Attempts(tuned, info.tuning_runs).best(info.metric)
            found += tuned
            for other in (n for n in names if n.startswith(f"{name}{REPEATS}")):
                chosen = int(other.removeprefix(f"{name}{REPEATS}"))
                stale = best is None or chosen != best.slot.round
                found += [
                    t.but(superseded=stale) for t in read_trials(self.storage, other, cell, chosen)
                ]
        if info.budget is None:
            return found
        of_cell = race_standing(info, found).of_cell
        return [
            t if t.chosen is None else t.but(superseded=entrant(t) != of_cell.get(entrant(t).cell))
            for t in found
        ]

    def predictions(self, trial: TrialRecord) -> Path:
        """The file of a trial's test predictions."""
        return self.folder / "predictions" / trial.study / trial.predictions

    def keep_predictions(self, study: str, content: bytes) -> str:
        """Save a file of predictions; returns its name."""
        name = predictions_name(content)
        path = self.folder / "predictions" / study / name
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{name}.{os.getpid()}")
        beside.write_bytes(content)
        os.replace(beside, path)
        return name


def predictions_name(content: bytes) -> str:
    """Name of a file of predictions, from its hash."""
    return f"{hashlib.sha256(content).hexdigest()}.parquet"


# --- read trials from the storage ------------------------------------------------------------------

REPEATS = "/repeats of "


def study_name(study: str, label: str, chosen: int | None = None) -> str:
    """Name of the Optuna study of a cell. If more trials change the chosen one, its repeats get a new
    study."""
    return f"{study}/{label}" + ("" if chosen is None else f"{REPEATS}{chosen}")


def read_trials(
    storage: optuna.storages.BaseStorage, name: str, cell: Cell, chosen: int | None = None
) -> list[TrialRecord]:
    """Every attempt in one Optuna study, except trials that were killed before they got a slot."""
    study = optuna.load_study(study_name=name, storage=storage)
    phase: Phase = "tune" if chosen is None else "repeat"
    return [
        trial_record(name, t, Slot(cell, phase, about["index"], about.get("folds", 1)), chosen)
        for t in study.get_trials(deepcopy=False)
        if (about := t.user_attrs.get("slot"))
    ]


RESULT = ("outcome", "lasting", "reason", "metrics", "notes", "provenance", "predictions", "died")
"""Fields of a TrialRecord that are in the attribute `result` under their own name."""
DIED = "its process died"
"""The reason of an attempt begins with this if its process ended without reporting a result."""


def opened_record(
    name: str, trial: BaseTrial, slot: Slot, chosen: int | None, **ended: Any
) -> TrialRecord:
    """What is recorded of a trial before it has ended, with what its end adds to that."""
    attributes = trial.user_attrs
    about, task = attributes["slot"], attributes.get("task", {})
    return TrialRecord(
        key=f"{name}#{trial.number}",
        slot=slot,
        number=trial.number,
        attempt=about["attempt"],
        seed=about["seed"],
        chosen=chosen,
        params=dict(trial.params),
        ranges={k: str(v) for k, v in trial.distributions.items()},
        spec=task.get("spec", {}),
        inputs=task.get("inputs", {}),
        started=trial.datetime_start,
        workers=about.get("workers", 1),
        **ended,
    )


def trial_record(name: str, trial: FrozenTrial, slot: Slot, chosen: int | None) -> TrialRecord:
    """The recorded values of an Optuna trial."""
    result: Mapping[str, Any] = trial.user_attrs.get("result", {})
    epochs = [EpochResult(*values) for values in result.get("epochs", ())]
    if not epochs:
        metric = trial.user_attrs["slot"].get("metric", "accuracy")
        values = sorted(trial.intermediate_values.items())
        epochs = [EpochResult.of_merit(epoch, metric, value) for epoch, value in values]
    ended: dict[str, Any] = {"epochs": tuple(epochs)}
    # The process may die between writing the result and ending the trial: it counts only when the
    # trial ended.
    if trial.state.is_finished():
        inline = trial.user_attrs["slot"].get("inline", False)
        found = result or {"outcome": "killed", "reason": DIED, "died": inline}
        ended |= {k: found[k] for k in RESULT if k in found} | {"ended": trial.datetime_complete}
    return opened_record(name, trial, slot, chosen, **ended)


class Attempts:
    """The attempts at the slots of one phase of a cell: which slots are done, and which trial is the best.

    Args:
        trials: the attempts, in the order in which they were made.
        asked: number of slots that count; of a longer plan more may be recorded.
    """

    def __init__(self, trials: Iterable[TrialRecord] = (), asked: int = sys.maxsize) -> None:
        self.asked = asked
        self._at: dict[int, list[TrialRecord]] = {}
        self._done: dict[int, TrialRecord] = {}
        for trial in trials:
            self.add(trial)

    def add(self, trial: TrialRecord) -> None:
        """Add the next attempt."""
        index = trial.slot.index
        self._at.setdefault(index, []).append(trial)
        # One that a memory forecast kept from running is replaced by a later one.
        if trial.lasts and (index not in self._done or self._done[index].not_run):
            self._done[index] = trial

    def __iter__(self) -> Iterator[TrialRecord]:
        return (trial for attempts in self._at.values() for trial in attempts)

    def at(self, index: int) -> Sequence[TrialRecord]:
        """The attempts at one slot."""
        return self._at.get(index, ())

    def completed(self, index: int) -> TrialRecord | None:
        """The attempt that counts for one slot; None as long as there is none."""
        return self._done.get(index)

    def any(self) -> TrialRecord | None:
        """A completed attempt that was drawn, at any slot."""
        return next((trial for trial in self._done.values() if trial.spec), None)

    @property
    def done(self) -> dict[int, TrialRecord]:
        """Completed slots that are asked for: index -> the attempt that counts."""
        return {index: trial for index, trial in self._done.items() if index < self.asked}

    def best(self, metric: str) -> TrialRecord | None:
        """The complete trial that is best on validation: by that metric, then loss, then the earlier one.

        With k-fold resampling it is the first complete trial of the best configuration, by means over its
        complete folds, and those means are its validation metrics. A configuration is eligible if no other
        has more complete folds, because the best of many incomplete means is a lucky one.
        """
        rounds: dict[int, list[TrialRecord]] = {}
        for _, trial in sorted(self.done.items()):
            if trial.outcome == "complete":
                rounds.setdefault(trial.slot.round, []).append(trial)
        most = max(map(len, rounds.values()), default=0)
        whole = [_mean_of(trials) for trials in rounds.values() if len(trials) == most]

        def preference(trial: TrialRecord) -> tuple[float, float, int]:
            merit = METRICS[metric].merit(trial.metrics)
            return merit, -trial.metrics["val_loss"], -trial.slot.round

        return max(whole, key=preference, default=None)


def entrant(trial: TrialRecord) -> Entrant:
    """What the trial is a trial of in a race."""
    return Entrant(cell_label(trial.slot.cell), trial.chosen)


def by_entrant(trials: Iterable[TrialRecord]) -> dict[Entrant, Attempts]:
    """The attempts at the slots of each entrant of a race."""
    found: dict[Entrant, Attempts] = {}
    for trial in trials:
        found.setdefault(entrant(trial), Attempts()).add(trial)
    return found


def race_standing(info: StudyInfo, trials: Iterable[TrialRecord]) -> Standing:
    """The standing of a race after the repeats among these trials."""
    repeats: dict[Entrant, list[float]] = {}
    for one, own in by_entrant(t for t in trials if t.chosen is not None).items():
        repeats[one] = []
        while (trial := own.completed(len(repeats[one]))) is not None:
            complete = trial.outcome == "complete"
            merit = METRICS[info.metric].merit(trial.metrics) if complete else math.nan
            repeats[one].append(merit)
    return standing(repeats)


def rounds_of(info: StudyInfo, attempts: Mapping[Entrant, Attempts]) -> Iterator[Round]:
    """The rounds of the race of a study with a budget. The results of a round are taken from the attempts at
    its slots when the next one is asked for, so a race is resumed by replaying it.

    Args:
        info: the study as a whole.
        attempts: at the slots of every cell, and of the finalists as soon as they have any.
    """
    assert info.budget is not None
    assert info.screening is not None

    def result(own: Attempts, index: int, slots: int) -> Result:
        # A killed attempt may have been recorded as ended days later. Of many workers at most as many are
        # busy as the round has slots.
        ended = [t for t in own.at(index) if t.outcome != "killed"]
        seconds = sum((t.seconds or 0.0) / min(t.workers, slots) for t in ended)
        trial = own.completed(index)
        if trial is None or trial.outcome != "complete":
            return Result(math.nan, seconds)
        merit, loss = METRICS[info.metric].merit(trial.metrics), trial.metrics["val_loss"]
        return Result(merit, seconds, loss, repr(sorted(trial.params.items())))

    def read(now: Round) -> Results:
        slots = len(now.entrants) * len(now.indices)
        return {one: [result(attempts[one], i, slots) for i in now.indices] for one in now.entrants}

    cells = [one.cell for one in attempts if one.chosen is None]
    return race(cells, info.budget, info.screening, read)


def _mean_of(trials: Sequence[TrialRecord]) -> TrialRecord:
    """The first of the trials, with the mean of their validation metrics."""
    if len(trials) == 1:
        return trials[0]
    shared = set.intersection(*(set(t.metrics) for t in trials))
    names = [n for n in shared if n.startswith("val_")]
    means = {n: fmean(t.metrics[n] for t in trials) for n in names}
    return trials[0].but(metrics={**trials[0].metrics, **means})
