"""What does a study say in sentences? The answer with its uncertainty and price, warnings, methods.

    python -c "from analysis import compare, load, words; t = load.load_study('freeze_depth'); \\
               print(*words.answer(t, compare.find(t)), sep='\\n')"
"""

from analysis.words.answer import answer, crossing, crossing_interval
from analysis.words.export import latex, main_table, markdown
from analysis.words.form import (
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
from analysis.words.likeness import interaction, likeness, variance
from analysis.words.methods import methods
from analysis.words.studies import changes
from analysis.words.warnings import warnings

__all__ = [
    "answer",
    "changes",
    "condition_rows",
    "crossing",
    "crossing_interval",
    "in_seeds",
    "interaction",
    "latex",
    "likeness",
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
    "variance",
    "warnings",
]
