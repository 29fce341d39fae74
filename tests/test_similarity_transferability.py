"""Scores of features and source heads equal scikit-learn, statsmodels and worked cases."""

from __future__ import annotations

import math
import time

import numpy as np
import numpy.typing as npt
import pytest
from scipy.stats import special_ortho_group
from sklearn.linear_model import BayesianRidge, LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from statsmodels.multivariate.manova import MANOVA

from harness.similarity import (
    Measurement,
    hscore,
    knn_accuracy,
    leep,
    logme,
    nce,
    probe_accuracy,
)
from harness.similarity.source_head import leep_value

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def data(n: int, d: int, c: int = 3, seed: int = 0, apart: float = 0.5) -> tuple[Floats, Ints]:
    rng = np.random.default_rng(seed)
    y = np.arange(n) % c
    return rng.normal(size=(n, d)) + apart * rng.normal(size=(c, d))[y] + 0.3, y


def far_clusters() -> tuple[Floats, Ints]:
    x, y = data(30, 4, apart=0.0)
    return x + 100 * np.eye(4)[y], y


@pytest.mark.parametrize("measure", [knn_accuracy, probe_accuracy])
def test_three_far_clusters_are_told_apart_without_error(measure: object) -> None:
    assert callable(measure)
    found = measure(*far_clusters())
    assert (found.value, found.low, found.high) == (1.0, 1.0, 1.0)


def test_cross_validated_accuracies_equal_those_of_scikit_learn() -> None:
    x, y = data(90, 6)
    folds = StratifiedKFold(5, shuffle=True, random_state=7)
    knn = cross_val_score(KNeighborsClassifier(5), x, y, cv=folds).mean()
    assert knn_accuracy(x, y, seed=7, resamples=0).value == pytest.approx(knn)
    centred = x - x.mean(axis=0)
    model = LogisticRegression(max_iter=5000, tol=1e-3)
    probe = cross_val_score(model, centred / centred.std(), y, cv=folds).mean()
    assert probe_accuracy(x, y, seed=7, resamples=0).value == pytest.approx(probe)
    assert 0.4 < knn < 0.95


@pytest.mark.parametrize(("n", "d"), [(60, 5), (40, 100)])
@pytest.mark.parametrize("measure", [knn_accuracy, probe_accuracy])
def test_accuracies_do_not_change_with_shift_rotation_and_scale(
    measure: object, n: int, d: int
) -> None:
    assert callable(measure)
    x, y = data(n, d)
    turn = special_ortho_group.rvs(d, random_state=1)
    assert measure(3 * x @ turn + 1, y, resamples=0).value == measure(x, y, resamples=0).value


def test_accuracies_of_features_that_know_nothing_are_chance() -> None:
    values = [
        [m(*data(60, 5, 3, seed, apart=0.0), resamples=0).value for seed in range(30)]
        for m in (knn_accuracy, probe_accuracy)
    ]
    assert np.mean(values, axis=1) == pytest.approx([1 / 3, 1 / 3], abs=0.05)


@pytest.mark.parametrize(("n", "d"), [(200, 20), (90, 89), (60, 60), (40, 120), (200, 512)])
def test_logme_equals_bayesian_ridge(n: int, d: int) -> None:
    x, y = data(n, d, apart=0.3)
    evidence = []
    for c in range(3):
        model = BayesianRidge(
            alpha_1=0, alpha_2=0, lambda_1=0, lambda_2=0,
            fit_intercept=False, compute_score=True, max_iter=20_000, tol=1e-13,
        ).fit(x, (y == c).astype(float))  # fmt: skip
        evidence.append(model.scores_[-1] / n)
    assert logme(x, y, resamples=0).value == pytest.approx(np.mean(evidence), abs=1e-8)


