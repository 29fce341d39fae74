"""Mel spectrograms, with the definitions of librosa: Hann windows centred on their frames, zeros beyond the
ends, and triangular filters of equal area on Slaney's mel scale."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

LINEAR = 200 / 3
"""Hz per mel below 1000 Hz; above, 27 mels are a factor of 6.4."""
EDGE = 1000.0
STEP = np.log(6.4) / 27
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Mel:
    """Settings of a mel spectrogram.

    Attributes:
        rate: samples per second.
        window, hop: length of a frame, and from one frame to the next, in samples.
        bands: number of bands, from 0 Hz to half the rate.
    """

    rate: int
    window: int
    hop: int
    bands: int

    def frames(self, samples: int) -> int:
        """Number of frames of a sound of so many samples."""
        return 1 + samples // self.hop

    def power(self, samples: Array) -> Array:
        """(bands, frames) power of a sound at that rate."""
        padded = np.pad(samples, self.window // 2)
        pieces = np.lib.stride_tricks.sliding_window_view(padded, self.window)[:: self.hop]
        hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(self.window) / self.window)
        spectrum = np.abs(np.fft.rfft(pieces * hann, axis=1)) ** 2
        made: Array = filters(self) @ spectrum.T
        return made


@lru_cache(maxsize=8)
def filters(mel: Mel) -> Array:
    """(bands, window // 2 + 1) weights of the frequencies in each band."""
    frequencies = np.fft.rfftfreq(mel.window, 1 / mel.rate)
    edges = _hertz(np.linspace(0, _mels(mel.rate / 2), mel.bands + 2))
    low, centre, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising, falling = (frequencies - low) / (centre - low), (high - frequencies) / (high - centre)
    weights: Array = np.maximum(0, np.minimum(rising, falling)) * 2 / (high - low)
    return weights


def _mels(hertz: float) -> float:
    return float(hertz / LINEAR if hertz < EDGE else EDGE / LINEAR + np.log(hertz / EDGE) / STEP)


def _hertz(mels: Array) -> Array:
    above: Array = EDGE * np.exp(STEP * (mels - EDGE / LINEAR))
    return np.where(mels < EDGE / LINEAR, mels * LINEAR, above)
