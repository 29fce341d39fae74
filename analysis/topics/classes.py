"""Test results by class, calibration, and all metrics of all cells."""

from __future__ import annotations

import io
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from PIL import Image

from analysis import compare, plots
from analysis.compare import Findings
from analysis.text.numbers import numbers, with_interval
from analysis.topics.section import (
    Columns,
    Parts,
    Plot,
    Section,
    Table,
    cell_styles,
    over_seeds,
    stacked,
)
from harness.core.selection import METRICS, Metric

Row = Mapping[Hashable, Any]

MOST_CLASSES = 20
"""Largest number of classes in a figure; if there are more, those with the lowest recall are shown."""
IN_A_ROW = 4
"""Examples per row of the figure of mistakes."""
SHOWN = 10
"""Rows of the tables of confusions and mistakes."""


def section(found: Findings) -> Section:
    """Results from the recorded predictions other than the compared score; empty for an external table."""
    values = compare.by_metric(found.trials, found.info)
    kept, shown = found.predictions, compared_cells(found)
    mine = kept[kept["cell"].isin(shown)]
    parts: Parts = []
    tables = {"metrics": values}
    if len(mine):
        per_class = compare.per_class(mine, found.info.folds)
        tables["classes"] = per_class
        names = compare.class_names(found.trials, int(per_class["label"].max()) + 1)
        parts += [_recall_plot(found, per_class, names, shown), *_confusion(mine, shown[0], names)]
        bins = compare.reliability(mine)
        if len(bins):
            parts.append(_reliability_plot(found, bins, values))
            tables["reliability"] = bins
        mistakes = compare.confident_mistakes(mine[mine["cell"] == shown[0]])
        if len(mistakes):
            parts += _mistakes(mistakes, f"Most confident mistakes of “{shown[0]}”", names)
            tables["mistakes"] = mistakes.drop(columns="image", errors="ignore")
    if values["metric"].nunique() > 2:  # else the table of cells says it already
        parts.append(_every_metric(values))
    return Section("Classes and calibration", parts, answer(found), tables=tables)


def compared_cells(found: Findings) -> list[str]:
    """The chosen cell and the next one; none if targets are compared, because they have different classes."""
    fit = found.ranking.loc[found.ranking["fits"], "cell"]
    return list(fit[:2]) if found.chosen else []


def answer(found: Findings) -> list[str]:
    """If the test classes are unequal: the class with the lowest recall, and the cell that another metric
    would choose."""
    cell, kept = found.chosen, found.predictions
    own = kept[kept["cell"] == cell]
    if not cell or own.empty or not compare.are_unequal(own):
        return []
    sizes = compare.class_sizes(own)
    rows = compare.per_class(own, found.info.folds)
    names = compare.class_names(found.trials, int(rows["label"].max()) + 1)
    worst = rows.nsmallest(1, "recall").to_dict("records")[0]
    text = (
        f"The test classes are imbalanced ({sizes.min():.0f} to {sizes.max():.0f} examples). The "
        f"lowest recall of “{cell}” is that of {names[int(worst['label'])]}: {_recall(worst)}."
    )
    values = compare.by_metric(found.trials, found.info)
    for name in ("accuracy", "balanced_accuracy"):
        other = compare.chosen_by(found.trials, found.info, name)
        if other and name != found.info.choosing.name:
            text += _other_choice(values, METRICS[name], cell, other)
    return [text]


def _recall(row: Row) -> str:
    return with_interval(row["recall"], row["recall_low"], row["recall_high"], ".1f", 100, "%")


def _other_choice(values: pd.DataFrame, metric: Metric, cell: str, other: str) -> str:
    if other == cell:
        return f" Validation {metric.label} would choose the same cell."
    known = _by_cell(values, metric.name)
    ahead, behind = (metric.text(known[name]["validation"]) for name in (other, cell))
    return (
        f" Validation {metric.label} would choose “{other}” instead ({ahead}, against "
        f"{behind}); on test it has {_value(known[other], metric)}, and “{cell}” "
        f"{_value(known[cell], metric)}."
    )


def _by_cell(rows: pd.DataFrame, metric: str) -> dict[str, Row]:
    """The row of a metric for each cell."""
    return {row["cell"]: row for row in rows[rows["metric"] == metric].to_dict("records")}


