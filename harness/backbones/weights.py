"""Read weights from files saved by training scripts, without running code in the files."""

from __future__ import annotations

import hashlib
import pickle
import re
import zipfile
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PosixPath
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from harness.core.errors import UserError, first_line, one_line

NESTED = (
    *("state_dict", "model_state_dict", "model", "weights", "state_dict_ema", "model_ema"),
    *("net", "network", "params", "module"),
)
"""Keys under which training scripts save a state dict; the first one found is used."""
_SCALAR: Any = np.float64(0).__reduce__()[0]
HARMLESS: list[Any] = [
    *(Namespace, SimpleNamespace, PosixPath),
    *(np.dtype, np.dtypes.Float64DType, np.dtypes.Float32DType, np.dtypes.Int64DType),
    *(_SCALAR, (_SCALAR, "numpy.core.multiarray.scalar")),
]
"""Types of further objects that training scripts save, such as arguments; reading them runs no code."""

COMPILED = "_orig_mod."
"""Prefix that torch.compile adds to names."""
Convert = Callable[[nn.Module, Mapping[str, torch.Tensor]], Mapping[str, torch.Tensor]]


class OtherArchitecture(UserError):
    """The names or shapes of the weights differ from those of the network."""


@dataclass(frozen=True)
class Checkpoint:
    """The contents of a weights file.

    Attributes:
        tensors: the state dict.
        inside: keys under which the state dict was found in the file, outermost first.
    """

    tensors: Mapping[str, torch.Tensor]
    inside: tuple[str, ...] = ()


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The state dict in a .safetensors file or a torch checkpoint; see `read_checkpoint`."""
    return dict(read_checkpoint(path).tensors)


def read_checkpoint(path: Path) -> Checkpoint:
    """The state dict in a .safetensors file or a torch checkpoint, without running any code in it.

    A safetensors file is recognised by its content. A state dict inside another dict is found under one of
    the keys in NESTED, else under the only key with a state dict.

    Raises:
        UserError: if the file does not exist, is not a weights file, or contains NaN or infinity.
    """
    try:
        if not path.is_file():
            raise UserError(f"weights file {path} does not exist")
        state = load_file(path) if _is_safetensors(path) else _load_torch(path)
    except UserError:
        raise
    except Exception as error:  # pickle, zip, safetensors and RuntimeError kinds
        raise UserError(
            f"{path} is not a weights file (state dict or safetensors): {_without_advice(error)}"
        ) from error
    found = _unwrap(state, path)
    for key, value in found.tensors.items():
        if value.layout != torch.strided or value.device.type != "cpu":
            raise UserError(f"weights file {path}: {key} is not a dense tensor")
        if value.numel() * value.element_size() > path.stat().st_size:  # one value, spread out
            raise UserError(f"weights file {path}: {key} has more values than the file contains")
        if value.is_floating_point() and not _is_sound(value):
            raise UserError(f"weights file {path}: {key} contains NaN or infinity")
    return found


def _is_sound(tensor: torch.Tensor) -> bool:
    """Whether all values are finite; a single value may be infinite, as the open limits of a clamp are."""
    return bool(torch.isfinite(tensor).all()) or (tensor.ndim == 0 and not tensor.isnan())


def _is_safetensors(path: Path) -> bool:
    """Whether the file is in safetensors format, by its header (a JSON object after its length in eight
    bytes), else by its suffix."""
    with path.open("rb") as file:
        start = file.read(9)
    length = int.from_bytes(start[:8], "little")
    return (start[8:] == b"{" and length < path.stat().st_size) or (
        path.suffix.lower() == ".safetensors"
    )


def _load_torch(path: Path) -> object:
    """Call torch.load for tensors, plain containers and the types in HARMLESS.

    Raises:
        UserError: if the file contains a whole module, a scripted program, or any other object.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            items = archive.infolist()
        if any("/code/" in item.filename for item in items):
            raise UserError(
                f"{path} is not a weights file but a scripted or exported program, which is not run: "
                "save the state_dict() of the model instead"
            )
        # torch never compresses weights; a compressed file might unpack to more than fits into memory.
        if any(item.compress_type != zipfile.ZIP_STORED for item in items):
            raise ValueError("it is a compressed archive, which torch.save does not create")
    with torch.serialization.safe_globals(HARMLESS):
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            objects = re.findall(r"GLOBAL ([\w.]+)", str(error))
            if not objects:
                raise
            raise UserError(
                f"{path} is not a weights file: it contains a pickled {objects[0]}, and reading it would run "
                "code; save the model's state_dict() instead of the model"
            ) from error


