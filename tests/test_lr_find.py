"""The learning-rate range test finds the useful range of a loss whose shape is known."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.lr_find import main
from harness.training.lr_range import suggest
from tests.refusals import refused
from tests.study_files import study_text


def test_suggestion_brackets_the_steepest_fall_and_a_tenth_of_the_minimum() -> None:
    rates = np.logspace(-6, 0, 121)
    falling = 2.3 - 2 / (1 + np.exp(-4 * (np.log10(rates) + 3)))  # steepest at 1e-3
    losses = falling + np.where(rates > 0.1, (np.log10(rates) + 1) * 50, 0)  # rises above 0.1
    steepest, tenth = suggest(rates.tolist(), losses.tolist(), smoothing=0.0)
    assert math.isclose(steepest, 1e-3, rel_tol=0.15)  # the grid's step is a factor of 1.12
    assert math.isclose(tenth, 1e-2, rel_tol=0.15)


def test_losses_that_are_not_finite_at_once_are_refused() -> None:
    with refused("diverged at once"):
        suggest([1e-6, 1e-5, 1e-4, 1e-3], [1.0, math.nan, math.inf, math.nan])


def test_command_prints_a_range_per_cell(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "tiny.py"
    arms = {"probe": "strategies.LinearProbe()", "features": "strategies.FeatureTransfer()"}
    sizes: dict[str, Any] = dict.fromkeys(("shots", "val_shots", "test_shots"), 5)
    file.write_text(study_text(arms, **sizes))
    assert main(["--space", str(file), "--steps", "20", "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("probe: search between ")
    assert lines[1] == "features: takes no gradient steps"
