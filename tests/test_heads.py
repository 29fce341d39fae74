"""Heads on an earlier layer group, with a hidden layer, or with attentive pooling: what they compute, and
that training, caching and export treat them like any other head."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from torchvision.models.feature_extraction import create_feature_extractor

from harness.backbones import Backbone, as_graph, build, separate
from harness.backbones.heads import EfficientProbing
from harness.core.spec import TrialSpec
from harness.core.strategies import (
    L2SP,
    BiasOnly,
    FeatureTransfer,
    FullFineTune,
    GradualUnfreezing,
    LastBlock,
    LinearProbe,
    LoRA,
    NormOnly,
    Strategy,
    Surgical,
)
from harness.data.cached import Cache
from harness.deploy.onnx import write_onnx
from harness.inputs import Pixels
from harness.search.preflight import check_study
from harness.training.device import Cpu
from harness.training.inference_cost import inference_cost
from tests.refusals import refused
from tests.trials import NOTHING_KEPT, MakeSpec, export, run, study_of

needs_peft = pytest.mark.skipif(find_spec("peft") is None, reason="extra lora is not installed")


def blank(size: int, count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def logits(network: Backbone, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = network.model.eval()(images)
    return found


# --- what they compute -------------------------------------------------------------------------------


def test_efficient_probing_is_the_formula_of_the_paper() -> None:
    width, count = 64, 5
    pool = EfficientProbing(width)
    tokens = torch.randn(2, count, width, generator=torch.Generator().manual_seed(1))
    nn.init.normal_(pool.queries, generator=torch.Generator().manual_seed(2))
    queries, values = pool.queries.detach(), pool.values.weight.detach()
    for image, found in zip(tokens, pool(tokens).detach(), strict=True):
        parts = []
        for m, query in enumerate(queries):
            scores = [math.exp(float(query @ token) / math.sqrt(width)) for token in image]
            rows = values[m * width // len(queries) : (m + 1) * width // len(queries)]
            parts.append(
                sum(s / sum(scores) * (rows @ x) for s, x in zip(scores, image, strict=True))
            )
        torch.testing.assert_close(found, torch.cat(parts), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("width", "queries"), [(64, 32), (48, 16), (31, 1)])
def test_queries_divide_the_width(width: int, queries: int) -> None:
    pool = EfficientProbing(width)
    assert pool.queries.shape == (queries, width)
    assert pool(torch.zeros(2, 3, width)).shape == (2, width)


Truth = Callable[[nn.Module, torch.Tensor], torch.Tensor]


def by_timm(stage: int) -> Truth:
    """Mean over positions of timm's own intermediate output."""

    def features(whole: nn.Module, images: torch.Tensor) -> torch.Tensor:
        (found,) = whole.forward_intermediates(  # type: ignore[operator]
            images, indices=[stage], intermediates_only=True, output_fmt="NCHW", norm=False
        )
        mean: torch.Tensor = found.mean((2, 3))
        return mean

    return features


def by_torchvision(node: str, dims: tuple[int, ...]) -> Truth:
    """Mean over positions of the output of one node; a class token is left out."""

    def features(whole: nn.Module, images: torch.Tensor) -> torch.Tensor:
        found = create_feature_extractor(whole, [node])(images)[node]
        mean: torch.Tensor = (found[:, 1:] if found.ndim == 3 else found).mean(dims)
        return mean

    return features


