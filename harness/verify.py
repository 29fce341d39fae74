"""Is a recorded study whole, and do its two stores agree? Repairs what can be repaired, and says what it did.

    python -m harness.verify --study freeze_depth

It may be typed at any time, also while the study runs. Exit code 0: all holds now; 1: something is missing or
cannot be repaired.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from harness.caller import undisturbed
from harness.command import Parser, run_command
from harness.stores import default_tracking_uri, search_url

if TYPE_CHECKING:
    from harness.search.repair import Verdict


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(
        prog="python -m harness.verify",
        description="Check a recorded study, repair what can be repaired, and say what was done.",
        epilog="Exit code 0: all holds; 1: something is missing or cannot be repaired.",
    )
    parser.add_argument("--study", required=True, help="its name")
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
        UserError: if one of the stores, or the study in it, is not to be had.
    """
    verdict = verify_study(arguments.study, arguments.storage, arguments.tracking_uri)
    show(arguments.study, verdict)
    return 0 if verdict.holds else 1


@undisturbed()
def verify_study(
    study: str, storage: str | None = None, tracking_uri: str | None = None
) -> Verdict:
    """Check a recorded study, and repair what can be repaired.

    Args:
        study: its name.
        storage: Optuna storage URL; None is the database beside MLflow's.
        tracking_uri: where it is recorded; None is the database in ./mlruns.

    Returns:
        What was found, repaired and left; `holds` says whether all is well.

    Raises:
        UserError: if one of the stores, or the study in it, is not to be had.
    """
    from harness.record import Recorder
    from harness.record_runs import info_of
    from harness.search.integrity import Stores
    from harness.search.leases import Owner, Watch
    from harness.search.repair import verify
    from harness.search.storage import open_storage, require_storage

    uri = tracking_uri or default_tracking_uri()
    info = info_of(study, uri)
    url = storage or search_url(uri)
    require_storage(url)
    stores = Stores(open_storage(url), uri, Recorder(uri, info), Watch(Owner.here()))
    return verify(info, stores)


def show(name: str, verdict: Verdict) -> None:
    """What was found, in plain lines."""
    from harness.search.leases import is_here

    for progress in verdict.progress:
        print(progress)
    for owner in verdict.at_work:
        doubt = "" if is_here(owner) else ", or did: only its own machine knows whether it lives"
        print(f"process {owner} works on it{doubt}")
    for finding in verdict.repaired:
        print(f"repaired: {finding.invariant}: {finding.what}")
    for finding in verdict.left:
        word = "unfinished" if finding.invariant == "I3" else "wrong"
        print(f"{word}: {finding.invariant}: {finding.what}")
    if verdict.holds:
        print(f"study {name} is whole: both stores agree, nothing is missing, nothing is double")


if __name__ == "__main__":
    sys.exit(main())
