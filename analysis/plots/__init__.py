"""How does a comparison look? DataFrame -> Figure: no reading, no statistics, no saving.

    python -c "from analysis import compare, load, plots; t = load.load_study('freeze_depth'); \
               s = compare.find(t).summary; \
               plots.accuracy(s, t.trials, plots.styles(s['cell'])).savefig('a.png')"

A cell has the same colour and marker in every figure (`styles`). Figures are drawn for a column of
5.6 inches, so that their text stays legible on a telephone.
"""

from analysis.plots.canvas import MANY, Style, annotations, styles
from analysis.plots.cells import accuracy, cost, differences, matrix, ranks
from analysis.plots.figures import figures
from analysis.plots.shifts import shifted
from analysis.plots.similarity import agreement, gain
from analysis.plots.sizes import by_size
from analysis.plots.tuning import (
    budget,
    budget_of_many,
    budget_ranks,
    importances,
    learning_curves,
    rate_ranges,
    rates,
)

__all__ = [
    "MANY",
    "Style",
    "accuracy",
    "agreement",
    "annotations",
    "budget",
    "budget_of_many",
    "budget_ranks",
    "by_size",
    "cost",
    "differences",
    "figures",
    "gain",
    "importances",
    "learning_curves",
    "matrix",
    "ranks",
    "rate_ranges",
    "rates",
    "shifted",
    "styles",
]
