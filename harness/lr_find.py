"""Which learning rates are worth searching? A range test for each cell of a study.

    python -m harness.lr_find --space studies/freeze_depth.py

Prints, per cell, the rate at which the loss falls fastest and a tenth of the rate at which it starts to
rise: the range between them is where to search. Nothing is recorded.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence

from harness.spec import UserError, run_command
from harness.study_file import load_study, study_path


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


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m harness.lr_find", description=__doc__)
    parser.add_argument("--space", required=True, type=study_path, help="study file")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default: auto)")
    parser.add_argument("--steps", type=int, default=60, help="batches per cell (default: 60)")
    parser.add_argument(
        "--highest", type=float, default=1.0, help="last learning rate (default: 1)"
    )
    arguments = parser.parse_args(argv)
    return run_command(lambda: run(arguments))


def run(arguments: argparse.Namespace) -> int:
    """Everything after the command line has been read.

    Raises:
        UserError: on bad input.
    """
    study = load_study(arguments.space)
    if arguments.steps < 10 or not arguments.highest > 0:
        raise UserError("--steps must be at least 10 and --highest above 0")

    from harness.measure import resolve_device
    from harness.search.door import check_at_the_door
    from harness.train import Training

    device = resolve_device(arguments.device)
    for label, spec in check_at_the_door(study).specs.items():
        if spec.strategy.readout != "head":
            print(f"{label}: takes no gradient steps")
            continue
        fit = Training(dataclasses.replace(spec, lr=arguments.highest), device)
        rates, losses = zip(*fit.range_test(arguments.steps), strict=True)
        low, high = sorted(suggest(rates, losses))
        print(f"{label}: search between {low:.1e} and {high:.1e}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
