"""Checks of a study with a time budget: refuse what no race can decide."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from harness.core.errors import UserError
from harness.core.race import FIRST, SCREENING
from harness.core.spec import TrialSpec
from harness.core.study import Study
from harness.core.units import Seconds
from harness.search.costs import CellCost
from harness.search.options import StudyOptions


def check_options(study: Study, options: StudyOptions) -> None:
    """Refuse options that contradict a budget.

    Raises:
        UserError: naming the option.
    """
    if options.cells:
        raise UserError(
            f"--cells {options.cells} with a budget of {study.budget}: a race compares all cells while it "
            "runs, so one command runs them all; leave out --cells (--workers and --engine ray work)"
        )
    for name in ("trials", "repeats"):
        if getattr(options, name) is not None:
            raise UserError(
                f"--{name} with a budget of {study.budget}: the budget decides how many trials and repeats "
                f"a cell gets; leave out --{name}, or run without a budget"
            )


def check_one_target(study: Study, specs: Mapping[str, TrialSpec]) -> None:
    """Refuse cells that are no alternatives to each other.

    Raises:
        UserError: naming the field in which the first trials of two cells differ.
    """
    for name in ("target", "shots", "val_shots", "test_shots"):
        values = list(dict.fromkeys(str(getattr(spec, name)) for spec in specs.values()))
        if len(values) > 1:
            raise UserError(
                f"study {study.name!r} has a budget of {study.budget}, with which one cell is chosen, but "
                f"its cells differ in {name} ({', '.join(values[:4])}), so their scores cannot be compared; "
                "run it without a budget, or one study for each"
            )


def check_first_round(study: Study, costs: Iterable[CellCost]) -> None:
    """Refuse a budget in which not even the first round fits, by the forecast.

    For a study that has not begun: later the trials' own seconds decide.

    Raises:
        UserError: naming a budget that would do.
    """
    assert study.seconds is not None
    known = list(costs)
    least = least_seconds(known)
    if study.seconds < least:
        most = int(len(known) * study.seconds / least)
        fewer = f", or compare at most {most} cells" if most > 1 else ""
        raise UserError(
            f"a budget of {study.budget} is too small: the first {FIRST} trials of each of the {len(known)} "
            f"cells take about {SCREENING * least:.2g} s by the forecast, and tuning gets {SCREENING:.0%} of "
            f"the budget; give at least --budget {Seconds(math.ceil(least))}{fewer}"
        )


def least_seconds(costs: Iterable[CellCost]) -> float:
    """The smallest budget in which the first round of these cells fits, by the forecast."""
    return FIRST * sum(cost.seconds or 0.0 for cost in costs) / SCREENING