def _value(row: Row, metric: Metric) -> str:
    """A test value with its interval."""
    form = ".3f" if metric.less_is_better else ".1%"
    return with_interval(row["mean"], row["low"], row["high"], form)


def _recall_plot(
    found: Findings, rows: pd.DataFrame, names: Sequence[str], cells: Sequence[str]
) -> Plot:
    """Mean recall with its interval, one row per class and one marker per cell."""
    lowest = rows[rows["cell"] == cells[0]].nsmallest(MOST_CLASSES, "recall")["label"]
    labels = sorted(lowest)
    figure, (axes,) = plots.canvas(1.0 + 0.36 * len(labels))
    sizes, style = rows.groupby("label")["examples"].mean(), cell_styles(found)
    for at, cell in enumerate(cells):
        own = {row["label"]: row for row in rows[rows["cell"] == cell].to_dict("records")}
        aside = 0.12 * (2 * at - 1) if len(cells) > 1 else 0.0
        for i, label in enumerate(labels):
            row = own[label]
            ends = row["recall_low"], row["recall_high"]
            mark = plots.draw_interval(axes, i + aside, row["recall"], ends, style[cell], 6)
            plots.annotate(mark, f"{cell}, {names[label]}: {_recall(row)}")
    plots.name_rows(axes, [f"{names[label]} ({sizes[label]:.0f})" for label in labels])
    plots.percent(axes, "x", "Recall")
    plots.add_key(figure, cells, style)
    some = f" Shown are the {len(labels)} classes in which the chosen cell has the lowest recall."
    some *= len(labels) < len(names)
    caption = (
        "Share of the test examples of each class that are predicted correctly: mean over the repeats and "
        f"interval, for the chosen cell{' and the second best' * (len(cells) > 1)}. In brackets: number of "
        f"test examples.{some} {over_seeds(found)}"
    )
    return Plot("recall", "Recall by class", figure, caption)


def _confusion(kept: pd.DataFrame, cell: str, names: Sequence[str]) -> list[Plot | Table]:
    own = kept[kept["cell"] == cell]
    if len(names) <= MOST_CLASSES:
        return [_confusion_plot(own, cell, names)]
    pairs = compare.confused_pairs(own).head(SHOWN)
    columns: Columns = {
        "Class": [names[label] for label in pairs["label"]],
        "Predicted as": [names[label] for label in pairs["predicted"]],
        "Of its examples, %": numbers(pairs["share"], ".1f", 100),
        "Examples": numbers(pairs["images"], ".1f"),
    }
    title = f"Most confused classes of “{cell}”"
    return [Table(columns, title, "Means over the repeats, largest shares first.")]


def _confusion_plot(predictions: pd.DataFrame, cell: str, names: Sequence[str]) -> Plot:
    """Confusion matrix of one cell: percentages of each row, mean of its repeats."""
    tables = compare.confusions(predictions).astype(float)
    sizes = tables.sum(axis=2, keepdims=True)
    shares = 100 * np.divide(tables, sizes, out=np.zeros_like(tables), where=sizes > 0).mean(axis=0)
    k = len(shares)
    figure, (axes,) = plots.canvas(1.2 + 0.36 * k)
    text = np.array([[f"{v:.0f}" if v >= 0.5 else "" for v in row] for row in shares])
    sns.heatmap(
        shares, ax=axes, annot=text, fmt="", cmap="Blues", vmin=0, vmax=100, mask=shares == 0,
        linewidths=0.5, annot_kws={"fontsize": 9 if k <= 12 else 7}, cbar=False,
    )  # fmt: skip
    shown = [_fitting(name) for name in names[:k]]
    axes.set_xticklabels(shown, rotation=45, ha="right", fontsize=8)
    axes.set_yticklabels(shown, rotation=0, fontsize=8)
    axes.set_xlabel("Predicted class")
    axes.set_ylabel("True class")
    caption = (
        "Share of the examples of a class (row) that are predicted as each class (column), in %, mean over "
        "the repeats; no interval. White: 0."
    )
    return Plot("confusion", f"Confusion matrix of “{cell}”", figure, caption)


