"""What the examples of a target are: how their files are recognised, read, and presented to a network."""

from __future__ import annotations

import io
import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar, final

import numpy as np
import torch

from harness.core.errors import UserError
from harness.core.versions import versions
from harness.data.encoding import FALLBACK
from harness.data.images import (
    DECODING,
    THUMBNAIL,
    decode_image,
    image_suffixes,
    is_image,
    shown,
)
from harness.data.sounds import SUFFIXES, decode_sound, is_sound, read_header
from harness.data.texts import Size, decode_text, is_text, read_size, size_of
from harness.inputs import Features, Frames, Input, Pixels, Spectrogram, Tokens
from harness.inputs.mel import Mel
from harness.inputs.tokenizer import byte_tokenizer

T = TypeVar("T")
RATE = 16_000
"""Samples per second to which sounds are resampled: enough for speech."""
WINDOW, HOP = 0.064, 0.010
"""Seconds of a frame, and from one frame to the next."""
BANDS = 128
SHARE = 0.95
"""Share of the sounds or texts that are not cropped, if their length is not given."""
LENGTHS = (0.5, 10.0)
"""Shortest and longest length in seconds, if it is not given."""
BYTES = 4
"""Bytes of a text per token, roughly: the tokenizer is not known when a target is read."""
STEP, FEWEST, MOST = 8, 8, 256
"""The number of tokens is a multiple of the first, between the others, if it is not given."""
PREVIEW = 1024
"""Bytes of a text that a preview reads."""


