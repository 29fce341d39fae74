"""Training on kept outputs of the frozen part is training without them, and it says what was kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from harness import strategies
from harness.backbones import Backbone, Group, build
from harness.core.strategies import Scales, Strategy
from harness.data import cached, read_examples, seeded_view
from harness.data.cached import Cache, CachedView
from harness.inputs import Pixels
from harness.inputs.augment import image_augmentation
from harness.training import network as network_module
from harness.training.device import Cpu
from harness.training.loop import Fit, start
from harness.training.prefix import NoCut, Tail, find_cut
from tests.trials import NOTHING_KEPT, MakeSpec, run, values

WHOLE = {"target": "digits[classes=0-7]", "batch_size": 32} | dict.fromkeys(
    ("shots", "val_shots", "test_shots"), 8
)
"""64 images each: whole batches of 32, as many as the prefix takes at a time on a CPU."""


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


# --- the same results --------------------------------------------------------------------------------

STRATEGIES = [
    (strategies.LinearProbe(), "test_resnet"),
    (strategies.LastBlock(), "test_vit"),
    (strategies.LastK(3), "test_resnet"),
    (strategies.GradualUnfreezing(1), "test_resnet"),
    (strategies.LPFT(1), "test_efficientnet"),
    (strategies.NormOnly(), "test_resnet"),
    (strategies.FeatureTransfer("logistic"), "test_resnet"),
]
MORE = [
    (strategies.LinearProbe(), "test_vit"),
    (strategies.LinearProbe(), "test_efficientnet"),
    (strategies.LastBlock(), "test_resnet"),
    (strategies.LastBlock(), "test_efficientnet"),
    (strategies.Surgical(1), "test_resnet"),
    (strategies.FullFineTune(), "test_resnet"),
    (strategies.DiscriminativeLR(0.5), "test_resnet"),
    (strategies.TwoPhase(1), "test_resnet"),
    (strategies.LPFT(1), "test_resnet"),
    (strategies.LPFT(1), "test_vit"),
    (strategies.BiasOnly(), "test_resnet"),
    (strategies.L2SP(0.1), "test_resnet"),
    (strategies.FeatureTransfer("knn"), "test_resnet"),
]


@pytest.mark.parametrize(
    ("strategy", "backbone"),
    [*STRATEGIES, *(pytest.param(*case, marks=pytest.mark.slow) for case in MORE)],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_kept_outputs_give_bitwise_the_same_trial(
    strategy: Strategy, backbone: str, make_spec: MakeSpec, cache: Cache
) -> None:
    spec = make_spec(strategy=strategy, backbone=backbone, epochs=3, shifts="noise", **WHOLE)
    _, without, plain = run(spec, NOTHING_KEPT)
    for _ in range(2):  # once to make them, once to read them
        _, epochs, result = run(spec, cache)
        assert values(epochs) == values(without)
        assert result.metrics["test_loss"] == plain.metrics["test_loss"]
        assert result.metrics["test_accuracy.noise"] == plain.metrics["test_accuracy.noise"]
        assert result.predictions is not None
        assert plain.predictions is not None
        assert (result.predictions.probability == plain.predictions.probability).all()


@pytest.mark.parametrize("batch_norm", ["frozen", "reestimate"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_other_batches_statistics_and_precisions_agree_to_rounding(
    batch_norm: str, precision: str, make_spec: MakeSpec, cache: Cache
) -> None:
    """Batches of 7 against the prefix's 32: sums in another order. bfloat16 has 8 bits of mantissa."""
    changes = {"strategy": strategies.LastBlock(), "batch_size": 7, "lr": 1e-4}
    spec = make_spec(batch_norm=batch_norm, precision=precision, **changes)
    _, without, _ = run(spec, NOTHING_KEPT)
    _, epochs, result = run(spec, cache)
    assert "kept after" in result.notes["prefix"]
    losses = np.array(values(epochs))[:, :2], np.array(values(without))[:, :2]
    tolerance = 1e-5 if precision == "float32" else 2e-2
    np.testing.assert_allclose(*losses, rtol=tolerance)


def test_precision_changes_what_is_computed(make_spec: MakeSpec) -> None:
    full, low = (
        run(make_spec(precision=p, strategy=strategies.LinearProbe()), NOTHING_KEPT)[1]
        for p in ("float32", "bfloat16")
    )
    assert full[-1].val_loss != low[-1].val_loss
    assert full[-1].val_loss == pytest.approx(low[-1].val_loss, rel=0.05)


# --- paid once ---------------------------------------------------------------------------------------


