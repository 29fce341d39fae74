"""Which cell keeps its accuracy on shifted test images?

    python -c "from analysis import compare, load, plots; t = load.load_study('robustness'); \
               s = compare.shifted(t.trials, t.info.factors); \
               plots.shifted(s, plots.styles(s['cell'].unique())).savefig('a.png')"
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure

from analysis.plots.canvas import INK, Style, canvas, name_rows, percent, plain


def shifted(table: pd.DataFrame, style: Mapping[str, Style], metric: str = "accuracy") -> Figure:
    """A panel per test set with the mean and interval of each cell; a hollow mark and a thin line
    show where the cell stood on the plain test set."""
    cells = [name for name in style if name in set(table["cell"])]
    sets = list(table["test_set"].unique())
    records = {(row["cell"], row["test_set"]): row for row in table.to_dict("records")}
    count = math.ceil(len(sets) / 2)
    figure, panels = canvas(0.5 + count * (0.45 + 0.23 * len(cells)), count, 2)
    for panel in panels[len(sets) :]:
        panel.set_visible(False)
    for k, (name, panel) in enumerate(zip(sets, panels, strict=False)):
        panel.set_title(plain(name.replace("_", " ")), fontsize=10, color=INK, loc="left")
        for i, cell in enumerate(cells):
            if (cell, name) not in records:
                continue
            row, look = records[cell, name], style[cell]
            start = records.get((cell, sets[0]), row)["mean"]
            if name != sets[0]:
                panel.plot([start, row["mean"]], [i, i], color=look.color, lw=0.8, zorder=1)
                panel.plot(start, i, marker=look.marker, ms=4, color=look.color, mfc="white")
            panel.plot([row["low"], row["high"]], [i, i], color=look.color, lw=2.5)
            panel.plot(
                row["mean"], i, marker=look.marker, ms=5.5, color=look.color, mec="white", mew=0.6
            )
        name_rows(panel, cells, 20)
        percent(panel, "x", "")
        panel.set_xlabel("")
        panel.tick_params(labelbottom=k + 2 >= len(sets))
    figure.supxlabel(f"Test {metric} (%)", fontsize=10)
    return figure