@dataclass(frozen=True)
class Medium(ABC):
    """What the examples of a target are.

    Attributes:
        noun: what an example is called in messages.
        task: the task of classifying them, as the Hugging Face Hub calls it.
        options: options of a target that are for this medium only.
        alike: description of what correlates between two near duplicates.
    """

    noun: ClassVar[str]
    task: ClassVar[str]
    options: ClassVar[tuple[str, ...]] = ()
    alike: ClassVar[str] = "small grey copies"

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

    def open(self, path: Path) -> Any:
        """The decoded example in a file, as `Input.row` takes it."""
        return self.decode(path, shown(path), path.suffix)

    def problem(self, path: Path) -> str:
        """Why a file cannot be used, found with as little work as possible; "" if nothing is wrong."""
        try:
            self.open(path)
        except UserError as error:
            return str(error)
        return ""

    @abstractmethod
    def decode(self, source: Path | io.BytesIO, name: str, suffix: str) -> Any:
        """The decoded example in a file, or in the bytes of one.

        Raises:
            UserError: by this name, if it cannot be decoded.
        """

    @abstractmethod
    def form(self, wanted: Input) -> Input:
        """The form in which examples are presented to a network.

        Args:
            wanted: what the network takes.

        Raises:
            UserError: if the network cannot take such examples.
        """

    def remark(self, form: Input, rows: Iterable[torch.Tensor], files: Sequence[Path]) -> str:
        """What is left out of the examples of a data set, for the user; "" if nothing is.

        Args:
            form: the form of the examples, from `form`.
            rows: batches of them in that form.
            files: the files of all examples; empty if they are not files.
        """
        return form.remark(rows)

    @abstractmethod
    def preview(self) -> Input:
        """The form of examples where there is no network: to show them, and to find duplicates."""

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
        return not is_text(path) and is_image(path)

    @classmethod
    def of(
        cls, paths: Sequence[Path], options: Mapping[str, str], what: str
    ) -> tuple[Medium, list[str]]:
        _refuse_others(cls, options, what)
        return cls(), []

    def decode(self, source: Path | io.BytesIO, name: str, suffix: str) -> Any:
        return decode_image(source, name, suffix)

    def form(self, wanted: Input) -> Input:
        if not isinstance(wanted, Pixels):
            raise UserError(f"the network takes {wanted} and cannot be used for images")
        return wanted

    def preview(self) -> Input:
        return Pixels(THUMBNAIL)

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
        _refuse_others(cls, options, what)
        rate = round(_number(options.get("rate", str(RATE)), "rate", (2000, 384_000), what))
        if "seconds" in options:
            return cls(_number(options["seconds"], "seconds", (0.05, 600), what), rate), []
        if not paths:
            raise UserError(f"{what}: give the length of the sounds, e.g. [seconds=2]")
        found = _of_each(read_header, paths)
        if not found:
            return cls(LENGTHS[0], rate), []  # reading them names the first that is broken
        lengths = np.array([header.seconds for header in found])
        usual = math.ceil(10 * float(np.quantile(lengths, SHARE, method="lower")) - 1e-9) / 10
        seconds = min(max(usual, LENGTHS[0]), LENGTHS[1])
        notes = [
            f"Sounds of {lengths.min():.2f} to {lengths.max():.2f} s (median {np.median(lengths):.2f}) are "
            f"set to {seconds:g} s: longer ones are cropped to their centre, shorter ones repeated; "
            "[seconds=...] changes that."
        ]
        rates = Counter(header.rate for header in found)
        shown = ", ".join(f"{hertz} Hz ({count})" for hertz, count in sorted(rates.items()))
        if len(rates) > 1:
            notes.append(
                f"Sample rates differ: {shown}. If they differ between the classes, a network may learn to "
                "recognise the recorder instead of the sound."
            )
        if several := sum(header.channels > 1 for header in found):
            notes.append(f"Sounds of several channels ({several}) are mixed to one.")
        return cls(seconds, rate), notes

    def problem(self, path: Path) -> str:
        header = read_header(path)
        if header is None:
            return "not readable as a sound"
        return "" if header.seconds else "no samples"

    def decode(self, source: Path | io.BytesIO, name: str, suffix: str) -> Any:
        return decode_sound(source, name)

    def form(self, wanted: Input) -> Input:
        if isinstance(wanted, Frames):
            return replace(wanted, seconds=self.seconds)
        if isinstance(wanted, Features):
            return replace(wanted, seconds=min(self.seconds, wanted.longest))
        if not isinstance(wanted, Pixels):
            raise UserError(f"the network takes {wanted} and cannot be used for sounds")
        window, hop = (2 * round(seconds * self.rate / 2) for seconds in (WINDOW, HOP))
        return Spectrogram(wanted, Mel(self.rate, window, hop, BANDS), self.seconds)

    def remark(self, form: Input, rows: Iterable[torch.Tensor], files: Sequence[Path]) -> str:
        if not isinstance(form, Features) or form.seconds >= self.seconds:
            return ""
        limit = f"longer than {form.seconds:g} s, the most that the network takes"
        if not files:
            return f"sounds {limit}, are cropped to their centre"
        longer = sum(header.seconds > form.seconds for header in _of_each(read_header, files))
        if not longer:
            return ""
        return f"{longer} of {len(files)} sounds are {limit}, and are cropped to their centre"

    def preview(self) -> Input:
        return self.form(Pixels(THUMBNAIL))

    def key(self) -> dict[str, str]:
        return versions("soundfile")


