"""Pack the record of a study into a bundle; `harness.search.bundle_file` describes the format."""

from __future__ import annotations

import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial

from harness.core.errors import UserError
from harness.core.records import StudyInfo, TrialRecord
from harness.search.bundle_file import DATABASE, FORMAT, Manifest, sha256_of, write_bundle
from harness.search.record import Record


@dataclass(frozen=True)
class Part:
    """The part of a study that one record holds.

    Attributes:
        where: name of the record, for messages.
        record: the record.
        info: the study as a whole.
        trials: every attempt at every slot.
        study_file: copy of the study file, if there is one.
    """

    where: str
    record: Record
    info: StudyInfo
    trials: Sequence[TrialRecord]
    study_file: Path | None = None

    @classmethod
    def of(cls, record: Record, name: str, where: str) -> Part:
        """The part of the named study that a record holds.

        Raises:
            UserError: if it holds none, or one in another format.
        """
        info = record.info(name)
        return cls(where, record, info, record.trials(info), kept_study_file(record, info))


def pack(part: Part, out: Path, study_file: Path | None) -> Manifest:
    """Write a bundle of the finished trials of a study.

    Args:
        part: the study in its record.
        out: path of the bundle.
        study_file: the study file; None leaves it out.

    Raises:
        UserError: if predictions are missing or have changed, or the bundle cannot be written.
    """
    name, ended = part.info.name, [t for t in part.trials if t.outcome]
    files = {}
    for trial in ended:
        if trial.predictions:
            file = part.record.predictions(trial)
            if not file.is_file() or f"{sha256_of(file)}.csv" != trial.predictions:
                what = "were changed" if file.is_file() else "are missing"
                raise UserError(f"{trial.slot}: its test predictions {what} ({file})")
            files[f"predictions/{name}/{trial.predictions}"] = file
    member = ""
    if study_file is not None:
        member = f"studies/{name}/{part.info.study_file}"
        files[member] = study_file
    tags: defaultdict[str, set[str]] = defaultdict(set)
    for trial in ended:
        for tag, value in trial.provenance.items():
            tags[tag].add(value)
    with tempfile.TemporaryDirectory() as folder:
        files[DATABASE] = Path(folder, DATABASE)
        _copy(part, ended, files[DATABASE])
        manifest = Manifest(
            format=FORMAT,
            study=name,
            study_sha256=part.info.space_sha256,
            study_file=member,
            packed=f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S %z}",
            counts=dict(sorted(Counter(t.outcome for t in ended).items())),
            provenance={tag: sorted(values) for tag, values in sorted(tags.items())},
            members={name: sha256_of(file) for name, file in sorted(files.items())},
        )
        write_bundle(out, manifest, files)
    return manifest


def kept_study_file(record: Record, info: StudyInfo) -> Path | None:
    """The copy of the study file that a merge put beside the record."""
    path = record.folder / "studies" / info.name / info.study_file
    return path if path.is_file() and sha256_of(path) == info.space_sha256 else None


def _copy(part: Part, trials: Iterable[TrialRecord], path: Path) -> None:
    """Create a SQLite storage with these trials."""
    storage = optuna.storages.RDBStorage(f"sqlite:///{path}")
    try:
        Record(storage, path.parent).describe(part.info)
        add_trials(part, trials, storage)
    finally:
        storage.remove_session()
        storage.engine.dispose()


def add_trials(
    part: Part, trials: Iterable[TrialRecord], storage: optuna.storages.BaseStorage
) -> None:
    """Write trials of one record to another storage, each in one transaction."""
    by_study: defaultdict[str, list[int]] = defaultdict(list)
    for trial in trials:
        by_study[optuna_study(trial)].append(trial.number)
    for name, numbers in by_study.items():
        source = optuna.load_study(study_name=name, storage=part.record.storage)
        known: dict[int, FrozenTrial] = {t.number: t for t in source.get_trials(deepcopy=False)}
        target = optuna.create_study(
            study_name=name, storage=storage, direction="maximize", load_if_exists=True
        )
        target.add_trials([known[number] for number in numbers])


def optuna_study(trial: TrialRecord) -> str:
    """Name of the Optuna study that a trial is in."""
    return trial.key.rpartition("#")[0]
