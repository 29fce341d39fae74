"""The learning rates that were tried, and the width of the range of good ones."""

from __future__ import annotations

import json
import re
from contextlib import suppress

import numpy as np
import pandas as pd

from analysis import plots
from analysis.compare import Findings, chosen, completed
from analysis.compare.runs import tuning
from analysis.text.numbers import numbers, plain, shorts, span
from analysis.topics.section import Columns, Parts, Plot, Section, Table, cell_styles, run_links

NEAR = 2.0
"""A learning rate is good if its validation score is within so many points of the cell's best."""
LR = "param.lr"


def section(found: Findings) -> Section:
    """The chosen configurations, and the scores by learning rate."""
    best, ranges = chosen(found.trials, found.info.selection), rate_ranges(found.trials)
    tuned = completed(found.trials, "tune")
    parts: Parts = []
    if LR in tuned and len(tuned.dropna(subset=[LR, "val_score"])):
        if tuned["cell"].nunique() <= plots.MANY:
            parts.append(_plot_rates(found, tuned))
        if len(ranges):
            parts.append(_plot_ranges(found, tuned, ranges))
    if len(best):
        parts.append(_chosen(found, best))
    if len(ranges):
        parts.append(_ranges(ranges))
    return Section("Tuned parameters", parts, tables={"chosen": best, "rates": ranges})


def _chosen(found: Findings, best: pd.DataFrame) -> Table:
    """The chosen configuration of each cell, in the parameters that differ."""
    shown: Columns = {
        "Cell": list(best["cell"]),
        "Trial": run_links(found, best["run_id"], best["index"]),
    }
    for name in tuned_parameters(best):
        shown[name.removeprefix("param.")] = [plain(value) for value in best[name]]
    shown["Validation, %"] = numbers(best["val_score"], ".1f", 100)
    metric = found.info.choosing
    rule = f"{metric.best.capitalize()} validation {metric.label} of the cell"
    rule += "." if metric.less_is_better else "; ties go to the lower validation loss."
    link = " The number of a trial links to its run while the viewer named below is running."
    linked = bool(found.info.experiment_id)
    note = f"{rule} Only parameters that differ between cells are shown.{link * linked}"
    return Table(shown, "Chosen configurations", note)


def _ranges(rows: pd.DataFrame) -> Table:
    return Table(
        {
            "Cell": list(rows["cell"]),
            "Trials": list(rows["trials"]),
            "Rates tried": _ends(rows["low"], rows["high"]),
            "Best": shorts(rows["best"]),
            "Within 2 points of the best": _ends(rows["good_low"], rows["good_high"]),
            "Width, decades": numbers(rows["decades"], ".1f"),
            "Trials within 2 points, %": numbers(rows["good_share"], ".0f", 100),
            "Range declared": _ends(rows["space_low"], rows["space_high"]),
            "Best at its edge": [edge or "–" for edge in rows["edge"]],
        },
        "Ranges of the learning rate",
        (
            "Points are those of the validation score. The more trials are within 2 points of the "
            "best, the less the cell depends on tuning the rate. Width: from the lowest to the "
            "highest rate of such a trial. Best at its edge: in the outer tenth of the declared "
            "range (on a log scale), which suggests that the range is too narrow. – : the range is "
            "not recorded."
        ),
    )


def _ends(low: pd.Series, high: pd.Series) -> list[object]:
    ends = zip(shorts(low), shorts(high), strict=True)
    return [a if a == "–" else f"{a} to {b}" for a, b in ends]


def tuned_parameters(chosen: pd.DataFrame) -> list[str]:
    """The columns in which the chosen configurations differ, or the learning rate if there are none."""
    names = [c for c in chosen.columns if c.startswith("param.") and c != "param.seed"]
    differ = [c for c in names if chosen[c].astype(str).nunique() > 1]
    return differ or [c for c in names if c == "param.lr"]


