"""Splits that never leak, pictures decoded as people see them, and refusals that name the file."""

from __future__ import annotations

import dataclasses
import gzip
import os
import shutil
import struct
import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits

from harness.core.spec import TrialSpec
from harness.core.strategies import LinearProbe
from harness.data import (
    SplitIndices,
    embedded,
    load_target,
    open_image,
    read_examples,
    split_indices,
)
from harness.data.target import ArrayTarget
from harness.inputs import Pixels
from tests.refusals import refused
from tests.trials import MakeSpec

SIZES = ("shots", "val_shots", "test_shots")


pytestmark = pytest.mark.usefixtures("forget_targets")


# --- splits ----------------------------------------------------------------------------------------


def parts(split: SplitIndices) -> tuple[set[int], set[int], set[int]]:
    return set(split.train.tolist()), set(split.val.tolist()), set(split.test.tolist())


@pytest.mark.parametrize("sizes", [{}, {"shots": None}, dict.fromkeys(SIZES)])
def test_parts_share_no_image_and_no_seed_learns_from_what_another_tests(
    sizes: dict[str, None], make_spec: MakeSpec
) -> None:
    target = load_target("digits")
    splits = [parts(split_indices(target, make_spec(seed=s, **sizes))) for s in (0, 1, 12345)]
    assert all(not train & val for train, val, _ in splits)
    (tested,) = {frozenset(test) for _, _, test in splits}
    assert not any(tested & (train | val) for train, val, _ in splits)
    if len(sizes) == 3:
        assert all(set.union(*split) == set(range(1797)) for split in splits)


def test_default_sizes_are_a_quarter_and_a_fifth_of_the_rest(make_spec: MakeSpec) -> None:
    # By hand: of 178 zeros 44.5 -> 44 test (round half to even), 20 % of 134 = 26.8 -> 27
    # validation, 107 left; of 182 ones 45.5 -> 46, 27.2 -> 27, 109; of 177 twos 44.25 -> 44, 27, 106.
    target = load_target("digits")
    split = split_indices(target, make_spec(shots=None, val_shots=None, test_shots=None))
    counts = [
        np.bincount(target.labels[p])[:3].tolist() for p in (split.train, split.val, split.test)
    ]
    assert counts == [[107, 109, 106], [27, 27, 27], [44, 46, 44]]


@pytest.mark.parametrize(
    "sizes", [{"shots": 200}, {"val_shots": 180}, {"test_shots": 179}, {"test_shots": 174}]
)
def test_class_that_is_too_small_is_named_with_its_size(
    sizes: dict[str, int], make_spec: MakeSpec
) -> None:
    with refused(r"class '0' has 178 images, too few") as caught:
        split_indices(load_target("digits"), make_spec(exact_shots=True, **sizes))
    assert str(next(iter(sizes.values()))) in str(caught.value)


# --- targets ---------------------------------------------------------------------------------------


def test_digits_are_those_of_scikit_learn() -> None:
    truth, target = load_digits(), load_target("digits")
    images = target.read(np.arange(1797), Pixels(8, "bicubic"))  # their own size
    assert images.shape == (1797, 3, 8, 8)
    np.testing.assert_array_equal(target.labels, truth.target)
    assert target.classes == tuple("0123456789")
    np.testing.assert_array_equal(images[:, 1].numpy(), np.round(truth.images * 255 / 16))


def test_reading_fetches_the_images_asked_for_in_their_order() -> None:
    index = (7, 3, 1000)
    examples = read_examples("digits", index, Pixels(8, "nearest"))
    truth = load_digits()
    assert examples.labels.tolist() == truth.target[list(index)].tolist()
    assert examples.index.tolist() == list(index)
    np.testing.assert_allclose(
        examples.tensor[:, 0].numpy(), truth.images[list(index)] * 255 / 16, atol=0.5
    )


@pytest.mark.parametrize(("name", "near"), [("digit", "digits"), ("cifar01", "cifar10")])
def test_unknown_target_lists_near_matches(name: str, near: str) -> None:
    with refused(rf"unknown target '{name}'.*{near}"):
        load_target(name)