@pytest.mark.parametrize(
    ("name", "size", "depth", "truth"),
    [
        ("test_resnet", 64, 3, by_timm(2)),
        ("test_efficientnet", 64, 3, by_timm(1)),
        ("test_vit", 64, 4, by_timm(2)),
        ("vit_small_patch14_reg4_dinov2", 28, 3, by_timm(1)),
        ("swin_tiny_patch4_window7_224", 224, 2, by_timm(0)),
        ("torchvision:swin_t", 64, 2, by_torchvision("features.2", (1, 2))),
        (
            "torchvision:vit_b_32",
            224,
            2,
            by_torchvision("encoder.layers.encoder_layer_0.add_1", (1,)),
        ),
        ("torchvision:vgg11", 64, 2, by_torchvision("features.5", (2, 3))),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.slow
def test_a_linear_head_reads_the_mean_of_an_earlier_output(
    name: str, size: int, depth: int, truth: Truth
) -> None:
    network = build(name, "scratch", 5, seed=0, resolution=size, depth=depth)
    whole = build(name, "scratch", 5, seed=0, resolution=size).model.eval()
    images = blank(size)
    found = logits(network, images)
    assert isinstance(network.head, nn.Linear)
    with torch.no_grad():
        features = truth(whole, images)
        wanted = network.head(F.layer_norm(features, features.shape[1:]))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert not torch.equal(found[0], found[1])


def test_an_attentive_head_reads_the_tokens_before_pooling() -> None:
    network = build("test_vit", "scratch", 5, seed=0, resolution=64, head="attentive")
    plain, images = build("test_vit", "scratch", 5, seed=0, resolution=64), blank(64)
    assert isinstance(network.head, nn.Sequential)
    probe, classifier = network.head
    with torch.no_grad():
        tokens = plain.model.eval().forward_features(images)[:, 1:]  # type: ignore[operator]
        wanted = classifier(probe(F.layer_norm(tokens, tokens.shape[2:])))
    torch.testing.assert_close(logits(network, images), wanted)


def test_a_hidden_layer_reads_the_networks_own_features() -> None:
    network = build("test_resnet", "scratch", 5, seed=0, head="mlp")
    plain, images = build("test_resnet", "scratch", 5, seed=0), blank(64)
    assert isinstance(network.head, nn.Sequential)
    first, _, last = network.head
    whole: Any = plain.model.eval()
    with torch.no_grad():
        features = whole.forward_head(whole.forward_features(images), pre_logits=True)
        wanted = last(F.gelu(first(features)))
    torch.testing.assert_close(logits(network, images), wanted)


def test_every_classifier_of_a_network_gets_a_hidden_layer() -> None:
    network = build(
        "deit_tiny_distilled_patch16_224", "scratch", 5, seed=0, resolution=64, head="mlp"
    )
    assert [len(list(head.parameters())) for head in network.heads] == [4, 4]
    assert len(network.groups[-1].parameters) == 8


# --- groups ------------------------------------------------------------------------------------------

CHOICES: list[dict[str, Any]] = [
    {"depth": 2},
    {"head": "mlp"},
    {"head": "mlp", "depth": 3},
    {"head": "attentive"},
    {"head": "attentive", "depth": 2},
]


def names(choice: dict[str, Any]) -> str:
    return "-".join(map(str, choice.values()))


@pytest.mark.parametrize("choice", CHOICES, ids=names)
@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "small_cnn"])
def test_only_the_leading_groups_and_the_head_remain(name: str, choice: dict[str, Any]) -> None:
    network = build(name, "scratch", 5, seed=0, resolution=64, **choice)
    plain = build(name, "scratch", 5, seed=0, resolution=64)
    depth = choice.get("depth", len(plain.groups) - 1)
    assert [g.name for g in network.groups] == [*(g.name for g in plain.groups[:depth]), "head"]
    own = [n for n, _ in (*network.model.named_parameters(), *network.model.named_buffers())]
    assert sorted(n for g in network.groups for n in (*g.parameters, *g.buffers)) == sorted(own)
    for kept, whole in zip(network.groups[:-1], plain.groups, strict=False):
        for n, parameter in kept.parameters.items():
            torch.testing.assert_close(parameter, whole.parameters[n.removeprefix("body.network.")])
    head = {id(p) for module in network.heads for p in module.parameters()}
    assert {id(p) for p in network.groups[-1].parameters.values()} == head
    # Every parameter that remains has an influence.
    network.model.train()(blank(64)).sum().backward()
    assert all(p.grad is not None for p in network.model.parameters())


def test_one_seed_gives_one_head_whatever_the_source_and_adapters(tmp_path: Path) -> None:
    plain = build("test_vit", "scratch", 5, seed=7, resolution=64)
    save_file(separate(plain.model.state_dict()), tmp_path / "weights.safetensors")

    def head(source: str, seed: int, rank: int = 0) -> torch.Tensor:
        choice: dict[str, Any] = {"head": "attentive", "lora_rank": rank}
        network = build("test_vit", source, 5, seed, resolution=64, **choice)
        return torch.cat([p.detach().flatten() for p in network.head.parameters()])

    one = head("scratch", 0)
    assert torch.equal(one, head(f"file:{tmp_path / 'weights.safetensors'}", 0))
    assert torch.equal(one, head("scratch", 0, rank=2 if find_spec("peft") else 0))
    assert not torch.equal(one, head("scratch", 1))


def test_a_shallower_network_costs_less() -> None:
    whole, shallow = (
        inference_cost("test_resnet", 7, 64, Cpu(), depth=depth) for depth in (None, 2)
    )
    assert shallow["parameters"] < whole["parameters"]
    assert shallow["multiply_adds"] < whole["multiply_adds"]
    assert shallow["weights_mib"] < whole["weights_mib"]


# --- a trial -----------------------------------------------------------------------------------------


