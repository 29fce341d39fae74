"""Hugging Face data sets: decoded as files are, columns and parts clear, missing labels and images named."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from harness.data import load_target
from harness.dataset_report.inspection import inspect_target
from harness.inputs import Pixels
from tests.refusals import refused

datasets = pytest.importorskip("datasets")


pytestmark = pytest.mark.usefixtures("forget_targets")


@pytest.fixture(autouse=True)
def no_progress_bars() -> None:
    datasets.disable_progress_bars()


def grey(level: int) -> Image.Image:
    return Image.new("RGB", (8, 8), (level, level, level))


def rows(columns: Mapping[str, Sequence[Any]], **features: Any) -> Any:
    """A data set with a column "image" besides those given."""
    count = len(next(iter(columns.values())))
    images = columns.get("image", [grey(10 * i) for i in range(count)])
    kinds = {"image": datasets.Image(), **features}
    return datasets.Dataset.from_dict({**columns, "image": images}, datasets.Features(kinds))


def save(folder: Path, **parts: Any) -> str:
    datasets.DatasetDict(parts).save_to_disk(folder / "pets")
    return f"hf:{folder / 'pets'}"


def labelled(values: Sequence[int | None], names: Sequence[str] = ("cat", "dog")) -> Any:
    return rows({"label": values}, label=datasets.ClassLabel(names=list(names)))


# --- decoding --------------------------------------------------------------------------------------


def odd_images(folder: Path) -> list[Path]:
    """What Pillow's own conversion to RGB gets wrong: 16 bits, transparency, palettes, EXIF rotation."""
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 4096, (8, 12), np.uint16)
    Image.fromarray(noise).save(folder / "deep.png")
    Image.fromarray(noise).save(folder / "deep.tif")
    Image.new("RGBA", (8, 8), (0, 0, 0, 51)).save(folder / "clear.png")
    palette = Image.new("P", (8, 8))
    palette.putpalette([20, 20, 20])
    palette.save(folder / "palette.png", transparency=0)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise.astype(np.uint8)).save(folder / "turned.png", exif=exif)
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(folder / "print.jpg")
    Image.fromarray(noise.astype(np.uint8)).save(folder / "by_name.tga")
    return sorted(folder.iterdir())


@pytest.mark.parametrize("stored", ["bytes", "path"])
def test_images_are_the_same_in_every_container(stored: str, tmp_path: Path) -> None:
    files = odd_images(tmp_path / "files")
    names = [["cat", "dog"][i % 2] for i in range(len(files))]
    values: list[dict[str, Any]] = [{"bytes": f.read_bytes(), "path": f.name} for f in files]
    if stored == "path":
        values = [{"bytes": None, "path": str(f)} for f in files]
    hub = rows({"image": values, "label": names}, label=datasets.Value("string"))
    hub.save_to_disk(tmp_path / "hub")
    (tmp_path / "files" / "t.csv").write_text(
        "\n".join(["image,label", *(f"{f.name},{n}" for f, n in zip(files, names, strict=True))])
    )
    every = np.arange(len(files))
    table, target = load_target(f"csv:{tmp_path}/files/t.csv"), load_target(f"hf:{tmp_path}/hub")
    expected = table.read(every, Pixels(8))
    np.testing.assert_array_equal(target.read(every, Pixels(8)), expected)
    assert len({image.numpy().tobytes() for image in expected}) > 4


def test_broken_images_are_named_by_row(tmp_path: Path) -> None:
    files = odd_images(tmp_path / "files")[1:5]
    values: list[dict[str, Any]] = [{"bytes": f.read_bytes(), "path": None} for f in files]
    values[2]["bytes"] = b"no picture"
    data = rows({"image": values, "label": [0, 1] * 2}, label=datasets.ClassLabel(names=["a", "b"]))
    name = save(tmp_path, train=data)
    with refused("image hf:pets: row 2 of train cannot be read"):
        load_target(name).read(np.arange(4), Pixels(8))
    report = inspect_target(name)
    assert list(report.broken) == ["hf:pets: row 2 of train"]
    assert sum(report.shapes.values()) == 3
    assert report.short_side == 8


