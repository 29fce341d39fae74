"""Which source should this target be learned from? Measures, before paying for any training.

    python -m harness.rank --target folder:pets --sources tf_efficientnet_lite0,mobilenetv2_100

Says what recorded studies show about these measures, and when they do no better than one order for all.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from harness.spec import UserError, run_command

if TYPE_CHECKING:
    from harness.similarity import Measurement
    from harness.sources.evidence import Evidence
    from harness.sources.ranking import Candidate

ROOT = Path("mlruns")


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m harness.rank",
        description="Rank candidate sources for a target by measures of transferability.",
    )
    parser.add_argument("--target", required=True, help="as in TrialSpec, e.g. folder:PATH")
    parser.add_argument(
        "--sources",
        help="backbones (with their ImageNet weights) and recorded:NAME, joined by commas "
        "(default: the backbones whose weights are installed)",
    )
    parser.add_argument(
        "--images", type=int, default=200, help="training images looked at (default: 200)"
    )
    parser.add_argument(
        "--resolution", type=int, default=96, help="of the backbones, in pixels (default: 96)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default: auto)")
    parser.add_argument(
        "--tracking-uri", help="recorded studies (default: sqlite:///mlruns/mlflow.db)"
    )
    parser.add_argument(
        "--cache-dir", type=Path, help="where outputs of networks are kept (default: user's cache)"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    arguments = parse(argv)
    return run_command(lambda: run(arguments))


def run(arguments: argparse.Namespace) -> int:
    """Everything after the command line has been read.

    Raises:
        UserError: on bad input.
    """
    for name, least in (("images", 10), ("resolution", 8)):
        if getattr(arguments, name) < least:
            raise UserError(f"--{name} must be at least {least}, got {getattr(arguments, name)}")

    from harness.backbone.weights import WHEELS
    from harness.measure import resolve_device
    from harness.record_runs import read_runs
    from harness.rows import Cache, default_folder
    from harness.sources.evidence import PHASES, evidence, read_results
    from harness.sources.ranking import candidates, headline, pair_of, ranked, verdict
    from harness.stores import default_tracking_uri

    device = resolve_device(arguments.device)
    given = (arguments.sources or "").split(",") if arguments.sources else None
    names = given or [name for name, wheel in WHEELS.items() if wheel.file()]
    names = list(dict.fromkeys(name.strip() for name in names if name.strip()))
    if len(names) < 2:
        raise UserError(f"--sources must name at least 2, got {', '.join(names) or 'none'}")
    pairs = [pair_of(n, arguments.target, arguments.resolution, arguments.images) for n in names]
    runs = read_runs(arguments.tracking_uri or default_tracking_uri(ROOT), PHASES)
    found = candidates(pairs, runs, device, Cache(arguments.cache_dir or default_folder()))
    known = evidence(read_results(runs))
    measure = headline(found, known)
    print(f"target {pairs[0].target}: {len(pairs[0].target_data[1])} training images looked at")
    show(ranked(found, measure))
    show_evidence(known)
    for line in verdict(found, measure, known):
        print(line)
    return 0


def show(found: list[Candidate]) -> None:
    """A table: one row per measure that has a value for any candidate, one column per candidate."""
    names = dict.fromkeys(n for c in found for n in c.measures)
    absent: dict[str, list[str]] = {}
    table = Table("measure", "better", *(c.name for c in found), box=None)
    for name in names:
        measured = [c.measures[name] for c in found]
        if all(m.refused for m in measured):
            absent.setdefault("; ".join(dict.fromkeys(m.reason for m in measured)), []).append(name)
            continue
        better = next(m.better for m in measured if not m.refused)
        table.add_row(name, better, *map(_in_words, measured))
    console().print(table)
    for reason, refused in absent.items():
        console().print(f"no {', '.join(refused)}: {reason}", markup=False)


def _in_words(found: Measurement) -> str:
    if found.refused:
        return "-"
    if math.isnan(found.low):
        return f"{found.value:.3g}"
    return f"{found.value:.3g} ({found.low:.3g} to {found.high:.3g})"


def console() -> Console:
    """Wide lines where nobody's terminal limits them."""
    return Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 200)


def show_evidence(known: list[Evidence]) -> None:
    """How each measure picked in recorded studies."""
    if not known:
        return
    table = Table(
        "in recorded studies", "targets", "regret", "rank agreement", "static regret", box=None
    )
    for one in known:
        table.add_row(
            *(one.measure, str(one.targets), f"{one.regret:.1%}"),
            *(f"{one.tau:.2f}", f"{one.static_regret:.1%}"),
        )
    console().print(table)


if __name__ == "__main__":
    sys.exit(main())
