"""Pack a study's record into one file, and merge such files from several machines.

python -m harness.bundle --study freeze_depth --out freeze_depth.zip     # on each machine
python -m harness.bundle a.zip b.zip --into mlruns                       # where the report is made
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.core.command_line import Parser, run_command
from harness.core.errors import UserError, first_line, refusal, without_password

if TYPE_CHECKING:
    from harness.core.records import StudyInfo
    from harness.tracking.projection import Projection


@dataclass(frozen=True)
class Packed:
    """A packed bundle.

    Attributes:
        study: name of the study.
        file: path of the bundle.
        trials: number of finished trials.
        predictions: number of files of predictions.
        left_out: one line for each item that is not in the bundle, with the reason.
    """

    study: str
    file: Path
    trials: int
    predictions: int
    left_out: tuple[str, ...]


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


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(
        prog="python -m harness.bundle",
        usage="%(prog)s --study NAME --out FILE [--space FILE]\n"
        "       %(prog)s BUNDLE [BUNDLE ...] --into FOLDER",
        description="Pack a study's record, predictions and study file into one file; or merge such files "
        "from several machines into one record, and show it in MLflow.",
    )
    parser.add_argument("bundles", nargs="*", type=Path, metavar="BUNDLE", help="bundle to merge")
    parser.add_argument("--into", type=Path, metavar="FOLDER", help="merge: e.g. mlruns")
    parser.add_argument("--study", metavar="NAME", help="pack: the study")
    parser.add_argument("--out", type=Path, metavar="FILE", help="pack: the bundle, e.g. NAME.zip")
    parser.add_argument(
        "--space",
        type=Path,
        metavar="FILE",
        help="pack: the study file (default: where it was when the study was run)",
    )
    parser.add_argument(
        "--storage", help="Optuna storage URL of the record (default: optuna.db beside MLflow's)"
    )
    parser.add_argument(
        "--tracking-uri", help="MLflow tracking URI (default: mlflow.db in mlruns, or in --into)"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    return run_command(lambda: run(parse(argv)), "run the same command again")


def run(arguments: argparse.Namespace) -> int:
    """Everything after the command line has been read.

    Raises:
        UserError: on bad input.
    """
    packs = [o for o in ("study", "out", "space") if getattr(arguments, o) is not None]
    stores = {"storage": arguments.storage, "tracking_uri": arguments.tracking_uri}
    if arguments.bundles or arguments.into:
        if packs or not arguments.bundles or not arguments.into:
            raise UserError("to merge, want BUNDLE [BUNDLE ...] --into FOLDER and no other option")
        return _say_merged(merge_bundles(arguments.bundles, arguments.into, **stores), arguments)
    if not arguments.study or not arguments.out:
        raise UserError(
            "--study NAME and --out FILE are required to pack a study; BUNDLE ... --into FOLDER merges"
        )
    done = pack_study(arguments.study, arguments.out, arguments.space, **stores)
    for line in done.left_out:
        print(f"note: {line}", file=sys.stderr)
    print(
        f"packed study {done.study}: {done.trials} trials, {done.predictions} files of predictions, "
        f"in {done.file} ({done.file.stat().st_size / 1024:.0f} KiB)"
    )
    return 0


def _say_merged(done: Merged, arguments: argparse.Namespace) -> int:
    for file, new, old in zip(arguments.bundles, done.new, done.old, strict=True):
        print(f"{file}: {new} trials are new, {old} were there before")
    print(f"study {done.study} in {arguments.into}: {done.trials} trials")
    if done.behind:
        print(
            f"warning: the record is merged, but MLflow lacks a part of it: {done.behind}",
            file=sys.stderr,
        )
    return 1 if done.behind else 0


def pack_study(
    study: str,
    out: str | Path,
    space: str | Path | None = None,
    storage: str | None = None,
    tracking_uri: str | None = None,
) -> Packed:
    """Pack the record of a study into one file, without unfinished trials.

    Args:
        study: its name.
        out: the file; an older bundle of the same study there is replaced.
        space: the study file; None looks where it was when the study was run.
        storage: Optuna storage URL; None is the database beside MLflow's.
        tracking_uri: MLflow's; None is the database in ./mlruns.

    Raises:
        UserError: if there is no such study, its files are not what was recorded, or `out` cannot be written.
    """
    from harness.core.stores import record_home, record_url
    from harness.search.bundles import Part, pack
    from harness.search.record import Record, StorageFailed, storage_failures
    from harness.search.space import quiet_optuna
    from harness.search.storage import read_storage

    home = record_home(storage, tracking_uri)
    record = Record(read_storage(record_url(storage, tracking_uri)), home)
    try:
        with quiet_optuna(), storage_failures():
            part = Part.of(record, study, "the record")
            file, left_out = _study_file(part.info, part.study_file, space)
            manifest = pack(part, Path(out), file)
    except StorageFailed as error:
        raise UserError(str(error)) from error
    if running := sum(not t.outcome for t in part.trials):
        left_out += (f"{running} trials that have not ended are not in the bundle",)
    trials = sum(manifest.trials.values())
    return Packed(study, Path(out), trials, manifest.predictions, left_out)


def _study_file(
    info: StudyInfo, kept: Path | None, given: str | Path | None
) -> tuple[Path | None, tuple[str, ...]]:
    """The study file, and what to say if it was not found."""
    from harness.core.study_file import study_path, study_sha256

    words = shlex.split(info.command)
    recorded = words[words.index("--space") + 1 :][:1] if "--space" in words else []
    if given is None and kept is not None:
        return kept, ()
    for text in [str(given)] if given is not None else recorded:
        path = study_path(text)
        if not path.is_file():
            found = "does not exist"
        elif study_sha256(path) != info.space_sha256:
            found = "is not what it was when the study was run"
        else:
            return path, ()
        if given is not None:
            raise UserError(
                f"study file {path} {found}; without --space the bundle is packed without it"
            )
        hint = "--space FILE adds it"
        return None, (f"the study file is not in the bundle: {path} {found}; {hint}",)
    return None, ("the study file is not in the bundle; --space FILE adds it",)


def merge_bundles(
    bundles: Sequence[str | Path],
    into: str | Path,
    storage: str | None = None,
    tracking_uri: str | None = None,
) -> Merged:
    """Merge bundles of one study into a record, and write its runs to MLflow. Repeating it changes nothing.

    Args:
        bundles: of one study, e.g. of the jobs that ran its cells.
        into: folder of the record, created if absent; its stores are optuna.db and mlflow.db.
        storage: another Optuna storage URL.
        tracking_uri: another MLflow tracking URI.

    Raises:
        UserError: if a bundle is damaged, the bundles are of different studies or completed the same slot, a
            command is running the study, or a store cannot be used. The record is then unchanged.
    """
    from harness.core.stores import default_tracking_uri, record_home
    from harness.search.bundles import Part, read_bundle
    from harness.search.lock import sole_runner
    from harness.search.merge import plan_merge, write_merge
    from harness.search.record import Record, StorageFailed, storage_failures
    from harness.search.space import quiet_optuna
    from harness.search.storage import check_storage_url, open_storage
    from harness.tracking.experiment import check_tracking_uri
    from harness.tracking.projection import Projection

    root = Path(into)
    url = storage or f"sqlite:///{root.resolve()}/optuna.db"
    uri = tracking_uri or default_tracking_uri(root)
    home = record_home(url, uri, root)
    check_storage_url(url)
    check_tracking_uri(uri)
    with tempfile.TemporaryDirectory() as folder, quiet_optuna():
        parts = [
            read_bundle(Path(bundle), Path(folder, str(number)))
            for number, bundle in enumerate(bundles)
        ]
        merge, study = plan_merge(parts), parts[0].info.name
        try:
            with sole_runner(home, study), storage_failures():
                record = Record(open_storage(url), home)
                if record.has(study):
                    where = f"the record in {home}"
                    merge = plan_merge(parts, Part.of(record, study, where))
                projection = Projection(uri, merge.info, record)
                write_merge(merge, record)
                behind = _sync(projection)
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


def _sync(projection: Projection) -> str:
    """Show the record in MLflow; why that failed, or ""."""
    try:
        projection.sync()
    except Exception as error:  # MLflow, SQLAlchemy and the operating system raise many kinds
        return first_line(error) if isinstance(error, UserError) else refusal(error)
    return ""


if __name__ == "__main__":
    sys.exit(main())
