"""Trials on texts from a folder to an exported model."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("tokenizers")
pytest.importorskip("transformers")

from harness.core.errors import UserError
from harness.core.spec import TrialSpec
from harness.core.strategies import FullFineTune
from harness.core.study import Study
from harness.data import load_target
from harness.data.cached import Cache
from harness.deploy.card import loading
from harness.deploy.model import Model, describe, open_model, plain_network, write
from harness.deploy.onnx import logits_of, session, write_onnx
from harness.inputs import Tokens
from harness.new import propose_study
from harness.predict import predict_images
from harness.search.preflight import check_study
from harness.training.device import Cpu
from harness.training.fit import Fit
from harness.training.loop import Training
from tests.encoders import save_encoder
from tests.texts import word_tokenizer, write_texts

MakeSpec = Callable[..., TrialSpec]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    return write_texts(tmp_path / "words")


@pytest.fixture
def encoder(tmp_path: Path) -> str:
    name = save_encoder(tmp_path / "encoder")
    (tmp_path / "encoder" / "tokenizer.json").write_text(word_tokenizer().text)
    return name


@pytest.fixture
def trained(make_spec: MakeSpec, texts: Path, encoder: str) -> Fit:
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
    fit = Training(spec, Cpu(), Cache(budget=0))
    list(fit)
    return fit


def test_two_kinds_of_texts_are_told_apart(trained: Fit) -> None:
    metrics = trained.finish(test=True).metrics
    assert metrics["test_accuracy"] == 1
    assert metrics["test_accuracy.word_dropout"] >= 5 / 6
    assert "test_accuracy.typos" in metrics


def test_mistakes_are_kept_as_pictures_of_their_texts(trained: Fit) -> None:
    fit = Training(replace(trained.spec, epochs=1, lr=1e-6), Cpu(), Cache(budget=0))
    list(fit)
    predictions = fit.finish(test=True).predictions
    assert predictions is not None
    wrong = predictions.predicted != predictions.label
    assert wrong.any()
    assert predictions.image is not None
    kept = [Image.open(io.BytesIO(content)) for content in predictions.image[wrong]]
    assert {image.size for image in kept} == {(96, 96)}
    assert all(np.asarray(image).min() < 100 for image in kept)


@pytest.fixture
def exported(trained: Fit, tmp_path: Path) -> Model:
    name = trained.spec.backbone
    about = describe(trained.backbone, name, ("animals", "tools"))
    network = plain_network(trained.backbone, None)
    write(tmp_path / "model", network, about, trained.backbone.input)
    return open_model(tmp_path / "model")


def test_an_exported_model_classifies_text_files(
    exported: Model, trained: Fit, texts: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty.txt").write_text("")
    found = list(predict_images(tmp_path / "model", [texts, tmp_path / "empty.txt"], top=2))
    target = load_target(trained.spec.target)
    rows = target.read(np.arange(24), trained.backbone.input)
    with torch.inference_mode():
        logits = trained.backbone.model.eval()(trained.backbone.prepared(rows))
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
    with pytest.raises(UserError, match=r"SHA-256 of \S+tokenizer.json differs"):
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
    study = Study(compare={"strategy": ["full"]}, space=lambda trial, strategy: spec, name="toy")
    said = [note for note in check_study(study).notes if "exceeds" in note]
    assert len(said) == 1
    assert "texts have 12 tokens or more; what exceeds them is not read" in said[0]


def test_a_study_is_proposed_for_a_folder_of_texts(
    texts: Path,
    encoder: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from harness.dataset_report import proposal

    monkeypatch.setattr(proposal, "FOR_TEXTS", (encoder,))
    monkeypatch.setattr(proposal, "BY_SHOTS", ((10**9, ("linear probe",)),))
    monkeypatch.chdir(tmp_path)
    study = propose_study(f"folder:{texts}", device="cpu")
    written = Path("studies/words.py").read_text()
    assert '"""Which backbone and which strategy suit these texts?' in written
    assert '# augment="token_dropout"' in written
    assert 'source="pretrained"' in written
    assert "resolution" not in written
    assert "training texts per class" in written
    assert study.cells()
    assert Path("report/words/classes.png").is_file()
    monkeypatch.setattr(proposal, "BY_SHOTS", ((10**9, ("linear probe", "last block")),))
    propose_study(f"folder:{texts}", device="cpu", budget="5m", out="studies/race.py")
    only = f"Nothing was screened: {encoder} is the only backbone for texts whose weights are"
    assert only in " ".join(Path("studies/race.py").read_text().split())
    assert "2 classes, 24 texts" in capsys.readouterr().out
