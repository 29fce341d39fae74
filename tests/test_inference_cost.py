"""What a network costs to use: counts against hand-worked ones and timm's, and limits on them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from analysis import compare, recommend, report
from analysis.load import StudyTable
from harness.training.device import Cpu
from harness.training.inference_cost import inference_cost
from harness.training.loop import start
from tests.made_studies import scored, table
from tests.refusals import refused
from tests.trials import MakeSpec


def by_hand(model: nn.Module, size: int) -> int:
    """Multiply-adds of convolutions and linear layers, from the shapes that pass through them."""
    found: list[int] = []

    def note(module: nn.Module, _: object, out: torch.Tensor) -> None:
        weight = module.weight
        assert isinstance(weight, torch.Tensor)
        found.append(out.numel() * weight[0].numel())

    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(note)
    with torch.no_grad():
        model.eval()(torch.zeros(1, 3, size, size))
    return sum(found)


@pytest.mark.parametrize(("name", "size"), [("test_resnet", 32), ("tf_efficientnet_lite0", 48)])
def test_counts_are_those_of_the_layers(name: str, size: int) -> None:
    model = timm.create_model(name, num_classes=7)
    found = inference_cost(name, 7, size, Cpu())
    assert found["parameters"] == sum(p.numel() for p in model.parameters())
    assert found["multiply_adds"] == by_hand(model, size)
    stored = [t for t in model.state_dict().values() if t.ndim or t.dtype == torch.int64]
    assert found["weights_mib"] == sum(t.numel() * t.element_size() for t in stored) / 2**20
    assert found["latency_ms"] > 0
    assert found["images_per_second"] > 0


@pytest.mark.parametrize(
    ("name", "millions", "billions"),
    [("vit_tiny_patch16_224", 5.72, 1.26), ("mobilenetv2_100", 3.50, 0.31)],
)
def test_counts_agree_with_those_that_timm_publishes(
    name: str, millions: float, billions: float
) -> None:
    """From the model cards of timm, which are rounded, and count small layers differently."""
    found = inference_cost(name, 1000, None, Cpu())
    assert found["parameters"] / 1e6 == pytest.approx(millions, abs=0.006)
    assert found["multiply_adds"] / 1e9 == pytest.approx(billions, rel=0.05)


def test_a_repeat_records_what_its_network_costs_and_a_tuning_trial_does_not(
    make_spec: MakeSpec,
) -> None:
    for test in (True, False):
        fit = start(make_spec(epochs=1), Cpu())
        assert list(fit)
        assert ("latency_ms" in fit.finish(test=test).metrics) is test


USED = {"parameters": 4e6, "multiply_adds": 2e7, "images_per_second": 100.0}


def two_networks() -> StudyTable:
    return table(
        [
            *scored("full", 0.9, latency_ms=20.0, weights_mib=40.0, **USED),
            *scored("probe", 0.8, latency_ms=5.0, weights_mib=10.0, **USED | {"parameters": 1e6}),
        ]
    )


def test_limits_on_latency_and_size_leave_out_what_exceeds_them() -> None:
    study = two_networks()
    assert recommend.recommend_cell(study)[0].startswith("Use “full”")
    for limits in ({"latency_ms": 10.0}, {"weights_mib": 20.0}):
        said = recommend.recommend_cell(study, limits=limits)
        assert said[0].startswith("Use “probe”")
    assert "left out: “full” (weights: 40 MiB, the limit is 20)" in said


def test_when_nothing_fits_the_nearest_is_named() -> None:
    said = recommend.recommend_cell(two_networks(), limits={"latency_ms": 4.0})
    assert said[0] == "No cell fits. “probe” is closest to the limits."
    assert "left out: “probe” (time of an example: 5 ms, the limit is 4)" in said


def test_a_cell_whose_latency_is_not_known_does_not_fit() -> None:
    study = table(scored("full", 0.9))
    rows = compare.choice(study.trials, study.info, {"latency_ms": 1e9})
    assert rows["why"].iloc[0] == "time of an example not measured"
    assert math.isnan(rows["over"].iloc[0])


def test_a_condition_on_no_factor_is_refused() -> None:
    with refused("factor"):
        recommend.recommend_cell(two_networks(), where=["colour=red"])


@pytest.mark.slow
def test_the_report_shows_accuracy_against_latency_where_networks_differ(tmp_path: Path) -> None:
    text = (report.build(two_networks(), tmp_path)).read_text(encoding="utf-8")
    assert "Accuracy against latency" in text
    assert "20 ms for a single example, and in batches reaches 100 examples per second" in text
