"""Measures of pairs and what was learned from recorded studies, from the command line down to the arrays."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from mlflow import MlflowClient
from optuna.trial import BaseTrial
from PIL import Image

from harness import rank, strategies
from harness.backbones import build
from harness.backbones.recorded import write_model
from harness.backbones.wheels import MINILM, WHEELS
from harness.core import study_file
from harness.core.errors import UserError
from harness.core.spec import TrialSpec
from harness.core.study import Cell, Study
from harness.data import load_target, split_indices
from harness.data.cached import Cache
from harness.data.media import MEDIA, Images
from harness.inputs import Pixels
from harness.pretrain import main as pretrain_main
from harness.search.space import first_draw
from harness.similarity import MEASURES, Measurement, needs, static_rank
from harness.similarity.__main__ import main as similarity_main
from harness.similarity.sources import measuring
from harness.similarity.sources.evidence import PAIR, evidence, read_results
from harness.similarity.sources.measuring import (
    Measuring,
    features,
    pairs_of,
    probabilities,
    shared_images,
)
from harness.similarity.sources.ranking import installed
from harness.study import main as study_main
from harness.tracking.experiment import Experiment
from harness.tracking.runs import Recorded
from harness.training.device import Cpu
from tests.sounds import write_tones

STUDIES = Path(__file__).parent.parent / "studies"
LOW, HIGH = "digits[classes=0-4]", "digits[classes=5-9]"
SOURCES = {"low": "recorded:low", "longer": "recorded:longer", "random": "scratch"}


def space(trial: BaseTrial, source: str, shots: str) -> TrialSpec:
    return TrialSpec(
        target=HIGH, backbone="small_cnn", strategy=strategies.LinearProbe(), source=SOURCES[source],
        shots=int(shots), val_shots=4, test_shots=6, resolution=12, batch_norm="reestimate",
    )  # fmt: skip


study = Study(compare={"source": SOURCES, "shots": ["5", "20"]}, space=space, name="toy")


@pytest.fixture(autouse=True)
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sources with the same images and other weights, few images, and a working directory of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(measuring, "MOST", 60)
    monkeypatch.delenv("TRANSFER_SOURCES", raising=False)
    for seed, name in enumerate(("low", "longer")):
        about = {
            "name": name, "data": LOW, "backbone": "small_cnn", "objective": "supervised",
            "shots": "20", "val_shots": "5", "resolution": "12", "steps": "5", "number": "0",
            "classes": "5", "images": "100", "val_images": "25", "metric.val_accuracy": "0.8",
        }  # fmt: skip
        state = build("small_cnn", "scratch", 5, seed).model.state_dict()
        write_model(f"{name}.0", state, about)


def drawn(study: Study) -> list[tuple[Cell, TrialSpec]]:
    """Each cell with the spec of its first trial."""
    return [(cell, first_draw(study, cell)) for cell in study.cells()]


def test_the_pairs_of_a_study_take_its_largest_training_set() -> None:
    pairs = pairs_of(drawn(study))
    assert [(p.source, p.target, p.spec.shots) for p in pairs] == [
        *(("low", HIGH, 20), ("longer", HIGH, 20), ("random", HIGH, 20)),
    ]


def test_only_training_images_of_the_target_are_looked_at() -> None:
    for pair in pairs_of(drawn(study)):
        split = split_indices(load_target(HIGH), pair.spec)
        assert set(pair.target_data[1]) <= set(split.train)
        assert not set(pair.target_data[1]) & (set(split.test) | set(split.val))


def test_distances_depend_on_the_images_of_a_source_and_the_rest_on_its_weights() -> None:
    pairs = [dataclasses.replace(pair, most=60) for pair in pairs_of(drawn(study))]
    all_of = Measuring(pairs, Cpu(), Cache())
    low, longer, random = ({m.name: m for m in all_of.measure(pair, 0)} for pair in pairs)
    for name in ("mmd", "otdd"):
        assert low[name].value == longer[name].value
        assert random[name].refused
    for name in ("knn_accuracy", "logme", "leep"):
        assert low[name].value != longer[name].value
    assert random["leep"].reason == measuring.NO_HEAD
    assert low["frechet"].reason.startswith("60 examples per side for d=")
    assert low["source_accuracy"].value == 0.8


def test_features_are_the_inputs_of_the_head_with_the_targets_statistics() -> None:
    pair = pairs_of(drawn(study))[0]
    found = features(pair.spec, pair.target_data, Cpu(), Cache())
    model = build("small_cnn", "recorded:low.0", 2, pair.spec.seed).model
    target = load_target(HIGH)
    pixels = target.read(np.array(pair.target_data[1]), Pixels(12)).float() / 127.5 - 1
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.reset_running_stats()
                module.momentum = None
        model.train()(pixels)
        want = model.eval().flatten(model.pool(model.stages(pixels))).numpy()  # type: ignore[operator]
    assert np.allclose(found, want, atol=1e-4)


def test_probabilities_are_those_of_the_sources_own_head() -> None:
    pair = pairs_of(drawn(study))[0]
    assert pair.model is not None
    model = build("small_cnn", "scratch", 5, seed=9).model
    model.load_state_dict(pair.model.read())
    pixels = load_target(HIGH).read(np.array(pair.target_data[1]), Pixels(12)).float()
    with torch.no_grad():
        want = model.eval()(pixels / 127.5 - 1).softmax(1).numpy()
    assert np.allclose(probabilities(pair, Cpu(), Cache()), want, atol=1e-4)


def test_a_source_that_learned_from_images_of_the_target_is_noticed() -> None:
    pair = pairs_of(drawn(study))[0]
    assert shared_images(pair) == 0
    overlapping = dataclasses.replace(pair.spec, target="digits[classes=3-6]")
    assert shared_images(dataclasses.replace(pair, spec=overlapping)) == 40  # 20 of class 3 and 4


# --- what recorded studies show --------------------------------------------------------------------

ACCURACY = np.array([[0.9, 0.8, 0.7], [0.6, 0.8, 0.7], [0.5, 0.9, 0.6]])


def results(**measures: np.ndarray) -> pd.DataFrame:
    pairs = pd.MultiIndex.from_product([["toy"], [*"xyz"], [*"abc"]], names=PAIR).to_frame(
        index=False
    )
    columns = {name: values.ravel() for name, values in measures.items()}
    return pairs.assign(accuracy=ACCURACY.ravel(), **columns)


def test_regret_is_what_the_picked_source_lacks_of_the_best() -> None:
    found = {e.measure: e for e in evidence(results(good=ACCURACY, bad=-ACCURACY))}
    assert found["good"].regret == 0
    assert found["good"].tau == pytest.approx(1)
    assert found["bad"].regret == pytest.approx((0.2 + 0.2 + 0.4) / 3)
    # On y and z, b is best; so for x the others say b (.1 lost). For y: ranks on x and z are
    # a 1, 3; b 2, 1; c 3, 2: b, nothing lost. For z: a 1, 3; b 2, 1; c 3, 2: b again.
    assert found["static_rank"].regret == pytest.approx(0.1 / 3)
    assert found["good"].beats_static
    assert not found["bad"].beats_static
    assert not found["static_rank"].beats_static


def test_a_measure_without_enough_sources_says_nothing() -> None:
    gaps = np.where(np.eye(3, dtype=bool), np.nan, ACCURACY)
    assert "gaps" not in {e.measure for e in evidence(results(gaps=gaps))}


def test_recorded_runs_become_a_table_that_turns_distances_round() -> None:
    def repeat(source: str, accuracy: float, **tags: str) -> Recorded:
        told = {"phase": "repeat", "outcome": "complete", "source": source, **tags}
        return Recorded("", "toy", told, {"target": "x"}, {"test_accuracy": accuracy})

    told = {"phase": "similarity", "source": "a", "better.otdd": "lower", "better.logme": "higher"}
    values = {"similarity.otdd": 3.0, "similarity.logme": 2.0, "similarity.otdd.n": 9.0}
    runs = [
        *(repeat("a", 0.5), repeat("a", 0.7), repeat("a", 0.1, superseded="true")),
        *(repeat("b", 0.4), repeat("b", 0.1, outcome="diverged")),
        Recorded("", "toy", told, {"target": "x"}, values),
    ]
    found = read_results(runs)
    assert found[PAIR].to_numpy().tolist() == [["toy", "x", "a"], ["toy", "x", "b"]]
    assert found["accuracy"].tolist() == pytest.approx([0.6, 0.4])
    assert found["otdd"].tolist() == pytest.approx([-3.0, np.nan], nan_ok=True)
    assert found["logme"].tolist() == pytest.approx([2.0, np.nan], nan_ok=True)
    assert evidence(read_results([])) == []


# --- the commands ----------------------------------------------------------------------------------


@pytest.fixture
def shapes(tmp_path: Path) -> str:
    """A folder target whose classes differ in brightness."""
    rng = np.random.default_rng(0)
    for level, name in ((60, "dark"), (190, "light")):
        (tmp_path / "shapes" / name).mkdir(parents=True)
        for i in range(20):
            noise = rng.integers(0, 60, (12, 12, 3)) + level
            Image.fromarray(noise.astype(np.uint8)).save(tmp_path / f"shapes/{name}/{i}.png")
    return f"folder:{tmp_path / 'shapes'}"


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """The measures that cost little."""
    few = {name: MEASURES[name] for name in ("otdd", "probe_accuracy", "logme")}
    monkeypatch.setattr(measuring, "MEASURES", few)


def ranking(shapes: str, uri: str, *more: str) -> list[str]:
    sources = ["--sources", "recorded:low,recorded:longer"]
    return ["--target", shapes, *sources, "--device", "cpu", "--tracking-uri", uri, *more]


@pytest.mark.usefixtures("fast")
def test_ranking_says_when_nothing_is_known_of_its_measures(
    shapes: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rank.main(ranking(shapes, f"sqlite:///{tmp_path}/none.db")) == 0
    out = capsys.readouterr().out
    assert "ranked by probe_accuracy: recorded:lo" in out
    assert "no recorded study has measured pairs" in out
    assert not (tmp_path / "none.db").exists()


@pytest.mark.usefixtures("fast")
def test_ranking_says_when_it_is_no_better_than_one_order_for_all(
    shapes: str, tracking_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    past = Experiment(tracking_uri, "past", {})
    for t, target in enumerate("xyz"):
        for s, source in enumerate("abc"):
            told = {"source": source, "target": target}
            past.keep(
                "r", {}, {**told, "phase": "repeat", "outcome": "complete"},
                {"test_accuracy": float(ACCURACY[t, s])},
            )  # fmt: skip
            past.keep(
                "s", {}, {**told, "phase": "similarity", "better.logme": "higher"},
                {"similarity.logme": -float(ACCURACY[t, s])},
            )  # fmt: skip
    assert rank.main(ranking(shapes, tracking_uri)) == 0
    out = capsys.readouterr().out
    assert "ranked by logme" in out
    assert "its choice lost 26.7% on average, that of the static ranking 3.3%: NO BETTER" in out


def write_recurrent_sources(prefix: str, data: str) -> None:
    """Record an LSTM and a GRU, untrained, as sources `lstm` and `gru` that learned from `data`."""
    about = {
        "data": data, "objective": "supervised", "shots": "5", "val_shots": "3", "resolution": "None",
        "steps": "5", "number": "0", "classes": "2", "images": "10", "val_images": "6",
    }  # fmt: skip
    for name in ("lstm", "gru"):
        backbone = f"{prefix}{name}"
        state = build(backbone, "scratch", 2, 0).model.state_dict()
        write_model(f"{name}.0", state, {**about, "name": name, "backbone": backbone})


@pytest.mark.usefixtures("fast")
def test_sources_for_sounds_are_ranked_in_an_embedding_of_sounds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("soundfile")
    target, other = (
        f"folder:{write_tones(tmp_path / name)}[seconds={s}]"
        for name, s in (("a", 0.2), ("b", 0.3))
    )
    write_recurrent_sources("small_", other)
    known = f"sqlite:///{tmp_path}/none.db"
    sources = ["--sources", "recorded:lstm,recorded:gru"]
    assert (
        rank.main(["--target", target, *sources, "--device", "cpu", "--tracking-uri", known]) == 0
    )
    out = capsys.readouterr().out
    assert (
        "14 training sounds looked at, distances between data sets in tf_efficientnet_lite0 imagenet on "
        "spectrograms at 64 px, 64 principal axes"
    ) in out
    assert re.search(r"^ otdd +lower +\d", out, re.MULTILINE)
    assert "ranked by probe_accuracy: recorded:" in out


TEXT_STUDY = """
from harness import Study, TrialSpec, strategies

