"""Comparisons that several topics of the report share, computed once per study."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from analysis.compare.cells import summary
from analysis.compare.choice import choice
from analysis.compare.contrasts import against_baseline, contrasts
from analysis.compare.examples import over_examples
from analysis.compare.factors import mean_ranks
from analysis.compare.runs import cells, completed

if TYPE_CHECKING:
    from analysis.load import Info, StudyTable


@dataclass(frozen=True)
class Findings:
    """A study and its comparisons, from which all topics start; tables are empty if they do not apply.

    Attributes:
        table: the study as loaded.
        trials: its runs of declared cells.
        measures: given similarity of source and target: columns source, target and one per measure, higher
            means more similar; None uses those recorded with the study.
        summary: see `cells.summary`.
        ranking: see `choice.choice`; the first row is the chosen cell.
        contrasts: see `contrasts.contrasts`: the verdict on every pair of cells.
        differences: the rows of contrasts with the baseline.
        ranks: see `factors.mean_ranks`.
        examples: see `examples.over_examples`.
    """

    table: StudyTable
    trials: pd.DataFrame
    measures: pd.DataFrame | None
    summary: pd.DataFrame
    ranking: pd.DataFrame
    contrasts: pd.DataFrame
    differences: pd.DataFrame
    ranks: pd.DataFrame
    examples: pd.DataFrame

    @property
    def info(self) -> Info:
        """The study as a whole."""
        return self.table.info

    @property
    def chosen(self) -> str:
        """The cell chosen by validation; "" without a scored cell, and where targets are compared."""
        scored = self.ranking[self.ranking["fits"]]
        return "" if scored.empty or len(self.ranks) else str(scored["cell"].iloc[0])

    @property
    def repeats(self) -> pd.DataFrame:
        """The repeats that are compared."""
        return completed(self.trials, "repeat")

    @property
    def predictions(self) -> pd.DataFrame:
        """Their test predictions."""
        kept = self.table.predictions
        return kept[kept["run_id"].isin(self.repeats["run_id"])]


def find(table: StudyTable, measures: pd.DataFrame | None = None) -> Findings:
    """Compare the declared cells of a study.

    Args:
        table: as loaded.
        measures: see `Findings`.

    Raises:
        UserError: if two complete runs have the same slot.
    """
    info = table.info
    trials = table.trials[table.trials["cell"].isin(cells(info.factors)["cell"])]
    pairs = contrasts(trials, info)
    kept = table.predictions
    if len(kept):
        kept = kept[kept["run_id"].isin(completed(trials, "repeat")["run_id"])]
    return Findings(
        table=table,
        trials=trials,
        measures=measures,
        summary=summary(trials, info),
        ranking=choice(trials, info),
        contrasts=pairs,
        differences=against_baseline(pairs, info),
        ranks=mean_ranks(trials, info),
        examples=over_examples(kept, folds=info.folds, score=info.score),
    )
