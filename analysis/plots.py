"""How does a comparison look? DataFrame -> Figure: no reading, no statistics, no saving.

    python -c "from analysis import compare, load, plots; t = load.load_study('freeze_depth'); \
               plots.accuracy(compare.summary(t.trials, t.info.factors), t.trials).savefig('a.png')"

A cell has the same colour and marker in every figure (`styles`). Figures are drawn for a column of
5.6 inches, so that their text stays legible on a telephone.
"""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
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


@dataclass(frozen=True)
class Style:
    """How one cell is drawn."""

    color: tuple[float, float, float]
    marker: str

    @property
    def ink(self) -> tuple[float, ...]:
        """The colour, dark enough for text on white."""
        return tuple(0.62 * channel for channel in self.color)


def styles(cells: Sequence[str]) -> dict[str, Style]:
    """One style per cell, in the order written: ten colours that colour-blind readers can tell
    apart (seaborn "colorblind"), then the same ones with the next marker."""
    colors = sns.color_palette("colorblind", 10)
    return {
        cell: Style(tuple(colors[i % 10]), MARKERS[i // 10 % len(MARKERS)])
        for i, cell in enumerate(cells)
    }


def _canvas(height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure of its own (pyplot keeps none open) and its panels, which share both axes."""
    with sns.axes_style("whitegrid", {"grid.color": "#e6e6e6", "axes.edgecolor": "#555555"}):
        figure = Figure(figsize=(WIDTH, height), layout="constrained", dpi=160)
        FigureCanvasAgg(figure)
        panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for panel in panels.flat:
        sns.despine(ax=panel)
        panel.tick_params(labelsize=9.5, colors=INK)
    return figure, list(panels.flat)


def _plain(name: str) -> str:
    """A cell's name as text: matplotlib would read what is between dollar signs as mathematics."""
    return name.replace("$", r"\$")


def _percent(axis_of: Axes, which: str, metric: str) -> None:
    axis = axis_of.xaxis if which == "x" else axis_of.yaxis
    axis.set_major_locator(MaxNLocator(6, steps=ROUND))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}"))
    axis.set_label_text(f"{metric} (%)")


def _rows(axes: Axes, names: Sequence[str], width: int = 26) -> None:
    """One horizontal line per name, the first on top."""
    axes.set_yticks(range(len(names)), [textwrap.fill(_plain(name), width) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis="x", visible=True)
    axes.grid(axis="y", visible=False)


def _log_cost(axes: Axes, low: float, high: float, label: str) -> None:
    """A log scale labelled with round numbers that ends a little beyond `low` and `high`."""
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
    axes.set_xlabel(label)


def _crowded(names: Collection[str]) -> bool:
    """Whether names beside their marks would run into each other."""
    return len(names) > 8 or max(map(len, names)) > 24


def _key(figure: Figure, names: Iterable[str], style: Mapping[str, Style]) -> None:
    """Marks and their names below the panel; the figure grows by what they need."""
    marks = [
        Line2D([], [], ls="", marker=style[n].marker, color=style[n].color, label=_plain(n))
        for n in names
    ]
    columns = 2 if max(len(str(mark.get_label())) for mark in marks) < 38 else 1
    figure.set_figheight(figure.get_figheight() + 0.2 * math.ceil(len(marks) / columns))
    figure.legend(
        handles=marks, loc="outside lower center", ncols=columns, fontsize=9, frameon=False
    )


def _place_labels(
    axes: Axes, points: Sequence[tuple[float, float, str, Style]], lines: Sequence[Segment]
) -> None:
    """Name each mark beside it, at the first offset where the name is inside the panel and clear of
    every mark, line and earlier name (or of most); a thin line leads to a name that is far off."""
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
            _plain(name), (x, y), OFFSETS[0], textcoords="offset points",
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
    """Move `label` to `offset` (points from its mark); returns what it covers, in pixels."""
    label.set_position(offset)
    label.set_horizontalalignment(
        "left" if offset[0] > 1 else "right" if offset[0] < -1 else "center"
    )
    return label.get_window_extent()


def accuracy(summary: pd.DataFrame, repeats: pd.DataFrame, style: Mapping[str, Style]) -> Figure:
    """One dot per repeat, and the mean with its interval, of each scored cell in `summary`."""
    table = summary.dropna(subset="mean").reset_index(drop=True)
    figure, (axes,) = _canvas(1.1 + 0.5 * len(table))
    for i, row in enumerate(table.to_dict("records")):
        look = style[row["cell"]]
        scores = repeats.loc[repeats["cell"] == row["cell"], "test_accuracy"].dropna()
        spread = np.linspace(-0.09, 0.09, len(scores)) if len(scores) > 1 else [0.0]
        axes.plot(scores, i + 0.2 + np.asarray(spread), ls="", marker=look.marker, ms=4,
                  color=look.color, alpha=0.55, mew=0)  # fmt: skip
        axes.plot([row["low"], row["high"]], [i - 0.1] * 2, color=look.color, lw=2.5)
        axes.plot(row["mean"], i - 0.1, marker=look.marker, ms=8, color=look.color, mec="white")
    _rows(axes, list(table["cell"]))
    _percent(axes, "x", "Test accuracy")
    return figure


def cost(
    summary: pd.DataFrame, cost: str, front: str, label: str, style: Mapping[str, Style]
) -> Figure:
    """Mean test accuracy against the median of `cost` (column prefix), with the cells that column
    `front` marks joined by a line. Costs of 0 have no place on the log scale."""
    table = summary.dropna(subset=["mean", f"{cost}_median"])
    table = table[table[f"{cost}_min"] > 0].reset_index(drop=True)
    figure, (axes,) = _canvas(4.2)
    for row in table.to_dict("records"):
        look = style[row["cell"]]
        x, y = row[f"{cost}_median"], row["mean"]
        axes.plot([row[f"{cost}_min"], row[f"{cost}_max"]], [y, y], color=look.color, lw=1.2)
        axes.plot([x, x], [row["low"], row["high"]], color=look.color, lw=1.2)
        axes.plot(x, y, marker=look.marker, ms=8, color=look.color, mec="white", zorder=4)
    best = table[table[front]].sort_values(f"{cost}_median")
    corners = list(zip(best[f"{cost}_median"], best["mean"], strict=True))
    axes.step(*zip(*corners, strict=True), where="post", color=INK, lw=1, ls=":", zorder=1)
    _log_cost(axes, table[f"{cost}_min"].min(), table[f"{cost}_max"].max(), label)
    _percent(axes, "y", "Test accuracy")
    axes.margins(y=0.12)
    rows = table.dropna(subset="low").to_dict("records")
    lines = [((r[f"{cost}_median"], r["low"]), (r[f"{cost}_median"], r["high"])) for r in rows]
    lines += [((r[f"{cost}_min"], r["mean"]), (r[f"{cost}_max"], r["mean"])) for r in rows]
    for (x0, y0), (x1, y1) in itertools.pairwise(corners):
        lines += [((x0, y0), (x1, y0)), ((x1, y0), (x1, y1))]
    if _crowded(table["cell"]):
        _key(figure, table["cell"], style)
        return figure
    points = zip(table[f"{cost}_median"], table["mean"], table["cell"], strict=True)
    _place_labels(axes, [(x, y, cell, style[cell]) for x, y, cell in points], lines)
    return figure


def _grid(names: Sequence[str], row_height: float = 1.9) -> tuple[Figure, dict[str, Axes]]:
    """One titled panel per name, two or three to a row, sharing both axes."""
    columns = min(len(names), 2 if len(names) in (2, 4) else 3)
    rows = math.ceil(len(names) / columns)
    figure, panels = _canvas(0.6 + row_height * rows, rows, columns)
    for panel in panels[len(names) :]:
        panel.set_visible(False)
    for i, (name, panel) in enumerate(zip(names, panels, strict=False)):
        panel.set_title(textwrap.fill(_plain(name), 66 // columns), fontsize=9, color=INK)
        panel.tick_params(labelbottom=i + columns >= len(names))
    return figure, dict(zip(names, panels, strict=False))


def learning_curves(curves: pd.DataFrame, style: Mapping[str, Style]) -> Figure:
    """Validation accuracy by epoch: a panel per cell, thin lines its runs, thick their mean, grey
    the means of the other cells."""
    names = [name for name in style if name in set(curves["cell"])]
    figure, panels = _grid(names)
    means = curves.drop_duplicates(["cell", "epoch"]).sort_values("epoch")
    for name, panel in panels.items():
        for other in names:
            line = means[means["cell"] == other]
            mine = other == name
            panel.plot(line["epoch"] + 1, line["mean"], color=style[other].color if mine else GREY,
                       lw=2.2 if mine else 0.7, zorder=3 if mine else 1,
                       marker="o" if len(line) == 1 else "")  # fmt: skip
        for _, run in curves[curves["cell"] == name].groupby("run_id"):
            run = run.sort_values("epoch")
            panel.plot(run["epoch"] + 1, run["val_accuracy"], color=style[name].color, lw=0.7,
                       alpha=0.6, zorder=2)  # fmt: skip
        _percent(panel, "y", "")
        panel.set_ylabel("")
        panel.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=ROUND))
    figure.supxlabel("Epoch", fontsize=10)
    figure.supylabel("Validation accuracy (%)", fontsize=10)
    return figure


def rates(tuned: pd.DataFrame, style: Mapping[str, Style]) -> Figure:
    """Validation accuracy of each complete tuning trial by its learning rate, a panel per cell."""
    tuned = tuned.dropna(subset=["param.lr", "val_accuracy"])
    names = [name for name in style if name in set(tuned["cell"])]
    figure, panels = _grid(names)
    for name, panel in panels.items():
        own, rest = tuned[tuned["cell"] == name], tuned[tuned["cell"] != name]
        panel.plot(
            rest["param.lr"], rest["val_accuracy"], ls="", marker="o", ms=2.5, color="#cccccc"
        )
        panel.plot(own["param.lr"], own["val_accuracy"], ls="", marker=style[name].marker, ms=6,
                   color=style[name].color, mec="white")  # fmt: skip
        panel.set_xscale("log")
        _percent(panel, "y", "")
        panel.set_ylabel("")
    figure.supxlabel("Learning rate", fontsize=10)
    figure.supylabel("Validation accuracy (%)", fontsize=10)
    return figure


def differences(table: pd.DataFrame, style: Mapping[str, Style]) -> Figure:
    """Paired differences in points with their interval, a row each; the line at 0: no difference."""
    table = table.dropna(subset="difference").reset_index(drop=True)
    several = table["reference"].nunique() > 1
    figure, (axes,) = _canvas(1.1 + (0.55 if several else 0.42) * len(table))
    axes.axvline(0, color=INK, lw=1)
    for i, row in enumerate(table.to_dict("records")):
        look = style[row["cell"]]
        axes.plot([row["low"], row["high"]], [i, i], color=look.color, lw=2.5)
        axes.plot(row["difference"], i, marker=look.marker, ms=8, color=look.color, mec="white")
    names = [
        _plain(f"{c}\n− {r}" if several else c)
        for c, r in zip(table["cell"], table["reference"], strict=True)
    ]
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    reference = "its reference" if several else f"“{_plain(table['reference'].iloc[0])}”"
    axes.set_xlabel(f"Test accuracy minus that of {reference} (points)")
    axes.margins(x=0.06)
    return figure


def budget(curve: pd.DataFrame, style: Mapping[str, Style]) -> Figure:
    """Expected best validation accuracy of each cell after n tuning trials."""
    figure, (axes,) = _canvas(4.2)
    ends = []
    for name in (name for name in style if name in set(curve["cell"])):
        own = curve[curve["cell"] == name].sort_values("trials")
        axes.plot(own["trials"], own["val_accuracy"], color=style[name].color, lw=2,
                  marker=style[name].marker, ms=4)  # fmt: skip
        ends.append((float(own["trials"].iloc[-1]), float(own["val_accuracy"].iloc[-1]), name))
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, steps=ROUND))
    axes.set_xlabel("Tuning trials per cell")
    _percent(axes, "y", "Expected best validation accuracy")
    if _crowded([name for _, _, name in ends]):
        _key(figure, [name for _, _, name in ends], style)
    else:
        _name_ends(axes, ends, style)
    return figure


def _name_ends(
    axes: Axes, ends: Sequence[tuple[float, float, str]], style: Mapping[str, Style]
) -> None:
    """Names to the right of the panel, each at the height of its line or as near as fits."""
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
            _plain(name), (x, y), (1.04, at),
            textcoords="axes fraction", va="center", fontsize=9.5, color=style[name].ink,
            arrowprops={"arrowstyle": "-", "color": style[name].color, "lw": 0.8},
        )  # fmt: skip
