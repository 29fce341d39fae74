"""Find learning rates worth searching: a range test for each cell of a study.

python -m harness.lr_find --space studies/freeze_depth.py
"""

from __future__ import annotations

import dataclasses
import sys
from typing import TYPE_CHECKING

from harness.core.caller import undisturbed
from harness.core.command_line import File, command
from harness.core.errors import UserError
from harness.core.study_file import load_study, study_path

if TYPE_CHECKING:
    from harness.training.lr_range import LrRange


@undisturbed()
def find_lr(
    space: File, *, device: str = "auto", steps: int = 60, highest: float = 1.0
) -> tuple[LrRange, ...]:
    """Find learning rates worth searching: a range test for each cell of a study.

    Prints, for each cell, the rate at which the loss falls fastest and a tenth of the rate at which it starts
    to rise: search between these two. Nothing is recorded.

    Args:
        space: study file (its code is run), or the name of a shipped study.
        device: auto, cpu, cuda or mps.
        steps: batches per cell, at least 10.
        highest: highest learning rate of the test, above 0.

    Raises:
        UserError: on bad input.
    """
    if steps < 10 or not highest > 0:
        raise UserError("--steps must be at least 10 and --highest above 0")
    study = load_study(study_path(str(space)))

    from harness.search.preflight import check_study
    from harness.training.device import resolve_device
    from harness.training.loop import Training
    from harness.training.lr_range import LrRange, suggest

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


main = command("harness.lr_find", find_lr)

if __name__ == "__main__":
    sys.exit(main())
