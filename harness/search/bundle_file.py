"""Bundle files: zip archives whose bundle.json lists all members with their hashes.

Unpacked into an empty folder, a bundle is a record like the one in mlruns:

    bundle.json                      format, study, list of members
    optuna.db                        the record
    predictions/STUDY/SHA256.csv     test predictions
    studies/STUDY/FILE.py            the study file, if it was found

A bundle may come from an untrusted source, so only such members are unpacked, and no code in it is run.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from harness.core.errors import UserError, first_line
from harness.core.spec import SAFE_NAME
from harness.data.archives import careful_archives

FORMAT = 1
MANIFEST, DATABASE = "bundle.json", "optuna.db"
LARGEST_RATIO, SLACK_BYTES = 100, 16 * 2**20
"""Compression shrinks predictions to about a quarter, databases to a twentieth; higher ratios are refused."""
PREDICTIONS = re.compile(r"[0-9a-f]{64}\.csv")


@dataclass(frozen=True)
class Manifest:
    """The contents of bundle.json.

    Attributes:
        format: number of the bundle's format.
        study: name of the study.
        study_sha256: hash of the study file.
        study_file: member that is the study file; "" if it was not found.
        packed: time of packing.
        counts: trials by outcome.
        provenance: tag -> its values over the trials: device, versions, hosts.
        members: name of each other member -> its hash.
    """

    format: int
    study: str
    study_sha256: str
    study_file: str
    packed: str
    counts: Mapping[str, int]
    provenance: Mapping[str, list[str]]
    members: Mapping[str, str]


def sha256_of(path: Path) -> str:
    """Hash of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_bundle(path: Path, manifest: Manifest, files: Mapping[str, Path]) -> None:
    """Write a bundle; an older file at that path stays until the new one is complete.

    Args:
        path: path of the bundle; only a bundle of the same study is replaced.
        manifest: contents of bundle.json.
        files: name of each member -> path of the file to pack.

    Raises:
        UserError: if another kind of file is at the path, or it cannot be written.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        if path.exists() and (found := _study_at(path)) != manifest.study:
            what = f"a bundle of study {found!r}" if found else "no bundle of a study"
            raise UserError(f"{path} exists and is {what}; it was left as it is: name another file")
        path.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(beside, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(MANIFEST, json.dumps(asdict(manifest), indent=2))
            for name, file in files.items():
                archive.write(file, name)
        os.replace(beside, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {first_line(error)}") from error
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)


def _study_at(path: Path) -> str:
    """Name of the study in a bundle; "" if the file is not a bundle."""
    try:
        with zipfile.ZipFile(path) as archive:
            return _read_manifest(archive).study
    except Exception:  # zipfile, zlib and struct raise many kinds
        return ""


def unpack_bundle(path: Path, folder: Path) -> Manifest:
    """Check a bundle, and unpack it into an empty folder.

    Raises:
        UserError: if it cannot be read, is damaged, has a newer format, or is not a bundle.
    """
    try:
        size = path.stat().st_size
        with zipfile.ZipFile(path) as archive:
            _check_members(archive.infolist(), size)
            manifest = _read_manifest(archive)
            _check_names(manifest, archive.namelist())
            with careful_archives(folder):
                archive.extractall(folder)
        for name, expected in manifest.members.items():
            if sha256_of(folder / name) != expected:
                raise UserError(f"its {name} is not what was packed: it is damaged or was changed")
    except UserError as error:
        raise UserError(f"bundle {path}: {error}") from error
    except OSError as error:
        raise UserError(f"cannot read bundle {path}: {first_line(error)}") from error
    except Exception as error:  # zipfile, zlib and struct raise many kinds
        raise UserError(
            f"{path} is no bundle of a study, or was cut off or damaged on its way: {first_line(error)}"
        ) from error
    return manifest


def _check_members(members: list[zipfile.ZipInfo], size: int) -> None:
    """Raises UserError for members that would be written outside the folder, and for too many bytes."""
    for member in members:
        name, path = member.orig_filename, PurePosixPath(member.orig_filename.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or "\0" in name or ":" in name:
            raise UserError(f"its member {name!r} leaves the folder; nothing was unpacked")
        kind = stat.S_IFMT(member.external_attr >> 16)
        if kind not in (0, stat.S_IFREG) or member.is_dir():
            raise UserError(f"its member {name!r} is a link or no file; nothing was unpacked")
    unpacked = sum(member.file_size for member in members)
    if unpacked > LARGEST_RATIO * size + SLACK_BYTES:
        raise UserError(
            f"it would unpack to {unpacked / 2**20:.0f} MiB from {size / 2**20:.1f} MiB, more than any "
            "bundle does; nothing was unpacked"
        )


def _read_manifest(archive: zipfile.ZipFile) -> Manifest:
    if MANIFEST not in archive.namelist():
        raise UserError(f"it has no {MANIFEST}, so it is no bundle of a study")
    said = json.loads(archive.read(MANIFEST))
    number = said.get("format") if isinstance(said, dict) else None
    if isinstance(number, int) and number > FORMAT:
        raise UserError(
            f"its format is {number}, this harness reads up to {FORMAT}: install the version that packed it"
        )
    try:
        manifest = Manifest(**said)
        names = [manifest.study, *map(str, manifest.members.values())]
    except (TypeError, AttributeError) as error:
        raise UserError(f"its {MANIFEST} is incomplete: {first_line(error)}") from error
    if number != FORMAT or not all(isinstance(n, str) and SAFE_NAME.fullmatch(n) for n in names):
        raise UserError(f"its {MANIFEST} is not that of a bundle")
    return manifest


def _check_names(manifest: Manifest, names: list[str]) -> None:
    """Raises UserError unless the members are those listed in bundle.json, and of the known kinds."""
    listed = {MANIFEST, *manifest.members}
    if len(set(names)) < len(names) or set(names) != listed:
        odd = sorted(set(names) ^ listed) or ["one twice"]
        raise UserError(f"its members are not those that it lists: {odd[0]}")
    for name in manifest.members:
        folder, study, file = ([*name.split("/"), "", ""])[:3]
        table = folder == "predictions" and PREDICTIONS.fullmatch(file) is not None
        known = study == manifest.study and name.count("/") == 2
        if name != DATABASE and not (known and (table or name == manifest.study_file)):
            raise UserError(f"its member {name!r} belongs to no bundle of a study")
        if table and file != f"{manifest.members[name]}.csv":
            raise UserError(f"its member {name!r} is not what its name says")
    if DATABASE not in manifest.members:
        raise UserError(f"it has no {DATABASE}")