def _without_advice(error: Exception) -> str:
    """The message in one line, without torch's hint to trust the file."""
    line = first_line(error)
    return (
        re.split(r"(?i)weights[ _]only|re-running|trusted source", line)[0].strip() or "unreadable"
    )


def _unwrap(state: object, path: Path) -> Checkpoint:
    inside: list[str] = []
    while True:
        if not isinstance(state, Mapping):
            break
        within = {k: v for k, v in state.items() if _is_state(v)}
        known = next((k for k in NESTED if k in within), None)
        if known is None and not _is_state(state):
            if len(within) > 1:
                raise UserError(
                    f"weights file {path} contains several state dicts ({', '.join(map(str, within))}); save "
                    "only the one to use"
                )
            known = next(iter(within), None)
        if known is None:
            break
        inside.append(str(known))
        state = state[known]
    if not _is_state(state):
        raise UserError(
            f"{path} is not a weights file: it does not contain a state dict of tensors"
        )
    assert isinstance(state, Mapping)
    tensors = {str(k): v for k, v in state.items() if isinstance(v, torch.Tensor)}
    return Checkpoint(tensors, tuple(inside))


def _is_state(value: object) -> bool:
    """Whether the value is a dict from names to tensors, or contains such a dict under a key in NESTED."""
    if not isinstance(value, Mapping) or not all(isinstance(k, str) for k in value):
        return False
    if any(_is_state(value[k]) for k in NESTED if k in value):
        return True
    tensors = [v for v in value.values() if isinstance(v, torch.Tensor)]
    return bool(tensors) and any(isinstance(v, torch.Tensor) and v.ndim for v in tensors)


def load_state(
    model: nn.Module,
    state: Mapping[str, torch.Tensor],
    head_names: Sequence[str],
    what: str,
    convert: Convert | None = None,
) -> list[str]:
    """Load weights by name. A head of another size is left out; any other difference is refused.

    Wrappers add a prefix to all names of a network (DDP "module.", torch.compile "_orig_mod.", Lightning
    "model."). The prefix with which most names match the network is removed, and entries without it are
    left out.

    Args:
        model: the network that receives the weights.
        state: name -> tensor.
        head_names: modules whose weights may be absent.
        what: description of the weights for messages.
        convert: conversion by the library, tried if names or shapes differ.

    Returns:
        Notes on how the weights were changed.

    Raises:
        OtherArchitecture: if names or shapes differ.
        UserError: if the weights are of several networks.
    """
    own = model.state_dict()
    plain = {k.replace(COMPILED, ""): v for k, v in state.items()}
    prefix = _prefix(plain, own, what)
    taken = {k.removeprefix(prefix): v for k, v in plain.items() if k.startswith(prefix)}
    notes = [] if plain.keys() == state.keys() else [f"“{COMPILED}” removed from the names"]
    notes += [f"prefix “{prefix}” removed"] if prefix else []
    if left := len(plain) - len(taken):
        notes.append(f"{left} other entries left out")
    if convert is not None and any(_misfits(own, taken, head_names)):
        before = taken
        taken = dict(convert(model, before))
        resized = [k for k in taken if k in before and taken[k].shape != before[k].shape]
        notes.append(f"converted by its library ({', '.join(resized[:3]) or 'names'})")
    missing, extra = _misfits(own, taken, head_names)
    if missing or extra:
        shown = [f"{k} is missing or has another shape" for k in missing[:3]]
        shown += [f"{k} unknown" for k in extra[:3]]
        raise OtherArchitecture(
            f"weights {what} belong to another architecture: {'; '.join(shown)} "
            f"({len(missing)} of {len(own)} missing, {len(extra)} unknown)"
        )
    fits = {k: v for k, v in taken.items() if k in own and v.shape == own[k].shape}
    model.load_state_dict(with_versions(model, fits), strict=False)
    return notes


