"""Pack a study's record into one file, and merge such files from several machines.

python -m harness.bundle --study freeze_depth --out freeze_depth.zip     # on each machine
python -m harness.bundle a.zip b.zip --into mlruns                       # where the report is made
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Group, Parameter

from harness.core.command_line import command
from harness.core.errors import UserError, counted

if TYPE_CHECKING:
    from harness.search.bundles import Packed
    from harness.search.merge import Merged

PACK = Parameter(group=Group("To pack", sort_key=1))
MERGE = Parameter(group=Group("To merge", sort_key=2))


def pack_study(
    study: str,
    out: str | Path,
    *,
    storage: str | None = None,
    tracking_uri: str | None = None,
) -> Packed:
    """Pack the record of a study into one file, without unfinished trials.

    Args:
        study: its name.
        out: the file; an older bundle of the same study there is replaced.
        storage: Optuna storage URL; None is the database beside MLflow's.
        tracking_uri: MLflow's; None is the database in ./mlruns.

    Raises:
        UserError: if there is no such study, its files are not what was recorded, or `out` cannot be written.
    """
    from harness.search.bundles import Part, pack
    from harness.search.record import StorageFailed, read_record, storage_failures
    from harness.search.space import quiet_optuna

    record = read_record(storage, tracking_uri)
    try:
        with quiet_optuna(), storage_failures():
            return pack(Part.of(record, study, "the record"), Path(out))
    except StorageFailed as error:
        raise UserError(str(error)) from error


def merge_bundles(
    bundles: Sequence[str | Path],
    into: str | Path,
    *,
    storage: str | None = None,
    tracking_uri: str | None = None,
) -> Merged:
    """Merge bundles of one study into a record, and write its runs to MLflow. A second call changes nothing.

    Args:
        bundles: of one study, e.g. of the jobs that ran its cells.
        into: folder of the record, created if absent; its stores are optuna.db and mlflow.db.
        storage: another Optuna storage URL.
        tracking_uri: another MLflow tracking URI.

    Raises:
        UserError: if a bundle is damaged, the bundles are of different studies or completed the same slot, a
            command is running the study, or a store cannot be used. The record is then unchanged.
    """
    from harness.core.stores import default_tracking_uri, record_url
    from harness.search.merge import merge_into

    root = Path(into)
    url = record_url(storage, None, root)
    return merge_into(
        [Path(bundle) for bundle in bundles], root, url, tracking_uri or default_tracking_uri(root)
    )


def run(
    bundles: Annotated[Sequence[Path], MERGE] = (),
    *,
    into: Annotated[Path | None, MERGE] = None,
    study: Annotated[str | None, PACK] = None,
    out: Annotated[Path | None, PACK] = None,
    storage: str | None = None,
    tracking_uri: str | None = None,
) -> int:
    """Pack a study's record, predictions and study file into one file; or merge such files from several
    machines into one record, and write its runs to MLflow.

    Args:
        bundles: files to merge.
        into: folder of the merged record, e.g. mlruns.
        study: name of the study to pack.
        out: bundle to write, e.g. NAME.zip.
        storage: Optuna storage URL of the record; the default is optuna.db beside MLflow's database.
        tracking_uri: MLflow tracking URI; the default is mlflow.db in mlruns, or in the folder of --into.
    """
    if bundles or into:
        if not bundles or not into or (study, out) != (None, None):
            raise UserError(
                "to merge, give BUNDLE [BUNDLE ...] --into FOLDER, without --study and --out"
            )
        merged = merge_bundles(bundles, into, storage=storage, tracking_uri=tracking_uri)
        return show_merged(merged, bundles, into)
    if not study or not out:
        raise UserError(
            "--study NAME and --out FILE are required to pack a study; BUNDLE ... --into FOLDER merges"
        )
    done = pack_study(study, out, storage=storage, tracking_uri=tracking_uri)
    if done.running:
        print(
            f"note: not in the bundle: {counted(done.running, 'trial')} that did not end",
            file=sys.stderr,
        )
    print(
        f"packed study {done.study}: {counted(done.trials, 'trial')}, "
        f"{counted(done.predictions, 'file')} of predictions, in {done.file} "
        f"({done.file.stat().st_size / 1024:.0f} KiB)"
    )
    return 0


def show_merged(done: Merged, bundles: Sequence[Path], into: Path) -> int:
    """Print what was new; returns 1 if MLflow lacks a part of it."""
    for file, new, old in zip(bundles, done.new, done.old, strict=True):
        print(f"{file}: {counted(new, 'new trial')}, {old} there before")
    print(f"study {done.study} in {into}: {counted(done.trials, 'trial')}")
    if done.behind:
        print(
            f"warning: the record is merged, but MLflow lacks a part of it: {done.behind}",
            file=sys.stderr,
        )
    return 1 if done.behind else 0


main = command("harness.bundle", run, int, "run the same command again")

if __name__ == "__main__":
    sys.exit(main())
