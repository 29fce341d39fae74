"""Rank candidate sources for a target by measures of transferability, before any training.

python -m harness.rank --target folder:pets --sources tf_efficientnet_lite0,mobilenetv2_100
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.console import Console
from rich.table import Table

from harness.core.caller import undisturbed
from harness.core.command_line import AS_WRITTEN, TEXT, File, command, program
from harness.core.errors import UserError

if TYPE_CHECKING:
    from harness.similarity.sources.evidence import Evidence
    from harness.similarity.sources.ranking import Ranking


@undisturbed()
def rank_sources(
    target: str,
    *,
    sources: Annotated[str | Sequence[str] | None, TEXT] = None,
    images: int = 200,
    resolution: int = 96,
    device: str = "auto",
    tracking_uri: str | None = None,
    cache_dir: File | None = None,
) -> Ranking:
    """Rank candidate sources for a target by measures of transferability, before any training.

    Also shows how well these measures chose sources in recorded studies, compared with a ranking that ignores
    the target.

    Args:
        target: as in TrialSpec, e.g. folder:PATH.
        sources: backbones (with their published weights) and recorded:NAME, joined by commas; the default is
            the backbones whose weights are installed and that take the target's examples.
        images: number of training examples to use, at least 10.
        resolution: input size in pixels for backbones that take images or spectrograms, at least 8.
        device: auto, cpu, cuda or mps.
        tracking_uri: MLflow tracking URI of recorded studies; the default is sqlite:///mlruns/mlflow.db.
        cache_dir: folder that caches outputs of networks; the default is in the user's cache.

    Raises:
        UserError: on bad input.
    """
    for name, value, least in (("images", images, 10), ("resolution", resolution, 8)):
        if value < least:
            raise UserError(f"--{name} must be at least {least}, got {value}")

    from harness.core.stores import default_tracking_uri
    from harness.data import load_target
    from harness.data.cache_folder import default_folder
    from harness.data.cached import Cache
    from harness.similarity.sources.evidence import PHASES, evidence, read_results
    from harness.similarity.sources.ranking import (
        Ranking,
        candidates,
        headline,
        installed,
        pair_of,
        ranked,
        verdict,
    )
    from harness.tracking.runs import read_runs
    from harness.training.device import resolve_device

    where = resolve_device(device)
    sources = sources.split(",") if isinstance(sources, str) else sources
    names = installed(target) if sources is None else sources
    names = list(dict.fromkeys(name.strip() for name in names if name.strip()))
    if len(names) < 2:
        raise UserError(
            f"at least 2 sources are compared, got {', '.join(names) or 'none'}; name more with --sources"
        )
    runs = read_runs(tracking_uri or default_tracking_uri(), PHASES)
    pairs = [pair_of(name, target, resolution, images) for name in names]
    found = candidates(pairs, runs, where, Cache(Path(cache_dir or default_folder())))
    known = evidence(read_results(runs))
    measure = headline(found, known)
    return Ranking(
        pairs[0].target,
        len(pairs[0].target_data[1]),
        f"{load_target(target).medium.noun}s",
        str(pairs[0].reference),
        tuple(ranked(found, measure)),
        measure,
        tuple(known),
        tuple(verdict(found, measure, known)),
    )


def show(found: Ranking) -> None:
    """Print it."""
    print(found.describe())
    show_candidates(found)
    show_evidence(found.evidence)
    print(*found.verdict, sep="\n")
    print(
        f"next: {program('python')} -m harness.new --target {shlex.quote(found.target)} --budget 20m "
        "screens backbones by such measures, and writes a study in which the best ones race"
    )


def show_candidates(found: Ranking) -> None:
    """A table: one row per measure that has a value for any candidate, one column per candidate."""
    absent: dict[str, list[str]] = {}
    table = Table("measure", "better", *(c.name for c in found.candidates), box=None)
    for name, measured in found.by_measure().items():
        if all(m.refused for m in measured):
            absent.setdefault("; ".join(dict.fromkeys(m.reason for m in measured)), []).append(name)
            continue
        better = next(m.better for m in measured if not m.refused)
        table.add_row(name, better, *(m.describe() for m in measured))
    console().print(table)
    for reason, refused in absent.items():
        console().print(f"no {', '.join(refused)}: {reason}")


def console() -> Console:
    """A console with wide lines unless a terminal limits them."""
    width = None if sys.stdout.isatty() else 200
    return Console(soft_wrap=True, width=width, **AS_WRITTEN)


def show_evidence(known: Sequence[Evidence]) -> None:
    """A table of how well each measure chose sources in recorded studies."""
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


main = command("harness.rank", rank_sources, show)

if __name__ == "__main__":
    sys.exit(main())
