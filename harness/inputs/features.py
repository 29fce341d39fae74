"""Sounds as input of transformers' encoders, prepared by the feature extractor of the network."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, final

import numpy as np
import torch
from torch.nn import functional as F

from harness.core.errors import UserError, one_line, optional_library
from harness.core.versions import versions
from harness.inputs.augment import Augment
from harness.inputs.base import Input, Prepare
from harness.inputs.sound_augment import AUGMENTATIONS, sound_augmentation
from harness.inputs.waveform import CORRUPTIONS, Waveform

FILE = "preprocessor_config.json"
"""The file of a model in which the library keeps the settings of its feature extractor."""
KINDS = {
    "ASTFeatureExtractor": "sampling_rate num_mel_bins max_length do_normalize mean std".split(),
    "WhisperFeatureExtractor": "sampling_rate feature_size hop_length chunk_length n_fft".split(),
    "Wav2Vec2FeatureExtractor": "sampling_rate do_normalize".split(),
}
"""Feature extractors that are used, and those of their settings that matter. Others are for batches of
sounds of different lengths, or add random noise."""
WAVE = "Wav2Vec2FeatureExtractor"
"""The feature extractor that returns any number of samples; the others return frames of mel bands."""
AST_HOP = 160
"""Samples from one frame of AST to the next."""
LONGEST = 600.0
"""Seconds, if the network sets no limit."""
WINDOW = 512
"""Samples of a frame in thumbnails and pictures of samples."""
SILENCE = 1e-10


@final
@dataclass(frozen=True)
class Features(Input):
    """Sounds as a feature extractor prepares them: (steps, features) float32, where the steps are frames of
    mel bands, or samples with a single feature.

    Networks on mel bands take a fixed number of frames, of which those behind the end of the sound are
    padding. Their argument is (n, steps, features + 1) with a mask as the last feature: 1 for frames of the
    sound, 0 for padding. The argument of the others is (n, samples).

    Attributes:
        settings: of the feature extractor, as `extractor_settings` gives them.
        seconds: length of every sound: a longer one is cropped to its centre, a shorter one repeated.
    """

    settings: str
    seconds: float

    dtype: ClassVar[torch.dtype] = torch.float32
    augmentations: ClassVar[tuple[str, ...]] = tuple(n for n in AUGMENTATIONS if n != "mixup")
    corruptions: ClassVar[tuple[str, ...]] = CORRUPTIONS

    @property
    def rate(self) -> int:
        """Samples per second."""
        return int(_extractor(self.settings).sampling_rate)

    @property
    def padded(self) -> bool:
        """Whether the network takes a fixed number of steps."""
        return _kind(self.settings) != WAVE

    @property
    def longest(self) -> float:
        """Largest length in seconds that the network takes."""
        if not self.padded:
            return LONGEST
        library = _extractor(self.settings)
        hop = getattr(library, "hop_length", AST_HOP)
        return self.shape[0] * hop / self.rate

    @property
    def shape(self) -> tuple[int, ...]:
        library = _extractor(self.settings)
        if not self.padded:
            return round(self.seconds * self.rate), 1
        if _kind(self.settings) == "ASTFeatureExtractor":
            return library.max_length, library.num_mel_bins
        return library.nb_max_frames, library.feature_size

    @property
    def length(self) -> int:
        """Number of steps that are not padding."""
        if not self.padded:
            return self.shape[0]
        share = self.seconds / self.longest
        return min(math.ceil(self.shape[0] * share - 1e-6), self.shape[0])

    def __str__(self) -> str:
        return f"sounds of {self.seconds:g} s at {self.rate} Hz"

    def key(self) -> dict[str, str]:
        # AST's feature extractor uses torchaudio if it is installed.
        return {"sound": repr(self), **versions("numpy", "scipy", "transformers", "torchaudio")}

    def row(self, example: Any) -> torch.Tensor:
        """(steps, features) float32 of a Waveform."""
        assert isinstance(example, Waveform)
        sound = example.presented(self.rate, self.seconds, self.corruption)
        library = _extractor(self.settings)
        found = library(
            sound.samples.astype(np.float32), sampling_rate=self.rate, return_tensors="pt"
        )
        row: torch.Tensor = found[library.model_input_names[0]][0]
        if not self.padded:
            return row[:, None]
        return row.T.contiguous() if row.shape != self.shape else row

    def preparation(self, device: torch.device, layout: torch.memory_format) -> Prepare:
        if not self.padded:
            # A copy, so that the forecast of memory counts the batch, which an accelerator would hold.
            return lambda rows: rows.squeeze(2).clone()

        def with_mask(rows: torch.Tensor) -> torch.Tensor:
            mask = rows.new_zeros(*rows.shape[:2], 1)
            mask[:, : self.length] = 1
            return torch.cat([rows, mask], 2)

        return with_mask

    def random(self, count: int, generator: torch.Generator) -> torch.Tensor:
        return torch.randn(count, *self.shape, generator=generator)

    def augmentation(self, name: str, num_classes: int) -> Augment:
        return sound_augmentation(name, 1, 2, num_classes, self.length)

    def _levels(self, rows: torch.Tensor) -> torch.Tensor:
        """(n, frames, bands) without padding; of samples, their log power spectrum."""
        if self.padded:
            return rows[:, : self.length]
        window = torch.hann_window(WINDOW)
        spectrum = torch.stft(rows[..., 0], WINDOW, window=window, return_complex=True).abs()
        return spectrum.square().clamp(min=SILENCE).log().transpose(1, 2)

    def thumbnails(self, rows: torch.Tensor) -> torch.Tensor:
        """Log power, 16 x 16."""
        return F.interpolate(self._levels(rows)[:, None], (16, 16), mode="area").flatten(1)

    def pictures(self, rows: torch.Tensor) -> torch.Tensor:
        """Log power, the loudest band white, low bands below."""
        levels = self._levels(rows)
        low, high = (limit((1, 2), keepdim=True) for limit in (levels.amin, levels.amax))
        grey = ((levels - low) / (high - low).clamp(min=1e-6)).mul(255).round().to(torch.uint8)
        return grey.transpose(1, 2).flip(1)[:, None].expand(-1, 3, -1, -1)

    def in_words(self) -> str:
        name, (steps, _) = _extractor(self.settings).model_input_names[0], self.shape
        turned = ".transpose(1, 2)" if _kind(self.settings) == "WhisperFeatureExtractor" else ""
        mask = f"""
