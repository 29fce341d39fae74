"""An exported model: a folder with weights, and a JSON file with everything else that is needed to use it.

model.safetensors   state dict of the plain network of timm or torchvision
model.json          its name, the classes, how an image is prepared, where it is from
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import nn

from harness.backbones import (
    Backbone,
    memory_format,
    merge_adapters,
    read_weights,
    restore,
    separate,
)
from harness.core.errors import UserError, first_line
from harness.data.target import FileTarget
from harness.training.features import FittedClassifier

WEIGHTS, ABOUT = "model.safetensors", "model.json"
CHUNK = 32


@dataclass(frozen=True)
class Model:
    """A network with all that is needed to use it.

    Attributes:
        network: in eval(), on the CPU; normalised (n, 3, s, s) -> (n, classes) logits.
        about: what model.json says.
    """

    network: nn.Module
    about: Mapping[str, Any]

    @property
    def classes(self) -> list[str]:
        """Their names; position = label."""
        return list(self.about["classes"])

    def prepare(self, pixels: torch.Tensor) -> torch.Tensor:
        """(n, 3, s, s) uint8 -> normalised float."""
        prepared = self.about["preprocessing"]
        mean, std = (torch.tensor(prepared[k]).view(1, 3, 1, 1) * 255 for k in ("mean", "std"))
        return (pixels.float() - mean) / std

    @torch.inference_mode()
    def probabilities(self, pixels: torch.Tensor) -> torch.Tensor:
        """(n, classes) for (n, 3, s, s) uint8 images of the model's resolution."""
        order = memory_format(self.network, torch.device("cpu"))
        parts = [
            self.network(self.prepare(some).contiguous(memory_format=order))
            for some in pixels.split(CHUNK)
        ]
        return torch.cat(parts).float().softmax(1)

    def read(self, path: Path) -> torch.Tensor:
        """(3, s, s) uint8: an image file as the model was trained on: shorter side resized, centre cropped.

        Raises:
            UserError: naming the file, if it cannot be read.
        """
        prepared = self.about["preprocessing"]
        one = FileTarget(path.name, ("",), np.zeros(1, np.int64), None, (path,))
        return one.read(np.zeros(1, np.int64), prepared["resolution"], prepared["interpolation"])[0]


def plain_network(backbone: Backbone, classifier: FittedClassifier | None) -> nn.Module:
    """A copy of the network as its library makes it: adapters merged, a scikit-learn classifier as its head.

    Args:
        backbone: as trained.
        classifier: of a strategy without gradient steps.

    Raises:
        UserError: if the classifier is no linear one, or the network's head is not.
    """
    network = merge_adapters(copy.deepcopy(backbone.model).cpu().eval())
    if classifier is not None:
        names = [n for n, m in backbone.model.named_modules() if m is backbone.head]
        _fold(network.get_submodule(names[0]), classifier)
    return network


def _fold(head: nn.Module, fitted: FittedClassifier) -> None:
    """Standardisation and logistic regression are one affine map: write it into the linear head."""
    scaler, classifier = (step for _, step in fitted.model.steps)
    if not hasattr(classifier, "coef_") or not isinstance(head, (nn.Linear, nn.Conv2d)):
        raise UserError(
            f"{type(classifier).__name__} on a head of type {type(head).__name__} cannot be written as a "
            "network; export another cell with --cell"
        )
    weight, bias = classifier.coef_, classifier.intercept_
    if len(weight) == 1:  # two classes: the logit of the second against the first
        weight, bias = np.concatenate([0 * weight, weight]), np.concatenate([0 * bias, bias])
    weight = weight / scaler.scale_
    bias = bias - weight @ scaler.mean_
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(weight).view_as(head.weight))
        assert head.bias is not None
        head.bias.copy_(torch.from_numpy(bias))


def describe(backbone: Backbone, name: str, classes: tuple[str, ...], size: int) -> dict[str, Any]:
    """The part of model.json that says how to build the network and how to prepare an image.

    Args:
        backbone: the network.
        name: as in TrialSpec.
        classes: their names; position = label.
        size: side of the images in pixels.
    """
    library, _, plain = name.rpartition(":")
    library = library or ("harness" if name == "small_cnn" else "timm")
    arguments: dict[str, Any] = {"num_classes": len(classes)}
    if hasattr(backbone.model, "set_input_size") and size != backbone.input.resolution:
        arguments["img_size"] = size
    prepared = {k: v for k, v in asdict(backbone.input).items() if k != "resolution"}
    return {
        "backbone": name,
        library: plain,
        "arguments": arguments,
        "classes": list(classes),
        "preprocessing": {"resolution": size, **prepared},
    }


def write(folder: Path, network: nn.Module, about: Mapping[str, Any]) -> None:
    """Write both files; model.json last, so that a folder that has it is whole.

    Raises:
        UserError: if there is a model already, or the folder cannot be written.
    """
    require_free(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        weights = save(separate(network.state_dict()))
        (folder / WEIGHTS).write_bytes(weights)
        digest = hashlib.sha256(weights).hexdigest()
        text = json.dumps({**about, "sha256": digest}, indent=2, ensure_ascii=False)
        (folder / ABOUT).write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {first_line(error)}") from error


def require_free(folder: Path) -> None:
    """Raises UserError if there is a model in the folder already, or there can be none."""
    if (folder / ABOUT).exists():
        raise UserError(f"{folder} holds a model already; name another folder with --out")
    there = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not (there.is_dir() and os.access(there, os.W_OK)):
        raise UserError(f"cannot write to {folder}: {there} is no folder that may be written to")


@contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """A folder to write a model to, whose files go to `folder` at the end, model.json last; nothing is left
    of it if anything fails.

    Raises:
        UserError: if the folder cannot be written.
    """
    there = next(p for p in folder.absolute().parents if p.exists())
    try:
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=there) as written:
            yield Path(written)
            folder.mkdir(parents=True, exist_ok=True)
            for file in sorted(Path(written).iterdir(), key=lambda f: f.name == ABOUT):
                shutil.move(file, folder / file.name)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {first_line(error)}") from error


def open_model(folder: Path) -> Model:
    """The model that was written there.

    Raises:
        UserError: if there is none, or its weights are not those that were written.
    """
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        digest = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
        wanted, name, classes = about["sha256"], about["backbone"], about["classes"]
        size = about["preprocessing"]["resolution"]
    except OSError as error:
        raise UserError(
            f"no model in {folder}: {first_line(error)}; python -m harness.export makes one"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / ABOUT} is not what harness.export writes: {error}") from error
    if digest != wanted:
        raise UserError(
            f"{folder / WEIGHTS} has another SHA-256 than {ABOUT} says: damaged, or of another model; "
            "export it again"
        )
    network = restore(name, read_weights(folder / WEIGHTS), len(classes), size)
    return Model(network.eval(), about)