def images_through_the_stem(fit: Fit) -> list[int]:
    """Will hold the batch sizes of every pass through the first convolution."""
    passed: list[int] = []
    stem = next(m for m in fit._backbone.model.modules() if isinstance(m, nn.Conv2d))
    stem.register_forward_hook(lambda m, x, out: passed.append(len(out)))
    return passed


def test_the_frozen_part_runs_once_per_image_for_all_epochs_trials_and_strategies(
    make_spec: MakeSpec, cache: Cache
) -> None:
    first = start(make_spec(strategy=strategies.LinearProbe(), epochs=3), Cpu(), cache)
    passed = images_through_the_stem(first)
    list(first)
    first.finish(test=True)
    # 50 train, 40 validation and 60 test images, in chunks of 32; the network is tried on two once.
    assert sum(n for n in passed if n > 2) == (2 + 2 + 2) * 32
    cached._open.cache_clear()  # as another process
    again = start(make_spec(strategy=strategies.TwoPhase(2), lr=0.1, epochs=1), Cpu(), cache)
    passed = images_through_the_stem(again)
    list(again)
    again.finish(test=True)
    assert passed == []


def test_another_seed_shares_the_images_that_it_has_in_common(
    make_spec: MakeSpec, cache: Cache, tmp_path: Path
) -> None:
    weights = tmp_path / "weights.pt"
    torch.save(build("test_resnet", "scratch", 10, seed=0).model.state_dict(), weights)
    changes = {"strategy": strategies.LinearProbe(), "source": f"file:{weights}"}
    run(make_spec(**changes), cache)
    other = start(make_spec(seed=1, **changes), Cpu(), cache)
    passed = images_through_the_stem(other)
    list(other)
    trained = len(passed)
    other.finish(test=True)
    assert trained > 0
    assert len(passed) == trained, "test images are the same for every seed"


@pytest.mark.parametrize(
    "change",
    [{"seed": 5}, {"resolution": 40}, {"precision": "bfloat16"}, {"batch_norm": "reestimate"}],
)
def test_other_weights_sizes_or_precisions_are_never_mixed_up(
    change: dict[str, Any], make_spec: MakeSpec, cache: Cache
) -> None:
    run(make_spec(strategy=strategies.LinearProbe()), cache)
    spec = make_spec(strategy=strategies.LinearProbe(), **change)
    np.testing.assert_allclose(
        values(run(spec, cache)[1]), values(run(spec, NOTHING_KEPT)[1]), rtol=1e-2
    )
    what = [entry.what for entry in cache.entries() if "up to" in entry.what]
    assert len(what) == 2


def test_gradual_unfreezing_moves_the_cut(make_spec: MakeSpec, cache: Cache) -> None:
    _, _, result = run(make_spec(strategy=strategies.GradualUnfreezing(1), epochs=3), cache)
    kept = [words.split(",")[0] for words in result.notes["prefix"].split("; ")]
    assert kept == ["kept after global_pool", "kept after layer3", "kept after layer2"]


def test_cold_seconds_include_what_another_trial_paid(make_spec: MakeSpec, cache: Cache) -> None:
    spec = make_spec(strategy=strategies.LinearProbe(), resolution=96)
    _, _, first = run(spec, cache)
    _, epochs, second = run(spec, cache)
    paid = first.metrics["marginal_seconds"] - second.metrics["marginal_seconds"]
    assert paid > 0
    borrowed = second.metrics["train_seconds"] - second.metrics["marginal_seconds"]
    assert borrowed == pytest.approx(paid, rel=0.9), "what the first paid, give or take the clock"
    assert epochs[-1].train_seconds == second.metrics["train_seconds"]
    assert epochs[-1].marginal_seconds == second.metrics["marginal_seconds"]
    _, _, alone = run(spec, NOTHING_KEPT)
    assert alone.metrics["train_seconds"] == alone.metrics["marginal_seconds"]


# --- where a network can be divided ------------------------------------------------------------------

CHAINS = [
    "resnet10t",
    "vit_tiny_patch16_224",
    "convnext_atto",
    "tf_efficientnet_lite0",
    "torchvision:resnet18",
]


@pytest.mark.parametrize("name", CHAINS)
def test_usual_networks_are_divided_at_every_depth(name: str) -> None:
    size = 64
    backbone = build(name, "scratch", 10, seed=0, resolution=size)
    images = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(0))
    model = backbone.model.eval()
    found = 0
    for depth in range(1, len(backbone.groups)):
        try:
            cut = find_cut(backbone, depth, images)
        except NoCut as reason:
            assert "costs less than reading" in str(reason)  # noqa: PT017 # only near the stem
            assert depth <= 2
            continue
        tail, found = Tail(backbone, cut, images.shape), found + 1
        with torch.no_grad():
            kept = tail.before(images)
            assert kept.shape[1:] == cut.shape
            assert torch.equal(tail.after(kept), model(images))
            assert not torch.equal(tail.after(kept * 2), model(images))
        assert cut.flops > 0
    assert found >= len(backbone.groups) - 3
    assert all("forward" not in vars(module) for module in model.modules()), "left as it was"


