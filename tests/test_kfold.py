"""K-fold resampling: folds, the plan of a study on folds, and the choice by their mean."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from harness.core.folds import Fold
from harness.core.records import Slot
from harness.core.spec import TrialSpec, derive_seed
from harness.core.study import Study
from harness.data import Target, load_target, split_indices
from harness.training.fit import Diverged
from tests.lab import Lab, World, make_study
from tests.refusals import refused
from tests.test_splits import blank, counts, groups_of, patients
from tests.trials import MakeSpec

WHOLE: dict[str, Any] = {"shots": None, "val_shots": None, "test_shots": None}


def fold(number: int, count: int = 5, shuffle: int = 7) -> str:
    return str(Fold(number, count, shuffle))


# --- folds -----------------------------------------------------------------------------------------


def test_folds_are_those_of_scikit_learn(make_spec: MakeSpec) -> None:
    digits = load_target("digits")
    plain = split_indices(digits, make_spec(**WHOLE))
    pool = np.sort(np.concatenate([plain.train, plain.val]))
    seed = derive_seed("folds", "digits", 7)
    theirs = StratifiedKFold(5, shuffle=True, random_state=seed).split(pool, digits.labels[pool])
    for number, (train, val) in enumerate(theirs, 1):
        mine = split_indices(digits, make_spec(fold=fold(number), **WHOLE))
        assert mine.val.tolist() == pool[val].tolist()
        assert mine.train.tolist() == pool[train].tolist()
        assert mine.test.tolist() == plain.test.tolist()


def test_folds_of_groups_are_those_of_scikit_learn(make_spec: MakeSpec) -> None:
    target = patients([(0, 20, 3), (1, 30, 2)])
    plain = split_indices(target, make_spec(**WHOLE))
    pool = np.sort(np.concatenate([plain.train, plain.val]))
    assert target.groups is not None
    kind = StratifiedGroupKFold(4, shuffle=True, random_state=derive_seed("folds", "blank", 7))
    theirs = kind.split(pool, target.labels[pool], target.groups[pool])
    for number, (_, val) in enumerate(theirs, 1):
        mine = split_indices(target, make_spec(fold=fold(number, 4), **WHOLE))
        train, held, test = groups_of(mine, target)
        assert mine.val.tolist() == pool[val].tolist()
        assert not train & held
        assert test == groups_of(plain, target)[2]


@pytest.mark.parametrize("shots", [1, 4, None])
def test_every_image_that_is_no_test_image_is_validated_on_once(
    shots: int | None, make_spec: MakeSpec
) -> None:
    target = blank(np.repeat([0, 1, 2], [12, 20, 9]))
    spec = make_spec(val_shots=None, test_shots=2, shots=shots)
    splits = [split_indices(target, dataclasses.replace(spec, fold=fold(k, 3))) for k in (1, 2, 3)]
    held = np.concatenate([s.val for s in splits])
    assert len(set(held)) == len(held)
    assert counts(splits[0], target)["test"] == [2, 2, 2]
    for split in splits:
        assert split.test.tolist() == split_indices(target, spec).test.tolist()
        assert not set(split.train) & set(split.val)
        assert not set(split.test) & set(held)
        assert max(counts(split, target)["train"]) <= (shots or 20)
        # Within a class the folds differ by one image at most.
        assert np.ptp([counts(s, target)["val"] for s in splits], axis=0).max() <= 1


def test_fewer_shots_are_a_subset_of_more_on_the_same_fold(make_spec: MakeSpec) -> None:
    target = blank(np.repeat([0, 1], 30))
    few, more = (
        split_indices(target, make_spec(shots=n, val_shots=None, fold=fold(2))) for n in (3, 9)
    )
    assert set(few.train) < set(more.train)
    assert few.val.tolist() == more.val.tolist()


def test_given_validation_images_are_divided_with_the_others(make_spec: MakeSpec) -> None:
    is_val = np.tile([True, False, False, False], 20)
    target = blank(np.repeat([0, 1], 40), official_val=is_val)
    splits = [split_indices(target, make_spec(fold=fold(k), **WHOLE)) for k in range(1, 6)]
    held = set(np.concatenate([s.val for s in splits]))
    plain = split_indices(target, make_spec(**WHOLE))
    assert held == set(plain.train) | set(plain.val)
    assert set(np.flatnonzero(is_val)) < held
    assert splits[0].test.tolist() == plain.test.tolist()


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (
            blank(np.repeat([0, 1], [30, 5])),
            "class 'class 1' has 4 images, not counting test images, fewer than the 5 folds",
        ),
        (
            patients([(0, 20, 2), (1, 6, 9)]),
            "class 'class 1' has 4 groups of images, not counting test images, fewer than the 5 folds",
        ),
    ],
)
def test_class_with_fewer_images_or_groups_than_folds_is_named(
    target: Target, message: str, make_spec: MakeSpec
) -> None:
    with refused(message):
        split_indices(target, make_spec(fold=fold(1), **WHOLE))


def test_exact_shots_count_the_images_outside_the_fold(make_spec: MakeSpec) -> None:
    target = blank(np.repeat([0, 1], 20))  # 15 of each are no test images, 12 outside the fold
    spec = make_spec(**WHOLE | {"shots": 12}, exact_shots=True, fold=fold(1))
    assert counts(split_indices(target, spec), target)["train"] == [12, 12]
    with refused(r"too few for 1 test \+ 1 validation \+ 13 for training"):
        split_indices(target, dataclasses.replace(spec, shots=13))


def test_fold_is_read_back() -> None:
    assert Fold.parse(fold(2)) == Fold(2, 5, 7)


# --- the plan --------------------------------------------------------------------------------------

ONE_CELL: dict[str, Any] = {"compare": {"strategy": ["probe"]}}


def kfold(**changes: Any) -> Study:
    """Three configurations on three folds, and two rounds of repeats."""
    return make_study(**{"resampling": "kfold", "folds": 3, "repeats": 6, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"repeats": 4}, "repeats must be a multiple of the 3 folds, e.g. 6, got 4"),
        ({"sampler": "tpe"}, "works with sampler 'random' or 'qmc' and pruner 'none', got 'tpe'"),
        ({"pruner": "median"}, "works with sampler .* got 'random' and 'median'"),
        ({"folds": 1, "repeats": 0}, "folds must be a whole number of at least 2, got 1"),
        ({"resampling": "bootstrap"}, "resampling must be one of split, kfold"),
    ],
)
def test_study_that_does_not_fit_k_fold_is_refused(changes: dict[str, Any], message: str) -> None:
    with refused(message):
        kfold(**changes)
    assert (kfold(repeats=0).fold_count, make_study(folds=3).fold_count) == (3, 1)


@pytest.mark.parametrize("sampler", ["random", "qmc"])
def test_each_configuration_is_that_of_a_single_split_on_every_fold(
    sampler: str, world: World, lab: Lab, tmp_path: Path
) -> None:
    lab.run(kfold(sampler=sampler, **ONE_CELL))
    folds = [s.fold for s in world.specs]
    shuffle = Fold.parse(folds[0]).shuffle
    assert folds[:9] == [fold(k, 3, shuffle) for k in (1, 2, 3)] * 3
    assert len({s.seed for s in world.specs[:9]}) == 1
    drawn = [s.lr for s in world.specs[:9]]
    world.specs = []
    Lab(world, tmp_path / "single").run(make_study(sampler=sampler, **ONE_CELL))
    assert drawn == [s.lr for s in world.specs[:3] for _ in range(3)]


def test_repeats_take_every_fold_of_fresh_divisions_that_all_cells_share(
    world: World, lab: Lab
) -> None:
    lab.run(kfold())
    repeats = world.specs[18:]
    by_cell = {
        kind: [(s.seed, s.fold) for s in repeats if type(s.strategy).__name__ == kind]
        for kind in ("LinearProbe", "FullFineTune")
    }
    first, second = by_cell.values()
    assert first == second
    assert len({seed for seed, _ in first}) == 6
    divisions = [Fold.parse(text) for _, text in first]
    assert [d.number for d in divisions] == [1, 2, 3, 1, 2, 3]
    shuffles = [d.shuffle for d in divisions]
    assert shuffles[0] == shuffles[1] == shuffles[2] != shuffles[3] == shuffles[5]
    assert Fold.parse(world.specs[0].fold).shuffle not in shuffles


def script(world: World, *accuracies: tuple[float, ...]) -> None:
    """Validation accuracy of each configuration on each fold, in turn; NaN diverges."""
    flat = [value for own in accuracies for value in own]

    def truth(spec: TrialSpec) -> tuple[float, float]:
        value = flat[min(len(world.specs), len(flat)) - 1]
        if np.isnan(value):
            raise Diverged("no")
        return 1.0, value

    world.truth = truth


def test_configuration_with_the_best_mean_over_folds_is_chosen(world: World, lab: Lab) -> None:
    script(world, (0.9, 0.1, 0.2), (0.5, 0.6, 0.5), (0.5, 0.5, 0.5))
    lab.run(kfold(**ONE_CELL))
    assert {t.chosen for t in lab.trials(phase="repeat")} == {1}
    assert {s.lr for s in world.specs[9:]} == {world.specs[3].lr}
    best = lab.search(kfold(**ONE_CELL)).attempts.best("accuracy")
    assert best is not None
    assert best.metrics["val_accuracy"] == pytest.approx(1.6 / 3)


def test_configuration_that_lacks_a_fold_is_chosen_only_if_none_is_whole(
    world: World, lab: Lab, tmp_path: Path
) -> None:
    nan = float("nan")
    script(world, (0.9, nan, 0.9), (0.2, 0.2, 0.2), (0.1, 0.1, 0.1))
    lab.run(kfold(**ONE_CELL))
    assert {t.chosen for t in lab.trials(phase="repeat")} == {1}
    world.specs = []
    script(world, (0.9, nan, nan), (0.2, nan, 0.2), (nan, 0.3, 0.3))
    other = Lab(world, tmp_path)
    other.run(kfold(**ONE_CELL))
    assert {t.chosen for t in other.trials(phase="repeat")} == {2}


@pytest.mark.parametrize("stop_in", [2, 8, 20, 29])
def test_interrupted_study_on_folds_tries_what_an_uninterrupted_one_tries(
    stop_in: int, world: World, lab: Lab
) -> None:
    Lab(world, lab.folder).run(kfold())
    wanted, world.specs = [s.flat() for s in world.specs], []
    world.fail_on({stop_in}, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        lab.run(kfold())
    world.fail_on(set(), KeyboardInterrupt())
    lab.run(kfold())
    tried = [s.flat() for s in world.specs]
    assert tried[stop_in - 1] == tried.pop(stop_in)
    assert tried == wanted
    assert len(wanted) == 2 * (3 * 3 + 6)


@pytest.mark.parametrize(
    ("changes", "now"), [({"folds": 2}, "2 folds"), ({"resampling": "split"}, "a single split")]
)
def test_other_folds_are_another_study(changes: dict[str, Any], now: str, lab: Lab) -> None:
    """And the record stays that of the first one."""
    lab.run(kfold(**ONE_CELL, trials=1, repeats=0))
    before = lab.record().info("toy")
    with refused(f"has 3 folds in its record, now {now}"):
        lab.run(kfold(**ONE_CELL, trials=1, **{"repeats": 0, **changes}))
    assert lab.record().info("toy") == before


def test_progress_names_configuration_and_fold() -> None:
    cell = {"strategy": "full"}
    assert str(Slot(cell, "tune", 7, 5)) == "full, trial 1, fold 3/5"
    assert str(Slot(cell, "repeat", 5, 5)) == "full, repeat 1, fold 1/5"
    assert str(Slot(cell, "tune", 7)) == "full, trial 7"
