"""Folders of images as people have them: layouts are understood or refused, and skipped files are
reported."""

from __future__ import annotations

import inspect
import os
import shutil
import struct
import sys
import unicodedata
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness import new, study
from harness.core.caller import undisturbed
from harness.data import Target, load_target, open_image
from harness.data.media import Images
from harness.data.tree import SkippedFiles, contains, files_below
from harness.dataset_report.inspection import inspect_target
from harness.dataset_report.text import findings
from harness.deploy.prediction import example_files
from harness.inputs import Pixels
from tests.pictures import write_noise
from tests.refusals import refused
from tests.study_files import study_text

pytestmark = pytest.mark.usefixtures("forget_targets")


def tree(root: Path, **parts: int) -> str:
    """Parts with the classes cat, dog and owl, so many images in each; a keyword's "_" is a "/"."""
    for part, count in parts.items():
        for name in ("cat", "dog", "owl"):
            write_noise(root / part.replace("__", "/") / name, count)
    return f"folder:{root}"


def where(target: Target, mask: np.ndarray | None) -> set[str]:
    """The top folders of the images of a part."""
    assert mask is not None
    return {Path(target.describe(int(i))).parts[-3] for i in np.flatnonzero(mask)}


# --- layouts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("val", ["val", "valid", "validation", "dev", "Val", "VALIDATION_SET"])
def test_three_parts_are_used_as_given(val: str, tmp_path: Path) -> None:
    target = load_target(tree(tmp_path / "pets", train=3, **{val: 2}, test=1))
    assert target.classes == ("cat", "dog", "owl")
    assert np.bincount(target.labels).tolist() == [6, 6, 6]
    assert where(target, target.official_test) == {"test"}
    assert where(target, target.official_val) == {val}
    assert target.official_test is not None
    assert target.official_val is not None
    assert (target.official_test.sum(), target.official_val.sum()) == (3, 6)
    assert any("9 training, 6 validation and 3 test images" in note for note in target.notes)


@pytest.mark.parametrize(
    "names", [("train", "test"), ("Training", "Testing"), ("TRAIN_SET", "test set")]
)
def test_training_and_test_folders_hold_the_classes(names: tuple[str, str], tmp_path: Path) -> None:
    target = load_target(tree(tmp_path / "pets", **dict(zip(names, (3, 2), strict=True))))
    assert target.classes == ("cat", "dog", "owl")
    assert where(target, target.official_test) == {names[1]}
    assert target.official_val is None


def test_a_validation_folder_alone_is_the_test_set_and_that_is_said(tmp_path: Path) -> None:
    target = load_target(tree(tmp_path / "pets", train=3, val=2))
    assert where(target, target.official_test) == {"val"}
    assert target.official_val is None
    assert any(
        "no test part, so the 6 validation images are used as test" in n for n in target.notes
    )


def test_a_training_folder_alone_has_no_test_set(tmp_path: Path) -> None:
    target = load_target(tree(tmp_path / "pets", train=3))
    assert target.classes == ("cat", "dog", "owl")
    assert target.official_test is None


def test_a_test_folder_without_classes_has_no_labels(tmp_path: Path) -> None:
    name = tree(tmp_path / "pets", train=3, val=1)
    write_noise(tmp_path / "pets" / "test", 5)
    target = load_target(name)
    assert where(target, target.official_test) == {"val"}
    assert len(target.labels) == 12
    assert any("test contains 5 images without class folders" in note for note in target.notes)


def test_classes_may_be_called_like_parts(tmp_path: Path) -> None:
    for name in ("bus", "train", "car"):
        write_noise(tmp_path / "vehicles" / name, 2)
    assert load_target(f"folder:{tmp_path}/vehicles").classes == ("bus", "car", "train")


def test_a_class_that_the_test_part_lacks_is_told(tmp_path: Path) -> None:
    name = tree(tmp_path / "pets", train=3, test=2)
    shutil.rmtree(tmp_path / "pets" / "test" / "owl")
    target = load_target(name)
    assert target.classes == ("cat", "dog", "owl")
    assert "Classes without test images: 'owl'." in target.notes


DIFFERENT: dict[str, tuple[Callable[[Path], object], str]] = {
    "test has one more": (lambda root: write_noise(root / "test" / "emu"), "'emu' in test only"),
    "val lacks one": (lambda root: shutil.rmtree(root / "val" / "owl"), "'owl' not in val"),
    "another letter case": (
        lambda root: (root / "test" / "cat").rename(root / "test" / "Cat"),
        "'Cat' in test only, not in train",
    ),
}


