"""Accuracy on test examples that differ from the training examples.

    python -c "from analysis import load_study, topics; t = load_study('robustness'); \\
               print(topics.shifts.shifted(t.trials, t.info))"

The same network is scored on shifted test sets and on the plain one, so a loss is a difference within one
repeat, and the losses of two cells are paired by seed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import pandas as pd

from analysis import plots
from analysis.compare import Findings, cells, completed, mean_interval
from analysis.compare.contrasts import paired_test
from analysis.compare.runs import mean_intervals
from analysis.load import Info
from analysis.text.numbers import in_seeds, listed, numbers, quoted, span, with_interval
from analysis.topics.section import (
    VARIED,
    Columns,
    Parts,
    Plot,
    Section,
    Table,
    cell_styles,
    over_seeds,
    repeats_of,
    stacked,
)
from harness.core.spec import SHIFTS

PLAIN = "plain"
PREFIX = "test_accuracy."


def section(found: Findings) -> Section:
    """Scores on all test sets, and losses; empty if no repeat was scored on a shifted set."""
    table = shifted(found.trials, found.info)
    if table.empty:
        return Section("Shifted test sets")
    losses = shift_losses(found.trials, found.info)
    pairs = loss_pairs(found.trials, list(losses["cell"]), found.info.folds)
    parts: Parts = [_plot(found, table), _table(table, losses)]
    tables = {"shifted": table, "losses": losses, "loss_pairs": pairs}
    return Section("Shifted test sets", parts, answer(table, losses, pairs), tables=tables)


def _table(table: pd.DataFrame, losses: pd.DataFrame) -> Table:
    sets = list(table["test_set"].unique())
    known = table.set_index(["test_set", "cell"])
    columns: Columns = {
        "Cell": list(losses["cell"]),
        "Repeats": list(losses["n"]),
        "Plain, %": numbers(known.loc[PLAIN].reindex(losses["cell"])["mean"], ".1f", 100),
    }
    for name in sets[1:]:
        own = known.loc[name].reindex(losses["cell"])
        lost = stacked(own["loss"], own["loss_low"], own["loss_high"], ".1f")
        columns[f"Drop, {name.replace('_', ' ')}"] = lost
    columns["Drop, mean of shifts"] = stacked(losses["loss"], losses["low"], losses["high"], ".1f")
    return Table(
        columns,
        note=(
            "Accuracy on the plain test set minus that on a shifted one, in points: mean over "
            f"the repeats and 95% t interval over seeds ({VARIED}), smallest mean drop first. "
            "Negative values are gains. A cell with a lower accuracy has less to lose. Two cells "
            "differ significantly in mean drop if the paired t interval of the difference "
            "excludes 0 (Bonferroni over all pairs of cells)."
        ),
    )


def answer(table: pd.DataFrame, losses: pd.DataFrame, pairs: pd.DataFrame) -> list[str]:
    """The cells that lose least and most on shifted test examples, if they can be distinguished."""
    if len(losses) < 2:
        return []
    names = [name for name in table["test_set"].unique() if name != "plain"]
    under = f"{len(names)} shifted test sets" if len(names) > 1 else f"the {names[0]} test set"
    least, most = losses.iloc[0], losses.iloc[-1]
    n = span(losses["n"])
    ends = pairs[(pairs["cell"] == least["cell"]) & (pairs["reference"] == most["cell"])].iloc[0]
    if not ends["significant"]:
        return [
            (
                f"The mean drops in accuracy on {under}, from {least['loss']:.1f} points "
                f"(“{least['cell']}”) to {most['loss']:.1f} (“{most['cell']}”), are not "
                f"significantly different with {in_seeds(n)}."
            )
        ]
    text = (
        f"On {under}, “{least['cell']}” loses the least accuracy on average, {_lost(least)}, and "
        f"“{most['cell']}” the most, {_lost(most)} (95% intervals, {in_seeds(n)})."
    )
    unclear = pairs[~pairs["significant"]]
    for name, end, other in (("least", "cell", "reference"), ("most", "reference", "cell")):
        rivals = unclear.loc[unclear[end] == ends[end], other]
        if len(rivals):
            text += (
                f" Not significantly different from the cell that loses the {name}: "
                f"{listed(quoted(rivals))}."
            )
    return [text]


def _lost(row: pd.Series) -> str:
    return with_interval(row["loss"], row["low"], row["high"], ".1f", unit=" points")


def _scores(trials: pd.DataFrame) -> pd.DataFrame:
    """The compared repeats: cell, seed and the accuracy on each test set by its name, plain first; without
    test sets if none is shifted."""
    repeats = completed(trials, "repeat")
    there = [c for c in map(str, repeats) if c.startswith(PREFIX) and repeats[c].notna().any()]
    order = {f"{PREFIX}{name}": i for i, name in enumerate(SHIFTS)}
    shifts = sorted(there, key=lambda column: (order.get(column, len(order)), column))
    names = {c: c.removeprefix(PREFIX) for c in shifts}
    if shifts:
        names = {"test_accuracy": PLAIN, **names}
    return repeats[["cell", "seed", *names]].rename(columns=names)


def shifted(trials: pd.DataFrame, info: Info) -> pd.DataFrame:
    """Accuracy of each cell on each test set, and its loss there.

    Returns:
        One row per scored cell and test set ("plain" first): cell, test_set, n (repeats), mean, low, high
        (accuracy, t interval over seeds), loss, loss_low, loss_high (points by which the same repeats are
        worse than on the plain set, t interval over seeds; NaN for the plain set). Empty if no repeat was
        scored on a shifted set.
    """
    scores, folds = _scores(trials), info.folds
    rows = []
    for cell, name in itertools.product(cells(info.factors)["cell"], scores.columns[2:]):
        own = scores[scores["cell"] == cell]
        n = int(own[name].notna().sum())
        if not n:
            continue
        mean, _, low, high = mean_interval(own[name], within=(0, 1), folds=folds)
        lost = [] if name == PLAIN else 100 * (own[PLAIN] - own[name])
        loss, _, loss_low, loss_high = mean_interval(lost, folds=folds)
        rows.append(
            {"cell": cell, "test_set": name, "n": n, "mean": mean, "low": low, "high": high}
            | {"loss": loss, "loss_low": loss_low, "loss_high": loss_high}
        )
    columns = ["cell", "test_set", "n", "mean", "low", "high", "loss", "loss_low", "loss_high"]
    return pd.DataFrame(rows, columns=columns)


def _mean_losses(trials: pd.DataFrame) -> pd.DataFrame:
    """Loss in points from the plain set, averaged over the shifts: one row per seed, one column per cell. A
    repeat that lacks one of the sets has no value, because averages over different sets are not
    comparable."""
    scores = _scores(trials)
    shifts = list(scores.columns[3:])
    if not shifts:
        return pd.DataFrame()
    lost = 100 * (scores[PLAIN] - scores[shifts].mean(axis="columns", skipna=False))
    return scores.assign(lost=lost).pivot(index="seed", columns="cell", values="lost")


def shift_losses(trials: pd.DataFrame, info: Info) -> pd.DataFrame:
    """Mean loss of each cell over the shifts, smallest first.

    Returns:
        cell, n (repeats), loss (points), low, high (t interval over seeds).
    """
    lost = _mean_losses(trials).reindex(columns=cells(info.factors)["cell"])
    known = lost.melt(var_name="cell", value_name="loss").dropna()
    means = mean_intervals(known, "loss", ["cell"], folds=info.folds).drop(columns="sd")
    means = means.rename(columns={"mean": "loss"})
    return means.sort_values("loss", kind="stable", ignore_index=True)


def loss_pairs(trials: pd.DataFrame, order: Sequence[str], folds: int = 1) -> pd.DataFrame:
    """Difference of the mean losses of two cells, for all pairs.

    Args:
        trials: as loaded.
        order: cells by their mean loss, smallest first.
        folds: see `compare.mean_interval`.

    Returns:
        cell, reference (later in `order`), n (shared seeds), difference (points that the reference loses
        more), low, high (paired t interval over seeds at 1 - .05 / number of pairs (Bonferroni): all hold
        simultaneously, so the extremes may be selected), and told_apart: whether the interval excludes 0.
    """
    lost = _mean_losses(trials)
    pairs = list(itertools.combinations(order, 2))
    rows = []
    for cell, reference in pairs:
        more = (lost[reference] - lost[cell]).dropna().to_numpy()
        rows.append(
            {"cell": cell, "reference": reference} | paired_test(more, len(pairs), 0.0, folds)
        )
    table = pd.DataFrame(
        rows, columns=["cell", "reference", "n", "difference", "low", "high", "verdict"]
    )
    table["significant"] = table.pop("verdict").isin(["higher", "lower"])
    return table


def _plot(found: Findings, table: pd.DataFrame) -> Plot:
    """One panel per test set with the mean and interval of each cell; a hollow marker and a thin line show
    the mean of the cell on the plain test set."""
    style = cell_styles(found)
    cells = [name for name in style if name in set(table["cell"])]
    sets = list(table["test_set"].unique())
    records = {(row["cell"], row["test_set"]): row for row in table.to_dict("records")}
    count = math.ceil(len(sets) / 2)
    figure, panels = plots.canvas(0.5 + count * (0.45 + 0.23 * len(cells)), count, 2)
    for panel in panels[len(sets) :]:
        panel.set_visible(False)
    for k, (name, panel) in enumerate(zip(sets, panels, strict=False)):
        panel.set_title(
            plots.escape(name.replace("_", " ")), fontsize=10, color=plots.INK, loc="left"
        )
        for i, cell in enumerate(cells):
            if (cell, name) not in records:
                continue
            row, look = records[cell, name], style[cell]
            start = records.get((cell, sets[0]), row)["mean"]
            if name != sets[0]:
                panel.plot([start, row["mean"]], [i, i], color=look.color, lw=0.8, zorder=1)
                panel.plot(start, i, marker=look.marker, ms=4, color=look.color, mfc="white")
            plots.draw_interval(panel, i, row["mean"], (row["low"], row["high"]), look, 5.5)
        plots.name_rows(panel, cells, 20)
        plots.percent(panel, "x", "")
        panel.set_xlabel("")
        panel.tick_params(labelbottom=k + 2 >= len(sets))
    figure.supxlabel("Test accuracy (%)", fontsize=10)
    caption = (
        f"Marker and bar: mean and interval of {repeats_of(found)} repeats on each test set; "
        "hollow marker: the mean of the same cell on the plain set. Each repeat is scored on "
        f"all sets with the same network. {over_seeds(found)}"
    )
    return Plot("shifted", "Accuracy on shifted test sets", figure, caption)
