"""Rank candidate sources for a target by measures of transferability, before any training.

    python -m harness.rank --target folder:pets --sources tf_efficientnet_lite0,mobilenetv2_100

Says what recorded studies show about these measures, and when they do no better than one order for all.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from harness.core.caller import undisturbed
from harness.core.command_line import Parser, run_command
from harness.core.errors import UserError
from harness.core.html import as_table

if TYPE_CHECKING:
    from harness.similarity import Measurement
    from harness.similarity.sources.evidence import Evidence
    from harness.similarity.sources.ranking import Candidate

ROOT = Path("mlruns")


@dataclass(frozen=True)
class Ranking:
    """Sources for a target, the most promising first; a table in a notebook.

    Attributes:
        target: its name.
        images: training images of it that were looked at.
        candidates: with what each measure says of them.
        measure: that they are ranked by.
        evidence: how measures picked in recorded studies.
        verdict: what to believe of it, in sentences.
    """

    target: str
    images: int
    candidates: tuple[Candidate, ...]
    measure: str
    evidence: tuple[Evidence, ...]
    verdict: tuple[str, ...]

    def _repr_html_(self) -> str:
        rows = []
        for name in dict.fromkeys(n for c in self.candidates for n in c.measures):
            measured = [c.measures[name] for c in self.candidates]
            if not all(m.refused for m in measured):
                rows.append((name, *map(_describe, measured)))
        caption = f"target {self.target}: {self.images} training images; {'; '.join(self.verdict)}"
        return as_table(caption, ("measure", *(c.name for c in self.candidates)), rows)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(
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
    return run_command(lambda: run(parse(argv)))


def run(arguments: argparse.Namespace) -> int:
    """Everything after the command line has been read.

    Raises:
        UserError: on bad input.
    """
    a = arguments
    sources = a.sources.split(",") if a.sources else None
    found = rank_sources(
        a.target, sources, a.images, a.resolution, a.device, a.tracking_uri, a.cache_dir
    )
    print(f"target {found.target}: {found.images} training images looked at")
    show(found.candidates)
    show_evidence(found.evidence)
    print(*found.verdict, sep="\n")
    return 0


@undisturbed()
def rank_sources(
    target: str,
    sources: Sequence[str] | None = None,
    images: int = 200,
    resolution: int = 96,
    device: str = "auto",
    tracking_uri: str | None = None,
    cache_dir: Path | None = None,
) -> Ranking:
    """Which source should this target be learned from? Measured before paying for any training.

    Args:
        target: as in TrialSpec, e.g. "folder:PATH".
        sources: backbones (with their ImageNet weights) and "recorded:NAME", at least 2; None are the
            backbones whose weights are installed.
        images: training images looked at, at least 10.
        resolution: of the backbones, in pixels, at least 8.
        device: "auto", "cpu", "cuda" or "mps".
        tracking_uri: where studies are recorded; None is the database in ./mlruns.
        cache_dir: where outputs of networks are kept; None is the user's cache.

    Raises:
        UserError: on bad input.
    """
    for name, value, least in (("images", images, 10), ("resolution", resolution, 8)):
        if value < least:
            raise UserError(f"--{name} must be at least {least}, got {value}")

    from harness.backbones.weights import WHEELS
    from harness.core.stores import default_tracking_uri
    from harness.data.cached import Cache, default_folder
    from harness.similarity.sources.evidence import PHASES, evidence, read_results
    from harness.similarity.sources.ranking import candidates, headline, pair_of, ranked, verdict
    from harness.tracking.runs import read_runs
    from harness.training.device import resolve_device

    where = resolve_device(device)
    names = [name for name, wheel in WHEELS.items() if wheel.file()] if sources is None else sources
    names = list(dict.fromkeys(name.strip() for name in names if name.strip()))
    if len(names) < 2:
        raise UserError(f"--sources must name at least 2, got {', '.join(names) or 'none'}")
    runs = read_runs(tracking_uri or default_tracking_uri(ROOT), PHASES)
    pairs = [pair_of(name, target, resolution, images) for name in names]
    found = candidates(pairs, runs, where, Cache(cache_dir or default_folder()))
    known = evidence(read_results(runs))
    measure = headline(found, known)
    return Ranking(
        pairs[0].target,
        len(pairs[0].target_data[1]),
        tuple(ranked(found, measure)),
        measure,
        tuple(known),
        tuple(verdict(found, measure, known)),
    )


def show(found: Sequence[Candidate]) -> None:
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
        table.add_row(name, better, *map(_describe, measured))
    console().print(table)
    for reason, refused in absent.items():
        console().print(f"no {', '.join(refused)}: {reason}", markup=False)


def _describe(found: Measurement) -> str:
    if found.refused:
        return "-"
    if math.isnan(found.low):
        return f"{found.value:.3g}"
    return f"{found.value:.3g} ({found.low:.3g} to {found.high:.3g})"


def console() -> Console:
    """Wide lines where nobody's terminal limits them."""
    return Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 200)


def show_evidence(known: Sequence[Evidence]) -> None:
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
