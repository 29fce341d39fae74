"""Train a recorded configuration again, write it as plain files, and read them back to compare."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from harness.core.errors import UserError
from harness.core.html import as_table
from harness.core.results import Predictions
from harness.core.spec import TrialSpec, derive_seed
from harness.core.stores import default_tracking_uri
from harness.data import (
    Examples,
    SplitIndices,
    images_per_class,
    load_target,
    read_examples,
    split_indices,
)
from harness.data.cached import default_cache
from harness.deploy.averages import Plan
from harness.deploy.card import card
from harness.deploy.int8 import CALIBRATED_ON, INT8, write_int8
from harness.deploy.model import (
    ABOUT,
    CARD,
    Model,
    describe,
    open_model,
    plain_network,
    staging,
    write,
    write_about,
)
from harness.deploy.onnx import write_onnx
from harness.deploy.soup import Kind, load
from harness.deploy.temperature import calibrate, describe_calibration, measures
from harness.deploy.use import cost_in_use, describe_cost
from harness.tracking.models import log_model
from harness.tracking.results import CellRecord, StudyResult
from harness.tracking.runs import Recorded
from harness.training.device import resolve_device
from harness.training.fit import Fit
from harness.training.loop import start

ALLOWED = 1e-3
"""Largest difference of a probability between the network that was trained and the files read back."""
SHOWN_TO_ONNX = 32


@dataclass(frozen=True)
class Formats:
    """What is written beyond the weights.

    Attributes:
        onnx: model.onnx.
        int8: model.int8.onnx.
        max_loss: largest fall of validation accuracy by it, in percentage points.
    """

    onnx: bool = False
    int8: bool = False
    max_loss: float = 1.0


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        folder: folder of the model.
        cell: label of the cell.
        why: reason for which it was chosen.
        val_accuracy, test_accuracy: of the network in the folder, as trained now.
        noun: what it classifies.
        problem: why model.int8.onnx, which was asked for, is not in the folder; "" otherwise.
    """

    folder: Path
    cell: str
    why: str
    val_accuracy: float
    test_accuracy: float
    noun: str
    problem: str = ""

    def _repr_html_(self) -> str:
        row = (self.cell, f"{self.val_accuracy:.1%}", f"{self.test_accuracy:.1%}", self.why)
        columns = ("cell", "validation", "test", "why")
        note = f"; {self.problem}" if self.problem else ""
        return as_table(f"model in {self.folder}{note}", columns, [row])


@dataclass(frozen=True)
class _Made:
    """A network that is to be written.

    Attributes:
        fit: the trial of its repeat.
        network: the network, in the form of its library.
        what: description of it.
        accuracies: on validation and on test.
        predictions: on test; None for an average of weights.
    """

    fit: Fit
    network: nn.Module
    what: str
    accuracies: tuple[float, float]
    predictions: Predictions | None


def _trained(chosen: CellRecord, why: str, device: str, target: str | None) -> _Made:
    """The network of the cell's first repeat, trained again."""
    run = chosen.repeats[0]
    spec = TrialSpec.from_flat(run.params)
    spec = replace(spec, target=target or spec.target)
    if spec.strategy.classifier == "knn":
        raise UserError(
            f"cell “{chosen.cell}” ({why}) classifies by nearest neighbours, which cannot be written as a "
            "network; name another with --cell"
        )
    fit = start(spec, resolve_device(device), default_cache())
    print(f"cell “{chosen.cell}”: {why}")
    val_accuracy = [epoch.val_accuracy for epoch in fit][-1]
    result = fit.finish(test=True)
    accuracies = val_accuracy, result.metrics["test_accuracy"]
    print(_agreement(run, *accuracies))
    network = plain_network(fit.backbone, fit.classifier)
    what = "the first of the cell's repeats, trained again"
    return _Made(fit, network, what, accuracies, result.predictions)


