"""Every family of backbones, timm's and torchvision's, has the properties that freezing relies on."""

from __future__ import annotations

import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from harness import strategies
from harness.backbones import Backbone, timm_models
from harness.core.spec import TrialSpec
from harness.training.device import Cpu
from harness.training.loop import Fit, start
from harness.training.optimizer import GroupedOptimizer, Schedule

pytestmark = pytest.mark.filterwarnings(
    # 2026-11: timm 1.0.31 with torch 2.15, when Swin's position tables are resized
    "ignore:Using a non-tuple sequence for multidimensional indexing:UserWarning",
    "ignore:torch.searchsorted:UserWarning",
)


class Family(NamedTuple):
    """A member of a family, an input size it takes, and how many groups its architecture has."""

    name: str
    size: int
    groups: int


FAMILIES = [
    Family("resnet18", 32, 6),  # stem, 4 stages, head
    Family("resnet50", 32, 6),
    Family("vgg16", 32, 7),  # 5 stages between poolings, hidden layers, head
    Family("vgg16_bn", 32, 7),
    Family("inception_v3", 75, 14),  # 2 parts of the stem, 11 mixed blocks, head
    Family("mobilenetv2_100", 32, 9),  # stem, 7 stages, head
    Family("mobilenetv3_small_100", 32, 8),  # stem, 5 stages and the last convolution, head
    Family("efficientnet_b0", 32, 9),
    Family("tf_efficientnet_lite0", 32, 9),
    Family("densenet121", 32, 6),  # stem, 4 dense blocks, head
    Family("convnext_atto", 32, 6),
    Family("vit_tiny_patch16_224", 32, 14),  # embedding, 12 blocks, head
    Family("deit_tiny_patch16_224", 32, 14),
    Family("deit_tiny_distilled_patch16_224", 32, 14),
    Family("swin_tiny_patch4_window7_224", 64, 6),
    Family("torchvision:resnet18", 32, 6),
    Family("torchvision:vgg16", 32, 7),
    Family("torchvision:inception_v3", 75, 15),  # the stem's two last convolutions by themselves
    Family("torchvision:mobilenet_v2", 32, 9),
    Family("torchvision:mobilenet_v3_small", 32, 13),  # stem, 11 blocks, head
    Family("torchvision:efficientnet_b0", 32, 9),
    Family("torchvision:densenet121", 32, 6),
    Family("torchvision:convnext_tiny", 32, 6),
    Family("torchvision:swin_t", 32, 6),
    Family("torchvision:vit_b_16", 224, 14),
]
CLASSES = 10


class Case(NamedTuple):
    """A family with a trial that has not begun, and its network."""

    family: Family
    fit: Fit
    network: Backbone


class SmallLinear(nn.Linear):
    """64 units where torchvision's VGG has 4096."""

    def __init__(self, inside: int, outside: int) -> None:
        inside, outside = (64 if units == 4096 else units for units in (inside, outside))
        super().__init__(inside, outside)


@pytest.fixture(scope="module", autouse=True)
def small_vggs() -> Iterator[None]:
    """VGGs with 64 instead of 4096 units in their hidden layers, for time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timm_models.TimmModels, "create", lambda self, name: timm_model(name))
        small = SimpleNamespace(**{**vars(nn), "Linear": SmallLinear})
        patch.setattr("torchvision.models.vgg.nn", small)
        yield


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda f: f.name)
def case(request: pytest.FixtureRequest) -> Case:
    """One build for all tests of a family."""
    family: Family = request.param
    fit = start(make_spec(family, strategies.FullFineTune()), Cpu())
    images = torch.randn(4, 3, family.size, family.size, generator=torch.Generator().manual_seed(1))
    # Without statistics that fit the random weights, some networks (Inception) give logits of 1e7.
    torch.optim.swa_utils.update_bn([images], fit._backbone.model)
    return Case(family, fit, fit._backbone)


@pytest.fixture
def light(case: Case) -> Case:
    """All but the largest: torchvision's ViT takes 224 px only, which is seconds per step."""
    if case.family.size == 224:
        pytest.skip("too slow to train: construction and groups only")
    return case


def make_spec(family: Family, strategy: strategies.Strategy) -> TrialSpec:
    """One step on one image of each digit."""
    return TrialSpec(
        target="digits",
        backbone=family.name,
        strategy=strategy,
        source="scratch",
        shots=1,
        val_shots=1,
        test_shots=1,
        resolution=family.size,
        epochs=1,
        batch_size=16,
        optimizer="sgd",
        lr=1e-3,
        weight_decay=0.1,
    )


def tensors(network: Backbone) -> dict[str, torch.Tensor]:
    """Every parameter and buffer, those that state_dict leaves out too."""
    return dict(network.model.named_parameters()) | dict(network.model.named_buffers())


def changed_by(case: Case, strategy: strategies.Strategy, steps: int) -> set[str]:
    """Train on random images; the names of the tensors that changed by any bit."""
    network = case.network
    before = {n: t.detach().clone() for n, t in tensors(network).items()}
    optimizer = GroupedOptimizer(network, make_spec(case.family, strategy), Schedule(steps, 0))
    optimizer.begin_epoch(strategy.lr_scales(len(network.groups), 0), 0)
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        images = torch.randn(4, 3, case.family.size, case.family.size, generator=generator)
        optimizer.step(F.cross_entropy(network.model(images), torch.arange(4)), step)
    after = tensors(network)
    return {n for n, t in before.items() if not torch.equal(t, after[n])}


