"""Bundles: the record of a study packed into one zip archive, and read back.

Unpacked into an empty folder, a bundle is a record like the one in mlruns:

    bundle.json                      format, name of the study, time of packing, how its trials ended
    optuna.db                        the record
    predictions/STUDY/SHA256.parquet test predictions
    study.py                         the study file, for readers: its text is also in the record

A bundle may come from an untrusted source: a bundle with any other member is refused, and no code in it is
run.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from pathlib import Path

import optuna

from harness.core.errors import UserError, first_line
from harness.core.records import StudyInfo, TrialRecord
from harness.core.study import SAFE_NAME
from harness.data.safe_extraction import safe_extraction
from harness.search.record import Attempts, Record, predictions_name
from harness.search.storage import read_storage

FORMAT = 4
MANIFEST, DATABASE, STUDY_FILE = "bundle.json", "optuna.db", "study.py"
LARGEST_MANIFEST = 2**26


@dataclass(frozen=True)
class Packed:
    """A packed bundle.

    Attributes:
        study: name of the study.
        file: path of the bundle.
        trials: number of finished trials.
        predictions: number of files of predictions.
        running: number of trials that have not ended; they are not in the bundle.
    """

    study: str
    file: Path
    trials: int
    predictions: int
    running: int


@dataclass(frozen=True)
class Part:
    """The part of a study that one record holds.

    Attributes:
        where: name of the record, for messages.
        record: the record.
        info: the study as a whole.
        trials: every attempt at every slot.
    """

    where: str
    record: Record
    info: StudyInfo
    trials: Sequence[TrialRecord]

    @classmethod
    def of(cls, record: Record, name: str, where: str) -> Part:
        """The part of the named study that a record holds.

        Raises:
            UserError: if it holds none, or one in another format.
        """
        info = record.info(name)
        return cls(where, record, info, record.trials(info))


# --- pack ------------------------------------------------------------------------------------------


def pack(part: Part, out: Path) -> Packed:
    """Write a bundle of the finished trials of a study.

    Args:
        part: the study in its record.
        out: path of the bundle; a bundle of the same study there is replaced when the new one is complete.

    Raises:
        UserError: if predictions are missing or have changed, another kind of file is at the path, or it
            cannot be written.
    """
    name, ended = part.info.name, [t for t in part.trials if t.outcome]
    _require_predictions(part.record, ended)
    files = {
        f"predictions/{name}/{t.predictions}": part.record.predictions(t)
        for t in ended
        if t.predictions
    }
    about = {
        "format": FORMAT,
        "study": name,
        "packed": f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S %z}",
        "trials": dict(sorted(Counter(t.outcome for t in ended).items())),
        "predictions": len(files),
    }
    beside = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        if out.exists() and (found := _study_at(out)) != name:
            what = f"a bundle of study {found!r}" if found else "not a bundle of a study"
            raise UserError(f"{out} exists and is {what}; it was not changed: name another file")
        out.parent.mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryDirectory() as folder,
            zipfile.ZipFile(beside, "w", zipfile.ZIP_DEFLATED) as archive,
        ):
            _copy(part, ended, Path(folder, DATABASE))
            archive.writestr(MANIFEST, json.dumps(about, indent=2))
            archive.writestr(STUDY_FILE, part.info.source)
            for member, file in {DATABASE: Path(folder, DATABASE), **files}.items():
                archive.write(file, member)
        os.replace(beside, out)
    except OSError as error:
        raise UserError(f"cannot write {out}: {first_line(error)}") from error
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
    return Packed(name, out, len(ended), len(files), len(part.trials) - len(ended))


def _require_predictions(record: Record, trials: Iterable[TrialRecord]) -> None:
    """Raises UserError unless the predictions of these trials are those that were recorded."""
    for trial in trials:
        file = record.predictions(trial)
        if trial.predictions and not file.is_file():
            raise UserError(f"{trial.slot}: its test predictions are missing ({file})")
        if trial.predictions and predictions_name(file.read_bytes()) != trial.predictions:
            raise UserError(f"{trial.slot}: its test predictions were changed ({file})")


def _study_at(path: Path) -> str:
    """Name of the study in a bundle; "" if the file is not a bundle."""
    try:
        with zipfile.ZipFile(path) as archive:
            return _check_members(archive)
    except Exception:  # zipfile, zlib and struct raise many kinds
        return ""


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
    for name, mine in groupby(trials, optuna_study):
        source = optuna.load_study(study_name=name, storage=part.record.storage)
        known = source.get_trials(deepcopy=False)
        target = optuna.create_study(
            study_name=name, storage=storage, direction="maximize", load_if_exists=True
        )
        target.add_trials([known[trial.number] for trial in mine])


def optuna_study(trial: TrialRecord) -> str:
    """Name of the Optuna study that a trial is in."""
    return trial.key.rpartition("#")[0]


# --- read ------------------------------------------------------------------------------------------


def read_bundle(path: Path, folder: Path) -> Part:
    """Check a bundle, and unpack it.

    Args:
        path: path of the bundle.
        folder: an empty folder, into which it is unpacked.

    Raises:
        UserError: if it cannot be read, is damaged, has a newer format, or is not a bundle.
    """
    try:
        with zipfile.ZipFile(path) as archive, safe_extraction(folder):
            study = _check_members(archive)
            archive.extractall(folder)
        record = Record(read_storage(f"sqlite:///{folder / DATABASE}"), folder)
        part = Part.of(record, study, f"bundle {path}")
        if part.info.name != study:
            raise UserError(
                f"its record is of study {part.info.name!r}, its {MANIFEST} of {study!r}"
            )
        Attempts(part.trials).best(
            part.info.metric
        )  # fails for odd values now, and not in the middle of the merge
        _require_predictions(record, part.trials)
    except UserError as error:
        raise UserError(f"bundle {path}: {error}") from error
    except OSError as error:
        raise UserError(f"cannot read bundle {path}: {first_line(error)}") from error
    except (
        Exception
    ) as error:  # zipfile, zlib and struct raise many kinds, and its record may hold anything
        raise UserError(
            f"{path} is not a bundle of a study, or is truncated or damaged: {first_line(error)}"
        ) from error
    return part


def _check_members(archive: zipfile.ZipFile) -> str:
    """The name of the study in a bundle.

    Raises:
        UserError: if it has another format, or members that do not belong in a bundle.
    """
    names = archive.namelist()
    if MANIFEST not in names:
        raise UserError(f"it has no {MANIFEST}, so it is not a bundle of a study")
    found = json.loads(archive.open(MANIFEST).read(LARGEST_MANIFEST))
    number, study = (found.get(k) if isinstance(found, dict) else None for k in ("format", "study"))
    if isinstance(number, int) and number != FORMAT:
        raise UserError(
            f"its format is {number}, this harness reads format {FORMAT}: pack it again with this version"
        )
    if number != FORMAT or not isinstance(study, str) or not SAFE_NAME.fullmatch(study):
        raise UserError(f"its {MANIFEST} is not that of a bundle")
    # Neither a folder nor ".." fits, so nothing is written outside; zipfile writes a link as a plain file.
    kinds = (MANIFEST, DATABASE, STUDY_FILE, rf"predictions/{study}/[0-9a-f]{{64}}\.parquet")
    counts = Counter(names)
    for name in names:
        if not re.fullmatch("|".join(kinds), name) or counts[name] > 1:
            raise UserError(
                f"its member {name!r} does not belong in a bundle; nothing was unpacked"
            )
    if DATABASE not in names:
        raise UserError(f"it has no {DATABASE}")
    return study
