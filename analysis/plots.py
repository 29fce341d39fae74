"""Figures: their size, styles of cells, axes, legends, and labels that do not overlap.

A cell has the same colour and marker in all figures (`styles`). Figures are drawn 5.6 inches wide, so that
their text is legible on a phone.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Annotation
from matplotlib.ticker import FuncFormatter, MaxNLocator
from matplotlib.transforms import Bbox

WIDTH = 5.6
GREY = "#9a9a9a"
INK = "#222222"
ROUND = [1, 2, 5, 10]
Segment = tuple[tuple[float, float], tuple[float, float]]
MARKERS = "osD^vPX*"
OFFSETS = [
    (math.cos(turn * math.pi / 4) * reach, math.sin(turn * math.pi / 4) * reach)
    for reach in (9, 18, 30, 44, 60, 80)
    for turn in (0, 4, 2, 6, 1, 7, 3, 5)
]
"""Where a label may sit, in points from its mark: the nearest ring first, right and left first."""


MANY = 24
"""Cells above which they are no longer told apart by colour and name."""


@dataclass(frozen=True)
class Style:
    """Colour, marker and line of one cell."""

    color: tuple[float, float, float]
    marker: str

    @property
    def ink(self) -> tuple[float, ...]:
        """The colour, dark enough for text on white."""
        return tuple(0.62 * channel for channel in self.color)


BACKGROUND = Style((0.72, 0.72, 0.72), "o")
"""One of many."""
MEAN = Style(to_rgb(INK), "o")
"""What is no cell, such as a mean of several."""


def styles(cells: Sequence[str], lines: Mapping[str, str] | None = None) -> dict[str, Style]:
    """One style per cell, in the order written: ten colours that colour-blind readers can distinguish
    (seaborn "colorblind"), repeated with other markers. Cells on the same line of `lines` (cell -> line) have
    the same colour and different markers."""
    colors = sns.color_palette("colorblind", 10)
    if not lines:
        at = [(i % 10, i + i // 10) for i in range(len(cells))]
    else:
        order = list(dict.fromkeys(lines[cell] for cell in cells))
        earlier = [sum(lines[c] == lines[cell] for c in cells[:i]) for i, cell in enumerate(cells)]
        at = [
            (order.index(lines[cell]) % 10, before)
            for cell, before in zip(cells, earlier, strict=True)
        ]
    return {
        cell: Style(tuple(colors[color]), MARKERS[marker % len(MARKERS)])
        for cell, (color, marker) in zip(cells, at, strict=True)
    }


def canvas(
    height: float, rows: int = 1, columns: int = 1, share_x: bool = True
) -> tuple[Figure, list[Axes]]:
    """A figure, which pyplot does not keep open, and its panels, which share their axes, or only the
    vertical one."""
    with sns.axes_style("whitegrid", {"grid.color": "#e6e6e6", "axes.edgecolor": "#555555"}):
        figure = Figure(figsize=(WIDTH, height), layout="constrained", dpi=160)
        FigureCanvasAgg(figure)
        panels = figure.subplots(rows, columns, sharex=share_x, sharey=True, squeeze=False)
    for panel in panels.flat:
        sns.despine(ax=panel)
        panel.tick_params(labelsize=9.5, colors=INK)
    return figure, list(panels.flat)


def draw_interval(
    axes: Axes, at: float, value: float, ends: tuple[float, float], look: Style, size: float = 8
) -> Line2D:
    """Draw a marker at `value` and a bar between the ends of its interval, in the row at `at`; returns the
    marker."""
    axes.plot(ends, [at, at], color=look.color, lw=2.5)
    return axes.plot(value, at, marker=look.marker, ms=size, color=look.color, mec="white")[0]


def annotate(mark: Line2D, text: str) -> None:
    """Set the text that the page shows when the pointer is on `mark`, a single point."""
    mark.set_gid(f"note:{text}")


def annotated_marks(figure: Figure) -> list[tuple[float, float, str]]:
    """Annotated markers: position in percent of the figure from the left and the top (as last drawn), and
    text."""
    found = []
    for axes in figure.axes:
        for line in axes.lines:
            if (gid := line.get_gid() or "").startswith("note:"):
                x, y = figure.transFigure.inverted().transform(
                    line.get_transform().transform(line.get_xydata())[0]
                )
                found.append((100 * float(x), 100 * (1 - float(y)), gid.removeprefix("note:")))
    return found


def escape(name: str) -> str:
    """A cell's name as text, because matplotlib reads text between dollar signs as mathematics."""
    return name.replace("$", r"\$")


def percent(axis_of: Axes, which: str, metric: str) -> None:
    axis = axis_of.xaxis if which == "x" else axis_of.yaxis
    axis.set_major_locator(MaxNLocator(6, steps=ROUND))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}"))
    axis.set_label_text(f"{metric} (%)")


