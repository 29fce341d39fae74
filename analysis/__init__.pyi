"""What notebooks import from here; each name is loaded when it is first used."""

from analysis.load.external import load_measures as load_measures
from analysis.load.external import load_table as load_table
from analysis.load.mapping import read_mapping as read_mapping
from analysis.load.study import StudyTable as StudyTable
from analysis.load.study import load_study as load_study
from analysis.publish import publish
from analysis.recommend import recommend_cell as recommend_cell
from analysis.report import build
from analysis.report import build_comparison as build_comparison

__all__: list[str]
build_report = build
publish_report = publish
