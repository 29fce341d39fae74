"""Which strategy wins at 5, 10, 30, 100 and 300 images per class, and where do they cross?

    python -m harness.study --space studies/target_size.py

EfficientNet-Lite0 with its ImageNet weights adapts to Fashion-MNIST at 32 px. Smaller targets get more
passes (12 down to 1), so that the number of steps grows fourfold while the images grow sixtyfold.

Expected before the first run (VTAB, Zhai et al. 2019; Kumar et al. 2022): frozen features win at 5 images
per class, full fine-tuning wins from 30 on, and from scratch closes part of the gap by 300.
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
    SCRATCH: lambda t: transfer.FullFineTune(),
}
EPOCHS = {"5": 12, "10": 6, "30": 3, "100": 1, "300": 1}


def space(trial: BaseTrial, shots: str, strategy: str) -> TrialSpec:
    """One trial of one cell: the cell is given, Optuna draws the rest."""
    return TrialSpec(
        target="fashion_mnist",
        backbone="tf_efficientnet_lite0",
        strategy=STRATEGIES[strategy](trial),
        source="scratch" if strategy == SCRATCH else "imagenet",
        shots=int(shots),
        val_shots=20,
        test_shots=50,
        resolution=32,
        epochs=EPOCHS[shots],
        batch_size=16,
        lr=trial.suggest_float("lr", 3e-4, 3e-2, log=True),
    )


study = Study(
    compare={"shots": EPOCHS, "strategy": STRATEGIES},
    space=space,
    trials=3,
    repeats=5,
    baseline={"strategy": "linear probe"},
)
