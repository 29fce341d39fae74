"""Find learning rates worth searching: a range test for each cell of a study.

    python -m harness.lr_find --space studies/freeze_depth.py

Prints, per cell, the rate at which the loss falls fastest and a tenth of the rate at which it starts to
rise: the range between them is where to search. Nothing is recorded.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.core.caller import undisturbed
from harness.core.command_line import Parser, run_command
from harness.core.errors import UserError
from harness.core.study_file import load_study, study_path


@dataclass(frozen=True)
class LrRange:
    """Where to search in one cell.

    Attributes:
        cell: its label.
        low, high: learning rates; None where no gradient steps are taken.
        rates: that were tried, rising, one per batch.
        losses: after each, in nats.
    """

    cell: str
    low: float | None = None
    high: float | None = None
    rates: tuple[float, ...] = ()
    losses: tuple[float, ...] = ()

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.cell}: takes no gradient steps"
        return f"{self.cell}: search between {self.low:.1e} and {self.high:.1e}"


def suggest(
    rates: Sequence[float], losses: Sequence[float], smoothing: float = 0.8
) -> tuple[float, float]:
    """Two rates from a range test: steepest fall of the smoothed loss, a tenth of the rate of its minimum.

    Args:
        rates: learning rates in rising order, at least 4.
        losses: loss after each, in nats.
        smoothing: of the exponential moving average (bias-corrected).

    Raises:
        UserError: if the test gave fewer than 4 finite losses.
    """
    import numpy as np
    import pandas as pd

    finite = np.isfinite(losses)
    if finite.sum() < 4:
        raise UserError("the range test diverged at once: the data or the weights may be broken")
    smooth = pd.Series(np.asarray(losses)[finite]).ewm(alpha=1 - smoothing).mean().to_numpy()
    kept = np.asarray(rates)[finite]
    lowest = int(smooth.argmin())
    slope = np.gradient(smooth, np.log(kept))[: lowest + 1]
    return float(kept[int(slope.argmin())]), float(kept[lowest] / 10)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(prog="python -m harness.lr_find", description=__doc__)
    parser.add_argument("--space", required=True, type=study_path, help="study file")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default: auto)")
    parser.add_argument("--steps", type=int, default=60, help="batches per cell (default: 60)")
    parser.add_argument(
        "--highest", type=float, default=1.0, help="last learning rate (default: 1)"
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
    find_lr(arguments.space, arguments.device, arguments.steps, arguments.highest)
    return 0


@undisturbed()
def find_lr(
    path: str | Path, device: str = "auto", steps: int = 60, highest: float = 1.0
) -> tuple[LrRange, ...]:
    """A range test for each cell of a study, printed as it is done.

    Args:
        path: the study file, or the name of a shipped study.
        device: "auto", "cpu", "cuda" or "mps".
        steps: batches per cell, at least 10.
        highest: last learning rate, above 0.

    Raises:
        UserError: on bad input.
    """
    if steps < 10 or not highest > 0:
        raise UserError("--steps must be at least 10 and --highest above 0")
    study = load_study(study_path(str(path)))

    from harness.search.preflight import check_study
    from harness.training.device import resolve_device
    from harness.training.loop import Training

    where, found = resolve_device(device), []
    for label, spec in check_study(study).specs.items():
        if spec.strategy.classifier == "head":
            fit = Training(dataclasses.replace(spec, lr=highest), where)
            rates, losses = zip(*fit.range_test(steps), strict=True)
            low, high = sorted(suggest(rates, losses))
            found.append(LrRange(label, low, high, rates, losses))
        else:
            found.append(LrRange(label))
        print(found[-1], flush=True)
    return tuple(found)


if __name__ == "__main__":
    sys.exit(main())
