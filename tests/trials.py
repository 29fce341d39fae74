"""Trials that are run to their end, studies of a given trial, and networks that are exported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from harness.backbones import Backbone
from harness.core.results import EpochResult, TrialResult
from harness.core.spec import TrialSpec
from harness.core.study import Study
from harness.data.cached import Cache
from harness.deploy.model import Model, describe, open_model, plain_network, write
from harness.training.device import Cpu, Device
from harness.training.loop import Fit, start

MakeSpec = Callable[..., TrialSpec]
"""The fixture `make_spec`."""
NOTHING_KEPT = Cache(budget=0)


def run(
    spec: TrialSpec, cache: Cache = NOTHING_KEPT, device: Device = Cpu()
) -> tuple[Fit, list[EpochResult], TrialResult]:
    """A trial with its test, which audits what was trained."""
    fit = start(spec, device, cache)
    epochs = list(fit)
    return fit, epochs, fit.finish(test=True)


def values(epochs: list[EpochResult]) -> list[tuple[float, float, float]]:
    """Losses and accuracies by epoch."""
    return [(e.train_loss, e.val_loss, e.val_accuracy) for e in epochs]


def check_caching(spec: TrialSpec, rtol: float) -> TrialResult:
    """A trial is audited, and the same again bit by bit; cached outputs of layers that are frozen at first
    change nothing but rounding, as sums depend on the size of a batch."""

    def tested(result: TrialResult) -> tuple[float, float]:
        return result.metrics["test_loss"], result.metrics["test_accuracy"]

    _, uncut, first = run(spec)
    _, again, second = run(spec)
    assert len(set(values(uncut))) > 1
    assert (values(again), tested(second)) == (values(uncut), tested(first))
    _, cached, result = run(spec, Cache())
    np.testing.assert_allclose(values(cached), values(uncut), rtol=rtol)
    np.testing.assert_allclose(tested(result), tested(first), rtol=rtol)
    frozen = None in spec.strategy.lr_scales(5, 0)
    assert ("kept after" in result.notes["prefix"]) == frozen
    return first


def study_of(spec: TrialSpec) -> Study:
    """A study whose only cell is this trial."""
    return Study(compare={"strategy": ["a"]}, space=lambda trial, strategy: spec, name="toy")


def export(
    network: Backbone, name: str, classes: tuple[str, ...], folder: Path, **choice: Any
) -> Model:
    """Write a network, and read what was written."""
    about = describe(network, name, classes, **choice)
    folder.mkdir(parents=True, exist_ok=True)
    write(folder, plain_network(network, None), about, network.input)
    return open_model(folder)
