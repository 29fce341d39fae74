"""Validation scores of the compared runs by epoch."""

from __future__ import annotations

import pandas as pd
from matplotlib.ticker import MaxNLocator

from analysis import plots
from analysis.compare import Findings, chosen, completed
from analysis.topics.section import Plot, Section, cell_styles, repeats_of


def section(found: Findings) -> Section:
    """The curves of each cell; no figure for many cells."""
    curves = learning_curves(found.trials, found.table.epochs, found.info.selection)
    parts = [_plot(found, curves)] if 0 < curves["cell"].nunique() <= plots.MANY else []
    return Section("Training", parts, tables={"curves": curves})


def learning_curves(
    trials: pd.DataFrame, epochs: pd.DataFrame, selection: str = "val_score"
) -> pd.DataFrame:
    """Validation accuracy by epoch of the compared repeats; if there are none, of the chosen trials.

    Returns:
        run_id, cell, epoch, val_score, and mean (over the runs of the cell at that epoch).
    """
    runs = completed(trials, "repeat")
    runs = runs if len(runs) else chosen(trials, selection)
    curves = epochs.merge(runs[["run_id", "cell"]], on="run_id", validate="many_to_one")
    curves = curves.dropna(subset="val_score")
    mean = curves.groupby(["cell", "epoch"])["val_score"].transform("mean")
    return curves[["run_id", "cell", "epoch", "val_score"]].assign(mean=mean)


def _plot(found: Findings, curves: pd.DataFrame) -> Plot:
    """Validation score by epoch, one panel per cell: thin lines are its runs, the thick line their mean, grey
    lines the means of the other cells."""
    metric, style = found.info.metric, cell_styles(found)
    names = [name for name in style if name in set(curves["cell"])]
    ends = curves.groupby("cell")["epoch"].max() + 1
    same = ends.nunique() == 1
    figure, panels = plots.panel_grid(names, share_x=same)
    means = curves.drop_duplicates(["cell", "epoch"]).sort_values("epoch")
    for name, panel in panels.items():
        for other in names:
            line = means[means["cell"] == other]
            mine = other == name
            panel.plot(line["epoch"] + 1, line["mean"], color=style[other].color if mine else plots.GREY,
                       lw=2.2 if mine else 0.7, zorder=3 if mine else 1,
                       marker="o" if len(line) == 1 else "")  # fmt: skip
        for _, run in curves[curves["cell"] == name].groupby("run_id"):
            run = run.sort_values("epoch")
            panel.plot(run["epoch"] + 1, run["val_score"], color=style[name].color, lw=0.7,
                       alpha=0.6, zorder=2)  # fmt: skip
        if not same and ends[name] > 1:  # few epochs are legible beside many
            panel.set_xlim(1 - 0.05 * (ends[name] - 1), ends[name] + 0.05 * (ends[name] - 1))
        plots.percent(panel, "y", "")
        panel.set_ylabel("")
        panel.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=plots.ROUND))
    figure.supxlabel("Epoch", fontsize=10)
    figure.supylabel(f"Validation {metric} (%)", fontsize=10)
    what = "one repeat each" if repeats_of(found) != "0" else "the chosen tuning trial"
    caption = (
        f"Validation {metric} by epoch. Thin lines: {what}; thick line: mean; grey: the means "
        "of the other cells. No interval; the thin lines show the spread."
        f"{' The panels show different numbers of epochs.' * (not same)}"
    )
    return Plot("learning_curves", "Learning curves", figure, caption)
