"""Kinds of network input: the form in which an example is cached, varied, and passed to a network.

    from harness.inputs import Pixels
    load_target("digits").read(indices, Pixels(resolution=32))      # (n, 3, 32, 32) uint8

A backbone declares the input that it takes, and a target turns its examples into rows of it. Training,
caching of frozen layers, the memory forecast and the cost of inference work with any `Input`. To add a kind,
implement its methods; besides this package, only `harness.data` (which reads examples) and
`harness.backbones` (which builds networks) have to know it.
"""

from collections.abc import Mapping
from typing import Any

from harness.inputs.augment import Augment
from harness.inputs.base import Input
from harness.inputs.features import Features
from harness.inputs.frames import Frames
from harness.inputs.mel import Mel
from harness.inputs.pixels import Pixels
from harness.inputs.spectrogram import Spectrogram
from harness.inputs.tokenizer import TokenizerFile
from harness.inputs.tokens import Tokens

__all__ = [
    "Augment",
    "Features",
    "Frames",
    "Input",
    "Pixels",
    "Spectrogram",
    "TokenizerFile",
    "Tokens",
    "described",
]


def described(settings: Mapping[str, Any], files: Mapping[str, str]) -> Input:
    """The input that `Input.describe` has described.

    Args:
        settings: the description.
        files: `Input.files`.

    Raises:
        KeyError, TypeError: if the settings are not complete.
    """
    rest: dict[str, Any] = dict(settings)
    kind, mel, seconds = (rest.pop(name, None) for name in ("kind", "mel", "seconds"))
    if kind == "tokens":
        return Tokens(TokenizerFile(files["tokenizer.json"]), **rest)
    if kind == "frames":
        return Frames(Mel(**mel), float(rest["loudness"]), float(seconds))
    if kind == "features":
        return Features(files["preprocessor_config.json"], float(seconds))
    rest |= {name: tuple(rest[name]) for name in ("mean", "std") if name in rest}
    pixels = Pixels(**rest)
    if kind == "spectrogram":
        return Spectrogram(pixels, Mel(**mel), float(seconds))
    return pixels
