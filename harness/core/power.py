"""Power of a study: the differences that its repeats can detect by the rule of its report.

All pairs of k cells are tested as one family of k (k - 1) / 2 contrasts: paired t tests over seeds at .05 /
number of contrasts (see `analysis.compare.contrasts`). With k-fold resampling the runs are correlated (see
`harness.core.folds.independent_runs`).
"""

from __future__ import annotations

import math
from functools import cache

# scipy.stats and scipy.optimize take half a second more at every start
from scipy.special import nctdtrinc, stdtrit

from harness.core.folds import independent_runs

ALPHA = 0.05
POWER = 0.80
WANTED = 2.0
"""Difference of two cells, in standard deviations over seeds, that the repeats of a study should be able to
detect."""
MOST_SEEDS = 500
"""A difference that needs more seeds than this is not worth detecting."""


def least_detectable(sd: float, n: int, pairs: int = 1, folds: int = 1) -> float:
    """Mean paired difference that is detected with n seeds and 80% power if `pairs` contrasts are tested, in
    the unit of `sd`, the standard deviation of the differences (Cohen 1988). NaN for n < 2."""
    if n < 2 or math.isnan(sd):
        return math.nan
    return _effect(n, pairs, folds) * sd


@cache
def _effect(n: int, pairs: int, folds: int) -> float:
    # statsmodels' solve_power leaves the root for some n (73 or 120: a negative effect, in an array); at this
    # power the tail on the wrong side is below 1e-5
    critical = -stdtrit(n - 1, ALPHA / pairs / 2)
    return float(nctdtrinc(n - 1, 1 - POWER, critical) / math.sqrt(independent_runs(n, folds)))


def pairs_of(cells: int) -> int:
    """Number of pairs of this many cells."""
    return cells * (cells - 1) // 2


def seeds_needed(sd: float, points: float, pairs: int = 1, folds: int = 1) -> float:
    """Smallest number of shared seeds with which a true mean difference of `points` is detected with 80%
    power if `pairs` contrasts are tested, given the standard deviation `sd` of the differences in points;
    with k-fold resampling a multiple of `folds`. inf above MOST_SEEDS, NaN without `sd`."""
    if math.isnan(sd):
        return math.nan
    low, high = 2, MOST_SEEDS
    if least_detectable(sd, high, pairs, folds) > points:
        return math.inf
    while low < high:
        middle = (low + high) // 2
        enough = least_detectable(sd, middle, pairs, folds) <= points
        low, high = (low, middle) if enough else (middle + 1, high)
    return float(folds * math.ceil(low / folds))