def with_versions(
    model: nn.Module, state: Mapping[str, torch.Tensor]
) -> OrderedDict[str, torch.Tensor]:
    """The state dict with the versions of the model's layers, which a plain dict lacks and MNASNet
    requires."""
    found = OrderedDict(state)
    found._metadata = model.state_dict()._metadata  # type: ignore[attr-defined]
    return found


def _misfits(
    own: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor], head_names: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Names that are missing or have another shape, and unknown names; those of the head do not count."""
    head = tuple(f"{name}." for name in head_names)
    fits = {k for k, v in found.items() if k in own and v.shape == own[k].shape}
    return (
        [k for k in own if k not in fits and not k.startswith(head)],
        [k for k in found if k not in own and not k.startswith(head)],
    )


def _prefix(state: Iterable[str], own: Mapping[str, torch.Tensor], what: str) -> str:
    """The prefix that the file adds to the names of the network."""
    counts: dict[str, int] = {}
    for name in state:
        parts = name.split(".")
        for at in range(len(parts)):
            if ".".join(parts[at:]) in own:
                prefix = "".join(f"{part}." for part in parts[:at])
                counts[prefix] = counts.get(prefix, 0) + 1
    most = max(counts.values(), default=0)
    if most <= max(
        counts.get("", 0), len(own) // 2
    ):  # otherwise it is another architecture, which has its own message
        return ""
    best = [p for p, count in counts.items() if count == most]
    if len(best) > 1:
        raise UserError(
            f"weights {what} belong to several networks ({', '.join(best)}); save only the one to use"
        )
    return best[0]


def separate(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state dict in the form that safetensors requires: contiguous, and no tensors that share memory (as
    those of a module that is used twice do)."""
    found: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in state.items():
        tensor = tensor.detach().contiguous()
        where = tensor.untyped_storage().data_ptr()
        found[name] = tensor.clone() if where in seen else tensor
        seen.add(where)
    return found


def load_by_order(
    model: nn.Module, state: Mapping[str, torch.Tensor], head_names: Sequence[str], what: str
) -> None:
    """Load a state dict with other names but the same order and shapes."""
    own = list(model.state_dict().items())
    if any(a.shape != b.shape for (_, a), b in zip(own, state.values(), strict=False)):
        raise UserError(f"weights {what} do not have the shapes of this backbone")
    renamed = {k: v for (k, _), v in zip(own, state.values(), strict=False)}
    load_state(model, renamed, head_names, what)


def file_sha256(path: Path) -> str:
    """Hash of a weights file.

    Raises:
        UserError: if it cannot be read.
    """
    # Read in parts: it may be larger than the memory.
    with one_line(f"weights file {path} cannot be read"), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_sha256(paths: Sequence[Path]) -> str:
    """Hash of a single weights file; or, of several files, of their names and contents.

    Raises:
        UserError: if one cannot be read.
    """
    if len(paths) == 1:
        return file_sha256(paths[0])
    hashed = hashlib.sha256()
    for path in paths:
        hashed.update(f"{path.name}\x1f{file_sha256(path)}\x1f".encode())
    return hashed.hexdigest()


def tensors_sha256(state: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of names, types, shapes and values, without a copy of them in memory.

    Recorded in runs whose weights come from a hub. Recorded models (`recorded.content_sha256`) and the groups
    of a trial (`audit.digest`) use different hashes. All are stored in MLflow, model files or checkpoints, so
    unifying them would invalidate existing records.
    """
    hashed = hashlib.sha256()
    for name, tensor in state.items():
        hashed.update(f"{name}\x1f{tensor.dtype}\x1f{tuple(tensor.shape)}\x1f".encode())
        hashed.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return hashed.hexdigest()
