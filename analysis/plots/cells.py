"""How good is each cell, what does it cost, and how far is it from its reference?

    python -c "from analysis import compare, load, plots; t = load.load_study('freeze_depth'); \
               s = compare.summary(t.trials, t.info.factors); \
               plots.accuracy(s, t.trials, plots.styles(s['cell'])).savefig('a.png')"
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.plots.canvas import (
    INK,
    Style,
    add_key,
    canvas,
    crowded,
    log_cost,
    name_rows,
    percent,
    place_labels,
    plain,
)

LONG = 10
"""Rows above which they are set closer, to keep the whole figure in sight."""


def accuracy(summary: pd.DataFrame, repeats: pd.DataFrame, style: Mapping[str, Style]) -> Figure:
    """One dot per repeat, and the mean with its interval, of each scored cell in `summary`."""
    table = summary.dropna(subset="mean").reset_index(drop=True)
    figure, (axes,) = canvas(1.1 + (0.5 if len(table) <= LONG else 0.36) * len(table))
    for i, row in enumerate(table.to_dict("records")):
        look = style[row["cell"]]
        scores = repeats.loc[repeats["cell"] == row["cell"], "test_accuracy"].dropna()
        spread = np.linspace(-0.09, 0.09, len(scores)) if len(scores) > 1 else [0.0]
        axes.plot(scores, i + 0.2 + np.asarray(spread), ls="", marker=look.marker, ms=4,
                  color=look.color, alpha=0.55, mew=0)  # fmt: skip
        axes.plot([row["low"], row["high"]], [i - 0.1] * 2, color=look.color, lw=2.5)
        axes.plot(row["mean"], i - 0.1, marker=look.marker, ms=8, color=look.color, mec="white")
    name_rows(axes, list(table["cell"]))
    percent(axes, "x", "Test accuracy")
    return figure


def cost(
    summary: pd.DataFrame, cost: str, front: str, label: str, style: Mapping[str, Style]
) -> Figure:
    """Mean test accuracy against the median of `cost` (column prefix), with the cells that column
    `front` marks joined by a line. Costs of 0 have no place on the log scale."""
    table = summary.dropna(subset=["mean", f"{cost}_median"])
    table = table[table[f"{cost}_min"] > 0].reset_index(drop=True)
    figure, (axes,) = canvas(4.2)
    for row in table.to_dict("records"):
        look = style[row["cell"]]
        x, y = row[f"{cost}_median"], row["mean"]
        axes.plot([row[f"{cost}_min"], row[f"{cost}_max"]], [y, y], color=look.color, lw=1.2)
        axes.plot([x, x], [row["low"], row["high"]], color=look.color, lw=1.2)
        axes.plot(x, y, marker=look.marker, ms=8, color=look.color, mec="white", zorder=4)
    best = table[table[front]].sort_values(f"{cost}_median")
    corners = list(zip(best[f"{cost}_median"], best["mean"], strict=True))
    axes.step(*zip(*corners, strict=True), where="post", color=INK, lw=1, ls=":", zorder=1)
    log_cost(axes, table[f"{cost}_min"].min(), table[f"{cost}_max"].max(), label)
    percent(axes, "y", "Test accuracy")
    axes.margins(y=0.12)
    rows = table.dropna(subset="low").to_dict("records")
    lines = [((r[f"{cost}_median"], r["low"]), (r[f"{cost}_median"], r["high"])) for r in rows]
    lines += [((r[f"{cost}_min"], r["mean"]), (r[f"{cost}_max"], r["mean"])) for r in rows]
    for (x0, y0), (x1, y1) in itertools.pairwise(corners):
        lines += [((x0, y0), (x1, y0)), ((x1, y0), (x1, y1))]
    if crowded(table["cell"]):
        add_key(figure, table["cell"], style)
        return figure
    points = zip(table[f"{cost}_median"], table["mean"], table["cell"], strict=True)
    place_labels(axes, [(x, y, cell, style[cell]) for x, y, cell in points], lines)
    return figure


def differences(table: pd.DataFrame, style: Mapping[str, Style]) -> Figure:
    """Paired differences in points with their interval, a row each; the line at 0: no difference. Many
    rows are set closer and do not name their reference."""
    table = table.dropna(subset="difference").reset_index(drop=True)
    several = table["reference"].nunique() > 1
    long = len(table) > LONG
    figure, (axes,) = canvas(1.1 + (0.32 if long else 0.55 if several else 0.42) * len(table))
    axes.axvline(0, color=INK, lw=1)
    for i, row in enumerate(table.to_dict("records")):
        look = style[row["cell"]]
        axes.plot([row["low"], row["high"]], [i, i], color=look.color, lw=2.5)
        axes.plot(row["difference"], i, marker=look.marker, ms=8, color=look.color, mec="white")
    names = [
        plain(f"{c}\n− {r}" if several and not long else c)
        for c, r in zip(table["cell"], table["reference"], strict=True)
    ]
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    reference = "its reference" if several else f"“{plain(table['reference'].iloc[0])}”"
    axes.set_xlabel(f"Test accuracy minus that of {reference} (points)")
    axes.margins(x=0.06)
    return figure
