"""What the examples of a target are: how their files are recognised, read, and presented to a network."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, final

import numpy as np

from harness.core.errors import UserError
from harness.core.versions import versions
from harness.data.images import DECODING, decode_image, image_suffixes, is_image, open_image
from harness.data.sounds import SUFFIXES, decode_sound, is_sound, open_sound, read_header
from harness.inputs import Frames, Input, Pixels, Spectrogram
from harness.inputs.mel import Mel

RATE = 16_000
"""Samples per second to which sounds are resampled: enough for speech."""
WINDOW, HOP = 0.064, 0.010
"""Seconds of a frame, and from one frame to the next."""
BANDS = 128
SHARE = 0.95
"""Share of the sounds that are not cropped, if their length is not given."""
LENGTHS = (0.5, 10.0)
"""Shortest and longest length in seconds, if it is not given."""


@dataclass(frozen=True)
class Medium(ABC):
    """What the examples of a target are.

    Attributes:
        noun: what an example is called in messages.
        task: the task of classifying them, as the Hugging Face Hub calls it.
        options: options of a target that are for this medium only.
    """

    noun: ClassVar[str]
    task: ClassVar[str]
    options: ClassVar[tuple[str, ...]] = ()

    @staticmethod
    @abstractmethod
    def recognises(path: Path) -> bool:
        """Whether a file is an example."""

    @classmethod
    @abstractmethod
    def of(
        cls, paths: Sequence[Path], options: Mapping[str, str], what: str
    ) -> tuple[Medium, list[str]]:
        """The medium of these files, and notes on them.

        Args:
            paths: the files; empty if the examples are not files.
            options: options of the target.
            what: the target, for messages.

        Raises:
            UserError: if an option has no valid value.
        """

    @abstractmethod
    def open(self, path: Path) -> Any:
        """The decoded example in a file, as `Input.row` takes it."""

    @abstractmethod
    def decode(self, content: bytes, name: str, suffix: str) -> Any:
        """The decoded example in the bytes of a file."""

    @abstractmethod
    def form(self, wanted: Input) -> Input:
        """The form in which examples are presented to a network.

        Args:
            wanted: what the network takes.

        Raises:
            UserError: if the network cannot take such examples.
        """

    @abstractmethod
    def key(self) -> dict[str, str]:
        """Versions that determine what a file is decoded to."""


@final
@dataclass(frozen=True)
class Images(Medium):
    """Images, in any format that Pillow reads."""

    noun: ClassVar[str] = "image"
    task: ClassVar[str] = "image-classification"

    @staticmethod
    def recognises(path: Path) -> bool:
        return is_image(path)

    @classmethod
    def of(
        cls, paths: Sequence[Path], options: Mapping[str, str], what: str
    ) -> tuple[Medium, list[str]]:
        if wrong := [name for name in Sounds.options if name in options]:
            raise UserError(f"{what}: option {wrong[0]!r} is for sounds, and these are images")
        return cls(), []

    def open(self, path: Path) -> Any:
        return open_image(path)

    def decode(self, content: bytes, name: str, suffix: str) -> Any:
        return decode_image(content, name, suffix)

    def form(self, wanted: Input) -> Input:
        if not isinstance(wanted, Pixels):
            raise UserError(f"the network takes {wanted} and cannot be used for images")
        return wanted

    def key(self) -> dict[str, str]:
        return {"decoding": DECODING, **versions("pillow")}


@final
@dataclass(frozen=True)
class Sounds(Medium):
    """Sounds, in any format that libsndfile reads.

    Attributes:
        seconds: length of every sound; a longer one is cropped to its centre, a shorter one repeated.
        rate: samples per second to which sounds are resampled for networks that take images.
    """

    seconds: float
    rate: int = RATE

    noun: ClassVar[str] = "sound"
    task: ClassVar[str] = "audio-classification"
    options: ClassVar[tuple[str, ...]] = ("seconds", "rate")

    @staticmethod
    def recognises(path: Path) -> bool:
        return is_sound(path)

    @classmethod
    def of(
        cls, paths: Sequence[Path], options: Mapping[str, str], what: str
    ) -> tuple[Medium, list[str]]:
        rate = round(_number(options.get("rate", str(RATE)), "rate", (2000, 384_000), what))
        if "seconds" in options:
            return cls(_number(options["seconds"], "seconds", (0.05, 600), what), rate), []
        if not paths:
            raise UserError(f"{what}: give the length of the sounds, e.g. [seconds=2]")
        with ThreadPoolExecutor(8) as pool:
            found = [header for header in pool.map(read_header, paths) if header is not None]
        if not found:
            return cls(LENGTHS[0], rate), []  # reading them names the first that is broken
        lengths = np.array([header.seconds for header in found])
        usual = math.ceil(10 * float(np.quantile(lengths, SHARE, method="lower")) - 1e-9) / 10
        seconds = min(max(usual, LENGTHS[0]), LENGTHS[1])
        notes = [
            f"Sounds of {lengths.min():.2f} to {lengths.max():.2f} s (median {np.median(lengths):.2f}) are "
            f"taken as {seconds:g} s: longer ones are cropped to their centre, shorter ones repeated; "
            "[seconds=...] changes that."
        ]
        rates = Counter(header.rate for header in found)
        shown = ", ".join(f"{hertz} Hz ({count})" for hertz, count in sorted(rates.items()))
        if len(rates) > 1:
            notes.append(
                f"Sample rates differ: {shown}. If they differ between the classes, a network can recognise "
                "the recorder instead of the sound."
            )
        if several := sum(header.channels > 1 for header in found):
            notes.append(f"Sounds of several channels ({several}) are mixed to one.")
        return cls(seconds, rate), notes

    def open(self, path: Path) -> Any:
        return open_sound(path)

    def decode(self, content: bytes, name: str, suffix: str) -> Any:
        return decode_sound(content, name)

    def form(self, wanted: Input) -> Input:
        if isinstance(wanted, Frames):
            return replace(wanted, seconds=self.seconds)
        if not isinstance(wanted, Pixels):
            raise UserError(f"the network takes {wanted} and cannot be used for sounds")
        window, hop = (2 * round(seconds * self.rate / 2) for seconds in (WINDOW, HOP))
        return Spectrogram(wanted, Mel(self.rate, window, hop, BANDS), self.seconds)

    def key(self) -> dict[str, str]:
        return versions("soundfile")


IMAGES = Images()
MEDIA: tuple[type[Medium], ...] = (Images, Sounds)
"""In the order in which a folder is searched for them."""


def suffixes() -> frozenset[str]:
    """The suffixes of all files that are read."""
    return SUFFIXES | image_suffixes().keys()


def medium_of(form: Input) -> Medium:
    """The medium whose examples have this form."""
    if isinstance(form, Spectrogram | Frames):
        return Sounds(form.seconds, form.mel.rate)
    return IMAGES


def kind_of(paths: Sequence[Path]) -> type[Medium]:
    """The medium of these files: sounds if all of them are, else images."""
    return Sounds if paths and all(map(is_sound, paths)) else Images


def _number(text: str, name: str, limits: tuple[float, float], what: str) -> float:
    low, high = limits
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not low <= number <= high:
        raise UserError(f"{what}: {name} must be a number from {low:g} to {high:g}, got {text!r}")
    return number