# --- columns ---------------------------------------------------------------------------------------


def fine_and_coarse() -> Any:
    fine = datasets.ClassLabel(names=list("abcdef"))
    return rows(
        {
            "fine_label": [0, 1, 2, 3, 4, 5],
            "coarse_label": [0, 0, 0, 1, 1, 1],
            "second": [grey(7)] * 6,
        },
        fine_label=fine,
        coarse_label=datasets.ClassLabel(names=["x", "y"]),
        second=datasets.Image(),
    )


def test_two_label_or_image_columns_are_refused_unless_one_is_named(tmp_path: Path) -> None:
    name = save(tmp_path, train=fine_and_coarse())
    with refused("any of 'second', 'image' could be the image"):
        load_target(name)
    with refused("any of 'fine_label', 'coarse_label' could be the label"):
        load_target(f"{name}[image=image]")
    assert load_target(f"{name}[image=image,label=fine_label]").classes == tuple("abcdef")
    target = load_target(f"{name}[image=second,label=coarse_label][classes=y+x]")
    assert target.classes == ("y", "x")
    assert (target.read(np.arange(6), Pixels(8)) == 7).all()


@pytest.mark.parametrize(
    ("kind", "values", "classes"),
    [
        ("string", ["dog", "cat", "dog"], ("cat", "dog")),
        ("int64", [10, 9, 1], ("1", "9", "10")),
        ("bool", [True, False, True], ("False", "True")),
    ],
)
def test_texts_and_numbers_serve_as_classes(
    kind: str, values: list[Any], classes: tuple[str, ...], tmp_path: Path
) -> None:
    data = rows(
        {"species": values, "note": ["x"] * 3},
        species=datasets.Value(kind),
        note=datasets.Value("string"),
    )
    target = load_target(save(tmp_path, train=data))
    assert target.classes == classes
    assert "Column 'species' is used as label." in target.notes


def test_no_label_column_is_refused_with_those_that_there_are(tmp_path: Path) -> None:
    name = save(tmp_path, train=rows({"note": ["x"] * 3}, note=datasets.Value("string")))
    with refused("no column for the labels is recognised; the columns are 'note'"):
        load_target(name)


def test_groups_are_named_or_noted(tmp_path: Path) -> None:
    kinds = {"label": datasets.ClassLabel(names=["a", "b"]), "patient": datasets.Value("string")}
    data = rows({"label": [0, 1] * 3, "patient": ["p", "p", "q", "q", "r", None]}, **kinds)
    name = save(tmp_path, train=data)
    assert load_target(name).groups is None
    assert any(
        "[group=patient] puts all images of a group into the same part" in note
        for note in load_target(name).notes
    )
    groups = load_target(f"{name}[group=patient]").groups
    assert groups is not None
    assert groups.tolist() == [0, 0, 1, 1, 2, 3]


def test_nan_is_a_missing_label_or_group(tmp_path: Path) -> None:
    """As in a float column that was written without a mask."""
    kinds = {"label": datasets.Value("float32"), "group": datasets.Value("float64")}
    data = {"label": [0.0, 1.0, math.nan, 1.0, 0.0], "group": [7.0, 7.0, 8.0, math.nan, math.nan]}
    target = load_target(save(tmp_path, train=rows(data, **kinds)))
    assert target.classes == ("0", "1")
    assert target.labels.tolist() == [0, 1, 1, 0]
    assert "Part train: 1 of 5 images have no label and are skipped." in target.notes
    assert target.groups is not None
    assert target.groups.tolist() == [0, 0, 1, 2]


def test_classes_without_images_are_left_out(tmp_path: Path) -> None:
    target = load_target(save(tmp_path, train=labelled([0, 2, 0, 2], ["ant", "bee", "cat"])))
    assert target.classes == ("ant", "cat")
    assert target.labels.tolist() == [0, 1, 0, 1]
    assert any("'bee'" in note for note in target.notes)


def test_hub_set_without_pictures_or_classes_is_refused(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"number": [1, 2]}).save_to_disk(tmp_path / "numbers")
    with refused(r"needs an Image or Audio column, .* are 'number'"):
        load_target(f"hf:{tmp_path / 'numbers'}")


