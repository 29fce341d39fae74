"""Networks of unusual make: groups by the order of parts, sizes that are named, heads that are all reset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from harness.backbones import Backbone, build, check_size, restore
from harness.core.errors import UserError
from harness.core.spec import TrialSpec
from harness.core.strategies import FeatureTransfer, LinearProbe, LoRA, Strategy
from harness.core.study import Study
from harness.deploy.model import plain_network, staging
from harness.search.preflight import check_study
from harness.training.network import check_network
from tests.refusals import refused
from tests.trials import export, study_of

DEIT = "deit_tiny_distilled_patch16_224"


def spec_of(name: str, size: int | None, strategy: Strategy | None = None) -> TrialSpec:
    return TrialSpec("digits", name, strategy or LinearProbe(), "scratch", resolution=size)


# --- groups ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("poolformer_s12", ["stem", "stages.0", "stages.1", "stages.2", "stages.3", "head"]),
        ("caformer_s18", ["stem", "stages.0", "stages.1", "stages.2", "stages.3", "head"]),
        ("rdnet_tiny", None),
        ("csatv2", ["stem_dct", "stages.0", "stages.1", "stages.2", "stages.3", "head"]),
        ("pit_ti_distilled_224", None),
        ("torchvision:alexnet", None),
        ("torchvision:squeezenet1_1", None),
        (
            "torchvision:regnet_x_400mf",
            ["stem", *[f"trunk_output.block{i}" for i in "1234"], "head"],
        ),
        ("torchvision:shufflenet_v2_x0_5", ["conv1", "stage2", "stage3", "stage4", "head"]),
        ("torchvision:mnasnet0_5", None),
    ],
)
def test_groups_follow_the_order_of_the_parts_where_the_library_gives_none(
    name: str, wanted: list[str] | None
) -> None:
    network = build(name, "scratch", 7, seed=0)
    names = [g.name for g in network.groups]
    own = [n for n, _ in (*network.model.named_parameters(), *network.model.named_buffers())]
    assert sorted(n for g in network.groups for n in (*g.parameters, *g.buffers)) == sorted(own)
    assert len(names) >= 5
    assert names == (wanted or names)
    # No group trains before one that comes earlier in the network.
    order = list(dict(network.model.named_parameters()))
    first = [min(order.index(n) for n in g.parameters) for g in network.groups]
    assert first == sorted(first)


# --- input sizes -----------------------------------------------------------------------------------


SIZES = [
    ("resmlp_12_224", "224"),
    ("coat_tiny", "224"),
    ("halonet26t", "256, 512"),
    ("test_vit", "32, 48, 64, 96, 112, 160"),
]
MORE_SIZES = [
    *((name, "224") for name in ("mixer_s16_224", "gmlp_ti16_224", "convit_tiny")),
    *((name, "224") for name in ("hiera_tiny_224", "efficientformerv2_s0")),
    ("eca_halonext26ts", "256, 512"),
]


@pytest.mark.parametrize(
    ("name", "works"),
    [*SIZES, *(pytest.param(*case, marks=pytest.mark.slow) for case in MORE_SIZES)],
)
def test_a_size_that_a_network_does_not_take_is_refused_with_those_that_it_takes(
    name: str, works: str
) -> None:
    size = 33 if name == "test_vit" else 64
    said = rf"^backbone {name} does not take {size} x {size} images: .*resolution can be {works} \("
    with refused(said):
        check_network(build(name, "scratch", 7, 0, resolution=size), spec_of(name, size))


def test_the_sizes_that_are_named_do_work() -> None:
    for size in (256, 512):
        network = build("halonet26t", "scratch", 7, 0, resolution=size)
        assert check_size(network, "halonet26t").shape == (1, 7)


def test_the_same_refusal_comes_before_a_study_begins() -> None:
    with refused(r"resmlp_12_224 does not take 64 x 64 .* can be 224"):
        check_study(study_of(spec_of("resmlp_12_224", 64)))


# --- heads -----------------------------------------------------------------------------------------


def test_an_encoder_without_a_classifier_is_refused() -> None:
    with torch.device("meta"), refused("encoder without a classifier"):
        build("qwen3_vit_88m_enc", "scratch", 7, seed=0)


HEADS = {
    DEIT: 2,
    "levit_128s": 2,
    "volo_d1_224": 2,
    "crossvit_tiny_240": 1,
    "efficientvim_m1": 1,
    "repvit_m0_9": 1,
}


EACH_HEAD = [
    pytest.param(name, marks=pytest.mark.slow) if name == "volo_d1_224" else name for name in HEADS
]


@pytest.mark.parametrize("name", EACH_HEAD)
def test_all_classifiers_are_fresh_and_in_the_last_group(name: str, tmp_path: Path) -> None:
    """Weights of another seed in a file: the whole body is theirs and no tensor of the head is. And the
    logits hang on nothing but the head's tensors, once those are zero."""
    other = build(name, "scratch", 7, seed=5)
    export(other, name, tuple("abcdefg"), tmp_path)
    network = build(name, f"file:{tmp_path / 'model.safetensors'}", 7, seed=0)
    theirs = dict(other.model.named_parameters())
    for group in network.groups[:-1]:
        assert all(torch.equal(p, theirs[n]) for n, p in group.parameters.items())
    for n, p in network.groups[-1].parameters.items():
        assert p.ndim < 2 or not torch.equal(p, theirs[n]), n
        p.data.zero_()
    size = network.input.shape[-1]
    with torch.no_grad():
        logits = network.model.eval()(torch.randn(2, 3, size, size))
    assert torch.equal(logits, torch.zeros(2, 7))
    assert len(network.heads) == HEADS[name]