class Toy(nn.Module):
    """Three layers; a subclass says how they hang together."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 64, 3, padding=1), nn.Conv2d(64, 64, 3, padding=1)
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(64, 4)


class Chain(Toy):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.pool(self.b(self.a(x))).flatten(1))
        return out


class Skip(Toy):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        early = self.a(x)
        out: torch.Tensor = self.head(
            (self.pool(self.b(early)) + early.mean((2, 3), True)).flatten(1)
        )
        return out


class Twice(Toy):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.pool(self.b(self.b(self.a(x)))).flatten(1))
        return out


class Late(Toy):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.pool(self.a(x)).flatten(1)) + self.b(self.a(x)).mean()
        return out


def toy(kind: type[Toy]) -> Backbone:
    torch.manual_seed(0)
    model = kind()
    groups = tuple(
        Group(n, {f"{n}.{k}": p for k, p in getattr(model, n).named_parameters()}, {})
        for n in ("a", "b", "head")
    )
    modes = tuple((getattr(model, g.name), frozenset({i})) for i, g in enumerate(groups))
    return Backbone(model, (model.head,), groups, modes, frozenset(), Pixels(8))


def test_a_chain_is_divided_after_its_pooling() -> None:
    cut = find_cut(toy(Chain), 2, torch.randn(2, 3, 8, 8))
    assert (cut.gate, cut.shape) == ("pool", (1, 1, 64))
    # Two multiply-adds per weight and pixel.
    assert cut.flops == 2 * 8 * 8 * (64 * 27 + 64 * 64 * 9)


@pytest.mark.parametrize("kind", [Skip, Twice, Late])
def test_no_chain_is_never_divided(kind: type[Toy]) -> None:
    backbone = toy(kind)
    depth = 1 if kind is Skip else 2
    with pytest.raises(NoCut):
        find_cut(backbone, depth, torch.randn(2, 3, 8, 8))
    assert all("forward" not in vars(module) for module in backbone.model.modules())


class Tokens(nn.Module):
    """(n, 3, s, s) -> (n, s * s, 64), transposed in memory, as patch embeddings and recurrent layers are."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 64, 7, padding=3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.convolution(x).flatten(2).transpose(1, 2)
        return out


class Sequence(Toy):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = Tokens(), nn.Linear(64, 64)  # type: ignore[assignment] # not for pictures

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.b(self.a(x)).mean(1))
        return out


def test_the_rest_of_the_network_gets_its_input_in_the_layout_that_it_is_computed_in() -> None:
    """The last bit of a sum may depend on it."""
    backbone, images = toy(Sequence), torch.randn(2, 3, 8, 8)
    strides = []
    backbone.model.get_submodule("b").register_forward_pre_hook(
        lambda _, given: strides.append(given[0].stride())
    )
    cut = find_cut(backbone, 1, images)
    tail = Tail(backbone, cut, images.shape)
    kept = tail.before(images)
    assert (cut.gate, cut.shape, kept.is_contiguous()) == ("a", (64, 64), True)
    with torch.no_grad():
        assert torch.equal(tail.after(kept), backbone.model(images))
    assert set(strides) == {(64 * 64, 1, 64)}


# --- when it steps aside -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"strategy": strategies.FullFineTune()}, "nothing is frozen"),
        ({"augment": "flip_crop"}, "no example twice"),
        ({"augment": "mixup"}, "no example twice"),
    ],
)
def test_it_says_why_it_steps_aside(
    change: dict[str, Any], words: str, make_spec: MakeSpec, cache: Cache
) -> None:
    spec = make_spec(**{"strategy": strategies.LinearProbe(), **change})
    assert words in run(spec, cache)[2].notes["prefix"]


def test_it_steps_aside_when_the_outputs_do_not_fit(make_spec: MakeSpec, tmp_path: Path) -> None:
    """The pixels do (150 images of 3 KiB), the outputs of the second stage do not."""
    spec = make_spec(strategy=strategies.LastK(3))
    _, epochs, result = run(spec, Cache(None, 150 * 3 * 32 * 32 + 1000))
    assert "whole network" in result.notes["prefix"]
    assert "do not fit" in result.notes["prefix"]
    np.testing.assert_allclose(values(epochs), values(run(spec, NOTHING_KEPT)[1]), rtol=1e-4)


