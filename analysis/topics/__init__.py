"""Topics of the report. Each compares, draws, and writes its section; a new one is registered in TOPICS.

from analysis import compare, load_study, topics
section = topics.budget.section(compare.find(load_study("freeze_depth")))
section.tables["budget"]
"""

from collections.abc import Callable

from analysis.compare import Findings
from analysis.topics import (
    averages,
    budget,
    classes,
    contrasts,
    costs,
    ensembles,
    importance,
    learning_curves,
    learning_rates,
    outcomes,
    race,
    scores,
    shifts,
    similarity,
    sizes,
    targets,
    use,
)
from analysis.topics.section import Plot, Section, Table

TOPICS: tuple[Callable[[Findings], Section], ...] = (
    targets.section,
    scores.section,
    race.section,
    contrasts.section,
    classes.section,
    costs.section,
    use.section,
    ensembles.section,
    averages.section,
    sizes.section,
    shifts.section,
    similarity.section,
    learning_curves.section,
    budget.section,
    learning_rates.section,
    importance.section,
    outcomes.section,
)
"""In the order of the page."""

__all__ = ["TOPICS", "Plot", "Section", "Table"]