def rate_ranges(trials: pd.DataFrame) -> pd.DataFrame:
    """Width of the range of good learning rates of each cell.

    Returns:
        cell, trials, low, high (rates tried), best (rate of the best validation score), good_low, good_high
        (lowest and highest rate of a trial within NEAR points of that score), decades (log10 of their ratio),
        good_share (of all trials, including failed ones), space_low, space_high (the declared range, NaN if
        it is not recorded) and edge ("yes" if the best rate is in the outer tenth of the logarithm of the
        declared range, which was then too narrow; "no"; "" if unknown). Empty if no learning rate was tuned.
    """
    columns = ["cell", "trials", "low", "high", "best", "good_low", "good_high", "decades"]
    columns += ["good_share", "space_low", "space_high", "edge"]
    if LR not in trials or not pd.api.types.is_numeric_dtype(trials[LR]):
        return pd.DataFrame(columns=columns)
    tried = tuning(trials)
    tried = tried[(tried[LR] > 0) & ~tried["outcome"].isin(["unfinished", "killed", "crashed"])]
    rows = []
    for cell, own in tried.groupby("cell", sort=False):
        scored = own[(own["outcome"] == "complete") & own["val_score"].notna()]
        if own[LR].nunique() < 2 or scored.empty:
            continue
        top = float(scored["val_score"].max())
        good = scored.loc[100 * (top - scored["val_score"]) <= NEAR, LR]
        best = float(scored[LR].to_numpy()[scored["val_score"].to_numpy().argmax()])
        low, high = declared_range(own, "lr")
        place = np.log(best / low) / np.log(high / low) if 0 < low < high else np.nan
        edge = "" if np.isnan(place) else "yes" if place < 0.1 or place > 0.9 else "no"
        rows.append(
            {"cell": cell, "trials": len(own), "low": own[LR].min(), "high": own[LR].max()}
            | {"best": best, "good_low": float(good.min()), "good_high": float(good.max())}
            | {"decades": float(np.log10(good.max() / good.min()))}
            | {"good_share": len(good) / len(own), "space_low": low, "space_high": high}
            | {"edge": edge}
        )
    return pd.DataFrame(rows, columns=columns)


def declared_range(runs: pd.DataFrame, name: str) -> tuple[float, float]:
    """The range of a parameter in the study file, from the distributions recorded with the runs; NaN if they
    are not recorded, or differ between runs."""
    found = set()
    for text in runs["ranges"].dropna() if "ranges" in runs else []:
        with suppress(ValueError, TypeError, AttributeError):
            drawn = str(json.loads(text).get(name, ""))
            ends = [re.search(rf"{end}=([-+.e\d]+)", drawn) for end in ("low", "high")]
            found.add(tuple(float(m[1]) if m else np.nan for m in ends))
    low, high = found.pop() if len(found) == 1 else (np.nan, np.nan)
    return low, high


def _plot_rates(found: Findings, tuned: pd.DataFrame) -> Plot:
    """Validation score of each complete tuning trial by its learning rate, one panel per cell."""
    style = cell_styles(found)
    tuned = tuned.dropna(subset=["param.lr", "val_score"])
    names = [name for name in style if name in set(tuned["cell"])]
    figure, panels = plots.panel_grid(names)
    for name, panel in panels.items():
        own, rest = tuned[tuned["cell"] == name], tuned[tuned["cell"] != name]
        panel.plot(rest["param.lr"], rest["val_score"], ls="", marker="o", ms=2.5, color="#cccccc")
        panel.plot(own["param.lr"], own["val_score"], ls="", marker=style[name].marker, ms=6,
                   color=style[name].color, mec="white")  # fmt: skip
        panel.set_xscale("log")
        plots.percent(panel, "y", "")
        panel.set_ylabel("")
    figure.supxlabel("Learning rate", fontsize=10)
    figure.supylabel(f"Validation {found.info.metric} (%)", fontsize=10)
    caption = (
        "One marker per complete tuning trial; grey: those of the other cells. A best score "
        "at the edge of the declared range (see the table) suggests that the range is too "
        "narrow."
    )
    return Plot("learning_rates", "Validation score by learning rate", figure, caption)


def _plot_ranges(found: Findings, tuned: pd.DataFrame, table: pd.DataFrame) -> Plot:
    """Ranges of learning rates that were tried (grey), of trials close to the cell's best (bar), and the best
    rate (marker).

    If there are too many cells to name, each is a line, in the order of their best rates.
    """
    style = cell_styles(found)
    many = len(table) > plots.MANY
    table = table.sort_values("best") if many else table
    figure, (axes,) = plots.canvas(4.4 if many else 1.1 + 0.34 * len(table))
    for i, row in enumerate(table.to_dict("records")):
        look = plots.BACKGROUND if many else style[row["cell"]]
        thick = 1.0 if many else 4.0
        axes.plot([row["low"], row["high"]], [i, i], color="#d8d8d8", lw=1, zorder=1)
        axes.plot([row["good_low"], row["good_high"]], [i, i], color=look.color, lw=thick)
        axes.plot(row["best"], i, marker=look.marker, ms=2.5 if many else 7, mec="white",
                  mew=0 if many else 0.8, color=plots.INK if many else look.color)  # fmt: skip
    if many:
        axes.set_yticks([])
        axes.set_ylabel(f"{len(table)} cells")
    else:
        plots.name_rows(axes, list(table["cell"]))
    axes.set_xscale("log")
    axes.set_xlabel("Learning rate")
    trials = span(tuned["cell"].value_counts())
    caption = (
        "Thin lines: rates tried. Bar: from the lowest to the highest rate of a trial within "
        f"2 points of the cell's best validation {found.info.metric}. Marker: the rate of the "
        f"best trial. {trials} complete trials per cell; no interval."
    )
    return Plot("rate_ranges", "Ranges of good learning rates", figure, caption)
