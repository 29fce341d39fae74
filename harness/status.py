"""Show the progress of a study and the process that runs it; only reads.

python -m harness.status --study freeze_depth
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from harness.core.caller import undisturbed
from harness.core.command_line import Parser, add_stores, run_command

if TYPE_CHECKING:
    from harness.search.overview import Overview


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(
        prog="python -m harness.status",
        description="Say how far a study is and who works on what; only reads.",
    )
    parser.add_argument("--study", required=True, metavar="NAME", help="study")
    add_stores(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    return run_command(lambda: run(parse(argv)))


def run(arguments: argparse.Namespace) -> int:
    """Everything after the command line has been read.

    Raises:
        UserError: if there is no such study, or a store cannot be read.
    """
    from rich.console import Console

    from harness.core.stores import record_home
    from harness.search.lock import holder_of
    from harness.search.progress import describe_working, picture

    found = study_status(arguments.study, arguments.storage, arguments.tracking_uri)
    Console(highlight=False).print(picture(found))
    home = record_home(arguments.storage, arguments.tracking_uri)
    holder = holder_of(home, arguments.study)
    if holder is None:
        print(f"\n{'nobody works on it now' if found.outcomes else 'it has no trial yet'}")
    elif holder.gone:
        print(f"\nit was left by {holder}, which died: the same command goes on")
    else:
        print(f"\nat work: {holder}")
    for work in found.working:
        print(f"  {describe_working(work)}")
    return 0


@undisturbed()
def study_status(
    study: str, storage: str | None = None, tracking_uri: str | None = None
) -> Overview:
    """The progress of a study and its running trials; a table in a notebook. Only reads.

    Args:
        study: its name.
        storage: Optuna storage URL; None is the database beside MLflow's.
        tracking_uri: MLflow's; None is the database in ./mlruns.

    Raises:
        UserError: if there is no such study, or a store cannot be read.
    """
    from harness.core.stores import record_home, record_url
    from harness.search.overview import overview
    from harness.search.plan import Plan
    from harness.search.record import Record
    from harness.search.storage import read_storage

    url = record_url(storage, tracking_uri)
    record = Record(read_storage(url), record_home(storage, tracking_uri))
    info = record.info(study)
    return overview(Plan.recorded(info), record.trials(info))


if __name__ == "__main__":
    sys.exit(main())
