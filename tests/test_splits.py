"""Splits of data sets with groups, with parts of their own, and with classes of unequal size."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from harness.core.spec import TrialSpec
from harness.data import (
    SplitIndices,
    Target,
    clear_caches,
    load_target,
    open_image,
    split_indices,
)
from harness.data.cached import Cache
from harness.data.groups import shared_groups
from harness.data.target import ArrayTarget, FileTarget
from harness.inputs import Pixels
from tests.pictures import write_classes
from tests.refusals import refused
from tests.trials import MakeSpec

EVERYTHING: dict[str, Any] = {"shots": None, "val_shots": None, "test_shots": None}


pytestmark = pytest.mark.usefixtures("forget_targets")


def blank(labels: NDArray[np.int64], **parts: Any) -> ArrayTarget:
    """A target of these labels whose pixels nobody looks at."""
    classes = tuple(f"class {i}" for i in range(int(labels.max()) + 1))
    test = parts.pop("official_test", None)
    pixels = np.zeros((len(labels), 2, 2), np.uint8)
    return ArrayTarget("blank", classes, labels.astype(np.int64), test, images=pixels, **parts)


def counts(split: SplitIndices, target: Target) -> dict[str, list[int]]:
    return {
        part: [int((target.labels[at] == label).sum()) for label in range(len(target.classes))]
        for part, at in (("train", split.train), ("val", split.val), ("test", split.test))
    }


# --- nothing changed for what was there ------------------------------------------------------------

GOLDEN = {
    ("digits", 30, 20, 50, 0): ["29a80d7049b4460a", "5dbd0e9540368033", "73d6789cda9e56f1"],
    ("digits", 30, 20, 50, 12345): ["70d54cbaa8970319", "d55685ac18f6ccc2", "73d6789cda9e56f1"],
    ("digits", None, None, None, 1): ["20a0fdb5a96c8e8e", "46ed16a052fbdcd6", "48f8c346bf77c556"],
    ("mnist5k", 5, 4, 6, 0): ["807f48d95fa3aa09", "79a3d6bb3d4d3ca6", "c28865f68ccddc41"],
    ("digits[classes=0-4]", 30, 20, 50, 0): [
        "d565d03ed916648a",
        "27c6b2643d0ed508",
        "eed7eb8471200a1d",
    ],
    ("digits[part=1/2]", 5, 4, 6, 1): ["aaebcebc78ca264d", "2ff0e1070729c4be", "7f27102e3d1156d8"],
    ("mix(digits,digits,0.5)", 5, 4, 6, 0): [
        "89107326751eae7d",
        "9a9e4f5387a11170",
        "d109d36172c4247c",
    ],
    ("random_labels(digits)", 5, 4, 6, 0): [
        "c6ace7c00101f138",
        "fa90ec8a4eb9ee34",
        "23c6ad2e6edac7c2",
    ],
    ("digits", 1, None, 60, 0): ["a25f7b9548b56989", "fd3aca7bae3311bc", "9f050cbda722db1f"],
}
"""SHA-256 of train, validation and test positions as they were before classes could be unequal."""


@pytest.mark.parametrize(("case", "truth"), GOLDEN.items())
def test_splits_of_data_sets_without_groups_are_as_they_always_were(
    case: tuple[Any, ...], truth: list[str], make_spec: MakeSpec
) -> None:
    name, shots, val_shots, test_shots, seed = case
    spec = make_spec(
        target=name, shots=shots, val_shots=val_shots, test_shots=test_shots, seed=seed
    )
    split = split_indices(load_target(name), spec)
    found = [
        hashlib.sha256(p.tobytes()).hexdigest()[:16] for p in (split.train, split.val, split.test)
    ]
    assert found == truth


def test_recorded_hashes_of_built_in_data_sets_are_as_they_always_were() -> None:
    hashes = {"digits": "37152ec14dd2c54b", "digits[classes=0-4]": "618a269897595577"}
    assert {name: load_target(name).fingerprint()[:16] for name in hashes} == hashes


def test_split_of_exactly_as_many_as_asked_is_the_same_split(make_spec: MakeSpec) -> None:
    target = load_target("digits")
    exact, most = (split_indices(target, make_spec(exact_shots=e)) for e in (True, False))
    assert all(
        np.array_equal(getattr(exact, p), getattr(most, p)) for p in ("train", "val", "test")
    )


# --- unequal classes -------------------------------------------------------------------------------


def test_all_images_of_unequal_classes_are_used_by_default(make_spec: MakeSpec) -> None:
    target = blank(np.repeat([0, 1, 2], [200, 40, 8]))
    split = split_indices(target, make_spec(**EVERYTHING))
    # By hand: a quarter to test on (50, 10, 2), a fifth of the rest to select on (30, 6, 1).
    assert counts(split, target) == {"train": [120, 24, 5], "val": [30, 6, 1], "test": [50, 10, 2]}
    assert sorted(np.concatenate([split.train, split.val, split.test])) == list(range(248))


def test_shots_are_an_upper_bound_per_class(make_spec: MakeSpec) -> None:
    target = blank(np.repeat([0, 1, 2], [200, 40, 8]))
    split = split_indices(target, make_spec(shots=50, val_shots=None, test_shots=None))
    assert counts(split, target) == {"train": [50, 24, 5], "val": [30, 6, 1], "test": [50, 10, 2]}


def test_at_most_half_of_a_class_is_for_the_test_and_half_of_the_rest_for_validation(
    make_spec: MakeSpec,
) -> None:
    target = blank(np.repeat([0, 1, 2], [200, 40, 3]))
    split = split_indices(target, make_spec(shots=30, val_shots=20, test_shots=50))
    assert counts(split, target) == {"train": [30, 10, 1], "val": [20, 10, 1], "test": [50, 20, 1]}


@pytest.mark.parametrize("sizes", [EVERYTHING, {"shots": 1, "val_shots": 1, "test_shots": 1}])
def test_all_classes_of_fewer_than_three_images_are_named(
    sizes: dict[str, Any], make_spec: MakeSpec
) -> None:
    target = blank(np.repeat([0, 1, 2, 3], [50, 2, 3, 1]))
    with refused(r"'class 1' has 2 images.*'class 3' has 1 image,") as caught:
        split_indices(target, make_spec(**sizes))
    assert "class 0" not in str(caught.value)
    assert "class 2" not in str(caught.value)


@pytest.mark.parametrize("size", range(3, 40))
@pytest.mark.parametrize("val", [1, 5, 20, None])
@pytest.mark.parametrize("test", [1, 10, 30, None])
def test_other_images_do_not_depend_on_how_many_are_trained_on(
    size: int, val: int | None, test: int | None, make_spec: MakeSpec
) -> None:
    target = blank(np.repeat([0, 1], [size, 100]))
    few, *more = [
        split_indices(target, make_spec(shots=n, val_shots=val, test_shots=test))
        for n in (1, 3, 50, None)
    ]
    folded = make_spec(shots=1, val_shots=None, test_shots=test, fold="1/2 of shuffle 3")
    assert size < 4 or np.array_equal(split_indices(target, folded).test, few.test)
    for split in more:
        assert np.array_equal(split.test, few.test)
        assert np.array_equal(split.val, few.val)
        assert set(few.train) <= set(split.train)
        few = split


# --- given parts -----------------------------------------------------------------------------------


def given(train: int, val: int, test: int) -> ArrayTarget:
    """Two classes with so many images each in parts of their own."""
    labels = np.tile(np.repeat([0, 1], [1, 1]), train + val + test)
    part = np.repeat([0, 1, 2], [2 * train, 2 * val, 2 * test])
    return blank(
        labels, official_test=(part == 2) if test else None, official_val=part == 1 if val else None
    )


@pytest.mark.parametrize("seed", [0, 5])
def test_given_parts_are_used_as_they_are(seed: int, make_spec: MakeSpec) -> None:
    split = split_indices(given(10, 4, 3), make_spec(seed=seed, **EVERYTHING))
    assert split.train.tolist() == list(range(20))
    assert split.val.tolist() == list(range(20, 28))
    assert split.test.tolist() == list(range(28, 34))


def test_seeds_vary_the_training_images_only_where_validation_is_given(
    make_spec: MakeSpec,
) -> None:
    sizes = {"shots": 5, "val_shots": 2, "test_shots": 2}
    splits = [split_indices(given(10, 4, 3), make_spec(seed=s, **sizes)) for s in range(4)]
    assert len({s.val.tobytes() for s in splits}) == 1
    assert len({s.test.tobytes() for s in splits}) == 1
    assert len({s.train.tobytes() for s in splits}) == 4
    assert {len(s.val) for s in splits} == {4}


@pytest.mark.parametrize("count", [None, 2])
def test_images_are_tested_on_in_a_given_test_part_alone(
    count: int | None, make_spec: MakeSpec
) -> None:
    split = split_indices(given(10, 0, 3), make_spec(**EVERYTHING | {"test_shots": count}))
    tested = set(split.test.tolist())
    assert len(tested) == 2 * (count or 3)
    assert tested <= set(range(20, 26))
    assert {*split.train.tolist(), *split.val.tolist()} == set(range(20))
    assert len(split.val) == 4  # 20 % of 10, in each of 2 classes


def test_test_images_are_drawn_where_only_validation_is_given(make_spec: MakeSpec) -> None:
    split = split_indices(given(12, 4, 0), make_spec(**EVERYTHING))
    assert split.val.tolist() == list(range(24, 32))
    assert len(split.test) == 6  # a quarter of 12, in each of 2 classes
    assert sorted([*split.train, *split.test]) == list(range(24))


def test_class_that_is_missing_in_a_given_part_is_no_obstacle(make_spec: MakeSpec) -> None:
    labels = np.array([0] * 10 + [1] * 10 + [0] * 5)
    target = blank(labels, official_test=np.repeat([False, True], [20, 5]))
    split = split_indices(target, make_spec(shots=3, val_shots=2, test_shots=2))
    assert counts(split, target) == {"train": [3, 3], "val": [2, 2], "test": [2, 0]}


def test_class_without_training_images_is_named(make_spec: MakeSpec) -> None:
    labels = np.array([0] * 10 + [1] * 5)
    target = blank(labels, official_test=np.repeat([False, True], [10, 5]))
    with refused("'class 1' has 5 images, too few"):
        split_indices(target, make_spec())


# --- groups ----------------------------------------------------------------------------------------


def patients(sizes: list[tuple[int, int, int]], **parts: Any) -> ArrayTarget:
    """(label, patients, images of each), with numbers of patients that start at 100."""
    labels, groups, number = [], [], 100
    for label, count, images in sizes:
        for _ in range(count):
            labels += [label] * images
            groups += [number] * images
            number += 1
    return blank(np.array(labels), groups=np.array(groups, np.int64), **parts)


def groups_of(split: SplitIndices, target: Target) -> list[set[int]]:
    assert target.groups is not None
    return [set(target.groups[p].tolist()) for p in (split.train, split.val, split.test)]


CLINICS = {
    "many patients": patients([(0, 40, 5), (1, 40, 5)]),
    "three patients each": patients([(0, 3, 10), (1, 3, 10)]),
    "unequal patients": patients([(0, 10, 1), (0, 5, 20), (1, 30, 3), (2, 4, 2)]),
    "patients with every class": dataclasses.replace(
        patients([(0, 12, 9)]), labels=np.tile([0, 1, 2], 36), classes=("a", "b", "c")
    ),
    "one image each": patients([(0, 50, 1), (1, 20, 1)]),
}


@pytest.mark.parametrize("name", CLINICS)
@pytest.mark.parametrize("sizes", [EVERYTHING, {"shots": 5, "val_shots": 4, "test_shots": 6}])
def test_images_of_a_group_are_in_one_part_and_every_class_is_in_every_part(
    name: str, sizes: dict[str, Any], make_spec: MakeSpec
) -> None:
    target = CLINICS[name]
    splits = [split_indices(target, make_spec(seed=seed, **sizes)) for seed in range(6)]
    tested = groups_of(splits[0], target)[2]
    for split in splits:
        train, val, test = groups_of(split, target)
        assert not train & val
        assert not train & test
        assert not val & test
        assert test == tested, "a seed must not move a test image"
        assert all(min(part) > 0 for part in counts(split, target).values())
    if sizes is not EVERYTHING:
        assert max(max(part) for s in splits for part in counts(s, target).values()) <= 6


def test_parts_of_grouped_data_have_about_the_usual_shares(make_spec: MakeSpec) -> None:
    target = CLINICS["many patients"]
    split = split_indices(target, make_spec(**EVERYTHING))
    for part, share in (("test", 0.25), ("val", 0.15), ("train", 0.6)):
        assert counts(split, target)[part] == pytest.approx([200 * share] * 2, abs=10)


@pytest.mark.parametrize("target", [load_target("digits"), CLINICS["many patients"]])
def test_fewer_shots_are_a_subset_of_more_on_the_same_validation(
    target: Target, make_spec: MakeSpec
) -> None:
    few, more = (split_indices(target, make_spec(shots=n, seed=9)) for n in (5, 20))
    assert set(few.train) < set(more.train)
    assert few.val.tolist() == more.val.tolist()


def test_seeds_draw_other_groups_to_select_on(make_spec: MakeSpec) -> None:
    target = CLINICS["many patients"]
    chosen = [groups_of(split_indices(target, make_spec(seed=s)), target)[1] for s in range(4)]
    assert len({frozenset(c) for c in chosen}) == 4


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (patients([(0, 9, 4), (1, 2, 20)]), "'class 1' has images of 2 groups"),
        (patients([(0, 1, 30), (1, 9, 4)]), "'class 0' has images of 1 group"),
    ],
)
def test_class_of_too_few_groups_is_named(
    target: Target, message: str, make_spec: MakeSpec
) -> None:
    with refused(message):
        split_indices(target, make_spec(**EVERYTHING))


def test_given_test_part_stays_and_validation_keeps_groups_together(make_spec: MakeSpec) -> None:
    base = patients([(0, 20, 3), (1, 20, 3)])
    assert base.groups is not None
    is_test = np.isin(base.groups, [100, 101, 125])
    target = dataclasses.replace(base, official_test=is_test)
    split = split_indices(target, make_spec(**EVERYTHING))
    assert split.test.tolist() == np.flatnonzero(is_test).tolist()
    train, val, _ = groups_of(split, target)
    assert val
    assert not train & val
    assert shared_groups(target) == 0


def test_drawn_test_part_has_no_group_with_given_validation_images(make_spec: MakeSpec) -> None:
    base = patients([(0, 20, 3), (1, 20, 3)])
    is_val = np.zeros(120, np.bool_)
    is_val[::6] = True  # one image of every other patient
    target = dataclasses.replace(base, official_val=is_val)
    for fold in ("", "1/3 of shuffle 0"):
        split = split_indices(target, make_spec(**EVERYTHING, fold=fold))
        train, val, test = groups_of(split, target)
        assert test
        assert not test & (train | val)


def test_groups_that_given_parts_tear_apart_are_counted() -> None:
    base = patients([(0, 20, 3), (1, 20, 3)])
    is_test = np.zeros(120, np.bool_)
    is_test[[0, 1, 2, 4, 60]] = True  # all of one group, one image each of two others
    assert shared_groups(dataclasses.replace(base, official_test=is_test)) == 2


def test_parts_of_grouped_data_share_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.data import targets

    monkeypatch.setitem(targets.LOADERS, "clinic", lambda: CLINICS["many patients"])
    halves = [load_target(f"clinic[part={i}/2]") for i in (1, 2)]
    found = [set() if h.groups is None else set(h.groups.tolist()) for h in halves]
    assert not found[0] & found[1]
    assert len(found[0] | found[1]) == 80
    assert sum(len(h.labels) for h in halves) == 400


# --- a target is its content -----------------------------------------------------------------------


def write_pets(root: Path, seed: int = 0) -> Path:
    return write_classes(root, seed, cat=12, dog=12)


def test_the_same_images_elsewhere_are_the_same_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_spec: MakeSpec
) -> None:
    here = write_pets(tmp_path / "scratch" / "101" / "pets")
    copies = [tmp_path / "scratch" / "102" / "pets", tmp_path / "job 103"]
    for copy in copies:
        shutil.copytree(here, copy)
    monkeypatch.chdir(here.parent)
    names = [
        f"folder:{here}",
        "folder:pets",
        "folder:../101/./pets",
        *(f"folder:{c}" for c in copies),
    ]
    targets = [load_target(name) for name in names]
    assert len({load_target(name).identity for name in names}) == 1
    assert len({t.fingerprint() for t in targets}) == 1
    assert len({t.key for t in targets}) == 1
    splits = [split_indices(t, make_spec(target=n)) for n, t in zip(names, targets, strict=True)]
    assert len({s.train.tobytes() + s.val.tobytes() + s.test.tobytes() for s in splits}) == 1
    assert (
        load_target(f"{names[0]}[classes=0+1]").identity
        == load_target(f"{names[-1]}[classes=0+1]").identity
    )


def test_expressions_of_the_same_images_elsewhere_are_the_same_target(
    tmp_path: Path, make_spec: MakeSpec
) -> None:
    here = write_pets(tmp_path / "a" / "pets")
    shutil.copytree(here, there := tmp_path / "b")
    for form in ("{}[part=1/2]", "mix({0},{0},0.5)", "random_labels({})", "shuffle(2,{})"):
        names = [form.format(f"folder:{root}") for root in (here, there)]
        first, second = (load_target(name) for name in names)
        assert first.key == second.key
        assert first.labels.tolist() == second.labels.tolist()
        assert load_target(names[0]).identity == load_target(names[1]).identity


def test_other_images_are_another_target(tmp_path: Path) -> None:
    first = f"folder:{write_pets(tmp_path / '1' / 'pets')}"
    second = f"folder:{write_pets(tmp_path / '2' / 'pets', seed=1)}"
    assert load_target(first).identity != load_target(second).identity


def test_images_under_other_labels_groups_or_in_other_parts_are_another_target(
    tmp_path: Path,
) -> None:
    base = load_target(f"folder:{write_pets(tmp_path / 'pets')}")
    assert isinstance(base, FileTarget)
    half = np.arange(24) % 2 == 0
    others = [
        dataclasses.replace(base, labels=base.labels[::-1].copy()),
        dataclasses.replace(base, official_test=half),
        dataclasses.replace(base, official_val=half),
        dataclasses.replace(base, groups=np.arange(24) // 2),
        dataclasses.replace(base, classes=("cat", "wolf")),
    ]
    assert len({target.identity for target in (base, *others)}) == 6


def test_built_in_data_sets_are_known_by_their_names() -> None:
    assert load_target("digits").identity == "digits"
    assert load_target("digits[classes=0-4]").identity == "digits[classes=0-4]"


# --- each file is read once ------------------------------------------------------------------------


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file was hashed, in all."""
    from harness.data import checksums

    counted: Counter[str] = Counter()
    digest = checksums._digest

    def counting(path: Path) -> bytes:
        counted[str(path)] += 1
        return digest(path)

    monkeypatch.setattr(checksums, "_digest", counting)
    return counted


