"""torchvision's models and weights, named `torchvision:NAME`, in the same groups as timm's."""

from __future__ import annotations

import difflib
import re
from dataclasses import replace
from typing import Any, final

import torchvision.models as zoo
from torch import nn

from harness.backbones.library import Library, depth_by_order, depth_by_pooling, tensor_names
from harness.core.errors import UserError, one_line
from harness.inputs import Pixels

PREFIX = "torchvision:"
IMAGENET = Pixels(224, "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

STAGES: dict[str, list[tuple[str, int, int]]] = {
    # class name -> (pattern, depth of its first match, depth per unit of its number)
    "ResNet": [(r"(?:conv1|bn1)\.", 0, 0), (r"layer(\d+)\.", 0, 1)],
    "DenseNet": [
        (r"features\.(?:conv0|norm0)\.", 0, 0),
        (r"features\.(?:denseblock|transition)(\d+)\.", 0, 1),
        (r"features\.norm5\.", 4, 0),
    ],
    "VisionTransformer": [
        (r"(?:class_token|conv_proj\.|encoder\.pos_embedding)", 0, 0),
        (r"encoder\.layers\.encoder_layer_(\d+)\.", 1, 1),
    ],
    "ShuffleNetV2": [(r"conv1\.", 0, 0), (r"stage(\d+)\.", -1, 1)],
    "MobileNetV3": [(r"features\.(\d+)\.", 0, 1)],
    "EfficientNet": [(r"features\.(\d+)\.", 0, 1)],
}
"""Names of the stages of each family; modules that match no pattern belong to the last stage."""

MOBILENET_V2 = (0, 1, 2, 2, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 6, 6, 6, 7, 7)
"""Stage of each entry of MobileNetV2's `features`, as in the paper's table 2."""


def _make(name: str, weights: Any) -> nn.Module:
    plain = name.removeprefix(PREFIX)
    unset = weights is None and plain in ("inception_v3", "googlenet")
    extra = (
        {"init_weights": False} if unset else {}
    )  # their own initialisation takes minutes and warns
    model: nn.Module = zoo.get_model(plain, weights=weights, **extra)
    if plain in ("inception_v3", "googlenet"):
        # The auxiliary classifiers would make train() return a tuple.
        model.aux_logits = False  # type: ignore[assignment]
        for auxiliary in ("AuxLogits", "aux1", "aux2"):
            if hasattr(model, auxiliary):
                setattr(model, auxiliary, None)
    model.input = _input(weights, plain)  # type: ignore[assignment]
    # As timm's networks say it: class tokens, and maps with the channels last.
    model.num_prefix_tokens = int(isinstance(model, zoo.VisionTransformer))  # type: ignore[assignment]
    if isinstance(model, zoo.SwinTransformer):
        model.output_fmt = "NHWC"
    return model


def _input(weights: Any, name: str) -> Pixels:
    if weights is None:
        return replace(IMAGENET, resolution=299) if name == "inception_v3" else IMAGENET
    preset = weights.transforms()
    return Pixels(
        preset.crop_size[0], preset.interpolation.value, tuple(preset.mean), tuple(preset.std)
    )


def _by_child(model: nn.Module, names: list[str]) -> dict[str, int]:
    """One stage per top-level module; the convolutions up to the first pooling are the stem."""
    children = [n for n, child in model.named_children() if list(child.parameters())]
    stem = {n for n in children if n.startswith(("Conv2d_1", "Conv2d_2"))}
    order = {n: 0 if n in stem else i for i, n in enumerate(children)}
    return {n: order[n.split(".")[0]] for n in names}


@final
class TorchvisionModels(Library):
    """torchvision's classifiers."""

    def provides(self, name: str) -> bool:
        return name.startswith(PREFIX)

    def check(self, name: str) -> None:
        """Raise UserError, with near matches, if torchvision has no classifier of that name."""
        known = list(zoo.list_models(module=zoo))
        plain = name.removeprefix(PREFIX)
        if plain not in known:
            near = [PREFIX + n for n in difflib.get_close_matches(plain, known, n=3)]
            raise UserError(
                f"unknown backbone {name!r}; "
                + (f"did you mean {', '.join(near)}?" if near else f"known: {', '.join(known)}")
            )

    def create(self, name: str) -> nn.Module:
        return _make(name, None)

    def pretrained(self, name: str) -> nn.Module:
        """The network with torchvision's default ImageNet weights, downloaded on first use."""
        weights = zoo.get_model_weights(name.removeprefix(PREFIX)).DEFAULT
        with one_line(
            f"ImageNet weights of {name} are not on this machine and could not be downloaded",
            "; run once with network access, or use source 'file:PATH' or 'scratch'",
        ):
            return _make(name, weights)

    def reset_head(self, model: nn.Module, num_classes: int) -> None:
        """Replace the classifier with a new one of the same kind."""
        (name,) = self.head_names(model)
        old = model.get_submodule(name)
        parent, _, attribute = name.rpartition(".")
        fresh: nn.Module
        if isinstance(old, nn.Linear):
            fresh = nn.Linear(old.in_features, num_classes, bias=old.bias is not None)
        else:
            assert isinstance(old, nn.Conv2d)
            fresh = nn.Conv2d(old.in_channels, num_classes, 1)
        setattr(model.get_submodule(parent), attribute, fresh)

    def head_names(self, model: nn.Module) -> list[str]:
        """The last linear layer, or the last convolution if there is no linear layer (SqueezeNet)."""
        for kind in (nn.Linear, nn.Conv2d):
            if found := [
                name for name, module in model.named_modules() if isinstance(module, kind)
            ]:
                return found[-1:]
        return []

    def depths(self, model: nn.Module) -> dict[str, int]:
        """Depth of every tensor: one stage of a CNN, or one block of a ViT. In families whose stages are not
        named in this module (AlexNet, GoogLeNet, MNASNet, SqueezeNet, RegNet, MaxVit), each entry of a
        container is one depth."""
        if (stages := depth_by_pooling(model)) is not None:
            return stages
        names, family = tensor_names(model), type(model).__name__
        if family == "MobileNetV2":
            return {n: MOBILENET_V2[int(n.split(".")[1])] if "features" in n else 7 for n in names}
        if family in ("ConvNeXt", "SwinTransformer"):
            # A downsampling layer belongs to the stage that it ends; in timm, to the one that it begins.
            pattern = re.compile(r"features\.(\d+)\.")
            return {n: (int(m[1]) + 1) // 2 if (m := pattern.match(n)) else 4 for n in names}
        if family == "Inception3":
            return _by_child(model, names)
        if family not in STAGES:
            return depth_by_order(model)
        found = {}
        for name in names:
            for pattern_text, first, step in STAGES[family]:
                if match := re.match(pattern_text, name):
                    found[name] = first + step * (int(match[1]) if match.groups() else 0)
                    break
        last = max(found.values())
        if family in ("EfficientNet", "MobileNetV3"):
            # The final 1 x 1 convolution belongs to the last stage, as in timm.
            found = {n: min(d, last - 1) for n, d in found.items()}
            last -= 1
        return {n: found.get(n, last) for n in names}

    def set_resolution(self, model: nn.Module, size: int) -> None:
        """Refuse another size for ViTs, because torchvision fixes their input size when they are created."""
        if type(model).__name__ == "VisionTransformer" and size != model.image_size:
            raise UserError(
                f"torchvision's ViT takes only images of {model.image_size} px, not {size}: resolution can "
                f"be {model.image_size} (timm's vit_* take other sizes)"
            )

    def no_weight_decay(self, model: nn.Module) -> frozenset[str]:
        """Position embeddings and tokens."""
        return frozenset(
            n for n in tensor_names(model) if n.endswith(("class_token", "pos_embedding"))
        )
