"""Distances between two sets of images equal the worked cases, and refuse what has no distance."""

from __future__ import annotations

import itertools
import math

import numpy as np
import numpy.typing as npt
import pytest
from scipy.linalg import sqrtm
from scipy.stats import special_ortho_group

from harness.similarity import frechet, median_bandwidth, mmd, otdd, principal_axes
from harness.similarity.distances import gaussian_distance

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
ONE_CLASS = np.zeros(2, dtype=np.int64)


def sample(n: int, mean: Floats, covariance: Floats, seed: int) -> Floats:
    """n images whose sample mean and covariance are exactly these."""
    x = np.random.default_rng(seed).normal(size=(n, len(mean)))
    x -= x.mean(axis=0)
    whitened = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T))).T
    return np.asarray(whitened @ np.linalg.cholesky(covariance).T + mean)


def classes(n: int, seed: int, shift: float = 0.0) -> tuple[Floats, Ints]:
    """n images of three classes in four dimensions."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 3
    return rng.normal(size=(n, 4)) + 3 * np.eye(4)[y] + shift, y


def test_frechet_of_shifted_and_widened_gaussians_is_12() -> None:
    x = sample(50, np.zeros(3), np.eye(3), seed=0)
    y = sample(50, np.array([1.0, 2.0, 2.0]), 4 * np.eye(3), seed=1)
    assert frechet(x, y).value == pytest.approx(12, abs=1e-9)


def test_frechet_of_a_gaussian_turned_by_45_degrees() -> None:
    turn = np.array([[1.0, -1.0], [1.0, 1.0]]) / math.sqrt(2)
    long = np.diag([1.0, 4.0])
    x = sample(50, np.zeros(2), long, seed=0)
    y = sample(50, np.zeros(2), turn @ long @ turn.T, seed=1)
    assert frechet(x, y).value == pytest.approx(0.944615, abs=5e-7)


def test_frechet_equals_the_formula_with_matrix_roots() -> None:
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(40, 5)) @ rng.normal(size=(5, 5)), rng.normal(size=(40, 5)) + 1
    s, t = np.cov(x.T), np.cov(y.T)
    root = sqrtm(s)
    overlap = np.trace(sqrtm(root @ t @ root)).real
    truth = np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(s + t) - 2 * overlap
    assert frechet(x, y).value == pytest.approx(truth, rel=1e-10)


def test_frechet_is_zero_to_itself_symmetric_and_blind_to_rotation() -> None:
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(60, 6)), 2 * rng.normal(size=(60, 6)) + 1
    turn = special_ortho_group.rvs(6, random_state=0)
    value = frechet(x, y).value
    assert frechet(x, x).value == pytest.approx(0, abs=1e-12)
    assert frechet(y, x).value == pytest.approx(value)
    assert frechet(x @ turn, y @ turn).value == pytest.approx(value)


def test_frechet_draws_the_larger_side_down_and_says_so() -> None:
    rng = np.random.default_rng(5)
    found = frechet(rng.normal(size=(500, 3)), rng.normal(size=(40, 3)))
    assert (found.n, found.d) == (40, 3)


def test_frechet_refuses_fewer_images_than_dimensions() -> None:
    rng = np.random.default_rng(6)
    found = frechet(rng.normal(size=(10, 10)), rng.normal(size=(100, 10)))
    assert found.refused
    assert "10 examples per side for d=10" in found.reason


def test_mmd_of_two_pairs_is_negative() -> None:
    x, y = np.array([[0.0], [1.0]]), np.array([[0.0], [2.0]])
    assert mmd(x, y, 1.0).value == pytest.approx(-0.432332, abs=5e-7)


def test_mmd_of_shifted_gaussians_is_on_average_that_of_the_population() -> None:
    rng = np.random.default_rng(0)
    values = [
        mmd(rng.normal(size=(30, 1)), rng.normal(size=(20, 1)) + 1, 1.0,
            resamples=0, permutations=0).value
        for _ in range(400)
    ]  # fmt: skip
    error = np.std(values) / math.sqrt(len(values))
    assert abs(np.mean(values) - 0.177268) < 3 * error
    assert error < 0.006


def test_mmd_permutation_p_counts_every_split() -> None:
    """Six images have 20 splits of three and three; many draws come near the exact share."""
    x, y = np.array([[0.0], [0.3], [1.0]]), np.array([[0.9], [1.4], [2.5]])
    both = np.concatenate([x, y])
    own = mmd(x, y, 1.0, permutations=0).value
    splits = []
    for first in itertools.combinations(range(6), 3):
        second = [i for i in range(6) if i not in first]
        splits.append(mmd(both[list(first)], both[second], 1.0, permutations=0).value)
    exact = np.mean(np.array(splits) >= own - 1e-12)
    assert mmd(x, y, 1.0, permutations=20_000).p == pytest.approx(exact, abs=0.01)


def test_mmd_p_is_uniform_without_and_small_with_a_difference() -> None:
    rng = np.random.default_rng(1)

    def p(shift: float) -> float:
        x, y = rng.normal(size=(20, 2)), rng.normal(size=(25, 2)) + shift
        return mmd(x, y, 1.0, resamples=0, permutations=99).p

    none = np.array([p(0.0) for _ in range(300)])
    assert np.mean(none <= 0.1) == pytest.approx(0.1, abs=0.05)
    assert np.mean(none) == pytest.approx(0.5, abs=0.05)
    assert max(p(2.0) for _ in range(20)) <= 0.02


def test_otdd_of_two_shifted_pairs_is_8() -> None:
    x, y = np.array([[0.0], [1.0]]), np.array([[2.0], [3.0]])
    assert otdd(x, ONE_CLASS, y, ONE_CLASS).value == pytest.approx(8)


def test_otdd_to_itself_with_other_class_names_is_zero() -> None:
    x, y = classes(60, seed=0)
    assert otdd(x, y, x, np.array([7, 3, 5])[y]).value == pytest.approx(0, abs=1e-9)
    assert otdd(x, y, x, np.random.default_rng(0).permutation(y)).value > 1


def test_otdd_equals_the_best_of_all_assignments() -> None:
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(5, 2)), rng.normal(size=(5, 2)) + 1
    own, other = np.array([0, 0, 1, 1, 1]), np.array([1, 0, 1, 0, 1])

    def bures(a: Floats, b: Floats) -> float:
        s, t = np.cov(a.T), np.cov(b.T)
        # det of a 2 x 2: tr (s t)^.5 = sqrt(tr(s t) + 2 sqrt(det s det t))
        dets = max(0.0, float(np.linalg.det(s) * np.linalg.det(t)))
        overlap = math.sqrt(float(np.trace(s @ t)) + 2 * math.sqrt(dets))
        shift = float(np.sum((a.mean(0) - b.mean(0)) ** 2))
        return shift + float(np.trace(s + t)) - 2 * overlap

    cost = [
        [np.sum((x[i] - y[j]) ** 2) + bures(x[own == own[i]], y[other == other[j]])
         for j in range(5)] for i in range(5)
    ]  # fmt: skip
    best = min(sum(cost[i][p[i]] for i in range(5)) for p in itertools.permutations(range(5))) / 5
    assert otdd(x, own, y, other).value == pytest.approx(best, rel=1e-6)


def test_otdd_grows_with_the_shift() -> None:
    x, y = classes(60, seed=0)
    values = [otdd(*classes(60, 1, shift), x, y, resamples=0).value for shift in (0.0, 1.0, 3.0)]
    assert values == sorted(values)


def test_otdd_refuses_a_class_of_one_image() -> None:
    x, y = classes(30, seed=0)
    alone = y.copy()
    alone[0] = 9
    assert "a class of source_labels has 1 example" in otdd(x, alone, x, y).reason
    assert "a class of labels has 1 example" in otdd(x, y, x, alone).reason


def test_gaussian_distance_of_degenerate_gaussians_is_that_of_their_means() -> None:
    point = np.zeros((2, 1))
    assert gaussian_distance(np.zeros(2), point, np.array([3.0, 4.0]), point) == pytest.approx(25)


def test_principal_axes_are_orthonormal_and_ordered() -> None:
    x = np.random.default_rng(0).normal(size=(200, 5)) * np.array([1.0, 5, 2, 0.1, 3])
    axes = principal_axes(x, 3)
    assert axes.T @ axes == pytest.approx(np.eye(3), abs=1e-9)
    assert np.abs(axes).argmax(axis=0).tolist() == [1, 4, 2]
    assert principal_axes(x[:4], 64).shape == (5, 3)


def test_median_bandwidth_is_the_median_of_all_distances() -> None:
    assert median_bandwidth(np.array([[0.0], [1.0], [5.0]])) == pytest.approx(4)
    with pytest.raises(ValueError, match="above 0"):
        median_bandwidth(np.ones((5, 2)))


def test_shapes_that_do_not_fit_are_errors() -> None:
    x, y = classes(30, seed=0)
    with pytest.raises(ValueError, match="4 features and target 3"):
        frechet(x, x[:, :3])
    with pytest.raises(ValueError, match=r"should be \(examples, features\)"):
        mmd(x[:, 0], x, 1.0)
    with pytest.raises(ValueError, match=r"should be \(30,\)"):
        otdd(x, y[:-1], x, y)
    with pytest.raises(ValueError, match="bandwidth = 0"):
        mmd(x, x, 0.0)
