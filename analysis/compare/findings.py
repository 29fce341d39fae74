"""What is compared in a study? Every table of the report, made from what was loaded.

    python -c "from analysis import compare, load; \\
               print(compare.find(load.load_study('freeze_depth')).differences)"
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pandas as pd

from analysis.compare.agreement import (
    STATIC,
    mean_agreement,
    rank_agreement,
    regret,
    static_ranking,
)
from analysis.compare.cells import outcomes, summary
from analysis.compare.contexts import mean_ranks
from analysis.compare.contrasts import against_best, paired_differences
from analysis.compare.costs import censored, front_chance, left_out
from analysis.compare.examples import over_examples
from analysis.compare.importance import importances, rate_ranges
from analysis.compare.runs import cells, chosen, completed
from analysis.compare.shifts import loss_pairs, shift_losses, shifted
from analysis.compare.similarity import (
    gains,
    responses,
    slopes,
    variance_shares,
    verdicts,
    with_scratch,
)
from analysis.compare.sizes import by_size, crossings, size_factor
from analysis.compare.tuning import budget_curve, budget_ranks, learning_curves
from harness.spec import UserError

if TYPE_CHECKING:
    from analysis.load import StudyTable

SCRATCH = "scratch"
ENDED_WELL = ("complete", "pruned", "unfinished")


@dataclass(frozen=True)
class Similarity:
    """What a study with the factors source and target says about their likeness; empty otherwise.

    Attributes:
        agreement, means, regret: how measures, and the static ranking, order the sources
            (`agreement.rank_agreement`, `mean_agreement`, `regret`).
        slopes, verdicts: `similarity.slopes` and `verdicts`; empty without measures.
        variance: `similarity.variance_shares` of each measure, with a column measure.
        gains: points over scratch by source; empty without scratch.
        note: why something is missing, in a sentence.
    """

    agreement: pd.DataFrame = field(default_factory=pd.DataFrame)
    means: pd.DataFrame = field(default_factory=pd.DataFrame)
    regret: pd.DataFrame = field(default_factory=pd.DataFrame)
    slopes: pd.DataFrame = field(default_factory=pd.DataFrame)
    verdicts: pd.DataFrame = field(default_factory=pd.DataFrame)
    variance: pd.DataFrame = field(default_factory=pd.DataFrame)
    gains: pd.DataFrame = field(default_factory=pd.DataFrame)
    note: str = ""


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
    similarity: Similarity = Similarity()

    def tables(self) -> dict[str, pd.DataFrame]:
        """Every table that has rows, by name."""
        named = vars(self) | {f"similarity_{k}": v for k, v in vars(self.similarity).items()}
        return {k: v for k, v in named.items() if isinstance(v, pd.DataFrame) and len(v)}


def find(table: StudyTable, measures: pd.DataFrame | None = None) -> Findings:
    """Everything that is compared, for the cells that the study declares.

    Args:
        table: as loaded.
        measures: source, target and one column per measure of their likeness, more meaning more alike.

    Raises:
        UserError: if two complete runs fill the same slot, or measures are given that fit no pair.
    """
    factors, selection = table.info.factors, table.info.selection
    trials = table.trials[table.trials["cell"].isin(cells(factors)["cell"])]
    per_cell = summary(trials, factors, selection)
    losses = shift_losses(trials, factors)
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
        crossings=crossings(trials, factors),
        chosen=chosen(trials, selection),
        outcomes=outcomes(table.trials, factors),
        failures=failures(table.trials),
        budget=budget_curve(trials),
        budget_ranks=budget_ranks(trials, factors),
        importances=importances(trials),
        rates=rate_ranges(trials),
        curves=learning_curves(trials, table.epochs, selection),
        similarity=likeness(table, measures),
    )


def failures(trials: pd.DataFrame) -> pd.DataFrame:
    """Every run that did not end well: cell, phase, index, seed, outcome, reason, run_id, in that order."""
    bad = trials[~trials["outcome"].isin(ENDED_WELL)]
    columns = ["cell", "phase", "index", "seed", "outcome", "reason", "run_id"]
    return bad[columns].sort_values(columns[:4], kind="stable", ignore_index=True)


def pair_scores(table: StudyTable, measures: pd.DataFrame | None = None) -> pd.DataFrame:
    """The compared repeats: source, target, seed, accuracy and, where known, strategy, size and measures.

    Rows whose source is the target itself are left out: their score is no transfer.
    """
    factors = table.info.factors
    repeats = completed(table.trials, "repeat").dropna(subset="test_accuracy")
    scores = repeats[["source", "target", "seed"]].assign(accuracy=repeats["test_accuracy"])
    size = size_factor(factors)
    rest = [name for name in factors if name not in ("source", "target", size)]
    if rest:
        scores["strategy"] = repeats[rest].agg(" | ".join, axis="columns")
    if size:
        scores["size"] = repeats[size].astype(float)
    if measures is not None:
        scores = scores.merge(measures, on=["source", "target"], how="left", validate="many_to_one")
    return scores[scores["source"] != scores["target"]]


def likeness(table: StudyTable, measures: pd.DataFrame | None = None) -> Similarity:
    """The similarity effect, as far as the factors and the measures allow.

    Raises:
        UserError: if measures are given but the study has no factors source and target, or none of its
            pairs is among them.
    """
    names = [
        str(c) for c in ([] if measures is None else measures) if c not in ("source", "target")
    ]
    if not {"source", "target"} <= set(table.info.factors):
        if names:
            raise UserError("measures need a study with the factors source and target")
        return Similarity()
    scores = pair_scores(table, measures)
    if names and scores[names].isna().all(axis=None):
        raise UserError("the measures have no source and target in common with the study")
    found: dict[str, pd.DataFrame] = {}
    with_source = scores[scores["source"] != SCRATCH]
    runs, note = with_source, ""
    if len(with_source) < len(scores):
        try:
            runs = with_scratch(scores)
            found["gains"] = gains(runs, ["source"])
        except UserError as error:
            note = f"Gains over scratch are not shown: {error}."
    keys = ["source", "target"]
    pairs = with_source.groupby(keys, sort=False, as_index=False)[["accuracy", *names]].mean()
    if with_source["source"].nunique() < 3 or with_source["target"].nunique() < 2:
        return Similarity(**found, note=note or "Rankings need 3 sources and 2 targets.")
    ranked = static_ranking(pairs)
    agreement = rank_agreement(ranked, [*names, STATIC])
    found |= {"agreement": agreement, "means": mean_agreement(agreement)}
    found["regret"] = regret(ranked.dropna(subset=STATIC), [*names, STATIC])
    if names:
        try:
            answered = responses(runs)
            found["slopes"] = slopes(answered, names)
            found["verdicts"] = verdicts(found["slopes"], found["means"])
            parts = [variance_shares(answered, name).assign(measure=name) for name in names]
            found["variance"] = pd.concat(parts, ignore_index=True)
        except UserError as error:
            note = f"Slopes are not shown: {error}."
    return Similarity(**found, note=note)
