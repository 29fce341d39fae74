"""The value of a measure with its interval, or the reason why there is none.

Every interval of this package is a delete-d jackknife over examples (Shao & Wu 1989), not a bootstrap with
replacement: a bootstrap puts copies of one example into both folds of a cross-validation, makes a sample of n
examples act like one of .63 n in a covariance, and adds distances of zero. Instead, a measure is computed
again on random subsets of the examples, without replacement and with the classes in the same proportions (the
interval thus assumes new samples with the same number of examples per class). The spread of these values
around their mean estimates the spread of the value around its expectation:

    value -+ t(.975, resamples - 1) sqrt(m / (n - m)) sd,    with m of n examples in a subset

The interval covers the spread over other samples of the same size, but not the bias that some measures have
for small n, which the mean of the subsets removes; compare values only for equal n. For few examples and for
distances near zero, it is too wide rather than too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import stats

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Better = Literal["higher", "lower"]
Statistic = Callable[..., float]
"""One array of row indices per side -> the value on those examples."""

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Measurement:
    """The result of one measure for one source and one target.

    Attributes:
        name: name of the measure.
        value: the value; NaN if the measure cannot be computed.
        n: number of examples (per side, if there are two sides).
        d: number of features of an example, or of classes of the source's head.
        seed: seed of all random numbers.
        low, high: ends of the 95% interval; NaN if there is none.
        resamples: number of resamples of the interval; 0 if there is no interval, or it is in closed form.
        better: whether "higher" or "lower" values promise better transfer.
        reason: why the value, or only the interval, is NaN; else empty.
        p: p of a permutation test, if the measure has one; else NaN.
    """

    name: str
    value: float
    n: int
    d: int
    seed: int = 0
    low: float = math.nan
    high: float = math.nan
    resamples: int = 0
    better: Better = "higher"
    reason: str = ""
    p: float = math.nan

    @property
    def refused(self) -> bool:
        """Whether there is no value."""
        return math.isnan(self.value)

    def describe(self) -> str:
        """The value with its interval; "-" if the measure refuses."""
        if self.refused:
            return "-"
        if math.isnan(self.low):
            return f"{self.value:.3g}"
        return f"{self.value:.3g} ({self.low:.3g} to {self.high:.3g})"


@dataclass(frozen=True)
class Candidate:
    """A source and its measurements for one target, by the name of the measure."""

    name: str
    measures: Mapping[str, Measurement]


class Refusal(Exception):
    """The measure is not defined for these data, although their shape is right. Only raised inside this
    package."""


def measured(
    name: str,
    better: Better,
    prepare: Callable[[], Statistic],
    strata: Sequence[Ints],
    *,
    d: int,
    seed: int,
    resamples: int,
    share: float = 0.8,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> Measurement:
    """The value of a measure on all examples, with its interval.

    Args:
        prepare: returns the statistic; both may raise Refusal.
        strata: for each side, (n,) class of each example; resamples have the same proportions.
        share: share of the examples in a resample, m / n.
        bounds: a value outside of them by more than rounding is refused; the interval is clipped to them.

    Raises:
        ValueError: if resamples is negative.
    """
    if resamples < 0:
        raise ValueError(f"resamples = {resamples} is negative; 0 means no interval")
    n = min(len(side) for side in strata)
    found = Measurement(name, math.nan, n, d, seed, better=better)
    try:
        if n < 2:
            raise Refusal(f"n = {n}: at least 2 examples are needed")
        statistic = prepare()
        value = _within(bounds, statistic(*(np.arange(len(side)) for side in strata)))
    except (Refusal, np.linalg.LinAlgError) as problem:
        return replace(found, reason=str(problem))
    found = replace(found, value=value)
    if resamples < 2:
        return replace(found, reason=f"no interval: {resamples} resamples were requested")
    try:
        half = _half_length(statistic, strata, seed, resamples, share)
    except (Refusal, np.linalg.LinAlgError) as problem:
        return replace(found, reason=f"no interval: on {share:.0%} of the examples, {problem}")
    low, high = max(bounds[0], value - half), min(bounds[1], value + half)
    return replace(found, low=low, high=high, resamples=resamples)


def _within(bounds: tuple[float, float], value: float) -> float:
    low, high = bounds
    slack = 1e-8 * max([1.0, *(abs(b) for b in bounds if math.isfinite(b))])
    if not low - slack <= value <= high + slack:
        raise Refusal(f"the value {value:.6g} is outside {low:.6g} to {high:.6g}")
    return min(max(value, low), high)


def _half_length(
    statistic: Statistic, strata: Sequence[Ints], seed: int, resamples: int, share: float
) -> float:
    rng = np.random.default_rng((seed, 1))
    sizes = [min(round(share * len(side)), len(side) - 1) for side in strata]
    if min(sizes) < 2:
        raise Refusal("fewer than 2 examples")
    values = [
        statistic(*(draw(side, size, rng) for side, size in zip(strata, sizes, strict=True)))
        for _ in range(resamples)
    ]
    left_out = len(strata[0]) - sizes[0]
    sd = float(np.std(values, ddof=1)) * math.sqrt(sizes[0] / left_out)
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, resamples - 1)) * sd


def draw(strata: Ints, size: int, rng: np.random.Generator) -> Ints:
    """`size` distinct row indices in ascending order, with the strata in proportion; fractions are rounded at
    random.

    Args:
        strata: (n,) number of each example's stratum, from 0.
    """
    shuffled = rng.permutation(len(strata))
    by_class = shuffled[np.argsort(strata[shuffled], kind="stable")]
    counts = np.bincount(strata)
    starts = np.cumsum(counts) - counts
    own = strata[by_class]
    place = (np.arange(len(strata)) - starts[own] + rng.random(len(counts))[own]) / counts[own]
    return np.sort(by_class[np.argsort(place, kind="stable")[:size]]).astype(np.int64)


def one_stratum(n: int) -> Ints:
    """The strata of n examples that have no classes."""
    return np.zeros(n, dtype=np.int64)


def as_features(features: npt.NDArray[Any], name: str) -> Floats:
    """The features, (n, d), in double precision.

    Raises:
        ValueError: for another shape, or if n or d is 0.
    """
    x = np.asarray(features, dtype=np.float64)
    if x.ndim != 2 or 0 in x.shape:
        raise ValueError(f"{name} has shape {x.shape}; it should be (examples, features)")
    return x


def as_labels(labels: npt.NDArray[Any], n: int, name: str) -> Ints:
    """The labels, (n,), with the classes that occur numbered from 0.

    Raises:
        ValueError: for another shape, or if the labels are not integers.
    """
    y = np.asarray(labels)
    if y.shape != (n,):
        raise ValueError(f"{name} has shape {y.shape}; it should be ({n},)")
    if not np.issubdtype(y.dtype, np.integer):
        raise ValueError(f"{name} has type {y.dtype}; it should have an integer type")
    return np.unique(y, return_inverse=True)[1].astype(np.int64)


def require_finite(x: Floats, name: str) -> None:
    """Raise Refusal for NaN and infinity."""
    if not np.isfinite(x).all():
        raise Refusal(f"{name} contains NaN or infinity")


def require_varied(x: Floats, name: str) -> None:
    """Raise Refusal for values that are not finite, or equal for all examples to single precision."""
    require_finite(x, name)
    if np.ptp(x, axis=0).max() <= 1e-6 * np.abs(x).max():
        raise Refusal(f"{name} is the same for every example")


def require_classes(y: Ints, least: int, name: str) -> None:
    """Raise Refusal for fewer than two classes, or a class with fewer than `least` examples."""
    if len(np.unique(y)) < 2:
        raise Refusal(f"{name} has only one class")
    require_members(y, least, name)


def require_members(y: Ints, least: int, name: str) -> None:
    """Raise Refusal for a class with fewer than `least` examples."""
    counts = np.bincount(y)
    fewest = int(counts[counts > 0].min())
    if fewest < least:
        raise Refusal(f"a class of {name} has {fewest} example(s); at least {least} are needed")