@pytest.mark.parametrize(("spoil", "said"), DIFFERENT.values(), ids=DIFFERENT)
def test_parts_with_different_classes_are_refused(
    spoil: Callable[[Path], object], said: str, tmp_path: Path
) -> None:
    name = tree(tmp_path / "pets", train=3, val=1, test=2)
    spoil(tmp_path / "pets")
    with refused(f"parts have different classes: .*{said}"):
        load_target(name)


def mixed(root: Path) -> None:
    tree(root, train=2, test=1)
    write_noise(root / "extra")


def flat_parts(root: Path) -> None:
    write_noise(root / "train", 2)
    write_noise(root / "test", 2)


def parts_inside(root: Path) -> None:
    for name in ("cat", "dog"):
        write_noise(root / name / "train", 2)
        write_noise(root / name / "test", 1)


def domains(root: Path) -> None:
    tree(root, amazon=2, webcam=1)


def odd_parts(root: Path) -> None:
    tree(root, train2017=2, val2017=1)


TWO_READINGS: dict[str, tuple[Callable[[Path], None], int, list[str] | None]] = {
    "parts beside another folder": (mixed, 3, ["cat", "dog", "owl"]),
    "parts without class folders": (flat_parts, 2, None),
    "parts inside the classes": (parts_inside, 2, ["cat", "dog"]),
    "the same classes in other folders": (domains, 2, None),
    "parts of unusual names": (odd_parts, 2, None),
}


@pytest.mark.parametrize(("make", "tops", "as_parts"), TWO_READINGS.values(), ids=TWO_READINGS)
def test_two_readings_are_refused_unless_one_is_named(
    make: Callable[[Path], None], tops: int, as_parts: list[str] | None, tmp_path: Path
) -> None:
    root = tmp_path / "data"
    make(root)
    with refused(r"(?=.*\[layout=parts\]).*\[layout=classes\]"):
        load_target(f"folder:{root}")
    top = sorted(path.name for path in root.iterdir())
    assert len(top) == tops
    assert list(load_target(f"folder:{root}[layout=classes]").classes) == top
    if as_parts is None:
        with refused(r"no class folders|no folder named train"):
            load_target(f"folder:{root}[layout=parts]")
    else:
        target = load_target(f"folder:{root}[layout=parts]")
        assert list(target.classes) == as_parts
        assert target.official_test is not None
        assert target.official_test.sum() == len(as_parts)


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "one folder too high": (
        lambda r: tree(r / "inner", train=1),
        r"did you mean folder:\S+/data/inner\?",
    ),
    "val twice": (
        lambda r: tree(r, train=1, val=1, Valid=1),
        "two folders for the val part: Valid, val",
    ),
    "no training": (lambda r: tree(r, val=1, test=1), "no folder named train, only test, val"),
    "only other files": (
        lambda r: (write_noise(write_noise(r / "a").parent / "b", 0) / "x.heic").write_bytes(
            b"heic"
        ),
        "class folder 'b' contains no images, only 1 files such as x.heic",
    ),
}


@pytest.mark.parametrize(("make", "said"), REFUSED.values(), ids=REFUSED)
def test_a_folder_that_is_not_understood_is_refused(
    make: Callable[[Path], object], said: str, tmp_path: Path
) -> None:
    make(tmp_path / "data")
    with refused(said):
        load_target(f"folder:{tmp_path}/data")


def test_an_unknown_layout_is_refused(tmp_path: Path) -> None:
    with refused("layout must be classes or parts, got 'imagenet'"):
        load_target(tree(tmp_path, train=1) + "[layout=imagenet]")


def test_class_names_are_one_in_both_normal_forms(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "Käfer") for form in ("NFC", "NFD"))
    for part, name in (("train", decomposed), ("test", composed)):
        write_noise(tmp_path / part / name, 2)
        write_noise(tmp_path / part / "Ameise", 2)
    assert load_target(f"folder:{tmp_path}").classes == ("Ameise", composed)


