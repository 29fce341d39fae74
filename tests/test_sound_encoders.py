"""Encoders of sounds from the library transformers: equal to the library, and used as any other backbone.
What holds for every strategy is in test_sound_strategies."""

from __future__ import annotations

import importlib
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.backbones import build, input_named, weights_sha256
from harness.core.spec import TrialSpec
from harness.core.strategies import BiasOnly, FullFineTune, LoRA, Strategy
from harness.core.study_file import load_study
from harness.data import load_target
from harness.data.cached import Cache
from harness.deploy.model import Model, open_model, plain_network
from harness.deploy.onnx import write_onnx
from harness.inputs import Features, described
from harness.inputs.features import extractor_settings
from harness.inputs.waveform import Waveform
from harness.new import propose_study
from harness.predict import predict_images
from harness.rank import rank_sources
from harness.search.preflight import check_study
from harness.similarity import MEASURES
from harness.similarity.sources import measuring
from harness.training.device import Cpu
from harness.training.inference_cost import inference_cost
from harness.training.loop import Fit, Training
from tests.encoders import (
    SOUND_ENCODERS,
    check,
    pooled,
    refused_network,
    save_encoder,
    save_sound_encoder,
)
from tests.refusals import refused
from tests.sounds import RATE, tone, write_tones
from tests.trials import MakeSpec, export, run, study_of

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("transformers")
transformers: Any = importlib.import_module("transformers")

EACH = ("wav2vec2", "ast", "whisper")
"""One for each feature extractor."""


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("encoders")
    return {name: save_sound_encoder(folder / name, name) for name in SOUND_ENCODERS}


@pytest.fixture(scope="module")
def tones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tones(tmp_path_factory.mktemp("sounds") / "tones")


def form_of(name: str, seconds: float) -> Features:
    form = input_named(name)
    assert isinstance(form, Features)
    return Features(form.settings, seconds)


def folder_of(name: str) -> Path:
    return Path(name.removeprefix("transformers:"))


# --- equal to the library ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", SOUND_ENCODERS)
def test_parts_together_are_the_librarys_model(name: str, encoders: dict[str, str]) -> None:
    """From samples on, by the library's own feature extractor."""
    backbone = encoders[name]
    form = form_of(backbone, 0.25)
    sounds = [tone(hertz, 0.25, 16_000, seed=i) for i, hertz in enumerate((300.0, 2000.0))]
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder_of(backbone))
    model = transformers.AutoModel.from_pretrained(folder_of(backbone)).eval()
    if name == "whisper":
        model = model.encoder
    with torch.no_grad():
        given = extractor([*map(np.float32, sounds)], sampling_rate=16_000, return_tensors="pt")
        tokens = model(given[extractor.model_input_names[0]]).last_hidden_state
    wanted = tokens.mean(1)
    if name == "whisper":  # 25 of 100 frames are of the sound, and each token is of two
        wanted = tokens[:, :13].mean(1)
    if name == "ast":  # 25 of 32 frames: 9 of the 10 patches in each of 4 bands begin in them
        wanted = tokens[:, 2:].unflatten(1, (4, 10))[:, :, :9].mean((1, 2))
    network = build(backbone, "pretrained", 3, 0)
    rows = torch.stack([form.row(Waveform(s, 16_000)) for s in sounds])
    found = pooled(replace(network, input=form), rows)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    assert float((found[0] - found[1]).abs().max()) > 1e-3
    first = ["embeddings"] if name in ("ast", "whisper") else ["convolutions", "projection"]
    assert [group.name for group in network.groups] == [*first, "layer0", "layer1", "head"]


def test_ast_can_be_pooled_by_its_own_tokens(encoders: dict[str, str]) -> None:
    form = form_of(encoders["ast"], 0.25)
    rows = form.random(2, torch.Generator().manual_seed(0))
    model = transformers.AutoModel.from_pretrained(folder_of(encoders["ast"])).eval()
    with torch.no_grad():
        wanted = model(rows).pooler_output
    network = build(f"{encoders['ast']}[pool=cls]", "pretrained", 2, 0)
    found = pooled(replace(network, input=form), rows)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("head", ["linear", "attentive"])
