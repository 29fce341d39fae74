"""The LSTM of Resemblyzer on sounds: equal to the package, and used as any other backbone."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from harness.backbones import build
from harness.core.spec import TrialSpec
from harness.core.strategies import LoRA
from harness.data import load_target
from harness.inputs import Frames, described
from harness.inputs.mel import Mel
from harness.training.device import Cpu
from harness.training.inference_cost import inference_cost
from tests.encoders import check
from tests.refusals import refused
from tests.sounds import tone, write_tones
from tests.trials import MakeSpec, export, run

pytest.importorskip("soundfile")

NAME = "resemblyzer"


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


@pytest.mark.parametrize(
    ("name", "layers", "gates", "width", "parameters"),
    [
        (NAME, ["lstm0", "lstm1", "lstm2"], 4, 256, 1_425_415),
        ("small_lstm", ["lstm0", "lstm1"], 4, 128, 236_551),
        ("small_gru", ["gru0", "gru1"], 3, 128, 181_767),
    ],
)
def test_groups_are_the_layers(
    name: str, layers: list[str], gates: int, width: int, parameters: int
) -> None:
    network = build(name, "scratch", 7, seed=0)
    assert [group.name for group in network.groups] == [*layers, "projection", "head"]
    first = network.groups[0].parameters[f"{layers[0]}.weight_ih_l0"]
    assert first.shape == (gates * width, 40)
    assert sum(p.numel() for p in network.model.parameters()) == parameters


@pytest.mark.parametrize("name", ["small_lstm", "small_gru", "text_lstm"])
def test_biases_of_recurrent_layers_are_biases(name: str) -> None:
    network = build(name, "scratch", 2, 0)
    every = {n for n, p in network.model.named_parameters() if p.ndim == 1}
    assert sum("bias_ih" in n or "bias_hh" in n for n in every) == 4
    assert network.tuned_names("bias") == every | {"head.weight"}


def test_small_networks_see_levels() -> None:
    """A sound of a tenth of the power gives the same input, shifted by one."""
    levels = build("small_gru", "scratch", 2, 0).model.get_submodule("levels")
    power = torch.tensor([1.0, 0.1, 0.01, 0.0])
    torch.testing.assert_close(levels(power), torch.tensor([2.0, 1.0, 0.0, -4.0]))


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


def spec_of(make_spec: MakeSpec, tones: Path, **changes: Any) -> TrialSpec:
    fields = {"target": f"folder:{tones}[seconds=0.2]", "backbone": NAME, "resolution": None}
    return make_spec(**{**fields, "lr": 1e-2, **changes})


def test_augmentation_and_shifts_work_on_frames(make_spec: MakeSpec, tones: Path) -> None:
    spec = spec_of(make_spec, tones, augment="spec_augment", shifts="snr0+band_limit")
    assert {"test_accuracy.snr0", "test_accuracy.band_limit"} <= run(spec)[2].metrics.keys()


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
        (
            {"strategy": LoRA(rank=2)},
            "strategy LoRA needs attention layers .* resemblyzer does not",
        ),
        ({"augment": "mixup"}, "augment 'mixup' is not for 21 frames of 40 mel bands"),
    ],
)
def test_what_does_not_suit_it_is_refused(
    changes: dict[str, Any], said: str, make_spec: MakeSpec, tones: Path
) -> None:
    spec = spec_of(make_spec, tones, **changes)
    with refused(said):
        check(spec)


def test_its_export_classifies_sounds(make_spec: MakeSpec, tones: Path, tmp_path: Path) -> None:
    fit, _, _ = run(spec_of(make_spec, tones))
    model = export(fit.backbone, NAME, ("high", "low"), tmp_path / "model")
    path = tones / "low" / "low03.wav"
    target = load_target(f"folder:{tones}[seconds=0.2]")
    (at,) = [i for i, file in enumerate(target.files()) if file.name == path.name]
    row = target.read(np.array([at]), fit.backbone.input)
    assert torch.equal(model.read(path)[None], row)
    assert torch.allclose(model.logits(row), fit.backbone.model.eval()(row), atol=1e-6)