def age(root: Path, seconds: float = 3600) -> None:
    """Write the files an hour ago; a file that was just written may be written again unnoticed."""
    import os
    import time

    for path in root.rglob("*.png"):
        os.utime(path, (time.time() - seconds,) * 2)


def new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.data import checksums

    monkeypatch.setattr(checksums, "_read", {})
    clear_caches()


def start(root: Path, spec: TrialSpec) -> None:
    """What a command does with the images of a target: hash, split, decode those of the split."""
    from harness.data import read_examples
    from harness.training.provenance import inputs_of

    target = load_target(f"folder:{root}")
    inputs_of(f"folder:{root}", "test_resnet", "scratch")
    split = split_indices(target, spec)
    cache = Cache(root.parent / "cache")
    for part in (split.train, split.val, split.test):
        read_examples(f"folder:{root}", tuple(part.tolist()), Pixels(8), cache)


def test_each_file_is_hashed_once_and_not_again_by_the_next_commands(
    tmp_path: Path, reads: Counter[str], monkeypatch: pytest.MonkeyPatch, make_spec: MakeSpec
) -> None:
    root = write_pets(tmp_path / "pets")
    age(root)
    spec = make_spec(shots=3, val_shots=2, test_shots=2)
    for _ in range(3):
        start(root, spec)
        new_process(monkeypatch)
    assert len(reads) == 24
    assert set(reads.values()) == {1}


