"""What is compared in a study? Every table of the report, made from what was loaded.

    python -c "from analysis import compare, load; \
               print(compare.find(load.load_study('freeze_depth')).differences)"
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from analysis.compare.cells import cells, chosen, outcomes, summary
from analysis.compare.contrasts import against_best, paired_differences
from analysis.compare.shifts import loss_pairs, shift_losses, shifted
from analysis.compare.sizes import by_size, crossings
from analysis.compare.tuning import budget_curve, learning_curves

if TYPE_CHECKING:
    from analysis.load import StudyTable


@dataclass(frozen=True)
class Findings:
    """Every table, in the columns that the function of its making documents; empty where the study
    holds nothing of the kind."""

    summary: pd.DataFrame
    differences: pd.DataFrame
    rivals: pd.DataFrame
    shifted: pd.DataFrame
    losses: pd.DataFrame
    loss_pairs: pd.DataFrame
    by_size: pd.DataFrame
    crossings: pd.DataFrame
    chosen: pd.DataFrame
    outcomes: pd.DataFrame
    budget: pd.DataFrame
    curves: pd.DataFrame


def find(table: StudyTable) -> Findings:
    """Everything that is compared, for the cells that the study declares.

    Raises:
        UserError: if two complete runs fill the same slot.
    """
    factors = table.info.factors
    trials = table.trials[table.trials["cell"].isin(cells(factors)["cell"])]
    per_cell = summary(trials, factors)
    losses = shift_losses(trials, factors)
    return Findings(
        summary=per_cell,
        differences=paired_differences(trials, factors, table.info.baseline),
        rivals=against_best(trials, per_cell),
        shifted=shifted(trials, factors),
        losses=losses,
        loss_pairs=loss_pairs(trials, list(losses["cell"])),
        by_size=by_size(trials, factors),
        crossings=crossings(trials, factors),
        chosen=chosen(trials),
        outcomes=outcomes(table.trials, factors),
        budget=budget_curve(trials),
        curves=learning_curves(trials, table.epochs),
    )
