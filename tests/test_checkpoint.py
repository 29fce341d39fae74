"""A trial that goes on in another process ends bitwise as one that was never stopped; nothing damaged is
gone on from."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from harness import strategies
from harness.core.results import EpochResult
from harness.core.spec import TrialSpec
from harness.core.versions import COMPUTING, versions
from harness.data.cached import Cache
from harness.training import provenance
from harness.training.audit import digest
from harness.training.checkpoint import BadCheckpoint, Checkpoint, trial_key
from harness.training.device import Cpu
from harness.training.loop import Fit, Training, start
from tests.pictures import paint, write_classes
from tests.processes import output_of
from tests.trials import MakeSpec

STOPPED = 2
"""Epochs before the stop, of three."""
CASES: dict[str, dict[str, Any]] = {
    "linear probe": {"strategy": strategies.LinearProbe(), "lr": 1e-2},
    "full": {},
    "discriminative": {"strategy": strategies.DiscriminativeLR(0.5)},
    # Its second group thaws before the stop and its third after it; both warm up from then.
    "gradual": {"strategy": strategies.GradualUnfreezing(1), "warmup": 0.5},
    "two phases": {"strategy": strategies.TwoPhase(2)},
    "pull": {"strategy": strategies.L2SP(5.0)},
    "mixup": {"augment": "mixup"},
    "flip_crop": {"augment": "flip_crop"},
    "trivial": {"augment": "trivial"},
    "views": {"strategy": strategies.LastBlock(), "augment": "flip_crop", "views": 3},
    "sgd": {"optimizer": "sgd", "strategy": strategies.GradualUnfreezing(1)},
    "reestimate": {"batch_norm": "reestimate"},
    "bfloat16": {"precision": "bfloat16", "strategy": strategies.LastK(3)},
    "head": {"head": "attentive", "depth": 3, "strategy": strategies.LastBlock()},
    "dropout": {"backbone": "torchvision:mobilenet_v3_small"},
    "one cycle": {"schedule": "one_cycle", "backbone": "test_vit"},
}


def outcome(fit: Fit, epochs: list[EpochResult]) -> dict[str, Any]:
    """All that a trial gives, costs apart, as JSON keeps it: a float64 is written with all its digits."""
    assert isinstance(fit, Training)
    result = fit.finish(test=True)
    assert result.predictions is not None
    costs = ("second", "peak", "latency")
    return {
        "epochs": [[e.epoch, e.train_loss, e.val_loss, e.val_accuracy] for e in epochs],
        "network": digest(fit._tensors()),
        "metrics": {k: v for k, v in result.metrics.items() if not any(c in k for c in costs)},
        "notes": dict(result.notes),
        "probability": result.predictions.probability.tolist(),
    }


def go_on(folder: Path) -> None:
    """What the other process does: go on from every checkpoint in the folder."""
    torch.set_num_threads(1)
    for path in sorted(folder.glob("*.json")):
        spec = TrialSpec.from_flat(json.loads(path.read_text()))
        fit = start(spec, Cpu(), Cache(), Checkpoint.load(path.with_suffix(".checkpoint")))
        print(json.dumps([path.stem, outcome(fit, list(fit))]))


def stopped(spec: TrialSpec, epochs: int = STOPPED) -> Checkpoint:
    fit = start(spec, Cpu())
    for epoch in fit:
        if epoch.epoch == epochs - 1:
            break
    found = fit.checkpoint()
    assert found is not None
    return found


@pytest.fixture(scope="module")
def outcomes(
    tmp_path_factory: pytest.TempPathFactory, make_spec: MakeSpec
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of each case: trained in one go, and stopped and gone on with in another process."""
    folder, whole = tmp_path_factory.mktemp("checkpoints"), {}
    for name, changes in CASES.items():
        spec = make_spec(**{"shots": 3, "epochs": 3, **changes})
        (folder / f"{name}.json").write_text(json.dumps(spec.flat()))
        fit, epochs = start(spec, Cpu(), Cache()), []
        for epoch in fit:
            epochs.append(epoch)
            if len(epochs) == STOPPED:
                kept = fit.checkpoint()  # what is trained on changes nothing in it
        assert kept is not None
        kept.save(folder / f"{name}.checkpoint")
        whole[name] = outcome(fit, epochs)
    return whole, dict(map(json.loads, output_of(__file__, str(folder)).splitlines()))