@pytest.mark.parametrize("length", [300, 5000])
def test_a_path_that_is_too_long_is_refused_in_one_line(
    length: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = "a" * length
    for kind in ("folder", "csv"):
        for options in ("", "[group=x]"):
            with refused(f"{kind}:a+: no such f"):
                load_target(f"{kind}:{long}{options}")
    assert new.main(["--target", f"folder:{long}"]) == 2
    (tmp_path / "toy.py").write_text(study_text(source=f"file:{long}"))
    for space in (f"{long}.py", f"{tmp_path}/toy.py"):
        assert study.main(["--space", space, "--device", "cpu", "--dry-run"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 3
    assert all(line.startswith("error: ") and long in line for line in errors)


# --- what is passed over ---------------------------------------------------------------------------


def checkpoints(root: Path) -> None:
    write_noise(root / "cat" / ".ipynb_checkpoints", 3)


def apple_double(root: Path) -> None:
    write_noise(root / "__MACOSX" / "cat", 2)
    for path in list(root.rglob("[0-9].png")):
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X")
    (root / "cat" / ".DS_Store").write_bytes(b"Bud1")


def windows_and_servers(root: Path) -> None:
    (root / "cat" / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
    (root / "Desktop.ini").write_text("[.ShellClassInfo]")
    write_noise(root / "dog" / "@eaDir" / "0.png", 2)


PASSED_OVER: dict[str, tuple[Callable[[Path], None], str]] = {
    "notebook checkpoints": (checkpoints, "1 (cat/.ipynb_checkpoints)"),
    "a Mac's archive": (apple_double, "8 (__MACOSX, cat/.DS_Store, cat/._0.png, ...)"),
    "Windows and a server": (windows_and_servers, "3 (Desktop.ini, cat/Thumbs.db, dog/@eaDir)"),
}


@pytest.mark.parametrize(("spoil", "said"), PASSED_OVER.values(), ids=PASSED_OVER)
def test_what_systems_leave_behind_is_passed_over_and_counted(
    spoil: Callable[[Path], None], said: str, tmp_path: Path
) -> None:
    root = tmp_path / "pets"
    for name in ("cat", "dog"):
        write_noise(root / name, 3)
    spoil(root)
    target = load_target(f"folder:{root}")
    assert target.classes == ("cat", "dog")
    assert np.bincount(target.labels).tolist() == [3, 3]
    assert f"Skipped, hidden or created by the operating system: {said}." in target.notes
    assert said in "\n".join(findings(inspect_target(f"folder:{root}")))


def test_files_that_are_no_images_are_counted_by_suffix(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        write_noise(tmp_path / name, 2)
        (tmp_path / name / "notes.txt").write_text("bought in 2019")
    (tmp_path / "cat" / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic")
    write_noise(tmp_path / "cat", 1, ".png.part")
    write_noise(tmp_path, 1)
    target = load_target(f"folder:{tmp_path}")
    assert len(target.labels) == 4
    notes = "\n".join(target.notes)
    assert "not readable as images: 2 .txt, 1 .heic, 1 .part (cat/0.png.part, cat/notes" in notes
    assert "images outside the class folders: 1 (0.png)" in notes


def test_links_are_followed_and_circles_are_not(tmp_path: Path) -> None:
    far = write_noise(tmp_path / "far", 2)
    for name in ("cat", "dog"):
        write_noise(tmp_path / "pets" / name)
    (tmp_path / "pets" / "owl").symlink_to(far)
    (tmp_path / "pets" / "dog" / "linked.png").symlink_to(far / "0.png")
    (tmp_path / "pets" / "cat" / "more").symlink_to(far)
    (tmp_path / "pets" / "cat" / "around").symlink_to(tmp_path / "pets")
    (tmp_path / "pets" / "all").symlink_to(tmp_path / "pets")
    target = load_target(f"folder:{tmp_path}/pets")
    assert target.classes == ("cat", "dog", "owl")
    assert np.bincount(target.labels).tolist() == [3, 2, 2]
    assert any("circular links, pipes and devices: 2 (all, cat/around)" in n for n in target.notes)


def test_a_tree_may_be_deeper_than_pythons_stack(tmp_path: Path) -> None:
    image = write_noise(tmp_path.joinpath(*["d"] * 300)) / "0.png"
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 200)
    try:
        assert files_below(tmp_path, SkippedFiles()) == [image]
        assert contains(tmp_path, Images)
    finally:
        sys.setrecursionlimit(limit)


def test_what_is_no_file_is_skipped(tmp_path: Path) -> None:
    for name in "ab":
        write_noise(tmp_path / name, 6)
    (tmp_path / "a" / "around").symlink_to(tmp_path)
    (tmp_path / "a" / "itself.png").symlink_to(tmp_path / "a" / "itself.png")
    (tmp_path / "a" / "nowhere.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "a" / "endless.png").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "a" / "pipe.png")
    target = load_target(f"folder:{tmp_path}")
    assert len(target.read(np.arange(len(target.labels)), Pixels(8))) == 12


KINDS = [
    *((".jfif", "JPEG"), (".jpe", "JPEG"), (".avif", "AVIF"), ("", "PNG"), (".JPG", "JPEG")),
    *((".jp2", "JPEG2000"), (".qoi", "QOI"), (".tga", "TGA"), (".image", "WEBP"), (".ico", "ICO")),
]


@pytest.mark.parametrize(("suffix", "kind"), KINDS)
def test_images_are_told_by_their_content(suffix: str, kind: str, tmp_path: Path) -> None:
    write_noise(tmp_path / "cat", 2)
    write_noise(tmp_path / "dog", 2, suffix, kind)
    target = load_target(f"folder:{tmp_path}")
    assert np.bincount(target.labels).tolist() == [2, 2]
    assert target.read(np.arange(4), Pixels(8, "nearest")).shape == (4, 3, 8, 8)


@pytest.mark.parametrize(("suffix", "kind"), [(".eps", "EPS"), (".pdf", "PDF"), (".nef", "TIFF")])
def test_documents_and_raw_photographs_are_no_images(
    suffix: str, kind: str, tmp_path: Path
) -> None:
    write_noise(tmp_path / "cat", 2)
    write_noise(tmp_path / "dog", 2)
    write_noise(tmp_path / "dog" / "more", 1, suffix, kind)
    assert len(load_target(f"folder:{tmp_path}").labels) == 4


def test_photographs_of_telephones_are_not_misnamed(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        write_noise(tmp_path / name, 2)
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "cat" / "mpo.jpg", "MPO", save_all=True, append_images=frames[1:])
    with Image.open(tmp_path / "cat" / "mpo.jpg") as photograph:
        assert photograph.format == "MPO"
    (tmp_path / "dog" / "0.png").rename(tmp_path / "dog" / "0.jpg")
    report = inspect_target(f"folder:{tmp_path}")
    assert {Path(path).name: kind for path, kind in report.misnamed.items()} == {"0.jpg": "PNG"}
    red = np.asarray(open_image(tmp_path / "cat" / "mpo.jpg"))[4, 4]
    np.testing.assert_allclose(red, [255, 0, 0], atol=6)


def test_damaged_metadata_is_not_mentioned(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010E], exif[0x0131] = "a description", "a program " * 5
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "cut.jpg", exif=exif.tobytes()[:40])
    with pytest.warns(UserWarning, match="Truncated"), Image.open(tmp_path / "cut.jpg") as image:
        image.getexif()
    with undisturbed():  # as every command does; here, warnings are errors
        assert open_image(tmp_path / "cut.jpg").size == (8, 8)


def png_of_sixteen_bits(path: Path, value: int) -> Path:
    """16 bits for each of three colours, which Pillow cannot write: by the PNG specification."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0))
    rows = zlib.compress((b"\0" + struct.pack(">12H", *[value] * 12)) * 4)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", rows) + chunk(b"IEND", b""))
    return path


def test_colour_of_sixteen_bits_that_uses_twelve_is_refused(tmp_path: Path) -> None:
    whole = open_image(png_of_sixteen_bits(tmp_path / "whole.png", 0xC0FF))
    assert np.asarray(whole).tolist() == [[[0xC0] * 3] * 4] * 4
    with refused(r"dark\.png has 16 bits per channel but no value above 4095"):
        open_image(png_of_sixteen_bits(tmp_path / "dark.png", 0x0FFF))


def test_predictions_pass_over_the_same_files(tmp_path: Path) -> None:
    (tmp_path / "pets").mkdir()
    write_noise(tmp_path / "pets", 1, "", "JPEG")
    write_noise(tmp_path / "pets" / ".ipynb_checkpoints", 2)
    (tmp_path / "pets" / "notes.txt").write_text("bought in 2019")
    found, notes = example_files([tmp_path / "pets", tmp_path / "any.png"], Images)
    assert found == [tmp_path / "pets" / "0", tmp_path / "any.png"]
    assert len(notes) == 2


def test_a_study_says_what_was_understood(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tree(tmp_path / "pets", train=4, val=1, test=1)
    (tmp_path / "pets" / ".DS_Store").write_bytes(b"Bud1")
    (tmp_path / "toy.py").write_text(study_text(target=target, val_shots=1, test_shots=None))
    assert study.main(["--space", f"{tmp_path}/toy.py", "--device", "cpu", "--dry-run"]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert said == [
        "note: folder:pets: The parts are the folders test, train, val.",
        "note: folder:pets: The official parts are used: 12 training, 3 validation and 3 test images.",
        "note: folder:pets: Skipped, hidden or created by the operating system: 1 (.DS_Store).",
    ]