@pytest.mark.parametrize("name", ["ast", "whisper"])
def test_heads_on_any_depth_do_not_see_the_padding(
    name: str, head: Any, encoders: dict[str, str]
) -> None:
    """Their logits do not depend on what a layer gives for it."""
    form = form_of(encoders[name], 0.25)
    network = build(encoders[name], "pretrained", 3, 0, head=head, depth=2)
    rows = form.random(4, torch.Generator().manual_seed(0))
    given = form.preparation(torch.device("cpu"), network.layout)(rows)

    def noise(module: object, inputs: object, output: torch.Tensor) -> torch.Tensor:
        hidden, mask = output[..., :-1], output[..., -1:]
        return torch.cat([hidden + 9 * (1 - mask), mask], 2)

    with torch.no_grad():
        wanted = network.model.eval()(given)
        layer = network.model.get_submodule("body.network.layer0")
        layer.register_forward_hook(noise, prepend=True)
        assert torch.equal(network.model(given), wanted)
    assert float(wanted.std(0).min()) > 1e-3


# --- what the networks get ---------------------------------------------------------------------------


def test_frames_for_whisper_are_those_of_librosa() -> None:
    """Log power of 80 bands on Slaney's scale within 8 (80 dB) of the loudest, to 1e-4."""
    librosa = pytest.importorskip("librosa")
    form = Features(extractor_settings("{}", "WhisperFeatureExtractor"), 2.0)
    assert form.shape == (3000, 80)
    assert (form.length, form.longest) == (200, 30.0)
    sound = tone(440, 2.0, 16_000)
    padded = np.pad(sound, (0, 28 * 16_000))
    power = librosa.feature.melspectrogram(
        y=padded, sr=16_000, n_fft=400, hop_length=160, n_mels=80, pad_mode="reflect"
    )
    level = np.log10(np.maximum(power, 1e-10))[:, :-1]
    wanted = (np.maximum(level, level.max() - 8) + 4) / 4
    np.testing.assert_allclose(form.row(Waveform(sound, 16_000)), wanted.T, rtol=0, atol=1e-4)


def test_frames_for_ast_are_those_of_kaldi() -> None:
    """Computed from Kaldi's definition, to 1e-3 of a standard deviation."""
    form = Features(extractor_settings("{}", "ASTFeatureExtractor"), 1.0)
    assert form.shape == (1024, 128)
    assert (form.length, form.longest) == (100, 10.24)
    sound = tone(440, 1.0, 16_000)
    frames = np.lib.stride_tricks.sliding_window_view(sound, 400)[::160]
    frames = frames - frames.mean(1, keepdims=True)
    before = np.concatenate([frames[:, :1], frames[:, :-1]], 1)
    frames = (frames - 0.97 * before) * np.hanning(400)
    power = np.abs(np.fft.rfft(frames, 512)) ** 2
    mels = 1127 * np.log(1 + np.fft.rfftfreq(512, 1 / 16_000) / 700)
    edges = np.linspace(1127 * np.log(1 + 20 / 700), 1127 * np.log(1 + 8000 / 700), 130)
    low, centre, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising, falling = (mels - low) / (centre - low), (high - mels) / (high - centre)
    bands = power @ np.maximum(0, np.minimum(rising, falling)).T
    level = np.log(np.maximum(bands, np.finfo(np.float32).eps))
    row = form.row(Waveform(sound, 16_000)).numpy()
    np.testing.assert_allclose(row[:98], (level + 4.2677393) / (2 * 4.5689974), rtol=0, atol=1e-3)
    np.testing.assert_allclose(row[98:], 4.2677393 / (2 * 4.5689974), rtol=0, atol=1e-6)


