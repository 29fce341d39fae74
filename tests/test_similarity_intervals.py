"""Intervals are as wide as values differ between samples; baselines and the list of measures."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from harness.similarity import (
    MEASURES,
    Measurement,
    frechet,
    knn_accuracy,
    leep,
    log_source_size,
    logme,
    mmd,
    needs,
    otdd,
    source_accuracy,
    static_rank,
)
from harness.similarity.measurement import draw

N, RESAMPLES = 100, 20


def normal(seed: int, d: int = 4) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """A sample of two classes, their numbers fixed as in a study's subset."""
    y = np.arange(N) % 2
    return np.random.default_rng(seed).normal(size=(N, d)) + 0.8 * y[:, None], y


def one_class(seed: int) -> npt.NDArray[np.float64]:
    return np.random.default_rng(seed).normal(size=(N, 3))


def heads(seed: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    x, y = normal(seed)
    odds = np.exp(x)
    return odds / odds.sum(axis=1, keepdims=True), y


Sampler = Callable[[int, int], Measurement]
SAMPLERS: dict[str, Sampler] = {
    "frechet": lambda s, b: frechet(one_class(s), one_class(s + 10**6) + 2, resamples=b),
    "mmd": lambda s, b: mmd(
        one_class(s), one_class(s + 10**6) + 2, 2.0, resamples=b, permutations=0
    ),
    "otdd": lambda s, b: otdd(normal(s)[0] + 3, normal(s)[1], *normal(s + 10**6), resamples=b),
    "logme": lambda s, b: logme(*normal(s), resamples=b),
    "knn_accuracy": lambda s, b: knn_accuracy(*normal(s), resamples=b),
    "leep": lambda s, b: leep(*heads(s), resamples=b),
}


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.slow
def test_interval_is_as_wide_as_fresh_samples_differ(name: str) -> None:
    """The sd behind the interval against the sd of the values of new samples, and coverage of their mean.

    With some hundred samples and intervals coverage is .93 to .98; fewer here, for time.
    """
    sampler, intervals = SAMPLERS[name], 10 if name == "knn_accuracy" else 40
    values = [sampler(seed, 0).value for seed in range(1000, 1080)]
    found = [sampler(seed, RESAMPLES) for seed in range(2000, 2000 + intervals)]
    factor = 2 * float(stats.t.ppf(0.975, RESAMPLES - 1))
    widths = np.array([m.high - m.low for m in found]) / factor
    assert 0.75 < math.sqrt(np.mean(widths**2)) / np.std(values, ddof=1) < 1.35
    assert np.mean([m.low <= np.mean(values) <= m.high for m in found]) >= 0.85


def test_interval_holds_the_value_and_states_its_resamples() -> None:
    for sampler in SAMPLERS.values():
        found = sampler(0, RESAMPLES)
        assert found.low < found.value < found.high
        assert found.resamples == RESAMPLES
        assert found.reason == ""


def test_interval_is_drawn_by_seed() -> None:
    x, y = normal(0)
    assert logme(x, y, seed=3) == logme(x, y, seed=3)
    assert logme(x, y, seed=3).low != logme(x, y, seed=4).low


def test_interval_of_a_mean_is_that_of_the_textbook() -> None:
    """The Frechet distance between far points moves as 2 |m1 - m2| times the difference of means."""
    x, y = one_class(0)[:, :1], one_class(1)[:, :1] + 1000
    found = frechet(x, y, resamples=2000)
    sd = 2 * abs(float(x.mean() - y.mean())) * math.sqrt((x.var(ddof=1) + y.var(ddof=1)) / N)
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * sd, rel=0.06)


def test_no_resamples_mean_no_interval_and_say_so() -> None:
    found = logme(*normal(0), resamples=0)
    assert math.isfinite(found.value)
    assert math.isnan(found.low)
    assert found.reason == "no interval: 0 resamples were requested"
    with pytest.raises(ValueError, match="negative"):
        logme(*normal(0), resamples=-1)


def test_too_few_images_for_an_interval_leave_the_value() -> None:
    x, y = normal(0)
    rows = [0, 1, 2, 3]  # two of each class: a resample holds one
    found = knn_accuracy(x[rows], y[rows])
    assert math.isfinite(found.value)
    assert math.isnan(found.low)
    assert "no interval" in found.reason
    assert found.resamples == 0


def test_draw_keeps_proportions_and_takes_nothing_twice() -> None:
    strata = np.repeat([0, 1, 2], [50, 25, 5])
    rng = np.random.default_rng(0)
    drawn = [draw(strata, 40, rng) for _ in range(200)]
    assert all(len(np.unique(rows)) == 40 for rows in drawn)
    counts = np.array([np.bincount(strata[rows]) for rows in drawn])
    assert np.abs(counts - [25, 12.5, 2.5]).max() <= 1
    assert counts.mean(axis=0) == pytest.approx([25, 12.5, 2.5], abs=0.2)
    taken = np.bincount(np.concatenate(drawn), minlength=80) / 200
    assert taken == pytest.approx(np.full(80, 0.5), abs=0.15)


def test_static_rank_leaves_the_target_out() -> None:
    accuracy = np.array([[0.1, 0.2, 0.9], [0.9, 0.8, 0.7], [0.9, 0.9, 0.1], [0.5, math.nan, 0.6]])
    ranks = [static_rank(accuracy, source, target=0).value for source in range(3)]
    assert ranks == pytest.approx([1.25, 1.75, 3])
    assert static_rank(accuracy, 0, target=1).value == pytest.approx(np.mean([3, 1.5]))
    assert static_rank(accuracy, 0, 0).n == 2
    assert static_rank(accuracy, 0, 0).better == "lower"


def test_static_rank_refuses_without_another_target() -> None:
    assert static_rank(np.array([[0.1, 0.2]]), 0, 0).refused
    assert "one source" in static_rank(np.array([[0.1], [0.2]]), 0, 0).reason
    alone = static_rank(np.array([[0.1, 0.2], [0.3, 0.2]]), 0, 0)
    assert alone.value == 1
    assert "one other target" in alone.reason
    with pytest.raises(ValueError, match="no target 2"):
        static_rank(np.zeros((2, 2)), 0, 2)


def test_source_accuracy_has_wilsons_interval() -> None:
    found = source_accuracy(0.8, 10, 5)
    z, p, n = 1.959964, 0.8, 10
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    assert (found.low, found.high) == pytest.approx((middle - half, middle + half), abs=1e-6)
    assert source_accuracy(88.6, 100, 10).refused
    assert source_accuracy(math.nan, 100, 10).refused


def test_log_source_size() -> None:
    assert log_source_size(1000).value == pytest.approx(6.907755)


def test_every_measure_can_be_looped_over() -> None:
    x, y = normal(0)
    theta, _ = heads(0)
    data = {
        "source": x + 1, "source_labels": y, "target": x, "labels": y, "bandwidth": 2.0,
        "features": x, "probabilities": theta, "predicted": theta.argmax(axis=1),
    }  # fmt: skip
    for name, measure in MEASURES.items():
        found = measure(**{n: data[n] for n in needs(measure)}, seed=5, resamples=3)
        assert (found.name, found.seed, found.n, found.resamples) == (name, 5, N, 3)
        assert found.better == ("lower" if name in ("frechet", "mmd", "otdd") else "higher")
        assert math.isfinite(found.value)
