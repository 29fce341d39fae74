"""Sounds as samples over time: resampling, a fixed length, and corruptions."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness.core.spec import SOUND_SHIFTS, derive_seed

Samples = NDArray[np.float64]
BAND = (300.0, 3400.0)
"""Hz that a telephone transmits."""
SNR = {"snr20": 20.0, "snr10": 10.0, "snr0": 0.0}
"""Corruption -> signal-to-noise ratio in dB."""
CORRUPTIONS = tuple(name for name in SOUND_SHIFTS if name != "label_shift")


@dataclass(frozen=True)
class Waveform:
    """One sound.

    Attributes:
        samples: (n,) values of one channel in [-1, 1], n at least 1.
        rate: samples per second.
    """

    samples: Samples
    rate: int

    def resampled(self, rate: int) -> Waveform:
        """The sound at another rate; frequencies above half of it are removed."""
        if rate == self.rate:
            return self
        from scipy.signal import resample_poly  # slow to import, and images need none of it

        common = math.gcd(rate, self.rate)
        made: Samples = resample_poly(self.samples, rate // common, self.rate // common)
        return Waveform(made, rate)

    def fitted(self, length: int) -> Waveform:
        """The sound with `length` samples: a longer one is cropped to its centre, a shorter one repeated."""
        count = len(self.samples)
        if count < length:
            return Waveform(np.resize(self.samples, length), self.rate)
        start = (count - length) // 2
        return Waveform(self.samples[start : start + length], self.rate)

    def presented(self, rate: int, seconds: float, corruption: str = "") -> Waveform:
        """The sound at that rate and of that length, perhaps corrupted."""
        sound = self.resampled(rate)
        if corruption:
            sound = sound.corrupted(corruption)
        return sound.fitted(round(seconds * rate))

    def amplified(self, loudness: float) -> Waveform:
        """The sound with a root mean square of at least that many dB of full scale; silence stays silent."""
        least, power = 10 ** (loudness / 10), float(np.mean(self.samples**2))
        gain = math.sqrt(least / power) if 0 < power < least else 1.0
        return Waveform(gain * self.samples, self.rate)

    def corrupted(self, name: str) -> Waveform:
        """The sound under one corruption; the result is the same in every trial.

        Args:
            name: "snr20", "snr10" or "snr0" (white noise at a signal-to-noise ratio of that many dB), or
                "band_limit" (300 to 3400 Hz, as of a telephone).
        """
        if name == "band_limit":
            from scipy.signal import butter, sosfiltfilt

            high = min(BAND[1], 0.45 * self.rate)
            band = butter(4, (BAND[0], high), "bandpass", fs=self.rate, output="sos")
            padding = min(3 * 2 * len(band), len(self.samples) - 1)
            return Waveform(sosfiltfilt(band, self.samples, padlen=padding), self.rate)
        # Seeded by the sound itself, so that the noise does not depend on what else is in the test set.
        content = hashlib.sha256(self.samples.tobytes()).hexdigest()
        draw = np.random.default_rng(derive_seed("shift", name, content))
        noise = draw.standard_normal(len(self.samples))
        power = np.mean(self.samples**2) / np.mean(noise**2) / 10 ** (SNR[name] / 10)
        return Waveform(self.samples + math.sqrt(power) * noise, self.rate)
