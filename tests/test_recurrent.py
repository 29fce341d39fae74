"""The LSTM of Resemblyzer on sounds: equal to the package, and used as any other backbone."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from harness.backbones import build
from harness.core.errors import UserError
from harness.core.spec import TrialSpec
from harness.core.strategies import (
    DiscriminativeLR,
    FullFineTune,
    GradualUnfreezing,
    LastBlock,
    LinearProbe,
    LoRA,
    Strategy,
)
from harness.data import load_target
from harness.data.cached import Cache
from harness.deploy.model import describe, open_model, plain_network, write
from harness.inputs import Frames, Pixels, described
from harness.inputs.mel import Mel
from harness.training.device import MIB, Cpu
from harness.training.forecast import forecast
from harness.training.forecast.storages import StorageMeter
from harness.training.inference_cost import inference_cost
from harness.training.loop import Training
from harness.training.network import check_network
from tests.sounds import tone, write_tones

pytest.importorskip("soundfile")

NAME = "resemblyzer"
STRATEGIES = [
    LinearProbe(),
    LastBlock(),
    FullFineTune(),
    DiscriminativeLR(decay=0.7),
    GradualUnfreezing(every=1),
]


@pytest.fixture(scope="module")
def tones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tones(tmp_path_factory.mktemp("lstm") / "tones")


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The package, without what its detection of voices needs."""
    if importlib.util.find_spec("resemblyzer") is None:
        pytest.skip("pip install --no-deps Resemblyzer")
    pytest.importorskip("librosa")
    stand_in = SimpleNamespace(binary_dilation=None, Vad=None)
    for name in ("webrtcvad", "scipy.ndimage.morphology"):
        monkeypatch.setitem(sys.modules, name, stand_in)
    import resemblyzer

    return resemblyzer


def test_embeddings_are_those_of_the_package(package: Any) -> None:
    encoder = package.VoiceEncoder("cpu", verbose=False)
    frames = torch.rand(3, 160, 40, generator=torch.Generator().manual_seed(0)) / 10
    model = build(NAME, "pretrained", 2, 0).model.eval()
    found: list[torch.Tensor] = []
    model.get_submodule("projection").register_forward_hook(lambda m, x, y: found.append(y))
    with torch.no_grad():
        model(frames)
        wanted = encoder(frames)
    assert float(wanted.std()) > 0.01
    torch.testing.assert_close(found[0], wanted, rtol=0, atol=1e-5)


def test_frames_are_those_of_the_package(package: Any) -> None:
    sound = tone(440, 1.6, 16_000)
    wanted = package.audio.wav_to_mel_spectrogram(sound.astype(np.float32))
    form = build(NAME, "scratch", 2, 0).input
    assert isinstance(form, Frames)
    found = form.mel.power(sound).T
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-6 * wanted.max())


def test_groups_are_the_layers() -> None:
    network = build(NAME, "scratch", 7, seed=0)
    names = ["lstm0", "lstm1", "lstm2", "projection", "head"]
    assert [group.name for group in network.groups] == names
    assert network.groups[0].parameters["lstm0.weight_ih_l0"].shape == (4 * 256, 40)


def test_quiet_sounds_are_amplified_and_loud_ones_are_not() -> None:
    from harness.inputs.waveform import Waveform

    def level(gain: float) -> float:
        sound = Waveform(gain * tone(440), 8000).amplified(-30).samples
        return float(10 * np.log10((sound**2).mean()))

    assert level(0.001) == pytest.approx(-30)
    assert level(1) == pytest.approx(10 * np.log10((tone(440) ** 2).mean()))
    assert not Waveform(np.zeros(9), 8000).amplified(-30).samples.any()


def test_form_is_read_back_and_shown_as_a_picture() -> None:
    form = Frames(Mel(16_000, 400, 160, 40), -30.0, 0.5)
    assert described(form.describe(), form.files()) == form
    rows = form.random(3, torch.Generator().manual_seed(0))
    assert rows.shape == (3, 51, 40)
    assert form.pictures(rows).shape == (3, 3, 40, 51)
    assert form.pictures(rows).dtype == torch.uint8


def spec_of(make_spec: Callable[..., TrialSpec], tones: Path, **changes: Any) -> TrialSpec:
    fields = {"target": f"folder:{tones}[seconds=0.2]", "backbone": NAME, "resolution": None}
    return make_spec(**{**fields, "lr": 1e-2, **changes})


