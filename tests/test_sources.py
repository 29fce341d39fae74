"""Source models: how they learn, that they are kept whole, and that trials start from exactly them."""

from __future__ import annotations

import copy
import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mlflow import MlflowClient

from harness.backbones import build, weights_sha256
from harness.backbones.recorded import content_sha256, find_models, folder, model_for, write_model
from harness.core.strategies import FullFineTune, LinearProbe
from harness.data import load_target
from harness.data.expressions import roots
from harness.inputs import Pixels
from harness.pretrain import main
from harness.similarity.sources import SourceSpec
from harness.similarity.sources.objectives import OBJECTIVES
from harness.similarity.sources.pretraining import pretrain, split_source
from harness.similarity.sources.recording import check_sources
from harness.similarity.sources.spec import spec_from
from harness.training.device import Cpu
from harness.training.loop import start
from tests.refusals import refused
from tests.sounds import write_tones
from tests.test_splits import blank
from tests.trials import MakeSpec

LOW = "digits[classes=0-4]"
FILE = f'''
from harness.similarity.sources import SourceSpec
sources = [
    SourceSpec("low", "{LOW}", shots=20, val_shots=5, resolution=12, steps=5, models=2),
    SourceSpec("random", "{LOW}", shots=20, val_shots=5, resolution=12, steps=0),
]
'''


def make(**changes: Any) -> SourceSpec:
    fields: dict[str, Any] = {
        "name": "low", "data": LOW, "shots": 40, "val_shots": 20, "resolution": 12, "steps": 30,
        "batch_size": 32,
    }  # fmt: skip
    return SourceSpec(**{**fields, **changes})


@pytest.fixture(autouse=True)
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where models are kept in this test."""
    monkeypatch.setenv("TRANSFER_SOURCES", str(tmp_path / "models"))
    return tmp_path / "models"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with a file that describes sources."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.py").write_text(FILE)
    return tmp_path


def keep(name: str, backbone: str = "small_cnn", seed: int = 0) -> dict[str, torch.Tensor]:
    """Record a network with random weights; returns its state dict."""
    state = build(backbone, "scratch", 5, seed).model.state_dict()
    write_model(name, state, {"backbone": backbone})
    return state


# --- the small network -----------------------------------------------------------------------------


def test_the_small_network_has_about_sixty_thousand_parameters_in_five_groups() -> None:
    found = build("small_cnn", "scratch", 5, seed=0)
    assert 55_000 < sum(p.numel() for p in found.model.parameters()) < 65_000
    assert len(found.groups) == 5
    assert [len(g.buffers) for g in found.groups] == [3, 3, 3, 3, 0]


def test_its_frozen_part_can_be_kept(make_spec: MakeSpec) -> None:
    fit = start(make_spec(backbone="small_cnn", strategy=LinearProbe()), Cpu())
    list(fit)
    assert "kept after flatten" in fit.finish(test=False).notes["prefix"]


# --- learning --------------------------------------------------------------------------------------


def test_a_source_learns_its_labels() -> None:
    before, after = (pretrain(make(steps=steps), 0, Cpu()) for steps in (0, 60))
    assert after.metrics["val_accuracy"] > 0.9 > before.metrics["val_accuracy"]
    assert (after.images, after.val_images, after.classes) == (200, 100, 5)


def test_an_autoencoder_learns_to_draw_its_pictures_again() -> None:
    before, after = (pretrain(make(objective="autoencoder", steps=s), 0, Cpu()) for s in (0, 60))
    assert after.metrics["val_loss"] < 0.5 * before.metrics["val_loss"]
    assert "val_accuracy" not in after.metrics


def test_both_players_of_a_gan_learn() -> None:
    target = load_target(LOW)
    pixels = target.read(np.arange(64), Pixels(12))
    found = build("small_cnn", "scratch", 1, 0, resolution=12)
    torch.manual_seed(0)
    gan = OBJECTIVES["gan"](found, torch.Generator().manual_seed(0))
    labels = torch.zeros(64)
    for player in gan.players:
        optimizer = torch.optim.AdamW(player.module.parameters(), lr=1e-2)
        others = [
            p for other in gan.players if other is not player for p in other.module.parameters()
        ]
        frozen = copy.deepcopy(others)
        first = last = float(player.loss(pixels, labels).detach())
        for _ in range(30):
            optimizer.zero_grad()
            loss = player.loss(pixels, labels)
            loss.backward()
            optimizer.step()
            last = float(loss.detach())
        assert last < 0.9 * first
        assert all(torch.equal(a, b) for a, b in zip(others, frozen, strict=True))


@pytest.mark.parametrize("backbone", ["small_lstm", "small_gru", "small_cnn"])
@pytest.mark.slow
def test_a_source_learns_sounds_and_trials_on_other_sounds_start_from_it(
    backbone: str, here: Path, tracking_uri: str, make_spec: MakeSpec
) -> None:
    pytest.importorskip("soundfile")
    tones, others = (
        f"folder:{write_tones(here / name)}[seconds={s}]" for name, s in (("a", 0.2), ("b", 0.3))
    )
    side = 16 if backbone == "small_cnn" else None
    (here / "toy.py").write_text(f"""
