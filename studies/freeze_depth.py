"""How deep should fine-tuning reach, and what does each extra layer cost?

    python -m harness.study --space studies/freeze_depth.py

EfficientNet-Lite0 with ImageNet weights is adapted to scikit-learn's digits, with 30 training images per
class. Digits are far from ImageNet: grey strokes of 8 x 8 pixels instead of colour photographs. Expected
before the first run: frozen features are not as good as features with a trained last block; full
fine-tuning gains little more, at several times the cost; training from scratch comes last.

Answer, 2026-11-22 (2 cores, 5 trials and 5 seeds per cell; test accuracy with 95 % t interval): as
expected, the linear probe (86.0, 84.8 to 87.2) is below the last block (93.2, 92.1 to 94.3, at 1.6 times
the training time), and training from scratch is last (82.0). Against expectation, full fine-tuning at one
rate (90.6) is below the last block. Discriminative rates (94.8, 92.8 to 96.8) are best, but the difference
is not certain. Gradual unfreezing (83.0) has too few epochs.
"""

from __future__ import annotations

from optuna.trial import BaseTrial

from harness import Arms, Study, TrialSpec, strategies

SCRATCH = "from scratch"
STRATEGIES: Arms = {
    "linear probe": lambda t: strategies.LinearProbe(),
    "last block": lambda t: strategies.LastBlock(),
    "full": lambda t: strategies.FullFineTune(),
    "discriminative": lambda t: strategies.DiscriminativeLR(t.suggest_float("decay", 0.5, 0.95)),
    "gradual": lambda t: strategies.GradualUnfreezing(every=1),
    SCRATCH: lambda t: strategies.FullFineTune(),
}


def space(trial: BaseTrial, strategy: str) -> TrialSpec:
    """One trial of one cell: the cell is given, Optuna draws the rest."""
    return TrialSpec(
        target="digits",
        backbone="tf_efficientnet_lite0",
        strategy=STRATEGIES[strategy](trial),
        source="scratch" if strategy == SCRATCH else "imagenet",
        shots=30,
        val_shots=20,
        test_shots=50,
        resolution=48,
        epochs=4,
        batch_size=16,
        lr=trial.suggest_float("lr", 3e-4, 3e-2, log=True),
        weight_decay=trial.suggest_float("weight_decay", 1e-4, 1e-1, log=True),
    )


study = Study(
    compare={"strategy": STRATEGIES},
    space=space,
    trials=5,
    repeats=8,
    baseline={"strategy": SCRATCH},
)