mask = (torch.arange({steps}) < {self.length}).float()[None, :, None]
sounds = torch.cat([sounds, mask], 2)"""
        why = "; a mask is added, 1 for frames of the sound and 0 for padding"
        return f"""\
A sound is mixed to one channel, resampled to {self.rate} Hz, and cropped to its centre or repeated so that
it has {round(self.seconds * self.rate)} samples ({self.seconds:g} s). The feature extractor of the library
transformers prepares it, with the settings in {FILE}{why if self.padded else ""}:

```python
import torch, transformers
extractor = transformers.AutoFeatureExtractor.from_pretrained(".")
found = extractor(sound, sampling_rate={self.rate}, return_tensors="pt")
sounds = found["{name}"]{turned}{mask if self.padded else ""}
```

The network gives their logits."""

    def files(self) -> dict[str, str]:
        return {FILE: self.settings}

    def describe(self) -> dict[str, Any]:
        return {"kind": "features", "seconds": self.seconds}


def extractor_settings(text: str, kind: str) -> str:
    """The settings in a preprocessor_config.json that matter, as JSON.

    Args:
        text: the contents.
        kind: the feature extractor of the network, one of KINDS.

    Raises:
        UserError: if these are not settings of that feature extractor, or transformers is not installed.
    """
    # ValueError, KeyError, TypeError, and arithmetic on wrong values
    with one_line(f"this is not a {FILE} of a {kind} of transformers"):
        given = json.loads(text)
        if not isinstance(given, Mapping):
            raise ValueError("it is not a JSON object")
        if (other := given.get("feature_extractor_type", kind)) != kind:
            raise ValueError(f"it is for a {other}, and the network takes the output of a {kind}")
        own = {name: given[name] for name in KINDS[kind] if name in given}
        made = _extractor(json.dumps({"feature_extractor_type": kind, **own}))
        full = {name: getattr(made, name) for name in KINDS[kind]}
        settings = json.dumps({"feature_extractor_type": kind, **full})
        _extractor(settings)
    return settings


def _kind(settings: str) -> str:
    return str(json.loads(settings)["feature_extractor_type"])


def transformers_library() -> Any:
    """The library transformers."""
    return optional_library(
        "transformers", "networks of transformers need the extra: pip install -e '.[text]'"
    )


@lru_cache(maxsize=16)
def _extractor(settings: str) -> Any:
    """The library's feature extractor with these settings."""
    given = json.loads(settings)
    kind = given.pop("feature_extractor_type")
    if kind not in KINDS:  # settings in an exported model may be anyone's
        raise UserError(f"feature extractor {kind!r} is not known; use {', '.join(KINDS)}")
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # of bands without any frequency: AST's own settings have some
        return getattr(transformers_library(), kind)(**given)
