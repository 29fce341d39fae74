"""Read sound files: WAV, FLAC, OGG, MP3 and the other formats of libsndfile, with any number of bits and
channels."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness.core.errors import UserError, one_line, optional_library
from harness.inputs.waveform import Waveform

SUFFIXES = frozenset(
    ".wav .wave .flac .ogg .oga .opus .mp3 .aif .aiff .aifc .au .snd .caf .w64 .rf64".split()
)
LONGEST = 3600.0
"""Seconds; a longer recording is probably several examples."""
LOUDEST = 2.0**40
"""Samples are at most 1, or 2**31 in files of floats that hold whole numbers. Greater ones are not sounds,
and their energy may exceed the range of floats."""

STATED = r"(?:data|SSND|Data Size|riff|Riff size) *: (\d+) \(should be (\d+)\)"
"""Bytes that the header states, and bytes that there are, in libsndfile's log on WAV, AIFF, AU, CAF, W64 and
RF64."""
UNKNOWN = 2**31 - 2**16
"""Programs that write WAV into a pipe state at least so many bytes, because they do not know the length."""
SLACK = 8
"""Bytes: some programs count a header or a byte of padding as data."""
LENGTH_FRAME = re.compile(rb"\xff[\xe0-\xff].{11,34}(?:Xing|Info)", re.DOTALL)
"""The frame of an MP3 file that states how many there are."""
LOST = 4 * 1152
"""Samples by which an MP3 file may be shorter than stated: encoders count frames differently."""


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


def decode_sound(source: Path | io.BytesIO, name: str) -> Waveform:
    """A sound file, or the bytes of one, as one channel, the mean of all.

    Raises:
        UserError: by this name, if it cannot be decoded or has no samples.
    """
    soundfile = _soundfile()
    with one_line(f"sound {name} cannot be read"), soundfile.SoundFile(source) as file:
        if file.frames > LONGEST * file.samplerate:
            raise UserError(f"sound {name} is longer than {LONGEST:.0f} s; cut it into examples")
        # With the number of frames, because some codecs (GSM) can only be read from beginning to end.
        samples = file.read(file.frames, dtype="float64", always_2d=True)
        rate, missing = file.samplerate, file.frames - len(samples)
        if _is_truncated(file, missing, source):
            raise UserError(f"sound {name} is truncated: copy it again, or remove it")
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


def _is_truncated(file: Any, missing: int, source: Path | io.BytesIO) -> bool:
    """Whether the file ends before its header, or its last page, says. libsndfile reads it as far as it goes.

    Args:
        file: the opened file.
        missing: samples that could not be read.
        source: its path or content.
    """
    if file.format not in ("OGG", "MP3"):
        found = re.findall(STATED, file.extra_info)
        return any(int(real) + SLACK < int(stated) < UNKNOWN for stated, real in found)
    content = source.getvalue() if isinstance(source, io.BytesIO) else source.read_bytes()
    if file.format == "MP3":  # without the frame that states the length, libsndfile estimates it
        return missing > LOST and re.search(LENGTH_FRAME, content) is not None
    page = content[content.rfind(b"OggS") :]
    # A header of 27 bytes, of which the last is the number of lengths; the lengths; as many bytes.
    return len(page) < 27 or len(page) < 27 + page[26] + sum(page[27 : 27 + page[26]])


def _soundfile() -> Any:
    return optional_library(
        "soundfile", "targets of sound files need the extra: pip install -e '.[sound]'"
    )
