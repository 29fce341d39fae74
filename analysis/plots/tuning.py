"""How did the runs learn, and what was tuning worth?

    python -c "from analysis import compare, load, plots; t = load.load_study('freeze_depth'); \
               c = compare.budget_curve(t.trials); \
               plots.budget(c, plots.styles(c['cell'].unique())).savefig('a.png')"
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis.plots.canvas import (
    GREY,
    ROUND,
    Style,
    add_key,
    canvas,
    crowded,
    name_ends,
    panel_grid,
    percent,
)


def learning_curves(curves: pd.DataFrame, style: Mapping[str, Style]) -> Figure:
    """Validation accuracy by epoch: a panel per cell, thin lines its runs, thick their mean, grey
    the means of the other cells."""
    names = [name for name in style if name in set(curves["cell"])]
    figure, panels = panel_grid(names)
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
        percent(panel, "y", "")
        panel.set_ylabel("")
        panel.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=ROUND))
    figure.supxlabel("Epoch", fontsize=10)
    figure.supylabel("Validation accuracy (%)", fontsize=10)
    return figure


def rates(tuned: pd.DataFrame, style: Mapping[str, Style]) -> Figure:
    """Validation accuracy of each complete tuning trial by its learning rate, a panel per cell."""
    tuned = tuned.dropna(subset=["param.lr", "val_accuracy"])
    names = [name for name in style if name in set(tuned["cell"])]
    figure, panels = panel_grid(names)
    for name, panel in panels.items():
        own, rest = tuned[tuned["cell"] == name], tuned[tuned["cell"] != name]
        panel.plot(
            rest["param.lr"], rest["val_accuracy"], ls="", marker="o", ms=2.5, color="#cccccc"
        )
        panel.plot(own["param.lr"], own["val_accuracy"], ls="", marker=style[name].marker, ms=6,
                   color=style[name].color, mec="white")  # fmt: skip
        panel.set_xscale("log")
        percent(panel, "y", "")
        panel.set_ylabel("")
    figure.supxlabel("Learning rate", fontsize=10)
    figure.supylabel("Validation accuracy (%)", fontsize=10)
    return figure


def budget(curve: pd.DataFrame, style: Mapping[str, Style]) -> Figure:
    """Expected best validation accuracy of each cell after n tuning trials."""
    figure, (axes,) = canvas(4.2)
    ends = []
    for name in (name for name in style if name in set(curve["cell"])):
        own = curve[curve["cell"] == name].sort_values("trials")
        axes.plot(own["trials"], own["val_accuracy"], color=style[name].color, lw=2,
                  marker=style[name].marker, ms=4)  # fmt: skip
        ends.append((float(own["trials"].iloc[-1]), float(own["val_accuracy"].iloc[-1]), name))
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, steps=ROUND))
    axes.set_xlabel("Tuning trials per cell")
    percent(axes, "y", "Expected best validation accuracy")
    if crowded([name for _, _, name in ends]):
        add_key(figure, [name for _, _, name in ends], style)
    else:
        name_ends(axes, ends, style)
    return figure
