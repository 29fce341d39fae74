"""Distances between source and target data: Frechet distance, MMD and Gaussian OTDD.

    axes = principal_axes(reference)
    frechet(source @ axes, target @ axes)

All three take the examples of both sides in the same embedding, which must not depend on the source. Axes and
bandwidth are likewise computed once, on a reference that is the same for all pairs (equal numbers of examples
from every data set of the study; of the targets, training examples only), and passed as arguments.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import ot
from scipy.spatial.distance import cdist, pdist
from sklearn.decomposition import PCA
from sklearn.metrics.pairwise import rbf_kernel

from harness.similarity.measurement import (
    Floats,
    Ints,
    Measurement,
    Refusal,
    Statistic,
    as_features,
    as_labels,
    draw,
    measured,
    one_stratum,
    require_finite,
    require_members,
)

Array = npt.NDArray[Any]


def principal_axes(reference: Array, size: int = 64) -> Floats:
    """The first `size` principal axes of `reference` (n, d), as columns: (d, min(size, n - 1, d)).

    `x @ axes` does not centre the data, so both sides are projected alike.

    Raises:
        ValueError: if there is only one example, or an example has NaN or infinity.
    """
    x = as_features(reference, "reference")
    if len(x) < 2 or not np.isfinite(x).all():
        raise ValueError("reference should have at least 2 examples and no NaN or infinity")
    pca = PCA(min(size, len(x) - 1, x.shape[1]), svd_solver="covariance_eigh").fit(x)
    return np.asarray(pca.components_.T, dtype=np.float64)


def median_bandwidth(reference: Array, seed: int = 0) -> float:
    """Median distance between two examples of `reference` (n, d), of which at most 1000 are drawn.

    The usual choice for MMD (Gretton et al. 2012, section 8).

    Raises:
        ValueError: if there is only one example, or the median is not positive and finite.
    """
    x = as_features(reference, "reference")
    if len(x) > 1000:
        x = x[draw(one_stratum(len(x)), 1000, np.random.default_rng(seed))]
    median = float(np.median(pdist(x))) if len(x) > 1 else math.nan
    if not (math.isfinite(median) and median > 0):
        raise ValueError(f"median distance {median} in reference; it should be above 0")
    return median


def frechet(source: Array, target: Array, *, seed: int = 0, resamples: int = 200) -> Measurement:
    """Squared Frechet distance of two Gaussians with the means and covariances of the two sides.

    |m1 - m2|^2 + tr(S1 + S2 - 2 (S1^.5 S2 S1^.5)^.5), the squared 2-Wasserstein distance (Dowson & Landau
    1982; Heusel et al. 2017 as FID). The trace of the root is computed as the sum of the singular values of
    A1' A2 with S = A A', so that no root of a rounding error is taken. The distance is biased upwards for
    small n: the larger side is subsampled to the size of the smaller one, and values are comparable only for
    equal n and d.

    Args:
        source, target: (n, d) in the common embedding, projected (see `principal_axes`), n > d.

    Raises:
        ValueError: for other shapes.
    """
    x, y = _sides(source, target)
    n, d = min(len(x), len(y)), x.shape[1]
    rng = np.random.default_rng(seed)
    x, y = (side[draw(one_stratum(len(side)), n, rng)] for side in (x, y))

    def prepare() -> Statistic:
        if n <= d:
            raise Refusal(f"{n} examples per side for d={d}: the covariances do not have full rank")
        return lambda a, b: gaussian_distance(*_gaussian(x[a]), *_gaussian(y[b]))

    return _measured("frechet", x, y, prepare, seed, resamples)


def mmd(
    source: Array,
    target: Array,
    bandwidth: float,
    *,
    seed: int = 0,
    resamples: int = 200,
    permutations: int = 999,
) -> Measurement:
    """Squared maximum mean discrepancy, the U-statistic (Gretton et al. 2012, eq. 3).

    mean k(x, x') + mean k(y, y') - 2 mean k(x, y), without pairs of an example with itself, with
    k = exp(-|x - y|^2 / (2 bandwidth^2)). It is unbiased and may therefore be negative. p is one-sided:
    (1 + number of permutations of the sides with at least this value) / (1 + permutations).

    Args:
        source: (n, d) and target: (m, d), in the common embedding.
        bandwidth: the same for all pairs that will be compared (see `median_bandwidth`).
        permutations: number of permutations; 0 for no p.

    Raises:
        ValueError: for other shapes, or a bandwidth that is not above 0.
    """
    x, y = _sides(source, target)
    if not (math.isfinite(bandwidth) and bandwidth > 0):
        raise ValueError(f"bandwidth = {bandwidth}; it should be above 0")
    n = len(x)
    kernel: list[Floats] = []

    def prepare() -> Statistic:
        both = np.concatenate([x, y])
        kernel.append(rbf_kernel(both, gamma=1 / (2 * bandwidth**2)))
        return lambda a, b: _mmd(kernel[0], a, b + n)

    found = _measured("mmd", x, y, prepare, seed, resamples, bounds=(-2, 2))
    if found.refused or permutations < 1:
        return found
    p = _permutation_p(kernel[0], n, permutations, np.random.default_rng((seed, 2)))
    return replace(found, p=p)


def otdd(
    source: Array,
    source_labels: Array,
    target: Array,
    labels: Array,
    *,
    seed: int = 0,
    resamples: int = 20,
) -> Measurement:
    """Optimal transport dataset distance with Gaussian classes (Alvarez-Melis & Fusi 2020, eq. 7).

    Minimum over transport plans pi of sum pi(x, x') (|x - x'|^2 + W2^2(class of x, class of x')), where W2 is
    the 2-Wasserstein distance of the Gaussians of the classes. It is the squared distance, without the factor
    1/2 that microsoft/otdd applies to both costs. It is zero between a data set and itself, even with renamed
    classes. It is biased upwards for small n: the larger side is subsampled to the size of the smaller one.

    Args:
        source, target: (n, d) in the common embedding, projected (see `principal_axes`).
        source_labels, labels: (n,) integer classes.

    Raises:
        ValueError: for other shapes.
    """
    x, y = _sides(source, target)
    classes = as_labels(source_labels, len(x), "source_labels"), as_labels(labels, len(y), "labels")
    n, rng = min(len(x), len(y)), np.random.default_rng(seed)
    rows = [draw(side, n, rng) for side in classes]
    x, y = x[rows[0]], y[rows[1]]
    own_x, own_y = classes[0][rows[0]], classes[1][rows[1]]

    def prepare() -> Statistic:
        require_members(classes[0], 2, "source_labels")
        require_members(classes[1], 2, "labels")
        cost = cdist(x, y, "sqeuclidean")

        def statistic(a: Ints, b: Ints) -> float:
            first, of_first = _classes(x[a], own_x[a], "source_labels")
            second, of_second = _classes(y[b], own_y[b], "labels")
            between = np.array([[gaussian_distance(*p, *q) for q in second] for p in first])
            return _transport(cost[np.ix_(a, b)] + between[np.ix_(of_first, of_second)])

        return statistic

    return _measured("otdd", x, y, prepare, seed, resamples, strata=(own_x, own_y))


def gaussian_distance(mean1: Floats, factor1: Floats, mean2: Floats, factor2: Floats) -> float:
    """Squared 2-Wasserstein distance of two Gaussians, given their means (d,) and factors A (d, k) of their
    covariances A A'."""
    shift = float(np.sum((mean1 - mean2) ** 2))
    overlap = float(np.linalg.svd(factor1.T @ factor2, compute_uv=False).sum())
    return max(0.0, shift + float(np.sum(factor1**2) + np.sum(factor2**2)) - 2 * overlap)


def _gaussian(x: Floats) -> tuple[Floats, Floats]:
    """The mean, and a factor of the covariance (with n - 1) that has at most min(n, d) columns."""
    mean = x.mean(axis=0)
    return mean, np.asarray(np.linalg.qr((x - mean) / math.sqrt(len(x) - 1), mode="r")).T


def _classes(x: Floats, y: Ints, name: str) -> tuple[list[tuple[Floats, Floats]], Ints]:
    require_members(y, 2, name)
    present, own = np.unique(y, return_inverse=True)
    return [_gaussian(x[own == c]) for c in range(len(present))], own.astype(np.int64)


def _transport(cost: Floats) -> float:
    """The exact minimal mean cost of moving equal weights from rows to columns, computed by POT."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the warning is also in log["warning"]
        value, log = ot.emd2([], [], cost, numItermax=10_000_000, log=True)
    if log["warning"] is not None:
        raise Refusal(f"optimal transport failed: {log['warning']}")
    return float(value)


def _mmd(kernel: Floats, a: Ints, b: Ints) -> float:
    m, n = len(a), len(b)
    within_a = (kernel[np.ix_(a, a)].sum() - np.trace(kernel[np.ix_(a, a)])) / (m * (m - 1))
    within_b = (kernel[np.ix_(b, b)].sum() - np.trace(kernel[np.ix_(b, b)])) / (n * (n - 1))
    return float(within_a + within_b - 2 * kernel[np.ix_(a, b)].mean())


def _permutation_p(kernel: Floats, n: int, permutations: int, rng: np.random.Generator) -> float:
    """The p of all permutations at once: column j of `side` marks the examples of the first side in
    permutation j; column 0 is the real assignment."""
    total = len(kernel)
    m = total - n
    side = np.zeros((total, permutations + 1))
    side[:n, 0] = 1
    for j in range(1, permutations + 1):
        side[rng.permutation(total)[:n], j] = 1
    row_sums = kernel.sum(axis=1)
    first = np.einsum("ij,ij->j", side, kernel @ side)
    from_first = row_sums @ side
    cross = from_first - first
    second = row_sums.sum() - from_first - cross
    # k(x, x) = 1, so the n pairs of an example with itself sum to n
    value = (first - n) / (n * (n - 1)) + (second - m) / (m * (m - 1)) - 2 * cross / (n * m)
    at_least = value[1:] >= value[0] - 1e-12
    return float((1 + at_least.sum()) / (1 + permutations))


def _sides(source: Array, target: Array) -> tuple[Floats, Floats]:
    x, y = as_features(source, "source"), as_features(target, "target")
    if x.shape[1] != y.shape[1]:
        raise ValueError(
            f"source has {x.shape[1]} features and target {y.shape[1]}; both should be in the same embedding"
        )
    return x, y


def _measured(
    name: str,
    x: Floats,
    y: Floats,
    prepare: Callable[[], Statistic],
    seed: int,
    resamples: int,
    strata: tuple[Ints, Ints] | None = None,
    bounds: tuple[float, float] = (0, math.inf),
) -> Measurement:
    """`measured` for a distance between two finite sides, whose examples have classes only with `strata`."""

    def checked() -> Statistic:
        require_finite(x, "source")
        require_finite(y, "target")
        return prepare()

    strata = strata or (one_stratum(len(x)), one_stratum(len(y)))
    options = {"seed": seed, "resamples": resamples}
    return measured(name, "lower", checked, strata, d=x.shape[1], bounds=bounds, **options)
