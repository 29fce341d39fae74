"""Groups from the names of files, and names that suggest groups which nobody has named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.data import describe_leaks, load_target
from harness.data.groups import suggested_pattern
from harness.data.target import ArrayTarget
from harness.dataset_report import proposal
from harness.dataset_report.inspection import inspect_target
from harness.dataset_report.text import findings
from harness.similarity.sources.spec import SourceSpec
from tests.refusals import refused
from tests.trials import MakeSpec

pytestmark = pytest.mark.usefixtures("forget_targets")


def write(root: Path, *names: str, alike: bool = False) -> Path:
    """Noise under these names; `alike`: files of one patient are nearly the same picture."""
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        seed = int(name.partition("patient")[2][:2]) if alike else number
        pixels = np.random.default_rng(seed).integers(0, 200, (16, 16, 3), np.uint8)
        Image.fromarray(pixels + (number % 5 if alike else 0)).save(path, "PNG")
    return root


def clinic(patients: int = 12, frames: int = 4) -> list[str]:
    """Half of the patients ill, half well."""
    return [
        f"{('ill', 'well')[p % 2]}/patient{p:02d}_frame{f}.png"
        for p in range(patients)
        for f in range(frames)
    ]


def together(target: str) -> list[set[str]]:
    """File names by group, without the folders."""
    found = load_target(target)
    assert found.groups is not None
    files = [path.name for path in found.files()]
    return [
        {f for f, g in zip(files, found.groups.tolist(), strict=True) if g == group}
        for group in sorted(set(found.groups.tolist()))
    ]


@pytest.mark.parametrize("pattern", [r"patient\d+", r"^(patient\d+)_", r"(\d+)_frame", "^[^_]+"])
def test_groups_are_what_the_expression_finds_in_file_names(pattern: str, tmp_path: Path) -> None:
    root = write(tmp_path / "clinic", *clinic())
    truth = [{f"patient{p:02d}_frame{f}.png" for f in range(4)} for p in range(12)]
    found = together(f"folder:{root}[group={pattern}]")
    assert sorted(found, key=min) == truth


@pytest.mark.parametrize("pattern", ["[a-z]+[0-9]+/", r"/(\w+\d)/", ".*/"])
def test_groups_can_be_subfolders(pattern: str, tmp_path: Path) -> None:
    names = [f"{c}/{c}{a}/{i}.png" for c in ("cat", "dog") for a in range(4) for i in range(3)]
    root = write(tmp_path / "animals", *names)
    found = load_target(f"folder:{root}[group={pattern}]")
    assert found.groups is not None
    assert found.groups.tolist() == np.repeat(np.arange(8), 3).tolist()
    assert found.classes == ("cat", "dog")


def test_a_patient_of_both_classes_is_one_group(tmp_path: Path) -> None:
    names = [f"{c}/p{p}_{i}.png" for c in ("left", "right") for p in range(6) for i in range(2)]
    found = load_target(f"folder:{write(tmp_path / 'eyes', *names)}[group=^p\\d+]")
    assert found.groups is not None
    assert len(set(found.groups.tolist())) == 6


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (r"patient(\d+", "not a regular expression: missing"),
        (r"subject\d+", "does not match 48 of 48 names, the first is ill/patient00_frame0.png"),
        (r"patient0\d", "does not match 8 of 48 names, the first is ill/patient10_frame0.png"),
        ("patient", "puts all examples into one group"),
    ],
)
def test_expression_that_tells_no_groups_is_refused(
    pattern: str, message: str, tmp_path: Path
) -> None:
    root = write(tmp_path / "clinic", *clinic())
    with refused(f"group=.*{message}"):
        load_target(f"folder:{root}[group={pattern}]")


@pytest.mark.parametrize(
    ("names", "pattern"),
    [
        ([f"patient{p:02d}_frame{f}.png" for p in range(9) for f in range(5)], r"^\D*\d+"),
        ([f"{p}-{f}.jpg" for p in range(100, 110) for f in range(3)], r"^\D*\d+"),
        ([f"site1_patient{p}_{f}.png" for p in range(8) for f in range(4)], r"^\D*\d+\D+\d+"),
        ([f"animal{a}/{i}.png" for a in range(5) for i in range(4)], ".*/"),
        ([f"{i}.png" for i in range(40)], ""),
        ([f"IMG_{i:04d}.jpg" for i in range(40)], ""),
        ([f"cat ({i}).jpg" for i in range(40)], ""),
        ([f"{i:05d}_cat.jpg" for i in range(40)], ""),
        ([f"2019_{i}.jpg" for i in range(40)], ""),
        ([f"{i}_{7 * i}.jpg" for i in range(40)], ""),
        ([], ""),
    ],
)
def test_numbered_names_suggest_groups_where_several_images_share_a_number(
    names: list[str], pattern: str
) -> None:
    assert suggested_pattern(names) == pattern


def test_groups_that_nobody_named_are_suggested_with_what_to_write(tmp_path: Path) -> None:
    root = write(tmp_path / "clinic", *clinic())
    said = "\n".join(findings(inspect_target(f"folder:{root}")))
    written = f"folder:{root}[group=^\\D*\\d+]"
    assert written in said
    found = load_target(written)
    assert found.groups is not None
    assert len(set(found.groups.tolist())) == 12
    named = "\n".join(findings(inspect_target(written)))
    assert "12 groups of 4 images" in named
    assert "suggest" not in named


@pytest.mark.parametrize("parts", ["train", "val", "test"])
def test_subfolders_are_suggested_below_given_parts_too(parts: str, tmp_path: Path) -> None:
    names = [
        f"{part}/{c}/{c}{part}{a}/{i}.png"
        for part in ("train", "val", "test")
        for c in ("cat", "dog")
        for a in range(4)
        for i in range(3)
    ]
    root = write(tmp_path / "animals", *names)
    assert f"folder:{root}[group=.*/]" in "\n".join(findings(inspect_target(f"folder:{root}")))


def test_frames_that_look_alike_suggest_groups(tmp_path: Path) -> None:
    names = [name.replace("_frame", "-") for name in clinic()]
    root = write(tmp_path / "clinic", *names, alike=True)
    said = "\n".join(findings(inspect_target(f"folder:{root}")))
    assert "48 images are near duplicates of another one of their class" in said
    named = "\n".join(findings(inspect_target(f"folder:{root}[group=patient\\d+]")))
    assert "near duplicates" not in named


def test_groups_in_two_given_parts_are_warned_of(tmp_path: Path) -> None:
    rows = [f"train/{name}" for name in clinic(12, 3)] + [
        f"test/{c}/patient{p}_frame9.png" for c, p in (("ill", "00"), ("ill", "70"), ("well", "71"))
    ]
    name = f"folder:{write(tmp_path / 'clinic', *rows)}[group=patient\\d+]"
    assert "1 group with images in more than one" in describe_leaks([], load_target(name))
    assert "LEAKAGE: 1 group with images" in "\n".join(findings(inspect_target(name)))
    assert describe_leaks([], load_target(name.partition("[")[0])) == ""


# --- what is proposed ------------------------------------------------------------------------------


@pytest.mark.usefixtures("one_cell_proposed")
def test_many_classes_are_left_out_by_position_and_the_study_can_be_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    labels = np.repeat(np.arange(400), np.where(np.arange(400) % 9 == 4, 2, 6))
    classes = tuple(f"a rather long name of species {i}" for i in range(400))
    report = inspect_target("digits")
    pixels = np.zeros((len(labels), 2, 2), np.uint8)
    made = ArrayTarget("species", classes, labels, None, pixels)
    from harness.data import targets

    monkeypatch.setitem(targets.LOADERS, "species", lambda: made)
    report = replace(report, target=made, counts=np.bincount(labels))
    p = proposal.propose(report, "species", accelerator=False)
    assert len(p.target) < 1000
    chosen = load_target(p.target)
    assert len(chosen.classes) == 356
    assert chosen.classes == tuple(c for i, c in enumerate(classes) if i % 9 != 4)


def test_target_that_the_tracking_store_would_cut_is_refused(
    make_spec: MakeSpec,
) -> None:
    name = "digits[classes=" + "+".join(["0", "1"] * 3000) + "]"
    with refused(r"target has 12\d{3} characters.*6000.*0-99"):
        make_spec(target=name)
    assert make_spec(target="digits" + "x" * 5994).target
    with refused("source has 6001 characters"):
        make_spec(source="s" * 6001)
    with refused(r"SourceSpec a: data has 6003 characters.*0-99"):
        SourceSpec("a", data="cat" * 2001)
