"""Images that a split would hold twice are found, named and warned of."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from PIL import Image

from harness import study
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
from tests.study_files import study_text
from tests.trials import MakeSpec

pytestmark = pytest.mark.usefixtures("forget_targets")


def picture(seed: int, size: int = 64) -> Image.Image:
    """A smooth coloured picture that looks like no other."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)


def table(folder: Path, *rows: str) -> None:
    (folder / "table.csv").write_text("\n".join(rows) + "\n")


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
    sizes: dict[str, Any] = {"shots": None, "val_shots": 1, "test_shots": None}
    text = study_text(repeats=0, target=f"csv:{album}/table.csv", **sizes)
    (tmp_path / "album.py").write_text(text)
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