def test_unknown_target_that_is_near_nothing_lists_what_is_known() -> None:
    with refused(r"known: folder:PATH, .*digits, .*cifar10"):
        load_target("zzzzzzzz")


def write_idx(path: Path, array: NDArray[np.uint8]) -> None:
    """LeCun's format by hand: two zeros, 8 for unsigned bytes, the rank, the sides, the bytes."""
    header = struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(
        f">{array.ndim}I", *array.shape
    )
    path.write_bytes(gzip.compress(header + array.tobytes()))


def test_fashion_mnist_is_read_from_idx_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = np.arange(5 * 3 * 4, dtype=np.uint8).reshape(5, 3, 4)
    labels = np.array([3, 9, 0, 4, 4], np.uint8)
    for name, part in (("train", slice(0, 3)), ("t10k", slice(3, 5))):
        write_idx(tmp_path / f"{name}-images-idx3-ubyte.gz", images[part])
        write_idx(tmp_path / f"{name}-labels-idx1-ubyte.gz", labels[part])
    monkeypatch.setattr(embedded, "FASHION_MNIST", tmp_path)
    target = load_target("fashion_mnist")
    assert target.labels.tolist() == [3, 9, 0, 4, 4]
    assert target.official_test is not None
    assert target.official_test.tolist() == [False, False, False, True, True]
    assert target.classes[9] == "boot"
    assert isinstance(target, ArrayTarget)
    np.testing.assert_array_equal(target.images, images)