from harness import SourceSpec
sources = [
    SourceSpec(
        "tones", {tones!r}, {backbone!r}, val_shots=4, resolution={side}, steps=60, batch_size=8, lr=1e-2
    )
]
""")
    assert main(["--space", "toy.py", "--device", "cpu", "--tracking-uri", tracking_uri]) == 0
    (model,) = find_models("tones")
    assert float(model.about["metric.val_accuracy"]) == 1
    spec = make_spec(
        target=others, backbone=backbone, source="recorded:tones", resolution=side,
        strategy=LinearProbe(), epochs=10, lr=3e-2,
    )  # fmt: skip
    fit = start(spec, Cpu())
    own, recorded = fit.backbone.model.state_dict(), model.read()
    inner = [name for name in recorded if not name.startswith("head.")]
    assert inner
    assert all(torch.equal(own[name], recorded[name]) for name in inner)
    list(fit)
    assert fit.finish(test=True).metrics["test_accuracy"] > 0.5


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"objective": "autoencoder"},
            "source low: objective 'autoencoder' makes pictures, and 21 frames",
        ),
        ({"objective": "gan"}, "objective 'gan' makes pictures"),
        ({"data": LOW}, "source low: the network takes 161 frames .* cannot be used for images"),
    ],
)
def test_what_a_recurrent_source_cannot_learn_is_refused_before_any_training(
    changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    pytest.importorskip("soundfile")
    tones = f"folder:{write_tones(tmp_path / 'tones')}[seconds=0.2]"
    fields = {
        "data": tones,
        "backbone": "small_lstm",
        "resolution": None,
        "shots": 3,
        "val_shots": 3,
    }
    with refused(said):
        check_sources([make(**{**fields, **changes})])


def test_random_weights_are_those_of_a_network_that_learned_nothing() -> None:
    spec = make(steps=0)
    state = pretrain(spec, 0, Cpu()).state
    fresh = build("small_cnn", "scratch", 5, spec.seed(0), resolution=12).model.state_dict()
    assert all(torch.equal(state[n], fresh[n]) for n in fresh)


def test_a_model_is_decided_by_its_spec_and_number() -> None:
    hashes = [content_sha256(pretrain(make(steps=3), n, Cpu()).state) for n in (0, 0, 1)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_no_official_test_image_is_learned_from() -> None:
    target = load_target("digits")
    official = np.arange(1797) % 2 == 1
    marked = dataclasses.replace(target, official_test=official)
    split = split_source(marked, make(data="digits", shots=50, val_shots=10), 0)
    assert not official[np.concatenate([split.train, split.val])].any()
    assert not set(split.train) & set(split.val)
    assert np.bincount(marked.labels[split.train]).tolist() == [50] * 10


def test_two_numbers_draw_different_images_of_the_same_data() -> None:
    target = load_target(LOW)
    first, second = (set(roots(target, split_source(target, make(), n).train)) for n in (0, 1))
    assert len(first) == len(second) == 200
    assert first != second


def test_a_class_with_too_few_images_is_named() -> None:
    with refused(r"source low: class 'class 1' of .* has 1 images, too few for"):
        split_source(blank(np.repeat([0, 1], [30, 1])), make(), 0)


def test_a_class_with_fewer_images_gives_what_it_has() -> None:
    labels = np.repeat([0, 1], [100, 8])
    split = split_source(blank(labels), make(shots=40, val_shots=20), 0)
    assert np.bincount(labels[split.train]).tolist() == [40, 4]
    assert np.bincount(labels[split.val]).tolist() == [20, 4]


def test_images_of_a_group_are_learned_from_or_judged_on() -> None:
    labels, groups = np.repeat([0, 1], 60), np.arange(120) // 4
    split = split_source(blank(labels, groups=groups), make(shots=None, val_shots=None), 0)
    assert not set(groups[split.train]) & set(groups[split.val])
    assert len(split.train) + len(split.val) == 120
    assert np.bincount(labels[split.val]).min() > 0


def test_validation_images_of_a_data_set_are_judged_on() -> None:
    is_val = np.arange(60) % 3 == 0
    target = blank(np.repeat([0, 1], 30), official_val=is_val)
    split = split_source(target, make(shots=None, val_shots=None), 0)
    assert split.val.tolist() == np.flatnonzero(is_val).tolist()
    assert split.train.tolist() == np.flatnonzero(~is_val).tolist()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "low.1"}, "must not end with a number"),
        ({"name": "a/b"}, "must be letters"),
        ({"objective": "rotation"}, "one of supervised, autoencoder, gan, got 'rotation'"),
        ({"steps": -1}, "steps must be a whole number of at least 0"),
        ({"shots": 1.5}, "shots must be a whole number"),
        ({"lr": 0.0}, "lr must be in"),
    ],
)
def test_a_wrong_description_is_refused(changes: dict[str, Any], said: str) -> None:
    with refused(said):
        make(**changes)


def test_a_description_is_found_again_in_what_the_model_says_of_itself() -> None:
    spec = make(weight_decay=0.0, shots=None)
    about = {k: str(v) for k, v in {**spec.flat(), "number": 3}.items()}
    assert spec_from(about) == (spec, 3)


# --- kept models -----------------------------------------------------------------------------------


def test_a_trial_starts_from_the_recorded_weights_with_a_head_of_its_own() -> None:
    state = keep("low.0")
    found = build("small_cnn", "recorded:low", 7, seed=0).model.state_dict()
    inner = [n for n in state if not n.startswith("head.")]
    assert all(torch.equal(found[n], state[n]) for n in inner)
    assert found["head.weight"].shape == (7, 64)
    scratch = build("small_cnn", "scratch", 7, seed=0).model.state_dict()
    assert torch.equal(found["head.weight"], scratch["head.weight"])


def test_the_seed_of_a_trial_decides_which_of_a_sources_models_it_gets() -> None:
    for number in range(11):
        keep(f"low.{number}", seed=number)
    assert [model_for("recorded:low", seed).name for seed in (0, 2, 10, 11)] == [
        *("low.0", "low.2", "low.10", "low.0"),
    ]
    assert model_for("recorded:low.2", 5).name == "low.2"
    hashes = {weights_sha256(f"recorded:low{n}", "small_cnn") for n in ("", ".0", ".1")}
    assert len(hashes) == 3


def test_a_trial_runs_from_a_recorded_source(make_spec: MakeSpec) -> None:
    keep("low.0")
    spec = make_spec(backbone="small_cnn", source="recorded:low", strategy=FullFineTune())
    fit = start(spec, Cpu())
    assert len(list(fit)) == spec.epochs
    assert fit.finish(test=True).outcome == "complete"


def test_an_absent_source_is_refused_with_those_there_are() -> None:
    keep("low.0")
    with refused(r"no recorded source 'lwo' in .*recorded: low\)"):
        build("small_cnn", "recorded:lwo", 5, seed=0)


def test_a_damaged_source_is_refused_in_one_line(shelf: Path) -> None:
    keep("low.0")
    path = shelf / "low.0.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with refused(r"low\.0\.safetensors is damaged .*weights differ from the rec"):
        build("small_cnn", "recorded:low", 5, seed=0)
    path.write_bytes(whole[:-100])
    with refused(r"low\.0\.safetensors is damaged"):
        build("small_cnn", "recorded:low", 5, seed=0)


def test_a_source_of_another_backbone_is_refused() -> None:
    keep("low.0")
    with refused(r"'low\.0' has backbone small_cnn, not test_resnet"):
        build("test_resnet", "recorded:low", 5, seed=0)


# --- the command -----------------------------------------------------------------------------------


def test_the_command_records_every_model_once(
    here: Path, tracking_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--space", "toy.py", "--device", "cpu", "--tracking-uri", tracking_uri]
    assert main([*command, "--dry-run"]) == 0
    assert not folder().exists()
    assert main(command) == 0
    assert "3 models trained, 0 of 3 recorded before" in capsys.readouterr().out
    times = {p.name: p.stat().st_mtime_ns for p in folder().iterdir()}
    assert set(times) == {f"{n}.safetensors" for n in ("low.0", "low.1", "random.0")}
    assert main(command) == 0
    assert "0 models trained, 3 of 3 recorded before" in capsys.readouterr().out
    assert {p.name: p.stat().st_mtime_ns for p in folder().iterdir()} == times

    client = MlflowClient(tracking_uri)
    experiment = client.get_experiment_by_name("pretraining")
    assert experiment is not None
    runs = {r.data.tags["model"]: r for r in client.search_runs([experiment.experiment_id])}
    assert len(runs) == 3
    run = runs["low.1"]
    (model,) = find_models("recorded:low.1")
    assert run.data.tags["weights_sha256"] == model.sha256
    assert run.data.params["data"] == LOW
    assert (run.data.params["steps"], run.data.tags["classes"]) == ("5", "5")
    assert 0 <= run.data.metrics["val_accuracy"] <= 1
    copy_of = Path(run.info.artifact_uri.removeprefix("file://")) / "weights.safetensors"
    assert copy_of.read_bytes() == model.path.read_bytes()

    # What is damaged or lost is made again, the same as it was; what is changed is refused.
    model.path.write_bytes(b"torn")
    shutil.rmtree(copy_of.parent)
    assert main(command) == 0
    assert "1 model trained, 2 of 3" in capsys.readouterr().out
    assert find_models("recorded:low.1")[0].sha256 == model.sha256
    (here / "toy.py").write_text(FILE.replace("steps=5", "steps=6"))
    assert main(command) == 2
    assert "'low.0' was trained with other settings: steps was 5, is 6" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("study = 1", "defines no `sources`"),
        ("sources = []", "must be a list of SourceSpec, got an empty one"),
        ("sources = ['low']", "must be a list of SourceSpec, got str"),
        (FILE + "sources.append(sources[0])", "source 'low' is defined twice"),
        (FILE.replace(f'"random", "{LOW}"', '"random", "digts"'), "did you mean digits"),
        (FILE.replace('"random",', '"random", backbone="resnet81", data='), "unknown backbone"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(
    here: Path, text: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "toy.py").write_text(text)
    assert main(["--space", "toy.py", "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (here / "mlruns").exists()
