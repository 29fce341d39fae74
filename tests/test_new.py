"""From a folder of images to a study file: what is odd is said, what is written runs."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.core.spec import TrialSpec
from harness.core.strategies import LinearProbe
from harness.core.study_file import load_study, slug
from harness.core.units import Seconds
from harness.data import clear_caches, load_target, split_indices
from harness.data.cached import Cache
from harness.dataset_report import proposal
from harness.dataset_report.inspection import inspect_target
from harness.dataset_report.new_study import fitting
from harness.dataset_report.text import findings
from harness.new import main, propose_study
from harness.search.costs import CellCost
from harness.search.space import first_draw
from harness.similarity.sources import screening
from harness.similarity.sources.screening import Screening
from harness.training.device import resolve_device
from harness.training.forecast import Forecast
from tests.refusals import refused
from tests.sounds import write_tones

CONFIG = Path(__file__).parents[1] / "pyproject.toml"


def noise(path: Path, seed: int, size: tuple[int, int] = (20, 16)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path, path.suffix[1:])


@pytest.fixture
def pets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with 24 cats, 8 dogs and 3 emus, all different noise."""
    monkeypatch.chdir(tmp_path)
    for kind, (name, count) in enumerate((("cat", 24), ("dog", 8), ("emu", 3))):
        for i in range(count):
            noise(tmp_path / "pets" / name / f"{i}.png", 100 * kind + i, (20 + i, 16))
    yield tmp_path / "pets"
    clear_caches()  # by name, and the next working directory has its own folder:pets


