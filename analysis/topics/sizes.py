"""Test scores by the size of the target, and where two lines cross.

    python -c "from analysis import load_study, topics; t = load_study('target_size'); \\
               print(topics.sizes.crossings(t.trials, t.info.factors))"
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis import compare
from analysis.compare import Findings, completed, mean_interval, size_lines
from analysis.compare.runs import CONFIDENCE
from analysis.plots import MANY, Style, add_key, canvas, crowded, name_ends, percent, styles
from analysis.text.numbers import in_seeds, listed, number, numbers, short
from analysis.topics.section import OVER_SEEDS, Plot, Section, Table, repeats_of

RESAMPLES = 2000
LINES = 24
"""Lines above which their crossings are not looked for: there would be hundreds."""
SHOWN = 4
"""Crossings that the answer names; the table has them all."""
SURE = 0.95
"""Share of resamples for a crossing to be taken as there."""
Change = tuple[float, bool]
"""Where a difference changes sign, and whether it rises there."""


def section(found: Findings) -> Section:
    """Scores by size and the crossings of the lines; empty without a factor of sizes."""
    factors, metric = found.info.factors, found.info.metric
    factor, lines = compare.size_factor(factors), size_lines(factors)
    title = f"By {factor or 'size'}"
    if factor is None:
        return Section(title)
    table = by_size(found.trials, factors)
    n_lines = lines["line"].nunique()
    crossed = crossings(found.trials if n_lines <= LINES else found.trials[:0], factors)
    parts: list[Plot | Table | str | list[str]] = []
    if n_lines <= MANY and table["size"].nunique() > 1:
        scores = found.repeats[["cell", "test_accuracy"]].merge(lines, on="cell")
        figure = plot_by_size(table, scores, factor, styles(list(lines["line"].unique())), metric)
        caption = (
            f"Small marks: one repeat each ({repeats_of(found)} per cell). Large marks: means; upright "
            "bars: intervals. Log scale; lines stand a little apart so that bars do not hide each "
            f"other. {OVER_SEEDS}"
        )
        name = f"{metric[:1].upper() + metric[1:]} by {factor}"
        parts.append(Plot("by_size", name, figure, caption))
    if len(crossed):
        parts += _crossings(crossed, factor)
    tables = {"by_size": table, "crossings": crossed}
    return Section(title, parts, answer(table, crossed, factor), tables=tables)


def _crossings(rows: pd.DataFrame, factor: str) -> list[Table | list[str]]:
    records = rows.to_dict("records")
    shown = Table(
        {
            f"Ahead at small {factor}": list(rows["line"]),
            "Other": list(rows["other"]),
            "Seeds": list(rows["n"]),
            "Sign changes": list(rows["changes"]),
            f"Crossing, {factor}": [
                short(row["size"]) if row["changes"] else "none seen" for row in records
            ],
            "95% interval": [crossing_interval(row) for row in records],
            "Resamples that cross, %": numbers(rows["share_crossing"], ".0f", 100),
        },
        "Where lines cross",
        "A crossing is where the mean paired difference of two lines changes sign, linear in log "
        f"{factor} between the sizes tried; the first one if there are several. Interval: percentile "
        "bootstrap, 2000 resamples of the seeds; a resample that does not cross counts as crossing "
        "beyond the sizes tried. With few seeds such an interval is too narrow. A line that is ahead in "
        "the mean need not be told apart from the other.",
    )
    return [shown, [crossing(row, factor) for row in records if row["changes"]]]


def answer(table: pd.DataFrame, crossed: pd.DataFrame, factor: str) -> list[str]:
    """Which line is ahead at which size, and where the lines cross."""
    if crossed.empty:
        return []
    best = table.loc[table.groupby("size")["mean"].idxmax()].sort_values("size")
    run = (best["line"] != best["line"].shift()).cumsum()
    leaders = [
        f"“{own['line'].iloc[0]}” at {listed([short(size) for size in own['size']])}"
        for _, own in best.groupby(run, sort=False)
    ]
    text = f"Highest mean by {factor}: {'; '.join(leaders)}."
    seen = crossed.dropna(subset="size").sort_values(
        "share_crossing", ascending=False, kind="stable"
    )
    for row in seen.head(SHOWN).to_dict("records"):
        text += f" {crossing(row, factor)}"
    if len(seen) > SHOWN:
        text += f" {len(seen) - SHOWN} more pairs of lines cross (see the table)."
    if rest := len(crossed) - len(seen):
        low, high = crossed["smallest"].min(), crossed["largest"].max()
        pairs = f"{rest} {'other ' * bool(len(seen))}pair{'s' * (rest != 1)} of lines"
        text += f" No crossing seen for {pairs} between {short(low)} and {short(high)} {factor}."
    return [text]


def crossing(row: Mapping[Hashable, Any], factor: str) -> str:
    """One row of `crossings` in plain words."""
    a, b = f"“{row['line']}”", f"“{row['other']}”"
    share = row["share_crossing"]
    if row["changes"] == 0:
        drawn = f"; {number(share, '.0%')} of resamples cross" if share == share else ""
        return (
            f"No crossing seen between {short(row['smallest'])} and {short(row['largest'])} {factor}: "
            f"the mean of {a} is nowhere below that of {b} ({in_seeds(row['n'])}{drawn})."
        )
    more = f" It is the first of {row['changes']} sign changes." if row["changes"] > 1 else ""
    if share != share:
        return f"{a} leads {b} up to about {short(row['size'])} {factor} (one seed: no interval).{more}"
    doubt = "" if share >= SURE else ", so it may not exist"
    return (
        f"{a} leads {b} up to about {short(row['size'])} {factor} (95% interval "
        f"{crossing_interval(row)}, {in_seeds(row['n'])}; {share:.0%} of resamples cross{doubt}).{more}"
    )


def crossing_interval(row: Mapping[Hashable, Any]) -> str:
    """The interval of a crossing; an end beyond the sizes that were tried is said to be there."""
    if row["low"] != row["low"]:
        return "–"
    ends = [
        f"below {short(row['smallest'])}"
        if end == 0
        else f"above {short(row['largest'])}"
        if end == math.inf
        else short(end)
        for end in (row["low"], row["high"])
    ]
    return " to ".join(dict.fromkeys(ends))


def by_size(trials: pd.DataFrame, factors: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """Test accuracy of each line at each size.

    Returns:
        One row per scored cell: cell, line, size, n, mean, low, high (t interval over seeds).
    """
    repeats = completed(trials, "repeat")
    rows = []
    for row in size_lines(factors).to_dict("records"):
        scores = repeats.loc[repeats["cell"] == row["cell"], "test_accuracy"].dropna()
        mean, _, low, high = mean_interval(scores)
        rows.append({**row, "n": len(scores), "mean": mean, "low": low, "high": high})
    columns = ["cell", "line", "size", "n", "mean", "low", "high"]
    return pd.DataFrame(rows, columns=columns).dropna(subset="mean").reset_index(drop=True)


def crossings(trials: pd.DataFrame, factors: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """Where, as the size grows, one line overtakes another: for each pair of lines, the sizes at
    which the mean of their paired differences changes sign, linear in log size in between.

    Returns:
        One row per pair with at least two shared sizes: line (ahead at the smaller sizes), other,
        n shared seeds, smallest and largest shared size, changes (sign changes seen), size (of the
        first one; NaN when there is none), low, high (95% percentile bootstrap interval of it:
        resamples seeds, every size of both lines together; 0 and inf where it reaches beyond the
        sizes), share_crossing (of the resamples, those with any sign change). The interval and
        the share are NaN with fewer than two seeds.
    """
    lines = size_lines(factors)
    scored = completed(trials, "repeat").merge(lines, on="cell", validate="many_to_one")
    table = scored.pivot(index="seed", columns=["line", "size"], values="test_accuracy")
    names = [n for n in lines["line"].unique() if n in table.columns.get_level_values("line")]
    rows = []
    for a, b in itertools.combinations(names, 2):
        points = 100 * (table[a] - table[b]).sort_index(axis="columns")
        points = points.dropna(axis="columns", how="all").dropna(axis="index", how="all")
        if points.shape[1] < 2:
            continue
        rows.append(_crossing(a, b, points))
    columns = ["line", "other", "n", "smallest", "largest", "changes", "size", "low", "high"]
    return pd.DataFrame(rows, columns=[*columns, "share_crossing"])


def _crossing(a: str, b: str, points: pd.DataFrame) -> dict[str, object]:
    """The row of one pair. `points` (seeds x sizes): how far line `a` is above `b`, NaN if unknown."""
    values = points.to_numpy(dtype=float)
    sizes = np.log(points.columns.to_numpy(dtype=float))
    n = len(values)
    means = _weighted_means(np.ones((1, n)), values)[0]
    seen = sign_changes(sizes, means)
    row: dict[str, object] = {"n": n, "smallest": points.columns[0], "largest": points.columns[-1]}
    ahead = (a, b) if _first_sign(means) >= 0 else (b, a)
    row |= {"line": ahead[0], "other": ahead[1], "changes": len(seen)}
    row |= {"size": math.exp(seen[0][0]) if seen else math.nan}
    row |= dict.fromkeys(("low", "high", "share_crossing"), math.nan)
    if n < 2:
        return row
    weights = np.random.default_rng(0).multinomial(n, [1 / n] * n, size=RESAMPLES)
    drawn = _weighted_means(weights, values)
    changes = [sign_changes(sizes, line) for line in drawn]
    row["share_crossing"] = float(np.mean([bool(c) for c in changes]))
    if seen:
        found = [_place(c, line, seen[0][1]) for c, line in zip(changes, drawn, strict=True)]
        known = np.sort([place for place in found if not math.isnan(place)])
        tail = (1 - CONFIDENCE) / 2
        for name, share in (("low", tail), ("high", 1 - tail)):
            row[name] = float(np.exp(known[max(0, math.ceil(share * len(known)) - 1)]))
    return row


def _weighted_means(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Means over seeds (draws x sizes) of `values` (seeds x sizes, NaN if unknown), each seed counted
    as often as `weights` (draws x seeds) says; rounded, so that equal accuracies differ by 0."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        means: np.ndarray = (weights @ np.where(known, values, 0.0)) / (weights @ known)
    return means.round(9)


def sign_changes(
    sizes: Sequence[float] | np.ndarray, means: Sequence[float] | np.ndarray
) -> list[Change]:
    """Every place on the axis of `sizes` at which the broken line through `means` changes sign.

    Where it only touches 0 it does not change; where it lies on 0 between two signs the first such
    size is the place. NaN means are passed over.
    """
    known = [(float(x), float(y)) for x, y in zip(sizes, means, strict=True) if not math.isnan(y)]
    found: list[Change] = []
    last = None
    for i, (x, y) in enumerate(known):
        if y == 0:
            continue
        if last is not None and (known[last][1] > 0) != (y > 0):
            x0, y0 = known[last]
            flat = i - last > 1
            found.append((known[last + 1][0] if flat else x0 + (x - x0) * y0 / (y0 - y), y > 0))
        last = i
    return found


def _first_sign(means: np.ndarray) -> float:
    signs = np.sign(means[~np.isnan(means)])
    return float(next((s for s in signs if s), 0.0))


def _place(changes: Sequence[Change], means: np.ndarray, rising: bool) -> float:
    """Log size at which one resample changes sign in the direction that was seen. One that keeps its
    first sign throughout crosses beyond the largest size (inf), one that has the last from the start
    before the smallest (-inf); NaN for one that only changes the other way round."""
    for place, rises in changes:
        if rises == rising:
            return place
    if changes or not _first_sign(means):
        return math.nan
    return -math.inf if (_first_sign(means) > 0) == rising else math.inf


def plot_by_size(
    table: pd.DataFrame,
    repeats: pd.DataFrame,
    factor: str,
    style: Mapping[str, Style],
    metric: str = "accuracy",
) -> Figure:
    """Mean test accuracy with its interval against size, a line per combination of the other
    factors, and a dot per repeat (`repeats`: line, size, test_accuracy). Lines stand a little apart."""
    figure, (axes,) = canvas(4.6)
    names = [name for name in style if name in set(table["line"])]
    sizes = sorted(table["size"].unique())
    step = min(np.diff(np.log(sizes)).min() / 3, 0.25) / max(1, len(names) - 1)
    beside = float((sizes[-1] / sizes[0]) ** 0.013)  # dots would be lost on the interval's bar
    ends = []
    for i, name in enumerate(names):
        look, aside = style[name], float(np.exp(step * (i - (len(names) - 1) / 2)))
        own = table[table["line"] == name].sort_values("size")
        dots = repeats[repeats["line"] == name]
        axes.plot(dots["size"] * aside * beside, dots["test_accuracy"], ls="", marker=look.marker, ms=3,
                  color=look.color, alpha=0.45, mew=0)  # fmt: skip
        at = own["size"] * aside
        axes.vlines(at, own["low"], own["high"], color=look.color, lw=2)
        axes.plot(at, own["mean"], color=look.color, lw=1.4, marker=look.marker, ms=7, mec="white")
        ends.append((float(at.iloc[-1]), float(own["mean"].iloc[-1]), name))
    axes.set_xscale("log")
    axes.set_xticks([], minor=True)
    axes.set_xticks(sizes, [f"{size:g}" for size in sizes])
    axes.set_xlabel(f"{factor} (log scale)")
    percent(axes, "y", f"Test {metric}")
    if len(names) == 1:
        return figure
    if crowded(names):
        add_key(figure, names, style)
    else:
        name_ends(axes, ends, style)
    return figure
