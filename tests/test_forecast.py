"""The forecast of fake tensors equals what real tensors take, and what can be counted by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from harness.backbones import Backbone, Group, build
from harness.core.spec import TrialSpec
from harness.core.strategies import (
    L2SP,
    LPFT,
    BiasOnly,
    FeatureTransfer,
    FullFineTune,
    GradualUnfreezing,
    LastBlock,
    LinearProbe,
    LoRA,
    NormOnly,
    Scales,
    Strategy,
    Surgical,
    TwoPhase,
)
from harness.inputs import Pixels
from harness.training import forecast as module
from harness.training.device import MIB
from harness.training.forecast import Forecast, fake, forecast
from tests.live_memory import live_peak, loop_peaks
from tests.refusals import refused


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    """Forecasts of one test must not hold the patched networks or strategies of another."""
    yield
    fake.fake_backbone.cache_clear()
    module._forecast.cache_clear()


def spec(backbone: str, strategy: Strategy, **changes: Any) -> TrialSpec:
    fields: dict[str, Any] = {
        "source": "scratch",
        "shots": 4,
        "val_shots": 1,
        "test_shots": 3,
        "resolution": 64,
        "epochs": 1,
        "batch_size": 8,
    }
    return TrialSpec("digits", backbone, strategy, **{**fields, **changes})


# --- against real tensors ----------------------------------------------------------------------------


def measured(trial: TrialSpec) -> tuple[float, float]:
    """Peaks of training on digits, and of evaluation on 30."""
    size = trial.resolution
    assert size is not None
    # Pixels lie in the host's memory: made where nothing is measured.
    pixels = torch.zeros(max(30, trial.batch_size), 3, size, size, dtype=torch.uint8)
    in_batches = {n: pixels[:n].clone() for n in (30, trial.batch_size)}

    def images(count: int) -> torch.Tensor:
        return ((in_batches[count].float() - 9) / 5).contiguous(memory_format=torch.channels_last)

    return loop_peaks(trial, images, classes=10, tested=30)


TINY_VIT = "vit_tiny_patch16_224"
LOW = {"precision": "bfloat16", "resolution": 32}
CASES = [
    ("resnet18", LinearProbe(), {}),
    ("resnet18", FeatureTransfer(), {"shots": 3}),
    ("resnet10t", Surgical(1), LOW),
    (TINY_VIT, LastBlock(), {}),
    ("test_vit", FullFineTune(), LOW),
    ("test_resnet", TwoPhase(1), {"epochs": 3}),
    ("test_resnet", GradualUnfreezing(), {"epochs": 3}),
    ("resnet18", LinearProbe(), {"depth": 2}),
    ("resnet18", FullFineTune(), {"head": "mlp", "depth": 3}),
    (TINY_VIT, LastBlock(), {"head": "attentive", "depth": 9}),
]
MORE = [
    ("tf_efficientnet_lite0", FullFineTune(), {}),
    ("resnet18", LastBlock(), {}),
    ("resnet18", FullFineTune(), {"optimizer": "sgd"}),
    ("resnet18", NormOnly(), {}),
    ("resnet18", L2SP(), {}),
    ("resnet10t", FullFineTune(), LOW),
    ("torchvision:mobilenet_v3_small", LastBlock(), {"optimizer": "sgd"}),
    (TINY_VIT, FullFineTune(), {}),
    (TINY_VIT, BiasOnly(), {"optimizer": "sgd"}),
    (TINY_VIT, LinearProbe(), {"head": "attentive"}),
    *((TINY_VIT, LoRA(), {}) for _ in range(find_spec("peft") is not None)),
]


@pytest.mark.parametrize(
    ("backbone", "strategy", "changes"),
    [*CASES, *(pytest.param(*case, marks=pytest.mark.slow) for case in MORE)],
)
def test_forecast_equals_the_peak_of_real_tensors(
    backbone: str, strategy: Strategy, changes: dict[str, Any]
) -> None:
    found = check_peaks(spec(backbone, strategy, **changes))
    assert found.peak_mib == max(found.train_peak_mib, found.eval_peak_mib)


def check_peaks(trial: TrialSpec) -> Forecast:
    found = forecast(trial)
    train, evaluation = measured(trial)
    assert found.train_peak_mib == pytest.approx(train, rel=0.01)
    assert found.eval_peak_mib == pytest.approx(evaluation, rel=0.01)
    return found


def test_layer_norms_in_bfloat16_count_as_on_an_accelerator(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trial = spec("test_convnext", FullFineTune(), precision="bfloat16", resolution=32)
    found = forecast(trial)
    on_processor, _ = measured(trial)
    norm = F.layer_norm

    def in_float32(x: torch.Tensor, *arguments: Any) -> torch.Tensor:
        return norm(x.float(), *arguments)

    monkeypatch.setattr(F, "layer_norm", in_float32)
    train, evaluation = measured(trial)
    assert train > on_processor
    assert found.train_peak_mib == pytest.approx(train, rel=0.01)
    assert found.eval_peak_mib == pytest.approx(evaluation, rel=0.01)


def test_moments_of_a_group_that_froze_again_count() -> None:
    @dataclass(frozen=True)
    class DownAgain(Strategy):
        def lr_scales(self, num_groups: int, epoch: int) -> Scales:
            top = (None,) * (num_groups - 1) + (1.0,)
            return (None,) * (num_groups - 2) + (1.0, None) if epoch == 0 else top

    check_peaks(spec("resnet10t", DownAgain(), epochs=2, batch_size=16))


def allocated_peak(run: Callable[[], object], trace: Path) -> float:
    """Highest level of torch's own allocator above that at the start, in MiB."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        run()
    watched.export_chrome_trace(str(trace))
    events = [e for e in json.loads(trace.read_text())["traceEvents"] if e["name"] == "[memory]"]
    ordered = sorted(events, key=lambda e: float(e["ts"]))
    return max(accumulate(int(e["args"]["Bytes"]) for e in ordered)) / MIB


