"""Read sound files: WAV, FLAC, OGG, MP3 and the other formats of libsndfile, with any number of bits and
channels."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness.core.errors import UserError, one_line, optional_library
from harness.data.images import shown
from harness.inputs.waveform import Waveform

SUFFIXES = frozenset(
    ".wav .wave .flac .ogg .oga .opus .mp3 .aif .aiff .aifc .au .snd .caf .w64 .rf64".split()
)
LONGEST = 3600.0
"""Seconds; a longer recording is probably several examples."""
LOUDEST = 2.0**40
"""Samples are at most 1, or 2**31 in files of floats that hold whole numbers. Greater ones are not sounds,
and their energy may exceed the range of floats."""


@dataclass(frozen=True)
class Header:
    """Length in seconds, samples per second, and number of channels of a sound file."""

    seconds: float
    rate: int
    channels: int


def is_sound(path: Path) -> bool:
    """Whether a file is a sound, by its suffix."""
    return path.suffix.lower() in SUFFIXES


def read_header(path: Path) -> Header | None:
    """The header of a sound file; None if it cannot be read."""
    try:
        found = _soundfile().info(str(path))
    except UserError:
        raise
    except Exception:  # OSError, and soundfile's own kinds
        return None
    return Header(found.frames / found.samplerate, found.samplerate, found.channels)


def open_sound(path: Path) -> Waveform:
    """A sound file as one channel, the mean of all.

    Raises:
        UserError: naming the file, if it cannot be decoded or has no samples.
    """
    return _opened(path, shown(path))


def decode_sound(content: bytes, name: str) -> Waveform:
    """The bytes of a sound file as one channel; see `open_sound`.

    Args:
        content: bytes of the file.
        name: name of the sound for messages.
    """
    return _opened(io.BytesIO(content), name)


def _opened(source: Path | io.BytesIO, name: str) -> Waveform:
    soundfile = _soundfile()
    with one_line(f"sound {name} cannot be read"), soundfile.SoundFile(source) as file:
        if file.frames > LONGEST * file.samplerate:
            raise UserError(f"sound {name} is longer than {LONGEST:.0f} s; cut it into examples")
        # With the number of frames, because some codecs (GSM) can only be read from beginning to end.
        samples = file.read(file.frames, dtype="float64", always_2d=True)
        rate = file.samplerate
    if not len(samples):
        raise UserError(f"sound {name} is empty: it has no samples")
    if not np.isfinite(samples).all():
        raise UserError(f"sound {name} contains NaN or infinity")
    if (peak := float(np.abs(samples).max())) > LOUDEST:
        raise UserError(
            f"sound {name} has samples of up to {peak:.0e}, where full scale is 1: its bytes are probably "
            "not the floats that its header says; write it again"
        )
    return Waveform(samples.mean(1), rate)


def _soundfile() -> Any:
    return optional_library(
        "soundfile", "targets of sound files need the extra: pip install -e '.[sound]'"
    )
