"""Which cell is better, by how much, and what does it cost? DataFrame -> DataFrame, nothing else.

    python -c "from analysis import compare, load; t = load.load_study('freeze_depth'); \
               print(compare.find(t).summary)"

Takes the trials of `analysis.load`. Accuracies are shares in [0, 1]; differences are in points (1
point is an accuracy of .01). Unless said otherwise an interval is a 95% t interval over seeds: it says
how far the mean would move with other training draws on these test images, not how far with other
test images.
"""

from analysis.compare.cells import (
    cells,
    chosen,
    completed,
    mean_interval,
    memory_column,
    outcomes,
    pareto_front,
    prediction_mismatches,
    summary,
)
from analysis.compare.contrasts import (
    against_best,
    contrasts,
    least_detectable,
    paired_differences,
    sign_flip_p,
)
from analysis.compare.findings import Findings, find
from analysis.compare.shifts import loss_pairs, shift_losses, shifted
from analysis.compare.sizes import by_size, crossings, size_factor, size_lines
from analysis.compare.tuning import budget_curve, expected_best, learning_curves

__all__ = [
    "Findings",
    "against_best",
    "budget_curve",
    "by_size",
    "cells",
    "chosen",
    "completed",
    "contrasts",
    "crossings",
    "expected_best",
    "find",
    "learning_curves",
    "least_detectable",
    "loss_pairs",
    "mean_interval",
    "memory_column",
    "outcomes",
    "paired_differences",
    "pareto_front",
    "prediction_mismatches",
    "shift_losses",
    "shifted",
    "sign_flip_p",
    "size_factor",
    "size_lines",
    "summary",
]
