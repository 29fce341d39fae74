"""The chosen configuration, trained again, written, read back, and used with and without the harness."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import onnxruntime
import pytest
import timm
import torch
from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from PIL import Image

from harness.core.spec import TrialSpec
from harness.core.strategies import FeatureTransfer, FullFineTune, LoRA, names
from harness.core.study_file import clear_caches, load_study
from harness.data import load_target
from harness.data.cached import Cache
from harness.deploy import onnx as onnx_file
from harness.deploy.choice import choose
from harness.deploy.model import Model, describe, open_model, plain_network
from harness.export import export_model, main
from harness.inputs import described
from harness.predict import main as predict
from harness.predict import predict_images
from harness.tracking.results import cell_records
from harness.tracking.runs import Recorded
from harness.training.device import Cpu
from harness.training.loop import start
from tests.refusals import refused
from tests.trials import MakeSpec

SPEC = TrialSpec(
    target="digits",
    backbone="test_resnet",
    strategy=FullFineTune(),
    source="scratch",
    shots=20,
    val_shots=5,
    test_shots=6,
    resolution=32,
    epochs=6,
    batch_size=16,
    lr=1e-2,
)


def record(uri: str, cell: str, spec: TrialSpec, metrics: dict[str, float], index: int = 0) -> str:
    """A complete repeat, as MLflow has it."""
    client = MlflowClient(tracking_uri=uri)
    found = client.get_experiment_by_name("toy")
    experiment = found.experiment_id if found else client.create_experiment("toy")
    tags = {"phase": "repeat", "outcome": "complete", "cell": cell, "index": str(index)}
    run = client.create_run(experiment, tags=tags)
    client.log_batch(
        run.info.run_id,
        [Metric(k, v, 0, 0) for k, v in metrics.items()],
        [Param(k, str(v)) for k, v in spec.flat().items()],
    )
    client.set_terminated(run.info.run_id)
    run_id: str = run.info.run_id
    return run_id


@pytest.fixture(scope="module")
def trained() -> tuple[dict[str, float], np.ndarray, np.ndarray]:
    """Metrics of the trial, and its test predictions with the examples they are of."""
    fit = start(SPEC, Cpu(), Cache(None, 0))
    val = [e.val_accuracy for e in fit][-1]
    result = fit.finish(test=True)
    assert result.predictions is not None
    metrics = {"val_accuracy": val, "test_accuracy": result.metrics["test_accuracy"]}
    return metrics, result.predictions.example, result.predictions.predicted


@pytest.fixture(scope="module")
def exported(
    trained: tuple[dict[str, float], np.ndarray, np.ndarray],
    mlflow_template: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, str, str]:
    """Folder of an exported model, the run it is from, and what the command said."""
    folder = tmp_path_factory.mktemp("export")
    shutil.copy(mlflow_template, folder / "mlflow.db")
    uri = f"sqlite:///{folder}/mlflow.db"
    record(uri, "worse", SPEC, {"val_accuracy": 0.1, "test_accuracy": 1.0})
    run_id = record(uri, "better", SPEC, {**trained[0], "train_seconds": 1.0})
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        patch.setenv("XDG_CACHE_HOME", str(folder))
        arguments = ["--study", "toy", "--tracking-uri", uri, "--device", "cpu"]
        assert main([*arguments, "--out", str(folder / "model")]) == 0
    return folder / "model", run_id, said.getvalue()


def test_exported_model_is_the_recorded_one(
    exported: tuple[Path, str, str], trained: tuple[dict[str, float], np.ndarray, np.ndarray]
) -> None:
    folder, run_id, said = exported
    about = json.loads((folder / "model.json").read_text())
    assert "cell “better”: highest mean validation accuracy" in said
    assert "exactly as recorded" in said
    assert about["run_id"] == run_id
    assert about["exported"] == about["recorded"] == trained[0]
    assert TrialSpec.from_flat(about["trial"]) == SPEC
    pixels = load_target("digits").read(trained[1], described(about["preprocessing"], {}))
    found = open_model(folder).probabilities(pixels).argmax(1)
    assert found.tolist() == trained[2].tolist()
    assert len(set(trained[2].tolist())) > 2  # else equality would mean little


def test_snippet_of_the_docs_predicts_as_the_command_does(
    exported: tuple[Path, str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[1] / "docs" / "pages" / "deploy.md").read_text()
    (snippet,) = (s for s in re.findall(r"```python\n(.*?)```", page, re.S) if "load_file" in s)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(exported[0], "model")
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    Image.fromarray(pixels).save("image.png")
    defined: dict[str, Any] = {}
    exec(snippet, defined)
    (ours,) = predict_images(Path("model"), [Path("image.png")], top=10)
    theirs = defined["probabilities"]
    assert dict(zip(ours.classes, ours.probabilities, strict=True)) == pytest.approx(
        theirs, abs=1e-5
    )
    assert len(theirs) == 10


def test_broken_images_are_named_and_the_others_predicted(
    exported: tuple[Path, str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "c"):
        Image.new("RGBA", (30, 20), (200, 0, 0, 128)).save(tmp_path / f"{name}.png")
    (tmp_path / "b.png").write_text("no picture")
    assert predict([str(exported[0]), str(tmp_path), "--csv", "--top", "2"]) == 2
    shown = capsys.readouterr()
    rows = [line.split(",") for line in shown.out.splitlines()]
    assert rows[0] == ["image", "rank", "class", "probability"]
    assert [Path(r[0]).name for r in rows[1:]] == ["a.png", "a.png", "c.png", "c.png"]
    assert [r[1] for r in rows[1:]] == ["1", "2", "1", "2"]
    assert float(rows[1][3]) >= float(rows[2][3])
    assert re.fullmatch(r"error: image \S*b\.png cannot be read: [^\n]*\n", shown.err)


def test_broken_images_are_counted_again_after_many_results(
    exported: tuple[Path, str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(21):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number:02}.png")
    for name in ("03", "05"):
        (tmp_path / f"{name}.png").write_text("no picture")
    assert predict([str(exported[0]), str(tmp_path)]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(r"error: 2 of 21 files could not be read, first \S*03\.png", last)


def test_model_that_was_changed_or_is_absent_is_refused(
    exported: tuple[Path, str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(exported[0], tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    for folder, said in (
        (tmp_path / "model", "differs from that in model.json"),
        (tmp_path, "no model in"),
    ):
        assert predict([str(folder), "x.png"]) == 2
        assert said in capsys.readouterr().err
    assert predict([str(exported[0]), str(tmp_path / "gone.png")]) == 2
    assert "gone.png cannot be read" in capsys.readouterr().err


def test_unknown_study_and_taken_folder_are_refused(
    exported: tuple[Path, str, str], tracking_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for options, said in (
        (["--out", str(exported[0])], "already contains a model"),
        ([], "no study 'toy'"),
        (["--tracking-uri", "sqlite:///gone.db"], "no tracking store"),
    ):
        assert main(["--study", "toy", "--tracking-uri", tracking_uri, *options]) == 2
        assert said in capsys.readouterr().err


def test_what_cannot_be_exported_is_refused_before_anything_is_trained_or_said(
    tracking_uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    for cell, strategy in (("near", FeatureTransfer("knn")), ("plain", SPEC.strategy)):
        spec = dataclasses.replace(SPEC, strategy=strategy)
        record(tracking_uri, cell, spec, {"val_accuracy": 0.5})
    for options, said in (
        (
            ["--cell", "near"],
            "nearest neighbours, which cannot be written as a network; name another",
        ),
        (["--cell", "plain", "--device", "abacus"], "unknown device"),
        (
            ["--cell", "plain", "--out", str(tmp_path / "file" / "model")],
            "file is not a writable folder",
        ),
    ):
        stores = ["--study", "toy", "--tracking-uri", tracking_uri]
        assert main([*stores, "--out", str(tmp_path / "model"), *options]) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert re.fullmatch(rf"error: .*{said}.*\n", printed.err)


def kept(cell: str, accuracy: float, seconds: float, index: int = 0, target: str = "x") -> Recorded:
    metrics = {"val_accuracy": accuracy, "train_seconds": seconds}
    return Recorded("id", "s", {"cell": cell, "index": str(index)}, {"target": target}, metrics)


def test_cell_is_chosen_by_mean_validation_then_by_time() -> None:
    runs = [kept("a", 0.9, 1), kept("a", 0.7, 1, 1), kept("b", 0.85, 9), kept("c", 0.85, 3)]
    best, why = choose(cell_records(runs))
    assert best.cell == "c"
    assert "85.0% over 1 repeat; next “b”, 85.0%, equal but slower" in why
    assert choose(cell_records(runs), "a")[0].mean("val_accuracy") == pytest.approx(0.8)
    with refused("no cell 'd'"):
        choose(cell_records(runs), "d")
    with refused("different targets"):
        choose(cell_records([*runs, kept("d", 0.1, 1, target="y")]))
    with refused("no complete repeats"):
        choose([])


HALVING = '''"""Its own strategy."""
from dataclasses import dataclass
from harness import strategies
from harness.core.study import Study

@dataclass(frozen=True)
class Halves(strategies.Strategy):
    def lr_scales(self, num_groups, epoch):
        return tuple(0.5 ** (num_groups - 1 - g) for g in range(num_groups))

study = Study(compare={"strategy": ["mine"]}, space=print)
'''


def forget_study_files() -> None:
    clear_caches()
    gc.collect()
    assert "Halves" not in names()


def test_strategy_of_a_study_file_is_exported_with_that_file(
    tracking_uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "toy.py"
    file.write_text(HALVING)
    load_study(file)
    brief = dataclasses.replace(SPEC, epochs=1, shots=2, val_shots=2, test_shots=2)
    mine = [dataclasses.replace(brief, strategy=names()["Halves"]())]
    record(tracking_uri, "mine", mine.pop(), {"val_accuracy": 0.1})
    forget_study_files()
    options = ["--study", "toy", "--tracking-uri", tracking_uri, "--device", "cpu"]
    options += ["--out", str(tmp_path / "model")]
    assert main(options) == 2
    assert (printed := capsys.readouterr()).out == ""
    assert re.fullmatch(r"error: unknown strategy 'Halves'.*; .* add --space FILE\n", printed.err)
    assert not (tmp_path / "model").exists()
    model = str(tmp_path / "model")
    export_model("toy", out=model, device="cpu", tracking_uri=tracking_uri, space=str(file))
    assert (
        json.loads((tmp_path / "model" / "model.json").read_text())["trial"]["strategy"] == "Halves"
    )
    forget_study_files()


@pytest.mark.parametrize(
    ("target", "classes"), [("digits[classes=3+8]", 2), ("digits", 10)], ids=["two", "ten"]
)
def test_readout_on_features_becomes_the_head(
    target: str, classes: int, make_spec: MakeSpec
) -> None:
    fit = start(make_spec(target=target, strategy=FeatureTransfer()), Cpu(), Cache(None, 0))
    list(fit)
    test = fit._read(fit._split.test)
    expected = fit._predict(test).exp()
    about = describe(fit.backbone, "test_resnet", tuple(map(str, range(classes))))
    network = plain_network(fit.backbone, fit.classifier)
    found = Model(network, about, fit.backbone.input).probabilities(test.tensor)
    assert torch.allclose(found, expected.float(), atol=1e-4)


def test_nearest_neighbours_cannot_be_written_as_a_network(
    make_spec: MakeSpec,
) -> None:
    fit = start(make_spec(strategy=FeatureTransfer("knn")), Cpu(), Cache(None, 0))
    list(fit)
    with refused(r"KNeighborsClassifier .* cannot be exported as a network"):
        plain_network(fit.backbone, fit.classifier)


def test_adapters_are_merged_into_the_layers_they_adapt(
    make_spec: MakeSpec,
) -> None:
    pytest.importorskip("peft")
    fit = start(make_spec(backbone="test_vit", strategy=LoRA(rank=2)), Cpu(), Cache(None, 0))
    list(fit)
    network = plain_network(fit.backbone, None)
    about = describe(fit.backbone, "test_vit", tuple("0123456789"))
    plain = timm.create_model(about["timm"], **about["arguments"]).eval()
    plain.load_state_dict(network.state_dict())
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = fit.backbone.model.eval()(images)
        assert torch.allclose(plain(images), expected, atol=1e-5)


def test_onnx_gives_the_same_logits_or_is_refused(
    exported: tuple[Path, str, str], tmp_path: Path
) -> None:
    model = open_model(exported[0])
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (3, 3, 32, 32), generator=generator, dtype=torch.uint8)
    assert onnx_file.write_onnx(model, tmp_path, pixels) <= 1e-3
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    other = model.prepare(pixels[:2].flip(0))  # another batch size
    with torch.inference_mode():
        expected = model.network(other).numpy()
    (logits,) = session.run(None, {"images": other.numpy()})
    np.testing.assert_allclose(logits, expected, atol=1e-3)
    with torch.no_grad():
        next(p for p in model.network.parameters() if p.ndim == 1).add_(0.5)
    with refused("a logit differs by"):
        onnx_file._compare(model, tmp_path / "model.onnx", model.prepare(pixels))
    assert not (tmp_path / "model.onnx").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("quiet_default_store")
@pytest.mark.parametrize("options", [["--register", "strokes"], ["--log-model"]], ids=str)
def test_logged_model_is_the_exported_one_with_signature_and_example(
    options: list[str],
    exported: tuple[Path, str, str],
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    uri = f"sqlite:///{exported[0].parent}/mlflow.db"
    arguments = ["--study", "toy", "--tracking-uri", uri, "--device", "cpu"]
    assert main([*arguments, "--out", str(tmp_path / "model"), *options]) == 0
    out, err = capfd.readouterr()
    if options == ["--log-model"]:  # MLflow itself prints that it registered a model
        assert err == ""
    model = open_model(exported[0])
    images = model.prepare(torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8))
    with torch.inference_mode():
        wanted = model.network(images)
    client = MlflowClient(tracking_uri=uri)
    mlflow.set_tracking_uri(uri)
    if options == ["--log-model"]:
        (logged,) = re.findall(r"logged to MLflow: mlflow\.pytorch\.load_model\('(.*)'\)", out)
        with torch.inference_mode():
            torch.testing.assert_close(mlflow.pytorch.load_model(logged)(images), wanted)
        run_id = mlflow.models.get_model_info(logged).run_id or ""
        assert list(client.search_model_versions(f"run_id = '{run_id}'")) == []
    else:
        assert "registered as strokes version 1" in out
        logged, run_id = "models:/strokes/1", client.get_model_version("strokes", "1").run_id or ""
    loaded = mlflow.pyfunc.load_model(logged)
    assert np.allclose(loaded.predict(images.numpy()), wanted.numpy(), atol=1e-5)
    assert loaded.metadata.signature.inputs.inputs[0].shape == (-1, 3, 32, 32)
    assert loaded.metadata.signature.outputs.inputs[0].shape == (-1, 10)
    assert loaded.input_example.shape == (2, 3, 32, 32)
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert (run.data.tags["kind"], run.data.tags["cell"]) == ("model", "better")
    assert "phase" not in run.data.tags, "no comparison counts it"


@pytest.fixture
def quiet_default_store() -> Iterator[None]:
    """MLflow's global store as it was."""
    before = mlflow.get_tracking_uri()
    yield
    mlflow.set_tracking_uri(before)
