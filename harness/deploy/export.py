"""Train a recorded configuration again, write it as plain files, and read them back to compare."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from harness.core.errors import UserError
from harness.core.html import as_table
from harness.core.results import Predictions
from harness.core.spec import TrialSpec
from harness.core.stores import default_tracking_uri
from harness.data import find_again, load_target, read_examples
from harness.data.cached import Cache, default_folder
from harness.deploy.model import (
    ABOUT,
    Model,
    describe,
    open_model,
    plain_network,
    staging,
    write,
)
from harness.deploy.onnx import write_onnx
from harness.tracking.models import log_model
from harness.tracking.results import CellRecord
from harness.tracking.runs import Kept
from harness.training.device import resolve_device
from harness.training.fit import Fit
from harness.training.loop import start

ALLOWED = 1e-3
"""Largest difference of a probability between the network that was trained and the files read back."""
SHOWN_TO_ONNX = 32


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        folder: where.
        cell: label of the cell.
        why: it was chosen.
        val_accuracy, test_accuracy: of the network in the folder, as trained now.
    """

    folder: Path
    cell: str
    why: str
    val_accuracy: float
    test_accuracy: float

    def _repr_html_(self) -> str:
        row = (self.cell, f"{self.val_accuracy:.1%}", f"{self.test_accuracy:.1%}", self.why)
        columns = ("cell", "validation", "test", "why")
        return as_table(f"model in {self.folder}", columns, [row])


def train_and_write(
    study: str,
    chosen: CellRecord,
    why: str,
    folder: Path,
    onnx: bool,
    device: str,
    target: str | None,
) -> tuple[Exported, Model, torch.Tensor]:
    """The folder, the model read back from it, and images as it takes them."""
    kept = chosen.repeats[0]
    spec = TrialSpec.from_flat(kept.run.params)
    spec = replace(
        spec, target=target or find_again(spec.target, kept.run.tags.get("sha256.images", ""))
    )
    cache = Cache(default_folder())
    if spec.strategy.classifier == "knn":
        raise UserError(
            f"cell “{chosen.cell}” ({why}) classifies by nearest neighbours, which cannot be written as a "
            "network; name another by --cell"
        )
    fit = start(spec, resolve_device(device), Cache(None, 0) if cache.problem() else cache)
    print(f"cell “{chosen.cell}”: {why}")
    val_accuracy = [epoch.val_accuracy for epoch in fit][-1]
    result = fit.finish(test=True)
    test_accuracy = result.metrics["test_accuracy"]
    print(_agreement(kept, val_accuracy, test_accuracy))
    assert result.predictions is not None
    with staging(folder) as there:  # read back before it is where anyone would use it
        _write_folder(there, study, chosen.cell, kept, fit, (val_accuracy, test_accuracy))
        model = open_model(there)
        pixels = _pixels(spec, model, result.predictions)
        print(_read_back(model, pixels, result.predictions, spec))
        if onnx:
            worst = write_onnx(model, there, pixels[:SHOWN_TO_ONNX])
            shown = len(pixels[:SHOWN_TO_ONNX])
            print(f"model.onnx: logits of {shown} images differ by at most {worst:.1e}")
    return Exported(folder, chosen.cell, why, val_accuracy, test_accuracy), model, pixels


def _write_folder(
    folder: Path, study: str, cell: str, kept: Kept, fit: Fit, accuracies: tuple[float, float]
) -> None:
    spec, names = fit.spec, ("val_accuracy", "test_accuracy")
    size = spec.resolution or fit.backbone.input.resolution
    about = {
        **describe(fit.backbone, spec.backbone, load_target(spec.target).classes, size),
        "study": study,
        "cell": cell,
        "run_id": kept.run_id,
        "recorded": {name: kept.run.metrics.get(name) for name in names},
        "exported": dict(zip(names, accuracies, strict=True)),
        "trial": spec.flat(),
    }
    write(folder, plain_network(fit.backbone, fit.classifier), about)


def log_to_mlflow(
    done: Exported,
    study: str,
    model: Model,
    pixels: torch.Tensor,
    tracking_uri: str | None,
    register: str | None,
) -> str:
    """Log it as a model of MLflow; says where it is."""
    logged = log_model(
        model.network,
        model.prepare(pixels[:2]),
        [done.folder / ABOUT],
        {"study": study, "cell": done.cell},
        {"val_accuracy": done.val_accuracy, "test_accuracy": done.test_accuracy},
        tracking_uri or default_tracking_uri(),
        register,
    )
    version = f", registered as {register} version {logged.version}" if register else ""
    return f"logged to MLflow{version}: mlflow.pytorch.load_model({logged.uri!r})"


def _agreement(kept: Kept, val_accuracy: float, test_accuracy: float) -> str:
    """Whether training again gave what was recorded, in words."""
    now = {"val_accuracy": val_accuracy, "test_accuracy": test_accuracy}
    then = {k: kept.run.metrics[k] for k in now if k in kept.run.metrics}
    shown = f"validation {val_accuracy:.1%}, test {test_accuracy:.1%}"
    if then and all(now[k] == value for k, value in then.items()):
        return f"trained again: {shown}, exactly as recorded"
    recorded = ", ".join(f"{k.partition('_')[0]} {value:.1%}" for k, value in then.items())
    where = ", ".join(kept.run.tags.get(k, "?") for k in ("env.hardware", "env.torch"))
    return (
        f"trained again: {shown}; NOT as recorded ({recorded}, on {where}, "
        f"{kept.run.tags.get('threads', '?')} threads): another machine, version, number of threads or data"
    )


def _pixels(spec: TrialSpec, model: Model, predictions: Predictions) -> torch.Tensor:
    """The test images, as the model takes them."""
    prepared = model.about["preprocessing"]
    part = tuple(predictions.example.tolist())
    return read_examples(
        spec.target, part, prepared["resolution"], prepared["interpolation"]
    ).images


def _read_back(
    model: Model, pixels: torch.Tensor, predictions: Predictions, spec: TrialSpec
) -> str:
    """Whether the files predict what the network did, in words.

    Raises:
        UserError: if they do not.
    """
    found = model.probabilities(pixels)
    labels = torch.from_numpy(predictions.label)
    given = found.gather(1, labels[:, None])[:, 0]
    worst = float((given - torch.from_numpy(predictions.probability)).abs().max())
    agree = int((found.argmax(1).numpy() == predictions.predicted).sum())
    said = (
        f"read back: {agree} of {len(labels)} test predictions are the same, probabilities differ by at "
        f"most {worst:.1e}"
    )
    if spec.precision == "bfloat16":
        return f"{said} (the network was trained in bfloat16 and is written in float32)"
    if not worst <= ALLOWED:
        raise UserError(f"the files are not the network that was trained: {said}")
    return said