def test_only_the_images_of_the_split_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_spec: MakeSpec
) -> None:
    from harness.data import media as module

    decoded: Counter[str] = Counter()

    def counting(path: Path, name: str, suffix: str) -> Image.Image:
        decoded[f"{path.parent.name}/{path.name}"] += 1
        return open_image(path)

    monkeypatch.setattr(module, "decode_image", counting)
    root = write_pets(tmp_path / "pets")
    for _ in range(2):
        start(root, make_spec(shots=3, val_shots=2, test_shots=2))
        new_process(monkeypatch)
    assert len(decoded) == 14
    assert set(decoded.values()) == {1}


@pytest.mark.parametrize("seconds", [0, 3600])
def test_changed_file_of_the_same_size_is_another_target(
    seconds: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_pets(tmp_path / "pets")
    for path in root.rglob("*.png"):
        path.write_bytes(path.read_bytes().ljust(2000, b"\0"))
    age(root, seconds)
    before = load_target(f"folder:{root}").identity
    changed = root / "cat" / "3.png"
    changed.write_bytes(changed.read_bytes()[:-1] + b"x")
    age(root, seconds)
    new_process(monkeypatch)
    assert load_target(f"folder:{root}").identity != before


def test_kept_pixels_are_found_again_under_another_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_spec: MakeSpec
) -> None:
    from harness.data import media as module

    here = write_pets(tmp_path / "101" / "pets")
    shutil.copytree(here, there := tmp_path / "102" / "pets")
    (tmp_path / "102" / "cache").symlink_to(tmp_path / "101" / "cache")
    start(here, make_spec())
    monkeypatch.setattr(module, "decode_image", lambda path, *_: pytest.fail(f"{path} was decoded"))
    start(there, make_spec())


def test_nothing_is_remembered_where_nothing_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "no folder").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "no folder"))
    root = write_pets(tmp_path / "pets")
    age(root)
    first = load_target(f"folder:{root}").identity
    new_process(monkeypatch)
    assert load_target(f"folder:{root}").identity == first


def test_file_that_vanished_is_named(tmp_path: Path) -> None:
    root = write_pets(tmp_path / "pets")
    target = load_target(f"folder:{root}")
    (root / "dog" / "7.png").unlink()
    with refused(r"dog/7\.png cannot be read: .*No such file"):
        target.fingerprint()