SOURCES = {{"lstm": "recorded:lstm", "gru": "recorded:gru"}}

def space(trial, source):
    return TrialSpec(
        {target!r}, f"text_{{source}}", strategies.LinearProbe(), source=SOURCES[source], shots=5,
        val_shots=3, test_shots=4,
    )

study = Study(compare={{"source": SOURCES}}, space=space, name="texts")
"""


@pytest.mark.usefixtures("fast")
@pytest.mark.skipif(MINILM.file() is None, reason="the wheel is not installed")
def test_sources_for_texts_are_ranked_and_compared_in_an_embedding_of_texts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.texts import write_texts

    target, other = (f"folder:{write_texts(tmp_path / name)}[tokens=8]" for name in "ab")
    write_recurrent_sources("text_", other)
    common = ["--device", "cpu", "--tracking-uri", f"sqlite:///{tmp_path}/none.db"]
    sources = ["--sources", "minilm,recorded:lstm,recorded:gru"]
    assert rank.main(["--target", target, *sources, *common]) == 0
    out = capsys.readouterr().out
    assert (
        "14 training texts looked at, distances between data sets in minilm pretrained mean over tokens, "
        "64 principal axes"
    ) in out
    assert re.search(r"^ otdd +lower +", out, re.MULTILINE)
    assert "ranked by probe_accuracy: " in out
    (tmp_path / "texts.py").write_text(TEXT_STUDY.format(target=target))
    assert similarity_main(["--space", str(tmp_path / "texts.py"), *common]) == 0
    said = capsys.readouterr().out
    assert "recorded before" in said
    assert said.count("otdd ") == 2


def test_every_kind_of_examples_has_a_reference_embedding() -> None:
    assert set(measuring.REFERENCES) == set(MEDIA)


def test_candidates_are_the_installed_networks_that_take_the_examples(tmp_path: Path) -> None:
    pytest.importorskip("soundfile")
    images, sounds = (installed(t) for t in ("digits", f"folder:{write_tones(tmp_path / 'a')}"))
    at_hand = {name for name, wheel in WHEELS.items() if wheel.file()}
    assert set(images) == at_hand - {"resemblyzer", "minilm"}
    assert set(sounds) == at_hand - {"minilm"}


def test_ranking_refuses_bad_input_in_one_line(
    shapes: str, tracking_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for more, said in (
        (["--sources", "recorded:low"], "at least 2"),
        (["--sources", "recorded:lwo,recorded:low"], "no recorded source 'lwo'"),
        (["--images", "3"], "--images must be at least 10"),
        (["--target", "digts"], "did you mean digits"),
    ):
        assert rank.main(ranking(shapes, tracking_uri, *more)) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1


@pytest.mark.slow
@pytest.mark.usefixtures("fast")
def test_the_smoke_tier_of_the_study_runs_and_is_measured_once(
    monkeypatch: pytest.MonkeyPatch, tracking_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TIER", "smoke")
    space = str(STUDIES / "source_similarity.py")
    common = ["--space", space, "--device", "cpu", "--tracking-uri", tracking_uri]
    common += ["--cache-dir", "cache"]
    assert pretrain_main(common) == 0
    assert study_main([*common, "--repeats", "0"]) == 0
    assert similarity_main([*common, "--resamples", "2"]) == 0
    assert similarity_main(common) == 0
    out = capsys.readouterr().out
    assert "6 pairs measured, 0 recorded before" in out
    assert "0 pairs measured, 6 recorded before" in out

    client = MlflowClient(tracking_uri)
    experiment = client.get_experiment_by_name("source_similarity_smoke")
    assert experiment is not None
    assert "factors" in experiment.tags, "the study's own tags are kept"
    runs = client.search_runs([experiment.experiment_id], "tags.phase = 'similarity'")
    keys = {(r.data.tags["source"], r.data.tags["target"]) for r in runs}
    assert len(keys) == len(runs) == 6
    assert ("digits permuted", "optical digits") in keys
    for run in runs:
        assert "outcome" not in run.data.tags, "it is no trial"
        assert run.data.tags["embedding"] == str(measuring.REFERENCES[Images])
        metrics = run.data.metrics
        assert metrics["similarity.logme.low"] <= metrics["similarity.logme"]
        assert metrics["similarity.logme.n"] == 25
        if run.data.tags["source"] == "random weights":
            assert "similarity.otdd" not in metrics
            assert run.data.tags["reason.otdd"] == measuring.NO_DATA
    assert study_main([*common, "--repeats", "1"]) == 0, "the study goes on beside the measures"


@pytest.fixture
def read_anew() -> Iterator[None]:
    """Study files are imported once per process, whatever the environment says later."""
    study_file.clear_caches()
    yield
    study_file.clear_caches()


@pytest.mark.usefixtures("read_anew")
@pytest.mark.parametrize("tier", ["nightly", "paper"])
def test_every_tier_gives_each_model_of_a_source_equally_many_repeats(
    tier: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.core.study_file import load_study, run_file
    from harness.search.plan import trial_seed

    monkeypatch.setenv("TIER", tier)
    found = load_study(STUDIES / "source_similarity.py")
    models = run_file(STUDIES / "source_similarity.py")["sources"][0].models
    used = [trial_seed(found, "repeat", i) % models for i in range(found.repeats)]
    assert set(np.bincount(used, minlength=models)) == {found.repeats // models}


@pytest.mark.usefixtures("read_anew")
def test_an_unknown_tier_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.core.study_file import load_study

    study_file.clear_caches()  # a process imports a study file once
    monkeypatch.setenv("TIER", "huge")
    with pytest.raises(UserError, match=r"TIER=huge is unknown; choose from smoke, nightly, paper"):
        load_study(STUDIES / "source_similarity.py")


def test_the_static_rank_of_candidates_leaves_their_target_out() -> None:
    from harness.similarity.sources.ranking import pair_of, static_ranks

    pairs = [pair_of(n, HIGH, 12, 60) for n in ("recorded:low", "recorded:longer")]
    runs = [
        Recorded(
            "", "past", {"phase": "repeat", "outcome": "complete"},
            {"backbone": "small_cnn", "source": source, "target": target},
            {"test_accuracy": accuracy},
        )
        for source, target, accuracy in (
            ("recorded:low", "x", 0.6), ("recorded:longer", "x", 0.7),
            ("recorded:low", "y", 0.6), ("recorded:longer", "y", 0.7),
            ("recorded:low", HIGH, 0.9), ("recorded:longer", HIGH, 0.1),
        )
    ]  # fmt: skip
    found = static_ranks(pairs, runs)
    assert (found["recorded:low"].value, found["recorded:longer"].value) == (2.0, 1.0)
    table = np.array([[0.6, 0.7], [0.6, 0.7], [np.nan, np.nan]])
    assert found["recorded:low"].value == static_rank(table, 0, 2).value


def test_a_measure_that_needs_an_unknown_array_is_refused_with_the_known_ones() -> None:
    def misspelt(featurs: np.ndarray, labels: np.ndarray, *, seed: int) -> Measurement:
        raise AssertionError("never computed")

    with pytest.raises(ValueError, match="'featurs', which is not among bandwidth, features"):
        needs(misspelt)
