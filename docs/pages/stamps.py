"""Which backbone and which strategy for 20 stamps per category?

    python -m harness.study --space stamps.py
"""

from harness import transfer
from harness.spec import Study, TrialSpec

BACKBONES = ("tf_efficientnet_lite0", "mobilenetv2_100")
STRATEGIES = {
    "linear probe": lambda t: transfer.LinearProbe(),
    "last block": lambda t: transfer.LastBlock(),
    "discriminative": lambda t: transfer.DiscriminativeLR(t.suggest_float("decay", 0.5, 0.95)),
}


def space(trial, backbone, strategy):
    return TrialSpec(
        target="folder:stamps",
        backbone=backbone,
        strategy=STRATEGIES[strategy](trial),
        shots=20,
        resolution=96,
        epochs=5,
        batch_size=16,
        lr=trial.suggest_float("lr", 3e-4, 3e-2, log=True),
    )


study = Study(
    compare={"backbone": BACKBONES, "strategy": STRATEGIES},
    space=space,
    trials=4,
    repeats=6,
    baseline={"strategy": "linear probe"},
)
