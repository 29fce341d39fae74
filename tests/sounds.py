"""Sound files made by the tests: tones of two classes that differ in pitch."""

from __future__ import annotations

from pathlib import Path

import numpy as np

RATE = 8000


def tone(hertz: float, seconds: float = 0.6, rate: int = RATE, seed: int = 0) -> np.ndarray:
    """A sine with some noise, in [-1, 1]."""
    draw = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    phase, noise = draw.uniform(0, 2 * np.pi), 0.01 * draw.standard_normal(len(time))
    made: np.ndarray = 0.5 * np.sin(2 * np.pi * hertz * time + phase) + noise
    return made


def write_tones(folder: Path, count: int = 12, suffix: str = ".wav") -> Path:
    """A folder of two classes, low and high tones, each with `count` files of its own pitch."""
    import soundfile

    for label, (name, base) in enumerate((("high", 1500.0), ("low", 400.0))):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            sound = tone(base * (1 + 0.03 * i), 0.5 + 0.02 * i, seed=100 * label + i)
            soundfile.write(folder / name / f"{name}{i:02}{suffix}", sound, RATE)
    return folder
