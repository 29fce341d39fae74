"""What holds for every strategy on sounds (the audit, cached layers, replay, the forecast of memory), for a
network that sees spectrograms as pictures, for recurrent ones, and for encoders of transformers."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from torch.nn import functional as F

from harness import replay, study
from harness.backbones import build
from harness.core.spec import TrialSpec
from harness.core.strategies import (
    DiscriminativeLR,
    FullFineTune,
    GradualUnfreezing,
    LastBlock,
    LinearProbe,
    Strategy,
)
from harness.data import load_target
from harness.data.cached import Cache
from harness.training.device import MIB, Cpu
from harness.training.forecast import forecast
from harness.training.forecast.storages import StorageMeter
from harness.training.loop import Training
from tests.encoders import save_sound_encoder
from tests.sounds import write_tones

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
def make(make_spec: Callable[..., TrialSpec], tones: Path, encoders: dict[str, str]) -> Make:
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


def run(spec: TrialSpec, cache: Cache) -> tuple[dict[str, Any], list[tuple[float, ...]]]:
    """Notes and values of a trial; `finish` audits which tensors have changed."""
    fit = Training(spec, Cpu(), cache)
    epochs = [(e.train_loss, e.val_loss, e.val_accuracy) for e in fit]
    result = fit.finish(test=True)
    return dict(result.notes), [
        *epochs,
        tuple(result.metrics[f"test_{n}"] for n in ("loss", "accuracy")),
    ]


@on_networks
@on_strategies
def test_trials_are_audited_and_cached_layers_change_nothing_but_rounding(
    backbone: str, strategy: Strategy, make: Make
) -> None:
    spec = make(backbone, strategy)
    _, uncut = run(spec, Cache(budget=0))
    assert run(spec, Cache(budget=0))[1] == uncut, "the same again, bit by bit"
    notes, cached = run(spec, Cache())
    for found, wanted in zip(cached, uncut, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5)  # sums depend on the size of a batch
    frozen = isinstance(strategy, LinearProbe | LastBlock | GradualUnfreezing)
    assert ("kept after" in notes["prefix"]) == frozen


def live_peak(spec: TrialSpec) -> float:
    """Highest sum of the sizes of live tensors, in MiB, of a plain loop with real tensors."""
    backbone = build(spec.backbone, "scratch", 2, 0, resolution=spec.resolution)
    form = load_target(spec.target).medium.form(backbone.input)
    prepare = form.preparation(torch.device("cpu"), backbone.layout)
    rows = form.random(spec.batch_size, torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW(backbone.model.parameters(), fused=True)

    def step() -> None:
        seen = prepare(rows if rows.dtype == torch.uint8 else rows.clone())
        F.cross_entropy(backbone.model(seen), torch.arange(len(rows)) % 2).backward()
        optimizer.step()
        optimizer.zero_grad()

    def held() -> Iterator[torch.Tensor]:
        yield from [*backbone.model.parameters(), *backbone.model.buffers()]
        for state in optimizer.state.values():
            yield from (v for v in state.values() if isinstance(v, torch.Tensor))

    peaks = []
    for epoch in range(spec.epochs):
        scales = spec.strategy.lr_scales(len(backbone.groups), epoch)
        for group, scale in zip(backbone.groups, scales, strict=True):
            for parameter in group.parameters.values():
                parameter.requires_grad_(scale is not None)
        backbone.train_mode(g for g, scale in enumerate(scales) if scale is not None)
        for _ in range(2):
            meter = StorageMeter()
            with meter:
                meter.follow(held())
                step()
            peaks.append(sum(meter.peak().values()) / MIB)
    return max(peaks)


@on_networks
@on_strategies
@pytest.mark.slow
def test_memory_is_that_of_live_tensors(backbone: str, strategy: Strategy, make: Make) -> None:
    spec = make(backbone, strategy)
    assert forecast(spec).train_peak_mib == pytest.approx(live_peak(spec), rel=0.02)


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
