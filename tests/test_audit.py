"""The audit lets honest training pass and catches the smallest breach."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from harness.backbones import Backbone, build
from harness.core.strategies import Scales
from harness.training.audit import Audit, AuditFailed, digest

Harm = Callable[[Backbone], None]


@pytest.fixture
def network() -> Backbone:
    return build("test_resnet", "scratch", 3, seed=0)


def first_tensor(network: Backbone, g: int) -> torch.Tensor:
    return next(iter(network.groups[g].parameters.values())).data


def train(network: Backbone, groups: range) -> None:
    """Stand-in for a step: every parameter of these groups moves."""
    for g in groups:
        for parameter in network.groups[g].parameters.values():
            parameter.data.add_(0.01)


def probe(network: Backbone) -> Scales:
    return (None,) * (len(network.groups) - 1) + (1.0,)


def full(network: Backbone) -> Scales:
    return (1.0,) * len(network.groups)


@pytest.mark.parametrize("step", [0, 1], ids=["linear probe", "gradual unfreezing"])
def test_honest_training_passes(network: Backbone, step: int) -> None:
    audit, count = Audit(network.groups), len(network.groups)
    for epoch in range(count):
        trained = range(count - 1 - step * epoch, count)
        audit.begin_epoch(tuple(1.0 if g in trained else None for g in range(count)))
        train(network, trained)
    audit.finish()


def one_ulp(network: Backbone) -> None:
    tensor = first_tensor(network, 2)
    at = (0,) * tensor.ndim
    tensor[at] = torch.nextafter(tensor[at], torch.tensor(torch.inf))


def sign_of_zero(network: Backbone) -> None:
    bias = network.groups[2].parameters["layer2.0.bn1.bias"].data
    assert bias[0] == 0
    bias[0] = -0.0


def running_mean(network: Backbone) -> None:
    network.groups[2].buffers["layer2.0.bn1.running_mean"][0] += 1e-3


def batches_tracked(network: Backbone) -> None:
    network.groups[2].buffers["layer2.0.bn1.num_batches_tracked"] += 1


@pytest.mark.parametrize("harm", [one_ulp, sign_of_zero, running_mean, batches_tracked])
def test_any_change_in_a_frozen_group_is_caught_by_name(network: Backbone, harm: Harm) -> None:
    audit, count = Audit(network.groups), len(network.groups)
    audit.begin_epoch(probe(network))
    train(network, range(count - 1, count))
    harm(network)
    with pytest.raises(AuditFailed, match=f"group {network.groups[2].name} was frozen but changed"):
        audit.finish()


def test_change_while_frozen_is_caught_though_the_group_is_thawed_later(network: Backbone) -> None:
    audit = Audit(network.groups)
    audit.begin_epoch(probe(network))
    running_mean(network)
    with pytest.raises(AuditFailed, match=f"group {network.groups[2].name} was frozen but changed"):
        audit.begin_epoch(full(network))


def test_change_after_a_group_is_frozen_again_is_caught(network: Backbone) -> None:
    audit, count = Audit(network.groups), len(network.groups)
    audit.begin_epoch(full(network))
    train(network, range(count))
    audit.begin_epoch(probe(network))
    one_ulp(network)
    with pytest.raises(AuditFailed, match="was frozen but changed"):
        audit.finish()


@pytest.mark.parametrize("idle", [0, 2])
def test_trained_group_that_did_not_move_is_caught_by_name(network: Backbone, idle: int) -> None:
    """Also if its statistics did."""
    audit, count = Audit(network.groups), len(network.groups)
    audit.begin_epoch(full(network))
    train(network, range(idle))
    train(network, range(idle + 1, count))
    running_mean(network)  # of the third group
    said = f"group {network.groups[idle].name} should have been trained but did not change"
    with pytest.raises(AuditFailed, match=said):
        audit.finish()


@pytest.mark.parametrize(
    ("rates", "fine"),
    [
        ({0: {0.0}, 1: {0.05}, 2: {0.2}}, True),
        ({0: {0.0}, 1: {0.05, 0.06}, 2: {0.2}}, False),
        ({0: {0.0}, 1: {0.1}, 2: {0.2}}, False),
        ({0: {1e-9}, 1: {0.05}, 2: {0.2}}, False),
    ],
)
def test_learning_rate_that_is_not_the_strategys_is_caught(
    network: Backbone, rates: dict[int, set[float]], fine: bool
) -> None:
    audit = Audit(network.groups[:3])
    scales, rate = (None, 0.5, 1.0), [0.1, 0.1, 0.2]
    if fine:
        audit.check_rates(rates, scales, rate)
    else:
        with pytest.raises(AuditFailed, match=r"group .*: learning rate"):
            audit.check_rates(rates, scales, rate)


def test_digest_tells_values_names_and_types_apart() -> None:
    one = torch.ones(2)
    different = [
        {"a": one}, {"b": one}, {"a": one.double()}, {"a": one, "b": one}, {"a": torch.zeros(2)},
    ]  # fmt: skip
    assert len({digest(t) for t in different}) == len(different)
    assert digest({"a": torch.ones(2)}) == digest({"a": one})
    channels_last = torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last)
    assert digest({"a": channels_last}) == digest({"a": channels_last.contiguous()})
