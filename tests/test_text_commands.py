"""Trials on texts from a folder to an exported model."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("tokenizers")
pytest.importorskip("transformers")

from harness import predict, rank
from harness.core.results import EpochResult, TrialResult
from harness.core.strategies import FullFineTune
from harness.data import load_target
from harness.deploy.card import loading
from harness.deploy.model import Model, open_model
from harness.deploy.onnx import logits_of, session, write_onnx
from harness.inputs import Tokens
from harness.predict import predict_images
from harness.search.preflight import check_study
from harness.training.fit import Fit
from tests.encoders import save_encoder
from tests.refusals import refused
from tests.texts import word_tokenizer, write_texts
from tests.trials import MakeSpec, export, run, study_of

Trained = tuple[Fit, list[EpochResult], TrialResult]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_texts(tmp_path_factory.mktemp("texts") / "words")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("encoder")
    name = save_encoder(folder)
    (folder / "tokenizer.json").write_text(word_tokenizer().text)
    return name


@pytest.fixture(scope="module")
def trained(make_spec: MakeSpec, texts: Path, encoder: str) -> Trained:
    """An encoder that was trained on all parameters, with views of augmented texts."""
    spec = make_spec(
        target=f"folder:{texts}[tokens=16]",
        backbone=encoder,
        source="pretrained",
        strategy=FullFineTune(),
        resolution=None,
        shots=None,
        val_shots=3,
        test_shots=3,
        augment="token_dropout",
        shifts="typos+word_dropout",
        epochs=16,
        lr=1e-2,
        batch_size=4,
    )
    return run(spec)


def test_backbones_are_ranked_under_their_whole_names(
    texts: Path, encoder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sources = [encoder, f"{encoder}[pool=cls]"]
    uri, cache = f"sqlite:///{tmp_path}/none.db", str(tmp_path / "cache")
    options = ["--images", "16", "--tracking-uri", uri, "--cache-dir", cache]
    target = f"folder:{texts}[tokens=16]"
    assert rank.main(["--target", target, "--sources", ",".join(sources), *options]) == 0
    head = re.search(r"measure +better .*\n(?:.*\n)?", capsys.readouterr().out)
    assert head is not None
    assert "[pool=cls]" in head[0]


def test_class_names_are_printed_as_they_are_written(
    trained: Trained, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit, classes = trained[0], ("[/x] :cat:", "[bold]")
    export(fit.backbone, fit.spec.backbone, classes, tmp_path / "model")
    assert predict.main([str(tmp_path / "model"), str(texts), "--top=2"]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert all(name in first for name in classes)


def test_two_kinds_of_texts_are_told_apart(trained: Trained) -> None:
    metrics = trained[2].metrics
    assert metrics["test_accuracy"] == 1
    assert metrics["test_accuracy.word_dropout"] >= 5 / 6
    assert "test_accuracy.typos" in metrics


def test_mistakes_are_kept_as_pictures_of_their_texts(trained: Trained) -> None:
    predictions = run(replace(trained[0].spec, epochs=1, lr=1e-6))[2].predictions
    assert predictions is not None
    wrong = predictions.predicted != predictions.label
    assert wrong.any()
    assert predictions.image is not None
    kept = [Image.open(io.BytesIO(content)) for content in predictions.image[wrong]]
    assert {image.size for image in kept} == {(96, 96)}
    assert all(np.asarray(image).min() < 100 for image in kept)


@pytest.fixture
def exported(trained: Trained, tmp_path: Path) -> Model:
    fit, name = trained[0], trained[0].spec.backbone
    return export(fit.backbone, name, ("animals", "tools"), tmp_path / "model")


def test_an_exported_model_classifies_text_files(
    exported: Model, trained: Trained, texts: Path, tmp_path: Path
) -> None:
    fit = trained[0]
    (tmp_path / "empty.txt").write_text("")
    found = list(predict_images(tmp_path / "model", [texts, tmp_path / "empty.txt"], top=2))
    target = load_target(fit.spec.target)
    rows = target.read(np.arange(24), fit.backbone.input)
    with torch.inference_mode():
        logits = fit.backbone.model.eval()(fit.backbone.prepared(rows))
    shares = [dict(zip(p.classes, p.probabilities, strict=True))["tools"] for p in found[:24]]
    assert shares == pytest.approx(logits.softmax(1)[:, 1].tolist(), abs=1e-6)
    assert [p.path for p in found[:24]] == list(target.files())
    assert found[24].problem == f"text {tmp_path / 'empty.txt'} is empty"


def test_an_exported_model_holds_its_tokenizer(exported: Model, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    assert (folder / "tokenizer.json").read_text() == word_tokenizer().text
    assert exported.form == Tokens(word_tokenizer(), 16, 24)
    about = json.loads((folder / "model.json").read_text())
    assert about["preprocessing"] == {"kind": "tokens", "length": 16, "longest": 24}
    assert "open_model" in loading(about)
    (folder / "tokenizer.json").write_text(word_tokenizer(special=False).text)
    with refused(r"SHA-256 of \S+tokenizer.json differs"):
        open_model(folder)


@pytest.mark.slow
def test_a_model_of_texts_is_written_as_onnx(exported: Model, texts: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    rows = load_target(f"folder:{texts}").read(np.arange(24), exported.form)
    assert write_onnx(exported, tmp_path, rows[:4]) < 1e-4
    network = session(tmp_path / "model.onnx")
    assert [given.name for given in network.get_inputs()] == ["texts"]
    found = logits_of(network, exported.prepare(rows))
    assert torch.allclose(found, exported.logits(rows), atol=1e-4)


def test_a_study_says_how_many_texts_are_cut(
    make_spec: MakeSpec, texts: Path, encoder: str
) -> None:
    spec = make_spec(
        target=f"folder:{texts}[tokens=12]", backbone=encoder, source="pretrained", resolution=None
    )
    said = [note for note in check_study(study_of(spec)).notes if "exceeds" in note]
    assert len(said) == 1
    assert "texts have 12 tokens or more; what exceeds them is not read" in said[0]
