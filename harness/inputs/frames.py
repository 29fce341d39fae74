"""Sounds as sequences of frames, for recurrent networks."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar, final

import torch
from torch.nn import functional as F

from harness.core.versions import versions
from harness.inputs.augment import Augment
from harness.inputs.base import Input, Prepare
from harness.inputs.mel import Mel
from harness.inputs.sound_augment import AUGMENTATIONS, sound_augmentation
from harness.inputs.waveform import CORRUPTIONS, Waveform

SILENCE = 1e-10
"""Least power of a band in a thumbnail."""


@final
@dataclass(frozen=True)
class Frames(Input):
    """Mel spectrograms as sequences: (frames, bands) float32 power.

    Attributes:
        mel: settings of the spectrogram.
        loudness: root mean square in dB of full scale to which quieter sounds are amplified.
        seconds: length of every sound: a longer one is cropped to its centre, a shorter one repeated.
    """

    mel: Mel
    loudness: float
    seconds: float

    dtype: ClassVar[torch.dtype] = torch.float32
    augmentations: ClassVar[tuple[str, ...]] = tuple(n for n in AUGMENTATIONS if n != "mixup")
    corruptions: ClassVar[tuple[str, ...]] = CORRUPTIONS

    @property
    def shape(self) -> tuple[int, ...]:
        return self.mel.frames(round(self.seconds * self.mel.rate)), self.mel.bands

    def __str__(self) -> str:
        frames, bands = self.shape
        return f"{frames} frames of {bands} mel bands ({self.seconds:g} s)"

    def key(self) -> dict[str, str]:
        return {"sound": repr(self), **versions("numpy", "scipy")}

    def row(self, example: Any) -> torch.Tensor:
        """(frames, bands) float32 of a Waveform."""
        assert isinstance(example, Waveform)
        sound = example.presented(self.mel.rate, self.seconds, self.corruption)
        power = self.mel.power(sound.amplified(self.loudness).samples)
        return torch.from_numpy(power.T.copy()).float()

    def preparation(self, device: torch.device, layout: torch.memory_format) -> Prepare:
        return lambda rows: rows

    def random(self, count: int, generator: torch.Generator) -> torch.Tensor:
        return torch.rand(count, *self.shape, generator=generator)

    def augmentation(self, name: str, num_classes: int) -> Augment:
        return sound_augmentation(name, 1, 2, num_classes)

    def thumbnails(self, rows: torch.Tensor) -> torch.Tensor:
        """Log power, 16 x 16."""
        level = rows.clamp(min=SILENCE).log()[:, None]
        return F.interpolate(level, (16, 16), mode="area").flatten(1)

    def pictures(self, rows: torch.Tensor) -> torch.Tensor:
        """Log power, 80 dB from black to white, low bands below."""
        level = 10 * rows.clamp(min=SILENCE).log10()
        grey = (1 + (level - level.amax((1, 2), keepdim=True)) / 80).clamp(0, 1).mul(255).round()
        picture: torch.Tensor = grey.to(torch.uint8).transpose(1, 2).flip(1)
        return picture[:, None].expand(-1, 3, -1, -1)

    def in_words(self) -> str:
        mel = self.mel
        length = round(self.seconds * mel.rate)
        return f"""\
A sound is mixed to one channel, resampled to {mel.rate} Hz, cropped to its centre or repeated so that it
has {length} samples ({self.seconds:g} s), and amplified to {self.loudness:g} dB if it is quieter (root mean
square, relative to full scale). The network takes its mel spectrogram as a sequence of frames:

```python
import librosa
frames = librosa.feature.melspectrogram(
    y=sound, sr={mel.rate}, n_fft={mel.window}, hop_length={mel.hop}, n_mels={mel.bands}
).T
```
"""

    def describe(self) -> dict[str, Any]:
        return {
            "kind": "frames",
            "mel": asdict(self.mel),
            "loudness": self.loudness,
            "seconds": self.seconds,
        }
