"""What is known of an exported model: calibration, 8 bits, cost in use, and the card that says so."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import save_file
from statsmodels.stats.proportion import proportion_confint

from harness.backbones import build
from harness.data import load_target, read_examples, split_indices
from harness.deploy import int8
from harness.deploy.card import loading
from harness.deploy.model import describe, open_model
from harness.deploy.temperature import LOWEST, fit_temperature
from harness.export import main
from harness.inputs import Pixels
from harness.predict import predict_images
from tests.refusals import refused
from tests.test_export import SPEC, record

BRIEF = dataclasses.replace(SPEC, epochs=4)


def export(folder: Path, *options: str) -> tuple[int, str, str]:
    """Exit code and what was printed, for the study in that folder."""
    said, complained = io.StringIO(), io.StringIO()
    arguments = ["--study", "toy", "--tracking-uri", f"sqlite:///{folder}/mlflow.db"]
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(complained):
        code = main([*arguments, "--device", "cpu", *options])
    return code, said.getvalue(), complained.getvalue()


@pytest.fixture(scope="module")
def recorded(mlflow_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a store with a study of two cells."""
    folder = tmp_path_factory.mktemp("use")
    shutil.copy(mlflow_template, folder / "mlflow.db")
    uri = f"sqlite:///{folder}/mlflow.db"
    for index, accuracy in enumerate((0.7, 0.9)):
        scores = {"val_accuracy": accuracy, "test_accuracy": accuracy - 0.1, "train_seconds": 1.0}
        record(uri, "head | body", BRIEF, scores, index)
    record(uri, "other", BRIEF, {"val_accuracy": 0.5, "test_accuracy": 0.4})
    return folder


@pytest.fixture(scope="module")
def exported(recorded: Path) -> tuple[Path, str]:
    """Folder of a model in every format, and what the command said."""
    code, said, _ = export(
        recorded, "--out", str(recorded / "model"), "--int8", "--max-loss", "100"
    )
    assert code == 0
    return recorded / "model", said


def images_and_labels(folder: Path, part: str) -> tuple[np.ndarray, torch.Tensor]:
    """Images of a part, normalised as model.json says, and their labels."""
    see = json.loads((folder / "model.json").read_text())["preprocessing"]
    split = split_indices(load_target("digits"), BRIEF)
    at = tuple(getattr(split, part).tolist())
    found = read_examples("digits", at, Pixels(see["resolution"], see["interpolation"]))
    mean, std = (np.array(see[k], np.float32).reshape(1, 3, 1, 1) * 255 for k in ("mean", "std"))
    return (found.tensor.numpy().astype(np.float32) - mean) / std, found.labels


@pytest.mark.slow
def test_files_in_8_bits_and_in_float_are_what_is_said_of_them(
    exported: tuple[Path, str],
) -> None:
    folder, said = exported
    about = json.loads((folder / "model.json").read_text())
    images, labels = images_and_labels(folder, "val")
    right = {}
    for kind, name in (("float32", "model.onnx"), ("int8", "model.int8.onnx")):
        network = onnxruntime.InferenceSession(str(folder / name))
        (logits,) = network.run(None, {"images": images})
        right[kind] = float((logits.argmax(1) == labels.numpy()).mean())
    assert about["int8"] == {"calibration_images": 100, "val_accuracy": right}
    assert right["int8"] > 0.3, "chance is 0.1"
    assert f"validation accuracy {right['int8']:.1%}, in float32 {right['float32']:.1%}" in said
    weights = onnx.load(folder / "model.int8.onnx").graph.initializer
    bytes_of_8_bits = sum(
        math.prod(w.dims) for w in weights if w.data_type == onnx.TensorProto.INT8
    )
    plain = onnx.load(folder / "model.onnx").graph.initializer
    assert bytes_of_8_bits > 0.9 * sum(math.prod(w.dims) for w in plain)
    assert about["use"]["threads"] == torch.get_num_threads()
    for name, cost in about["use"]["files"].items():
        assert cost["mib"] == (folder / name).stat().st_size / 2**20
        assert cost["latency_ms"] > 0
        assert cost["images_per_second"] > 0
        assert f"{name} (" in said
    assert list(about["use"]["files"]) == ["model.safetensors", "model.onnx", "model.int8.onnx"]


def test_probabilities_are_calibrated_and_the_predicted_classes_are_the_networks(
    exported: tuple[Path, str],
) -> None:
    model = open_model(exported[0])
    images, labels = images_and_labels(exported[0], "val")
    with torch.inference_mode():
        logits = model.network(torch.from_numpy(images)).double()
    grid = np.exp(np.linspace(-2, 2, 4001))
    losses = [float(torch.nn.functional.cross_entropy(logits / t, labels)) for t in grid]
    assert model.temperature == pytest.approx(grid[int(np.argmin(losses))], rel=2e-3)
    pixels = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    with torch.inference_mode():
        plain = model.network(model.prepare(pixels))
    found = model.probabilities(pixels)
    torch.testing.assert_close(found, (plain / model.temperature).softmax(1))
    assert found.argmax(1).tolist() == plain.argmax(1).tolist()


def test_temperature_by_hand() -> None:
    """One of four is wrong and every margin is 2: the probability of the predicted class should be 3/4, so
    2 / T = ln 3."""
    logits = np.array([[2.0, 0.0]] * 4)
    assert fit_temperature(logits, np.array([0, 0, 0, 1])) == pytest.approx(2 / math.log(3))


