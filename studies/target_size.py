"""Which strategy is best with 5, 10, 30, 100 and 300 images per class, and where does the order change?

    python -m harness.study --space studies/target_size.py

EfficientNet-Lite0 with ImageNet weights is adapted to Fashion-MNIST at 32 px. Smaller targets get more
epochs (12 down to 1), so that the number of steps grows fourfold while the number of images grows sixtyfold.
The linear probe has 30 epochs at every size, because it has to converge to be compared.

Expected before the first run (VTAB, Zhai et al. 2019; Kumar et al. 2022): frozen features are best with 5
images per class, full fine-tuning is best from 30 on, and training from scratch closes part of the gap by
300.

Answer of an earlier version, 2026-11-22, in which the probe had as many epochs as the others, and cells had 5
seeds; not run again since (one CPU thread, 3 trials per cell; mean test accuracy in %):

    images per class     5     10     30    100    300
    linear probe      55.8   55.8   68.1   61.8   74.2
    last block        55.3   63.0   71.1   73.2   79.2
    full              34.9   56.8   63.9   70.0   78.6
    from scratch      13.5   26.6   40.9   42.2   62.9

As expected, frozen features are as good as the last block with 5 images and worse from 10 on (the curves
cross at 5.2, interval below 5 to 6.5), and training from scratch comes closer to full fine-tuning by 300 (21
points behind with 5 images, 16 with 300). Against expectation, full fine-tuning is never best: the last block
is as good or better at every size, and equal at 300. Full fine-tuning and the probe change places three times
between 10 and 100, which is an effect of only 3 trials per cell (see the probe at 100) rather than of size.
"""

from __future__ import annotations

from optuna.trial import BaseTrial

from harness import Arms, Study, TrialSpec, strategies

SCRATCH = "from scratch"
PROBE = "linear probe"
STRATEGIES: Arms = {
    PROBE: lambda t: strategies.LinearProbe(),
    "last block": lambda t: strategies.LastBlock(),
    "full": lambda t: strategies.FullFineTune(),
    SCRATCH: lambda t: strategies.FullFineTune(),
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
        epochs=30 if strategy == PROBE else EPOCHS[shots],  # the probe converges at little cost
        batch_size=16,
        lr=trial.suggest_float("lr", 3e-4, 3e-2, log=True),
    )


study = Study(
    compare={"shots": EPOCHS, "strategy": STRATEGIES},
    space=space,
    trials=3,
    repeats=12,
    baseline={"strategy": PROBE},
)
