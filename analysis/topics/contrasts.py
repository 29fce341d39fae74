"""Paired comparisons of the cells: with the baseline, and of the best with the others."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure

from analysis.compare import Findings
from analysis.plots import INK, MANY, Style, canvas, escape
from analysis.text.numbers import intervals, numbers, span
from analysis.topics.scores import LONG
from analysis.topics.section import OVER_SEEDS, Plot, Section, Table, cell_styles


def section(found: Findings) -> Section:
    """Differences in points, paired on seeds, with their verdicts."""
    parts: list[Plot | Table | str | list[str]] = []
    differences, rivals, metric = found.differences, found.rivals, found.info.metric
    if 0 < differences["difference"].notna().sum() <= 2 * MANY:
        base = ", ".join(" ".join(pair) for pair in found.info.baseline.items())
        caption = (
            f"Mean of the differences on shared seeds ({span(differences['n'])} pairs). An interval that "
            f"crosses 0 leaves the sign open. A row's reference has the baseline ({base}) and equals it "
            f"in every other factor. {OVER_SEEDS} Not adjusted for the number of rows."
        )
        figure = plot_differences(differences, cell_styles(found), metric)
        parts.append(Plot("differences", "Difference from the baseline", figure, caption))
    if len(differences):
        note = (
            "Differences are paired on seeds; the interval is a 95% t interval over seeds, not adjusted "
            "for the number of rows. p: exact two-sided sign-flip test, which cannot give less than 2 / "
            "2ⁿ with n pairs (.0625 with 5); Holm adjusts it within this table. Least detectable: the "
            "difference that a paired t test would find in 80% of such studies. Verdict: higher or "
            "lower if Holm p ≤ .05; leaning if only the interval is clear of 0; open otherwise."
        )
        parts += [Table(_columns(found, differences), "Against the baseline", note)]
        parts += [list(differences["sentence"])]
    elif not found.info.baseline:
        parts.append(
            "The study declares no baseline, so no family of differences was fixed in advance."
        )
    if len(rivals):
        note = (
            "The best cell was picked with the same scores, so its lead is overstated. Columns and "
            "interval as above; Holm adjusts within this table."
        )
        title = f"Best{' of each target' * bool(len(found.ranks))} against the others"
        parts.append(Table(_columns(found, rivals), title, note))
    tables = {"differences": differences, "rivals": rivals}
    return Section("Comparisons", parts, answer(found), tables=tables)


def _columns(found: Findings, rows: pd.DataFrame) -> dict[str, list[object]]:
    shown: dict[str, list[object]] = {
        "Cell": list(rows["cell"]),
        "Minus": list(rows["reference"]),
        "Pairs": list(rows["n"]),
        "Difference, points": [*numbers(rows["difference"], "+.1f")],
        "95% interval": [*intervals(rows["low"], rows["high"], "+.1f")],
        "p": [*numbers(rows["p"], ".3g")],
        "p, Holm": [*numbers(rows["p_holm"], ".3g")],
        "Least detectable": [*numbers(rows["least_detectable"], ".1f")],
    }
    if len(found.examples):
        alone = numbers(rows["only_cell"], ".0f"), numbers(rows["only_reference"], ".0f")
        shown["Images right for it alone / the other alone"] = [
            f"{a} / {b}" for a, b in zip(*alone, strict=True)
        ]
        shown["p, images"] = [*numbers(rows["p_images"], ".2g")]
    return shown | {"Verdict": list(rows["verdict"])}


def answer(found: Findings) -> list[str]:
    """The best cell against the next, those that cannot be told apart from it, and the baseline."""
    scored = found.summary.dropna(subset="mean").sort_values("mean", ascending=False, kind="stable")
    if len(found.ranks) or scored.empty:
        return []
    best, runner_up = scored["cell"].iloc[0], ""
    text = []
    if found.rivals.empty:
        text.append("No other cell has a test score, so there is nothing to compare it with.")
    else:
        runner_up = str(found.rivals.iloc[0]["reference"])
        text.append(f"Against the runner-up: {found.rivals.iloc[0]['sentence']}")
        equals = found.rivals.loc[found.rivals["verdict"] == "open", "reference"]
        if len(equals) > 1:
            names = ", ".join(f"“{name}”" for name in equals)
            text.append(f"Cells that can't be told apart from it: {names}.")
    versus = found.differences[found.differences["cell"] == best]
    if len(versus) and versus.iloc[0]["reference"] != runner_up:
        text.append(f"Against the baseline: {versus.iloc[0]['sentence']}")
    elif best in set(found.differences["reference"]):
        text.append("It is itself the baseline: no declared alternative has a higher mean.")
    return text


def plot_differences(
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
        escape(f"{c}\n− {r}" if several and not long else c)
        for c, r in zip(table["cell"], table["reference"], strict=True)
    ]
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    reference = "its reference" if several else f"“{escape(table['reference'].iloc[0])}”"
    axes.set_xlabel(f"Test {metric} minus that of {reference} (points)")
    axes.margins(x=0.06)
    return figure
