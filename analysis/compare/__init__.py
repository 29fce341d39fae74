"""Comparisons: data frames in, data frames out.

    python -c "from analysis import compare, load_study; \\
               print(compare.find(load_study('freeze_depth')).summary)"

The arguments are trials from `analysis.load`, all or some of them, and `info`, the study that they belong to.
Accuracies are shares in [0, 1]; differences are in points (1 point is an accuracy of .01). Unless stated
otherwise, an interval is a 95% t interval over seeds: it covers the variation of the mean over training
samples for these test examples, not the variation over test examples.

Comparisons that only one topic of the report needs are in `analysis.topics`.
"""

from analysis.compare.cells import outcomes, prediction_mismatches, summary
from analysis.compare.choice import (
    best_by_test,
    choice,
    chosen_by,
    describe_awaited,
    lost_repeats,
    more_seeds,
    most_behind,
    stale_choices,
)
from analysis.compare.classes import (
    are_unequal,
    by_metric,
    class_names,
    class_sizes,
    confident_mistakes,
    confused_pairs,
    confusions,
    per_class,
    reliability,
)
from analysis.compare.contrasts import (
    against,
    against_baseline,
    contrasts,
    describe_contrast,
    describe_power,
    sign_flip_p,
    with_other_tests,
)
from analysis.compare.costs import (
    censored,
    condition,
    front_chance,
    left_out,
    memory_kind,
    pareto_front,
)
from analysis.compare.examples import are_grouped, hits, mcnemar_over_seeds, over_examples
from analysis.compare.factors import arms, mean_ranks, size_factor, size_lines
from analysis.compare.findings import Findings, find
from analysis.compare.race import race_table
from analysis.compare.responses import responses
from analysis.compare.runs import (
    best_tuned,
    cells,
    chosen,
    completed,
    mean_interval,
    recorded,
    split_sizes,
)
from analysis.compare.similarity import Similarity, similarity_effect
from analysis.compare.slopes import slopes
from analysis.compare.studies import side_by_side
from analysis.compare.verdicts import interaction_verdicts, verdicts
from analysis.load.race import race_standing

__all__ = [
    "Findings", "Similarity", "against", "against_baseline", "are_grouped", "are_unequal", "arms",
    "best_by_test", "best_tuned", "by_metric", "cells", "censored", "choice", "chosen", "chosen_by",
    "class_names", "class_sizes", "completed", "condition", "confident_mistakes", "confused_pairs",
    "confusions", "contrasts", "describe_awaited", "describe_contrast", "describe_power",
    "find", "front_chance", "hits", "interaction_verdicts", "left_out", "lost_repeats", "mcnemar_over_seeds",
    "mean_interval", "mean_ranks", "memory_kind", "more_seeds", "most_behind",
    "outcomes", "over_examples", "pareto_front", "per_class",
    "prediction_mismatches", "race_standing", "race_table", "recorded",
    "reliability", "responses", "side_by_side", "sign_flip_p", "similarity_effect",
    "size_factor", "size_lines", "slopes", "split_sizes", "stale_choices", "summary",
    "verdicts", "with_other_tests",
]  # fmt: skip