WHOLE = {"shots": 16, "val_shots": 16, "test_shots": 16, "batch_size": 32}
"""Whole batches of 32, as many as the prefix takes at a time on a CPU."""


@pytest.mark.parametrize("choice", CHOICES, ids=names)
@pytest.mark.parametrize("strategy", [LinearProbe(), LastBlock(), GradualUnfreezing(1)])
@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
@pytest.mark.slow
def test_kept_outputs_give_bitwise_the_same_trial(
    backbone: str,
    strategy: Strategy,
    choice: dict[str, Any],
    make_spec: MakeSpec,
    tmp_path: Path,
) -> None:
    spec = make_spec(backbone=backbone, strategy=strategy, resolution=64, **WHOLE, **choice)
    assert TrialSpec.from_flat({k: str(v) for k, v in spec.flat().items()}) == spec
    _, without, plain = run(spec, NOTHING_KEPT)
    for _ in range(2):  # once to make them, once to read them
        _, epochs, result = run(spec, Cache(tmp_path / "cache"))
        assert [e.val_loss for e in epochs] == [e.val_loss for e in without]
        assert [e.train_loss for e in epochs] == [e.train_loss for e in without]
        assert result.metrics["test_loss"] == plain.metrics["test_loss"]
    assert result.outcome == "complete"  # the audit has passed
    if isinstance(strategy, LinearProbe):
        assert "kept after" in result.notes["prefix"]


def test_a_linear_probe_of_an_earlier_group_keeps_one_vector_an_image(
    make_spec: MakeSpec, tmp_path: Path
) -> None:
    spec = make_spec(strategy=LinearProbe(), resolution=64, depth=3)
    fit, _, result = run(spec, Cache(tmp_path / "cache"))
    assert isinstance(fit.backbone.head, nn.Linear)
    width = fit.backbone.head.in_features
    assert result.notes["prefix"] == f"kept after pool, {4 * width} B an example"


@pytest.mark.parametrize("choice", [{"depth": 3}, {"head": "attentive", "depth": 3}], ids=names)
@pytest.mark.parametrize(
    "strategy",
    [
        *(FullFineTune(), Surgical(1), NormOnly(), BiasOnly(), L2SP()),
        pytest.param(LoRA(2), marks=needs_peft),
    ],
)
def test_every_strategy_passes_its_audit(
    strategy: Strategy, choice: dict[str, Any], make_spec: MakeSpec
) -> None:
    spec = make_spec(backbone="test_vit", strategy=strategy, resolution=64, **choice)
    _, epochs, result = run(spec, NOTHING_KEPT)
    assert result.outcome == "complete"
    assert all(math.isfinite(e.val_loss) for e in epochs)
    shares = result.metrics["trainable_share"], result.metrics["trained_depth"]
    assert all(0 < share <= 1 for share in shares)


@pytest.mark.parametrize("classifier", ["logistic", "knn"])
def test_scikit_learn_classifies_the_features_of_an_earlier_group(
    classifier: Any, make_spec: MakeSpec, tmp_path: Path
) -> None:
    spec = make_spec(strategy=FeatureTransfer(classifier), resolution=64, depth=3, epochs=1)
    _, (epoch,), result = run(spec, Cache(tmp_path / "cache"))
    assert epoch.val_accuracy > 0.15  # of ten classes, by random weights
    assert result.notes["prefix"].startswith("kept after pool")


# --- export ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("choice", CHOICES, ids=names)
@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
@pytest.mark.slow
def test_an_exported_network_gives_its_logits(
    name: str, choice: dict[str, Any], tmp_path: Path
) -> None:
    network = build(name, "scratch", 3, seed=0, resolution=64, **choice)
    pixels = torch.randint(0, 255, (3, 3, 64, 64), dtype=torch.uint8)
    model = export(network, name, ("a", "b", "c"), tmp_path, **choice)
    wanted = logits(network, model.prepare(pixels))
    torch.testing.assert_close(model.logits(pixels), wanted, rtol=1e-5, atol=1e-6)
    if (name, choice) in (("test_resnet", {"depth": 2}), ("test_vit", {"head": "attentive"})):
        pytest.importorskip("onnxscript")
        assert write_onnx(model, tmp_path, pixels) < 1e-4  # takes seconds


