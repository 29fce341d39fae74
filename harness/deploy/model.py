"""An exported model: a folder with the weights, and a JSON file with everything else that is needed to use
them.

model.safetensors   state dict of the plain network of timm or torchvision
model.json          name, classes, preparation of examples, temperature, cost of inference, and provenance
tokenizer.json      of a network that reads text: its tokenizer, in the format of the library tokenizers
preprocessor_config.json
                    of an encoder of sounds of transformers: the settings of its feature extractor
config.json         of an encoder of transformers: the settings of its architecture
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import nn

from harness.backbones import (
    SETTINGS,
    Backbone,
    is_own,
    memory_format,
    merge_adapters,
    own_input,
    read_weights,
    restore,
    separate,
    settings_files,
)
from harness.core.errors import UserError, first_line
from harness.core.spec import Head
from harness.data.media import Medium, medium_of
from harness.inputs import Input, described
from harness.training.features import FittedClassifier

WEIGHTS, ABOUT, CARD = "model.safetensors", "model.json", "README.md"
CHUNK = 32
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Model:
    """A network with everything that is needed to use it.

    Attributes:
        network: n prepared examples -> (n, classes) logits; in eval(), on the CPU.
        about: contents of model.json.
        form: the kind of input of the network.
    """

    network: nn.Module
    about: Mapping[str, Any]
    form: Input

    @property
    def classes(self) -> list[str]:
        """Class names; position = label."""
        return list(self.about["classes"])

    @property
    def temperature(self) -> float:
        """What logits are divided by for calibrated probabilities; 1 if none was fitted."""
        return float(self.about.get("calibration", {}).get("temperature", 1.0))

    @property
    def medium(self) -> Medium:
        """What the model classifies."""
        return medium_of(self.form)

    def prepare(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows of the network's input -> its argument, in contiguous memory order."""
        return self.form.preparation(CPU, torch.contiguous_format)(rows)

    def probabilities(self, rows: torch.Tensor) -> torch.Tensor:
        """(n, classes) for n rows of the network's input, calibrated."""
        return (self.logits(rows) / self.temperature).softmax(1)

    @torch.inference_mode()
    def logits(self, rows: torch.Tensor) -> torch.Tensor:
        """(n, classes) outputs of the network for n rows of its input."""
        prepare = self.form.preparation(CPU, memory_format(self.network, CPU))
        return torch.cat([self.network(prepare(some)) for some in rows.split(CHUNK)]).float()

    def read(self, path: Path) -> torch.Tensor:
        """Read a file as a row of the network's input, as in training.

        Raises:
            UserError: naming the file, if it cannot be read.
        """
        return self.form.row(self.medium.open(path))


def plain_network(backbone: Backbone, classifier: FittedClassifier | None) -> nn.Module:
    """A copy of the trained network in the form of its library: adapters are merged into its layers, and a
    scikit-learn classifier becomes its head.

    Args:
        backbone: the trained network.
        classifier: the fitted classifier of a strategy without gradient steps, else None.

    Raises:
        UserError: if the classifier or the network's head is not linear.
    """
    network = merge_adapters(copy.deepcopy(backbone.model).cpu().eval())
    if classifier is not None:
        names = [n for n, m in backbone.model.named_modules() if m is backbone.head]
        _fold(network.get_submodule(names[0]), classifier)
    return network


def _fold(head: nn.Module, fitted: FittedClassifier) -> None:
    """Write scaling and logistic regression, which together are one affine map, into the linear head."""
    *before, classifier = getattr(fitted.model, "named_steps", {"": fitted.model}).values()
    if not before or not isinstance(head, (nn.Linear, nn.Conv2d)):
        raise UserError(
            f"a {type(classifier).__name__} on a head of type {type(head).__name__} cannot be exported as a "
            "network; export another cell with --cell"
        )
    (scaler,) = before
    weight, bias = classifier.coef_, classifier.intercept_
    if len(weight) == 1:  # for two classes, scikit-learn has only the logit of the second
        weight, bias = np.concatenate([0 * weight, weight]), np.concatenate([0 * bias, bias])
    weight = weight / scaler.scale_
    bias = bias - weight @ scaler.mean_
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(weight).view_as(head.weight))
        assert head.bias is not None
        head.bias.copy_(torch.from_numpy(bias))


