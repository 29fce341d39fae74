"""Trials on an accelerator: scores, peak memory, replay, checkpoints. Skipped where there is none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import gpu
from harness import strategies
from harness.core.results import EpochResult, Predictions, TrialResult
from harness.core.spec import TrialSpec
from harness.data.cached import Cache
from harness.training.device import resolve_device
from harness.training.loop import Training
from harness.training.trial import TrialTask, run_trial
from tests.trials import MakeSpec

needs_accelerator = pytest.mark.skipif(
    not torch.accelerator.is_available(), reason="this machine has no accelerator"
)
KINDS = (
    strategies.LinearProbe(),
    strategies.LastBlock(),
    strategies.FullFineTune(),
    strategies.LoRA(),
)


def result(spec: TrialSpec, device: str = "auto", cache: Cache = Cache()) -> TrialResult:
    *_, last = run_trial(TrialTask(spec, test=True, device=device, cache=cache))
    assert isinstance(last, TrialResult)
    assert last.outcome == "complete", last.reason
    return last


def predictions(spec: TrialSpec, device: str = "auto", cache: Cache = Cache()) -> Predictions:
    found = result(spec, device, cache).predictions
    assert found is not None
    return found


@needs_accelerator
@pytest.mark.parametrize("strategy", KINDS, ids=repr)
def test_trial_on_the_accelerator_agrees_with_that_on_the_cpu(
    strategy: strategies.Strategy, make_spec: MakeSpec
) -> None:
    spec = make_spec(strategy=strategy, epochs=1, lr=1e-4)
    here, there = predictions(spec), predictions(spec, "cpu")
    # TF32 is off; kernels differ in the order of sums.
    np.testing.assert_allclose(here.probability, there.probability, atol=1e-3)


@needs_accelerator
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_same_spec_gives_the_same_bits_twice(precision: str, make_spec: MakeSpec) -> None:
    spec = make_spec(precision=precision)
    assert np.array_equal(predictions(spec).probability, predictions(spec).probability)


@needs_accelerator
def test_kept_outputs_of_frozen_groups_change_no_prediction(
    make_spec: MakeSpec, tmp_path: Path
) -> None:
    spec, cache = make_spec(strategy=strategies.LastBlock()), Cache(tmp_path, 2**30)
    first, again = predictions(spec, cache=cache), predictions(spec, cache=cache)
    assert np.array_equal(first.probability, again.probability)
    plain = predictions(spec)
    np.testing.assert_allclose(first.probability, plain.probability, atol=1e-3)


@needs_accelerator
def test_measured_peak_is_near_its_forecast(make_spec: MakeSpec) -> None:
    spec = make_spec(backbone="resnet18", resolution=64)
    share = result(spec).metrics.get("measured_over_forecast")
    if share is not None:  # some accelerators measure no peak
        assert 0.8 < share < 1.3


@needs_accelerator
def test_training_goes_on_bitwise_after_a_checkpoint(make_spec: MakeSpec) -> None:
    spec, device = make_spec(epochs=3), resolve_device("auto")
    fit = Training(spec, device)
    whole: list[EpochResult] = []
    for epoch in fit:
        whole.append(epoch)
        if epoch.epoch == 0:
            kept = fit.checkpoint()
    resumed = list(Training(spec, device, checkpoint=kept))
    assert [e.val_loss for e in resumed] == [e.val_loss for e in whole[1:]]


@needs_accelerator
@pytest.mark.parametrize("augment", ["none", "flip_crop", "rotation"])
def test_where_examples_are_makes_no_difference(augment: str, make_spec: MakeSpec) -> None:
    spec, device = make_spec(augment=augment), resolve_device("auto")
    fits = [Training(spec, replace(device, room=room)) for room in (0, 2**30)]
    losses = [[epoch.val_loss for epoch in fit] for fit in fits]
    assert losses[0] == losses[1]
    resident = [fit.finish(test=False).metrics.get("resident_examples_mib") for fit in fits]
    assert resident == [None, 90 * 3 * 32 * 32 / 2**20]


def test_without_an_accelerator_the_benchmark_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: None)
    assert gpu.main([]) == 2
    assert "no accelerator" in capsys.readouterr().err


@pytest.mark.slow
def test_benchmark_runs_on_the_cpu_too(tmp_path: Path) -> None:
    limits = ("--minutes", "60", "--out", str(tmp_path / "gpu.md"))
    assert gpu.main(["--on-cpu", *limits]) == 0
    table = (tmp_path / "gpu.md").read_text()
    assert "failed" not in table
    assert "stopped" not in table
    assert table.count("| timm, trials per hour |") == 4
    assert table.count("| bitwise replay |") == table.count("| equal |") == 2