# --- parts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("val", ["validation", "val", "valid", "dev"])
def test_the_validation_part_is_used(val: str, tmp_path: Path) -> None:
    parts = {"test": labelled([0, 1]), "train": labelled([0, 1, 0]), val: labelled([1, 0])}
    target = load_target(save(tmp_path, **parts))
    assert target.labels.tolist() == [0, 1, 0, 1, 0, 0, 1]
    assert target.official_val is not None
    assert target.official_test is not None
    assert target.official_val.tolist() == [False] * 3 + [True] * 2 + [False] * 2
    assert target.official_test.tolist() == [False] * 5 + [True] * 2


@pytest.mark.parametrize("label", [-1, None])
def test_hidden_test_labels_mean_no_test_part(label: int | None, tmp_path: Path) -> None:
    parts = {"train": labelled([0, 1, 0, 1]), "test": labelled([label] * 3)}
    name = save(tmp_path, **parts)
    target = load_target(name)
    assert target.official_test is None
    assert target.labels.tolist() == [0, 1, 0, 1]
    assert "Part test: 3 of 3 images have no label and are skipped." in target.notes
    assert inspect_target(name).counts.tolist() == [2, 2]


def test_the_validation_part_is_the_test_part_where_that_has_no_labels(tmp_path: Path) -> None:
    parts = {"train": labelled([0, 1]), "test": labelled([-1]), "validation": labelled([1, 0])}
    target = load_target(save(tmp_path, **parts))
    assert target.official_test is not None
    assert target.official_test.tolist() == [False, False, True, True]
    assert target.official_val is None
    assert (target.read(np.array([2]), Pixels(8, "nearest")) == 0).all()  # the first of validation


def test_other_parts_are_passed_over_and_named(tmp_path: Path) -> None:
    target = load_target(save(tmp_path, train=labelled([0, 1]), unsupervised=labelled([0])))
    assert len(target.labels) == 2
    assert "Skipped parts: 'unsupervised'." in target.notes


@pytest.mark.parametrize("part", ["train", "full"])
def test_one_part_is_all_there_is(part: str, tmp_path: Path) -> None:
    assert len(load_target(save(tmp_path, **{part: labelled([0, 1, 0])})).labels) == 3


def test_a_missing_image_is_named_with_its_row(tmp_path: Path) -> None:
    kind = datasets.ClassLabel(names=["cat", "dog"])
    bad = rows({"image": [grey(1), None, None, grey(2)], "label": [0, 1, 0, 1]}, label=kind)
    name = save(tmp_path, train=labelled([0, 1]), validation=bad)
    with refused(r"part val: row 1 has no image \(and 1 more\)"):
        load_target(name)


def test_parts_with_different_classes_are_refused(tmp_path: Path) -> None:
    names = ["a", "b", "c"]
    parts = {"train": labelled([0, 1], names), "test": labelled([0, 1, 2], names)}
    with refused("different classes: 'c' in test only"):
        load_target(save(tmp_path, **parts))


def test_a_changed_image_is_another_data_set(tmp_path: Path) -> None:
    first = load_target(save(tmp_path / "a", train=labelled([0, 1, 0])))
    again = load_target(save(tmp_path / "b", train=labelled([0, 1, 0])))
    other = rows(
        {"image": [grey(0), grey(10), grey(21)], "label": [0, 1, 0]},
        label=datasets.ClassLabel(names=["cat", "dog"]),
    )
    assert first.fingerprint() == again.fingerprint()
    assert load_target(save(tmp_path / "c", train=other)).fingerprint() != first.fingerprint()


@pytest.mark.parametrize("message", ["no route to the hub\nand a second line", ""])
def test_hub_set_that_cannot_be_had_is_refused_in_one_line_and_in_seconds(
    message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError(message)

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    begun = time.perf_counter()
    with refused(r"is not a folder made by save_to_disk and cannot") as caught:
        load_target(f"hf:{tmp_path / 'gone'}")
    assert time.perf_counter() - begun < 5
    assert message.partition("\n")[0] in str(caught.value)
