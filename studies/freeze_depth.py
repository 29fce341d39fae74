"""How deep should fine-tuning reach, and what does each extra layer cost?

    python -m harness.study --space studies/freeze_depth.py

EfficientNet-Lite0 with its ImageNet weights adapts to scikit-learn's digits, 30 training images per
class. Digits are far from ImageNet: 8 x 8 grey strokes against colour photographs. Expected before the
first run: frozen features fall short of the same features moved a little (the last block), full
fine-tuning gains little more at several times the cost, and from scratch comes last.
"""

from __future__ import annotations

from optuna.trial import BaseTrial

from harness import transfer
from harness.spec import Arms, Study, TrialSpec

SCRATCH = "from scratch"
STRATEGIES: Arms = {
    "linear probe": lambda t: transfer.LinearProbe(),
    "last block": lambda t: transfer.LastBlock(),
    "full": lambda t: transfer.FullFineTune(),
    "discriminative": lambda t: transfer.DiscriminativeLR(t.suggest_float("decay", 0.5, 0.95)),
    "gradual": lambda t: transfer.GradualUnfreezing(every=1),
    SCRATCH: lambda t: transfer.FullFineTune(),
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
    repeats=5,
    baseline={"strategy": SCRATCH},
)
