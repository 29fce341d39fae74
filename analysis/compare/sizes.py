"""How does accuracy grow with the size of the target, and where do two lines cross?

    python -c "from analysis import compare, load; t = load.load_study('target_size'); \
               print(compare.crossings(t.trials, t.info.factors))"

The size is the first compared factor whose labels are all positive numbers; a line is a combination
of the other factors, followed over the sizes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from analysis.compare.runs import CONFIDENCE, cells, completed, mean_interval
from harness.core.spec import cell_label

RESAMPLES = 2000
Change = tuple[float, bool]
"""Where a difference changes sign, and whether it rises there."""


def size_factor(factors: Mapping[str, Sequence[str]]) -> str | None:
    """The first factor with at least two labels that are all different positive numbers, or None."""
    for factor, labels in factors.items():
        sizes = {_positive(label) for label in labels}
        if len(sizes) == len(labels) > 1 and None not in sizes:
            return factor
    return None


def _positive(label: str) -> float | None:
    try:
        value = float(label)
    except ValueError:
        return None
    return value if 0 < value < math.inf else None


def size_lines(factors: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """Which line and size each cell stands for: cell, line (values of the other factors; the size
    factor's name when there are none), size. Empty without a size factor."""
    factor = size_factor(factors)
    rows = []
    for row in cells(factors).to_dict("records") if factor else []:
        rest = {name: str(row[name]) for name in factors if name != factor}
        line = cell_label(rest) if rest else factor
        rows.append({"cell": row["cell"], "line": line, "size": float(row[factor])})
    return pd.DataFrame(rows, columns=["cell", "line", "size"]).astype({"size": float})


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