def assert_ruff_is_content(file: Path) -> None:
    options = ("--config", str(CONFIG), "--config", f"src = ['{CONFIG.parent}']")
    for checked in (("format", "--check"), ("check",)):
        ruff = [sys.executable, "-m", "ruff", *checked, *options, str(file)]
        done = subprocess.run(ruff, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


@pytest.mark.usefixtures("one_cell_proposed")
def test_written_study_is_formatted_and_splits_and_says_its_costs(
    pets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--target", "folder:pets", "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    file = Path("studies/pets.py")
    text = file.read_text()
    assert_ruff_is_content(file)
    assert 'TARGET = "folder:pets[classes=cat+dog]"' in text
    assert "Classes left out because they have fewer than 5 images: emu" in shown
    assert "8 times as many" in shown
    assert "Image sizes differ: 20 to 43 pixels wide" in shown
    assert "tf_efficientnet_lite0 | linear probe: " in text
    assert "1 cell x (6 trials x 5 folds + 10 repeats) = 40 runs" in text
    assert f"harness.study --space {file}" in shown
    with Image.open("report/pets/classes.png") as sheet:
        assert sheet.height == 3 * 102 + 6
    page = Path("report/pets/classes.html").read_text()
    assert "data:image/png;base64," in page
    assert '>emu</td><td style="text-align: right">3</td>' in page
    assert main(["--target", "folder:pets", "--device", "cpu"]) == 2
    assert "exists and is not overwritten" in capsys.readouterr().err
    assert file.read_text() == text


def test_what_is_odd_in_a_folder_is_said(pets: Path) -> None:
    shutil.copy(pets / "cat" / "0.png", pets / "dog" / "copy.png")
    shutil.move(pets / "cat" / "1.png", pets / "cat" / "1.jpg")
    (pets / "notes.txt").write_text("bought in 2019")
    with Image.open(pets / "dog" / "2.png") as image:
        image.point(lambda v: v // 2 + 60).save(pets / "dog" / "brighter.png")
    Image.new("L", (20, 16), 80).save(pets / "emu" / "grey.png")
    said = "\n".join(findings(inspect_target("folder:pets")))
    assert "Identical files: 1 (cat/0.png = dog/copy.png)" in said
    assert (
        "Duplicates in different classes, one of which may have a wrong label: 1 (cat/0.png = dog/copy.png)"
        in said
    )
    assert (
        "(~; correlation of small grey copies at least 0.99): 1 (dog/2.png ~ dog/brighter.png)"
        in said
    )
    assert "1 (cat/1.jpg is PNG)" in said
    assert "not readable as images: 1 .txt (notes.txt)" in said
    assert "Modes: 37 RGB, 1 L" in said
    assert "uniformly black, white or grey: 1 (emu/grey.png)" in said
    assert "Classes with fewer than 5 images: emu." in said
    assert "cannot be read" not in said
    assert "LEAKAGE" not in said


def test_leak_between_given_parts_is_said(pets: Path) -> None:
    shutil.copy(pets / "cat" / "0.png", pets / "cat" / "test.png")
    rows = [f"cat/{i}.png,cat,train" for i in range(8)] + ["cat/test.png,cat,test"]
    rows += [f"dog/{i}.png,dog,train" for i in range(7)] + ["dog/7.png,dog,test"]
    (pets / "table.csv").write_text("\n".join(["image,label,split", *rows]))
    report = inspect_target("csv:pets/table.csv")
    assert [leak.parts for leak in report.leaks] == [("train", "test")]
    assert "near duplicates in different official parts: 1 (0.png = test.png)" in "\n".join(
        findings(report)
    ).replace("cat/", "")


def test_broken_images_are_named_and_no_study_is_written(
    pets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (pets / "dog" / "3.png").read_bytes()
    (pets / "dog" / "3.png").write_bytes(whole[: len(whole) // 2])
    (pets / "cat" / "4.png").write_text("no picture")
    assert main(["--target", "folder:pets", "--device", "cpu"]) == 2
    shown = capsys.readouterr()
    assert "Images that cannot be read: 2 (cat/4.png; dog/3.png)" in shown.out
    assert shown.err.startswith("error: 2 images cannot be read, first pets/cat/4.png")
    assert not Path("studies").exists()
    assert "pets/dog/3.png" in Path("report/pets/classes.html").read_text()


@pytest.mark.usefixtures("pets")
def test_too_few_images_are_refused_with_what_would_be_enough() -> None:
    for i in range(2):
        noise(Path("few", "cat", f"{i}.png"), i)
        noise(Path("few", "dog", f"{i}.png"), 10 + i)
    with refused(r"cat has 2, dog has 2\); at least 2 classes need 5 images"):
        propose_study("folder:few", out="few.py", device="cpu")
    assert not Path("few.py").exists()


def proposed_split(*sizes: int) -> tuple[proposal.Proposal, dict[str, list[int]]]:
    """What is proposed for two classes of these sizes, and the images of each class and part."""
    labels = np.repeat(np.arange(2), sizes)
    two = replace(load_target("digits[classes=0+1]"), labels=labels)
    report = replace(inspect_target("digits"), target=two, counts=np.bincount(labels))
    p = proposal.propose(report, "x", accelerator=False)
    spec = TrialSpec("x", "x", LinearProbe(), shots=p.shots, val_shots=p.val_shots)
    split = split_indices(two, replace(spec, test_shots=p.test_shots))
    parts = {"train": split.train, "val": split.val, "test": split.test}
    return p, {part: np.bincount(labels[at]).tolist() for part, at in parts.items()}


@pytest.mark.parametrize("size", [5, 6, 9, 31, 400])
def test_proposed_sizes_can_be_drawn_from_the_smallest_class(size: int) -> None:
    p, parts = proposed_split(size, size + size // 8)
    assert sum(parts["train"]) == 2 * p.shots
    assert p.shots >= max(3, min(100, size // 2))


@pytest.mark.parametrize("sizes", [(5, 9), (20, 200), (31, 1000)])
def test_proposed_sizes_take_all_of_the_smaller_class(sizes: tuple[int, int]) -> None:
    _, parts = proposed_split(*sizes)
    assert sum(counts[0] for counts in parts.values()) == sizes[0]
    assert parts["test"] == [round(size / 4) for size in sizes]


def test_study_is_named_after_the_folder() -> None:
    assert slug("folder:/data/My Pets (2019)/[classes=a+b]") == "my_pets_2019"
    assert slug("digits") == "digits"


@pytest.mark.parametrize(("target", "folds"), [("digits[part=1/9]", 5), ("digits[part=1/2]", 1)])
def test_few_images_are_divided_into_folds(target: str, folds: int, tmp_path: Path) -> None:
    p = proposal.propose(inspect_target(target), target, accelerator=False)
    path = tmp_path / "few.py"
    path.write_text(proposal.source(p, path, [], []))
    study = load_study(path)
    assert study.fold_count == folds
    assert any("5 folds" in note for note in p.notes) == (folds > 1)
    spec = first_draw(study, study.cells()[0])
    split = split_indices(load_target(target), spec)
    assert len(split.val) == pytest.approx(len(split.train) / 4, rel=0.25)
    assert study.repeats % folds == 0
    assert ("quick first look: --trials 2 --repeats 5." in path.read_text()) == (folds > 1)


# --- other media -----------------------------------------------------------------------------------


def text_encoder(folder: Path) -> str:
    from tests.encoders import save_encoder
    from tests.texts import word_tokenizer

    name = save_encoder(folder)
    (folder / "tokenizer.json").write_text(word_tokenizer().text)
    return name


@pytest.mark.usefixtures("one_cell_proposed")
@pytest.mark.parametrize("kind", ["sounds", "texts"])
def test_a_study_is_proposed_for_a_folder_of(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    if kind == "sounds":
        pytest.importorskip("soundfile")
        target, augment = f"folder:{write_tones(tmp_path / 'mine')}", "time_shift"
    else:
        pytest.importorskip("transformers")
        from tests.texts import write_texts

        encoder = text_encoder(tmp_path / "encoder")
        monkeypatch.setattr(proposal, "FOR_TEXTS", (encoder,))
        target, augment = f"folder:{write_texts(tmp_path / 'mine')}", "token_dropout"
    study = propose_study(target, device="cpu")
    text = Path("studies/mine.py").read_text()
    assert f'"""Which backbone and which strategy suit these {kind}?' in text
    assert f'# augment="{augment}"' in text
    assert f"training {kind} per class" in text
    assert "flip_crop" not in text
    assert study.cells()
    assert Path("report/mine/classes.png").is_file()
    assert f"2 classes, 24 {kind}" in capsys.readouterr().out
    if kind == "texts":
        assert 'source="pretrained"' in text
        assert "resolution" not in text
        monkeypatch.setattr(proposal, "BY_SHOTS", ((10**9, ("linear probe", "last block")),))
        propose_study(target, device="cpu", budget="5m", out="studies/race.py")
        only = f"Nothing was screened: {encoder} is the only backbone for texts whose weights are"
        assert only in " ".join(Path("studies/race.py").read_text().split())


# --- with a time budget ----------------------------------------------------------------------------

Read = Callable[[TrialSpec, tuple[str, tuple[int, ...]], object, object], np.ndarray]


def features_of(accuracies: dict[str, float]) -> Read:
    """Features in which so many labels are plain to see, in one axis per class. For 1 a class is at both ends
    of its axis, which neighbours can tell and a linear probe cannot; for 0 all are equal."""

    def read(spec: TrialSpec, data: tuple[str, tuple[int, ...]], *_: object) -> np.ndarray:
        accuracy, random = accuracies[spec.backbone], np.random.default_rng(0)
        labels = load_target(data[0]).labels[list(data[1])]
        if accuracy == 0:
            return np.zeros((len(labels), 10))
        wrong = random.random(len(labels)) > accuracy
        seen = np.where(wrong, (labels + 5) % 10, labels)
        spread: np.ndarray = random.normal(0, 0.01, (len(labels), 10))
        ends = random.choice((-1, 1), (len(labels), 1)) if accuracy == 1 else 1
        features: np.ndarray = ends * np.eye(10)[seen] + spread
        return features

    return read


def screen_digits(
    monkeypatch: pytest.MonkeyPatch, accuracies: dict[str, float], shots: int = 20
) -> Screening:
    monkeypatch.setattr(screening, "features", features_of(accuracies))
    specs = [TrialSpec("digits", name, LinearProbe(), shots=shots) for name in accuracies]
    return screening.screen(specs, resolve_device("cpu"), Cache())


@pytest.mark.slow
def test_screening_keeps_the_first_by_linear_probe_and_the_first_by_neighbours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    accuracies = {"poor": 0.6, "good": 0.8, "ends": 1, "close": 0.77, "best": 0.9}
    done = screen_digits(monkeypatch, accuracies)
    assert done.kept == ("best", "good", "ends")
    assert [c.name for c in done.found][:3] == ["best", "good", "close"]
    assert done.found[0].measures["probe_accuracy"].value == pytest.approx(0.9, abs=0.06)
    screened, dropped, missed = done.describe()
    assert "200 training images" in screened
    assert "ends" in screened
    assert dropped.startswith("Dropped: close, poor. By the linear probe not among the first 2 of")
    assert "the intervals of close overlap with that of good" in dropped
    assert "2 of 11 targets" in missed


def test_nothing_is_dropped_where_a_measure_has_no_value(monkeypatch: pytest.MonkeyPatch) -> None:
    done = screen_digits(monkeypatch, {"a": 0.9, "constant": 0, "b": 0.2, "c": 0.3}, shots=5)
    assert done.kept == ("a", "constant", "b", "c")
    assert len(done.describe()) == 1
    assert "could not be screened, so all are kept" in done.describe()[0]


def test_sounds_are_screened_like_images(tmp_path: Path) -> None:
    pytest.importorskip("soundfile")
    target = f"folder:{write_tones(tmp_path / 'tones')}"
    names = ("mobilenetv2_100", "tf_efficientnet_lite0")
    specs = [TrialSpec(target, name, LinearProbe(), resolution=32) for name in names]
    done = screening.screen(specs, resolve_device("cpu"), Cache())
    assert set(done.kept) == set(names)
    assert "training sounds" in done.describe()[0]
    assert done.describe()[-1] == "None was dropped."


@pytest.mark.slow
def test_a_budget_leads_to_a_race_of_the_backbones_that_screening_keeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    accuracies = {"mobilenetv2_100": 0.5, "tf_efficientnet_lite0": 0.9}
    monkeypatch.setattr(proposal, "AT_HAND", tuple(accuracies))
    monkeypatch.setattr(proposal, "BY_SHOTS", ((10**9, ("norms", "linear probe")),))
    monkeypatch.setattr(screening, "LEAST", 1)
    monkeypatch.setattr(screening, "features", features_of(accuracies))
    command = ["--target", "digits[part=1/9]", "--device", "cpu"]
    assert main([*command, "--budget", "0.01s"]) == 2
    assert "a budget of 0.01s is too small" in capsys.readouterr().err
    assert main([*command, "--budget", "90m"]) == 0
    shown, file = capsys.readouterr().out, Path("studies/digits.py")
    text, study = file.read_text(), load_study(file)
    assert (study.seconds, study.resampling) == (5400.0, "split")
    assert study.compare["backbone"] == {"tf_efficientnet_lite0": "tf_efficientnet_lite0"}
    assert '    # "mobilenetv2_100": "mobilenetv2_100",' in text
    assert "repeats=" not in text
    assert "- Dropped: mobilenetv2_100." in shown
    assert "a race of 2 cells in 90m" in text
    assert_ruff_is_content(file)


def test_only_as_many_backbones_race_as_the_budget_has_time_for() -> None:
    report = inspect_target("digits[part=1/2]")
    made = replace(
        proposal.propose(report, "digits[part=1/2]", accelerator=False),
        backbones=("a", "b", "c"),
        strategies=("linear probe", "full"),
    )
    costs = [CellCost("", Forecast(0, 0, 0, 0, 0, 0), seconds) for seconds in (1, 4, 2, 5, 1, 2)]
    kept, left = fitting(made, costs, Seconds("45s"))  # 2 trials of all cells would need 30 / .6 s
    assert kept.backbones == ("a", "b")
    assert len(left) == 4
    assert kept.notes[-1].endswith("too short for the first trials of their cells: c.")
    assert fitting(made, costs, Seconds("1h")) == (made, costs)
    assert fitting(made, costs, Seconds("1s"))[0].backbones == ("a",)


@pytest.mark.usefixtures("one_cell_proposed")
def test_encoders_of_sounds_are_suggested_as_comments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("soundfile")
    monkeypatch.chdir(tmp_path)
    write_tones(tmp_path / "tones")
    assert main(["--target", "folder:tones", "--device", "cpu"]) == 0
    text = Path("studies/tones.py").read_text()
    suggested = '# "whisper-tiny": "transformers:openai/whisper-tiny",  # weights from the hub'
    assert suggested in text
    assert_ruff_is_content(Path("studies/tones.py"))