def test_compiled_trials_train_through_torch_compile(
    make_spec: MakeSpec, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []

    def compiled(model: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
        def forward(x: torch.Tensor) -> torch.Tensor:
            steps.append(len(x))
            out: torch.Tensor = model(x)
            return out

        return forward

    monkeypatch.setattr(torch, "compile", compiled)
    spec = make_spec(strategy=strategies.LinearProbe(), compile=True)
    _, epochs, result = run(spec, cache)
    assert steps == [16, 16, 16, 2] * 2, "training only: evaluation has other shapes"
    assert "compiled" in result.notes["prefix"]
    assert values(epochs) == values(run(dataclasses.replace(spec, compile=False), NOTHING_KEPT)[1])


# --- augmentation with a finite number of views ------------------------------------------------------


def test_views_are_kept_and_train_as_without_keeping(make_spec: MakeSpec, cache: Cache) -> None:
    spec = make_spec(
        strategy=strategies.LinearProbe(), augment="flip_crop", views=3, epochs=4, **WHOLE
    )
    _, epochs, result = run(spec, cache)
    assert "kept after global_pool" in result.notes["prefix"]
    assert values(epochs) == values(run(spec, NOTHING_KEPT)[1])
    plain = run(dataclasses.replace(spec, augment="none", views=None), cache)[1]
    assert values(epochs)[-1] != values(plain)[-1]


@pytest.mark.parametrize("policy", ["flip_crop", "rotation", "trivial", "rand"])
def test_a_view_depends_on_its_image_number_and_seed_alone(policy: str) -> None:
    def view(part: tuple[int, ...], number: int, seed: int = 0) -> torch.Tensor:
        examples = read_examples("digits", part, Pixels(16))
        made = seeded_view(examples, image_augmentation(policy, 10), number, seed)
        assert isinstance(made.values, CachedView)
        assert torch.equal(made.labels, examples.labels)
        assert made.index.tolist() == list(part)
        unkept = seeded_view(
            dataclasses.replace(examples, values=examples.tensor),
            *(image_augmentation(policy, 10), number, seed),
        )
        assert torch.equal(unkept.tensor, made.tensor)
        return made.tensor

    assert view((3, 8), 0).shape == (2, 3, 16, 16)
    assert torch.equal(view((3, 8), 0)[1:], view((8,), 0))
    several = [view((8,), number, seed) for number in range(4) for seed in range(2)]
    assert len({image.numpy().tobytes() for image in several}) > 4


def test_no_more_views_are_made_than_epochs_see(make_spec: MakeSpec, cache: Cache) -> None:
    spec = make_spec(strategy=strategies.LinearProbe(), augment="flip_crop", views=50, epochs=2)
    run(spec, cache)
    assert sorted(e.what for e in cache.entries() if e.what.startswith("view")) == [
        "view 0 by flip_crop",
        "view 1 by flip_crop",
    ]


def test_network_that_cannot_be_traced_is_run_whole(
    make_spec: MakeSpec, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("running_mean should contain 96 elements")

    monkeypatch.setattr(network_module, "_cuts", {})
    monkeypatch.setattr("harness.training.prefix._cut", broken)
    _, epochs, result = run(make_spec(strategy=strategies.LinearProbe()), cache)
    assert len(epochs) == 2
    assert "running_mean should contain" in result.notes["prefix"]


def test_a_strategy_of_ones_own_needs_no_word_about_it(make_spec: MakeSpec, cache: Cache) -> None:
    @dataclasses.dataclass(frozen=True)
    class UpAndDown(Strategy):
        def lr_scales(self, num_groups: int, epoch: int) -> Scales:
            frozen = num_groups - 1 - epoch % 2
            return (None,) * frozen + (1.0,) * (num_groups - frozen)

    spec = make_spec(strategy=UpAndDown(), epochs=4, **WHOLE)
    _, epochs, _ = run(spec, cache)
    # The block under the head moved before it was frozen again: its second outputs are others.
    assert sum("up to global_pool" in entry.what for entry in cache.entries()) == 2
    assert values(epochs) == values(run(spec, NOTHING_KEPT)[1])


def test_cuts_are_found_once_per_process(
    make_spec: MakeSpec, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []

    def counting(backbone: Backbone, depth: int, images: torch.Tensor) -> Any:
        tried.append(depth)
        return find_cut(backbone, depth, images)

    monkeypatch.setattr(network_module, "_cuts", {})
    monkeypatch.setattr(network_module, "find_cut", counting)
    for strategy in (strategies.LinearProbe(), strategies.TwoPhase(1), strategies.LinearProbe()):
        run(make_spec(strategy=strategy), cache)
    assert tried == [5, 4]
