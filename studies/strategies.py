"""Which of all the fine-tuning strategies should I use for 30 images per class?

    python -m harness.study --space studies/strategies.py

EfficientNet-Lite0 with ImageNet weights is adapted to Fashion-MNIST (Debian's package dataset-fashion-mnist,
or torchvision's download), with 30 training images per class at 32 px and 4 epochs. LoRA is left out, because
it needs a ViT, and no ViT weights come in a wheel.

Expected before the first run: full fine-tuning and its gentler forms (discriminative, LP-FT, L2-SP) are best,
and 6 seeds cannot distinguish between them; the last block follows; norm-only and bias-only come close to it
with a tenth of its parameters; frozen features (probe, logistic, kNN) are worse; training from scratch comes
last.

Answer, 2026-11-22 (one CPU thread, 4 trials and 6 seeds per cell; mean test accuracy in %, 95 % t interval):

    last 3           78.8  76.4 to 81.3      first block   74.6  73.5 to 75.8
    L2-SP            77.6  75.8 to 79.4      logistic      74.4  73.4 to 75.4
    LP-FT, fixed BN  77.4  76.0 to 78.8      linear probe  72.7  70.6 to 74.8
    last block       77.3  76.1 to 78.4      gradual       71.6  70.2 to 73.0
    full, fixed BN   76.9  75.5 to 78.3      LP-FT         70.7  65.7 to 75.7
    discriminative   76.1  74.7 to 77.6      kNN           65.9  64.3 to 67.4
    full             74.6  73.0 to 76.2      norm only     65.0  64.3 to 65.8
    two-phase        74.6  72.9 to 76.2      bias only     60.8  59.6 to 62.0
                                             from scratch  53.3  50.8 to 55.7

As expected, training from scratch comes last, and the gentler forms of full fine-tuning are close together.
Against expectation, the last three blocks have the best mean, not full fine-tuning; norm-only and bias-only
are worse than frozen features after 4 epochs; and logistic regression on frozen features, without any
gradient step, is as good as full fine-tuning. With 4 trials per cell, part of the order is due to chance. The
rates of the cells with fixed batch norm were drawn from a range ten times lower, because training diverges at
the rates of the others.
"""

from __future__ import annotations

from optuna.trial import BaseTrial

from harness import Arms, Study, TrialSpec, strategies

SCRATCH = "from scratch"
PROBE, FIXED = "linear probe", "full, fixed BN"
RATES = 3e-4, 3e-2
LOWER = 3e-5, 3e-3  # without normalisation by the batch, high rates diverge: see batch_norm.py
LATER = ("two-phase", "LP-FT", "gradual")
STRATEGIES: Arms = {
    "logistic": lambda t: strategies.FeatureTransfer("logistic"),
    "kNN": lambda t: strategies.FeatureTransfer("knn"),
    PROBE: lambda t: strategies.LinearProbe(),
    "last block": lambda t: strategies.LastBlock(),
    "last 3": lambda t: strategies.LastK(4),
    "first block": lambda t: strategies.Surgical(1),
    "two-phase": lambda t: strategies.TwoPhase(head_epochs=2, lower=0.3),
    "LP-FT": lambda t: strategies.LPFT(head_epochs=1, lower=0.3),
    "gradual": lambda t: strategies.GradualUnfreezing(every=1),
    "discriminative": lambda t: strategies.DiscriminativeLR(t.suggest_float("decay", 0.5, 0.95)),
    "L2-SP": lambda t: strategies.L2SP(t.suggest_float("l2_sp", 1e-2, 10, log=True)),
    "norm only": lambda t: strategies.NormOnly(),
    "bias only": lambda t: strategies.BiasOnly(),
    "full": lambda t: strategies.FullFineTune(),
    SCRATCH: lambda t: strategies.FullFineTune(),
    FIXED: lambda t: strategies.FullFineTune(),
}


def space(trial: BaseTrial, strategy: str) -> TrialSpec:
    """One trial of one cell: the cell is given, Optuna draws the rest."""
    fixed = strategy == FIXED
    return TrialSpec(
        target="fashion_mnist",
        backbone="tf_efficientnet_lite0",
        strategy=STRATEGIES[strategy](trial),
        source="scratch" if strategy == SCRATCH else "imagenet",
        shots=30,
        val_shots=20,
        test_shots=50,
        resolution=32,
        epochs=30 if strategy == PROBE else 4,  # until it has converged, at little cost
        batch_size=16,
        batch_norm="frozen" if fixed else "auto",
        lr=trial.suggest_float("lr", *LOWER if fixed or strategy in LATER else RATES, log=True),
    )


study = Study(
    compare={"strategy": STRATEGIES},
    space=space,
    trials=4,
    repeats=11,
    baseline={"strategy": "full"},
)
