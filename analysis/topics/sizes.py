"""Test scores by the size of the target, and where lines cross.

    python -c "from analysis import load_study, topics; t = load_study('target_size'); \\
               print(topics.sizes.crossings(t.trials, t.info))"
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from analysis import compare, plots
from analysis.compare import Findings, completed, size_lines
from analysis.compare.runs import CONFIDENCE, mean_intervals
from analysis.load import Info
from analysis.text.numbers import in_seeds, listed, short
from analysis.topics.section import Parts, Plot, Section, Table, over_seeds, repeats_of
from harness.core.errors import counted
from harness.core.folds import independent_runs

LINES = 24
"""With more lines than this, crossings are not computed, because there would be hundreds."""
SHOWN = 4
"""Crossings that the answer names; the table has all of them."""


def section(found: Findings) -> Section:
    """Scores by size and the crossings of the lines; empty without a factor of sizes."""
    factors = found.info.factors
    factor, lines = compare.size_factor(factors), size_lines(factors)
    title = f"By {factor or 'size'}"
    if factor is None:
        return Section(title)
    table = by_size(found.trials, found.info)
    n_lines = lines["line"].nunique()
    few = found.trials if n_lines <= LINES else found.trials[:0]
    crossed = crossings(few, found.info, found.contrasts)
    parts: Parts = []
    if n_lines <= plots.MANY and table["size"].nunique() > 1:
        parts.append(_plot(found, table, factor))
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
            f"Crossing of the means, {factor}": [
                short(row["size"]) if row["changes"] else "none seen" for row in records
            ],
            "95% interval": [crossing_interval(row) for row in records],
            "Shown": ["yes" if row["shown"] else "no" for row in records],
        },
        "Where lines cross",
        (
            "A crossing is where the mean paired difference of two lines changes sign, with "
            f"linear interpolation in log {factor}; the first one if there are several. Interval: "
            f"every {factor} at which a paired t test over seeds does not reject a difference of "
            "0 (Fieller 1954). Shown: the line was shown to be ahead (see Comparisons) at a "
            "smaller size and to be behind at a larger one; otherwise the lines may not cross."
        ),
    )
    return [shown, [crossing(row, factor) for row in records if row["changes"]]]


def answer(table: pd.DataFrame, crossed: pd.DataFrame, factor: str) -> list[str]:
    """The best line at each size, and where lines were shown to cross."""
    if crossed.empty:
        return []
    best = table.loc[table.groupby("size")["mean"].idxmax()].sort_values("size")
    run = (best["line"] != best["line"].shift()).cumsum()
    leaders = [
        f"“{own['line'].iloc[0]}” at {listed([short(size) for size in own['size']])}"
        for _, own in best.groupby(run, sort=False)
    ]
    text = f"Highest mean test score by {factor}: {'; '.join(leaders)}."
    shown = crossed[crossed["shown"]]
    for row in shown.head(SHOWN).to_dict("records"):
        text += f" {crossing(row, factor)}"
    if len(shown) > SHOWN:
        text += f" {len(shown) - SHOWN} more pairs of lines were shown to cross (see the table)."
    if rest := len(crossed) - len(shown):
        pairs = f"{counted(rest, 'other ' * bool(len(shown)) + 'pair')} of lines"
        text += f" No crossing was shown for {pairs}."
    return [text]


def crossing(row: Mapping[Hashable, Any], factor: str) -> str:
    """One row of `crossings` as a sentence."""
    a, b = f"“{row['line']}”", f"“{row['other']}”"
    if row["changes"] == 0:
        return (
            f"No crossing between {short(row['smallest'])} and {short(row['largest'])} "
            f"{factor}: the mean of {a} is never below that of {b} ({in_seeds(row['n'])})."
        )
    interval = f"95% interval {crossing_interval(row)}, {in_seeds(row['n'])}"
    if row["low"] != row["low"]:
        interval = "one seed: no interval"
    more = f" It is the first of {row['changes']} sign changes." if row["changes"] > 1 else ""
    if row["shown"]:
        return f"{a} leads {b} up to about {short(row['size'])} {factor} ({interval}).{more}"
    return (
        f"The means of {a} and {b} cross at about {short(row['size'])} {factor} ({interval}), "
        f"but it was not shown that each of them is ahead on one side.{more}"
    )


def crossing_interval(row: Mapping[Hashable, Any]) -> str:
    """The interval of a crossing; an end beyond the sizes that were tried is described as such."""
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


def by_size(trials: pd.DataFrame, info: Info) -> pd.DataFrame:
    """Test accuracy of each line at each size.

    Returns:
        One row per scored cell: cell, line, size, n, mean, low, high (t interval over seeds).
    """
    scores = completed(trials, "repeat")[["cell", "test_score"]].dropna()
    scores = size_lines(info.factors).merge(scores, on="cell")
    by = ["cell", "line", "size"]
    means = mean_intervals(scores, "test_score", by, within=(0, 1), folds=info.folds)
    return means.drop(columns="sd")


def crossings(trials: pd.DataFrame, info: Info, pairs: pd.DataFrame | None = None) -> pd.DataFrame:
    """Where one line overtakes another as the size grows: for each pair of lines, the sizes at which the mean
    of their paired differences changes sign, with linear interpolation in log size.

    Args:
        trials: as loaded.
        info: the study.
        pairs: from `compare.contrasts`; None computes it.

    Returns:
        One row per pair with at least two shared sizes: line (ahead at the smaller sizes), other, n (shared
            seeds), smallest and largest shared size, changes (number of sign changes), size (of the first
            one; NaN if there is none), low, high (95% interval of it: all sizes at which a paired t test over
            seeds does not reject a difference of 0; 0 and inf where it reaches beyond the sizes; NaN with
            fewer than two seeds), and shown: whether the verdicts of `pairs` put the line above the other at
            a smaller size, and below it at a larger one.
    """
    lines = size_lines(info.factors)
    pairs = compare.contrasts(trials, info) if pairs is None else pairs
    verdict = dict(
        zip(zip(pairs["cell"], pairs["reference"], strict=True), pairs["verdict"], strict=True)
    )
    turned = {"higher": "lower", "lower": "higher"}
    verdict |= {(b, a): turned.get(v, v) for (a, b), v in verdict.items()}
    scored = completed(trials, "repeat")[["cell", "seed", "test_score"]]
    scored = scored.merge(lines, on="cell", validate="many_to_one")
    table = scored.pivot(index="seed", columns=["line", "size"], values="test_score")
    cell = {(row["line"], row["size"]): row["cell"] for row in lines.to_dict("records")}
    names = [n for n in lines["line"].unique() if n in table.columns.get_level_values("line")]
    rows = []
    for a, b in itertools.combinations(names, 2):
        points = 100 * (table[a] - table[b]).sort_index(axis="columns")
        points = points.dropna(axis="columns", how="all").dropna(axis="index", how="all")
        if points.shape[1] < 2:
            continue
        row = _crossing(a, b, points, info.folds)
        ahead, other = str(row["line"]), str(row["other"])
        found = [verdict.get((cell[ahead, s], cell[other, s])) for s in points.columns]
        after = found[found.index("higher") + 1 :] if "higher" in found else []
        rows.append(row | {"shown": "lower" in after})
    columns = ["line", "other", "n", "smallest", "largest", "changes", "size", "low", "high"]
    return pd.DataFrame(rows, columns=[*columns, "shown"]).astype({"shown": bool})


def _crossing(a: str, b: str, points: pd.DataFrame, folds: int) -> dict[str, object]:
    """The row of one pair. `points` (seeds x sizes) says how far line `a` is above `b`, NaN if unknown."""
    values = points.to_numpy(dtype=float)
    sizes = np.log(points.columns.to_numpy(dtype=float))
    means = np.nanmean(values, axis=0).round(9)
    seen = sign_changes(sizes, means)
    signs = np.sign(means)
    first = next((s for s in signs if s), 0.0)
    ahead = (a, b) if first >= 0 else (b, a)
    row: dict[str, object] = {"line": ahead[0], "other": ahead[1], "n": len(values)}
    row |= {"smallest": points.columns[0], "largest": points.columns[-1], "changes": len(seen)}
    row |= dict.fromkeys(("size", "low", "high"), math.nan)
    if seen:
        row["size"] = math.exp(seen[0])
        row["low"], row["high"] = zero_interval(sizes, values, seen[0], folds)
    return row


def zero_interval(
    sizes: np.ndarray, values: np.ndarray, place: float, folds: int = 1
) -> tuple[float, float]:
    """Ends of the set of sizes at which the paired t test does not reject a difference of 0 (Fieller 1954).

    Between two sizes, the difference of each seed is linear in log size, so the test is a quadratic
    inequality in the relative position w. The set contains a true crossing with probability 95%, whatever the
    number of seeds.

    Args:
        sizes: their logarithms, ascending.
        values: seeds x sizes, NaN if unknown.
        place: where the mean changes sign; always in the set.
        folds: see `compare.contrasts`.

    Returns:
        Sizes; 0 and inf where the set reaches the smallest and the largest size; NaN with fewer than two
        seeds.
    """
    kept, low_open, high_open = [place], False, False
    for left in range(len(sizes) - 1):
        both = values[:, left : left + 2]
        both = both[~np.isnan(both).any(axis=1)]
        n = len(both)
        if n < 2:
            continue
        a, b = both.mean(axis=0)
        (vaa, vab), (_, vbb) = np.cov(both.T)
        limit = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) ** 2 / independent_runs(n, folds)
        # (a + w (b - a))^2 - limit * variance(w) <= 0, as c0 + c1 w + c2 w^2
        c0 = a * a - limit * vaa
        c1 = 2 * a * (b - a) - 2 * limit * (vab - vaa)
        c2 = (b - a) ** 2 - limit * (vaa - 2 * vab + vbb)
        roots = np.roots([c2, c1, c0])
        inside = [float(r.real) for r in roots if abs(r.imag) < 1e-12 and 0 < r.real < 1]
        inside += [w for w in (0.0, 1.0) if c0 + c1 * w + c2 * w * w < -1e-12]
        kept += [sizes[left] + w * (sizes[left + 1] - sizes[left]) for w in inside]
        low_open |= left == 0 and 0.0 in inside
        high_open |= left == len(sizes) - 2 and 1.0 in inside
    if (~np.isnan(values)).sum(axis=0).max() < 2:
        return math.nan, math.nan
    low, high = math.exp(min(kept)), math.exp(max(kept))
    return (0.0 if low_open else low), (math.inf if high_open else high)


def sign_changes(
    sizes: Sequence[float] | np.ndarray, means: Sequence[float] | np.ndarray
) -> list[float]:
    """All positions on the axis of `sizes` at which the broken line through `means` changes sign.

    If it only touches 0, it does not change; if it is 0 between two different signs, the first such size
    counts. NaN means are skipped.
    """
    known = [(float(x), float(y)) for x, y in zip(sizes, means, strict=True) if not math.isnan(y)]
    found: list[float] = []
    last = None
    for i, (x, y) in enumerate(known):
        if y == 0:
            continue
        if last is not None and (known[last][1] > 0) != (y > 0):
            x0, y0 = known[last]
            flat = i - last > 1
            found.append(known[last + 1][0] if flat else x0 + (x - x0) * y0 / (y0 - y))
        last = i
    return found


def _plot(found: Findings, table: pd.DataFrame, factor: str) -> Plot:
    """Mean test score with its interval against size, one line per combination of the other factors, and one
    dot per repeat."""
    metric, lines = found.info.metric, size_lines(found.info.factors)
    repeats = found.repeats[["cell", "test_score"]].merge(lines, on="cell")
    style = plots.styles(list(lines["line"].unique()))
    figure, (axes,) = plots.canvas(4.6)
    names = [name for name in style if name in set(table["line"])]
    sizes = sorted(table["size"].unique())
    step = min(np.diff(np.log(sizes)).min() / 3, 0.25) / max(1, len(names) - 1)
    beside = float((sizes[-1] / sizes[0]) ** 0.013)  # dots would be lost on the interval's bar
    ends = []
    for i, name in enumerate(names):
        look, aside = style[name], float(np.exp(step * (i - (len(names) - 1) / 2)))
        own = table[table["line"] == name].sort_values("size")
        dots = repeats[repeats["line"] == name]
        axes.plot(dots["size"] * aside * beside, dots["test_score"], ls="", marker=look.marker, ms=3,
                  color=look.color, alpha=0.45, mew=0)  # fmt: skip
        at = own["size"] * aside
        axes.vlines(at, own["low"], own["high"], color=look.color, lw=2)
        axes.plot(at, own["mean"], color=look.color, lw=1.4, marker=look.marker, ms=7, mec="white")
        ends.append((float(at.iloc[-1]), float(own["mean"].iloc[-1]), name))
    axes.set_xscale("log")
    axes.set_xticks([], minor=True)
    axes.set_xticks(sizes, [f"{size:g}" for size in sizes])
    axes.set_xlabel(f"{factor} (log scale)")
    plots.percent(axes, "y", f"Test {metric}")
    if len(names) > 1 and plots.crowded(names):
        plots.add_key(figure, names, style)
    elif len(names) > 1:
        plots.name_ends(axes, ends, style)
    caption = (
        f"Small markers: one repeat each ({repeats_of(found)} per cell). Large markers: "
        "means; vertical bars: intervals. Logarithmic scale; lines are slightly shifted sideways, "
        f"so that bars do not overlap. {over_seeds(found)}"
    )
    name = f"{metric[:1].upper() + metric[1:]} by {factor}"
    return Plot("by_size", name, figure, caption)
