"""Text about the whole study: warnings, methods, tables for a paper, numbers in print."""

from analysis.text.export import latex, main_table, markdown
from analysis.text.methods import methods
from analysis.text.studies import changes
from analysis.text.warnings import warnings

__all__ = ["changes", "latex", "main_table", "markdown", "methods", "warnings"]
