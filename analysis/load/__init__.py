"""Tables of a study, read from MLflow or (`analysis.load.external`) from a file of trials of another program.

from analysis.load import load_study

load_study("freeze_depth").trials
"""

from analysis.load.study import Info, StudyTable, load_study

__all__ = ["Info", "StudyTable", "load_study"]
