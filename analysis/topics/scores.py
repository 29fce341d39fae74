"""Test scores of the cells, and which of them is the best."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns

from analysis import compare, plots
from analysis.compare import Findings
from analysis.text.numbers import intervals, numbers, with_interval
from analysis.topics.section import (
    VARIED,
    Columns,
    Plot,
    Section,
    Table,
    cell_styles,
    correction,
    over_seeds,
    repeats_of,
)
from harness.core.errors import counted
from harness.core.selection import METRICS

LONG = 10
"""With more rows than this, they are narrower, so that the whole figure is visible."""


def section(found: Findings) -> Section:
    """Test scores of all cells with their intervals."""
    per_cell = Table(_columns(found), note=_note(found))
    tables = {"summary": found.summary, "examples": found.examples, "trials": found.table.trials}
    return Section("Cells", [*_plots(found), per_cell], answer(found), tables=tables)


def _plots(found: Findings) -> list[Plot]:
    """The score of each cell; for many cells, a matrix of two factors."""
    scored = int(found.summary["mean"].notna().sum())
    if scored > plots.MANY and len(found.info.factors) > 1:
        return [_plot_matrix(found)]
    return [_plot_scores(found)] if scored else []


def _columns(found: Findings) -> Columns:
    """The table of cells: heading -> text of each row."""
    rows, metric = found.summary, found.info.metric
    images = found.examples.set_index("cell").reindex(rows["cell"])
    validation = found.repeats.groupby("cell")["val_score"].mean().reindex(rows["cell"])
    shown: Columns = {
        "Cell": list(rows["cell"]),
        f"Test {metric}, %": numbers(rows["mean"], ".1f", 100),
        "95% interval": intervals(rows["low"], rows["high"], ".1f", 100),
    }
    if len(found.examples):
        shown["Over seeds and examples"] = intervals(images["low"], images["high"], ".1f", 100)
    return shown | {
        "SD over seeds, points": numbers(rows["sd"], ".2f", 100),
        "IQM, %": numbers(rows["iqm"], ".1f", 100),
        "Repeats": list(rows["n"]),
        "Validation, %": numbers(validation, ".1f", 100),
        "Best trial's validation, %": numbers(rows["val_score"], ".1f", 100),
        "Trials complete / failed": [
            f"{a} / {b}" for a, b in zip(rows["tuned"], rows["failed"], strict=True)
        ],
        "Depth trained, %": numbers(rows["trained_depth"], ".0f", 100),
        "Parameters trained, %": numbers(rows["trainable_share"], ".3g", 100),
    }


def _note(found: Findings) -> str:
    images = (
        " Over seeds and examples: 95% interval with the standard error of a bootstrap of the seeds "
        "and, within each resample, of the test examples."
    )
    by_it = ", by which the cell is chosen" * (found.info.selection == "val_score")
    return (
        f"Test {found.info.metric}: mean over the repeats of the chosen configuration, each "
        f"scored once; interval: 95% t over seeds ({VARIED}{correction(found)})."
        f"{images * bool(len(found.examples))} IQM: interquartile mean over seeds. "
        f"Validation: mean over the repeats{by_it}; that of the best trial is a maximum over "
        "trials and therefore biased upwards. Depth trained: share of the layer groups that "
        "train, counted from the head; it and the share of parameters trained are medians over "
        "repeats. – : not measured."
    )


def answer(found: Findings) -> list[str]:
    """The chosen cell with its score; nothing if targets are compared, because their scores are not
    comparable."""
    fit = found.ranking[found.ranking["fits"]]
    if fit.empty:
        return _untested(found)
    if not found.chosen:
        return []
    best, metric = fit.iloc[0], found.info.metric
    row = found.summary.set_index("cell").loc[best["cell"]]
    shown = f"{100 * row['mean']:.1f}% ({_interval(found, best['cell'], row)})"
    if best["by_test"]:
        among = f" among {len(fit)} cells" if len(fit) > 1 else ""
        return [
            (
                f"“{best['cell']}” has the highest mean test {metric}{among}: {shown}. No "
                "validation scores were recorded, so it was chosen by these test scores, and its "
                "own is biased upwards."
            )
        ]
    beside = _beside(found, best["cell"])
    so_far = compare.describe_awaited(found.trials, found.info)
    text = [
        f"{so_far}“{best['cell']}” is recommended: test {metric} {shown}{beside}.",
        _chosen_by(found, fit),
    ]
    leader = compare.best_by_test(fit)
    if leader != best["cell"]:
        lead = 100 * (fit["mean"].max() - best["mean"])
        text.append(
            f"The test {metric} of “{leader}” is {lead:.1f} points higher. It is not chosen, "
            "because the best of several test scores is biased upwards."
        )
    return text


def _beside(found: Findings, cell: str) -> str:
    """If the test classes are unequal: balanced accuracy in addition to accuracy, or the reverse."""
    kept = found.table.predictions
    other = {"accuracy": "balanced_accuracy", "balanced_accuracy": "accuracy"}.get(found.info.score)
    if other is None or kept.empty or not compare.are_unequal(kept[kept["cell"] == cell]):
        return ""
    values = compare.by_metric(found.trials, found.info)
    own = values[(values["cell"] == cell) & (values["metric"] == other)].to_dict("records")
    return f"; {METRICS[other].label} {score(own[0])}" if own else ""


def _interval(found: Findings, cell: str, row: pd.Series) -> str:
    if row["n"] < 2:
        return "one seed: no interval"
    text = f"95% interval {100 * row['low']:.1f} to {100 * row['high']:.1f}, {row['n']} seeds"
    if row["low"] != row["low"]:
        text = f"the same score on each of {row['n']} seeds, so there is no interval over seeds"
    known = found.examples.dropna(subset="low")
    if own := known[known["cell"] == cell].to_dict("records"):
        low, high = 100 * own[0]["low"], 100 * own[0]["high"]
        text += f"; {low:.1f} to {high:.1f} over seeds and test examples"
    return text


def _chosen_by(found: Findings, fit: pd.DataFrame) -> str:
    """How the cell was chosen, and how small the lead of its configuration was."""
    metric, best = found.info.choosing, fit.iloc[0]
    repeats = f"its {best['n']} repeats" if best["n"] > 1 else "its repeat"
    text = f"It has the {metric.best} mean validation {metric.label} over {repeats}, "
    text += metric.text(best["validation"])
    for row in fit[1:2].to_dict("records"):
        text += f"; “{row['cell']}” follows with {metric.text(row['validation'])}"
    unused = "Test scores were not used for the choice, so their selection bias is small."
    return f"{text}. {unused}{_luck(found)}"


def _luck(found: Findings) -> str:
    """How far the choice of its configuration depends on chance, because there are few validation
    examples. The standard error is that of unpaired scores, because predictions on validation examples are
    not recorded: an upper bound if two configurations agree on more examples than by chance. Empty if
    the repeats are of another configuration than the best, and after a race, which repeats several."""
    tuned = compare.completed(found.trials, "tune")
    own = tuned[tuned["cell"] == found.chosen].dropna(subset="val_score")
    images = found.info.folds * compare.split_sizes(own, found.table.predictions).get("val", 0)
    by_accuracy = found.info.selection == "val_score" and found.info.score == "accuracy"
    stale = compare.stale_choices(found.trials, found.info)
    if not by_accuracy or len(own) < 2 or not images or found.chosen in stale:
        return ""
    if found.info.budget is not None:
        return ""
    first, second = own["val_score"].nlargest(2)
    error = 100 * math.sqrt(2 * max(first * (1 - first), 1 / (4 * images)) / images)
    lead = 100 * (first - second)
    if lead > 2 * error:
        return ""
    return (
        f" Its configuration was {lead:.1f} points better than the second best of {len(own)} on "
        f"{images} validation examples. The standard error of this difference, from the "
        f"sampling of these examples, is at most about {error:.1f} points, so the second best "
        "configuration may be as good."
    )


def _untested(found: Findings) -> list[str]:
    """What is known if no repeat has a test score."""
    metric, selection = found.info.choosing, found.info.selection
    tuned = compare.chosen(found.trials, selection)
    counts = found.table.trials["outcome"].value_counts()
    if tuned.empty:
        seen = ", ".join(f"{n} {outcome}" for outcome, n in counts.items()) or "no runs at all"
        return [f"There is no result yet: no trial was completed and scored ({seen})."]
    why = (
        "The study has no repeats"
        if found.info.repeats == 0
        else f"None of the {found.info.repeats} repeats per cell has a test score yet"
    )
    ranked = tuned.sort_values(selection, ascending=metric.less_is_better, kind="stable")
    best = ranked.iloc[0]
    trials = found.summary.loc[found.summary["cell"] == best["cell"], "tuned"].iloc[0]
    return [
        f"{why}, so there are no test scores, and cells cannot be compared.",
        (
            f"The {metric.best} validation {metric.label} in tuning was that of “{best['cell']}”: "
            f"{metric.text(best[selection])}, the best of {trials} trials. The best of several "
            "validation scores is biased upwards, and has no interval."
        ),
    ]


def _plot_scores(found: Findings) -> Plot:
    """One dot per repeat, and the mean with its interval, for each scored cell."""
    style, metric, repeats = cell_styles(found), found.info.metric, found.repeats
    table = found.summary.dropna(subset="mean").reset_index(drop=True)
    figure, (axes,) = plots.canvas(1.1 + (0.5 if len(table) <= LONG else 0.36) * len(table))
    for i, row in enumerate(table.to_dict("records")):
        look = style[row["cell"]]
        scores = repeats.loc[repeats["cell"] == row["cell"], "test_score"].dropna()
        spread = np.linspace(-0.09, 0.09, len(scores)) if len(scores) > 1 else [0.0]
        axes.plot(scores, i + 0.2 + np.asarray(spread), ls="", marker=look.marker, ms=4,
                  color=look.color, alpha=0.55, mew=0)  # fmt: skip
        mean = plots.draw_interval(axes, i - 0.1, row["mean"], (row["low"], row["high"]), look)
        plots.annotate(mean, f"{row['cell']}: {score(row)}")
    plots.name_rows(axes, list(table["cell"]))
    plots.percent(axes, "x", f"Test {metric}")
    caption = (
        f"Small markers: one repeat each ({repeats_of(found)} per cell). Large marker and "
        f"bar: mean and interval. {over_seeds(found)}"
    )
    return Plot("accuracy", f"Test {metric}", figure, caption)


def score(row: Mapping[Hashable, Any]) -> str:
    """Mean and interval in print."""
    return with_interval(row["mean"], row["low"], row["high"], ".1%")


def _plot_matrix(found: Findings) -> Plot:
    """Mean test score of each pair of values of two factors (averaged over the others) in percent; the
    darker, the further below the best of its column."""
    factors, metric, n = found.info.factors, found.info.metric, repeats_of(found)
    row = next(name for name in factors if name != "target")
    column = "target" if "target" in factors else list(factors)[-1]
    wide = 100 * found.summary.pivot_table(index=row, columns=column, values="mean", sort=False)
    figure, (axes,) = plots.canvas(1.3 + 0.26 * len(wide))
    small = len(wide.columns) > 8
    sns.heatmap(
        wide.max() - wide, ax=axes, annot=wide, fmt=".0f" if small else ".1f", cmap="cividis_r",
        vmin=0, robust=True, linewidths=0.5, annot_kws={"fontsize": 7 if small else 9},
        cbar_kws={"label": f"{metric[:1].upper() + metric[1:]} below the best of the column (points)"},
    )  # fmt: skip
    axes.set_xticklabels(
        [plots.escape(str(c)) for c in wide.columns], rotation=45, ha="right", fontsize=8
    )
    axes.set_yticklabels([plots.escape(str(r)) for r in wide.index], rotation=0, fontsize=8)
    axes.set_xlabel(plots.escape(column))
    axes.set_ylabel(plots.escape(row))
    averaged = ", averaged over the other factors" * (len(factors) > 2)
    apart = " Only cells of one column are comparable." * (column == "target")
    caption = (
        f"Numbers: mean test {metric} in %{averaged}. Colour: points below the best value of the "
        f"column.{apart} White: no score. {counted(n, 'scored run')} per cell; no interval."
    )
    return Plot("matrix", f"Test {metric} by {row} and {column}", figure, caption)
