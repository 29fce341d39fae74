"""Metrics of predictions against scikit-learn."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import pytest
from sklearn import metrics as sklearn
from sklearn.calibration import calibration_curve

from harness.core.metrics import aurocs, by_class, calibration, confusion, scores

Case = tuple[np.ndarray, np.ndarray, np.ndarray]


def case(classes: int, n: int, seed: int, absent: int | None = None, rounded: bool = False) -> Case:
    """Probabilities (float32), labels of unequal classes and predictions."""
    random = np.random.default_rng(seed)
    labels = np.minimum(random.geometric(0.4, n) - 1, classes - 1)
    if absent is not None:
        labels[labels == absent] = 0
    logits = 1.5 * np.eye(classes)[labels] + random.normal(size=(n, classes))
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    if rounded:  # so that many are equal
        probabilities = np.round(probabilities, 1) + 1e-3
        probabilities /= probabilities.sum(1, keepdims=True)
    probabilities = probabilities.astype(np.float32)
    return probabilities, labels, probabilities.argmax(1)


CASES = [case(2, 90, 0), case(4, 300, 1), case(10, 500, 2), case(4, 200, 3, rounded=True)]


def brier(p: np.ndarray, y: np.ndarray, _: np.ndarray) -> float:
    return float(
        sklearn.brier_score_loss(y, p, scale_by_half=False, labels=list(range(p.shape[1])))
    )


def auroc(p: np.ndarray, y: np.ndarray, _: np.ndarray) -> float:
    if p.shape[1] == 2:
        return float(sklearn.roc_auc_score(y, p[:, 1]))
    return float(np.mean([sklearn.roc_auc_score(y == k, p[:, k]) for k in np.unique(y)]))


def ece(p: np.ndarray, y: np.ndarray, predicted: np.ndarray) -> float:
    confidence, hit = p.max(1).astype(float), y == predicted
    right, sure = calibration_curve(hit, confidence, n_bins=15)
    counts = np.histogram(confidence, np.linspace(0, 1, 16))[0]
    return float((np.abs(right - sure) * counts[counts > 0]).sum() / len(y))


TRUTHS: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], float]] = {
    "balanced_accuracy": lambda p, y, predicted: sklearn.balanced_accuracy_score(y, predicted),
    "macro_f1": lambda p, y, predicted: sklearn.f1_score(y, predicted, average="macro"),
    "auroc": auroc,
    "brier": brier,
    "ece": ece,
}


@pytest.mark.parametrize("name", TRUTHS)
@pytest.mark.parametrize("found", CASES, ids=lambda c: f"{c[0].shape[1]}-classes")
def test_metrics_are_those_of_scikit_learn(name: str, found: Case) -> None:
    assert scores(*found)[name] == pytest.approx(TRUTHS[name](*found), abs=1e-6)


def test_classes_without_examples_do_not_count() -> None:
    found = case(5, 200, 4, absent=2)
    p, y, predicted = found
    got = scores(*found)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns that a predicted class has no examples
        recalls = sklearn.recall_score(y, predicted, average=None, labels=[0, 1, 3, 4])
        f1 = sklearn.f1_score(y, predicted, average="macro")
    assert got["balanced_accuracy"] == pytest.approx(np.mean(recalls))
    assert got["macro_f1"] == pytest.approx(f1)
    assert got["auroc"] == pytest.approx(auroc(*found), abs=1e-6)
    assert np.isnan(aurocs(p, y)[2])


def test_auroc_of_a_single_class_is_absent() -> None:
    p = np.array([[0.25, 0.75], [0.5, 0.5]], np.float32)
    got = scores(p, np.array([1, 1]), np.array([1, 0]))
    assert "auroc" not in got
    assert got["balanced_accuracy"] == 0.5


@pytest.mark.parametrize("found", CASES, ids=lambda c: f"{c[0].shape[1]}-classes")
def test_recall_precision_f1_and_confusion_of_each_class_are_those_of_scikit_learn(
    found: Case,
) -> None:
    p, y, predicted = found
    every = list(range(p.shape[1]))
    table = confusion(y, predicted, len(every))
    np.testing.assert_array_equal(table, sklearn.confusion_matrix(y, predicted, labels=every))
    got = by_class(table)
    wanted = sklearn.precision_recall_fscore_support(
        y, predicted, labels=every, zero_division=np.nan
    )
    for mine, theirs in zip((got.precision, got.recall, got.f1, got.examples), wanted, strict=True):
        np.testing.assert_allclose(mine, theirs)


def test_confidences_on_an_edge_belong_to_the_bin_below() -> None:
    got = calibration(np.array([0.2, 0.25, 1.0]), np.array([True, False, True]), bins=5)
    np.testing.assert_array_equal(got.examples, [1, 1, 0, 0, 1])
    np.testing.assert_array_equal(got.accuracy, [1, 0, np.nan, np.nan, 1])
    assert got.error == pytest.approx((0.8 + 0.25 + 0) / 3)