def name_rows(axes: Axes, names: Sequence[str], width: int = 26) -> None:
    """Label one row per name, the first at the top."""
    axes.set_yticks(range(len(names)), [textwrap.fill(escape(name), width) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis="x", visible=True)
    axes.grid(axis="y", visible=False)


def log_cost(axes: Axes, low: float, high: float, label: str) -> None:
    """Set a logarithmic scale with round labels that ends a little beyond `low` and `high`.

    Costs within a factor of three get a linear scale, because a logarithmic one would have no labels.
    """
    axes.set_xlabel(label)
    if high / low < 1.35:
        margin = max(0.15 * (high - low), 0.02 * low)
        axes.set_xlim(low - margin, high + 3 * margin)  # room for names on the right
        axes.xaxis.set_major_locator(MaxNLocator(5))
        return
    room = max(1.3, (high / low) ** 0.12)
    left, right = low / room, high * room
    ratio = right / left
    steps = (1, 1.5, 2, 3, 4, 5, 6, 8) if ratio < 8 else (1, 2, 5) if ratio < 500 else (1,)
    decades = range(math.floor(math.log10(left)), math.ceil(math.log10(right)) + 1)
    axes.set_xscale("log")
    axes.set_xticks([], minor=True)
    axes.set_xticks([m * 10.0**e for e in decades for m in steps if left <= m * 10.0**e <= right])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlim(left, right)


def crowded(names: Collection[str]) -> bool:
    """Whether names beside their markers would overlap."""
    return len(names) > 8 or max(map(len, names)) > 24


def add_key(
    figure: Figure,
    names: Iterable[str],
    style: Mapping[str, Style],
    loc: Literal["outside lower center", "outside upper center"] = "outside lower center",
) -> None:
    """Add a legend of markers and names below the panels, or above if their common label is below;
    the figure grows accordingly."""
    marks = [
        Line2D([], [], ls="", marker=style[n].marker, color=style[n].color, label=escape(n))
        for n in names
    ]
    columns = 2 if max(len(str(mark.get_label())) for mark in marks) < 38 else 1
    figure.set_figheight(figure.get_figheight() + 0.2 * math.ceil(len(marks) / columns))
    figure.legend(handles=marks, loc=loc, ncols=columns, fontsize=9, frameon=False)


def place_labels(
    axes: Axes, points: Sequence[tuple[float, float, str, Style]], lines: Sequence[Segment]
) -> None:
    """Label each marker at the first offset at which its name is inside the panel and overlaps with none, or
    the fewest, of the markers, lines and earlier names. A thin line connects distant names with their
    markers."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.canvas.draw()
    figure.set_layout_engine("none")
    scale = figure.dpi / 72
    marks = [
        Bbox([axes.transData.transform((x, y))] * 2).padded(5 * scale) for x, y, _, _ in points
    ]
    taken = marks + [
        Bbox(np.sort(axes.transData.transform(s), axis=0)).padded(scale) for s in lines
    ]
    for (x, y, name, style), own in zip(points, marks, strict=True):
        label = axes.annotate(
            escape(name), (x, y), OFFSETS[0], textcoords="offset points",
            fontsize=9.5, color=style.ink, va="center",
        )  # fmt: skip
        boxes = [_label_box(label, offset).padded(scale) for offset in OFFSETS]
        hits = [
            sum(box.overlaps(other) for other in taken if other is not own)
            + 100 * (box.y1 > axes.bbox.y1 or box.y0 < axes.bbox.y0)
            + 100 * (box.x0 < axes.bbox.x0 or box.x1 > axes.bbox.x1)
            for box in boxes
        ]
        offset = OFFSETS[int(np.argmin(hits))]
        taken.append(_label_box(label, offset))
        if math.hypot(*offset) > 20:
            arrow = {"arrowstyle": "-", "color": style.color, "lw": 0.8}
            axes.annotate("", (x, y), offset, textcoords="offset points", arrowprops=arrow)


def _label_box(label: Annotation, offset: tuple[float, float]) -> Bbox:
    """Move `label` to `offset` (points from its marker); returns the area that it covers, in pixels."""
    label.set_position(offset)
    label.set_horizontalalignment(
        "left" if offset[0] > 1 else "right" if offset[0] < -1 else "center"
    )
    return label.get_window_extent()


def panel_grid(
    names: Sequence[str], row_height: float = 1.9, share_x: bool = True
) -> tuple[Figure, dict[str, Axes]]:
    """One titled panel per name, two or three per row, with shared axes, or only a shared vertical one."""
    columns = min(len(names), 2 if len(names) in (2, 4) else 3)
    rows = math.ceil(len(names) / columns)
    figure, panels = canvas(0.6 + row_height * rows, rows, columns, share_x)
    for panel in panels[len(names) :]:
        panel.set_visible(False)
    for i, (name, panel) in enumerate(zip(names, panels, strict=False)):
        panel.set_title(textwrap.fill(escape(name), 66 // columns), fontsize=9, color=INK)
        panel.tick_params(labelbottom=not share_x or i + columns >= len(names))
    return figure, dict(zip(names, panels, strict=False))


def name_ends(
    axes: Axes, ends: Sequence[tuple[float, float, str]], style: Mapping[str, Style]
) -> None:
    """Write names to the right of the panel, each as near as possible to the end of its line."""
    figure = axes.figure
    figure.canvas.draw()
    gap = 13 * figure.dpi / 72
    heights = [float(axes.transData.transform((x, y))[1]) for x, y, _ in ends]
    order = sorted(range(len(ends)), key=lambda i: heights[i])
    placed: list[float] = []
    for i in order:
        placed.append(max(heights[i], placed[-1] + gap) if placed else heights[i])
    ceiling = axes.bbox.y1
    for k in range(len(placed) - 1, -1, -1):
        placed[k] = min(placed[k], ceiling)
        ceiling = placed[k] - gap
    for i, height in zip(order, placed, strict=True):
        x, y, name = ends[i]
        at = (height - axes.bbox.y0) / axes.bbox.height
        axes.annotate(
            escape(name), (x, y), (1.04, at),
            textcoords="axes fraction", va="center", fontsize=9.5, color=style[name].ink,
            arrowprops={"arrowstyle": "-", "color": style[name].color, "lw": 0.8},
        )  # fmt: skip
