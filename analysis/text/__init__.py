"""What does a study say in sentences? The answer with its uncertainty and price, warnings, methods.

    python -c "from analysis import compare, load, text; t = load.load_study('freeze_depth'); \\
               print(*text.answer(t, compare.find(t)), sep='\\n')"
"""

from analysis.text.answer import answer, crossing, crossing_interval
from analysis.text.export import latex, main_table, markdown
from analysis.text.methods import methods
from analysis.text.numbers import (
    condition_rows,
    in_seeds,
    listed,
    number,
    plain,
    quoted,
    short,
    span,
    tuned_parameters,
)
from analysis.text.similarity import describe_interactions, describe_similarity, describe_variance
from analysis.text.studies import changes
from analysis.text.warnings import warnings

__all__ = [
    "answer",
    "changes",
    "condition_rows",
    "crossing",
    "crossing_interval",
    "describe_interactions",
    "describe_similarity",
    "describe_variance",
    "in_seeds",
    "latex",
    "listed",
    "main_table",
    "markdown",
    "methods",
    "number",
    "plain",
    "quoted",
    "short",
    "span",
    "tuned_parameters",
    "warnings",
]
