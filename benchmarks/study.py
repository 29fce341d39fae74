"""The study of this harness in the comparison with other programs: one task, with learning rates drawn by the
study.

It is run by `make bench`, which sets the task in BENCHMARK_WORK and the images in BENCHMARK_DATA.
"""

from __future__ import annotations

import os
from pathlib import Path

from optuna.trial import BaseTrial

from benchmarks import recipe
from harness import strategies
from harness.core.spec import TrialSpec
from harness.core.study import Study

STRATEGIES = {
    "linear_probe": strategies.LinearProbe(),
    "last_block": strategies.LastBlock(),
    "full": strategies.FullFineTune(),
}


def make_study(work: str, data: Path) -> Study:
    """The study of one task on the images in `data`/all."""
    images, middle = recipe.per_class(data), recipe.RATES[work]

    def space(trial: BaseTrial, strategy: str) -> TrialSpec:
        return TrialSpec(
            target=f"folder:{data / 'all'}",
            backbone=recipe.BACKBONE,
            strategy=STRATEGIES[strategy],
            shots=images // 2,
            val_shots=images // 4,
            resolution=recipe.SIZE,
            epochs=recipe.EPOCHS,
            batch_size=recipe.BATCH,
            lr=trial.suggest_float("lr", middle / recipe.SPREAD, middle * recipe.SPREAD, log=True),
            weight_decay=recipe.WEIGHT_DECAY,
            warmup=0.0,
        )

    return Study(compare={"strategy": [work]}, space=space, trials=recipe.TRIALS[work], repeats=0)


if "BENCHMARK_WORK" in os.environ:
    study = make_study(os.environ["BENCHMARK_WORK"], Path(os.environ["BENCHMARK_DATA"]))
