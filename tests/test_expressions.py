"""Targets made of targets, checked against the pixels and labels that they are made of."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from harness.data import load_target, read_examples
from harness.data.cached import Cache, _open
from harness.data.expressions import DerivedTarget, Permute, Shuffle, evaluate, roots
from harness.data.options import split_options
from harness.data.target import ArrayTarget, Target
from harness.inputs import Pixels
from tests.refusals import refused

LOW, HIGH = "digits[classes=0-4]", "digits[classes=5-9]"
MIXTURE = f"mix({LOW},{HIGH},0.25)"


@pytest.fixture
def pets(tmp_path: Path) -> str:
    """Three classes of four pictures of one colour each, as a folder target."""
    for c, name in enumerate(("ant", "bee", "cat")):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for i in range(4):
            picture = Image.new("RGB", (8, 8), (40 * c, 10 * i, 0))
            picture.save(tmp_path / "pets" / name / f"{i}.png")
    return f"folder:{tmp_path / 'pets'}"


def pixels(name: str, rows: list[int] | None = None, size: int = 8) -> torch.Tensor:
    target = load_target(name)
    at = np.arange(len(target.labels)) if rows is None else np.array(rows)
    return target.read(at, Pixels(size))


def test_some_classes_are_those_images_counted_from_zero() -> None:
    made, digits = load_target("digits[classes=7+2-3]"), load_target("digits")
    assert made.classes == ("7", "2", "3")
    kept = np.isin(digits.labels, [7, 2, 3])
    assert torch.equal(pixels("digits[classes=7+2-3]"), pixels("digits")[kept])
    assert np.array_equal(np.array([7, 2, 3])[made.labels], digits.labels[kept])


def test_a_class_can_be_named(pets: str) -> None:
    made = load_target(f"{pets}[classes=cat+ant]")
    assert made.classes == ("cat", "ant")
    assert np.bincount(made.labels).tolist() == [4, 4]
    assert made.describe(0).endswith("ant/0.png")


def test_parts_of_a_data_set_share_no_image_and_miss_none() -> None:
    parts = [load_target(f"digits[part={which}]") for which in ("1/3", "2-3/3")]
    found = [i for part in parts for _, i in roots(part, np.arange(len(part.labels)))]
    assert sorted(found) == list(range(1797))
    thirds = np.bincount(load_target("digits").labels) / 3
    assert np.abs(np.bincount(parts[0].labels) - thirds).max() < 1


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_a_mixture_has_the_same_size_at_any_share(share: float) -> None:
    made = load_target(f"mix({LOW},{HIGH},{share})")
    assert isinstance(made, DerivedTarget)
    size = [min(a, b) for a, b in zip((178, 182, 177, 183, 181), (182, 181, 179, 174, 180))]  # noqa: B905
    assert np.bincount(made.labels).tolist() == size
    from_first = np.bincount(made.labels[made.which == 0], minlength=5)
    assert from_first.tolist() == [round(share * n) for n in size]


def test_a_mixture_shows_each_class_with_the_images_of_its_two() -> None:
    made, digits = load_target(MIXTURE), load_target("digits")
    origin = np.array([i for _, i in roots(made, np.arange(len(made.labels)))])
    assert len(set(origin)) == len(origin)
    assert torch.equal(pixels(MIXTURE), pixels("digits")[origin])
    assert (digits.labels[origin] % 5 == made.labels).all()


def test_more_of_a_data_set_in_a_mixture_keeps_what_was_there() -> None:
    def first(share: float) -> set[tuple[str, int]]:
        made = load_target(f"mix({LOW},{HIGH},{share})")
        assert isinstance(made, DerivedTarget)
        return set(roots(made, np.flatnonzero(made.which == 0)))

    assert first(0.25) < first(0.5) < first(0.75)


def test_a_data_set_can_be_mixed_with_itself() -> None:
    made = load_target(f"mix({LOW},{LOW},0.5)")
    assert made.read(np.arange(len(made.labels)), Pixels(8)).float().std() > 0


def test_shuffled_tiles_are_the_same_tiles_in_another_order() -> None:
    image = torch.arange(36, dtype=torch.uint8).view(1, 1, 6, 6).expand(2, 3, -1, -1)
    moved = Shuffle(2)(image, np.array([0, 1]))

    def tiles(x: torch.Tensor) -> list[list[int]]:
        return [x[r : r + 3, c : c + 3].flatten().tolist() for r in (0, 3) for c in (0, 3)]

    for one in moved:
        assert sorted(tiles(one[0])) == sorted(tiles(image[0, 0]))
        assert torch.equal(one[0], one[1])
        assert torch.equal(one[0], one[2])
    both = Shuffle(4)(image, np.array([0, 1]))
    assert not torch.equal(both[0], both[1]), "each picture has an order of its own"
    assert torch.equal(both[:, :, 4:], image[:, :, 4:]), "what is left over stays"


def test_an_image_is_shuffled_alike_whenever_it_is_read() -> None:
    whole = pixels(f"shuffle(4,{LOW})")
    assert torch.equal(pixels(f"shuffle(4,{LOW})", [30, 4]), whole[[30, 4]])


def test_one_permutation_moves_the_pixels_of_all_images() -> None:
    plain, moved = pixels("digits"), pixels("permute(digits)")
    assert torch.equal(plain.flatten(2).sort(2).values, moved.flatten(2).sort(2).values)
    ramp = torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8).expand(1, 3, -1, -1)
    order = Permute()(ramp, np.array([0]))[0, 0].flatten().long()
    assert torch.equal(moved.flatten(2), plain.flatten(2)[:, :, order])
    assert not torch.equal(order, torch.arange(64))


def test_random_labels_are_as_frequent_and_know_nothing() -> None:
    made, digits = load_target("random_labels(digits)"), load_target("digits")
    assert np.array_equal(np.bincount(made.labels), np.bincount(digits.labels))
    agree = (made.labels == digits.labels).mean()
    assert abs(agree - 0.1) < 4 * np.sqrt(0.1 * 0.9 / 1797)


def test_kept_pixels_of_two_expressions_never_mix() -> None:
    names = ["digits", LOW, HIGH, MIXTURE, f"mix({LOW},{HIGH},0.5)", f"shuffle(2,{LOW})"]
    names += [f"shuffle(4,{LOW})", f"permute({LOW})", "digits[part=1/2]", "digits[part=2/2]"]
    assert len({load_target(name).key for name in names}) == len(names)
    assert len({load_target(name).fingerprint() for name in names}) == len(names)
    cache = Cache()
    for name in names[:-2]:
        read = read_examples(name, (3, 60), Pixels(8), cache)
        assert torch.equal(read.tensor, pixels(name, [3, 60])), name


def test_a_changed_file_is_noticed_through_an_expression(pets: str, tmp_path: Path) -> None:
    name = f"shuffle(2,{pets}[classes=bee+cat])"
    cache = Cache(tmp_path / "kept")
    before = read_examples(name, (0, 1), Pixels(8), cache).tensor
    changed = Path(load_target(name).describe(1))
    fingerprints = load_target(name).fingerprints(np.array([0, 1]))
    Image.new("RGB", (8, 8), "white").save(changed)
    again = load_target(name).fingerprints(np.array([0, 1]))
    assert (fingerprints[0] == again[0]).all()
    assert (fingerprints[1] != again[1]).any()
    read_examples.cache_clear()  # as in another process
    _open.cache_clear()
    after = read_examples(name, (0, 1), Pixels(8), cache).tensor
    assert torch.equal(before[0], after[0])
    assert (after[1] == 255).all()


REFUSED = {
    "digits[clases=0-4]": "unknown selection 'clases'",
    "digits[classes=3]": "at least 2 classes",
    "digits[classes=1+1]": "each only once",
    "digits[classes=0-ten]": "no class 'ten'",
    "digits[part=3/2]": "a part such as 1/2",
    "digits[part=half]": "a part such as 1/2",
    "digits[part=200/200]": "has no examples in that part",
    "shufle(4,digits)": "the forms are X",
    "shuffle(digits)": "the forms are X",
    "shuffle(one,digits)": "expected a whole number, got 'one'",
    "shuffle(1,digits)": "at least 2 tiles",
    f"mix(digits,{LOW},0.5)": "equal numbers of classes, got 10 and 5",
    f"mix({LOW},{HIGH},1.5)": "the share must be in",
    "permute(digts)": "did you mean digits",
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_wrong_expression_is_refused(name: str) -> None:
    with refused(re.escape(REFUSED[name])):
        load_target(name)


def test_a_folder_whose_name_holds_brackets_is_still_a_folder(pets: str, tmp_path: Path) -> None:
    (tmp_path / "pets").rename(tmp_path / "pets (2) [new]")
    assert len(load_target(f"folder:{tmp_path}/pets (2) [new]").classes) == 3


OPTIONS_REFUSED = {
    "[grup=x]": "unknown selection 'grup'; known: classes, part, layout, group",
    "[image=x]": "unknown selection 'image'",
    "[group=]": "option 'group' is empty",
    "[group=a,group=b]": "option 'group' is given twice",
    "[group=a,label=b]": "folder: has no option 'label'; use layout, group, kind, seconds, rate or tokens",
}


@pytest.mark.parametrize("options", OPTIONS_REFUSED)
def test_an_option_that_a_folder_does_not_have_is_refused(options: str, pets: str) -> None:
    with refused(re.escape(OPTIONS_REFUSED[options])):
        load_target(pets + options)


@pytest.mark.parametrize(
    ("options", "read"),
    [
        ("[group=x]", {"group": "x"}),
        (
            r"[group=^([0-9]{2,4})[_=],layout=classes]",
            {"group": r"^([0-9]{2,4})[_=]", "layout": "classes"},
        ),
        ("[layout=parts][group=[ab]]", {"layout": "parts", "group": "[ab]"}),
        ("[ group=x ]", {"group": "x"}),
    ],
)
def test_options_are_read_behind_a_path_that_holds_brackets(
    options: str, read: dict[str, str], tmp_path: Path
) -> None:
    root = tmp_path / "pets (2) [group=new]"
    root.mkdir()
    path = f"{root}{options}"
    assert split_options("folder", path) == (str(root), read)


def test_a_path_that_exists_as_it_is_written_has_no_options(pets: str, tmp_path: Path) -> None:
    for name in ("pets[group=x]", "pets[classes=ant+bee]", "pets[part=1]"):
        (tmp_path / "pets").rename(tmp_path / name)
        assert load_target(f"folder:{tmp_path}/{name}").classes == ("ant", "bee", "cat")
        (tmp_path / name).rename(tmp_path / "pets")


def grouped(groups: list[int] | None, name: str = "grouped") -> Target:
    labels = np.arange(8) % 2
    numbers = None if groups is None else np.array(groups)
    pictures = np.zeros((8, 2, 2), np.uint8)
    return ArrayTarget(
        name, ("a", "b"), labels, None, pictures, groups=numbers, notes=(f"{name}.",)
    )


def test_selections_keep_groups_the_validation_set_and_notes() -> None:
    val = np.arange(8) < 2
    base = dataclasses.replace(grouped([0, 1, 0, 1, 2, 3, 2, 3]), official_val=val)
    made = evaluate("x[classes=b+a]", lambda _: base)
    assert isinstance(made, DerivedTarget)
    assert made.groups is not None
    assert made.official_val is not None
    assert made.groups.tolist() == [0, 1, 0, 1, 2, 3, 2, 3]
    assert made.official_val.tolist() == val.tolist()
    assert made.notes == ("grouped.",)


def test_a_mixture_keeps_images_of_one_group_of_one_data_set_together() -> None:
    grouped_set, single = grouped([0, 1, 0, 1, 0, 1, 0, 1]), grouped(None, "single")
    for name, expected in (("mix(g,g,0.5)", 2), ("mix(g,s,0.5)", 2 + 4)):
        made = evaluate(name, {"g": grouped_set, "s": single}.__getitem__)
        assert made is not None
        assert made.groups is not None
        assert len(set(made.groups.tolist())) == expected
    both = evaluate("mix(s,s,0.5)", lambda _: single)
    assert both is not None
    assert both.groups is None