@pytest.mark.parametrize(
    "error", [urllib.error.URLError("no route"), RuntimeError("not found\nhash"), TimeoutError()]
)
def test_torchvision_set_that_cannot_be_downloaded_is_refused_in_one_line(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", offline)
    with refused(r"CIFAR10 .*network"):
        load_target("CIFAR10")


# --- folders ---------------------------------------------------------------------------------------


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Folders cat (3 images), dog (2) and one nested; pixel value = 10 x class + position."""
    root = tmp_path / "pets"
    for label, (name, count) in enumerate((("cat", 3), ("dog", 2))):
        (root / name / "more").mkdir(parents=True)
        for i in range(count):
            inner = root / name / ("more" if i == 1 else "")
            Image.new("L", (6, 4), 10 * label + i).save(inner / f"{i}.png")
    (root / ".hidden").mkdir()
    (root / "README.txt").write_text("not a class")
    (root / "cat" / "notes.txt").write_text("not an image")
    return root


def test_folder_names_are_classes_and_their_images_the_examples(pets: Path) -> None:
    target = load_target(f"folder:{pets}")
    assert target.classes == ("cat", "dog")
    assert target.labels.tolist() == [0, 0, 0, 1, 1]
    assert target.official_test is None
    greys = target.read(np.arange(5), Pixels(4, "nearest"))[:, 0, 0, 0].tolist()
    assert sorted(greys[:3]) == [0, 1, 2]
    assert sorted(greys[3:]) == [10, 11]


def test_folder_splits_the_same_wherever_it_lies(
    pets: Path, tmp_path: Path, make_spec: MakeSpec
) -> None:
    moved = tmp_path / "elsewhere" / "pets"
    moved.parent.mkdir()
    spec = make_spec(shots=None, val_shots=None, test_shots=None)
    Image.new("L", (4, 4)).save(pets / "dog" / "third.png")
    before = parts(split_indices(load_target(f"folder:{pets}"), spec))
    pets.rename(moved)
    assert parts(split_indices(load_target(f"folder:{moved}"), spec)) == before


def test_longer_side_is_cropped_around_the_centre(tmp_path: Path) -> None:
    columns = np.arange(8, dtype=np.uint8)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.fromarray(np.tile(columns, (4, 1))).save(tmp_path / name / "x.png")
    pixels = load_target(f"folder:{tmp_path}").read(np.array([0]), Pixels(4))
    assert pixels[0, 0, 0].tolist() == [2, 3, 4, 5]


def test_folder_with_fewer_than_two_classes_is_refused(tmp_path: Path) -> None:
    with refused("nowhere: no such folder"):
        load_target(f"folder:{tmp_path / 'nowhere'}")
    with refused(r"at least 2 class folders.*found 0"):
        load_target(f"folder:{tmp_path}")
    (tmp_path / "only").mkdir()
    Image.new("L", (4, 4)).save(tmp_path / "only" / "x.png")
    with refused(r"at least 2 class folders.*found 1"):
        load_target(f"folder:{tmp_path}")


def test_class_without_images_is_named(pets: Path) -> None:
    (pets / "fish").mkdir()
    with refused("'fish' contains no images"):
        load_target(f"folder:{pets}")


def look(root: Path) -> torch.Tensor:
    """Every image of a folder."""
    target = load_target(f"folder:{root}")
    return target.read(np.arange(len(target.labels)), Pixels(8))


def test_files_without_a_byte_are_counted_and_five_are_named(tmp_path: Path) -> None:
    for i in range(16):
        (tmp_path / "ab"[i % 2]).mkdir(exist_ok=True)
        (tmp_path / "ab"[i % 2] / f"{i}.png").touch()
    Image.new("L", (4, 4)).save(tmp_path / "a" / "0.png")
    with refused(r"^(image \S+\.png cannot be read: .*; ){4}image \S+ cannot .* \(and 10 more\)"):
        look(tmp_path)


def test_one_pixel_is_an_image(pets: Path) -> None:
    Image.new("RGB", (1, 1), "red").save(pets / "cat" / "0.png")
    assert look(pets)[0, :, 3, 3].tolist() == [255, 0, 0]


@pytest.mark.parametrize("name", [b"\xff\xfe.png", b"a\nb.png"], ids=["bytes", "line break"])
def test_odd_file_name_is_fine_and_told_in_one_line(name: bytes, pets: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(pets / "cat") + b"/" + name))
    (pets / "cat" / "0.png").rename(path)
    target = load_target(f"folder:{pets}")
    assert len(look(pets)) == 5
    assert target.fingerprint() == target.fingerprint()
    [told] = [told for i in range(5) if (told := target.describe(i)) and "\\" in told]
    assert told.isprintable()
    path.write_bytes(b"")
    with refused(r"^image \S+ cannot be read"):
        look(pets)


def test_class_whose_name_is_no_text_is_refused(pets: Path) -> None:
    (pets / "cat").rename(Path(os.fsdecode(os.fsencode(pets) + b"/\xff")))
    with refused(r"^target folder:\S+: the name of class folder .* is not printable"):
        load_target(f"folder:{pets}")


def test_folder_that_may_not_be_written_is_fine(
    pets: Path, for_nobody: tuple[Path, Callable[[], None]]
) -> None:
    folder, become = for_nobody
    root = Path(shutil.copytree(pets, folder / "pets"))
    for path in (root, *root.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    become()
    assert len(look(root)) == 5


# --- open_image ------------------------------------------------------------------------------------


def pixels(path: Path) -> NDArray[np.uint8]:
    image = open_image(path)
    assert image.mode == "RGB"
    return np.asarray(image)


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    upright = np.arange(2 * 4 * 3, dtype=np.uint8).reshape(2, 4, 3) * 10
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it a quarter turn clockwise
    Image.fromarray(upright).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(pixels(tmp_path / "turned.png"), np.rot90(upright, -1))


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize(
    ("deep", "eight"),
    [
        ([0, 128, 129, 0x8000, 0xFFFF], [0, 0, 1, 128, 255]),  # 65535 = 255 x 257
        ([0, 0, 2047, 2048, 4095], [0, 0, 127, 128, 255]),  # a radiograph of 12 bits
        ([1000, 1001, 1002, 1003, 1255], [0, 1, 2, 3, 255]),
        ([7, 7, 7, 7, 7], [0, 0, 0, 0, 0]),
    ],
)
def test_grey_levels_of_sixteen_bits_are_stretched(
    tmp_path: Path, suffix: str, deep: list[int], eight: list[int]
) -> None:
    Image.fromarray(np.array([deep], np.uint16)).save(tmp_path / f"deep.{suffix}")
    assert pixels(tmp_path / f"deep.{suffix}")[0, :, 0].tolist() == eight


def test_transparency_is_shown_on_white(tmp_path: Path) -> None:
    rgba = np.array([[[255, 0, 0, 255], [255, 0, 0, 0], [0, 0, 0, 51]]], np.uint8)
    Image.fromarray(rgba).save(tmp_path / "clear.png")
    # 20 % black over white is 80 % of 255.
    assert pixels(tmp_path / "clear.png")[0].tolist() == [[255, 0, 0], [255] * 3, [204] * 3]


def test_transparent_palette_entry_is_shown_on_white(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "palette.png", transparency=1)
    assert pixels(tmp_path / "palette.png")[0].tolist() == [[10, 20, 30], [255, 255, 255]]


def test_grey_with_alpha_is_shown_on_white(tmp_path: Path) -> None:
    Image.fromarray(np.array([[[7, 255], [7, 0]]], np.uint8), "LA").save(tmp_path / "la.png")
    assert pixels(tmp_path / "la.png")[0].tolist() == [[7] * 3, [255] * 3]


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "print.jpg", quality=100)
    # No cyan, all magenta and yellow: red. JPEG may be off by a few levels.
    np.testing.assert_allclose(pixels(tmp_path / "print.jpg")[4, 4], [255, 0, 0], atol=4)


@pytest.mark.parametrize("suffix", ["gif", "tif"])
def test_first_of_several_frames_or_pages_is_taken(suffix: str, tmp_path: Path) -> None:
    path, frames = tmp_path / f"x.{suffix}", [Image.new("RGB", (3, 3), c) for c in ("red", "blue")]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    assert pixels(path)[1, 1].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    ("value", "said"),
    [(np.float32(0.5), "float32 pixels"), (np.int32(70_000), "7[0-9.e+]*"), (np.int32(-1), "-1")],
    ids=["float", "over 16 bits", "negative"],
)
def test_depth_that_is_not_understood_is_refused(
    value: np.generic, said: str, tmp_path: Path
) -> None:
    Image.fromarray(np.full((4, 4), value)).save(tmp_path / "deep.tif")
    with refused(rf"^image \S+deep\.tif has .*{said}.*; save it with 8 or 16 unsigned bits"):
        open_image(tmp_path / "deep.tif")


@pytest.mark.parametrize(("size", "fine"), [((100, 1), True), ((101, 1), False), ((1, 101), False)])
def test_extreme_aspect_is_refused(tmp_path: Path, size: tuple[int, int], fine: bool) -> None:
    Image.new("L", size).save(tmp_path / "strip.png")
    if fine:
        assert open_image(tmp_path / "strip.png").size == size
    else:
        with refused(r"strip\.png is .*too large or too narrow"):
            open_image(tmp_path / "strip.png")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    Image.new("1", (10_001, 10_000)).save(tmp_path / "huge.png")
    with refused(r"huge\.png is 10001 x 10000 pixels"):
        open_image(tmp_path / "huge.png")


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"hello", b"\xff\xd8\xff\xe0 cut short"])
def test_what_is_no_image_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.jpg").write_bytes(content)
    with refused(r"x\.jpg cannot be read"):
        open_image(tmp_path / "x.jpg")


@pytest.mark.parametrize(("suffix", "kept"), [("jpg", 1500), ("png", -60)])
def test_truncated_photograph_is_refused(suffix: str, kept: int, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    path = tmp_path / f"cut.{suffix}"
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:kept])
    with refused(rf"^image \S+cut\.{suffix} cannot be read"):
        open_image(path)


def test_no_test_image_of_one_size_of_test_set_is_trained_on_under_another() -> None:
    target = load_target("digits")
    spec = TrialSpec("digits", "resnet18", LinearProbe())
    default = set(split_indices(target, spec).test.tolist())
    few = split_indices(target, dataclasses.replace(spec, test_shots=5))
    assert set(few.test.tolist()) <= default
    assert not default & {*few.train.tolist(), *few.val.tolist()}
