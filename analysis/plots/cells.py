"""How good is each cell, what does it cost, and how far is it from its reference?

    python -c "from analysis import compare, load, plots; t = load.load_study('freeze_depth'); \
               s = compare.summary(t.trials, t.info.factors); \
               plots.accuracy(s, t.trials, plots.styles(s['cell'])).savefig('a.png')"
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from analysis.plots.canvas import (
    BACKGROUND,
    INK,
    MANY,
    Style,
    add_key,
    annotate,
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


def accuracy(
    summary: pd.DataFrame,
    repeats: pd.DataFrame,
    style: Mapping[str, Style],
    metric: str = "accuracy",
) -> Figure:
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
        mean = axes.plot(
            row["mean"], i - 0.1, marker=look.marker, ms=8, color=look.color, mec="white"
        )
        annotate(mean[0], f"{row['cell']}: {_score(row)}")
    name_rows(axes, list(table["cell"]))
    percent(axes, "x", f"Test {metric}")
    return figure


def _score(row: Mapping[Hashable, Any]) -> str:
    interval = f" ({row['low']:.1%} to {row['high']:.1%})" if row["low"] == row["low"] else ""
    return f"{row['mean']:.1%}{interval}"


def matrix(summary: pd.DataFrame, row: str, column: str, metric: str = "accuracy") -> Figure:
    """Mean test score of each pair of the factors `row` and `column` (a mean over the others) in
    percent; the darker, the further below the best of its column. White: not tried."""
    wide = 100 * summary.pivot_table(index=row, columns=column, values="mean", sort=False)
    figure, (axes,) = canvas(1.3 + 0.26 * len(wide))
    small = len(wide.columns) > 8
    sns.heatmap(
        wide.max() - wide, ax=axes, annot=wide, fmt=".0f" if small else ".1f", cmap="cividis_r",
        vmin=0, robust=True, linewidths=0.5, annot_kws={"fontsize": 7 if small else 9},
        cbar_kws={"label": f"{metric[:1].upper() + metric[1:]} below the best of the column (points)"},
    )  # fmt: skip
    axes.set_xticklabels([plain(str(c)) for c in wide.columns], rotation=45, ha="right", fontsize=8)
    axes.set_yticklabels([plain(str(r)) for r in wide.index], rotation=0, fontsize=8)
    axes.set_xlabel(plain(column))
    axes.set_ylabel(plain(row))
    return figure


def ranks(table: pd.DataFrame, style: Mapping[str, Style]) -> Figure:
    """Mean rank over the targets of each arm with its interval, the best on top."""
    figure, (axes,) = canvas(1.1 + 0.3 * len(table))
    for i, line in enumerate(table.to_dict("records")):
        look = style[line["arm"]]
        axes.plot([line["low"], line["high"]], [i, i], color=look.color, lw=2.5)
        axes.plot(line["mean_rank"], i, marker=look.marker, ms=7, color=look.color, mec="white")
    name_rows(axes, list(table["arm"]))
    axes.set_xlabel("Mean rank over the targets (1 is the best)")
    return figure


def cost(
    summary: pd.DataFrame,
    cost: str,
    front: str,
    label: str,
    style: Mapping[str, Style],
    metric: str = "accuracy",
    censored: pd.DataFrame | None = None,
) -> Figure:
    """Mean test accuracy against the median of `cost` (column prefix), with the cells that column `front`
    marks joined by a line. Costs of 0 have no place on the log scale.

    Of more cells than can be named only those on the front are coloured. `censored` (cell, at least): cells
    without a score that cost more than `at_least`, as hollow triangles on the lower edge.
    """
    table = summary.dropna(subset=["mean", f"{cost}_median"])
    table = table[table[f"{cost}_min"] > 0].reset_index(drop=True)
    named = table[table[front]] if len(table) > MANY else table
    figure, (axes,) = canvas(4.2)
    for row in table.to_dict("records"):
        look = style[row["cell"]] if row["cell"] in set(named["cell"]) else BACKGROUND
        x, y = row[f"{cost}_median"], row["mean"]
        axes.plot([row[f"{cost}_min"], row[f"{cost}_max"]], [y, y], color=look.color, lw=1.2)
        axes.plot([x, x], [row["low"], row["high"]], color=look.color, lw=1.2)
        size, over = (4, 2) if look is BACKGROUND else (8, 4)
        mark = axes.plot(
            x, y, marker=look.marker, ms=size, color=look.color, mec="white", zorder=over
        )
        annotate(
            mark[0], f"{row['cell']}: {_score(row)}, {x:.3g} {label[label.rfind('(') + 1 : -1]}"
        )
    best = table[table[front]].sort_values(f"{cost}_median")
    corners = list(zip(best[f"{cost}_median"], best["mean"], strict=True))
    axes.step(*zip(*corners, strict=True), where="post", color=INK, lw=1, ls=":", zorder=1)
    ends = [table[f"{cost}_min"].min(), table[f"{cost}_max"].max()]
    dead = [] if censored is None else censored.to_dict("records")
    limits = [float(row["at_least"]) for row in dead]
    log_cost(axes, min([*ends, *limits]), max([*ends, *limits]), label)
    percent(axes, "y", f"Test {metric}")
    axes.margins(y=0.12)
    for row in dead:
        axes.plot(row["at_least"], 0.03, marker=">", ms=8, mfc="white", ls="", clip_on=False,
                  mec=style[row["cell"]].color, transform=axes.get_xaxis_transform())  # fmt: skip
    rows = named.dropna(subset="low").to_dict("records")
    lines = [((r[f"{cost}_median"], r["low"]), (r[f"{cost}_median"], r["high"])) for r in rows]
    lines += [((r[f"{cost}_min"], r["mean"]), (r[f"{cost}_max"], r["mean"])) for r in rows]
    for (x0, y0), (x1, y1) in itertools.pairwise(corners):
        lines += [((x0, y0), (x1, y0)), ((x1, y0), (x1, y1))]
    if crowded(named["cell"]):
        add_key(figure, named["cell"], style)
        return figure
    points = zip(named[f"{cost}_median"], named["mean"], named["cell"], strict=True)
    place_labels(axes, [(x, y, cell, style[cell]) for x, y, cell in points], lines)
    return figure


def differences(
    table: pd.DataFrame, style: Mapping[str, Style], metric: str = "accuracy"
) -> Figure:
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
    axes.set_xlabel(f"Test {metric} minus that of {reference} (points)")
    axes.margins(x=0.06)
    return figure