@needs_peft
@pytest.mark.parametrize("choice", [{"depth": 2}, {"head": "attentive", "depth": 2}], ids=names)
def test_a_network_with_adapters_that_ends_early_is_exported_without_its_later_groups(
    choice: dict[str, Any], tmp_path: Path
) -> None:
    network = build("test_vit", "scratch", 3, seed=0, resolution=64, lora_rank=2, **choice)
    plain = build("test_vit", "scratch", 3, seed=0, resolution=64, **choice)
    generator = torch.Generator().manual_seed(3)
    for parameter in (p for n, p in network.model.named_parameters() if "lora_B" in n):
        parameter.data.normal_(generator=generator)
    model = export(network, "test_vit", ("a", "b", "c"), tmp_path, **choice)
    assert model.network.state_dict().keys() == plain.model.state_dict().keys()
    pixels = torch.randint(0, 255, (3, 3, 64, 64), dtype=torch.uint8)
    wanted = logits(network, model.prepare(pixels))
    torch.testing.assert_close(model.logits(pixels), wanted, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(wanted, logits(plain, model.prepare(pixels)), atol=1e-3)


def test_a_network_that_ends_early_can_be_exported_for_mlflow() -> None:
    """MLflow calls torch.export without strict mode, which follows no exceptions."""
    network = build("test_resnet", "scratch", 3, seed=0, resolution=64, depth=2).model.eval()
    graph = as_graph(network, blank(64))
    batch = ({0: torch.export.Dim("batch")},)
    exported = torch.export.export(graph, (blank(64),), dynamic_shapes=batch).module()
    torch.testing.assert_close(exported(blank(64, 5)), network(blank(64, 5)))


# --- refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": 9}, r"depth 9: test_resnet has 5 layer groups below its head \(conv1, .*1 to 5"),
        (
            {"head": "attentive"},
            "first 5 layer groups of test_resnet: with 32 x 32 .* several positions",
        ),
        (
            {"head": "mlp", "backbone": "torchvision:squeezenet1_1", "resolution": 64},
            "replaces a linear classifier, but that of torchvision:squeezenet1_1 is a Conv2d",
        ),
        (
            {"backbone": "crossvit_tiny_240", "depth": 2, "resolution": 64},
            "first 2 layer groups of crossvit_tiny_240.* a single tensor",
        ),
    ],
)
def test_a_network_that_cannot_have_the_head_is_refused_before_the_study_starts(
    changes: dict[str, Any], message: str, make_spec: MakeSpec
) -> None:
    spec = make_spec(strategy=LinearProbe(), **changes)
    with refused(message):
        check_study(study_of(spec))


# --- encoders trained without labels ------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "mean", "size", "skip"),
    [
        ("vit_small_patch14_dinov2.lvd142m", (0.485, 0.456, 0.406), 518, 1),
        ("vit_small_patch14_reg4_dinov2.lvd142m", (0.485, 0.456, 0.406), 518, 5),
        ("vit_small_patch16_dinov3.lvd1689m", (0.485, 0.456, 0.406), 256, 5),
        ("convnext_tiny.dinov3_lvd1689m", (0.485, 0.456, 0.406), 224, 0),
        (
            "vit_xsmall_patch16_clip_224.tinyclip_yfcc15m",
            (0.48145466, 0.4578275, 0.40821073),
            224,
            1,
        ),
        ("vit_base_patch32_clip_224.openai", (0.48145466, 0.4578275, 0.40821073), 224, 1),
        ("vit_base_patch16_siglip_224.webli", (0.5, 0.5, 0.5), 224, 0),
    ],
)
def test_towers_of_dino_clip_and_siglip_are_probed(
    name: str, mean: tuple[float, ...], size: int, skip: int, make_spec: MakeSpec, tmp_path: Path
) -> None:
    plain = build(name, "scratch", 5, seed=0)
    assert isinstance(plain.input, Pixels)
    assert plain.input.resolution == size
    assert plain.input.mean == pytest.approx(mean)
    assert getattr(plain.model, "num_prefix_tokens", 0) == skip
    blocks = [g.name for g in plain.groups]
    assert len(blocks) == (6 if "convnext" in name else 12 if "xsmall" in name else 14)
    assert blocks[-1] == "head"
    side = 112 if "patch14" in name else 128
    few = {"shots": 2, "val_shots": 2, "test_shots": 2, "epochs": 1}
    for choice in ({}, {"head": "attentive"}, {"depth": 2}):
        spec = make_spec(backbone=name, strategy=LinearProbe(), resolution=side, **few, **choice)
        _, _, result = run(spec, Cache(tmp_path / "cache"))
        assert result.outcome == "complete"
        assert "kept after" in result.notes["prefix"]


def test_a_copy_of_a_network_that_ends_early_ends_early_too() -> None:
    network = build("test_resnet", "scratch", 5, seed=0, depth=2)
    images = blank(64)
    copied = copy.deepcopy(network.model)
    assert torch.equal(copied.eval()(images), logits(network, images))
