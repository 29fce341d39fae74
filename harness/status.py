"""How far is a study that runs, here or on a cluster, and who works on what? Only reads.

    python -m harness.status --study freeze_depth
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from harness.spec import UserError, cell_label, run_command

if TYPE_CHECKING:
    from harness.search.overview import Plan


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
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
    arguments = parse(argv)
    return run_command(lambda: run(arguments))


def run(arguments: argparse.Namespace) -> int:
    """Everything after the command line has been read.

    Raises:
        UserError: if there is no such study, or a store cannot be read.
    """
    from rich.console import Console

    from harness.progress import picture, working_in_words
    from harness.record import default_tracking_uri, sqlite_path
    from harness.record_runs import tags_of
    from harness.search.overview import overview
    from harness.search.storage import read_storage

    uri = arguments.tracking_uri or default_tracking_uri()
    plan = asked_for(arguments.study, tags_of(arguments.study, uri))
    database = sqlite_path(uri)
    folder = database.parent if database else Path("mlruns").resolve()
    with read_storage(arguments.storage or f"sqlite:///{folder}/optuna.db") as storage:
        found = overview(plan, storage)
    console = Console(highlight=False)
    console.print(picture(found))
    print("\nat work:" if found.working else "\nnobody works on it now")
    for work in found.working:
        print(f"  {working_in_words(work)}")
    return 0


def asked_for(study: str, tags: Mapping[str, str]) -> Plan:
    """What was asked for, from the tags of the study's experiment.

    Raises:
        UserError: if they are not those of a study.
    """
    from harness.search.overview import Plan

    try:
        factors = json.loads(tags["factors"])
        cells = (
            cell_label(dict(zip(factors, v, strict=True)))
            for v in itertools.product(*factors.values())
        )
        return Plan(study, tuple(cells), int(tags["trials"]), int(tags["repeats"]))
    except (KeyError, ValueError, AttributeError, TypeError) as error:
        raise UserError(f"experiment {study!r} is not a study of this harness: {error!r}") from None


if __name__ == "__main__":
    sys.exit(main())