@pytest.mark.parametrize("name", CASES)
def test_trial_that_goes_on_elsewhere_ends_as_one_that_was_not_stopped(
    name: str, outcomes: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    whole, resumed = (found[name] for found in outcomes)
    assert [e[0] for e in whole["epochs"]] == [0, 1, 2]
    assert resumed == {**whole, "epochs": whole["epochs"][STOPPED:]}


def test_cases_are_what_they_say(outcomes: tuple[dict[str, Any], dict[str, Any]]) -> None:
    whole, _ = outcomes
    assert "kept after" in whole["linear probe"]["notes"]["prefix"]
    assert len({found["network"] for found in whole.values()}) == len(CASES)


def test_stopping_after_every_epoch_changes_nothing(make_spec: MakeSpec) -> None:
    spec = make_spec(shots=3, epochs=3, augment="mixup")
    fit = start(spec, Cpu())
    whole = outcome(fit, list(fit))
    kept, epochs = None, []
    for number in range(1, 4):
        fit = start(spec, Cpu(), checkpoint=kept)
        epochs.append(next(iter(fit)))
        kept = fit.checkpoint()
        assert kept is not None
        assert [e.epoch for e in kept.epochs] == list(range(number))
    fit = start(spec, Cpu(), checkpoint=kept)  # stopped before its look at the test images
    assert list(fit) == []
    assert outcome(fit, epochs) == whole


def test_one_checkpoint_can_be_gone_on_from_twice(make_spec: MakeSpec) -> None:
    kept = stopped(make_spec(shots=3, epochs=3))
    fits = [start(make_spec(shots=3, epochs=3), Cpu(), checkpoint=kept) for _ in range(2)]
    first, second = (outcome(fit, list(fit)) for fit in fits)
    assert first == second


def test_costs_go_on_where_they_were(make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that moves one second per reading; the time between the two processes is nobody's."""
    spec = make_spec(shots=3, epochs=4, strategy=strategies.LinearProbe())

    def ticking() -> None:
        now = iter(range(1_000_000))
        monkeypatch.setattr(time, "perf_counter", lambda: float(next(now)))

    ticking()
    whole = list(start(spec, Cpu(), Cache()))
    ticking()
    kept = stopped(spec)
    ticking()
    resumed = [*kept.epochs, *start(spec, Cpu(), Cache(), kept)]
    assert [e.train_seconds for e in resumed] == [e.train_seconds for e in whole]


def test_peak_of_the_whole_trial_is_reported(make_spec: MakeSpec, tmp_path: Path) -> None:
    spec = make_spec(shots=3, epochs=2)

    def with_peak(mib: int) -> Cpu:
        (tmp_path / "status").write_text(f"VmHWM:\t{mib * 1024} kB\n")
        return Cpu(proc=tmp_path)

    for first, second in ((900, 300), (300, 900)):
        fit = start(spec, with_peak(first))
        next(iter(fit))
        kept = fit.checkpoint()
        fit = start(spec, with_peak(second), checkpoint=kept)
        assert len(list(fit)) == 1
        assert fit.finish(test=False).metrics["peak_process_rss_mib"] == 900


# --- what is refused -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, make_spec: MakeSpec) -> Path:
    path = tmp_path_factory.mktemp("file") / "deeper" / "trial.checkpoint"
    stopped(make_spec(shots=3, epochs=3), 1).save(path)
    return path


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.3, 0.6, 0.9999])
@pytest.mark.parametrize("harm", ["cut off", "flipped bit"])
def test_damaged_file_is_refused(harm: str, share: float, file: Path, tmp_path: Path) -> None:
    raw, path = bytearray(file.read_bytes()), tmp_path / "x.checkpoint"
    place = int(share * len(raw))
    if harm == "cut off":
        del raw[place:]
    else:
        raw[place] ^= 1
    path.write_bytes(raw)
    with pytest.raises(BadCheckpoint, match=r"x\.checkpoint is damaged"):
        Checkpoint.load(path)


def test_what_is_no_checkpoint_is_refused(tmp_path: Path, make_spec: MakeSpec) -> None:
    torch.save({"trial": trial_key(make_spec())}, tmp_path / "weights.pt")
    with pytest.raises(BadCheckpoint, match="damaged"):
        Checkpoint.load(tmp_path / "weights.pt")
    with pytest.raises(BadCheckpoint, match="cannot be read"):
        Checkpoint.load(tmp_path)
    with pytest.raises(FileNotFoundError):
        Checkpoint.load(tmp_path / "none")


