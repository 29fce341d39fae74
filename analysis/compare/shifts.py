"""Which cell keeps its accuracy when the test images are not like the training images?

    python -c "from analysis import compare, load; t = load.load_study('robustness'); \
               print(compare.shifted(t.trials, t.info.factors))"

A shifted test set is scored by the same network as the plain one, so a loss is a difference within one
repeat, and two cells' losses are paired on their seed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import pandas as pd

from analysis.compare.runs import CONFIDENCE, cells, completed, mean_interval
from harness.core.spec import SHIFTS

PLAIN = "plain"
PREFIX = "test_accuracy."


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


def shifted(trials: pd.DataFrame, factors: Mapping[str, Sequence[str]]) -> pd.DataFrame:
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
        mean, _, low, high = mean_interval(own[name])
        lost = [] if name == PLAIN else 100 * (own[PLAIN] - own[name])
        loss, _, loss_low, loss_high = mean_interval(lost)
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


def shift_losses(trials: pd.DataFrame, factors: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """What each cell loses from the plain set on average over the shifts, the least first.

    Returns:
        cell, n repeats, loss (points), low, high (t interval over seeds).
    """
    lost = _mean_losses(trials)
    rows = []
    for cell in (c for c in cells(factors)["cell"] if c in lost and lost[c].notna().any()):
        loss, _, low, high = mean_interval(lost[cell])
        n = int(lost[cell].notna().sum())
        rows.append({"cell": cell, "n": n, "loss": loss, "low": low, "high": high})
    table = pd.DataFrame(rows, columns=["cell", "n", "loss", "low", "high"])
    return table.sort_values("loss", kind="stable", ignore_index=True)


def loss_pairs(trials: pd.DataFrame, order: Sequence[str]) -> pd.DataFrame:
    """How much more one cell loses on average over the shifts than another, for every pair.

    Args:
        trials: as loaded.
        order: cells by their mean loss, the least first.

    Returns:
        cell, reference (later in `order`), n shared seeds, difference (points that the reference
        loses more), low, high (paired t interval over seeds at 1 - .05 / number of pairs, after
        Bonferroni: all of them hold at once, so the extremes may be picked afterwards), and
        told_apart: whether the interval is clear of 0.
    """
    lost = _mean_losses(trials)
    pairs = list(itertools.combinations(order, 2))
    rows = []
    for cell, reference in pairs:
        more = (lost[reference] - lost[cell]).dropna()
        mean, _, low, high = mean_interval(more, 1 - (1 - CONFIDENCE) / len(pairs))
        apart = not math.isnan(low) and (low > 0 or high < 0)
        rows.append(
            {"cell": cell, "reference": reference, "n": len(more), "difference": mean}
            | {"low": low, "high": high, "told_apart": apart}
        )
    columns = ["cell", "reference", "n", "difference", "low", "high", "told_apart"]
    return pd.DataFrame(rows, columns=columns).astype({"told_apart": bool})
