"""Which cell is better than which, by how much, and how sure is that with so few seeds?

    python -c "from analysis import compare, load; t = load.load_study('freeze_depth'); \
               print(compare.paired_differences(t.trials, t.info.factors, t.info.baseline))"
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats
from scipy.optimize import brentq
from statsmodels.stats.multitest import multipletests

from analysis.compare.contexts import arms
from analysis.compare.examples import hits, mcnemar_over_seeds
from analysis.compare.runs import cells, completed, mean_interval
from harness.core.spec import cell_label

ALPHA = 0.05
POWER = 0.80
CLAIM_SEEDS = 10
MAX_FLIPS = 2**15
WORTH = (2.0, 1.0, 0.5)
"""Differences, in points, that are worth seeing: a sentence names the first that the seeds would miss."""
MOST_SEEDS = 500


def sign_flip_p(differences: Sequence[float]) -> float:
    """Exact two-sided sign-flip p of a mean difference (Fisher 1935): the share of the 2^n ways to
    swap the two cells seed by seed that give a mean at least this far from 0.

    Exact up to 15 differences, above that from 32768 random flips with a fixed seed. It cannot be
    under 2 / 2^n: .0625 with 5 seeds. NaN without a difference.
    """
    if len(differences) == 0:
        return math.nan
    test = stats.permutation_test(
        (np.asarray(differences, dtype=float),),
        np.mean,
        permutation_type="samples",
        n_resamples=MAX_FLIPS,
        vectorized=True,
        rng=np.random.default_rng(0),
    )
    return float(test.pvalue)


def least_detectable(sd: float, n: int) -> float:
    """The mean paired difference that a two-sided t test at .05 on n pairs finds with 80% power, in
    the unit of `sd`, the standard deviation of the differences (Cohen 1988). NaN for n < 2."""
    if n < 2 or math.isnan(sd):
        return math.nan
    return _effect(n) * sd


@cache
def _effect(n: int) -> float:
    # statsmodels' solve_power leaves the root for some n (73 or 120: a negative effect, in an array); at this
    # power the tail on the wrong side is below 1e-5
    critical = stats.t.ppf(1 - ALPHA / 2, n - 1)
    guess = float(critical + stats.t.ppf(POWER, n - 1))
    found = brentq(
        lambda shift: stats.nct.sf(critical, n - 1, shift) - POWER, guess / 2, 1.3 * guess
    )
    return float(found) / math.sqrt(n)


def seeds_needed(sd: float, points: float) -> float:
    """The fewest shared seeds (at least 6, or the exact test can't reach .05) with which a true mean
    difference of `points` is found 4 times in 5, given the standard deviation `sd` of the differences,
    in points. inf beyond MOST_SEEDS, NaN without `sd`.
    """
    if math.isnan(sd):
        return math.nan
    low, high = 6, MOST_SEEDS
    if least_detectable(sd, high) > points:
        return math.inf
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if least_detectable(sd, middle) <= points else (middle + 1, high)
    return float(low)


def paired_differences(
    trials: pd.DataFrame,
    factors: Mapping[str, Sequence[str]],
    baseline: Mapping[str, str],
    predictions: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Each cell against the one that has the baseline's values and equals it in the other factors.

    Returns:
        The table of `contrasts`; empty without a baseline.
    """
    table = cells(factors)
    references = [
        cell_label({k: baseline.get(k, str(row[k])) for k in factors})
        for row in table.to_dict("records")
    ]
    pairs = [(a, b) for a, b in zip(table["cell"], references, strict=True) if a != b]
    return contrasts(trials, pairs, predictions)


def against_best(
    trials: pd.DataFrame,
    table: pd.DataFrame,
    factors: Mapping[str, Sequence[str]] | None = None,
    predictions: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """The cell with the highest mean test accuracy in `table` (a `summary`) against every other; within each
    target where `factors` compare targets, whose scores are not of one kind.

    The best was picked with the same scores, so its lead is overstated (winner's curse): Holm over
    all rivals guards the test, not the size of the difference. Empty without two scored cells.
    """
    scored = table.dropna(subset="mean").sort_values("mean", ascending=False, kind="stable")
    known = arms(factors) if factors else None
    context = dict(zip(known["cell"], known["context"], strict=True)) if known is not None else {}
    pairs: list[tuple[str, str]] = []
    for _, own in scored.groupby(scored["cell"].map(lambda cell: context.get(cell, ""))):
        names = list(own["cell"])
        pairs += [(names[0], rival) for rival in names[1:]]
    return contrasts(trials, pairs, predictions)


def contrasts(
    trials: pd.DataFrame,
    pairs: Sequence[tuple[str, str]],
    predictions: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Paired comparison of cells over the seeds that both were repeated on.

    Returns:
        One row per pair: cell, reference, n pairs, difference (points of test accuracy, positive
        when cell is better), low, high (95% t interval, resamples seeds, not adjusted for the
        number of contrasts), p (sign flip), p_holm (Holm 1979 over all rows), least_detectable (points),
        worth (points) and seeds_needed to see so much (`seeds_needed`), only_cell, only_reference and
        p_images (`mcnemar_over_seeds`, NaN without predictions), verdict (higher, lower, leaning, open
        or untested) and sentence.
    """
    scores = completed(trials, "repeat").pivot(index="seed", columns="cell", values="test_accuracy")
    tables = {} if predictions is None or predictions.empty else hits(predictions)
    rows = []
    for cell, reference in pairs:
        both = scores.reindex(columns=[cell, reference]).dropna()
        points = 100 * (both[cell] - both[reference])
        mean, sd, low, high = mean_interval(points)
        least = least_detectable(sd, len(points))
        worth = next((w for w in WORTH if least > w), WORTH[-1])
        rows.append(
            {"cell": cell, "reference": reference, "n": len(points)}
            | {"difference": mean, "low": low, "high": high}
            | {"p": sign_flip_p(list(points)) if len(points) > 1 else math.nan, "p_holm": math.nan}
            | {"least_detectable": least, "worth": worth}
            | {"seeds_needed": seeds_needed(sd, worth)}
            | mcnemar_over_seeds(tables, cell, reference)
        )
    columns = ["cell", "reference", "n", "difference", "low", "high", "p", "p_holm"]
    columns += ["least_detectable", "worth", "seeds_needed"]
    table = pd.DataFrame(rows, columns=[*columns, "only_cell", "only_reference", "p_images"])
    tested = table["p"].notna()
    if tested.any():
        table.loc[tested, "p_holm"] = multipletests(table.loc[tested, "p"], method="holm")[1]
    records = table.to_dict("records")
    table["verdict"] = [_verdict(row) for row in records]
    table["sentence"] = [_sentence(row, int(tested.sum())) for row in table.to_dict("records")]
    return table


def _verdict(row: Mapping[Hashable, Any]) -> str:
    """What may be said: higher or lower (Holm p at most .05), leaning (interval clear of 0 only),
    open (neither) or untested (fewer than two shared seeds)."""
    if math.isnan(row["p_holm"]):
        return "untested"
    if row["p_holm"] <= ALPHA:
        return "higher" if row["difference"] > 0 else "lower"
    return "leaning" if row["low"] > 0 or row["high"] < 0 else "open"


def _sentence(row: Mapping[Hashable, Any], family: int) -> str:
    """One contrast in plain words; `family` is the number of contrasts that Holm adjusts for."""
    a, b, n = f"“{row['cell']}”", f"“{row['reference']}”", row["n"]
    if row["verdict"] == "untested":
        return f"{a} and {b} share {n} scored seed{'s' * (n != 1)}: nothing can be tested."
    if row["difference"] == row["low"] == row["high"] == 0:
        return f"{a} and {b} scored the same on each of {n} seeds."
    interval = f"{row['low']:+.1f} to {row['high']:+.1f}"
    if row["verdict"] == "open":
        return (
            f"{a} can't be told apart from {b} with {n} seeds: {row['difference']:+.1f} points "
            f"({interval}); so few would miss a difference of {row['least_detectable']:.1f} points "
            f"one time in five{_more_seeds(row)}.{_images(row)}"
        )
    side = "above" if row["difference"] > 0 else "below"
    gap = f"{abs(row['difference']):.1f} points {side} {b} ({interval}, {n} seeds"
    if row["verdict"] in ("higher", "lower"):
        caution = (
            "" if n >= CLAIM_SEEDS else f" Confirm with {CLAIM_SEEDS} seeds before claiming it."
        )
        return f"{a} is {gap}, Holm p = {row['p_holm']:.2g}).{caution}{_images(row)}"
    floor = min(1.0, family * 2 / 2**n)
    limit = (
        f" ({n} seeds and {family} contrast{'s' * (family != 1)} cannot give less than {floor:.2g})"
        if floor > ALPHA
        else ""
    )
    return (
        f"{a} is probably {gap}), but the exact test does not confirm it: "
        f"Holm p = {row['p_holm']:.2g}{limit}.{_images(row)}"
    )


def _more_seeds(row: Mapping[Hashable, Any]) -> str:
    """How many seeds would show a difference worth seeing, where these do not."""
    if not row["least_detectable"] > row["worth"]:
        return ""
    unit = f"{row['worth']:g} point{'s' * (row['worth'] != 1)}"
    if row["seeds_needed"] == math.inf:
        return f"; not even {MOST_SEEDS} would show {unit}"
    return f"; {row['seeds_needed']:.0f} would show {unit}"


def _images(row: Mapping[Hashable, Any]) -> str:
    """What the single test images say about these very networks."""
    if math.isnan(row["p_images"]):
        return ""
    return (
        f" Image by image (McNemar): {row['only_cell']:.0f} that only the first gets right, "
        f"{row['only_reference']:.0f} that only the second does, p = {row['p_images']:.2g}."
    )
