"""Class weights and balanced sampling, against scikit-learn and formulas."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from sklearn.linear_model import LogisticRegression
from sklearn.utils.class_weight import compute_class_weight

from harness.core.spec import TrialSpec
from harness.core.strategies import FullFineTune, LinearProbe
from harness.data import load_target, split_indices, targets
from harness.data.cached import Cache
from harness.data.target import ArrayTarget
from harness.training.balance import balanced_batches, class_weights
from harness.training.device import resolve_device
from harness.training.features import fit_classifier
from harness.training.loop import start
from harness.training.provenance import clear_caches
from tests.refusals import refused

LABELS = np.repeat([0, 1, 2], [60, 30, 10])
NAMES = ("a", "b", "c")


@pytest.fixture
def unequal(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A target of 240, 120 and 40 images whose classes differ a little in brightness."""
    labels = np.repeat([0, 1, 2], [240, 120, 40])
    noise = np.random.default_rng(0).integers(0, 120, (400, 8, 8))
    pixels = (noise + 10 * labels[:, None, None]).clip(0, 255).astype(np.uint8)
    made = ArrayTarget("unequal", NAMES, labels, None, pixels)
    monkeypatch.setitem(targets.LOADERS, "unequal", lambda: made)
    clear_caches()
    yield "unequal"
    clear_caches()


def spec_of(target: str, **changes: object) -> TrialSpec:
    fields = {"source": "scratch", "resolution": 8, "epochs": 2, "batch_size": 16}
    return replace(TrialSpec(target, "small_cnn", LinearProbe(), **fields), **changes)  # type: ignore[arg-type]


def test_weights_are_those_of_scikit_learn() -> None:
    wanted = compute_class_weight("balanced", classes=np.arange(3), y=LABELS)
    assert_allclose(class_weights(LABELS, NAMES).numpy(), wanted, rtol=1e-6)


def test_class_without_training_images_is_named() -> None:
    with refused("needs training examples of every class, 'b' has none"):
        class_weights(np.array([0, 0, 2]), NAMES)


def test_loss_is_the_weighted_mean_of_the_images(unequal: str) -> None:
    fit = start(spec_of(unequal, class_weights="balanced"), resolve_device("cpu"))
    split = split_indices(load_target(unequal), fit.spec)
    weights = compute_class_weight(
        "balanced", classes=np.arange(3), y=load_target(unequal).labels[split.train]
    )
    logits = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(50) % 3
    each = -logits.log_softmax(1)[torch.arange(50), labels].numpy()
    wanted = np.average(each, weights=weights[labels.numpy()])
    assert float(fit._network.loss(logits, labels)) == pytest.approx(wanted, rel=1e-5)


def test_balanced_epoch_draws_as_many_images_with_equal_chances() -> None:
    generator = torch.Generator().manual_seed(0)
    draws = [balanced_batches(torch.from_numpy(LABELS), 32, generator) for _ in range(200)]
    assert {tuple(map(len, batches)) for batches in draws} == {(32, 32, 32, 4)}
    drawn = torch.cat([torch.cat(list(batches)) for batches in draws]).numpy()
    of_class = np.bincount(LABELS[drawn]) / len(drawn)
    assert_allclose(of_class, 1 / 3, atol=4 * np.sqrt(2 / 9 / len(drawn)))
    within = np.bincount(drawn[LABELS[drawn] == 2], minlength=100)[90:]
    assert within.min() > 0.8 * within.mean()


def test_draws_depend_on_the_generator_alone() -> None:
    labels = torch.from_numpy(LABELS)
    a, b, c = (
        torch.cat(list(balanced_batches(labels, 16, torch.Generator().manual_seed(s))))
        for s in (1, 1, 2)
    )
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


@pytest.mark.parametrize("changes", [{"class_weights": "balanced"}, {"sampling": "balanced"}])
def test_cached_outputs_of_frozen_layers_give_the_same_training(
    changes: dict[str, str], unequal: str, tmp_path: object
) -> None:
    """And another one than without the choice."""
    found = []
    for cache in (Cache(None, 0), Cache(tmp_path, 2**28)):  # type: ignore[arg-type]
        fit = start(spec_of(unequal, **changes), resolve_device("cpu"), cache)
        found.append([e.train_loss for e in fit])
    plain = [e.train_loss for e in start(spec_of(unequal), resolve_device("cpu"))]
    assert found[0] == found[1]
    assert found[0] != plain


@pytest.mark.parametrize("changes", [{"class_weights": "balanced"}, {"sampling": "balanced"}])
def test_small_classes_are_thought_more_likely(changes: dict[str, str], unequal: str) -> None:
    def smallest(**more: str) -> float:
        """Mean probability that the test images are given of being of the smallest class."""
        spec = spec_of(unequal, strategy=FullFineTune(), epochs=8, lr=0.003, **more)
        fit = start(spec, resolve_device("cpu"))
        for _ in fit:
            pass
        found = fit.finish(test=True).predictions
        assert found is not None
        assert found.probabilities is not None
        return float(found.probabilities[:, 2].mean())

    assert smallest(**changes) > 1.1 * smallest()


def test_logistic_regression_gets_the_weights() -> None:
    random = np.random.default_rng(0)
    x = (random.normal(size=(100, 4)) + LABELS[:, None]).astype(np.float32)
    fitted = fit_classifier("logistic", (x, LABELS), (x, LABELS), 3, balanced=True)
    own = LogisticRegression(C=fitted.setting, max_iter=2000, class_weight="balanced")
    scaled = fitted.model[0].transform(x)
    wanted = own.fit(scaled, LABELS).predict_proba(scaled)
    assert_allclose(np.exp(fitted.log_probabilities(x)), wanted, rtol=1e-4, atol=1e-6)


def test_logistic_regression_on_one_image_of_each_class_warns_of_nothing() -> None:
    """pytest treats warnings as errors; scikit-learn suspects a regression problem."""
    images, labels = np.eye(30, dtype=np.float32), np.arange(30)
    fitted = fit_classifier("logistic", (images, labels), (images, labels), 30)
    assert (fitted.log_probabilities(images).argmax(1) == labels).all()
