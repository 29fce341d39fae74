"""Do measures of similarity order the sources as they turn out, and do those that are more alike give more?

    python -c "from analysis import compare, load, plots; f = compare.find(load.load_study('sources')); \\
               plots.agreement(f.similarity.agreement, f.similarity.means).savefig('a.png')"
"""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.plots.canvas import (
    BACKGROUND,
    INK,
    MARKERS,
    annotate,
    canvas,
    name_rows,
    panel_grid,
    plain,
    styles,
)


def agreement(table: pd.DataFrame, means: pd.DataFrame) -> Figure:
    """Weighted tau of each measure: a small mark per target, the mean over targets and its interval; the
    band is where 95% of shuffled rankings of one target lie."""
    means = means.sort_values("tau_w", ascending=False, ignore_index=True)
    figure, (axes,) = canvas(1.2 + 0.42 * len(means))
    reach = 1.96 * float(table["null_sd"].mean())
    axes.axvspan(-reach, reach, color="#eeeeee", zorder=0)
    axes.axvline(0, color=INK, lw=1)
    for i, row in enumerate(means.to_dict("records")):
        own = table.loc[table["measure"] == row["measure"], "tau_w"].dropna()
        axes.plot(own, [i + 0.2] * len(own), ls="", marker="o", ms=4, mew=0, color=BACKGROUND.color)
        axes.plot([row["low"], row["high"]], [i - 0.1] * 2, color=INK, lw=2.5)
        axes.plot(row["tau_w"], i - 0.1, marker="o", ms=8, color=INK, mec="white")
    name_rows(axes, list(means["measure"]))
    axes.set_xlabel("Weighted Kendall tau with the scores reached")
    return figure


def gain(points: pd.DataFrame) -> Figure:
    """Points gained over scratch by each pair, with its interval, against the similarity of source and
    target; a panel per strategy and size, a colour per target; hollow: sources that learned from spoilt data.

    Args:
        points: from `compare.similarity_effect`.
    """
    keys = [name for name in ("strategy", "size") if name in points]
    labels = pd.Series("", index=points.index)
    for name in keys:
        text = points[name].map("{:g} images a class".format) if name == "size" else points[name]
        labels = labels.str.cat(text, sep=", " if labels.any() else "")
    figure, panels = panel_grid(list(labels.unique()), row_height=2.3)
    colors = styles(list(points["target"].unique()))
    style = {
        name: replace(look, marker=MARKERS[i % len(MARKERS)])
        for i, (name, look) in enumerate(colors.items())
    }
    for row, label in zip(points.to_dict("records"), labels, strict=True):
        axes, look, x = panels[label], style[row["target"]], row["similarity"]
        axes.plot([x, x], [row["low"], row["high"]], color=look.color, lw=1, alpha=0.6, zorder=2)
        fill = {"mfc": "white", "mec": look.color} if row["control"] else {"mec": "white"}
        mark = axes.plot(x, row["gain"], marker=look.marker, ms=5, color=look.color, ls="", **fill)
        annotate(mark[0], f"{row['source']} -> {row['target']}: {row['gain']:+.1f} points, {label}")
    for axes in panels.values():
        axes.axhline(0, color=INK, lw=1, zorder=1)
    measure = plain(points["measure"].iloc[0])
    figure.supxlabel(f"{measure} (standard deviations within the target)", fontsize=10)
    figure.supylabel("Gain over scratch (points)", fontsize=10)
    key = [
        Line2D([], [], ls="", marker=s.marker, color=s.color, label=plain(n))
        for n, s in style.items()
    ]
    if points["control"].any():
        key.append(Line2D([], [], ls="", marker="o", mfc="white", mec=INK, label="control"))
    figure.set_figheight(figure.get_figheight() + 0.5)
    figure.legend(handles=key, loc="outside upper center", ncols=3, fontsize=9, frameon=False)
    return figure
