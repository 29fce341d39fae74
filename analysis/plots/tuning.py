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
    BACKGROUND,
    GREY,
    INK,
    MANY,
    ROUND,
    Style,
    add_key,
    canvas,
    crowded,
    log_cost,
    name_ends,
    name_rows,
    panel_grid,
    percent,
)


def learning_curves(
    curves: pd.DataFrame, style: Mapping[str, Style], metric: str = "accuracy"
) -> Figure:
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
    figure.supylabel(f"Validation {metric} (%)", fontsize=10)
    return figure


def rates(tuned: pd.DataFrame, style: Mapping[str, Style], metric: str = "accuracy") -> Figure:
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
    figure.supylabel(f"Validation {metric} (%)", fontsize=10)
    return figure


def budget(
    curve: pd.DataFrame, style: Mapping[str, Style], unit: str = "trials", metric: str = "accuracy"
) -> Figure:
    """Expected best validation accuracy of each cell after n tuning trials, with its interval; `unit`
    "seconds" puts it against what these trials cost."""
    figure, (axes,) = canvas(4.2)
    ends = []
    for name in (name for name in style if name in set(curve["cell"])):
        own, look = curve[curve["cell"] == name].sort_values("trials"), style[name]
        axes.fill_between(own[unit], own["low"], own["high"], color=look.color, alpha=0.12, lw=0)
        axes.plot(own[unit], own["val_accuracy"], color=look.color, lw=2,
                  marker=look.marker, ms=4)  # fmt: skip
        ends.append((float(own[unit].iloc[-1]), float(own["val_accuracy"].iloc[-1]), name))
    if unit == "trials":
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, steps=ROUND))
        axes.set_xlabel("Tuning trials per cell")
    else:
        log_cost(
            axes, curve[unit].min(), curve[unit].max(), "Training time of the tuning trials (s)"
        )
    percent(axes, "y", f"Expected best validation {metric}")
    if crowded([name for _, _, name in ends]) or unit != "trials":
        add_key(figure, [name for _, _, name in ends], style)
    else:
        name_ends(axes, ends, style)
    return figure


def budget_of_many(curve: pd.DataFrame, metric: str = "accuracy") -> Figure:
    """How far below its own best each of many cells still is after n trials: median and quartiles."""
    top = curve.groupby("cell")["val_accuracy"].transform("max")
    behind = curve.assign(behind=100 * (top - curve["val_accuracy"])).groupby("trials")["behind"]
    enough = behind.size() >= curve["cell"].nunique() / 2
    low, middle, high = (behind.quantile(q)[enough] for q in (0.25, 0.5, 0.75))
    figure, (axes,) = canvas(3.6)
    axes.fill_between(middle.index, low, high, color=GREY, alpha=0.35, lw=0)
    axes.plot(middle.index, middle, color=INK, lw=2)
    axes.set_xlabel("Tuning trials per cell")
    axes.set_ylabel(f"Expected best validation {metric}:\npoints below that of all trials")
    axes.set_ylim(bottom=0)
    return figure


def budget_ranks(table: pd.DataFrame, style: Mapping[str, Style]) -> Figure:
    """Rank of each cell by its expected best score, against the trials and against the seconds spent."""
    units = [unit for unit in ("trials", "seconds") if unit in set(table["unit"])]
    figure, panels = canvas(3.8, 1, len(units), share_x=False)
    names = [name for name in style if name in set(table["cell"])]
    for unit, panel in zip(units, panels, strict=True):
        for name in names:
            own = table[(table["unit"] == unit) & (table["cell"] == name)]
            panel.plot(own["budget"], own["rank"], color=style[name].color, lw=1.6,
                       marker=style[name].marker, ms=6, mec="white")  # fmt: skip
        budgets = table.loc[table["unit"] == unit, "budget"]
        log_cost(panel, budgets.min(), max(budgets.max(), budgets.min() * 1.5),
                 "Tuning trials" if unit == "trials" else "Seconds of tuning")  # fmt: skip
        panel.tick_params(labelsize=8)
    panels[0].invert_yaxis()
    panels[0].yaxis.set_major_locator(MaxNLocator(integer=True))
    panels[0].set_ylabel("Rank (1 is the best)")
    add_key(figure, names, style)
    return figure


def rate_ranges(table: pd.DataFrame, style: Mapping[str, Style]) -> Figure:
    """Learning rates that were tried (grey), of trials close to the cell's best (bar), and the best (mark).

    Of more cells than can be named each is a line, in the order of their best rates.
    """
    many = len(table) > MANY
    table = table.sort_values("best") if many else table
    figure, (axes,) = canvas(4.4 if many else 1.1 + 0.34 * len(table))
    for i, row in enumerate(table.to_dict("records")):
        look = BACKGROUND if many else style[row["cell"]]
        thick = 1.0 if many else 4.0
        axes.plot([row["low"], row["high"]], [i, i], color="#d8d8d8", lw=1, zorder=1)
        axes.plot([row["good_low"], row["good_high"]], [i, i], color=look.color, lw=thick)
        axes.plot(row["best"], i, marker=look.marker, ms=2.5 if many else 7, mec="white",
                  mew=0 if many else 0.8, color=INK if many else look.color)  # fmt: skip
    if many:
        axes.set_yticks([])
        axes.set_ylabel(f"{len(table)} cells")
    else:
        name_rows(axes, list(table["cell"]))
    axes.set_xscale("log")
    axes.set_xlabel("Learning rate")
    return figure


def importances(table: pd.DataFrame, style: Mapping[str, Style]) -> Figure:
    """Importance of each tuned parameter: a mark per cell, a bar at their mean."""
    many = table["cell"].nunique() > MANY
    order = list(table.groupby("parameter")["importance"].mean().sort_values().index[::-1])
    figure, (axes,) = canvas(1.1 + 0.5 * len(order))
    names = list(table["cell"].unique())
    for i, parameter in enumerate(order):
        own = table[table["parameter"] == parameter]
        for row in own.to_dict("records"):
            look = BACKGROUND if many else style[row["cell"]]
            aside = 0.5 * (names.index(row["cell"]) / max(1, len(names) - 1) - 0.5)
            axes.plot(row["importance"], i + aside, marker=look.marker, ms=3 if many else 6,
                      color=look.color, mec="white", mew=0 if many else 0.8)  # fmt: skip
        axes.plot([own["importance"].mean()] * 2, [i - 0.35, i + 0.35], color=INK, lw=2)
    name_rows(axes, order)
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel("Share of importance")
    if not many:
        add_key(figure, names, style)
    return figure
