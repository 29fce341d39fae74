"""What is compared in a study? Every table of the report, made from what was loaded.

    python -c "from analysis import compare, load; \\
               print(compare.find(load.load_study('freeze_depth')).differences)"
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pandas as pd

from analysis.compare.cells import outcomes, summary
from analysis.compare.contexts import mean_ranks
from analysis.compare.contrasts import against_best, paired_differences
from analysis.compare.costs import censored, front_chance, left_out
from analysis.compare.examples import over_examples
from analysis.compare.importance import importances, rate_ranges
from analysis.compare.runs import cells, chosen, completed
from analysis.compare.shifts import loss_pairs, shift_losses, shifted
from analysis.compare.similarity import Similarity, similarity_effect
from analysis.compare.sizes import by_size, crossings, size_lines
from analysis.compare.tuning import budget_curve, budget_ranks, learning_curves

if TYPE_CHECKING:
    from analysis.load import StudyTable

LINES = 24
"""Lines above which their crossings are not looked for: there would be hundreds."""
ENDED_WELL = ("complete", "pruned", "unfinished")


@dataclass(frozen=True)
class Findings:
    """Every table, in the columns that the function of its making documents; empty where the study
    holds nothing of the kind."""

    summary: pd.DataFrame
    differences: pd.DataFrame
    rivals: pd.DataFrame
    ranks: pd.DataFrame
    examples: pd.DataFrame
    fronts: pd.DataFrame
    censored: pd.DataFrame
    left_out: pd.DataFrame
    shifted: pd.DataFrame
    losses: pd.DataFrame
    loss_pairs: pd.DataFrame
    by_size: pd.DataFrame
    crossings: pd.DataFrame
    chosen: pd.DataFrame
    outcomes: pd.DataFrame
    failures: pd.DataFrame
    budget: pd.DataFrame
    budget_ranks: pd.DataFrame
    importances: pd.DataFrame
    rates: pd.DataFrame
    curves: pd.DataFrame
    similarity: Similarity = field(default_factory=Similarity)

    def tables(self) -> dict[str, pd.DataFrame]:
        """Every table that has rows, by name."""
        named = vars(self) | {f"similarity_{k}": v for k, v in vars(self.similarity).items()}
        return {k: v for k, v in named.items() if isinstance(v, pd.DataFrame) and len(v)}


def find(table: StudyTable, measures: pd.DataFrame | None = None) -> Findings:
    """Everything that is compared, for the cells that the study declares.

    Args:
        table: as loaded.
        measures: source, target and one column per measure of their similarity, more meaning more alike; None
            takes those recorded with the study.

    Raises:
        UserError: if two complete runs fill the same slot, or measures are given that fit no pair.
    """
    factors, selection = table.info.factors, table.info.selection
    trials = table.trials[table.trials["cell"].isin(cells(factors)["cell"])]
    per_cell = summary(trials, factors, selection)
    losses = shift_losses(trials, factors)
    few = size_lines(factors)["line"].nunique() <= LINES
    kept, over_targets = table.predictions, mean_ranks(trials, factors)
    return Findings(
        summary=per_cell,
        differences=paired_differences(trials, factors, table.info.baseline, kept),
        rivals=against_best(trials, per_cell, factors, kept),
        ranks=over_targets,
        examples=over_examples(kept[kept["run_id"].isin(completed(trials, "repeat")["run_id"])]),
        # scores of different targets have no common front
        fronts=front_chance(trials if over_targets.empty else trials[:0], factors),
        censored=censored(trials, factors),
        left_out=left_out(trials),
        shifted=shifted(trials, factors),
        losses=losses,
        loss_pairs=loss_pairs(trials, list(losses["cell"])),
        by_size=by_size(trials, factors),
        crossings=crossings(trials if few else trials[:0], factors),
        chosen=chosen(trials, selection),
        outcomes=outcomes(table.trials, factors),
        failures=failures(table.trials),
        budget=budget_curve(trials),
        budget_ranks=budget_ranks(trials, factors),
        importances=importances(trials),
        rates=rate_ranges(trials),
        curves=learning_curves(trials, table.epochs, selection),
        similarity=similarity_effect(table, measures),
    )


def failures(trials: pd.DataFrame) -> pd.DataFrame:
    """Every run that did not end well, superseded ones left out: cell, phase, index, seed, outcome, reason,
    run_id, in that order."""
    bad = trials[~trials["outcome"].isin(ENDED_WELL) & ~trials["superseded"]]
    columns = ["cell", "phase", "index", "seed", "outcome", "reason", "run_id"]
    return bad[columns].sort_values(columns[:4], kind="stable", ignore_index=True)