def run(spec: TrialSpec, cache: Cache) -> tuple[Training, list[tuple[float, float, float]]]:
    fit = Training(spec, Cpu(), cache)
    return fit, [(e.train_loss, e.val_loss, e.val_accuracy) for e in fit]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_strategies_train_it_with_and_without_cached_layers(
    strategy: Strategy, make_spec: Callable[..., TrialSpec], tones: Path
) -> None:
    """Audited by `finish`; a second run is equal bit for bit."""
    spec = spec_of(make_spec, tones, strategy=strategy, epochs=3, augment="none")
    fit, uncut = run(spec, Cache(budget=0))
    assert fit.finish(test=True).metrics["test_loss"] > 0
    cached, again = run(spec, Cache())
    np.testing.assert_allclose(again, uncut, rtol=1e-5)  # sums depend on the size of a batch
    assert run(spec, Cache(budget=0))[1] == uncut
    kept = cached.finish(test=False).notes["prefix"]
    frozen = isinstance(strategy, LinearProbe | LastBlock | GradualUnfreezing)
    assert ("kept after" in kept) == frozen


def test_augmentation_and_shifts_work_on_frames(
    make_spec: Callable[..., TrialSpec], tones: Path
) -> None:
    spec = spec_of(make_spec, tones, augment="spec_augment", shifts="snr0+band_limit")
    metrics = run(spec, Cache())[0].finish(test=True).metrics
    assert {"test_accuracy.snr0", "test_accuracy.band_limit"} <= metrics.keys()


@pytest.mark.parametrize("strategy", STRATEGIES[:3])
def test_memory_is_that_of_live_tensors(
    strategy: Strategy, make_spec: Callable[..., TrialSpec], tones: Path
) -> None:
    spec = spec_of(make_spec, tones, strategy=strategy, batch_size=4, epochs=1)
    backbone = build(NAME, "scratch", 2, 0)
    target = load_target(spec.target)
    rows = target.medium.form(backbone.input).blank(4)
    scales = strategy.lr_scales(len(backbone.groups), 0)
    parameters = [
        p
        for group, scale in zip(backbone.groups, scales, strict=True)
        for p in group.parameters.values()
        if scale is not None
    ]
    backbone.model.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_()
    backbone.train_mode(g for g, scale in enumerate(scales) if scale is not None)
    optimizer = torch.optim.AdamW(parameters, fused=True)
    meter = StorageMeter()
    with meter:
        meter.follow([*backbone.model.parameters()])
        for _ in range(2):
            logits = backbone.model(rows.clone())
            nn.functional.cross_entropy(logits, torch.zeros(4).long()).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            del logits
    live = sum(meter.peak().values()) / MIB
    assert forecast(spec).train_peak_mib == pytest.approx(live, rel=0.02)


def test_operations_of_its_layers_are_counted() -> None:
    form = Frames(Mel(16_000, 400, 160, 40), -30.0, 0.2)
    frames = form.shape[0]
    found = inference_cost(NAME, 5, None, Cpu(), form)["multiply_adds"]
    lstm = frames * 4 * 256 * ((40 + 256) + 2 * (256 + 256))
    assert found == lstm + 256 * 256 + 256 * 5


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"target": "digits"}, "takes 161 frames of 40 mel bands .* cannot be used for images"),
        ({"resolution": 64}, "resolution 64 is for networks that take images"),
        ({"source": "imagenet"}, "resemblyzer has no weights 'imagenet'; use source 'pretrained'"),
        ({"strategy": LoRA(rank=2)}, "LoRA needs attention layers"),
        ({"augment": "mixup"}, "augment 'mixup' is not for 21 frames of 40 mel bands"),
    ],
)
def test_what_does_not_suit_it_is_refused(
    changes: dict[str, Any], said: str, make_spec: Callable[..., TrialSpec], tones: Path
) -> None:
    spec = spec_of(make_spec, tones, **changes)
    with pytest.raises(UserError, match=said):
        check_network(Training(spec, Cpu()).backbone, spec)


def test_networks_for_images_have_no_other_pretrained_weights() -> None:
    with pytest.raises(
        UserError, match="test_resnet has no weights 'pretrained'; use source 'imag"
    ):
        build("test_resnet", "pretrained", 2, 0)
    assert isinstance(build("test_resnet", "scratch", 2, 0).input, Pixels)


def test_its_export_classifies_sounds(
    make_spec: Callable[..., TrialSpec], tones: Path, tmp_path: Path
) -> None:
    fit, _ = run(spec_of(make_spec, tones), Cache())
    about = describe(fit.backbone, NAME, ("high", "low"))
    write(tmp_path / "model", plain_network(fit.backbone, None), about, fit.backbone.input)
    model = open_model(tmp_path / "model")
    path = tones / "low" / "low03.wav"
    target = load_target(f"folder:{tones}[seconds=0.2]")
    (at,) = [i for i, file in enumerate(target.files()) if file.name == path.name]
    row = target.read(np.array([at]), fit.backbone.input)
    assert torch.equal(model.read(path)[None], row)
    assert torch.allclose(model.logits(row), fit.backbone.model.eval()(row), atol=1e-6)