def _averaged(made: _Made, plan: Plan, kind: Kind) -> _Made:
    """An average of networks with the seed of the cell's first repeat."""
    average = plan.average(kind, made.fit.device, made.fit.cache)
    load(made.network, average.state)
    accuracies = average.metrics["val_accuracy"], average.metrics["test_accuracy"]
    print(f"{average}: validation {accuracies[0]:.1%}, test {accuracies[1]:.1%}")
    what = f"an average of weights ({average}), made with the seed of the cell's first repeat"
    return _Made(made.fit, made.network, what, accuracies, None)


def train_and_write(
    study: StudyResult,
    chosen: CellRecord,
    why: str,
    folder: Path,
    formats: Formats,
    device: str,
    target: str | None,
    average: tuple[Plan, Kind] | None = None,
) -> tuple[Exported, Model, torch.Tensor]:
    """The folder, the model read back from it, and test images as it takes them; of the cell's first repeat,
    or of an average."""
    run, made = chosen.repeats[0], _trained(chosen, why, device, target)
    if average is not None:
        made = _averaged(made, *average)
    spec = made.fit.spec
    with staging(folder) as there:  # read back before it is where anyone would use it
        about = _about(study.study, chosen.cell, why, run, made)
        write(there, made.network, about, made.fit.backbone.input)
        model = open_model(there)
        split = split_indices(load_target(spec.target), spec)
        test, val = (_examples(spec, model, part) for part in (split.test, split.val))
        logits = model.logits(test.tensor)
        print(_read_back(logits, test.labels, made))
        model, val_logits = _calibrated(model, val, test, logits)
        if formats.onnx:
            shown = test.tensor[:SHOWN_TO_ONNX]
            worst = write_onnx(model, there, shown)
            print(
                f"model.onnx: logits of {len(shown)} {model.medium.noun}s differ by at most {worst:.1e}"
            )
        more: dict[str, Any] = {}
        problem = ""
        if formats.int8:
            before = float((val_logits.argmax(1) == val.labels).double().mean())
            more, problem = _quantised(model, there, split, spec, val, before, formats.max_loss)
        model = _finish(model, there, more, study)
    done = Exported(folder, chosen.cell, why, *made.accuracies, model.medium.noun, problem)
    return done, model, test.tensor


def _about(study: str, cell: str, why: str, run: Recorded, made: _Made) -> dict[str, Any]:
    """What model.json says of the network, its training and its images."""
    fit, names = made.fit, ("val_accuracy", "test_accuracy")
    spec = fit.spec
    target = load_target(spec.target)
    split = split_indices(target, spec)
    network = (spec.backbone, target.classes, spec.head, spec.depth)
    return {
        **describe(fit.backbone, *network),
        "study": study,
        "cell": cell,
        "why": why,
        "made": made.what,
        "run_id": run.run_id,
        "recorded": {name: run.metrics.get(name) for name in names},
        "exported": dict(zip(names, made.accuracies, strict=True)),
        "trial": spec.flat(),
        "images": {name: len(part) for name, part in vars(split).items()},
        "images_per_class": json.loads(images_per_class(target, split)),
        "grouped": target.groups is not None,
    }


def _calibrated(
    model: Model, val: Examples, test: Examples, test_logits: torch.Tensor
) -> tuple[Model, torch.Tensor]:
    """The model with a fitted temperature and its test scores, and the validation logits."""
    val_logits = model.logits(val.tensor)
    found = calibrate((val_logits, val.labels), (test_logits, test.labels))
    print(describe_calibration(found, model.medium.noun))
    measured = measures(test_logits / found["temperature"], test.labels)
    about = {**model.about, "calibration": found, "test": measured}
    return replace(model, about=about), val_logits


