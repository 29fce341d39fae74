"""A trial as a task: messages, checkpoints, stops from outside; real training, no store."""

from __future__ import annotations

import os
import pickle
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from harness.core import signals
from harness.core.results import EpochResult, TrialResult
from harness.core.signals import Terminated
from harness.training.checkpoint import BadCheckpoint
from harness.training.loop import Training
from harness.training.provenance import clear_caches, inputs_of
from harness.training.trial import Message, Started, TrialTask, run_trial
from tests.processes import output_of
from tests.trials import MakeSpec

Act = Callable[[], object]


@pytest.fixture
def task(make_spec: MakeSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrialTask:
    """Four epochs, each of which is kept."""
    monkeypatch.setattr("harness.training.trial.CHECKPOINT_SECONDS", 0)
    return TrialTask(make_spec(epochs=4), checkpoints=tmp_path / "checkpoints")


@pytest.fixture
def sigusr1(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """SIGUSR1 as a worker hears it, and nothing asked yet."""
    monkeypatch.setattr(signals, "_requested", False)
    before = signal.getsignal(signal.SIGUSR1)
    signals.request_stop_on_signal()
    yield
    signal.signal(signal.SIGUSR1, before)


def run(task: TrialTask, at: int = -1, act: Act = lambda: None) -> list[Message]:
    """Every message; `act` is done when that epoch has been received."""
    heard = []
    for message in run_trial(task):
        heard.append(message)
        if isinstance(message, EpochResult) and message.epoch == at:
            act()
    return heard


def stop_after(task: TrialTask, epoch: int) -> None:
    """The trial is terminated while it waits with that epoch."""
    messages = run_trial(task)
    while getattr(next(messages), "epoch", -1) != epoch:
        pass
    with pytest.raises(Terminated):
        messages.throw(Terminated())


def losses(messages: list[Message]) -> list[tuple[int, float]]:
    return [(m.epoch, m.val_loss) for m in messages if isinstance(m, EpochResult)]


def uninterrupted(task: TrialTask) -> list[tuple[int, float]]:
    return losses(run(replace(task, checkpoints=None)))


def end(messages: list[Message]) -> TrialResult:
    assert isinstance(messages[-1], TrialResult)
    return messages[-1]


def test_messages_are_a_start_the_epochs_and_one_result(task: TrialTask) -> None:
    messages = run(pickle.loads(pickle.dumps(task)))
    assert isinstance(messages[0], Started)
    assert messages[0].process == os.getpid()
    assert [epoch for epoch, _ in losses(messages)] == [0, 1, 2, 3]
    assert len(messages) == 6
    result = end(pickle.loads(pickle.dumps(messages)))
    assert (result.outcome, result.predictions) == ("complete", None)
    assert result.metrics["val_loss"] == losses(messages)[-1][1]
    assert end(run(replace(task, test=True))).predictions is not None


def test_worker_imports_no_database() -> None:
    code = "import sys, harness.training.trial, harness.search.executors.worker as w; print(*sys.modules)"
    loaded = {name.partition(".")[0] for name in output_of("-c", code).split()}
    assert "torch" in loaded
    assert not loaded & {"optuna", "mlflow", "sqlalchemy"}


@pytest.mark.usefixtures("sigusr1")
def test_asked_to_stop_a_trial_keeps_its_epoch_and_goes_on_from_there(task: TrialTask) -> None:
    stopped = run(task, 1, lambda: os.kill(os.getpid(), signal.SIGUSR1))
    assert [epoch for epoch, _ in losses(stopped)] == [0, 1]
    assert (end(stopped).outcome, end(stopped).reason) == (
        "killed", "stopped on request after epoch 1"
    )  # fmt: skip
    signals.forget_request()
    resumed = run(task)
    assert end(resumed).notes["resumed"] == "after epoch 1"
    assert losses(resumed) == uninterrupted(task), "the earlier epochs come first, as they were"
    assert task.checkpoints is not None
    assert list(task.checkpoints.iterdir()) == []


def test_terminated_at_once_a_trial_goes_on_after_the_last_epoch_that_was_kept(
    task: TrialTask,
) -> None:
    stop_after(task, 2)
    resumed = run(task)
    assert end(resumed).notes["resumed"] == "after epoch 1"
    assert losses(resumed) == uninterrupted(task)


def test_damaged_checkpoint_is_named_and_the_trial_starts_over(
    task: TrialTask, capsys: pytest.CaptureFixture[str]
) -> None:
    stop_after(task, 2)
    assert task.checkpoints is not None
    (file,) = task.checkpoints.iterdir()
    file.write_bytes(file.read_bytes()[:-1])
    again = run(task)
    assert "is damaged" in capsys.readouterr().err
    assert "resumed" not in end(again).notes
    assert losses(again) == uninterrupted(task)


def test_checkpoint_that_turns_out_bad_when_training_begins_leaves_no_trace(
    task: TrialTask, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise BadCheckpoint("the network began as another one")

    stop_after(task, 2)
    monkeypatch.setattr(Training, "_restore", refuse)
    again = run(task)
    assert "began as another one; the trial starts over" in capsys.readouterr().err
    assert "resumed" not in end(again).notes
    assert losses(again) == uninterrupted(task)


def test_trial_whose_images_changed_meanwhile_starts_over(
    make_spec: MakeSpec, task: TrialTask, tmp_path: Path
) -> None:
    def paint(shift: int) -> None:
        for label, name in enumerate("ab"):
            (tmp_path / "images" / name).mkdir(parents=True, exist_ok=True)
            for i in range(8):
                image = Image.new("L", (8, 8), (128 * label + 9 * i + shift) % 256)
                image.save(tmp_path / "images" / name / f"{i}.png")
        clear_caches()  # as in another process

    counts = {"shots": 2, "val_shots": 2, "test_shots": 2, "batch_size": 4, "epochs": 4}
    task = replace(task, spec=make_spec(target=f"folder:{tmp_path}/images", **counts))
    paint(0)
    before = uninterrupted(task)
    stop_after(task, 2)
    paint(90)
    again = run(task)
    assert "resumed" not in end(again).notes
    assert losses(again) == uninterrupted(task)
    assert losses(again)[0] != before[0]


def test_machine_with_other_files_than_the_coordinator_is_named(task: TrialTask) -> None:
    spec = task.spec
    inputs = inputs_of(spec.target, spec.backbone, spec.source)
    assert end(run(replace(task, inputs=inputs))).outcome == "complete"
    result = end(run(replace(task, inputs=dict.fromkeys(inputs, "0" * 64))))
    assert result.outcome == "crashed"
    assert "every machine must have the same files at the same path" in result.reason
    assert f"on {os.uname().nodename} is " in result.reason


def test_trial_that_ends_soon_leaves_no_file(
    task: TrialTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.training.trial.CHECKPOINT_SECONDS", 3600)
    assert end(run(task)).outcome == "complete"
    assert task.checkpoints is not None
    assert not task.checkpoints.exists()


def test_pruned_trial_ends_with_what_it_has(task: TrialTask) -> None:
    messages = run_trial(replace(task, pruned=True))
    heard = [next(messages), next(messages)]
    heard += [messages.send(True), messages.send(False)]
    assert [epoch for epoch, _ in losses(heard)] == [0, 1]
    assert end(heard).outcome == "pruned"
    assert "test_accuracy" not in end(heard).metrics


def test_policy_of_another_medium_is_refused_before_the_trial_trains(task: TrialTask) -> None:
    """A space may draw it for a later trial only, when the checks of the study are done."""
    spec = replace(task.spec, augment="token_dropout")
    *earlier, result = run(replace(task, spec=spec))
    assert [type(message) for message in earlier] == [Started]
    assert isinstance(result, TrialResult)
    assert result.outcome == "crashed"
    assert result.reason.startswith("augment 'token_dropout' is not for 32 x 32 pixels; use none")


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