@pytest.mark.parametrize("name", HEADS)
def test_features_of_a_network_with_two_classifiers_are_refused(name: str) -> None:
    network = build(name, "scratch", 7, seed=0)
    for strategy in (FeatureTransfer(), FeatureTransfer("knn")):
        if name == "repvit_m0_9" and strategy.classifier == "knn":
            # One module that averages two heads.
            check_network(network, spec_of(name, None, strategy))
            continue
        with refused(rf"FeatureTransfer .*{name} has several classifiers"):
            check_network(network, spec_of(name, None, strategy))


def test_each_cells_strategy_is_held_against_its_network() -> None:
    def space(trial: Any, strategy: str) -> TrialSpec:
        return spec_of(DEIT, 64, FeatureTransfer() if strategy == "features" else LinearProbe())

    study = Study(compare={"strategy": ["probe", "features"]}, space=space, name="toy")
    with refused(f"FeatureTransfer .*{DEIT} has several classifiers"):
        check_study(study)


@pytest.mark.parametrize("name", ["torchvision:alexnet", "resnetv2_18", "dla46x_c", "test_vit"])
def test_features_of_a_network_with_one_linear_classifier_are_taken(name: str) -> None:
    network = build(name, "scratch", 7, seed=0)
    check_network(network, spec_of(name, None, FeatureTransfer()))


@pytest.mark.parametrize(
    "name", [DEIT, "crossvit_tiny_240", "coat_tiny", "levit_128s", "torchvision:mnasnet0_5"]
)
def test_an_export_of_an_unusual_network_gives_its_logits(name: str, tmp_path: Path) -> None:
    network = build(name, "scratch", 3, seed=0)
    size = network.input.shape[-1]
    model = export(network, name, ("a", "b", "c"), tmp_path)
    pixels = torch.randint(0, 255, (2, 3, size, size), dtype=torch.uint8)
    with torch.no_grad():
        wanted = network.model.eval()(model.prepare(pixels)).softmax(1)
    torch.testing.assert_close(model.probabilities(pixels), wanted, rtol=1e-5, atol=1e-6)


def test_nothing_is_left_of_an_export_that_failed(tmp_path: Path) -> None:
    def fail() -> None:
        with staging(tmp_path / "models" / "toy") as there:
            (there / "model.json").write_text("{}")
            raise UserError("not the network that was trained")

    with refused("not the network"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_an_export_that_went_well_is_where_it_was_wanted(tmp_path: Path) -> None:
    with staging(tmp_path / "models" / "toy") as there:
        (there / "model.json").write_text("{}")
        (there / "model.safetensors").write_text("x")
        assert not (tmp_path / "models").exists()
    assert sorted(p.name for p in tmp_path.rglob("*")) == [
        *("model.json", "model.safetensors", "models", "toy"),
    ]


def test_adapters_are_merged_in_a_network_with_two_classifiers() -> None:
    network: Backbone = build(DEIT, "scratch", 3, seed=0, resolution=64, lora_rank=2)
    check_network(network, spec_of(DEIT, 64, LoRA(rank=2)))
    plain = plain_network(network, None)
    restore(DEIT, dict(plain.state_dict()), 3, network.input)
