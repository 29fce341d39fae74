"""Targets from a table or from Hugging Face, and images that a split would hold twice."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from PIL import Image

from harness import study
from harness.core.errors import UserError
from harness.core.spec import TrialSpec
from harness.data import (
    Examples,
    Target,
    describe_leaks,
    find_leaks,
    load_target,
    read_examples,
    split_indices,
)
from harness.inputs import Pixels

MakeSpec = Callable[..., TrialSpec]


pytestmark = pytest.mark.usefixtures("forget_targets")


def picture(seed: int, size: int = 64) -> Image.Image:
    """A smooth coloured picture that looks like no other."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)


# --- tables ----------------------------------------------------------------------------------------


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Pictures 0.png to 7.png in a sub-folder."""
    (tmp_path / "images").mkdir()
    for i in range(8):
        picture(i).save(tmp_path / "images" / f"{i}.png")
    return tmp_path


def table(folder: Path, *rows: str, encoding: str = "utf-8") -> str:
    """Write a table; the name of its target."""
    (folder / "table.csv").write_text("\n".join(rows) + "\n", encoding=encoding)
    return f"csv:{folder / 'table.csv'}"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_table_gives_labels_and_pictures_relative_to_itself(
    pictures: Path, encoding: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    name = table(
        pictures,
        "image,label,note",
        "images/0.png,Hund,a",
        "images/1.png, Kätzchen,b",
        f"{pictures}/images/2.png,Hund ,c",
        "images/3.png,Äpfel,",
        encoding=encoding,
    )
    monkeypatch.chdir("/")
    target = load_target(name)
    assert target.classes == ("Hund", "Kätzchen", "Äpfel")
    assert target.labels.tolist() == [0, 1, 0, 2]
    assert target.labels.dtype == np.int64
    assert target.official_test is None
    got = target.read(np.array([2, 0]), Pixels(64))
    for image, seed in zip(got, (2, 0), strict=True):
        np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), np.asarray(picture(seed)))
    assert target.describe(1).endswith("images/1.png")


def test_labels_are_text_whatever_they_look_like(pictures: Path) -> None:
    name = table(pictures, "image,label", "images/0.png,10", "images/1.png,9", "images/2.png,09")
    assert load_target(name).classes == ("09", "10", "9")


@pytest.mark.parametrize("label", ["NA", "None", "null"])
def test_class_with_the_name_of_nothing_is_a_class(pictures: Path, label: str) -> None:
    name = table(pictures, "image,label", f"images/0.png,{label}", "images/1.png,some")
    assert set(load_target(name).classes) == {label, "some"}


def test_split_column_sets_the_test_images_apart(pictures: Path, make_spec: MakeSpec) -> None:
    rows = [f"images/{i}.png,{'ab'[i % 2]},{'test' if i >= 6 else 'train'}" for i in range(8)]
    rows[1] = "images/1.png,b,"  # left empty: training
    target = load_target(table(pictures, "image,label,split", *rows))
    assert target.official_test is not None
    assert target.official_test.tolist() == [False] * 6 + [True] * 2
    split = split_indices(target, make_spec(shots=None, val_shots=1, test_shots=None))
    assert split.test.tolist() == [6, 7]
    assert sorted([*split.train, *split.val]) == [0, 1, 2, 3, 4, 5]


def test_split_column_without_test_images_is_no_official_test_set(pictures: Path) -> None:
    rows = [f"images/{i}.png,{'ab'[i % 2]},train" for i in range(4)]
    assert load_target(table(pictures, "image,label,split", *rows)).official_test is None


GOOD = "images/0.png,a"
BROKEN = {
    "no image column": (
        ["note,label", GOOD],
        r"no column for the images, sounds or texts is recognised; .* 'note', 'label'; name one with",
    ),
    "no label column": (
        ["image,note", GOOD],
        r"no column for the labels is recognised; .* 'image', 'note'; name one with \[label=COLUMN\]",
    ),
    "no rows": (["image,label"], "the table has no rows"),
    "nothing": ([""], "cannot be read as a table"),
    "ragged": (["image,label", GOOD, "images/1.png,b,c,d"], "cannot be read as a table"),
    "empty label": (["image,label", GOOD, "images/1.png,"], "has no image or no label"),
    "empty image": (["image,label", GOOD, ",b"], "has no image or no label"),
    "absent image": (
        ["image,label", GOOD, "images/77.png,b", "78.png,b"],
        r"2 images are missing, the first is .*images/77\.png",
    ),
    "one class": (["image,label", GOOD, "images/1.png,a"], "at least 2 classes, found 1"),
    "listed twice": (["image,label", GOOD, "images/1.png,b", GOOD], "is listed twice"),
    "listed in two classes": (
        ["image,label", GOOD, "images/1.png,b", "./images/0.png,b"],
        "is listed twice",
    ),
    "unknown split": (
        ["image,label,split", f"{GOOD},train", "images/1.png,b,fold 3"],
        "split must be train, val or test, got 'fold 3' in column 'split'",
    ),
}


@pytest.mark.parametrize(("rows", "message"), BROKEN.values(), ids=BROKEN)
def test_broken_table_is_refused_with_its_name_and_what_is_wrong(
    rows: list[str], message: str, pictures: Path
) -> None:
    with pytest.raises(UserError, match=rf"target csv:.*table\.csv.*{message}"):
        load_target(table(pictures, *rows))


def test_absent_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such file; name a table with columns image, label"):
        load_target(f"csv:{tmp_path}/none.csv")


def test_file_that_is_no_text_is_refused(pictures: Path) -> None:
    with pytest.raises(UserError, match="cannot be read as a table"):
        load_target(f"csv:{pictures}/images/0.png")


# --- Hugging Face ----------------------------------------------------------------------------------


def hub_set(seeds: list[int]) -> object:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"picture": datasets.Image(), "kind": datasets.ClassLabel(names=["cat", "dog"])}
    )
    rows = {"picture": [picture(s) for s in seeds], "kind": [s % 2 for s in seeds]}
    return datasets.Dataset.from_dict(rows, features=features)


def test_hub_set_on_disk_gives_its_pictures_and_classes(tmp_path: Path) -> None:
    hub_set([0, 1, 2]).save_to_disk(tmp_path / "pets")  # type: ignore[attr-defined]
    target = load_target(f"hf:{tmp_path / 'pets'}")
    assert target.classes == ("cat", "dog")
    assert target.labels.tolist() == [0, 1, 0]
    assert target.official_test is None
    got = target.read(np.array([2, 1]), Pixels(64))
    for image, seed in zip(got, (2, 1), strict=True):
        np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), np.asarray(picture(seed)))


def test_test_part_of_a_hub_set_is_its_official_test_set(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    parts = {"test": hub_set([4, 5]), "train": hub_set([0, 1, 2])}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "pets")
    target = load_target(f"hf:{tmp_path / 'pets'}")
    assert target.official_test is not None
    assert target.official_test.tolist() == [False] * 3 + [True] * 2
    assert target.labels.tolist() == [0, 1, 0, 0, 1]
    (image,) = target.read(np.array([4]), Pixels(64))
    np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), np.asarray(picture(5)))


def test_hub_set_without_pictures_or_classes_is_refused(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"number": [1, 2]}).save_to_disk(tmp_path / "numbers")
    with pytest.raises(UserError, match=r"needs an Image or Audio column, .* are 'number'"):
        load_target(f"hf:{tmp_path / 'numbers'}")


@pytest.mark.parametrize("message", ["no route to the hub\nand a second line", ""])
def test_hub_set_that_cannot_be_had_is_refused_in_one_line_and_in_seconds(
    message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    datasets = pytest.importorskip("datasets")

    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError(message)

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    begun = time.perf_counter()
    with pytest.raises(
        UserError, match=r"is not a folder made by save_to_disk and cannot"
    ) as caught:
        load_target(f"hf:{tmp_path / 'gone'}")
    assert time.perf_counter() - begun < 5
    assert "\n" not in str(caught.value)
    assert message.partition("\n")[0] in str(caught.value)


# --- leaks -----------------------------------------------------------------------------------------


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """Sixteen different pictures in two classes, four of them the test set, as a table."""
    (tmp_path / "album").mkdir()
    rows = []
    for i in range(16):
        picture(i).save(tmp_path / "album" / f"p{i}.png")
        rows.append(f"p{i}.png,{'ab'[i % 2]},{'test' if i >= 12 else 'train'}")
    table(tmp_path / "album", "image,label,split", *rows)
    return tmp_path / "album"


def copy_exactly(album: Path) -> str:
    shutil.copy(album / "p0.png", album / "copy.png")
    return "copy.png"


def copy_recompressed(album: Path) -> str:
    with Image.open(album / "p0.png") as original:
        original.save(album / "copy.jpg", quality=60)
    return "copy.jpg"


def copy_rescaled(album: Path) -> str:
    with Image.open(album / "p0.png") as original:
        original.resize((150, 150), Image.Resampling.LANCZOS).save(album / "copy.webp", quality=80)
    return "copy.webp"


COPIES = [(copy_exactly, True), (copy_recompressed, False), (copy_rescaled, False)]


def add_to_test(album: Path, file: str, label: str) -> None:
    with (album / "table.csv").open("a") as rows:
        rows.write(f"{file},{label},test\n")


def read_parts(target: str, spec: TrialSpec) -> tuple[Target, dict[str, Examples]]:
    loaded = load_target(target)
    split = split_indices(loaded, spec)
    return loaded, {
        name: read_examples(target, tuple(part.tolist()), Pixels(32))
        for name, part in (("train", split.train), ("validation", split.val), ("test", split.test))
    }


@pytest.fixture
def all_images(make_spec: MakeSpec) -> TrialSpec:
    return make_spec(shots=None, val_shots=1, test_shots=None)


@pytest.mark.parametrize(("copy", "exact"), COPIES)
@pytest.mark.parametrize("label", ["a", "b"])
def test_copy_of_a_training_image_among_the_tests_is_found_and_named(
    copy: Callable[[Path], str], exact: bool, label: str, album: Path, all_images: TrialSpec
) -> None:
    file = copy(album)
    add_to_test(album, file, label)
    target, parts = read_parts(f"csv:{album / 'table.csv'}", all_images)
    (leak,) = find_leaks(parts)
    assert leak.parts[1] == "test"
    assert [Path(target.describe(p)).name for p in leak.positions] == ["p0.png", file]
    assert leak.exact == exact
    words = describe_leaks([leak], target)
    assert "1 exact and 0 near" in words if exact else "0 exact and 1 near" in words
    assert str(album / "p0.png") in words
    assert str(album / file) in words
    assert "\n" not in words


def test_different_images_are_no_leak(album: Path, all_images: TrialSpec) -> None:
    target, parts = read_parts(f"csv:{album / 'table.csv'}", all_images)
    assert sum(len(part.labels) for part in parts.values()) == 16
    assert find_leaks(parts) == []
    assert describe_leaks([], target) == ""


def test_two_copies_in_one_part_are_no_leak(album: Path, all_images: TrialSpec) -> None:
    shutil.copy(album / "p12.png", album / "copy.png")
    add_to_test(album, "copy.png", "a")
    assert find_leaks(read_parts(f"csv:{album / 'table.csv'}", all_images)[1]) == []


def test_flat_images_are_near_to_nothing() -> None:
    flat = torch.full((2, 3, 16, 16), 7, dtype=torch.uint8)
    part = Examples(flat, torch.tensor([0, 1]), np.arange(2), Pixels(flat.shape[-1]))
    assert find_leaks({"train": part, "test": part}) == []


# --- the command -----------------------------------------------------------------------------------


@pytest.fixture
def command(
    album: Path, tmp_path: Path, tracking_uri: str, optuna_template: Path
) -> Iterator[list[str]]:
    """The command line of a study of one short trial on the album."""
    (tmp_path / "album.py").write_text(
        '"""Does the album leak?"""\n'
        "from harness import strategies\n"
        "from harness import Study, TrialSpec\n"
        "def space(trial, arm):\n"
        f"    return TrialSpec({f'csv:{album}/table.csv'!r}, 'test_resnet', strategies.LinearProbe(),\n"
        "                     source='scratch', val_shots=1, resolution=32, epochs=1)\n"
        "study = Study(compare={'arm': ['probe']}, space=space, trials=1, repeats=0)\n"
    )
    shutil.copy(optuna_template, tmp_path / "optuna.db")
    before = signal.getsignal(signal.SIGTERM)
    yield [
        *("--space", str(tmp_path / "album.py"), "--device", "cpu"),
        *("--tracking-uri", tracking_uri, "--storage", f"sqlite:///{tmp_path / 'optuna.db'}"),
    ]
    signal.signal(signal.SIGTERM, before)


def test_leaks_are_warned_of_and_kept_with_the_experiment(
    command: list[str], album: Path, tracking_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    add_to_test(album, copy_exactly(album), "b")
    add_to_test(album, copy_recompressed(album), "a")
    assert study.main(command) == 0
    warnings = [w for w in capsys.readouterr().err.splitlines() if w.startswith("warning: ")]
    assert len(warnings) == 1
    assert "1 exact and 1 near duplicates between train, validation and test" in warnings[0]
    for file in ("p0.png", "copy.png", "copy.jpg"):
        assert str(album / file) in warnings[0]
    experiment = MlflowClient(tracking_uri=tracking_uri).get_experiment_by_name("album")
    assert experiment is not None
    assert experiment.tags["leaks"] == warnings[0].removeprefix("warning: ")


def test_clean_target_is_not_warned_of(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert study.main([*command, "--dry-run"]) == 0
    assert capsys.readouterr().err == ""
