"""Measure the similarity of a study's sources and targets, and record it beside the trials.

    python -m harness.similarity --space studies/source_similarity.py

Only training images of the target are looked at. A pair that was measured before is not measured again.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.core.caller import undisturbed
from harness.core.command_line import Parser, add_tracking_uri, escaped_output, run_command
from harness.core.errors import UserError
from harness.core.html import as_table
from harness.core.study_file import load_study, study_path

if TYPE_CHECKING:
    from harness.similarity import Measurement

ROOT = Path("mlruns")


@dataclass(frozen=True)
class PairMeasured:
    """How alike a source and a target are; a table in a notebook.

    Attributes:
        name: of the pair.
        measurements: one per measure, those that refused too.
    """

    name: str
    measurements: tuple[Measurement, ...]

    def _repr_html_(self) -> str:
        rows = [(m.name, f"{m.value:.3g}", m.better, m.reason) for m in self.measurements]
        return as_table(self.name, ("measure", "value", "better", "why not"), rows)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(
        prog="python -m harness.similarity",
        description="Measure every pair of a source and a target that a study compares.",
        epilog="Running the same command again measures only what is not recorded yet.",
    )
    parser.add_argument(
        "--space",
        required=True,
        type=study_path,
        help="study file, a Python file (its code is run)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default: auto)")
    add_tracking_uri(parser)
    parser.add_argument(
        "--cache-dir", type=Path, help="where outputs of networks are kept (default: user's cache)"
    )
    parser.add_argument(
        "--resamples",
        type=int,
        help="behind each interval; 0 for none, several times faster (default: each measure's own)",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    return run_command(lambda: run(parse(argv)), "run the same command again to go on")


def run(arguments: argparse.Namespace) -> int:
    """Everything after the command line has been read.

    Raises:
        UserError: on bad input.
    """
    a = arguments
    measure_similarity(a.space, a.device, a.tracking_uri, a.cache_dir, a.resamples)
    return 0


@undisturbed()
@escaped_output()
def measure_similarity(
    path: str | Path,
    device: str = "auto",
    tracking_uri: str | None = None,
    cache_dir: Path | None = None,
    resamples: int | None = None,
) -> tuple[PairMeasured, ...]:
    """Measure every pair of a source and a target that a study compares, print and record it.

    Args:
        path: the study file, or the name of a shipped study.
        device: "auto", "cpu", "cuda" or "mps".
        tracking_uri: where it is recorded; None is the database in ./mlruns.
        cache_dir: where outputs of networks are kept; None is the user's cache.
        resamples: behind each interval; 0 for none, None for each measure's own.

    Returns:
        The pairs that were measured now; those recorded before are in `analysis.load_study(...).measures`.

    Raises:
        UserError: on bad input.
    """
    if resamples is not None and resamples < 0:
        raise UserError(f"--resamples must be at least 0, got {resamples}")
    study = load_study(study_path(str(path)))

    from harness.core.stores import default_tracking_uri
    from harness.data.cached import Cache, default_folder
    from harness.search.space import first_draw
    from harness.similarity.sources.measuring import Measuring, as_run, pairs_of, shared_images
    from harness.tracking.experiment import Experiment
    from harness.training.device import resolve_device

    where = resolve_device(device)
    pairs = pairs_of((cell, first_draw(study, cell)) for cell in study.cells())
    for pair in pairs:
        if shared := shared_images(pair):
            print(
                f"warning: {pair.name}: the source learned from {shared} images of the target",
                file=sys.stderr,
            )
    recorder = Experiment(tracking_uri or default_tracking_uri(ROOT), study.name, {})
    known = {run.get("pair_sha256") for run in recorder.kept("similarity")}
    todo = [pair for pair in pairs if pair.identity() not in known]
    done: list[PairMeasured] = []
    if todo:
        measuring = Measuring(pairs, where, Cache(cache_dir or default_folder()))
    for count, pair in enumerate(todo, start=1):
        found = list(measuring.measure(pair, resamples))
        tags, metrics = as_run(pair, found)
        tags["study"] = study.name
        recorder.keep(f"similarity {pair.name}", pair.spec.flat(), tags, metrics)
        shown = ", ".join(f"{m.name} {m.value:.3g}" for m in found if not m.refused)
        print(f"[{count:>3}/{len(todo)}] {pair.name}: {shown}", flush=True)
        done.append(PairMeasured(pair.name, tuple(found)))
    print(f"{len(todo)} pairs measured, {len(pairs) - len(todo)} were recorded before")
    return tuple(done)


if __name__ == "__main__":
    sys.exit(main())
