"""Debiased linear CKA: how similar the features of the same images are in two networks.

    cka(before, after).value

It shows how much fine-tuning has changed a network; it does not predict transfer.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.similarity.measurement import (
    Floats,
    Measurement,
    Refusal,
    Statistic,
    as_features,
    measured,
    one_stratum,
    require_varied,
)


def cka(
    before: npt.NDArray[Any], after: npt.NDArray[Any], *, seed: int = 0, resamples: int = 100
) -> Measurement:
    """Debiased linear CKA (Kornblith et al. 2019 with the HSIC U-statistic of Song et al. 2012).

    HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)): 1 for features that are equal up to rotation, scale and shift,
    and 0 on average for independent features, so that it may be slightly negative. The biased version gives
    .9 for independent noise at n = 100, d = 1000. Higher means more similar. It needs at least 4 images, and
    memory for two n x n matrices. The `d` of the result is the number of features in `before`.

    Args:
        before: (n, d) and after: (n, d'), the same images in the same order.

    Raises:
        ValueError: for other shapes.
    """
    x, y = as_features(before, "before"), as_features(after, "after")
    if len(x) != len(y):
        raise ValueError(
            f"before has {len(x)} examples and after {len(y)}; they should be the same"
        )

    def prepare() -> Statistic:
        require_varied(x, "before")
        require_varied(y, "after")
        first, second = _gram(x), _gram(y)
        return lambda rows: _ratio(first[np.ix_(rows, rows)], second[np.ix_(rows, rows)])

    return measured(
        "cka",
        "higher",
        prepare,
        (one_stratum(len(x)),),
        d=x.shape[1],
        seed=seed,
        resamples=resamples,
        bounds=(-1, 1),
    )


def _gram(x: Floats) -> Floats:
    """Inner products (n, n) of the centred rows of x (n, d), scaled to a mean square of 1."""
    centred = x - x.mean(axis=0)
    centred /= math.sqrt(float(np.mean(centred**2)))
    return np.asarray(centred @ centred.T)


def _ratio(first: Floats, second: Floats) -> float:
    n = len(first)
    if n < 4:
        raise Refusal(f"{n} examples: the U-statistic needs at least 4")
    own = _hsic(first, first) * _hsic(second, second)
    # constant features have HSIC 0 with themselves, up to rounding
    floor = 1e-20 * float(np.mean(first**2) * np.mean(second**2))
    if own <= floor:
        raise Refusal(
            "the features of one side do not depend on the example: HSIC with itself is 0"
        )
    return _hsic(first, second) / math.sqrt(own)


def _hsic(first: Floats, second: Floats) -> float:
    """Unbiased HSIC of two Gram matrices (n, n) (Song et al. 2012, eq. 5)."""
    n = len(first)
    k, m = (matrix - np.diag(np.diag(matrix)) for matrix in (first, second))
    together = float(np.sum(k * m))
    apart = float(k.sum() * m.sum()) / ((n - 1) * (n - 2))
    shared = 2 * float(k.sum(axis=0) @ m.sum(axis=0)) / (n - 2)
    return (together + apart - shared) / (n * (n - 3))
