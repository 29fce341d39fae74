"""How far is a study that runs, here or on a cluster, and who works on what? Only reads.

python -m harness.status --study freeze_depth
"""

from __future__ import annotations

import argparse
import itertools
import sys

from harness.spec import run_command


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
    from harness.record_runs import info_of
    from harness.search.overview import Plan, overview
    from harness.search.storage import read_storage
    from harness.stores import default_tracking_uri, search_url

    uri = arguments.tracking_uri or default_tracking_uri()
    info = info_of(arguments.study, uri)
    cells = tuple(" | ".join(labels) for labels in itertools.product(*info.factors.values()))
    plan = Plan(info.name, cells, info.trials, info.repeats)
    found = overview(plan, read_storage(arguments.storage or search_url(uri)))
    console = Console(highlight=False)
    console.print(picture(found))
    print("\nat work:" if found.working else "\nnobody works on it now")
    for work in found.working:
        print(f"  {working_in_words(work)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