def test_temperature_has_no_estimate_without_mistakes_or_without_skill() -> None:
    logits = np.array([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    assert fit_temperature(logits, np.array([0, 1, 0])) is None
    assert fit_temperature(logits, np.array([1, 0, 1])) is None
    # At temperatures below 0.3 its log loss is 0 to the last bit, so that all look equally good.
    certain = np.array([[11.0, 0.0], [0.0, 13.0]] * 2)
    assert fit_temperature(certain, np.array([0, 1] * 2)) is None
    steep = np.array([[0.5 * LOWEST, 0.0]] * 4)  # its optimum is below the lowest
    assert fit_temperature(steep, np.array([0, 0, 0, 1])) is None


def test_card_is_one_of_the_hub_and_says_what_was_measured(exported: tuple[Path, str]) -> None:
    about = json.loads((exported[0] / "model.json").read_text())
    card = ModelCard.load(exported[0] / "README.md")
    assert card.data.library_name == "timm"
    assert card.data.pipeline_tag == "image-classification"
    (result,) = card.data.eval_results or []
    assert (result.metric_type, result.metric_value) == (
        "accuracy",
        about["exported"]["test_accuracy"],
    )
    tested = 60
    hits = round(about["exported"]["test_accuracy"] * tested)
    low, high = proportion_confint(hits, tested, method="wilson")
    text = " ".join(card.text.split())
    for said in (
        "| head \\| body | 2 | 80.0 | 70.0 | 60.0 to 80.0 | 1.0 |",
        "| other | 1 | 50.0 | 40.0 | 40.0 to 40.0 | |",
        "| train | 200 | 20 | | val | 50 | 5 | | test | 60 | 6 |",
        f"{low:.1%} to {high:.1%}",
        "rests on 2 repeats of this cell",
        f"expected calibration error is {about['calibration']['test_ece']['before']:.3f} without it",
        "| lr | 0.01 |",
        "| model.int8.onnx | onnxruntime, 8 bits |",
    ):
        assert said in text, text


def test_the_three_lines_of_the_card_load_the_network(
    exported: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(exported[0])
    (lines,) = (Path("README.md").read_text().split("```python\n")[1:][0].split("```")[:1],)
    assert len(lines[0].splitlines()) == 3
    assert_same_network(lines[0], open_model(exported[0]).network)


def assert_same_network(lines: str, network: torch.nn.Module) -> None:
    defined: dict[str, Any] = {}
    exec(lines, defined)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(defined["model"](images), network.eval()(images))


@pytest.mark.parametrize("name", ["torchvision:squeezenet1_1", "torchvision:googlenet"])
def test_networks_of_torchvision_load_by_three_lines_too(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    backbone = build(name, "scratch", 7, 0, torch.device("cpu"), 32)
    state = {key: value.contiguous() for key, value in backbone.model.state_dict().items()}
    save_file(state, "model.safetensors")
    lines = loading(describe(backbone, name, tuple("abcdefg")))
    assert len(lines.splitlines()) == 3
    assert_same_network(lines, backbone.model)


@pytest.mark.slow
def test_a_network_that_cannot_be_quantised_is_exported_without(
    recorded: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: object) -> None:
        raise NotImplementedError("no such operator\nand more")

    monkeypatch.setattr(int8, "_quantise", refuse)
    folder = tmp_path / "model"
    code, said, complained = export(recorded, "--out", str(folder), "--int8")
    assert code == 2
    assert complained == (
        "error: the network cannot be quantised, so there is no model.int8.onnx: no such operator\n"
    )
    assert f"wrote {folder}" in said
    written = {"README.md", "model.json", "model.onnx", "model.safetensors"}
    assert {path.name for path in folder.iterdir()} == written
    assert len(open_model(folder).classes) == 10


def test_8_bits_that_lose_more_than_is_allowed_are_not_kept(
    exported: tuple[Path, str], tmp_path: Path
) -> None:
    model = open_model(exported[0])
    shutil.copy(exported[0] / "model.onnx", tmp_path)
    split = split_indices(load_target("digits"), BRIEF)
    train, val = (
        read_examples("digits", tuple(p.tolist()), Pixels(32, "bicubic"))
        for p in (split.train, split.val)
    )
    arguments = (model, tmp_path, train.tensor[:5], val)
    with refused(r"loses .* \(101.0% to .*more than --max-loss 1, so there"):
        int8.write_int8(*arguments, before=1.01, max_loss=1)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_bad_options_are_refused_before_anything_is_read(recorded: Path, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    for options, said in (
        (["--int8", "--max-loss", "-1"], "--max-loss must be from 0 to 100"),
        (["--out", str(tmp_path)], "already contains a README.md"),
    ):
        code, printed, complained = export(recorded, *options)
        assert (code, printed) == (2, "")
        assert said in complained
    assert (tmp_path / "README.md").read_text() == "mine"


def test_predictions_are_sorted_by_calibrated_probability(exported: tuple[Path, str]) -> None:
    from PIL import Image

    path = exported[0].parent / "one.png"
    Image.fromarray(np.full((32, 32, 3), 120, np.uint8)).save(path)
    (found,) = predict_images(exported[0], [path], top=10)
    model = open_model(exported[0])
    wanted = model.probabilities(model.read(path)[None])[0]
    assert found.probabilities == pytest.approx(sorted(wanted.tolist(), reverse=True))