def test_checkpoint_of_another_trial_or_version_is_refused(
    file: Path, make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, kept = make_spec(shots=3, epochs=3), Checkpoint.load(file)
    with pytest.raises(BadCheckpoint, match="another trial"):
        start(replace(spec, lr=0.5), Cpu(), checkpoint=kept)
    known = versions(*COMPUTING)
    monkeypatch.setattr(provenance, "versions", lambda *_: {**known, "torch": "9.9"})
    was = re.escape(known["torch"])
    with pytest.raises(BadCheckpoint, match=rf"before a change: torch was {was}, is 9\.9$"):
        start(spec, Cpu(), checkpoint=kept)


def test_checkpoint_made_from_other_images_or_weights_is_refused(
    make_spec: MakeSpec, tmp_path: Path
) -> None:
    """Fine-tuning from a file, in which one number changes between the two processes."""
    changed = write_classes(tmp_path / "images", a=8, b=8) / "a" / "0.png"
    before = changed.read_bytes()
    network: Any = timm.create_model("test_resnet", num_classes=2)
    torch.save(network.state_dict(), tmp_path / "w.pt")
    counts = {"shots": 2, "val_shots": 2, "test_shots": 2, "epochs": 2, "batch_size": 4}
    spec = make_spec(target=f"folder:{tmp_path}/images", source=f"file:{tmp_path}/w.pt", **counts)
    kept = stopped(spec, 1)
    assert len(list(start(spec, Cpu(), checkpoint=kept))) == 1
    paint(changed)
    provenance.clear_caches()  # as in another process
    with pytest.raises(BadCheckpoint, match="of another trial"):
        start(spec, Cpu(), checkpoint=kept)
    changed.write_bytes(before)
    with torch.no_grad():
        network.get_classifier().bias[0] += 1
    torch.save(network.state_dict(), tmp_path / "w.pt")
    provenance.clear_caches()
    with pytest.raises(BadCheckpoint, match=r"change: sha256 of the weights was \w+, is \w+$"):
        start(spec, Cpu(), checkpoint=kept)


def test_checkpoint_of_a_trial_that_started_from_other_weights_is_refused(
    file: Path, make_spec: MakeSpec
) -> None:
    """As when the file behind a source was replaced: the pull would be towards the new weights."""
    other = make_spec(shots=3, epochs=3, seed=1)
    kept = replace(Checkpoint.load(file), trial=trial_key(other))
    with pytest.raises(BadCheckpoint, match="starts from other weights"):
        list(start(other, Cpu(), checkpoint=kept))


def test_there_is_no_checkpoint_within_an_epoch(
    make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = Training(make_spec(shots=3), Cpu())
    with pytest.raises(RuntimeError, match=r"while an epoch.s result is handled"):
        fit.checkpoint()
    epochs = iter(fit)
    next(epochs)
    fit.checkpoint()
    monkeypatch.setattr(Training, "_steps", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        next(epochs)
    with pytest.raises(RuntimeError, match=r"while an epoch.s result is handled"):
        fit.checkpoint()


def test_readout_of_one_epoch_has_none(make_spec: MakeSpec) -> None:
    fit = start(make_spec(strategy=strategies.FeatureTransfer("knn")), Cpu())
    assert len(list(fit)) == 1
    assert fit.checkpoint() is None


# --- kill -9 ---------------------------------------------------------------------------------------

KILLED = """
import io, os, pathlib, signal, sys
from dataclasses import replace
from harness.training.checkpoint import Checkpoint

path, before = pathlib.Path(sys.argv[1]), sys.argv[2]
kept = Checkpoint.load(path)
die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)

class HalfWritten(io.FileIO):
    def write(self, data):
        super().write(memoryview(data)[: len(data) // 2])
        die()

for number, (where, name, function) in enumerate([
    (pathlib.Path, "open", lambda self, mode: HalfWritten(self, mode)),
    (os, "fsync", die),
    (os, "replace", die),
]):
    child = os.fork()
    if child == 0:
        setattr(where, name, function)
        replace(kept, state={"attempt": number}).save(path)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL, status
    assert Checkpoint.load(path).trial == before
    assert "network" in Checkpoint.load(path).state
replace(kept, state={"attempt": 3}).save(path)
assert Checkpoint.load(path).state == {"attempt": 3}
"""


def test_kill_while_saving_leaves_the_one_before(file: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.checkpoint"
    path.write_bytes(file.read_bytes())
    output_of("-c", KILLED, str(path), Checkpoint.load(file).trial)


def test_full_disk_leaves_the_one_before(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    path, kept = tmp_path / "x.checkpoint", Checkpoint.load(file)
    kept.save(path)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        replace(kept, state={}).save(path)
    assert "network" in Checkpoint.load(path).state
    assert [p.name for p in tmp_path.iterdir()] == ["x.checkpoint"]


if __name__ == "__main__":
    go_on(Path(sys.argv[1]))