@pytest.mark.parametrize("backbone", ["resnet10t", "tf_efficientnet_lite0", "vit_tiny_patch16_224"])
def test_meter_agrees_with_the_allocator(backbone: str, tmp_path: Path) -> None:
    """Inference only: convolutions of the backward pass take workspaces, which no tensor holds."""
    model = build(backbone, "scratch", 10, 0, resolution=64).model.eval()
    images = torch.rand(32, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    held = [*model.parameters(), *model.buffers()]

    @torch.inference_mode()
    def infer() -> None:
        model(images)

    infer()
    above = live_peak(infer, held) - sum(x.numel() * x.element_size() for x in held) / MIB
    assert above == pytest.approx(allocated_peak(infer, tmp_path / "trace.json"), rel=0.01)


# --- against a count by hand -------------------------------------------------------------------------


def test_meter_counts_a_chain_of_linear_layers() -> None:
    x = torch.rand(64, 100)
    chain = nn.Sequential(nn.Linear(100, 200), nn.ReLU(), nn.Linear(200, 50))
    weights = 200 * 100 + 200 + 50 * 200 + 50

    # The second layer's input and output are less than the rectifier's.
    with torch.inference_mode():
        found = live_peak(lambda: chain(x), [x, *chain.parameters()])
    assert found * MIB == 4 * (weights + 64 * 100 + 64 * (200 + 200))

    # In training it is the rectifier's backward: its output and the gradients on both sides of it, after
    # those of the second layer's weights; the loss and the gradient of the loss are one number each.
    found = live_peak(lambda: chain(x).sum().backward(), [x, *chain.parameters()])
    second = 50 * 200 + 50
    assert found * MIB == 4 * (weights + second + 64 * 100 + 3 * 64 * 200 + 2)


def test_meter_counts_views_once_and_forgets_what_was_freed() -> None:
    def run() -> torch.Tensor:
        first = torch.zeros(1000)
        both = first[:500], first.view(10, 100)
        del first, both
        return torch.zeros(700)

    assert live_peak(run) * MIB == 4 * 1000


COUNT, SIDE, WIDTH = 16, 8, 256
PIXELS = 3 * SIDE * SIDE
STEM, HEAD = WIDTH * PIXELS + WIDTH, 10 * WIDTH + 10


def tiny(*_: object, **__: object) -> Backbone:
    """Pixels -> 256 -> 10, in two groups."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 10))
    parts = {"stem": ("1.",), "head": ("3.",)}
    groups = tuple(
        Group(name, {n: p for n, p in model.named_parameters() if n.startswith(start)}, {})
        for name, start in parts.items()
    )
    modes = ((model[1], frozenset({0})), (model[3], frozenset({1})))
    return Backbone(model, (model[3],), groups, modes, frozenset(), Pixels(SIDE))


@pytest.fixture
def tiny_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake, "build", tiny)


def in_bytes(found: Forecast) -> list[float]:
    parts = (
        found.parameters_mib,
        found.gradients_mib,
        found.optimizer_mib,
        found.activations_mib,
        found.train_peak_mib,
        found.eval_peak_mib,
    )
    return [part * MIB for part in parts]


@pytest.mark.usefixtures("tiny_network")
@pytest.mark.parametrize(
    ("optimizer", "state"),
    # AdamW keeps two moments and a step number for each of 4 parameters; SGD the momentum.
    [("adamw", 2 * (STEM + HEAD) + 4), ("sgd", STEM + HEAD)],
)
def test_full_fine_tune_of_a_tiny_network_is_as_counted_by_hand(optimizer: str, state: int) -> None:
    found = forecast(
        spec("tiny", FullFineTune(), optimizer=optimizer, batch_size=COUNT, resolution=None)
    )
    # The peak is when the last gradient of a weight is made: beside all others there are the flat copy of
    # the images, the gradient at the first layer's output, the loss and its gradient. 30 test images are
    # evaluated, without gradients.
    activations = COUNT * (PIXELS + WIDTH) + 2
    all_weights = STEM + HEAD
    assert in_bytes(found) == [
        4 * all_weights,
        4 * all_weights,
        4 * state,
        4 * activations,
        4 * (2 * all_weights + state + activations),
        4 * (all_weights + state + 30 * (PIXELS + 2 * WIDTH)),
    ]


@pytest.mark.usefixtures("tiny_network")
def test_probe_of_a_tiny_network_is_as_counted_by_hand() -> None:
    found = forecast(spec("tiny", LinearProbe(), batch_size=COUNT, resolution=None))
    # Without a gradient the flat copy is gone when the rectifier runs, and the head's own is not made yet.
    held = STEM + HEAD + 2 * HEAD + 2
    activations = COUNT * (PIXELS + 2 * WIDTH)
    assert in_bytes(found) == [
        4 * (STEM + HEAD),
        0,
        4 * (2 * HEAD + 2),
        4 * activations,
        4 * (held + activations),
        4 * (held + 30 * (PIXELS + 2 * WIDTH)),
    ]


# --- parts and relations -----------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
def test_parts_are_the_models_own_sizes_and_sum_to_the_peak(backbone: str) -> None:
    found = forecast(spec(backbone, FullFineTune()))
    model = build(backbone, "scratch", 10, 0, resolution=64).model
    weights = sum(4 * p.numel() for p in model.parameters())
    buffers = sum(b.numel() * b.element_size() for b in model.buffers())
    assert found.parameters_mib * MIB == weights + buffers
    # Those of the layers behind the place where the peak is; a large batch moves it to the front.
    assert 0 < found.gradients_mib * MIB <= weights
    assert found.optimizer_mib * MIB == 2 * weights + 4 * len(list(model.parameters()))
    assert found.activations_mib > 0
    parts = found.parameters_mib + found.gradients_mib + found.optimizer_mib + found.activations_mib
    assert parts == pytest.approx(found.train_peak_mib, rel=1e-12)


def test_peak_grows_with_batch_and_resolution_but_not_beyond_the_images_there_are() -> None:
    def peak(batch: int, resolution: int = 32) -> float:
        trial = spec("test_resnet", FullFineTune(), batch_size=batch, resolution=resolution)
        return forecast(trial).train_peak_mib

    assert peak(8) < peak(16) < peak(40)
    assert peak(8, 32) < peak(8, 64)
    assert peak(40) == peak(400)  # 4 shots of 10 classes
    assert peak(39) == peak(40)  # the last image would be alone


@pytest.mark.parametrize(("batch_norm", "later"), [("train", "train"), ("auto", "frozen")])
def test_gradual_strategies_take_what_their_last_epoch_does(batch_norm: str, later: str) -> None:
    last = forecast(spec("test_resnet", FullFineTune(), batch_norm=later))
    gradual = spec("test_resnet", GradualUnfreezing(), epochs=20, batch_norm=batch_norm)
    assert forecast(gradual) == last
    assert forecast(spec("test_resnet", LPFT(1), epochs=2, batch_norm=batch_norm)) == last
    probe = forecast(spec("test_resnet", LinearProbe()))
    assert forecast(spec("test_resnet", GradualUnfreezing())) == probe
    assert probe.train_peak_mib < last.train_peak_mib


def test_what_does_not_matter_is_forecast_once() -> None:
    forecast(spec("test_resnet", FullFineTune()))
    forecast(
        spec("test_resnet", FullFineTune(), lr=0.1, seed=3, weight_decay=0.3, source="imagenet")
    )
    assert module._forecast.cache_info().misses == 1
    forecast(spec("test_resnet", FullFineTune(), optimizer="sgd"))
    assert module._forecast.cache_info().misses == 2


def test_forecast_draws_from_no_random_stream() -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    forecast(spec("test_vit", FullFineTune()))
    assert torch.equal(torch.rand(3), wanted)


def test_network_that_computes_by_values_has_no_forecast(monkeypatch: pytest.MonkeyPatch) -> None:
    def by_values(*arguments: Any, **named: Any) -> Backbone:
        backbone = build(*arguments, **named)
        backbone.model.register_forward_hook(lambda _, __, out: out[out > 0])
        return backbone

    monkeypatch.setattr(fake, "build", by_values)
    with refused(r"no memory forecast for backbone test_resnet: .* depends on the values"):
        forecast(spec("test_resnet", FullFineTune()))


# --- sizes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("least", "most"), [(-2.0, 2.0), (-0.001, 0.001)])
def test_weights_that_are_not_drawn_are_in_the_range_of_a_truncated_normal(
    least: float, most: float
) -> None:
    """torch draws such weights again until they are, so building the network would not end."""
    weights = torch.full((10,), 5.0)
    with fake.Undrawn():  # type: ignore[no-untyped-call]
        nn.init.trunc_normal_(weights, std=0.02, a=least, b=most)
    assert weights.tolist() == [0.0] * 10
