"""A trial that is stopped from outside goes on after its last kept epoch; real training, real stores."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from harness.record import Recorder, StudyInfo
from harness.search.bench import Bench
from harness.search.cells import CellSearch
from harness.search.leases import Owner
from harness.search.preemption import Checkpoints
from harness.search.runner import prepare, run_study
from mlflow import MlflowClient
from mlflow.entities import Run
from optuna.trial import BaseTrial, TrialState
from PIL import Image

from harness.checkpoint import BadCheckpoint
from harness.environment import look_anew
from harness.measure import Cpu
from harness.results import EpochResult
from harness.rows import Cache
from harness.search import preemption, signals
from harness.signals import Terminated
from harness.spec import Study, TrialSpec
from harness.train import Training

MakeSpec = Callable[..., TrialSpec]


@pytest.fixture
def study(make_spec: MakeSpec) -> Study:
    """One trial of four epochs."""

    def space(trial: BaseTrial, strategy: str) -> TrialSpec:
        return make_spec(epochs=4, lr=trial.suggest_float("lr", 1e-3, 1e-2))

    return Study(compare={"strategy": ["full"]}, space=space, trials=1, repeats=0, name="toy")


@pytest.fixture
def bench(study: Study, tracking_uri: str, tmp_path: Path) -> Bench:
    info = StudyInfo(
        name="toy", question="", command="", factors={}, baseline={},
        trials=1, repeats=0, sampler="random", space_sha256="", leaks=(),
    )  # fmt: skip
    storage = optuna.storages.InMemoryStorage()
    recorder = Recorder(tracking_uri, info)
    kept = Checkpoints(tmp_path / "checkpoints", every=0)
    return Bench(storage, recorder, Cpu(), {}, Cache(None, 0), checkpoints=kept)


@pytest.fixture
def sigusr1(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """SIGUSR1 as the command hears it, and nothing asked yet."""
    monkeypatch.setattr(preemption, "_asked", False)
    before = signal.getsignal(signal.SIGUSR1)
    preemption.stop_on_request()
    yield
    signal.signal(signal.SIGUSR1, before)


def run(study: Study, bench: Bench) -> None:
    prepare(study, bench)
    list(run_study(study, bench))


def runs(tracking_uri: str, outcome: str) -> list[Run]:
    client = MlflowClient(tracking_uri=tracking_uri)
    experiment = client.get_experiment_by_name("toy")
    assert experiment is not None
    return list(
        client.search_runs(
            [experiment.experiment_id], f"tags.outcome = '{outcome}' and tags.index = '0'"
        )
    )


def stop_in_epoch(monkeypatch: pytest.MonkeyPatch, number: int, stop: Callable[[], None]) -> None:
    real = Recorder.epoch

    def epoch(self: Recorder, run_id: str, result: EpochResult) -> Any:
        if result.epoch == number:
            stop()
        return real(self, run_id, result)

    monkeypatch.setattr(Recorder, "epoch", epoch)


def curve(tracking_uri: str, run_id: str) -> list[tuple[int, float]]:
    history = MlflowClient(tracking_uri=tracking_uri).get_metric_history(run_id, "val_loss")
    return sorted((m.step, m.value) for m in history)


def losses_of_an_uninterrupted_trial(study: Study) -> list[tuple[int, float]]:
    from harness.search.cells import first_draw

    from harness.train import start

    spec = first_draw(study, study.cells()[0])
    return [(e.epoch, e.val_loss) for e in start(spec, Cpu(), Cache(None, 0))]


@pytest.mark.usefixtures("sigusr1")
def test_asked_to_stop_a_trial_keeps_its_epoch_and_goes_on_from_there(
    study: Study, bench: Bench, tracking_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_in_epoch(patch, 1, lambda: os.kill(os.getpid(), signal.SIGUSR1))
        with pytest.raises(Terminated):
            run(study, bench)
    (given_back,) = runs(tracking_uri, "killed")
    assert [step for step, _ in curve(tracking_uri, given_back.info.run_id)] == [0, 1]
    monkeypatch.setattr(preemption, "_asked", False)
    run(study, bench)
    (done,) = runs(tracking_uri, "complete")
    assert done.data.tags["resumed"] == "after epoch 1"
    assert done.data.tags["attempt"] == "2"
    assert curve(tracking_uri, done.info.run_id) == losses_of_an_uninterrupted_trial(study)
    assert bench.checkpoints.folder is not None
    assert list(bench.checkpoints.folder.iterdir()) == []


def test_terminated_at_once_a_trial_goes_on_after_the_last_epoch_that_was_kept(
    study: Study, bench: Bench, tracking_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def terminate() -> None:
        raise Terminated

    with monkeypatch.context() as patch:
        stop_in_epoch(patch, 2, terminate)
        with pytest.raises(Terminated):
            run(study, bench)
    run(study, bench)
    (done,) = runs(tracking_uri, "complete")
    assert done.data.tags["resumed"] == "after epoch 1"
    assert curve(tracking_uri, done.info.run_id) == losses_of_an_uninterrupted_trial(study)


def test_damaged_checkpoint_is_named_and_the_trial_starts_over(
    study: Study,
    bench: Bench,
    tracking_uri: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def terminate() -> None:
        raise Terminated

    with monkeypatch.context() as patch:
        stop_in_epoch(patch, 2, terminate)
        with pytest.raises(Terminated):
            run(study, bench)
    assert bench.checkpoints.folder is not None
    (file,) = bench.checkpoints.folder.iterdir()
    file.write_bytes(file.read_bytes()[:-1])
    run(study, bench)
    assert "is damaged" in capsys.readouterr().err
    (done,) = runs(tracking_uri, "complete")
    assert "resumed" not in done.data.tags
    assert curve(tracking_uri, done.info.run_id) == losses_of_an_uninterrupted_trial(study)


def test_trial_whose_images_changed_meanwhile_starts_over_and_says_so(
    bench: Bench,
    make_spec: MakeSpec,
    tracking_uri: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def paint(shift: int) -> None:
        for label, name in enumerate("ab"):
            (tmp_path / "images" / name).mkdir(parents=True, exist_ok=True)
            for i in range(8):
                image = Image.new("L", (8, 8), (128 * label + 9 * i + shift) % 256)
                image.save(tmp_path / "images" / name / f"{i}.png")
        look_anew()  # as in another process

    def space(trial: BaseTrial, strategy: str) -> TrialSpec:
        counts = {"shots": 2, "val_shots": 2, "test_shots": 2, "batch_size": 4, "epochs": 4}
        return make_spec(target=f"folder:{tmp_path}/images", lr=1e-3, **counts)

    def terminate() -> None:
        raise Terminated

    paint(0)
    study = Study(compare={"strategy": ["x"]}, space=space, trials=1, repeats=0, name="toy")
    with monkeypatch.context() as patch:
        stop_in_epoch(patch, 2, terminate)
        with pytest.raises(Terminated):
            run(study, bench)
    (stopped,) = runs(tracking_uri, "killed")
    paint(90)
    run(study, bench)
    assert re.search(
        r"made before a change: sha256 of the images was \w+, is \w+; the trial starts over$",
        capsys.readouterr().err,
        re.MULTILINE,
    )
    (done,) = runs(tracking_uri, "complete")
    assert "resumed" not in done.data.tags
    assert stopped.data.tags["sha256.images"] != done.data.tags["sha256.images"]
    anew = curve(tracking_uri, done.info.run_id)
    assert anew == losses_of_an_uninterrupted_trial(study)
    assert anew[:1] != curve(tracking_uri, stopped.info.run_id)[:1]


def test_checkpoint_that_turns_out_bad_when_training_begins_leaves_no_trace(
    study: Study,
    bench: Bench,
    tracking_uri: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def terminate() -> None:
        raise Terminated

    def refuse(*_: object) -> None:
        raise BadCheckpoint("the network began as another one")

    with monkeypatch.context() as patch:
        stop_in_epoch(patch, 2, terminate)
        with pytest.raises(Terminated):
            run(study, bench)
    monkeypatch.setattr(Training, "_restore", refuse)
    run(study, bench)
    assert "began as another one; the trial starts over" in capsys.readouterr().err
    (done,) = runs(tracking_uri, "complete")
    assert "resumed" not in done.data.tags
    assert curve(tracking_uri, done.info.run_id) == losses_of_an_uninterrupted_trial(study)


def test_trial_that_ends_soon_leaves_no_file(study: Study, bench: Bench) -> None:
    assert bench.checkpoints.folder is not None
    seldom = dataclasses.replace(bench.checkpoints, every=3600)
    run(study, dataclasses.replace(bench, checkpoints=seldom))
    assert not bench.checkpoints.folder.exists()
    states = [t.state for t in bench.storage.get_all_trials(0)]
    assert states == [TrialState.COMPLETE]


@pytest.mark.usefixtures("sigusr1")
def test_asked_to_stop_a_worker_does_not_wait_for_the_trials_of_others(
    study: Study, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(_seconds: float) -> None:
        os.kill(os.getpid(), signal.SIGUSR1)
        monkeypatch.setattr(time, "sleep", pytest.fail)

    another = dataclasses.replace(Owner.here(), host="another")
    assert CellSearch(study, study.cells()[0], bench.storage).claim(0, another)
    monkeypatch.setattr(time, "sleep", ask)
    with pytest.raises(Terminated):
        list(run_study(study, bench))


def test_signal_that_follows_at_once_asks_for_nothing_new(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {name: signal.getsignal(name) for name in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        signals.raise_on_terminate()
        with pytest.raises(Terminated):
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        monkeypatch.setattr(signals, "ONE_REQUEST_SECONDS", 0.0)
        with pytest.raises(Terminated):
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
