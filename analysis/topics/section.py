"""A section of the report as plain values: sentences, plots and tables."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure

from analysis.compare import Findings, size_lines
from analysis.plots import Style, styles
from analysis.text.numbers import intervals, numbers, span
from harness.core.errors import without_password

VIEWER = "http://127.0.0.1:5000"
"""Address at which `harness.core.addresses.viewer_command` shows a local store."""
VARIED = "training sets and initialisation, not test examples"
"""What an interval over seeds covers."""
Columns = dict[str, Sequence[object]]
"""Columns of a table: heading -> text of each row."""


@dataclass(frozen=True)
class Plot:
    """A figure.

    Attributes:
        name: stem of its file names.
        title: its heading.
        figure: the figure.
        caption: what is shown, and what the intervals are.
    """

    name: str
    title: str
    figure: Figure
    caption: str

    def _repr_png_(self) -> bytes:
        return self.png()

    def png(self) -> bytes:
        """The figure as a PNG file."""
        buffer = io.BytesIO()
        self.figure.savefig(buffer, format="png")
        return buffer.getvalue()


@dataclass(frozen=True)
class Table:
    """A table as shown on the page.

    Attributes:
        columns: heading -> text of each row, all of the same length.
        title: heading above it.
        note: explanation below it.
        long_text: whether the last column contains sentences.
    """

    columns: Mapping[str, Sequence[object]]
    title: str = ""
    note: str = ""
    long_text: bool = False

    def rows(self) -> list[tuple[object, ...]]:
        """The rows of the table."""
        return list(zip(*self.columns.values(), strict=True))


Parts = list[Plot | Table | str | list[str]]
"""Plots, tables and paragraphs in their order; a list is shown as bullet points."""


@dataclass(frozen=True)
class Section:
    """The part of the report on one topic; empty if the topic does not apply to the study.

    Attributes:
        title: heading.
        parts: plots, tables and paragraphs in their order; a list is shown as bullet points.
        answer: paragraphs for the answer at the top of the page.
        methods: sentence for the methods paragraph.
        tables: name -> data, written as CSV files.
    """

    title: str
    parts: Sequence[Plot | Table | str | list[str]] = ()
    answer: Sequence[str] = ()
    methods: str = ""
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)

    @property
    def plots(self) -> list[Plot]:
        """Its figures."""
        return [part for part in self.parts if isinstance(part, Plot)]


def cell_styles(found: Findings) -> dict[str, Style]:
    """Style of each cell in all figures; cells on one line over sizes have the same colour."""
    lines = size_lines(found.info.factors)
    groups = dict(zip(lines["cell"], lines["line"], strict=True))
    return styles(list(found.summary["cell"]), groups if len(set(groups.values())) > 1 else None)


def over_seeds(found: Findings) -> str:
    """Description of the intervals of means, for a caption."""
    return f"Intervals: 95% t over seeds ({VARIED}{correction(found)})."


def correction(found: Findings) -> str:
    """Addition to VARIED if runs on folds share examples; else ""."""
    if found.info.folds == 1:
        return ""
    what = f"runs on {found.info.folds} folds of the same examples"
    return f"; variance corrected for {what}, Nadeau and Bengio 2003"


def repeats_of(found: Findings) -> str:
    """Numbers of repeats per cell in print: "8" or "5 to 8"."""
    return span(found.summary.loc[found.summary["n"] > 0, "n"])


def stacked(
    values: Iterable[float],
    lows: Iterable[float],
    highs: Iterable[float],
    form: str,
    scale: float = 1,
) -> list[object]:
    """Numbers in print, each with its interval on a new line."""
    both = Markup("{}<br><small>{}</small>")
    ends = intervals(lows, highs, form, scale)
    return [
        number if interval == "–" else both.format(number, interval)
        for number, interval in zip(numbers(values, form, scale), ends, strict=True)
    ]


def run_links(found: Findings, run_ids: pd.Series, texts: pd.Series) -> list[object]:
    """Links to the pages of the runs in MLflow, if the study is from MLflow."""
    if not found.info.experiment_id:
        return list(texts)
    uri = without_password(found.table.tracking_uri)
    server = uri.rstrip("/") if uri.startswith(("http://", "https://")) else VIEWER
    start = f"{server}/#/experiments/{found.info.experiment_id}/runs/"
    link = Markup('<a href="{}">{}</a>')
    return [link.format(start + run, text) for run, text in zip(run_ids, texts, strict=True)]
