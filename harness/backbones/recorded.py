"""Weights trained with this harness: one file per model, with a description and a hash that is checked.

    TrialSpec(source="recorded:garments", ...)      a model of that source, selected by the trial's seed
    TrialSpec(source="recorded:garments.0", ...)    a particular model

`python -m harness.pretrain` creates the files in mlruns/sources, or in the folder named by the environment
variable TRANSFER_SOURCES.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from harness.backbones.weights import separate
from harness.core.errors import UserError, first_line, one_line

PREFIX = "recorded:"
SUFFIX = ".safetensors"
HASH = "sha256"


@dataclass(frozen=True)
class Model:
    """One trained model.

    Attributes:
        name: name of its source and its number, e.g. "garments.0".
        path: path of its file.
        about: description in the file of how the model was trained and how well it performs; not checked.
    """

    name: str
    path: Path
    about: Mapping[str, str]

    @property
    def sha256(self) -> str:
        """Hash of its tensors at the time of recording."""
        return self.about[HASH]

    def read(self) -> dict[str, torch.Tensor]:
        """Its state dict.

        Raises:
            UserError: if the file is damaged.
        """
        with _open(self.path) as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 # no dict
        if content_sha256(state) != self.sha256:
            raise _damaged(self.path, "its weights differ from the recorded ones")
        return state


def folder() -> Path:
    """Folder of the models: $TRANSFER_SOURCES if it is set, else mlruns/sources."""
    return Path(os.environ.get("TRANSFER_SOURCES") or "mlruns/sources")


def content_sha256(state: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of the tensors as a safetensors file without metadata: names, types, shapes and values.

    Recorded files and runs identify models by this hash, so it must not be replaced with
    `weights.tensors_sha256`, which hashes the same content in another form.
    """
    return hashlib.sha256(save(separate(state))).hexdigest()


def write_model(name: str, state: Mapping[str, torch.Tensor], about: Mapping[str, str]) -> Model:
    """Save a model, completely or not at all.

    Args:
        name: name of the source, a dot and a number.
        state: state dict of the model, on the CPU.
        about: description of how the model was trained.
    """
    metadata = {**about, HASH: content_sha256(state)}
    path = folder() / f"{name}{SUFFIX}"
    with one_line(f"cannot save a model in {path.parent}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        beside.write_bytes(save(separate(state), metadata))
        beside.rename(path)
    return Model(name, path, metadata)


def find_models(source: str) -> tuple[Model, ...]:
    """All models of "recorded:NAME", by number; the single model of "recorded:NAME.0".

    Raises:
        UserError: if there is none, or a file cannot be read.
    """
    name = source.removeprefix(PREFIX)
    paths = sorted(folder().glob(f"*{SUFFIX}"))
    numbered = re.compile(re.escape(name) + r"\.(\d+)")
    found = {int(m[1]): p for p in paths if (m := numbered.fullmatch(p.stem))}
    chosen = [p for p in paths if p.stem == name] or [found[i] for i in sorted(found)]
    if not chosen:
        known = ", ".join(sorted({p.stem.rpartition(".")[0] for p in paths})) or "none yet"
        raise UserError(
            f"no recorded source {name!r} in {folder()} (recorded: {known}); run python -m harness.pretrain "
            "with the file that defines it"
        )
    return tuple(Model(path.stem, path, _about(path)) for path in chosen)


def model_for(source: str, seed: int) -> Model:
    """The model of a source that a trial with that seed uses."""
    models = find_models(source)
    return models[seed % len(models)]


def models_sha256(source: str) -> str:
    """One hash for all models of a source."""
    hashes = [model.sha256 for model in find_models(source)]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def _about(path: Path) -> dict[str, str]:
    with _open(path) as file:
        about: dict[str, str] = file.metadata() or {}
    if HASH not in about:
        raise _damaged(path, "it has no description")
    return about


def _open(path: Path) -> safe_open:
    try:
        return safe_open(path, "pt")
    except (SafetensorError, OSError) as error:
        raise _damaged(path, first_line(error)) from error


def _damaged(path: Path, why: str) -> UserError:
    return UserError(
        f"recorded source {path} is damaged ({why}): delete it and run python -m harness.pretrain again"
    )