def test_samples_have_mean_0_and_variance_1() -> None:
    form = Features(extractor_settings("{}", "Wav2Vec2FeatureExtractor"), 0.5)
    sound = 0.2 + 0.1 * tone(440, 0.5, 16_000)
    row = form.row(Waveform(sound, 16_000))
    assert row.shape == (8000, 1)
    wanted = (sound - sound.mean()) / math.sqrt(sound.var() + 1e-7)
    np.testing.assert_allclose(row[:, 0], wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", EACH)
def test_a_form_is_read_back_shown_and_varied(name: str, encoders: dict[str, str]) -> None:
    form = form_of(encoders[name], 0.25)
    assert described(json.loads(json.dumps(form.describe())), form.files()) == form
    rows = torch.stack([form.row(Waveform(tone(h, 0.25, 16_000), 16_000)) for h in (300, 3000)])
    pictures = form.pictures(rows)
    assert pictures.dtype == torch.uint8
    low, high = (picture[0].float().mean(1).argmax() for picture in pictures)
    assert low > high  # further down
    assert form.thumbnails(rows).shape == (2, 256)
    assert abs(float(torch.corrcoef(form.thumbnails(rows))[0, 1])) < form.near
    for policy in ("time_shift", "spec_augment"):
        draw = torch.Generator().manual_seed(1)
        varied = form.augmentation(policy, 2)(rows, torch.zeros(2).long(), draw)[0]
        assert not torch.equal(varied, rows)
        assert torch.equal(varied[:, form.length :], rows[:, form.length :]), "padding stays"


@pytest.mark.parametrize("name", EACH)
def test_lines_in_the_model_card_prepare_a_sound(
    name: str, encoders: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    form = form_of(encoders[name], 0.25)
    for file, content in form.files().items():
        (tmp_path / file).write_text(content)
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", form.in_words(), re.DOTALL)
    place: dict[str, Any] = {"sound": tone(440, 0.25, 16_000)}
    exec(code, place)
    row = form.row(Waveform(place["sound"], 16_000))
    wanted = form.preparation(torch.device("cpu"), torch.contiguous_format)(row[None])
    torch.testing.assert_close(place["sounds"], wanted, rtol=0, atol=1e-6)


def test_sounds_are_at_most_as_long_as_the_network_takes(
    tones: Path, encoders: dict[str, str]
) -> None:
    medium = load_target(f"folder:{tones}[seconds=3]").medium
    wanted = {"wav2vec2": 3.0, "ast": 0.32, "whisper": 1.0}
    for name, seconds in wanted.items():
        form = medium.form(input_named(encoders[name]))
        assert isinstance(form, Features)
        assert form.seconds == pytest.approx(seconds)
        assert form.length == form.shape[0]


# --- trials, export ----------------------------------------------------------------------------------


def spec_of(make_spec: MakeSpec, tones: Path, name: str, **changes: Any) -> TrialSpec:
    fields = {"target": f"folder:{tones}[seconds=0.2]", "backbone": name, "resolution": None}
    return make_spec(**{**fields, "source": "pretrained", "lr": 1e-2, **changes})


@pytest.mark.parametrize("strategy", [LoRA(rank=2), BiasOnly()])
@pytest.mark.parametrize("name", [*EACH, "wavlm"])
def test_few_parameters_can_be_trained(
    name: str, strategy: Strategy, make_spec: MakeSpec, tones: Path, encoders: dict[str, str]
) -> None:
    """Audited by `finish`; merged adapters change nothing."""
    spec = spec_of(make_spec, tones, encoders[name], strategy=strategy, batch_size=4)
    fit = Training(spec, Cpu(), Cache(budget=0))
    assert len({e.train_loss for e in fit}) == spec.epochs
    fit.finish(test=False)
    backbone = fit.backbone
    if strategy.lora_rank:
        adapted = [n for n in backbone.tuned_names("lora") if n.endswith("lora_B.default.weight")]
        weights = [n for n in backbone.tuned_names("lora") if n.endswith("0.lora_B")]
        assert len(adapted) + len(weights) == 2 * 4  # query, key, value and output of each layer
    rows = backbone.input.random(3, torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = backbone.model.eval()(backbone.prepared(rows))
        found = plain_network(backbone, None)(backbone.prepared(rows))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


@pytest.fixture(scope="module", params=EACH)
def exported(
    request: pytest.FixtureRequest,
    make_spec: MakeSpec,
    tones: Path,
    encoders: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, Fit]:
    """Folder of an exported model, and the trial."""
    folder = tmp_path_factory.mktemp("exported") / "model"
    spec = spec_of(
        make_spec,
        tones,
        encoders[request.param],
        strategy=FullFineTune(),
        augment="spec_augment",
        shifts="snr0+band_limit",
        epochs=3,
    )
    fit, _, result = run(spec, Cache())
    assert {"test_accuracy.snr0", "test_accuracy.band_limit"} <= result.metrics.keys()
    export(fit.backbone, spec.backbone, ("high", "low"), folder)
    return folder, fit


def test_an_exported_model_classifies_sound_files(exported: tuple[Path, Fit], tones: Path) -> None:
    folder, fit = exported
    model = open_model(folder)
    assert model.form == fit.backbone.input
    assert json.loads((folder / "preprocessor_config.json").read_text())["sampling_rate"] == 16_000
    target = load_target(fit.spec.target)
    rows = target.read(np.arange(24), fit.backbone.input)
    with torch.inference_mode():
        logits = fit.backbone.model.eval()(fit.backbone.prepared(rows))
    found = [
        dict(zip(p.classes, p.probabilities, strict=True))["low"]
        for p in predict_images(folder, [tones], top=2)
    ]
    assert found == pytest.approx(logits.softmax(1)[:, 1].tolist(), abs=1e-5)


def test_its_onnx_file_gives_the_same_logits(exported: tuple[Path, Fit], tmp_path: Path) -> None:
    for name in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(name)
    model: Model = open_model(exported[0])
    rows = model.form.random(4, torch.Generator().manual_seed(0))
    assert write_onnx(model, tmp_path, rows) < 1e-4


def test_operations_are_counted(encoders: dict[str, str]) -> None:
    """Two convolutions, the projection, the convolution of positions, two layers, the head."""
    form = form_of(encoders["wav2vec2"], 0.2)
    steps = ((3200 - 10) // 8 + 1, ((3200 - 10) // 8 + 1 - 4) // 4 + 1)
    tokens, width = steps[1], 16
    wanted = steps[0] * 8 * 10 + tokens * (8 * 8 * 4 + 8 * width)
    wanted += (tokens + 1) * width * (width // 2) * 4  # one more, which is cut off
    layer = tokens * (4 * width * width + 2 * width * 24) + 2 * tokens * tokens * width
    found = inference_cost(encoders["wav2vec2"], 5, None, Cpu(), form)["multiply_adds"]
    assert found == wanted + 2 * layer + width * 5


@pytest.mark.usefixtures("one_cell_proposed")
def test_a_study_is_proposed_and_sources_are_ranked_with_it(
    tones: Path,
    encoders: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    tracking_uri: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The proposed study compares networks on spectrograms; the name of an encoder can take their place."""
    few = {name: MEASURES[name] for name in ("probe_accuracy", "logme")}
    monkeypatch.setattr(measuring, "MEASURES", few)
    monkeypatch.chdir(tmp_path)
    propose_study(f"folder:{tones}", device="cpu")
    written = Path("studies/tones.py").read_text()
    own = re.sub(
        r"BACKBONES = \{.*?\n\}\n",
        f"BACKBONES = {{'ast': {encoders['ast']!r}}}\n",
        written,
        flags=re.DOTALL,
    )
    own = re.sub(r"        resolution=.*\n", "        source='pretrained',\n", own)
    Path("studies/own.py").write_text(own)
    assert check_study(load_study(Path("studies/own.py"))).specs
    found = rank_sources(
        f"folder:{tones}",
        sources=[encoders["ast"], encoders["wav2vec2"]],
        images=16,
        tracking_uri=tracking_uri,
        cache_dir=tmp_path / "cache",
    )
    assert {c.name for c in found.candidates} == {encoders["ast"], encoders["wav2vec2"]}
    assert "on spectrograms at 64 px" in found.describe()


# --- bad input ---------------------------------------------------------------------------------------


def test_sounds_that_are_longer_than_the_network_takes_are_counted(
    make_spec: MakeSpec, encoders: dict[str, str], tmp_path: Path
) -> None:
    sounds = write_tones(tmp_path / "tones")  # of 0.5 s and more
    soundfile.write(sounds / "low" / "low00.wav", tone(400.0, 0.3, seed=1), RATE)
    target = f"folder:{sounds}[seconds=0.6]"
    for name, wanted in (("ast", ["23 of 24 sounds are longer than 0.32 s"]), ("whisper", [])):
        spec = spec_of(make_spec, sounds, encoders[name], target=target)
        notes = check_study(study_of(spec)).notes
        assert [note.split(": ")[1].split(",")[0] for note in notes if "longer" in note] == wanted


@pytest.mark.parametrize("kind", ["vit", "speech_to_text", "sew", "clap"])
def test_models_that_are_no_known_encoder_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    transformers.AutoConfig.for_model(kind).save_pretrained(tmp_path)
    said = f"of type {kind}, which is not a text or sound encoder; use one such as"
    refused_network(f"transformers:{tmp_path}", said)


def test_examples_of_another_kind_are_refused(
    make_spec: MakeSpec, tones: Path, encoders: dict[str, str], tmp_path: Path
) -> None:
    def spec(**changes: Any) -> TrialSpec:
        return spec_of(make_spec, tones, encoders["wav2vec2"], **changes)

    with refused("takes sounds of 1 s at 16000 Hz and cannot be used for im"):
        check(spec(target="digits"))
    with refused("resolution 64 is for networks that take images"):
        check(spec(resolution=64))
    with refused(r"augment 'mixup' is not for sounds of 0\.2 s at 16000 Hz"):
        check(spec(augment="mixup"))
    with refused("takes 24 tokens of text and cannot be used for sounds"):
        check(spec(backbone=save_encoder(tmp_path / "bert")))
    for name in ("one", "two"):
        (tmp_path / "texts" / name).mkdir(parents=True)
        for i in range(12):
            (tmp_path / "texts" / name / f"{i}.txt").write_text(f"{name} {i}")
    with refused("takes sounds of 1 s at 16000 Hz and cannot be used for te"):
        check(spec(target=f"folder:{tmp_path / 'texts'}"))


def test_pooling_by_a_token_needs_one(encoders: dict[str, str]) -> None:
    refused_network(
        f"{encoders['whisper']}[pool=cls]",
        r"whisper has no token that stands for the whole; leave out \[pool=cls\]",
    )


def test_feature_extractors_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    name = save_sound_encoder(tmp_path / "ast", "ast")
    file = tmp_path / "ast" / "preprocessor_config.json"
    own = json.loads(file.read_text())
    file.write_text(json.dumps({**own, "num_mel_bins": 8}))
    refused_network(name, "makes 32 frames of 8 bands, but the model takes 32 of 16; use the")
    for wrong, said in (
        ({**own, "feature_extractor_type": "ClapFeatureExtractor"}, "it is for a ClapFeatureExtra"),
        (
            {**own, "sampling_rate": "fast"},
            "this is not a preprocessor_config.json of a ASTFeature",
        ),
        (["x"], "it is not a JSON object"),
    ):
        file.write_text(json.dumps(wrong))
        refused_network(name, said)
    file.unlink()
    refused_network(
        name, r"has no feature extractor: .*preprocessor_config.json cannot be read; save that"
    )


def test_a_model_without_convolutions_of_samples_is_refused(tmp_path: Path) -> None:
    """With an adapter, wav2vec 2.0 makes fewer tokens behind its layers."""
    name = save_sound_encoder(tmp_path, "wav2vec2", add_adapter=True)
    refused_network(name, "wav2vec2 cannot be divided into layers: they need more than the outputs")


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "preprocessor_config.json"])
def test_the_hash_of_a_model_is_that_of_all_its_files(file: str, tmp_path: Path) -> None:
    name = save_sound_encoder(tmp_path, "wav2vec2")
    before = weights_sha256("pretrained", name)
    (tmp_path / "notes.txt").write_text("not a file of the model")
    assert weights_sha256("pretrained", f"{name}[pool=mean]") == before
    (tmp_path / file).write_bytes((tmp_path / file).read_bytes() + b" ")
    assert weights_sha256("pretrained", name) != before