@final
@dataclass(frozen=True)
class Texts(Medium):
    """Texts, in files of any usual encoding or in a column of a table.

    Attributes:
        tokens: largest number of tokens of a text; a network may take fewer. The end of a longer text is left
            out.
    """

    tokens: int

    noun: ClassVar[str] = "text"
    task: ClassVar[str] = "text-classification"
    options: ClassVar[tuple[str, ...]] = ("tokens",)
    alike: ClassVar[str] = "counts of words"

    @staticmethod
    def recognises(path: Path) -> bool:
        return is_text(path)

    @classmethod
    def of(
        cls, paths: Sequence[Path], options: Mapping[str, str], what: str
    ) -> tuple[Medium, list[str]]:
        return cls._sized(_of_each(read_size, paths), options, what)

    @classmethod
    def of_texts(
        cls, texts: Sequence[str], options: Mapping[str, str], what: str
    ) -> tuple[Medium, list[str]]:
        """The same for texts that are in memory."""
        return cls._sized([Size(size_of(text), False) for text in texts], options, what)

    @classmethod
    def _sized(
        cls, found: Sequence[Size], options: Mapping[str, str], what: str
    ) -> tuple[Medium, list[str]]:
        _refuse_others(cls, options, what)
        notes = []
        if guessed := sum(size.guessed for size in found):
            notes.append(f"Texts that are not in UTF-8 ({guessed}) were read as {FALLBACK}.")
        if "tokens" in options:
            return cls(round(_number(options["tokens"], "tokens", (FEWEST, 100_000), what))), notes
        if not found:
            return cls(FEWEST), notes  # reading them names the first that is broken
        lengths = np.ceil(np.array([size.bytes for size in found]) / BYTES) + 2
        usual = STEP * math.ceil(float(np.quantile(lengths, SHARE, method="lower")) / STEP)
        tokens = min(max(usual, FEWEST), MOST)
        notes.append(
            f"Texts of {lengths.min():.0f} to {lengths.max():.0f} tokens (median {np.median(lengths):.0f}; "
            f"estimated at {BYTES} bytes per token) are cut to at most {tokens} tokens: about "
            f"{(lengths > tokens).sum()} of {len(lengths)} are truncated; [tokens=...] changes that."
        )
        return cls(tokens), notes

    def decode(self, source: Path | io.BytesIO, name: str, suffix: str) -> Any:
        return decode_text(source, name)

    def form(self, wanted: Input) -> Input:
        if not isinstance(wanted, Tokens):
            raise UserError(f"the network takes {wanted} and cannot be used for texts")
        return replace(wanted, length=min(self.tokens, wanted.longest))

    def preview(self) -> Input:
        return Tokens(byte_tokenizer(), PREVIEW, PREVIEW)

    def key(self) -> dict[str, str]:
        return {}


IMAGES = Images()
MEDIA: tuple[type[Medium], ...] = (Images, Sounds, Texts)
"""In the order in which a folder is searched for them: files beside images may describe them."""


def suffixes() -> frozenset[str]:
    """The suffixes of all files that are read."""
    return SUFFIXES | image_suffixes().keys()


def medium_of(form: Input) -> Medium:
    """The medium whose examples have this form."""
    if isinstance(form, Spectrogram | Frames):
        return Sounds(form.seconds, form.mel.rate)
    if isinstance(form, Features):
        return Sounds(form.seconds, form.rate)
    return Texts(form.length) if isinstance(form, Tokens) else IMAGES


def kind_of(paths: Sequence[Path], what: str) -> type[Medium]:
    """The medium of these files; images unless their suffixes are of another one.

    Raises:
        UserError: if they are of several.
    """
    found: dict[type[Medium], Path] = {}
    for path in paths:
        found.setdefault(next((m for m in (Sounds, Texts) if m.recognises(path)), Images), path)
    if len(found) > 1:
        shown = " and ".join(f"{kind.noun}s (such as {path.name})" for kind, path in found.items())
        raise UserError(f"{what}: the files are {shown}; a target has examples of one kind")
    return next(iter(found), Images)


def _refuse_others(kind: type[Medium], options: Mapping[str, str], what: str) -> None:
    """Refuse an option that is for another medium."""
    for other in MEDIA:
        if other is not kind and (wrong := [name for name in other.options if name in options]):
            raise UserError(
                f"{what}: option {wrong[0]!r} is for {other.noun}s, and these are {kind.noun}s"
            )


def _of_each(read: Callable[[Path], T | None], paths: Sequence[Path]) -> list[T]:
    """What `read` finds in each file; files in which it finds nothing are left out."""
    with ThreadPoolExecutor(8) as pool:
        return [found for found in pool.map(read, paths) if found is not None]


def _number(text: str, name: str, limits: tuple[float, float], what: str) -> float:
    low, high = limits
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not low <= number <= high:
        raise UserError(f"{what}: {name} must be a number from {low:g} to {high:g}, got {text!r}")
    return number
