"""Tables of images as people have them: any separator, encoding and path; columns named or guessed."""

from __future__ import annotations

import codecs
import csv
import io
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import pytest

from harness.data import Target, clear_caches, load_target
from harness.inputs import Pixels
from tests.pictures import paint
from tests.refusals import refused

pytestmark = pytest.mark.usefixtures("forget_targets")


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Pictures img/0.png to img/7.png whose grey is ten times their number."""
    for i in range(8):
        paint(tmp_path / "img" / f"{i}.png", 10 * i)
    return tmp_path


def write(
    folder: Path,
    header: Sequence[str],
    *rows: Sequence[object],
    separator: str = ",",
    encoding: str = "utf-8",
    bom: bytes = b"",
) -> str:
    """Write a table; the name of its target."""
    out = io.StringIO()
    csv.writer(out, delimiter=separator, lineterminator="\r\n").writerows([header, *rows])
    (folder / "table.csv").write_bytes(bom + out.getvalue().encode(encoding))
    return f"csv:{folder / 'table.csv'}"


def greys(target: Target) -> list[int]:
    read: list[int] = target.read(np.arange(len(target.labels)), Pixels(8, "nearest"))[
        :, 0, 0, 0
    ].tolist()
    return [grey // 10 for grey in read]


ROWS = [(f"img/{i}.png", "Katze, klein" if i % 2 else "Käfer") for i in range(8)]


# --- separators, encodings, containers -------------------------------------------------------------


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize(
    ("encoding", "bom"),
    [
        ("utf-8", b""),
        ("utf-8-sig", b""),
        ("utf-16-le", codecs.BOM_UTF16_LE),
        ("utf-16-be", codecs.BOM_UTF16_BE),
        ("utf-16-le", b""),
        ("cp1252", b""),
    ],
)
def test_separators_and_encodings_are_told(
    separator: str, encoding: str, bom: bytes, pets: Path
) -> None:
    name = write(pets, ("image", "label"), *ROWS, separator=separator, encoding=encoding, bom=bom)
    target = load_target(name)
    assert target.classes == ("Katze, klein", "Käfer")
    assert target.labels.tolist() == [1, 0] * 4
    assert greys(target) == list(range(8))
    assert target.describe(1).endswith("img/1.png")
    assert any("cp1252" in note for note in target.notes) == (encoding == "cp1252")


def test_first_line_of_a_spreadsheet_may_name_the_separator(pets: Path) -> None:
    rows = "\r\n".join(f"{image};{label}" for image, label in ROWS)
    (pets / "table.csv").write_text(f"sep=;\r\nimage;label\r\n{rows}\r\n;;\r\n", newline="")
    assert greys(load_target(f"csv:{pets}/table.csv")) == list(range(8))


def test_parquet_is_read_by_content(pets: Path) -> None:
    table = pd.DataFrame(
        {"image": [image for image, _ in ROWS], "label": [1.0, 10.0, 2.0, 1.0] * 2}
    )
    table.to_parquet(pets / "table.csv")
    target = load_target(f"csv:{pets}/table.csv")
    assert target.classes == ("1", "2", "10")
    assert greys(target) == list(range(8))


GOOD = "img/0.png,a"
BROKEN = {
    "no image column": (
        ["note,label", GOOD],
        r"no column for the images, sounds or texts is recognised; .* 'note', 'label'; name one with",
    ),
    "no label column": (
        ["image,note", GOOD],
        r"no column for the labels is recognised; .* 'image', 'note'; name one with \[label=COLUMN\]",
    ),
    "nothing": ([""], "cannot be read as a table"),
    "no header": ([GOOD, "img/1.png,b"], "the first line must name the columns"),
    "header only": (["image,label"], "the table has no rows"),
    "one row": (["image,label", GOOD], "at least 2 classes, found 1"),
    "one class": (["image,label", GOOD, "img/1.png, a "], "at least 2 classes, found 1"),
    "ragged": (["image,label", GOOD, "img/1.png,b,c,d"], "cannot be read as a table"),
    "empty image": (["image,label", GOOD, ",b"], "has no image or no label"),
    "empty label": (["image,label", GOOD, "img/1.png,"], "has no image or no label"),
    "blank label": (["image,label", GOOD, "img/1.png,  "], "has no image or no label"),
    "odd label": (["image,label", GOOD, "img/1.png,\x07"], "label '.x07' is not printable"),
    "long name": (["image,label", f"{'a' * 300},x", GOOD], "1 images are missing"),
    "NUL in a name": (["image,label", "a\0b.png,x", GOOD], "1 images are missing"),
    "absent images": (
        ["image,label", GOOD, "img/77.png,b", "78.png,b"],
        r"2 images are missing, the first is .*img/77\.png",
    ),
    "listed in two classes": (
        ["image,label", GOOD, "img/1.png,b", "./img/0.png,b"],
        "is listed twice",
    ),
    "unknown part": (
        ["image,label,split", f"{GOOD},train", "img/1.png,b,fold 3"],
        "split must be train, val or test, got 'fold 3' in column 'split'",
    ),
    "class that is only tested": (
        ["image,label,split", f"{GOOD},train", "img/1.png,b,test", "img/2.png,a,test"],
        "different classes: 'b' in test only, not in train",
    ),
}


@pytest.mark.parametrize(("rows", "said"), BROKEN.values(), ids=BROKEN)
def test_broken_table_is_refused_with_its_name_and_what_is_wrong(
    rows: list[str], said: str, pets: Path
) -> None:
    (pets / "table.csv").write_text("\n".join(rows) + "\n")
    with refused(rf"target csv:.*table\.csv.*{said}"):
        load_target(f"csv:{pets}/table.csv")


def test_absent_table_is_refused(tmp_path: Path) -> None:
    with refused(r"no such file; name a table with columns image, label"):
        load_target(f"csv:{tmp_path}/none.csv")


@pytest.mark.parametrize(
    "content", [b"PK\3\4 a spreadsheet", b"PAR1 and nothing", b"\0\1\2\x90" * 9, b"\xff\xfe\0"]
)
def test_what_is_no_table_is_refused(content: bytes, pets: Path) -> None:
    (pets / "table.csv").write_bytes(content)
    with refused("cannot be read as a table"):
        load_target(f"csv:{pets}/table.csv")


# --- columns ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [
        ("filename", "species"),
        ("File Name", "CLASS"),
        ("image_id", "target"),
        ("path", "diagnosis"),
    ],
)
def test_usual_column_names_are_guessed_and_told(header: tuple[str, str], pets: Path) -> None:
    target = load_target(write(pets, header, *ROWS))
    assert target.classes == ("Katze, klein", "Käfer")
    assert target.notes == (
        f"Column {header[0]!r} is used as image.",
        f"Column {header[1]!r} is used as label.",
    )


def test_columns_are_named_in_brackets(pets: Path) -> None:
    rows = [(i, image, "ab"[i % 2], "xyz"[i % 3], i % 4) for i, (image, _) in enumerate(ROWS)]
    header = ("image", "where it is", "label", "genus, Latin", "who")
    name = write(pets, header, *rows)
    target = load_target(f"{name}[image=where it is,label=genus, Latin,group=who]")
    assert target.classes == ("x", "y", "z")
    assert target.groups is not None
    assert target.groups.tolist() == [0, 1, 2, 3] * 2
    assert greys(target) == list(range(8))


UNCLEAR = {
    "two for the image": (
        ("path", "filename", "label"),
        "",
        r"any of 'path', 'filename' could be the image; name one, e\.g\. \[image=path\]",
    ),
    "two for the label": (
        ("image", "species", "genus"),
        "[label=family]",
        "no column 'family'; the columns are 'image', 'species', 'genus'",
    ),
    "two of one name": (("image", "label", "label"), "", "two columns are called 'label'"),
}


@pytest.mark.parametrize(("header", "options", "said"), UNCLEAR.values(), ids=UNCLEAR)
def test_unclear_columns_are_refused_by_name(
    header: Sequence[str], options: str, said: str, pets: Path
) -> None:
    name = write(pets, header, *((image, image, label) for image, label in ROWS))
    with refused(said):
        load_target(name + options)


def test_documented_names_win_over_others_and_that_is_told(pets: Path) -> None:
    name = write(pets, ("image", "label", "species"), *((*row, "x") for row in ROWS))
    target = load_target(name)
    assert target.classes == ("Katze, klein", "Käfer")
    assert target.notes == (
        "Column 'label' is used as label, not 'species'; [label=COLUMN] changes that.",
    )


# --- labels ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "classes"),
    [
        (["0.0", "1.0", "2.0", "10.0"], ("0", "1", "2", "10")),
        (["1", "1.0", " 1 ", "10", "9"], ("1", "9", "10")),
        (["-1", "1", "0.5", "10"], ("-1", "0.5", "1", "10")),
        (["1.1", "1.10", "1.1"], ("1.1", "1.10")),
        (["007", "7", "08"], ("007", "08", "7")),
        (["b", "10", "9"], ("10", "9", "b")),
        (["NA", "None", "null"], ("NA", "None", "null")),
        (["1", "1.0", "inf", " inf ", "NaN"], ("1", "NaN", "inf")),
        (
            [unicodedata.normalize(form, "Käfer") for form in ("NFC", "NFD")] + ["Aal"],
            ("Aal", "Käfer"),
        ),
    ],
)
def test_labels_are_one_class_where_they_mean_the_same(
    written: list[str], classes: tuple[str, ...], pets: Path
) -> None:
    name = write(pets, ("image", "label"), *((f"img/{i}.png", w) for i, w in enumerate(written)))
    assert load_target(name).classes == classes


def test_classes_that_are_probably_none_are_named(pets: Path) -> None:
    written = ["Cat", "cat", "TRUE", "dog", "NaN", "dog", "None", "cat"]
    rows = [(f"img/{i}.png", label) for i, label in enumerate(written)]
    target = load_target(write(pets, ("image", "label"), *rows))
    assert len(target.classes) == 6
    [case, absent] = target.notes
    assert "differ in letter case only: 'Cat', 'cat';" in case
    assert absent.startswith("'NaN' is a class like the others")


# --- image names -----------------------------------------------------------------------------------

PATHS = {
    "Windows separators": r"img\{}.png",
    "a Windows drive": r"C:\Users\me\img\{}.png",
    "a server": r"\\nas\share\pets\img\{}.png",
    "another machine": "/home/other/data/img/{}.png",
    "a web site": "https://example.org/pets/img/{}.png",
    "no folder": "{}.png",
    "no suffix": "{}",
    "another letter case": "IMG/{}.PNG",
    "from the folder above": "pets/img/{}.png",
    "dots": "./img/../img/{}.png",
}


@pytest.mark.parametrize("pattern", PATHS.values(), ids=PATHS)
def test_image_names_are_found_as_they_are_meant(pattern: str, tmp_path: Path, pets: Path) -> None:
    home = tmp_path / "pets"
    home.mkdir()
    (pets / "img").rename(home / "img")
    rows = [(pattern.format(i), "ab"[i % 2]) for i in range(8)]
    assert greys(load_target(write(home, ("image", "label"), *rows))) == list(range(8))


def test_absolute_names_and_other_folders_are_taken_as_written(pets: Path) -> None:
    (pets / "labels").mkdir()
    rows = [(f"{pets}/img/{i}.png" if i % 2 else f"../img/{i}.png", "ab"[i % 2]) for i in range(8)]
    assert greys(load_target(write(pets / "labels", ("image", "label"), *rows))) == list(range(8))
    clear_caches()
    rows = [(f"img/{i}.png", "ab"[i % 2]) for i in range(8)]
    assert greys(load_target(write(pets / "labels", ("image", "label"), *rows))) == list(range(8))


@pytest.mark.parametrize(("on_disk", "in_table"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_are_found_in_either_normal_form(
    on_disk: Literal["NFC", "NFD"], in_table: Literal["NFC", "NFD"], pets: Path
) -> None:
    for i in range(4):
        (pets / "img" / f"{i}.png").rename(
            pets / "img" / unicodedata.normalize(on_disk, f"Ä{i}.png")
        )
    rows = [(unicodedata.normalize(in_table, f"img/Ä{i}.png"), "ab"[i % 2]) for i in range(4)]
    assert greys(load_target(write(pets, ("image", "label"), *rows))) == [0, 1, 2, 3]


def test_the_label_tells_between_files_of_one_name(pets: Path) -> None:
    for name in "ab":
        for i in range(3):
            paint(pets / "all" / name / f"x{i}.png", 10 * i + 100 * (name == "b"))
    rows = [(f"x{i}.png", label) for label in "ab" for i in range(3)]
    assert greys(load_target(write(pets, ("image", "label"), *rows))) == [0, 1, 2, 10, 11, 12]
    clear_caches()
    rows = [(f"x{i}.png", "cd"[i % 2]) for i in range(3)]
    with refused(r"3 image names match several files: x0\.png could be all/"):
        load_target(write(pets, ("image", "label"), *rows))


@pytest.mark.parametrize("name", ["cat/3.png", r"C:\cat\3.png", "33.png", "/", "..", "x" * 3000])
def test_absent_images_are_shown_with_where_they_were_looked_for(name: str, pets: Path) -> None:
    target = write(pets, ("image", "label"), *ROWS[:2], (name, "x"))
    with refused(
        r"1 images are missing, the first is .*the names were searched for as written, in "
    ) as e:
        load_target(target)
    assert str(pets) in str(e.value)


# --- parts and groups ------------------------------------------------------------------------------


def test_split_column_says_the_parts_in_any_spelling(pets: Path) -> None:
    parts = ["Train", "training", "", "train", "VALID", "dev", "Test", "testing"]
    rows = [(f"img/{i}.png", "ab"[i % 2], part) for i, part in enumerate(parts)]
    target = load_target(write(pets, ("image", "label", "split"), *rows))
    assert target.official_test is not None
    assert target.official_val is not None
    assert np.flatnonzero(target.official_val).tolist() == [4, 5]
    assert np.flatnonzero(target.official_test).tolist() == [6, 7]


def test_a_validation_part_alone_is_the_test_part(pets: Path) -> None:
    rows = [(f"img/{i}.png", "ab"[i % 2], "val" if i > 5 else "train") for i in range(8)]
    target = load_target(write(pets, ("image", "label", "split"), *rows))
    assert target.official_test is not None
    assert np.flatnonzero(target.official_test).tolist() == [6, 7]
    assert target.official_val is None
    assert any("no test part" in note for note in target.notes)


def test_training_images_alone_leave_the_test_part_to_be_drawn(pets: Path) -> None:
    rows = [(*row, "train") for row in ROWS]
    assert load_target(write(pets, ("image", "label", "split"), *rows)).official_test is None


def test_a_test_part_without_labels_is_passed_over(pets: Path) -> None:
    rows = [
        (f"img/{i}.png", "" if i > 5 else "ab"[i % 2], "test" if i > 5 else "") for i in range(8)
    ]
    target = load_target(write(pets, ("image", "label", "split"), *rows))
    assert len(target.labels) == 6
    assert target.official_test is None
    assert "The 2 test images have no labels and are skipped." in target.notes


def test_a_column_that_may_be_a_split_and_is_none_is_not_used(pets: Path) -> None:
    rows = [(f"img/{i}.png", "ab"[i % 2], f"S{i}") for i in range(8)]
    target = load_target(write(pets, ("image", "label", "set"), *rows))
    assert target.official_test is None
    assert any("'set' does not contain parts" in note for note in target.notes)


@pytest.mark.parametrize("column", ["group", "Group", "patient"])
def test_a_group_column_keeps_images_together(column: str, pets: Path) -> None:
    rows = [(f"img/{i}.png", "ab"[i % 2], f"P{i // 3}") for i in range(6)]
    rows += [("img/6.png", "a", ""), ("img/7.png", "b", "")]
    name = write(pets, ("image", "label", column), *rows)
    target = load_target(name if column != "patient" else f"{name}[group=patient]")
    assert target.groups is not None
    assert target.groups.tolist() == [0, 0, 0, 1, 1, 1, 2, 3]


def test_a_column_that_looks_like_groups_is_named(pets: Path) -> None:
    rows = [(f"img/{i}.png", "ab"[i % 2], f"P{i // 3}", i) for i in range(8)]
    target = load_target(write(pets, ("image", "label", "patient_id", "case"), *rows))
    assert target.groups is None
    (note,) = target.notes
    assert "'patient_id', which is not used, looks like groups" in note
    assert "[group=patient_id]" in note