def test_logme_of_features_that_explain_nothing_is_that_of_noise_alone() -> None:
    """Features orthogonal to every class: all variance is noise, of variance |y|^2 / n = 1/2."""
    x, y = np.array([[1.0], [1.0], [-1.0], [-1.0]]), np.array([0, 1, 0, 1])
    noise = -(math.log(2 * math.pi * 0.5) + 1) / 2
    assert logme(x, y).value == pytest.approx(noise, abs=1e-8)


def test_logme_does_not_change_with_rotation_and_scale() -> None:
    for n, d in [(80, 10), (30, 50)]:
        x, y = data(n, d)
        turn = special_ortho_group.rvs(d, random_state=2)
        value = logme(1e4 * x @ turn, y, resamples=0).value
        assert value == pytest.approx(logme(x, y, resamples=0).value, abs=1e-8)


def test_logme_does_not_mind_repeated_features() -> None:
    """A feature twice is the feature times sqrt(2)."""
    x, y = data(80, 10)
    twice = logme(np.hstack([x, x]), y, resamples=0).value
    assert twice == pytest.approx(logme(x, y, resamples=0).value, abs=1e-8)


def test_logme_refuses_a_feature_that_is_the_label() -> None:
    y = np.arange(20) % 2
    found = logme(np.eye(2)[y], y)
    assert found.refused
    assert "evidence is unbounded" in found.reason


def test_logme_of_two_thousand_images_takes_about_a_second() -> None:
    x, y = data(2000, 1280, 10)
    start = time.process_time()
    assert math.isfinite(logme(x, y, resamples=0).value)
    assert time.process_time() - start < 3


@pytest.mark.parametrize(("n", "d", "c"), [(60, 4, 3), (200, 20, 5)])
def test_hscore_is_pillais_trace(n: int, d: int, c: int) -> None:
    x, y = data(n, d, c)
    table = MANOVA(x, np.eye(c)[y]).mv_test([("classes", np.eye(c)[1:] - np.eye(c)[0], np.eye(d))])
    pillai = float(table.results["classes"]["stat"].loc["Pillai's trace", "Value"])
    assert hscore(x, y).value == pytest.approx(pillai, abs=1e-10)


def test_hscore_of_two_overlapping_pairs_is_one_half() -> None:
    x = np.array([[-2.0], [0.0], [0.0], [2.0]])
    assert hscore(x, np.array([0, 0, 1, 1])).value == pytest.approx(0.5)


def test_hscore_of_ignorant_features_is_on_average_its_null() -> None:
    values = [hscore(*data(50, 12, 4, s, apart=0.0), resamples=0).value for s in range(300)]
    error = np.std(values) / math.sqrt(len(values))
    null = 12 * (4 - 1) / (50 - 1)  # mean of Pillai's trace if the classes do not differ
    assert abs(np.mean(values) - null) < 3 * error
    assert error < 0.02


def test_hscore_does_not_change_with_a_linear_map_or_repeated_features() -> None:
    x, y = data(60, 5)
    mix = np.random.default_rng(0).normal(size=(5, 5))
    value = hscore(x, y).value
    assert hscore(x @ mix + 3, y).value == pytest.approx(value)
    assert hscore(np.hstack([x, x @ mix]), y).value == pytest.approx(value)


def test_features_that_hardly_vary_are_constant() -> None:
    x, y = data(30, 4)
    found = hscore(1 + 1e-9 * x, y)
    assert "same for every example" in found.reason
    assert hscore(1 + 1e-4 * x, y).value == pytest.approx(hscore(x, y).value, rel=1e-6)


def test_a_feature_of_one_image_only_leaves_the_value_without_interval() -> None:
    """Resamples without that image hold zeros only."""
    x, y = np.zeros((10, 2)), np.arange(10) % 2
    x[0] = 1
    found = logme(x, y)
    assert math.isfinite(found.value)
    assert "no interval: on 80% of the examples, the features are 0" in found.reason


def test_hscore_refuses_features_that_span_everything() -> None:
    found = hscore(*data(30, 40))
    assert found.refused
    assert "C - 1 = 2 for any labels" in found.reason
    assert hscore(*data(42, 40)).value <= 2


