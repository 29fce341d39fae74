"""Measures of how well a source model's features fit the target's labels: cross-validation, LogME, H-score.

    logme(features, labels).value

All take the features (n, d) of the target's training examples from the source model, in any order, and their
labels (n,) as integers. Intervals: see `harness.similarity.measurement`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from sklearn.base import ClassifierMixin
from sklearn.linear_model import LogisticRegression
from sklearn.metrics.pairwise import euclidean_distances
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier

from harness.similarity.measurement import (
    Floats,
    Ints,
    Measurement,
    Refusal,
    Statistic,
    as_features,
    as_labels,
    measured,
    require_classes,
    require_varied,
)

Array = npt.NDArray[Any]

FOLDS = 5
"""Number of folds of a cross-validation; fewer if a class has fewer examples."""

CV_SHARE = 0.5
"""Share of the examples in a resample of a cross-validation. Each resample draws new folds, and with the
usual share of .8 the factor sqrt(m / (n - m)) would count that variation twice."""


def knn_accuracy(
    features: Array,
    labels: Array,
    *,
    neighbours: int = 5,
    seed: int = 0,
    resamples: int = 50,
) -> Measurement:
    """Cross-validated accuracy of nearest neighbours (scikit-learn) with Euclidean distance.

    Stratified folds are drawn by the seed. The accuracy does not change with shift, rotation or a common
    scale of the features.

    Args:
        neighbours: number of neighbours, limited to the number of examples in the smallest training fold.

    Raises:
        ValueError: for other shapes.
    """

    def prepare(x: Floats, y: Ints) -> Statistic:
        distances = euclidean_distances(x)

        def statistic(rows: Ints) -> float:
            k = min(neighbours, len(rows) // 2)
            model = KNeighborsClassifier(k, metric="precomputed")
            return _cv_accuracy(model, distances[np.ix_(rows, rows)], y[rows], seed)

        return statistic

    given = features, labels
    return _measured("knn_accuracy", *given, prepare, seed, resamples, (0, 1), CV_SHARE)


def probe_accuracy(
    features: Array, labels: Array, *, seed: int = 0, resamples: int = 10
) -> Measurement:
    """Cross-validated accuracy of a logistic regression on the features (scikit-learn, C = 1).

    The features are centred and divided by their root mean square, so the result does not change with shift,
    rotation or scale. If d > n, they are first rotated into n coordinates, without loss. Stratified folds are
    drawn by the seed. There are only ten resamples, because each is a whole cross-validation.

    Raises:
        ValueError: for other shapes.
    """

    def prepare(x: Floats, y: Ints) -> Statistic:
        centred = x - x.mean(axis=0)
        scaled = _rotated(centred / math.sqrt(float(np.mean(centred**2))))

        def statistic(rows: Ints) -> float:
            model = LogisticRegression(max_iter=5000, tol=1e-3)
            return _cv_accuracy(model, _rotated(scaled[rows]), y[rows], seed)

        return statistic

    given = features, labels
    return _measured("probe_accuracy", *given, prepare, seed, resamples, (0, 1), CV_SHARE)


def logme(features: Array, labels: Array, *, seed: int = 0, resamples: int = 20) -> Measurement:
    """Logarithm of the maximum evidence of a Bayesian linear model per example, averaged over classes (You et
    al. 2021).

    The 0/1 indicator of each class is regressed on the features without intercept, with weights ~ N(0,
    1/alpha) and noise ~ N(0, 1/beta). For a given beta/alpha the best beta has a closed form, so the evidence
    is maximised over one number, on a grid and then by Brent's method. The usual fixed-point iteration is not
    used, because its common implementation is wrong for n < d. The value depends on the target's labels, so
    compare sources only for the same target. It does not change with rotation and scale of the features, but
    with shift.

    Raises:
        ValueError: for other shapes.
    """

    def prepare(x: Floats, y: Ints) -> Statistic:
        return lambda rows: _evidence(x[rows], y[rows]) / len(rows)

    return _measured("logme", features, labels, prepare, seed, resamples)


def hscore(features: Array, labels: Array, *, seed: int = 0, resamples: int = 10) -> Measurement:
    """tr(S^+ S_between): Pillai's trace of the features by class (Bao et al. 2019; Pillai 1955).

    S is the covariance of all features, S_between that of the class means, weighted by their numbers of
    examples. The value is in [0, C - 1] for C classes. For features without information it is on average
    d (C - 1) / (n - 1), which grows with d, so compare values only for equal n and d. It is refused if the
    centred features span all n - 1 directions, because it is then C - 1 for any labels. It does not change
    with invertible linear maps.

    Raises:
        ValueError: for other shapes.
    """

    def prepare(x: Floats, y: Ints) -> Statistic:
        return lambda rows: _pillai(x[rows], y[rows])

    most = len(np.unique(labels)) - 1
    return _measured("hscore", features, labels, prepare, seed, resamples, (0, most))


def _measured(
    name: str,
    features: Array,
    labels: Array,
    prepare: Callable[[Floats, Ints], Statistic],
    seed: int,
    resamples: int,
    bounds: tuple[float, float] = (-math.inf, math.inf),
    share: float = 0.8,
) -> Measurement:
    """`measured` for a measure whose `prepare` gets the features, which vary, and the labels."""
    x = as_features(features, "features")
    y = as_labels(labels, len(x), "labels")

    def checked() -> Statistic:
        require_varied(x, "features")
        return prepare(x, y)

    options = {"seed": seed, "resamples": resamples}
    return measured(
        name, "higher", checked, (y,), d=x.shape[1], share=share, bounds=bounds, **options
    )


def _cv_accuracy(model: ClassifierMixin, x: Floats, y: Ints, seed: int) -> float:
    require_classes(y, 2, "labels")
    counts = np.bincount(y)
    folds = min(FOLDS, int(counts[counts > 0].min()))
    splits = StratifiedKFold(folds, shuffle=True, random_state=seed)
    return float(np.mean(cross_val_predict(model, x, y, cv=splits) == y))


def _rotated(x: Floats) -> Floats:
    """Rows of x (n, d) in at most n coordinates with the same inner products: x' = L' Q with Q orthonormal,
    so the rows of L can replace those of x."""
    return x if x.shape[1] <= x.shape[0] else np.asarray(np.linalg.qr(x.T, mode="r")).T


def _evidence(x: Floats, y: Ints) -> float:
    """Mean over the classes of the maximum log evidence of their indicators.

    With the eigenvalues s of X X', the coordinates z of an indicator in its eigenvectors, the squared length
    r of its part outside of them, and g = beta / alpha: 1 / beta = q / n with q = r + sum z^2 / (1 + g s),
    and the log evidence is -n/2 (log(2 pi q / n) + 1) - 1/2 sum log(1 + g s) (MacKay 1992).
    """
    require_classes(y, 1, "labels")
    n = len(x)
    indicator = (y[:, None] == np.unique(y)).astype(np.float64)
    eigenvalues, squares = _spectrum(x, indicator)
    if not len(eigenvalues):
        raise Refusal("the features are 0 for every example")
    outside = np.maximum(indicator.sum(axis=0) - squares.sum(axis=0), 0.0)
    if len(eigenvalues) == n:
        outside[:] = 0.0

    def log_evidence(log_g: Floats) -> Floats:
        shrunk = 1 + np.exp(log_g)[:, None] * eigenvalues
        q = outside + (1 / shrunk) @ squares
        fit = -n / 2 * (np.log(2 * math.pi * q / n) + 1)
        return np.asarray(fit - np.log(shrunk).sum(axis=1, keepdims=True) / 2)

    exact = (len(eigenvalues) < n) & (outside <= 1e-10 * indicator.sum(axis=0))
    if exact.any():
        raise Refusal(
            "a class is an exact linear function of the features, so the evidence is unbounded"
        )
    grid = np.arange(-30.0, 60.0) - math.log(eigenvalues.max())
    on_grid = log_evidence(grid)
    best = []
    for c, top in enumerate(np.argmax(on_grid, axis=0)):
        refined = minimize_scalar(
            lambda g, c=c: -float(log_evidence(np.array([g]))[0, c]),
            bounds=(grid[max(top - 1, 0)], grid[min(top + 1, len(grid) - 1)]),
            method="bounded",
            options={"xatol": 1e-7},
        )
        best.append(max(float(on_grid[top, c]), -float(refined.fun)))
    return float(np.mean(best))


def _spectrum(x: Floats, targets: Floats) -> tuple[Floats, Floats]:
    """Positive eigenvalues (r,) of x x', and squares (r, C) of the targets' coordinates in the eigenvectors.

    They are computed from the smaller of x x' and x' x, which is several times faster than a singular value
    decomposition.
    """
    n, d = x.shape
    eigenvalues, vectors = np.linalg.eigh(x @ x.T if n <= d else x.T @ x)
    kept = eigenvalues > max(n, d) * np.finfo(np.float64).eps * max(eigenvalues.max(), 0.0)
    eigenvalues, vectors = eigenvalues[kept], vectors[:, kept]
    if n <= d:
        return eigenvalues, (vectors.T @ targets) ** 2
    return eigenvalues, (vectors.T @ (x.T @ targets)) ** 2 / eigenvalues[:, None]


def _pillai(x: Floats, y: Ints) -> float:
    """Sum of the squared lengths of the classes' unit indicators, projected on the span of the centred
    features."""
    require_classes(y, 1, "labels")
    n, d = x.shape
    classes, counts = np.unique(y, return_counts=True)
    indicator = (y[:, None] == classes) / np.sqrt(counts)
    # centred too: otherwise rounding in nearly constant features would look like a fit
    indicator -= indicator.mean(axis=0)
    eigenvalues, squares = _spectrum(x - x.mean(axis=0), indicator)
    if len(eigenvalues) >= n - 1:
        raise Refusal(
            f"with {n} examples for d={d}, the value is C - 1 = {len(classes) - 1} for any labels"
        )
    return float(squares.sum())
