"""What holds for every strategy on sounds (the audit, cached layers, replay, the forecast of memory), for a
network that sees spectrograms as pictures, for recurrent ones, and for encoders of transformers."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from harness import replay, study
from harness.core.spec import TrialSpec
from harness.core.strategies import (
    DiscriminativeLR,
    FullFineTune,
    GradualUnfreezing,
    LastBlock,
    LinearProbe,
    Strategy,
)
from harness.training.forecast import forecast
from tests.encoders import save_sound_encoder
from tests.live_memory import inputs_of, loop_peaks
from tests.sounds import write_tones
from tests.trials import MakeSpec, check_caching

pytest.importorskip("soundfile")

ENCODERS = ("wav2vec2", "ast", "whisper", "wavlm")
NETWORKS = ("test_resnet", "resemblyzer", "small_lstm", "small_gru", *ENCODERS)
"""Backbones; the first one sees pictures."""
STRATEGIES = [
    LinearProbe(),
    LastBlock(),
    FullFineTune(),
    DiscriminativeLR(decay=0.7),
    GradualUnfreezing(every=1),
]
on_networks = pytest.mark.parametrize("backbone", NETWORKS)
on_strategies = pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: type(s).__name__)
Make = Callable[[str, Strategy], TrialSpec]


@pytest.fixture(scope="module")
def tones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tones(tmp_path_factory.mktemp("sounds") / "tones")


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    if importlib.util.find_spec("transformers") is None:
        return {}
    folder = tmp_path_factory.mktemp("encoders")
    return {name: save_sound_encoder(folder / name, name) for name in ENCODERS}


@pytest.fixture
def make(make_spec: MakeSpec, tones: Path, encoders: dict[str, str]) -> Make:
    """A trial of three epochs on short sounds."""

    def made(backbone: str, strategy: Strategy) -> TrialSpec:
        if backbone in ENCODERS:
            pytest.importorskip("transformers")
        return make_spec(
            target=f"folder:{tones}[seconds=0.2]",
            backbone=encoders.get(backbone, backbone),
            source="pretrained" if backbone in ENCODERS else "scratch",
            strategy=strategy,
            resolution=32 if backbone == "test_resnet" else None,
            epochs=3,
            lr=1e-2,
            batch_size=4,
        )

    return made


@on_networks
@on_strategies
def test_trials_are_audited_and_cached_layers_change_nothing_but_rounding(
    backbone: str, strategy: Strategy, make: Make
) -> None:
    check_caching(make(backbone, strategy), rtol=1e-5)


@on_networks
@on_strategies
@pytest.mark.slow
def test_memory_is_that_of_live_tensors(backbone: str, strategy: Strategy, make: Make) -> None:
    spec = make(backbone, strategy)
    train, _ = loop_peaks(spec, inputs_of(spec), classes=2)
    assert forecast(spec).train_peak_mib == pytest.approx(train, rel=0.02)


SPACE = '''"""Does a sound come out again?"""
from harness import Study, TrialSpec, strategies

def space(trial, backbone):
    return TrialSpec(
        target="folder:{tones}[seconds=0.2]", backbone=backbone, strategy=strategies.LastBlock(),
        source="scratch", shots=3, val_shots=3, test_shots=3, epochs=2, batch_size=4,
        resolution=32 if backbone == "test_resnet" else None, augment="spec_augment",
        shifts="snr10", lr=trial.suggest_float("lr", 1e-3, 1e-1, log=True),
    )

study = Study(compare={{"backbone": ["test_resnet", "small_gru"]}}, space=space, trials=1, repeats=1)
'''


def test_recorded_trials_on_sounds_are_replayed_bit_by_bit(
    tones: Path,
    tmp_path: Path,
    tracking_uri: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sounds_again.py").write_text(SPACE.format(tones=tones))
    common = ["--device", "cpu", "--tracking-uri", tracking_uri]
    assert study.main(["--space", "sounds_again.py", *common]) == 0
    client = MlflowClient(tracking_uri)
    experiment = client.get_experiment_by_name("sounds_again")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "tags.phase = 'repeat'")
    assert len(runs) == 2
    for found in runs:
        capsys.readouterr()
        assert replay.main([found.info.run_id, "--tracking-uri", tracking_uri]) == 0
        assert "AGREED: bitwise equal" in capsys.readouterr().out