def library_model(family: Family) -> nn.Module:
    """The same architecture by the library alone."""
    if family.name.startswith("torchvision:"):
        name = family.name.removeprefix("torchvision:")
        extra = {"aux_logits": False, "init_weights": False} if "inception" in name else {}
        found: nn.Module = torchvision.models.get_model(name, num_classes=CLASSES, **extra)
        return found
    if "vit" in family.name or "deit" in family.name:
        return timm_model(family.name, num_classes=CLASSES, img_size=family.size)
    model = timm_model(family.name, num_classes=CLASSES)
    if "swin" in family.name:
        model.set_input_size((family.size, family.size))  # type: ignore[operator]
    return model


def timm_model(name: str, **options: Any) -> nn.Module:
    """timm's network; a VGG with 64 instead of 4096 units in its first hidden layer, for time."""
    if name.startswith("vgg"):
        options["mlp_ratio"] = 1 / 64
    return timm.create_model(name, **options)


# --- groups ----------------------------------------------------------------------------------------


def test_every_tensor_of_the_model_is_in_exactly_one_group(case: Case) -> None:
    own = tensors(case.network)
    held = [(n, t) for g in case.network.groups for n, t in {**g.parameters, **g.buffers}.items()]
    assert sorted(n for n, _ in held) == sorted(own)
    assert all(t is own[n] for n, t in held)
    parameters = {n for g in case.network.groups for n in g.parameters}
    assert parameters == {n for n, _ in case.network.model.named_parameters()}


def test_last_group_is_the_linear_layer_that_gives_the_classes(case: Case) -> None:
    """Two layers in distilled DeiT. No hidden layer of any family has ten outputs."""
    heads = {
        f"{path}.{n}"
        for path, module in case.network.model.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == CLASSES
        for n, _ in module.named_parameters()
    }
    assert heads
    assert set(case.network.groups[-1].parameters) == heads
    assert not case.network.groups[-1].buffers


def test_groups_are_the_stages_of_the_architecture_under_names_of_their_own(case: Case) -> None:
    names = [g.name for g in case.network.groups]
    assert len(names) == case.family.groups
    assert len(set(names)) == len(names)
    assert names[-1] == "head"
    assert all(g.parameters for g in case.network.groups)


# --- computing -------------------------------------------------------------------------------------


def test_network_computes_what_its_library_computes_with_the_same_weights(light: Case) -> None:
    theirs = library_model(light.family)
    theirs.load_state_dict(light.network.model.state_dict(), assign=True)
    theirs = theirs.to(memory_format=torch.channels_last).eval()
    torch.manual_seed(0)
    images = torch.randn(2, 3, light.family.size, light.family.size)
    with torch.inference_mode():
        got, wanted = light.network.model.eval()(images), theirs(images)
    assert got.shape == (2, CLASSES)
    assert got.std() > 0
    # The same operations in the same memory order: float32 rounding at most.
    torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-6)


def test_linear_probe_leaves_all_but_the_head_bitwise_unchanged(light: Case) -> None:
    changed = changed_by(light, strategies.LinearProbe(), steps=2)
    assert changed == set(light.network.groups[-1].parameters)


def test_last_block_moves_its_own_two_groups_alone(light: Case) -> None:
    changed = changed_by(light, strategies.LastBlock(), steps=1)
    block, head = light.network.groups[-2:]
    assert changed <= {*block.parameters, *block.buffers, *head.parameters}
    assert changed >= set(head.parameters)
    # Biases do not decay: what moved them is a gradient.
    assert changed & {n for n in block.parameters if n.endswith("bias")}


def test_every_weight_has_the_rate_of_its_depth_in_the_optimiser(case: Case) -> None:
    strategy, groups = strategies.DiscriminativeLR(0.5), case.network.groups
    optimizer = GroupedOptimizer(case.network, make_spec(case.family, strategy), Schedule(1, 0))
    optimizer.begin_epoch(strategy.lr_scales(len(groups), 0), 0)
    # Rates are set at a step, whatever the loss; this one spares the pass through the network.
    optimizer.step(sum((p.sum() for p in groups[-1].parameters.values()), torch.zeros(())), 0)
    rates = {id(p): e["lr"] for e in optimizer._torch.param_groups for p in e["params"]}
    for depth, group in enumerate(groups):
        found = [rates.pop(id(p)) for p in group.parameters.values()]
        assert found == pytest.approx([1e-3 * 0.5 ** (len(groups) - 1 - depth)] * len(found))
    assert not rates


@pytest.mark.slow
def test_trial_under_audit_completes(light: Case) -> None:
    (epoch,) = light.fit
    assert light.fit._audit is not None
    result = light.fit.finish(test=True)
    assert result.outcome == "complete"
    assert math.isfinite(epoch.val_loss)
    assert 0 <= result.metrics["test_accuracy"] <= 1