def _quantised(
    model: Model,
    folder: Path,
    split: SplitIndices,
    spec: TrialSpec,
    val: Examples,
    before: float,
    max_loss: float,
) -> tuple[dict[str, Any], str]:
    """What model.json says of model.int8.onnx, and why there is none, if there is none."""
    drawn = np.random.default_rng(derive_seed("int8", spec.seed)).permutation(split.train)
    images = _examples(spec, model, np.sort(drawn[:CALIBRATED_ON])).tensor
    try:
        about = write_int8(model, folder, images, val, before, max_loss)
    except UserError as error:
        return {"int8": {"refused": str(error)}}, str(error)
    accuracy = about["val_accuracy"]
    print(
        f"{INT8}: validation accuracy {accuracy['int8']:.1%}, in float32 {accuracy['float32']:.1%}; scales "
        f"from {about['calibration_images']} training {model.medium.noun}s"
    )
    return {"int8": about}, ""


def _finish(model: Model, folder: Path, more: dict[str, Any], study: StudyResult) -> Model:
    """Measure the files and write what is known of the model, as model.json and as a card."""
    use = cost_in_use(model, folder)
    print(*describe_cost(use, model.medium.noun), sep="\n")
    about = {**model.about, **more, "use": use}
    write_about(folder, about)
    (folder / CARD).write_text(card(about, model.form, study), encoding="utf-8")
    return replace(model, about=about)


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
        [done.folder / name for name in (ABOUT, CARD, *model.about["files"])],
        {"study": study, "cell": done.cell},
        {"val_accuracy": done.val_accuracy, "test_accuracy": done.test_accuracy},
        tracking_uri or default_tracking_uri(),
        register,
    )
    version = f", registered as {register} version {logged.version}" if register else ""
    return f"logged to MLflow{version}: mlflow.pytorch.load_model({logged.uri!r})"


def _agreement(run: Recorded, val_accuracy: float, test_accuracy: float) -> str:
    """Whether training again gave what was recorded, in words."""
    now = {"val_accuracy": val_accuracy, "test_accuracy": test_accuracy}
    then = {k: run.metrics[k] for k in now if k in run.metrics}
    shown = f"validation {val_accuracy:.1%}, test {test_accuracy:.1%}"
    if then and all(now[k] == value for k, value in then.items()):
        return f"trained again: {shown}, exactly as recorded"
    recorded = ", ".join(f"{k.partition('_')[0]} {value:.1%}" for k, value in then.items())
    where = ", ".join(run.tags.get(k, "?") for k in ("env.hardware", "env.torch"))
    return (
        f"trained again: {shown}; NOT as recorded ({recorded}, on {where}, "
        f"{run.tags.get('threads', '?')} threads): another machine, version, number of threads or data"
    )


def _examples(spec: TrialSpec, model: Model, part: np.ndarray) -> Examples:
    """Images of the target, as the model takes them."""
    return read_examples(spec.target, tuple(part.tolist()), model.form)


def _read_back(logits: torch.Tensor, labels: torch.Tensor, made: _Made) -> str:
    """Whether the files predict what the network did, in words.

    Args:
        logits: of the files, for the test images.
        labels: of the test images.
        made: the network.

    Raises:
        UserError: if they do not.
    """
    found, predictions = logits.softmax(1), made.predictions
    if predictions is None:
        accuracy = float((found.argmax(1) == labels).double().mean())
        said = f"read back: test accuracy {accuracy:.1%}"
        same = abs(accuracy - made.accuracies[1]) <= 1 / len(labels)  # one tie
    else:
        given = found.gather(1, labels[:, None])[:, 0]
        worst = float((given - torch.from_numpy(predictions.probability)).abs().max())
        agree = int((found.argmax(1).numpy() == predictions.predicted).sum())
        said = (
            f"read back: {agree} of {len(labels)} test predictions are the same, probabilities differ by at "
            f"most {worst:.1e}"
        )
        same = worst <= ALLOWED
    if made.fit.spec.precision == "bfloat16":
        return f"{said} (the network was trained in bfloat16 and is written in float32)"
    if not same:
        raise UserError(f"the files are not the network that was trained: {said}")
    return said
