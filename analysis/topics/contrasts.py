"""Paired comparisons of cells: with the baseline, and of the chosen cell with the others."""

from __future__ import annotations

import textwrap
from collections.abc import Hashable, Mapping
from typing import Any

import pandas as pd

from analysis import compare, plots
from analysis.compare import Findings, describe_contrast
from analysis.text.numbers import intervals, listed, numbers, quoted, span
from analysis.topics.scores import LONG
from analysis.topics.section import (
    VARIED,
    Columns,
    Parts,
    Plot,
    Section,
    Table,
    cell_styles,
    correction,
)

NARROW = 40
"""Characters per line of an axis label next to long names."""
NOTE = (
    "Differences, cell minus reference, are paired by seed. Simultaneous interval: paired t at "
    "1 - .05 / {pairs} (Bonferroni over the {pairs} pairs of cells of this study), so that all "
    "intervals hold simultaneously with 95% confidence; adjusted p: that of the same test, times "
    "{pairs}. The verdict is higher or lower if that interval excludes 0, and open otherwise. "
    "Least detectable: the true difference that this rule detects with 80% power. Not adjusted: "
    "the 95% t interval of the pair alone and the p of a sign-flip test (exact with at most 15 "
    "seeds; at least 2 / 2ⁿ with n seeds){images}. Intervals: over seeds ({varied}{correction})."
)
IMAGES = (
    "; also McNemar's exact p over test examples (twice the median over seeds), which is about "
    "these trained networks only"
)


def section(found: Findings) -> Section:
    """Differences in points, with their verdicts."""
    parts: Parts = []
    kept, differences, folds = found.predictions, found.differences, found.info.folds
    if found.info.score != "accuracy":  # McNemar's test counts right images
        kept = kept[:0]
    tables = {"contrasts": found.contrasts}
    pairs = int(found.contrasts["pairs"].max()) if len(found.contrasts) else 0
    note = NOTE.format(
        pairs=pairs,
        images=IMAGES * bool(len(kept)),
        varied=VARIED,
        correction=correction(found),
    )
    if not pairs:
        note = (
            "No pair of cells could be tested: that takes test scores of both on two shared seeds."
        )
    if 0 < differences["difference"].notna().sum() <= 2 * plots.MANY:
        parts.append(_plot(found))
    if len(differences):
        tables["differences"] = compare.with_other_tests(differences, found.trials, kept, folds)
        parts.append(Table(_columns(tables["differences"]), "Against the baseline", note))
        parts.append([describe_contrast(row) for row in differences.to_dict("records")])
    chosen = [compare.against(found.contrasts, cell) for cell in chosen_cells(found)]
    if chosen and len(rivals := pd.concat(chosen, ignore_index=True)):
        tables["rivals"] = compare.with_other_tests(rivals, found.trials, kept, folds)
        of_each = " of each target" * bool(len(found.ranks))
        title = f"Chosen cell{of_each} against the others"
        parts.append(Table(_columns(tables["rivals"]), title, "" if len(differences) else note))
    return Section("Comparisons", parts, answer(found), _methods(found, pairs), tables)


def chosen_cells(found: Findings) -> list[str]:
    """The cell chosen by validation; one for each target if targets are compared."""
    table = compare.arms(found.info.factors)
    context = dict(zip(table["cell"], table["context"], strict=True))
    fit = found.ranking.loc[found.ranking["fits"], "cell"]
    return list(fit[~fit.map(context).duplicated()])


def _columns(rows: pd.DataFrame) -> Columns:
    shown: Columns = {
        "Cell": list(rows["cell"]),
        "Reference": list(rows["reference"]),
        "Shared seeds": list(rows["n"]),
        "Difference, points": numbers(rows["difference"], "+.1f"),
        "Simultaneous 95% interval": intervals(rows["low"], rows["high"], "+.1f"),
        "p, adjusted": numbers(rows["p"], ".2g"),
        "Verdict": list(rows["verdict"]),
        "Least detectable, points": numbers(rows["least_detectable"], ".1f"),
        "95% interval, not adjusted": intervals(rows["alone_low"], rows["alone_high"], "+.1f"),
        "p, sign flips": numbers(rows["p_signs"], ".3g"),
    }
    if rows["p_images"].notna().any():
        alone = numbers(rows["only_cell"], ".0f"), numbers(rows["only_reference"], ".0f")
        shown["Examples that only the cell / only the reference classifies correctly"] = [
            f"{a} / {b}" for a, b in zip(*alone, strict=True)
        ]
        shown["p, examples (McNemar)"] = numbers(rows["p_images"], ".2g")
    return shown