def test_nce_of_the_worked_joint() -> None:
    z, y = np.repeat([0, 0, 1, 1], [3, 1, 1, 3]), np.repeat([0, 1, 0, 1], [3, 1, 1, 3])
    assert nce(z, y).value == pytest.approx(-0.562335, abs=5e-7)


def test_leep_of_a_hard_head_is_nce() -> None:
    rng = np.random.default_rng(0)
    z, y = rng.integers(0, 5, 80), rng.integers(0, 3, 80)
    assert leep(np.eye(5)[z], y).value == pytest.approx(nce(z, y).value, abs=1e-12)


def test_leep_follows_its_formula() -> None:
    rng = np.random.default_rng(1)
    theta, y = rng.dirichlet(np.ones(4), size=30), rng.integers(0, 3, 30)
    total = 0.0
    for i in range(30):
        given = [theta[y == y[i], z].sum() / theta[:, z].sum() for z in range(4)]
        total += math.log(sum(g * t for g, t in zip(given, theta[i], strict=True)))
    assert leep(theta, y).value == pytest.approx(total / 30)


def test_leep_of_a_constant_head_is_minus_the_entropy_and_so_refused() -> None:
    theta, y = np.tile([0.2, 0.8], (4, 1)), np.array([0, 1, 1, 1])
    entropy = 0.25 * math.log(4) + 0.75 * math.log(4 / 3)
    assert leep_value(theta, y) == pytest.approx(-entropy)
    found = leep(theta, y)
    assert found.refused
    assert f"{-entropy:.6g}" in found.reason
    assert nce(np.zeros(4, dtype=int), y).refused


def test_leep_rises_with_the_source_classes_without_any_signal() -> None:
    rng = np.random.default_rng(2)
    y = rng.integers(0, 5, 100)
    values = [leep(np.eye(c)[rng.integers(0, c, 100)], y, resamples=0).value for c in (5, 30, 300)]
    assert values == sorted(values)


def test_leep_refuses_what_is_not_a_probability() -> None:
    theta, y = np.random.default_rng(0).dirichlet(np.ones(3), size=20), np.arange(20) % 2
    for wrong in (2 * theta, theta - 0.5, np.log(theta)):
        assert "sum to 1" in leep(wrong, y).reason


def refusals() -> list[tuple[Measurement, str]]:
    x, y = data(30, 4)
    broken, alone = x.copy(), y.copy()
    broken[3, 1] = math.nan
    alone[0] = 9
    found: list[tuple[Measurement, str]] = []
    for measure in (knn_accuracy, probe_accuracy, logme, hscore):
        found += [
            (measure(broken, y), "NaN or infinity"),
            (measure(np.ones((30, 4)), y), "same for every example"),
            (measure(x, np.zeros(30, dtype=int)), "one class"),
            (measure(x[:1], y[:1]), "n = 1: at least 2"),
        ]
    found += [(m(x, alone), "has 1 example") for m in (knn_accuracy, probe_accuracy)]
    return found


def test_what_has_no_meaning_is_refused_with_its_reason() -> None:
    for found, reason in refusals():
        assert found.refused, found
        assert reason in found.reason
        assert math.isnan(found.low)
        assert math.isnan(found.high)


def test_shapes_that_do_not_fit_are_errors() -> None:
    x, y = data(30, 4)
    for measure in (knn_accuracy, probe_accuracy, logme, hscore, leep):
        with pytest.raises(ValueError, match=r"should be \(30,\)"):
            measure(x, y[:-1])
        with pytest.raises(ValueError, match="should have an integer type"):
            measure(x, y + 0.5)
        with pytest.raises(ValueError, match="should be \\(examples, features\\)"):
            measure(x[0], y)
    with pytest.raises(ValueError, match="predicted has shape"):
        nce(x.astype(int), y)
