"""How deep to fine-tune an encoder of texts with 10, 30, 100 and 300 texts per class, and is it worth it?

    apt-get install wordnet-base
    python studies/text_depth.py                     # writes data/glosses.csv
    python -m harness.study --space studies/text_depth.py

The texts are definitions from WordNet 3.0 (without their examples). The classes are three of its
lexicographer files (acts, cognition, communication), with 600 texts each. MiniLM (all-MiniLM-L6-v2, trained
for sentence similarity) is compared with an LSTM from scratch that reads the same tokens. Gradual unfreezing
has more epochs, because it unfreezes one group after each: all 8 groups with 10 to 100 texts, 4 with 300.

Expected before the first run (ULMFiT, Howard & Ruder 2018): a pretrained network with 100 texts is as good as
one from scratch with 10 to 100 times as many. Gradual unfreezing with discriminative rates is best, most
clearly with few texts, where full fine-tuning forgets; with 300 texts per class, full fine-tuning is as good.
Training only the last layer, or a probe, is worse by several points. For MiniLM, whose vectors were trained
to be compared, the probe should do better than in ULMFiT.

Answer, 2026-11-30 (one CPU thread of a busy machine, 2 trials and 8 seeds per cell; mean test accuracy in %,
verdicts by the report's simultaneous intervals; the figure is docs/pages/images/text_depth.png):

    texts per class        10     30    100    300
    full                 61.4   72.0   78.2   80.8
    gradual              63.3   71.4   77.3   78.9
    LoRA                 55.0   71.1   72.5   79.0
    discriminative       60.0   70.6   72.4   72.4
    last layer           61.6   68.7   74.0   75.0
    linear probe         60.8   66.0   70.2   75.9
    LSTM from scratch    41.4   47.8   55.0   63.5

As expected, pretraining is worth about 30 times as many texts: with 10 per class, every strategy but LoRA is
within 4 points of the LSTM with 300, and at each size the LSTM is below the probe (by 12 to 19 points). Depth
helps from 100 texts on: full fine-tuning is above the probe by 8.0 points there (2.9 to 13.2) and by 4.8 with
300 (2.0 to 7.6), gradual unfreezing by 7.1 with 100 (3.8 to 10.4), the last layer by 3.8 (0.3 to 7.2). With
10 and 30 texts no strategy for MiniLM can be distinguished from the probe, which takes an eighth of the time
of full fine-tuning or less. Against expectation, full fine-tuning does not forget with few texts, and
discriminative rates are not shown to help: with 300 texts they are 6.5 points below gradual unfreezing (0.5
to 12.5).

Do not conclude that discriminative rates are bad, because the head has the same rate of at most 1e-3 (the
probe's best were 4e-3 to 6e-3), and only two rates were tried; or that gradual unfreezing is worth its
epochs, of which it had up to four times as many; or that an LSTM cannot do better from scratch, because this
one is small and had 6 to 48 epochs. Four seeds were run first; four more were added because intervals were
too wide. One pair of definitions in training and test is nearly equal. MiniLM was pretrained on texts from
the web, perhaps including WordNet's.
"""

from __future__ import annotations

import csv
import random
from pathlib import Path

from optuna.trial import BaseTrial

from harness import Arms, Study, TrialSpec, strategies

WORDNET, GLOSSES = Path("/usr/share/wordnet/data.noun"), Path("data/glosses.csv")
CLASSES = {"04": "act", "09": "cognition", "10": "communication"}
"""Numbers of lexicographer files, as in lexnames(5WN)."""
PER_CLASS = 600

PROBE, SCRATCH = "linear probe", "LSTM from scratch"
STRATEGIES: Arms = {
    PROBE: lambda t: strategies.LinearProbe(),
    "last layer": lambda t: strategies.LastBlock(),
    "full": lambda t: strategies.FullFineTune(),
    "discriminative": lambda t: strategies.DiscriminativeLR(decay=1 / 2.6),
    "gradual": lambda t: strategies.GradualUnfreezing(every=1),
    "LoRA": lambda t: strategies.LoRA(),
    SCRATCH: lambda t: strategies.FullFineTune(),
}
RATES = {PROBE: (3e-3, 3e-2), "LoRA": (5e-4, 5e-3), SCRATCH: (1e-3, 1e-2)}
TUNED = 1e-4, 1e-3
EPOCHS = {"10": 8, "30": 6, "100": 3, "300": 1}
GRADUAL = {"10": 10, "30": 10, "100": 8, "300": 4}
LONGER = {PROBE: 6, SCRATCH: 6}
"""Factor on the epochs, for what costs little or learns slowly."""


def space(trial: BaseTrial, shots: str, strategy: str) -> TrialSpec:
    """One trial of one cell: the cell is given, Optuna draws the rest."""
    scratch = strategy == SCRATCH
    return TrialSpec(
        target=f"csv:{GLOSSES}[text=definition,label=file,tokens=16]",
        backbone="text_lstm" if scratch else "minilm",
        strategy=STRATEGIES[strategy](trial),
        source="scratch" if scratch else "pretrained",
        shots=int(shots),
        val_shots=20,
        test_shots=100,
        epochs=GRADUAL[shots] if strategy == "gradual" else EPOCHS[shots] * LONGER.get(strategy, 1),
        batch_size=16,
        lr=trial.suggest_float("lr", *RATES.get(strategy, TUNED), log=True),
    )


study = Study(
    compare={"shots": EPOCHS, "strategy": STRATEGIES},
    space=space,
    trials=2,
    repeats=8,
    baseline={"strategy": PROBE},
)


def write_glosses() -> None:
    """Write a table of definitions, no two of them equal, and the file of each."""
    if not WORDNET.is_file():
        raise SystemExit(f"{WORDNET} is not on this machine: apt-get install wordnet-base")
    found: dict[str, list[str]] = {name: [] for name in CLASSES.values()}
    for line in dict.fromkeys(WORDNET.read_text(encoding="utf-8").splitlines()):
        fields, _, gloss = line.partition(" | ")
        text = gloss.partition('; "')[0].strip()
        if (name := CLASSES.get(fields[9:11])) and not line.startswith("  "):
            found[name].append(text)
    GLOSSES.parent.mkdir(exist_ok=True)
    draw = random.Random(0)
    with GLOSSES.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["definition", "file"])
        for name, texts in found.items():
            once = [text for text in dict.fromkeys(texts) if len(text.split()) >= 3]
            rows.writerows([text, name] for text in draw.sample(once, PER_CLASS))


if __name__ == "__main__":
    write_glosses()