def answer(found: Findings) -> list[str]:
    """What was shown about the chosen cell and the others."""
    best = found.chosen
    if not best:
        return []
    rows = compare.against(found.contrasts, best)
    if rows.empty:
        return ["No other cell has a test score, so it cannot be compared."]
    text = []
    for verdict, words in (
        ("higher", "It is significantly better than"),
        ("lower", "It is significantly worse than"),
    ):
        own = rows[rows["verdict"] == verdict]
        if len(own):
            rivals = listed([_lead(row) for row in own.to_dict("records")])
            text.append(f"{words} {rivals}; simultaneous 95% intervals.")
    unclear = rows[rows["verdict"] == "open"]
    if len(unclear):
        worst = unclear.sort_values("least_detectable").iloc[-1]
        text.append(
            f"It is not significantly different from {listed(quoted(unclear['reference']))}. "
            f"{compare.describe_power(worst.to_dict())}."
        )
        behind = compare.most_behind(found.contrasts, best)
        if behind == behind:
            text[-1] += f" No other cell is more than {behind:.1f} points better (95% confidence)."
    if rows["verdict"].eq("untested").all():
        text.append("Cells share at most one seed, so differences cannot be tested.")
    if best in set(found.differences["reference"]):
        text.append("It is the baseline.")
    return text


def _lead(row: Mapping[Hashable, Any]) -> str:
    return f"“{row['reference']}” ({row['difference']:+.1f} points, {row['low']:+.1f} to {row['high']:+.1f})"


def _methods(found: Findings, pairs: int) -> str:
    if not pairs:
        return ""
    every = f"Each of the {pairs} pairs" if pairs > 1 else "The pair"
    text = (
        f"Differences between cells are paired by seed. {every} was tested by "
        f"a paired t interval at 1 - .05 / {pairs} (Bonferroni), so that the family-wise error "
        "rate is at most 5%."
    )
    if len(found.examples) and found.info.score == "accuracy":
        grouped = compare.are_grouped(found.table.predictions)
        text += (
            " Pairs of networks were also compared example by example with McNemar's exact test"
            f"{', flipping the signs of whole groups of examples' * grouped}."
        )
    return text


def _plot(found: Findings) -> Plot:
    """Paired differences in points with their intervals, one row each; the line at 0 means no difference. If
    there are many rows, they are narrower and do not name their reference."""
    style = cell_styles(found)
    table = found.differences.dropna(subset="difference").reset_index(drop=True)
    several = table["reference"].nunique() > 1
    long = len(table) > LONG
    figure, (axes,) = plots.canvas(1.1 + (0.32 if long else 0.55 if several else 0.42) * len(table))
    axes.axvline(0, color=plots.INK, lw=1)
    for i, row in enumerate(table.to_dict("records")):
        plots.draw_interval(
            axes, i, row["difference"], (row["low"], row["high"]), style[row["cell"]]
        )
    names = [
        plots.escape(f"{c}\n− {r}" if several and not long else c)
        for c, r in zip(table["cell"], table["reference"], strict=True)
    ]
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    reference = "its reference" if several else f"“{plots.escape(table['reference'].iloc[0])}”"
    label = f"Test {found.info.metric} minus that of {reference} (points)"
    axes.set_xlabel(textwrap.fill(label, NARROW))
    axes.margins(x=0.06)
    base = ", ".join(" ".join(pair) for pair in found.info.baseline.items())
    caption = (
        f"Mean of the differences over shared seeds ({span(found.differences['n'])} pairs of "
        "scores) with the simultaneous 95% interval over seeds; if it includes 0, the "
        f"difference is not significant. The reference of a cell has the baseline ({base}) and "
        "the same values of all other factors."
    )
    return Plot("differences", "Difference from the baseline", figure, caption)