def describe(
    backbone: Backbone,
    name: str,
    classes: tuple[str, ...],
    head: Head = "linear",
    depth: int | None = None,
) -> dict[str, Any]:
    """The part of model.json with the settings for building the network and preparing an example.

    Args:
        backbone: the network.
        name: name of the backbone, as in TrialSpec.
        classes: class names; position = label.
        head, depth: as in TrialSpec.
    """
    library, _, plain = name.rpartition(":")
    changed = head != "linear" or depth is not None
    library = "harness" if changed or is_own(name) else library or "timm"
    arguments: dict[str, Any] = {"num_classes": len(classes)}
    if hasattr(backbone.model, "set_input_size") and backbone.input != own_input(backbone, name):
        arguments["img_size"] = backbone.input.shape[-1]
    if (
        getattr(backbone.model, "aux_logits", True) is False
    ):  # torchvision's GoogLeNet and Inception
        arguments |= {"aux_logits": False, "init_weights": False}
    return {
        "backbone": name,
        "head": head,
        "depth": depth,
        library: plain,
        "arguments": arguments,
        "classes": list(classes),
        "preprocessing": backbone.input.describe(),
    }


def write(folder: Path, network: nn.Module, about: Mapping[str, Any], form: Input) -> None:
    """Write all files, model.json last, so that a folder with model.json is complete.

    Args:
        folder: an existing one, see `staging`.
        network: the network.
        about: from `describe`, and more.
        form: the kind of input of the network.
    """
    weights = save(separate(network.state_dict()))
    (folder / WEIGHTS).write_bytes(weights)
    texts = form.files() | settings_files(about["backbone"])
    files = {name: text.encode() for name, text in texts.items()}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    digest = hashlib.sha256(weights).hexdigest()
    write_about(folder, {**about, "files": hashes, "sha256": digest})


def write_about(folder: Path, about: Mapping[str, Any]) -> None:
    """Write model.json."""
    text = json.dumps(about, indent=2, ensure_ascii=False)
    (folder / ABOUT).write_text(text + "\n", encoding="utf-8")


def require_free(folder: Path) -> None:
    """Raise UserError if the folder contains a model or a README.md already, or cannot be created."""
    for name, what in ((ABOUT, "a model"), (CARD, f"a {CARD}")):
        if (folder / name).exists():
            raise UserError(f"{folder} already contains {what}; choose another folder with --out")
    there = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not (there.is_dir() and os.access(there, os.W_OK)):
        raise UserError(f"cannot write to {folder}: {there} is not a writable folder")


@contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """A temporary folder whose files are moved to `folder` at the end, model.json last. If anything fails,
    nothing remains.

    Raises:
        UserError: if `folder` cannot be written to.
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
    """Load an exported model.

    Raises:
        UserError: if there is no model in the folder, or one of its files has changed.
    """
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        wanted = {WEIGHTS: about["sha256"], **about.get("files", {})}
        for name, digest in wanted.items():
            if hashlib.sha256((folder / name).read_bytes()).hexdigest() != digest:
                raise UserError(
                    f"the SHA-256 of {folder / name} differs from that in {ABOUT}: the file is damaged or "
                    "belongs to another model; export the model again"
                )
        texts = {n: (folder / n).read_bytes().decode() for n in wanted if n != WEIGHTS}
        form = described(about["preprocessing"], texts)
        backbone, classes = about["backbone"], about["classes"]
        head, depth = about.get("head", "linear"), about.get("depth")
        settings = folder if SETTINGS in wanted else None
    except OSError as error:
        raise UserError(
            f"no model in {folder}: {first_line(error)}; create one with python -m harness.export"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / ABOUT} was not written by harness.export: {error}") from error
    weights = read_weights(folder / WEIGHTS)
    try:
        network = restore(backbone, weights, len(classes), form, head, depth, settings)
    except UserError as error:
        if settings is not None or not backbone.startswith("transformers:"):
            raise
        raise UserError(
            f"{folder} was exported by version 0.1.0, without {SETTINGS}, and its encoder is not found: run "
            f"this where it was exported, or export it again ({error})"
        ) from error
    return Model(network.eval(), about, form)
