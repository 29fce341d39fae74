"""Ranks of the arms over several targets, whose scores are not comparable with each other."""

from __future__ import annotations

import pandas as pd

from analysis import plots
from analysis.compare import Findings
from analysis.text.numbers import intervals, listed, numbers
from analysis.topics.section import Plot, Section, Table

SHOWN = 4
"""Arms that the answer names; the table has all of them."""


def section(found: Findings) -> Section:
    """Mean rank of all arms over the targets; empty if the study does not compare targets."""
    ranks, metric = found.ranks, found.info.metric
    if ranks.empty:
        return Section("Over the targets")
    parts = [_plot(found)] if len(ranks) > 1 else []
    shown = Table(
        {
            "Arm": list(ranks["arm"]),
            "Targets": list(ranks["targets"]),
            "Mean rank": numbers(ranks["mean_rank"], ".1f"),
            "95% interval": intervals(ranks["low"], ranks["high"], ".1f"),
            "First on": list(ranks["wins"]),
            "Below the best, points": numbers(ranks["behind"], ".1f"),
        },
        note="Arm: a combination of the values of all other factors. Arms are ranked within each target "
        f"by mean test {metric} (1 is the best); mean rank and 95% t interval over targets. First on: "
        "number of targets. Below the best: mean over targets.",
    )
    return Section(
        "Over the targets",
        [*parts, shown],
        answer(found),
        "Cells are ranked within each target; mean ranks have 95% t intervals over targets.",
        {"ranks": ranks},
    )


def answer(found: Findings) -> list[str]:
    """The mean ranks of the arms over the targets, in sentences."""
    first, rest = found.ranks.iloc[0], found.ranks.iloc[1:]
    text = [
        (
            f"“{first['arm']}” has the best mean rank over {first['targets']} targets: "
            f"{_rank(first)} among {len(found.ranks)} arms. It is first on {first['wins']} of them, "
            f"and on average {first['behind']:.1f} points of test {found.info.metric} below the "
            "best."
        )
    ]
    if len(rest):
        near = rest[rest["low"] <= first["high"]]
        text.append(
            (
                "It is followed by "
                f"{listed([f'“{r.arm}” ({r.mean_rank:.1f})' for r in rest.head(SHOWN).itertuples()])}. "
            )
            + (
                (
                    f"The intervals of {len(near)} of the other {len(rest)} overlap with its "
                    "interval."
                )
                if len(near)
                else "No other interval overlaps with its interval."
            )
        )
        best = found.ranks.sort_values("wins", ascending=False, kind="stable").iloc[0]
        split = "No arm is best for all targets: " * bool(best["wins"] < best["targets"])
        text.append(
            f"{split}“{best['arm']}” is first most often, on {best['wins']} of them, and the last "
            f"in rank, “{rest.iloc[-1]['arm']}”, is on average {rest.iloc[-1]['behind']:.1f} points "
            "below the best."
        )
    if found.summary["n"].max() == 1:
        text.append(
            "Each cell has one test score, so differences cannot be tested within a target; "
            "the interval of a rank is over targets."
        )
    return text


def _rank(row: pd.Series) -> str:
    if row["low"] != row["low"]:
        return f"{row['mean_rank']:.1f}"
    return f"{row['mean_rank']:.1f} (95% interval {row['low']:.1f} to {row['high']:.1f})"


def _plot(found: Findings) -> Plot:
    """Mean rank of each arm over the targets with its interval, best at the top."""
    ranks = found.ranks
    style = plots.styles(list(ranks["arm"]))
    figure, (axes,) = plots.canvas(1.1 + 0.3 * len(ranks))
    for i, row in enumerate(ranks.to_dict("records")):
        plots.draw_interval(
            axes, i, row["mean_rank"], (row["low"], row["high"]), style[row["arm"]], 7
        )
    plots.name_rows(axes, list(ranks["arm"]))
    axes.set_xlabel("Mean rank over the targets (1 is the best)")
    caption = (
        f"Within each target the arms are ranked by their mean test {found.info.metric} (1 is "
        "the best). Marker: mean rank; bar: 95% t interval over the "
        f"{ranks['targets'].iloc[0]} targets."
    )
    return Plot("ranks", "Rank over the targets", figure, caption)
