"""Networks compute in a memory order in which their gradients are right."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import nn

from harness.backbones import Backbone, Group, build, check_gradients, memory_format
from harness.core.spec import TrialSpec
from harness.core.strategies import FullFineTune, LastBlock, LinearProbe
from harness.core.study import Study
from harness.inputs import Pixels
from harness.search import preflight
from tests.processes import python
from tests.refusals import refused

CPU = torch.device("cpu")
LITE0 = "tf_efficientnet_lite0"


def conv(inside: int, kernel: int = 1, stride: int = 2, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inside, 48, kernel, stride, groups=groups, bias=False)


@pytest.mark.parametrize(
    ("layer", "fine"),
    [
        (conv(3), False),
        (conv(2, stride=3), False),
        (conv(15, stride=4), False),
        (nn.Conv2d(8, 8, 1, (1, 2)), False),
        (conv(16), True),
        (conv(3, kernel=3), True),
        (conv(3, stride=1), True),
        (nn.Linear(3, 4), True),
    ],
)
def test_only_strided_1x1_convolutions_of_few_channels_need_contiguous_order(
    layer: nn.Module, fine: bool
) -> None:
    wanted = torch.channels_last if fine else torch.contiguous_format
    assert memory_format(nn.Sequential(nn.ReLU(), nn.Sequential(layer)), CPU) == wanted
    # On other devices the fault is not known.
    assert memory_format(nn.Sequential(layer), torch.device("cuda")) == torch.channels_last


@pytest.mark.parametrize("name", ["mobileone_s0", "repvgg_a0", "fastvit_t8", "gernet_s"])
def test_networks_with_such_a_layer_are_contiguous(name: str) -> None:
    network = build(name, "scratch", 3, seed=0)
    assert network.layout == torch.contiguous_format
    assert all(p.is_contiguous() for p in network.model.parameters())


@pytest.mark.parametrize("name", [LITE0, "resnet18", "convnext_atto", "torchvision:resnet18"])
def test_networks_without_such_a_layer_are_channels_last_as_ever(name: str) -> None:
    network = build(name, "scratch", 3, seed=0)
    assert network.layout == torch.channels_last
    kernels = [m.weight for m in network.model.modules() if isinstance(m, nn.Conv2d)]
    assert all(w.is_contiguous(memory_format=torch.channels_last) for w in kernels)


def test_gradients_of_full_fine_tuning_are_those_of_float64() -> None:
    """RepVGG at 32 px: in channels-last order and with AVX2 its stem's gradient was off by 4.4 times."""
    network = build("repvgg_a0", "scratch", 3, seed=0, resolution=32)
    images = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    def gradients(model: Any, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        logits = model.to(dtype).eval()(images.to(dtype).contiguous(memory_format=network.layout))
        logits.square().sum().backward()
        return {n: p.grad.double().clone() for n, p in model.named_parameters()}

    theirs = timm.create_model("repvgg_a0", num_classes=3)
    theirs.load_state_dict(network.model.state_dict())
    found = gradients(network.model, torch.float32)
    for name, wanted in gradients(theirs, torch.float64).items():
        assert (found[name] - wanted).norm() <= 1e-3 * wanted.norm(), name


# --- the check at the start of a study -------------------------------------------------------------


class Treacherous(torch.autograd.Function):
    """The identity, whose gradient is wrong for an input in channels-last order."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.wrong = x.is_contiguous(memory_format=torch.channels_last)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return gradients[0] * (1.14 if ctx.wrong else 1.0)


class Toy(nn.Module):
    def __init__(self, between: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.stem, self.head, self.between = nn.Conv2d(3, 8, 3), nn.Linear(8, 2), between

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.head(self.between(self.stem(x)).mean((2, 3)))
        return result


def toy(between: Callable[[torch.Tensor], torch.Tensor]) -> Backbone:
    torch.manual_seed(0)
    model = Toy(between)
    groups = tuple(
        Group(n, {f"{n}.{k}": p for k, p in model.get_submodule(n).named_parameters()}, {})
        for n in ("stem", "head")
    )
    return Backbone(model, (model.head,), groups, (), frozenset(), Pixels(16))


def test_a_gradient_that_depends_on_the_order_is_refused_by_name() -> None:
    said = r"backbone toy on 16 x 16 pixels: torch \S+ computes wrong gradients .*stem\.\w+ is wrong by 14%"
    with refused(said):
        check_gradients(toy(lambda x: Treacherous.apply(x)), "toy")


@pytest.mark.parametrize("between", [torch.relu, torch.sign, lambda x: (x * 1e4).sin()])
def test_kinks_rounding_and_gradients_that_are_zero_are_let_pass(
    between: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    check_gradients(toy(between), "toy")


@pytest.mark.parametrize("name", ["test_resnet", "dla46x_c", LITE0])
def test_the_check_leaves_the_network_as_it_was(name: str) -> None:
    """One value of dla46x_c lies on the other side of a kink in the other order, for the first images."""
    network = build(name, "scratch", 3, seed=0, resolution=96)
    network.train_mode({0})
    before = {n: t.clone() for n, t in network.model.state_dict().items()}
    modes = [m.training for m in network.model.modules()]
    check_gradients(network, name)
    assert all(torch.equal(t, before[n]) for n, t in network.model.state_dict().items())
    assert [m.training for m in network.model.modules()] == modes
    assert all(p.grad is None for p in network.model.parameters())


# --- the fault itself ------------------------------------------------------------------------------

CHILD = """
import torch

def gradients(order, dtype, kernel, stride, inside):
    draw = torch.Generator().manual_seed(0)
    layer = torch.nn.Conv2d(inside, 48, kernel, stride, bias=False)
    layer.weight.data = torch.randn(layer.weight.shape, generator=draw)
    layer = layer.to(dtype).to(memory_format=order)
    images = torch.randn(5, inside, 64, 64, generator=draw).to(dtype).contiguous(memory_format=order)
    for _ in range(1 if dtype == torch.float64 else 8):
        layer.weight.grad = None
        out = layer(images)
        out.backward(torch.ones_like(out))
    return layer.weight.grad.double().contiguous()

torch.set_num_threads(1)
for case in {cases}:
    wanted = gradients(torch.contiguous_format, torch.float64, *case)
    found = gradients(torch.{order}, torch.{dtype}, *case)
    off = (found - wanted).norm() / wanted.norm()
    assert off < {allowed}, f"{{case}} is off by {{off:.2g}}"
"""
Case = tuple[int, int, int]
"""Kernel, stride, input channels."""


def run_child(cases: list[Case], order: str, dtype: str = "float32", isa: str = "") -> str:
    """What a child says of gradients that are wrong, or how it died; "" if all are right."""
    allowed = {"float32": 1e-4, "bfloat16": 3e-2}[dtype]
    text = CHILD.format(cases=cases, order=order, dtype=dtype, allowed=allowed)
    variables = {"ONEDNN_MAX_CPU_ISA": isa} if isa else {}
    try:
        done = python("-c", text, timeout=200, more=variables)
    except subprocess.TimeoutExpired:
        return "hangs"
    return f"exit status {done.returncode}: {done.stderr[-300:]}" if done.returncode else ""


@pytest.mark.slow
@pytest.mark.parametrize("isa", ["", "AVX2"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_layers_that_stay_in_channels_last_order_are_right(dtype: str, isa: str) -> None:
    """2026-11-29, torch 2.14.1, AVX-512 and AMX."""
    fine = [(1, 1, 3), (1, 2, 16), (1, 2, 24), (1, 3, 17), (2, 2, 3), (3, 2, 3), (5, 4, 8)]
    assert run_child(fine, "channels_last", dtype, isa) == ""


@pytest.mark.slow
@pytest.mark.parametrize("isa", ["", "AVX2"])
def test_layers_that_are_kept_from_it_are_right_in_contiguous_order(isa: str) -> None:
    faulty = [(1, 2, 2), (1, 2, 3), (1, 2, 7), (1, 2, 12), (1, 2, 15), (1, 3, 3)]
    assert run_child(faulty, "contiguous_format", isa=isa) == ""


@pytest.mark.slow
def test_the_fault_is_still_there_so_that_the_rule_is_still_needed() -> None:
    """2026-11-29, torch 2.14.1: exit status -11 or -6 nearly every time."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("torch without oneDNN")
    assert any(run_child([(1, 2, inside)] * 3, "channels_last", isa="AVX2") for inside in (3, 7))


@pytest.mark.parametrize(("strategies", "times"), [(["probe"], 0), (["probe", "full", "last"], 1)])
def test_gradients_are_checked_once_per_network_that_trains_more_than_its_head(
    strategies: list[str], times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[str] = []
    monkeypatch.setattr(preflight, "check_gradients", lambda _, name: checked.append(name))
    kinds = {"probe": LinearProbe(), "full": FullFineTune(), "last": LastBlock()}

    def space(_: object, strategy: str) -> TrialSpec:
        return TrialSpec(
            target="digits",
            backbone="test_resnet",
            source="scratch",
            strategy=kinds[strategy],
            shots=2,
            resolution=32,
        )

    preflight.check_study(Study({"strategy": strategies}, space, name="toy"))
    assert checked == ["test_resnet"] * times
