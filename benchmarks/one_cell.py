"""A study of one cell, for benchmarks that replace its training by nothing."""

from __future__ import annotations

from optuna.trial import BaseTrial

from harness import Study, TrialSpec, strategies


def space(trial: BaseTrial, strategy: str) -> TrialSpec:
    """A linear probe on digits."""
    return TrialSpec(
        target="digits",
        backbone="tf_efficientnet_lite0",
        strategy=strategies.LinearProbe(),
        shots=30,
        val_shots=20,
        test_shots=50,
        resolution=48,
        epochs=1,
        lr=trial.suggest_float("lr", 3e-4, 3e-2, log=True),
        weight_decay=trial.suggest_float("weight_decay", 1e-4, 1e-1, log=True),
    )


study = Study(compare={"strategy": ["linear probe"]}, space=space, trials=1, repeats=0)
