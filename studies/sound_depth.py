"""Do ImageNet weights help on spectrograms of sounds, and how deep should fine-tuning reach?

    python studies/sound_depth.py
    python -m harness.study --space studies/sound_depth.py

The first command makes the sound files in data/sounds, once, in half a minute. It needs packages of Debian:

    apt-get install espeak-ng asterisk-core-sounds-en-wav asterisk-core-sounds-es-wav

- *words*: the digits zero to nine in 98 voices of the synthesizer espeak-ng, 5 per class. All sounds of a
  voice are in the same part, so test voices are new.
- *languages*: 448 prompts of the telephone system Asterisk, each in English and in Spanish, by the same
  speaker; 25 per class. Both versions of a prompt are in the same part, so test phrases are new.

Each is read by EfficientNet-Lite0 with ImageNet weights, as a picture of the spectrogram (48 px), and by
Resemblyzer's LSTM, which was trained to tell speakers apart, whatever they say.

Expected before the first run: ImageNet weights help on spectrograms, so training from scratch comes last on
both targets. On words, the probe of Lite0 is far below fine-tuning of all layers, because its features are
those of photographed objects; the LSTM's probe is worse still, because it was trained to ignore words, and
full fine-tuning makes up for most of that. On languages, little depth is needed, because each has sounds of
its own: the probes come close to full fine-tuning.

Answer, 2026-11-30 (one CPU thread of a busy machine, 2 trials and 7 seeds per cell; mean test accuracy in %,
verdicts by the report's simultaneous intervals; the figure is docs/pages/images/sound_depth.png):

                          words   languages
    linear probe           79.3        85.0
    last block             83.4        83.7
    full                   62.9        79.7
    discriminative         74.7        78.4
    gradual                81.4        63.6
    from scratch           33.0        64.6
    LSTM linear probe      70.0        97.9
    LSTM full              70.0        73.0
    LSTM discriminative    71.4        98.1

ImageNet weights help, as expected: all strategies that start from them are above training from scratch (by 30
to 50 points on words, 14 to 20 on languages), except gradual unfreezing on languages, which stays at chance
with 4 of 7 seeds. Depth was not shown to matter: no two of those strategies can be distinguished. Against
expectation, the probe is not below full fine-tuning (on words, its mean is 16 points higher); the LSTM's
probe is right for 70 % of the words, although it was trained to ignore them, and more depth adds nothing. On
languages the LSTM's probe and discriminative rates are above Lite0's probe, last block, full fine-tuning and
discriminative rates by 13 to 20 points.

Do not conclude anything about real speakers, because all voices come from one synthesizer and the report
lists near duplicates between the parts; or that the LSTM knows languages, because each was recorded in
sessions of its own, which an encoder of voices may recognise; or that training from scratch fails with more
than 12 epochs; or that depth makes no difference, because intervals are wide with 5 to 25 sounds per class
and only two learning rates were tried. Times were not comparable. LoRA is for attention layers, which neither
network has.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import soundfile
from optuna.trial import BaseTrial

from harness import Arms, Study, TrialSpec, strategies

SOUNDS = Path("data/sounds")
DIGITS = "zero one two three four five six seven eight nine".split()
PROMPTS = Path("/usr/share/asterisk/sounds")
LANGUAGES = {"English": "en_US_f_Allison", "Spanish": "es_MX_f_Allison"}
TARGETS = {
    "words": f"folder:{SOUNDS}/words[group=.+,seconds=0.8]",
    "languages": f"folder:{SOUNDS}/languages[group=.+,seconds=2]",
}
SHOTS = {"words": (5, 5, 10), "languages": (25, 20, 50)}
"""Training, validation and test sounds per class."""
SCRATCH, PROBE, GRADUAL, LSTM = "from scratch", "linear probe", "gradual", "LSTM"
RATES = {GRADUAL: (1e-4, 3e-3), LSTM: (1e-3, 3e-2), "others": (1e-3, 1e-2)}
STRATEGIES: Arms = {
    PROBE: lambda t: strategies.LinearProbe(),
    "last block": lambda t: strategies.LastBlock(),
    "full": lambda t: strategies.FullFineTune(),
    "discriminative": lambda t: strategies.DiscriminativeLR(t.suggest_float("decay", 0.5, 0.95)),
    GRADUAL: lambda t: strategies.GradualUnfreezing(every=1),
    SCRATCH: lambda t: strategies.FullFineTune(),
}
RECURRENT: Arms = {f"{LSTM} {name}": STRATEGIES[name] for name in (PROBE, "full", "discriminative")}
"""Of Resemblyzer's LSTM; the others are of EfficientNet-Lite0."""
ARMS: Arms = {**STRATEGIES, **RECURRENT}


def space(trial: BaseTrial, target: str, strategy: str) -> TrialSpec:
    """One trial of one cell: the cell is given, Optuna draws the rest."""
    shots, val_shots, test_shots = SHOTS[target]
    lstm = strategy.startswith(LSTM)
    rates = RATES.get(LSTM if lstm else strategy, RATES["others"])
    return TrialSpec(
        target=TARGETS[target],
        backbone="resemblyzer" if lstm else "tf_efficientnet_lite0",
        strategy=ARMS[strategy](trial),
        source="scratch" if strategy == SCRATCH else "pretrained" if lstm else "imagenet",
        shots=shots,
        val_shots=val_shots,
        test_shots=test_shots,
        resolution=None if lstm else 48,
        # The probe has to converge, at little cost; random weights have more to learn.
        epochs=30 if PROBE in strategy else 12 if strategy == SCRATCH else 6,
        batch_size=16,
        lr=trial.suggest_float("lr", *rates, log=True),
    )


study = Study(
    compare={"target": TARGETS, "strategy": ARMS},
    space=space,
    trials=2,
    repeats=7,
    baseline={"strategy": SCRATCH},
)


def make_words(folder: Path) -> int:
    """A file for each digit in each voice of espeak-ng; returns the number of voices. A voice that sounds
    like one before is left out."""
    voices = re.findall(r"!v/(.*\S)", _espeak("--voices=variant").decode())
    said = {_espeak("-v", f"en+{voice}", "--stdout", "nine"): voice for voice in reversed(voices)}
    for voice in said.values():
        for word in DIGITS:
            (folder / word).mkdir(parents=True, exist_ok=True)
            sound = _espeak("-v", f"en+{voice}", "--stdout", word)
            (folder / word / f"{voice}.wav").write_bytes(sound)
    return len(said)


def _espeak(*arguments: str) -> bytes:
    return subprocess.run(["espeak-ng", *arguments], capture_output=True, check=True).stdout


def make_languages(folder: Path) -> int:
    """The prompts of 0.5 to 10 s that both languages have, except silence and dictation; returns their
    number."""
    first, *_ = (PROMPTS / name for name in LANGUAGES.values())
    count = 0
    for path in sorted(first.rglob("*.wav")):
        name = path.relative_to(first)
        both = {language: PROMPTS / inside / name for language, inside in LANGUAGES.items()}
        if "silence" in name.parts or not all(_usual(file) for file in both.values()):
            continue
        count += 1
        for language, file in both.items():
            (folder / language).mkdir(parents=True, exist_ok=True)
            shutil.copy(file, folder / language / "-".join(name.parts))
    return count


def _usual(file: Path) -> bool:
    """Whether there is such a sound, of a usual length."""
    return file.is_file() and 0.5 <= soundfile.info(file).duration <= 10


if __name__ == "__main__":
    print(f"{make_words(SOUNDS / 'words')} voices, {make_languages(SOUNDS / 'languages')} prompts")
