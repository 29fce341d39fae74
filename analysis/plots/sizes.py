"""How does accuracy grow with the size of the target?

    python -c "from analysis import compare, load, plots; t = load.load_study('target_size'); \
               l = compare.size_lines(t.info.factors); \
               plots.by_size(compare.by_size(t.trials, t.info.factors), t.trials.merge(l, on='cell'), \
                             'shots', plots.styles(l['line'].unique())).savefig('a.png')"
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.plots.canvas import Style, add_key, canvas, crowded, name_ends, percent


def by_size(
    table: pd.DataFrame,
    repeats: pd.DataFrame,
    factor: str,
    style: Mapping[str, Style],
    metric: str = "accuracy",
) -> Figure:
    """Mean test accuracy with its interval against size, a line per combination of the other
    factors, and a dot per repeat (`repeats`: line, size, test_accuracy). Lines stand a little apart."""
    figure, (axes,) = canvas(4.6)
    names = [name for name in style if name in set(table["line"])]
    sizes = sorted(table["size"].unique())
    step = min(np.diff(np.log(sizes)).min() / 3, 0.25) / max(1, len(names) - 1)
    beside = float((sizes[-1] / sizes[0]) ** 0.013)  # dots would be lost on the interval's bar
    ends = []
    for i, name in enumerate(names):
        look, aside = style[name], float(np.exp(step * (i - (len(names) - 1) / 2)))
        own = table[table["line"] == name].sort_values("size")
        dots = repeats[repeats["line"] == name]
        axes.plot(dots["size"] * aside * beside, dots["test_accuracy"], ls="", marker=look.marker, ms=3,
                  color=look.color, alpha=0.45, mew=0)  # fmt: skip
        at = own["size"] * aside
        axes.vlines(at, own["low"], own["high"], color=look.color, lw=2)
        axes.plot(at, own["mean"], color=look.color, lw=1.4, marker=look.marker, ms=7, mec="white")
        ends.append((float(at.iloc[-1]), float(own["mean"].iloc[-1]), name))
    axes.set_xscale("log")
    axes.set_xticks([], minor=True)
    axes.set_xticks(sizes, [f"{size:g}" for size in sizes])
    axes.set_xlabel(f"{factor} (log scale)")
    percent(axes, "y", f"Test {metric}")
    if len(names) == 1:
        return figure
    if crowded(names):
        add_key(figure, names, style)
    else:
        name_ends(axes, ends, style)
    return figure
