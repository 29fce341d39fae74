"""Intervals and tests over test images that belong to groups, and what is recorded of a split."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from analysis import compare
from analysis.load.predictions import predictions_frames
from harness.core.results import PREDICTIONS_FILE, predictions_parquet
from harness.core.spec import TrialSpec
from harness.data import clear_caches, images_per_class, load_target, split_indices, targets
from harness.data.target import ArrayTarget
from harness.training.device import resolve_device
from harness.training.loop import start
from tests.made_studies import predicted
from tests.trials import MakeSpec


def test_images_that_are_all_alike_in_a_group_count_as_one() -> None:
    random = np.random.default_rng(0)
    right = random.random((1, 60)) < 0.7
    tenfold = np.repeat(right, 10, axis=1)
    groups = np.repeat(np.arange(60), 10)
    alone = compare.over_examples(predicted("a", right), resamples=4000).iloc[0]
    grouped = compare.over_examples(predicted("a", tenfold, groups), resamples=4000).iloc[0]
    naive = compare.over_examples(predicted("a", tenfold), resamples=4000).iloc[0]
    assert grouped["mean"] == pytest.approx(alone["mean"])
    assert grouped["se_examples"] == pytest.approx(alone["se_examples"], rel=0.05)
    assert naive["se_examples"] == pytest.approx(alone["se_examples"] / 10**0.5, rel=0.05)
    # The truth of independent groups: the standard error of a share.
    p = right.mean()
    assert grouped["se_examples"] == pytest.approx((p * (1 - p) / 60) ** 0.5, rel=0.05)


def test_groups_of_one_image_are_no_groups() -> None:
    right = np.random.default_rng(1).random((3, 40)) < 0.6
    numbered = predicted("a", right, np.arange(40))
    for resamples in (50, 300):
        without = compare.over_examples(predicted("a", right), resamples)
        pd.testing.assert_frame_equal(compare.over_examples(numbered, resamples), without)
    assert compare.are_grouped(numbered)
    assert not compare.are_grouped(predicted("a", right))


def flipped(sums: list[int]) -> float:
    """Share of all ways to choose signs that give a sum as far from 0, by counting them."""
    seen = abs(sum(sums))
    ways = [
        abs(sum(sign * s for sign, s in zip(signs, sums, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(sums))
    ]
    return float(np.mean([way >= seen for way in ways]))


@pytest.mark.parametrize("sums", [[3, 2, -1, 4, 1], [1, 1, 1, 1], [5, -5, 2], [0, 0], [7]])
def test_clustered_mcnemar_counts_the_signs_of_whole_groups(sums: list[int]) -> None:
    group = np.repeat(np.arange(len(sums)), 8)
    mine = np.concatenate([np.arange(8) < max(s, 0) for s in sums])
    theirs = np.concatenate([np.arange(8) < max(-s, 0) for s in sums])
    both = pd.concat([predicted("a", mine[None], group), predicted("b", theirs[None], group)])
    got = compare.mcnemar_over_seeds(compare.hits(both), "a", "b")
    assert got["p_images"] == pytest.approx(min(1.0, 2 * flipped(sums)))


def test_clustered_mcnemar_of_single_images_is_mcnemars() -> None:
    random = np.random.default_rng(2)
    a, b = random.random((1, 50)) < 0.8, random.random((1, 50)) < 0.6
    frames = [predicted("a", a), predicted("b", b)]
    exact = compare.mcnemar_over_seeds(compare.hits(pd.concat(frames)), "a", "b")["p_images"]
    # Two images of one group that nobody gets wrong change nothing but the way that p is computed.
    right = np.ones((1, 2), np.bool_)
    groups = np.append(np.arange(50), [77, 77])
    more = [
        predicted("a", np.hstack([a, right]), groups),
        predicted("b", np.hstack([b, right]), groups),
    ]
    clustered = compare.mcnemar_over_seeds(compare.hits(pd.concat(more)), "a", "b")["p_images"]
    assert clustered == pytest.approx(exact)


@pytest.fixture
def clinic(monkeypatch: pytest.MonkeyPatch) -> Iterator[ArrayTarget]:
    """Ten patients with 8 and ten with 4 images, of two classes."""
    labels = np.repeat([0, 1], [80, 40])
    groups = 500 + np.repeat(np.arange(20), np.repeat([8, 4], 10))
    pixels = np.random.default_rng(0).integers(0, 255, (120, 8, 8), np.uint8)
    made = ArrayTarget("clinic", ("ill", "well"), labels, None, pixels, groups=groups)
    monkeypatch.setitem(targets.LOADERS, "clinic", lambda: made)
    yield made
    clear_caches()


def test_groups_of_test_images_are_kept_with_the_predictions(
    clinic: ArrayTarget, make_spec: MakeSpec, tmp_path: Path
) -> None:
    spec = make_spec(target="clinic", shots=None, val_shots=None, test_shots=None, epochs=1)
    fit = start(spec, resolve_device("cpu"))
    for _ in fit:
        pass
    result = fit.finish(test=True)
    assert result.predictions is not None
    (tmp_path / PREDICTIONS_FILE).write_bytes(predictions_parquet(result.predictions))
    run = {
        "run_id": ["r"],
        "cell": ["c"],
        "seed": [0],
        "phase": ["repeat"],
        "outcome": ["complete"],
        "superseded": [False],
    }
    frame, _ = predictions_frames(pd.DataFrame(run), {"r": tmp_path.as_uri()}, "")
    assert clinic.groups is not None
    assert frame["group"].tolist() == clinic.groups[frame["example"]].tolist()
    assert len(compare.over_examples(frame)) == 1
    noted = json.loads(result.notes["images_per_class"])
    counts = np.bincount(clinic.labels[result.predictions.example])
    assert noted["test"] == dict(zip(("ill", "well"), counts.tolist(), strict=True))


def counts_of(labels: NDArray[np.int64], classes: tuple[str, ...], spec: TrialSpec) -> Any:
    target = ArrayTarget("x", classes, labels, None, np.zeros((len(labels), 2, 2), np.uint8))
    return json.loads(images_per_class(target, split_indices(target, spec)))


def test_equal_classes_are_recorded_as_one_number(make_spec: MakeSpec) -> None:
    digits = load_target("digits")
    split = split_indices(digits, make_spec(shots=30, val_shots=20, test_shots=50))
    assert json.loads(images_per_class(digits, split)) == {"train": 30, "val": 20, "test": 50}


def test_unequal_classes_are_recorded_by_name(make_spec: MakeSpec) -> None:
    spec = make_spec(shots=20, val_shots=None, test_shots=None)
    found = counts_of(np.repeat([0, 1], [100, 8]), ("Käfer", "owl"), spec)
    assert found["train"] == {"Käfer": 20, "owl": 5}
    assert found["test"] == {"Käfer": 25, "owl": 2}


def test_a_thousand_unequal_classes_fit_a_tag(make_spec: MakeSpec) -> None:
    labels = np.repeat(np.arange(1000), np.where(np.arange(1000) == 7, 40, 10))
    spec = make_spec(shots=None, val_shots=None, test_shots=None)
    found = counts_of(labels, tuple(f"species number {i}" for i in range(1000)), spec)
    assert found["train"]["most"] == [24, "species number 7"]
    assert found["train"]["least"][0] == 6  # of 10: 2 to test on, 2 to select on
    assert found["train"]["all"] == 999 * 6 + 24
    assert len(json.dumps(found)) < 1000