def _reliability_plot(found: Findings, bins: pd.DataFrame, values: pd.DataFrame) -> Plot:
    """Reliability diagram (Guo et al. 2017): accuracy against confidence, one line per cell."""
    errors, style = _by_cell(values, "ece"), cell_styles(found)
    cells = [cell for cell in compared_cells(found) if cell in set(bins["cell"])]
    figure, (axes,) = plots.canvas(4.0)
    axes.plot([0, 1], [0, 1], color=plots.GREY, lw=1, zorder=1)
    for cell in cells:
        own, look = bins[bins["cell"] == cell], style[cell]
        axes.plot(own["confidence"], own["accuracy"], color=look.color, lw=1, alpha=0.6)
        axes.scatter(own["confidence"], own["accuracy"], s=12 + 300 * own["share"], color=[look.color],
                     marker=look.marker, edgecolors="white", zorder=3)  # fmt: skip
    plots.percent(axes, "x", "Confidence")
    plots.percent(axes, "y", "Accuracy")
    plots.add_key(figure, cells, style)
    said = [f"“{c}” {_value(errors[c], METRICS['ece'])}" for c in cells if c in errors]
    caption = (
        "Share of correct predictions by confidence (15 bins of equal width, all repeats pooled); "
        "larger markers: more examples. Below the diagonal: overconfident."
    )
    if said:
        caption += f" Expected calibration error: {'; '.join(said)}. {over_seeds(found)}"
    return Plot("reliability", "Reliability diagram", figure, caption)


def _mistakes(mistakes: pd.DataFrame, title: str, names: Sequence[str]) -> list[Plot | Table]:
    """The recorded images of mistakes, if any, and a table."""
    top = mistakes.head(SHOWN)
    columns: Columns = {
        "Example": list(_images(top)),
        "Class": [names[label] for label in top["label"]],
        "Predicted as": [names[label] for label in top["predicted"]],
        "Wrong in repeats": [
            f"{a} of {b}" for a, b in zip(top["wrong"], top["repeats"], strict=True)
        ],
        "Confidence, %": numbers(top["confidence"], ".1f", 100),
    }
    note = (
        "Misclassified test examples, by mean confidence over the repeats (correct "
        "predictions count as 0). Some may be hard cases or have wrong labels. Example: the end "
        "of its path, or its number in the target."
    )
    if "image" not in mistakes:
        return [Table(columns, title, note)]
    return [_mistakes_plot(mistakes, title, names), Table(columns, note=note)]


def _mistakes_plot(mistakes: pd.DataFrame, title: str, names: Sequence[str]) -> Plot:
    """The first recorded images, each with its class and the predicted class."""
    mistakes = mistakes.dropna(subset="image").head(3 * IN_A_ROW)
    rows = -(-len(mistakes) // IN_A_ROW)
    figure, panels = plots.canvas(1.75 * rows, rows, IN_A_ROW)
    for axes in panels:
        axes.set_axis_off()
    for axes, row in zip(panels, mistakes.to_dict("records"), strict=False):
        axes.imshow(Image.open(io.BytesIO(row["image"])))
        classes = [_fitting(names[row[column]]) for column in ("label", "predicted")]
        axes.set_title(f"{classes[0]}\nas {classes[1]}", fontsize=8.5, pad=3)
    caption = (
        "True and predicted class, in the order of the table. The most confident mistakes of "
        "each repeat are recorded as the network sees them, but with at most 96 pixels a "
        "side."
    )
    return Plot("mistakes", title, figure, caption)


def _fitting(name: str) -> str:
    return plots.escape(name if len(name) <= 18 else f"{name[:17]}…")


def _images(rows: pd.DataFrame) -> pd.Series:
    """File and folder of each example, or its number in the target."""
    if "file" not in rows or rows["file"].isna().any():
        return rows["example"]
    return rows["file"].str.replace("\\", "/").str.split("/").str[-2:].str.join("/")


def _every_metric(values: pd.DataFrame) -> Table:
    cells = list(values["cell"].unique())
    columns: Columns = {"Cell": cells}
    for metric in METRICS.values():
        own = values[values["metric"] == metric.name].set_index("cell").reindex(cells)
        if own["mean"].notna().any():
            head = f"{metric.label[:1].upper()}{metric.label[1:]}{metric.unit}"
            columns[head] = stacked(own["mean"], own["low"], own["high"], *metric.form)
    note = (
        "On test: mean over the repeats and 95% t interval over seeds. Macro F1 and balanced accuracy are "
        "means over the classes; AUROC is one-vs-rest, averaged over the classes. "
        "Lower is better for log loss (nats), Brier score (0 to 2) and expected calibration error (15 bins)."
    )
    return Table(columns, "All metrics", note)
