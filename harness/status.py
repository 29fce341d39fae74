"""How far is a study that runs, here or on a cluster, and who works on what? Only reads.

python -m harness.status --study freeze_depth
"""

from __future__ import annotations

import argparse
import itertools
import sys
from typing import TYPE_CHECKING

from harness.caller import undisturbed
from harness.command import Parser, run_command
from harness.errors import UserError

if TYPE_CHECKING:
    from harness.search.overview import Overview


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(
        prog="python -m harness.status",
        description="Say how far a study is and who works on what; only reads.",
    )
    parser.add_argument("--study", required=True, metavar="NAME", help="study (MLflow experiment)")
    parser.add_argument(
        "--storage", help="Optuna storage URL (default: optuna.db beside the MLflow database)"
    )
    parser.add_argument(
        "--tracking-uri", help="MLflow tracking URI (default: sqlite:///mlruns/mlflow.db)"
    )
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

    from harness.progress import picture, working_in_words

    found = study_status(arguments.study, arguments.storage, arguments.tracking_uri)
    Console(highlight=False).print(picture(found))
    at_work = "at work:" if found.working else "nobody works on it now"
    print(f"\n{at_work if found.working or found.outcomes else 'it has no trial yet'}")
    for work in found.working:
        print(f"  {working_in_words(work)}")
    return 0


@undisturbed()
def study_status(
    study: str, storage: str | None = None, tracking_uri: str | None = None
) -> Overview:
    """How far a study is, and who works on what; a table in a notebook. Only reads.

    Args:
        study: its name.
        storage: Optuna storage URL; None is the database beside MLflow's.
        tracking_uri: where it is recorded; None is the database in ./mlruns.

    Raises:
        UserError: if there is no such study, or a store cannot be read.
    """
    from harness.record_runs import info_of
    from harness.search.overview import Plan, overview
    from harness.search.storage import read_storage
    from harness.stores import default_tracking_uri, search_url, sqlite_path

    uri = tracking_uri or default_tracking_uri()
    info = info_of(study, uri)
    cells = tuple(" | ".join(labels) for labels in itertools.product(*info.factors.values()))
    plan = Plan(info.name, cells, info.trials, info.repeats)
    beside = sqlite_path(search_url(uri))
    if storage is None and beside is not None and not beside.exists():
        raise UserError(
            f"study {study} has no trial yet in {beside}, which is absent; if its search has another place, "
            "name it by --storage"
        )
    return overview(plan, read_storage(storage or search_url(uri)))


if __name__ == "__main__":
    sys.exit(main())
