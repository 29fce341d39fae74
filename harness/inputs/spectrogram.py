"""Sounds as pictures, for networks that take images."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, final

import numpy as np
import torch

from harness.core.versions import versions
from harness.inputs.augment import Augment
from harness.inputs.base import Input, Prepare
from harness.inputs.mel import Mel
from harness.inputs.pixels import Pixels
from harness.inputs.sound_augment import AUGMENTATIONS, sound_augmentation
from harness.inputs.waveform import CORRUPTIONS, Waveform

RANGE = 80.0
"""dB from black to white."""
SILENCE = 1e-10
"""Least power of a band."""
QUIET = -20.0
"""Least level in dB that is white, so that recordings without a sound stay dark; a sine of full scale has
about 50 dB."""


@final
@dataclass(frozen=True)
class Spectrogram(Input):
    """Log-mel spectrograms as square grey pictures, with time from left to right and low frequencies below.

    The loudest band of each sound is white, so that its volume makes no difference.

    Attributes:
        pixels: the pictures that the network takes.
        mel: settings of the spectrogram, before it is resized.
        seconds: length of every sound: a longer one is cropped to its centre, a shorter one repeated.
    """

    pixels: Pixels
    mel: Mel
    seconds: float

    augmentations: ClassVar[tuple[str, ...]] = AUGMENTATIONS
    corruptions: ClassVar[tuple[str, ...]] = CORRUPTIONS

    @property
    def shape(self) -> tuple[int, ...]:
        return self.pixels.shape

    def __str__(self) -> str:
        return f"spectrograms of {self.seconds:g} s in {self.pixels}"

    def key(self) -> dict[str, str]:
        settings = (self.mel, self.seconds, self.corruption)
        return {**self.pixels.key(), "sound": repr(settings), **versions("numpy", "scipy")}

    def row(self, example: Any) -> torch.Tensor:
        """(3, s, s) uint8 of a Waveform."""
        assert isinstance(example, Waveform)
        sound = example.presented(self.mel.rate, self.seconds, self.corruption)
        level = 10 * np.log10(np.maximum(self.mel.power(sound.samples), SILENCE))
        grey = np.clip(1 + (level - max(level.max(), QUIET)) / RANGE, 0, 1)[::-1]
        picture = torch.from_numpy(np.round(255 * grey).astype(np.uint8))
        return self.pixels.stretched(picture[None]).expand(3, -1, -1)

    def preparation(self, device: torch.device, layout: torch.memory_format) -> Prepare:
        return self.pixels.preparation(device, layout)

    def random(self, count: int, generator: torch.Generator) -> torch.Tensor:
        return self.pixels.random(count, generator)

    def at(self, resolution: int) -> Spectrogram:
        return replace(self, pixels=self.pixels.at(resolution))

    def augmentation(self, name: str, num_classes: int) -> Augment:
        return sound_augmentation(name, 3, 2, num_classes)

    def thumbnails(self, rows: torch.Tensor) -> torch.Tensor:
        return self.pixels.thumbnails(rows)

    def pictures(self, rows: torch.Tensor) -> torch.Tensor:
        return rows

    def in_words(self) -> str:
        mel, side = self.mel, self.pixels.resolution
        length = round(self.seconds * mel.rate)
        return f"""\
A sound is mixed to one channel, resampled to {mel.rate} Hz, and cropped to its centre or repeated so that
it has {length} samples ({self.seconds:g} s). Its log-mel spectrogram as a grey picture, from {RANGE:g} dB
below the loudest band (black) to that band (white), is

```python
import librosa, numpy
power = librosa.feature.melspectrogram(
    y=sound, sr={mel.rate}, n_fft={mel.window}, hop_length={mel.hop}, n_mels={mel.bands}
)
level = librosa.power_to_db(power, top_db=None)
grey = numpy.clip(1 + (level - max(level.max(), {QUIET:g})) / {RANGE:g}, 0, 1)[::-1]
```

The picture, in 8 bits, is resized to {side} x {side} px ({self.pixels.interpolation}, both sides), repeated
in three channels, {self.pixels.normalisation()}."""

    def describe(self) -> dict[str, Any]:
        return {
            "kind": "spectrogram",
            **self.pixels.describe(),
            "mel": asdict(self.mel),
            "seconds": self.seconds,
        }
