"""Accuracy on test images that are not like the training images.

    python -c "from analysis import load_study, topics; t = load_study('robustness'); \\
               print(topics.shifts.shifted(t.trials, t.info.factors))"

A shifted test set is scored by the same network as the plain one, so a loss is a difference within one
repeat, and two cells' losses are paired on their seed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import pandas as pd
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from analysis.compare import Findings, cells, completed, mean_interval
from analysis.compare.runs import CONFIDENCE
from analysis.plots import INK, Style, canvas, name_rows, percent
from analysis.plots import escape as plain
from analysis.text.numbers import in_seeds, intervals, listed, number, numbers, quoted, span
from analysis.topics.section import (
    Columns,
    Plot,
    Section,
    Table,
    cell_styles,
    over_seeds,
    repeats_of,
)
from harness.core.spec import SHIFTS

PLAIN = "plain"
PREFIX = "test_accuracy."


def section(found: Findings) -> Section:
    """Scores on every test set and what is lost; empty when no repeat was scored on a shifted set."""
    factors, metric = found.info.factors, "accuracy"
    folds = found.info.folds
    table = shifted(found.trials, factors, folds)
    if table.empty:
        return Section("Shifted test sets")
    losses = shift_losses(found.trials, factors, folds)
    pairs = loss_pairs(found.trials, list(losses["cell"]), folds)
    caption = (
        f"Mark and bar: mean and interval of {repeats_of(found)} repeats on each test set; hollow: the "
        "same cell's mean on the plain set. Each repeat is scored on all sets by the same network. "
        f"{over_seeds(found)}"
    )
    figure = plot_shifted(table, cell_styles(found), metric)
    name = f"{metric[:1].upper() + metric[1:]} on shifted test sets"
    parts: list[Plot | Table] = [Plot("shifted", name, figure, caption), _table(table, losses)]
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
        columns[f"Lost, {name.replace('_', ' ')}"] = _lost(own, "loss", "loss_low", "loss_high")
    columns["Lost, mean of shifts"] = _lost(losses, "loss", "low", "high")
    return Table(
        columns,
        note="Points of accuracy that a repeat loses from the plain test set, mean and 95% t interval "
        "over seeds (training draws, not test examples); least mean loss first. Negative: it gains. A "
        "cell that starts lower has less to lose. Two cells are told apart in the answer when the t "
        "interval of their paired difference in mean loss is clear of 0 after Bonferroni over all pairs "
        "of cells.",
    )


def _lost(rows: pd.DataFrame, value: str, low: str, high: str) -> list[object]:
    """Points with the interval in a line of its own."""
    ends = intervals(rows[low], rows[high], ".1f")
    return [
        Markup("{}<br><small>{}</small>").format(number(points, ".1f"), interval)
        if interval != "–"
        else escape(number(points, ".1f"))
        for points, interval in zip(rows[value], ends, strict=True)
    ]


def answer(table: pd.DataFrame, losses: pd.DataFrame, pairs: pd.DataFrame) -> list[str]:
    """Which cell loses least and which most when the test images are shifted, if that can be told."""
    if len(losses) < 2:
        return []
    names = [name for name in table["test_set"].unique() if name != "plain"]
    under = f"{len(names)} shifted test sets" if len(names) > 1 else f"the {names[0]} test set"
    least, most = losses.iloc[0], losses.iloc[-1]
    n = span(losses["n"])
    ends = pairs[(pairs["cell"] == least["cell"]) & (pairs["reference"] == most["cell"])].iloc[0]
    if not ends["told_apart"]:
        return [
            f"What the cells lose on {under}, on average from {least['loss']:.1f} points "
            f"(“{least['cell']}”) to {most['loss']:.1f} (“{most['cell']}”), can't be told apart with "
            f"{in_seeds(n)}."
        ]
    text = (
        f"On {under} “{least['cell']}” loses least of its accuracy on average, "
        f"{_points(least)}, and “{most['cell']}” most, {_points(most)} ({in_seeds(n)})."
    )
    unclear = pairs[~pairs["told_apart"]]
    for name, end, other in (("least", "cell", "reference"), ("most", "reference", "cell")):
        rivals = unclear.loc[unclear[end] == ends[end], other]
        if len(rivals):
            text += f" Not told apart from the one that loses {name}: {listed(quoted(rivals))}."
    return [text]


def _points(row: pd.Series) -> str:
    return f"{row['loss']:.1f} points ({row['low']:.1f} to {row['high']:.1f})"


def _scores(trials: pd.DataFrame) -> pd.DataFrame:
    """The compared repeats: cell, seed and the accuracy on each test set by its name, plain first;
    no test sets at all when none is shifted."""
    repeats = completed(trials, "repeat")
    there = [c for c in map(str, repeats) if c.startswith(PREFIX) and repeats[c].notna().any()]
    order = {f"{PREFIX}{name}": i for i, name in enumerate(SHIFTS)}
    shifts = sorted(there, key=lambda column: (order.get(column, len(order)), column))
    names = {c: c.removeprefix(PREFIX) for c in shifts}
    if shifts:
        names = {"test_accuracy": PLAIN, **names}
    return repeats[["cell", "seed", *names]].rename(columns=names)


def shifted(
    trials: pd.DataFrame, factors: Mapping[str, Sequence[str]], folds: int = 1
) -> pd.DataFrame:
    """Accuracy of each cell on each test set and what it loses there.

    Returns:
        One row per scored cell and test set ("plain" first): cell, test_set, n repeats, mean, low, high
        (accuracy, t interval over seeds), loss, loss_low, loss_high (points by which the same
        repeats fall from the plain set, t interval over seeds; NaN on the plain set itself).
        Empty when no repeat was scored on a shifted set.
    """
    scores = _scores(trials)
    rows = []
    for cell, name in itertools.product(cells(factors)["cell"], scores.columns[2:]):
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
    """Points lost from the plain set, averaged over the shifts: a row per seed, a column per cell. A
    repeat that misses one of the sets has none, or averages of different sets would be compared."""
    scores = _scores(trials)
    shifts = list(scores.columns[3:])
    if not shifts:
        return pd.DataFrame()
    lost = 100 * (scores[PLAIN] - scores[shifts].mean(axis="columns", skipna=False))
    return scores.assign(lost=lost).pivot(index="seed", columns="cell", values="lost")


def shift_losses(
    trials: pd.DataFrame, factors: Mapping[str, Sequence[str]], folds: int = 1
) -> pd.DataFrame:
    """What each cell loses from the plain set on average over the shifts, the least first.

    Returns:
        cell, n repeats, loss (points), low, high (t interval over seeds).
    """
    lost = _mean_losses(trials)
    rows = []
    for cell in (c for c in cells(factors)["cell"] if c in lost and lost[c].notna().any()):
        loss, _, low, high = mean_interval(lost[cell], folds=folds)
        n = int(lost[cell].notna().sum())
        rows.append({"cell": cell, "n": n, "loss": loss, "low": low, "high": high})
    table = pd.DataFrame(rows, columns=["cell", "n", "loss", "low", "high"])
    return table.sort_values("loss", kind="stable", ignore_index=True)


def loss_pairs(trials: pd.DataFrame, order: Sequence[str], folds: int = 1) -> pd.DataFrame:
    """How much more one cell loses on average over the shifts than another, for every pair.

    Args:
        trials: as loaded.
        order: cells by their mean loss, the least first.
        folds: see `compare.mean_interval`.

    Returns:
        cell, reference (later in `order`), n shared seeds, difference (points that the reference
        loses more), low, high (paired t interval over seeds at 1 - .05 / number of pairs, after
        Bonferroni: all of them hold at once, so the extremes may be picked afterwards), and
        told_apart: whether the interval is clear of 0.
    """
    lost = _mean_losses(trials)
    pairs = list(itertools.combinations(order, 2))
    level, rows = 1 - (1 - CONFIDENCE) / max(1, len(pairs)), []
    for cell, reference in pairs:
        more = (lost[reference] - lost[cell]).dropna()
        mean, _, low, high = mean_interval(more, level, folds=folds)
        apart = not math.isnan(low) and (low > 0 or high < 0)
        rows.append(
            {"cell": cell, "reference": reference, "n": len(more), "difference": mean}
            | {"low": low, "high": high, "told_apart": apart}
        )
    columns = ["cell", "reference", "n", "difference", "low", "high", "told_apart"]
    return pd.DataFrame(rows, columns=columns).astype({"told_apart": bool})


def plot_shifted(
    table: pd.DataFrame, style: Mapping[str, Style], metric: str = "accuracy"
) -> Figure:
    """A panel per test set with the mean and interval of each cell; a hollow mark and a thin line
    show where the cell stood on the plain test set."""
    cells = [name for name in style if name in set(table["cell"])]
    sets = list(table["test_set"].unique())
    records = {(row["cell"], row["test_set"]): row for row in table.to_dict("records")}
    count = math.ceil(len(sets) / 2)
    figure, panels = canvas(0.5 + count * (0.45 + 0.23 * len(cells)), count, 2)
    for panel in panels[len(sets) :]:
        panel.set_visible(False)
    for k, (name, panel) in enumerate(zip(sets, panels, strict=False)):
        panel.set_title(plain(name.replace("_", " ")), fontsize=10, color=INK, loc="left")
        for i, cell in enumerate(cells):
            if (cell, name) not in records:
                continue
            row, look = records[cell, name], style[cell]
            start = records.get((cell, sets[0]), row)["mean"]
            if name != sets[0]:
                panel.plot([start, row["mean"]], [i, i], color=look.color, lw=0.8, zorder=1)
                panel.plot(start, i, marker=look.marker, ms=4, color=look.color, mfc="white")
            panel.plot([row["low"], row["high"]], [i, i], color=look.color, lw=2.5)
            panel.plot(
                row["mean"], i, marker=look.marker, ms=5.5, color=look.color, mec="white", mew=0.6
            )
        name_rows(panel, cells, 20)
        percent(panel, "x", "")
        panel.set_xlabel("")
        panel.tick_params(labelbottom=k + 2 >= len(sets))
    figure.supxlabel(f"Test {metric} (%)", fontsize=10)
    return figure
