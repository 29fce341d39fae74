"""Analysis of recorded trials: `load_study` reads them, the commands `report` and `recommend` answer.

    from analysis import load_study
    load_study("freeze_depth").trials

Every name is loaded when it is first used, so that `import analysis` stays light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from harness.core.caller import undisturbed

if TYPE_CHECKING:
    from analysis.load import StudyTable, load_study
    from analysis.load.external import load_measures, load_table
    from analysis.load.mapping import read_mapping
    from analysis.publish import publish as publish_report
    from analysis.recommend import recommend_cell
    from analysis.report import build as build_report
    from analysis.report import build_comparison

__all__ = [
    "StudyTable",
    "build_comparison",
    "build_report",
    "load_measures",
    "load_study",
    "load_table",
    "publish_report",
    "read_mapping",
    "recommend_cell",
]

_HOME = {
    "StudyTable": ("load.study", "StudyTable"),
    "build_comparison": ("report", "build_comparison"),
    "build_report": ("report", "build"),
    "load_measures": ("load.external", "load_measures"),
    "load_study": ("load.study", "load_study"),
    "load_table": ("load.external", "load_table"),
    "publish_report": ("publish", "publish"),
    "read_mapping": ("load.mapping", "read_mapping"),
    "recommend_cell": ("recommend", "recommend_cell"),
}
"""Name offered here -> module and name there. None is a module's: `analysis.report` stays the module."""


@undisturbed()
def __getattr__(name: str) -> Any:
    if name in _HOME:
        module, there = _HOME[name]
        return getattr(importlib.import_module(f"analysis.{module}"), there)
    raise AttributeError(f"module 'analysis' has no attribute {name!r}")
