"""A recorded trial comes out again bit by bit, from its row in MLflow alone; a changed row is noticed."""

from __future__ import annotations

import gc
import hashlib
import math
import re
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import timm
import torch
from mlflow import MlflowClient

from harness import strategies, study
from harness.core.spec import TrialSpec
from harness.core.study_file import clear_caches
from harness.data import load_target
from harness.replay import main, replay_run
from harness.tracking.replay import Comparison
from harness.training.provenance import input_tags, inputs_of
from tests.pictures import paint, write_classes

SPACE = '''"""Does a toy come out again?"""
from harness import Study, TrialSpec, strategies

def space(trial, strategy):
    return TrialSpec(
        target="digits", backbone="test_resnet", strategy=strategies.DiscriminativeLR(0.5),
        source="scratch", shots=3, val_shots=4, test_shots=6, resolution=32, epochs=2,
        batch_size=16, augment="flip_crop", lr=trial.suggest_float("lr", 1e-3, 1e-1, log=True),
    )

study = Study(compare={"strategy": ["full"]}, space=space, trials=1, repeats=1)
'''


@pytest.fixture(scope="module")
def recorded(
    tmp_path_factory: pytest.TempPathFactory, mlflow_template: Path, optuna_template: Path
) -> Path:
    """A folder in which a study of one trial and one repeat was run."""
    folder = tmp_path_factory.mktemp("recorded")
    (folder / "toy.py").write_text(SPACE)
    (folder / "mlruns").mkdir()
    for template in (mlflow_template, optuna_template):
        shutil.copy(template, folder / "mlruns" / template.name)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("signal.signal", lambda *_: None)
        assert study.main(["--space", "toy.py", "--device", "cpu"]) == 0
    return folder


@pytest.fixture
def uri(recorded: Path, tmp_path: Path) -> str:
    """A copy of its store, to be changed."""
    shutil.copytree(recorded / "mlruns", tmp_path / "mlruns")
    return f"sqlite:///{tmp_path}/mlruns/mlflow.db"


def run_id(uri: str, condition: str = "tags.phase = 'tune'") -> str:
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("toy")
    assert experiment is not None
    [run] = client.search_runs([experiment.experiment_id], condition)
    found: str = run.info.run_id
    return found


def change(uri: str, statement: str, *values: str | float) -> None:
    with closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as database, database:
        assert database.execute(statement, values).rowcount == 1


def replay(uri: str, run: str, capfd: pytest.CaptureFixture[str], *more: str) -> tuple[int, str]:
    """Exit code and all that was printed."""
    capfd.readouterr()
    code = main([run, "--tracking-uri", uri, *more])
    out, err = capfd.readouterr()
    return code, out + err


@pytest.mark.parametrize("phase", ["tune", "repeat"])
def test_trial_comes_out_again_bit_by_bit(
    phase: str, uri: str, capfd: pytest.CaptureFixture[str]
) -> None:
    code, said = replay(uri, run_id(uri, f"tags.phase = '{phase}'"), capfd)
    assert code == 0, said
    assert "AGREED: bitwise equal" in said
    assert "differs" not in said
    for name in ("train_loss", "val_loss", "val_accuracy"):
        assert re.search(
            rf"^{name}: .*bitwise equal \(2 of 2 epochs bitwise\)$", said, re.MULTILINE
        )
    for name in ("test_loss", "test_accuracy"):
        found = re.search(
            rf"^{name}: recorded (.*), replayed (.*): bitwise equal$", said, re.MULTILINE
        )
        assert bool(found) == (phase == "repeat")
        assert found is None or found[1] == found[2] != "nan"


def test_changed_row_disagrees(uri: str, capfd: pytest.CaptureFixture[str]) -> None:
    run = run_id(uri)
    change(uri, "UPDATE params SET value = '0.9' WHERE key = 'lr' AND run_uuid = ?", run)
    code, said = replay(uri, run, capfd)
    assert code == 1
    assert "DISAGREED: values must be bitwise equal" in said
    assert re.search(r"^train_loss: .* digits.*\(0 of 2 epochs bitwise\)$", said, re.MULTILINE)


@pytest.mark.parametrize(("epoch", "code"), [(0, 1), (1, 1), (None, 0)])
def test_one_epoch_is_enough_to_disagree(
    epoch: int | None, code: int, uri: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """By one unit in the last place of a float64."""
    run = run_id(uri)
    if epoch is not None:
        history = MlflowClient(tracking_uri=uri).get_metric_history(run, "val_loss")
        [value] = [m.value for m in history if m.step == epoch]
        statement = (
            "UPDATE metrics SET value = ? WHERE key = 'val_loss' AND run_uuid = ? AND step = ?"
        )
        change(uri, statement, math.nextafter(value, math.inf), run, epoch)
    found, said = replay(uri, run, capfd)
    assert found == code, said
    assert ("(1 of 2 epochs bitwise)" in said) == (epoch is not None)


def test_elsewhere_a_tolerance_is_allowed(uri: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Recorded by another version of torch, with a loss that is 1 % higher."""
    run = run_id(uri)
    change(uri, "UPDATE tags SET value = '2.0' WHERE key = 'env.torch' AND run_uuid = ?", run)
    change(
        uri,
        "UPDATE metrics SET value = value * 1.01 WHERE key = 'val_loss' AND step = 0 AND run_uuid = ?",
        run,
    )
    code, said = replay(uri, run, capfd)
    assert code == 0, said
    assert "differs: env.torch was 2.0, is " in said
    assert "AGREED within 0.05" in said
    change(
        uri,
        "UPDATE metrics SET value = value * 2 WHERE key = 'val_loss' AND step = 1 AND run_uuid = ?",
        run,
    )
    code, said = replay(uri, run, capfd)
    assert code == 1
    assert "DISAGREED: values may differ by at most 0.05" in said


def test_other_images_are_named(uri: str, capfd: pytest.CaptureFixture[str]) -> None:
    run = run_id(uri)
    client = MlflowClient(tracking_uri=uri)
    client.set_tag(run, "sha256.images", "ab12")
    client.delete_tag(run, "env.numpy")
    client.set_tag(run, "env.cuda", "13.0, cuDNN 92400")
    code, said = replay(uri, run, capfd)
    assert code == 1
    assert (
        "DISAGREED: it is another trial now (sha256.images changed); nevertheless its values are bitwise "
        "equal" in said
    )
    assert "differs: sha256.images was ab12, is " in said
    assert "differs: env.cuda was 13.0, cuDNN 92400, is absent" in said
    assert "not recorded, so not compared: env.numpy\n" in said


def test_near_values_from_other_images_do_not_agree_on_another_machine(
    uri: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Recorded by another version of torch, so that a loss that is 1 % higher would be near enough."""
    run = run_id(uri)
    client = MlflowClient(tracking_uri=uri)
    client.set_tag(run, "env.torch", "2.0")
    client.set_tag(run, "sha256.images", "ab12")
    change(
        uri,
        "UPDATE metrics SET value = value * 1.01 WHERE key = 'val_loss' AND step = 0 AND run_uuid = ?",
        run,
    )
    code, said = replay(uri, run, capfd)
    assert code == 1
    assert said.splitlines()[-1] == (
        "DISAGREED: it is another trial now (sha256.images changed); nevertheless its values are within 0.05"
    )


def test_trial_that_kept_frozen_outputs_is_told_from_one_that_did_not(
    uri: str, capfd: pytest.CaptureFixture[str]
) -> None:
    run = run_id(uri)
    MlflowClient(tracking_uri=uri).set_tag(run, "prefix", "kept after layer3, 4 KiB an example")
    code, said = replay(uri, run, capfd)
    assert code == 0
    assert "differs: prefix was kept after layer3, 4 KiB an example, is whole network: " in said


@pytest.mark.parametrize("tag", ["env.numpy", "env.variables", "env.arithmetic"])
def test_whatever_computes_otherwise_allows_a_tolerance(
    tag: str, uri: str, capfd: pytest.CaptureFixture[str]
) -> None:
    run = run_id(uri)
    MlflowClient(tracking_uri=uri).set_tag(run, tag, "another")
    change(
        uri,
        "UPDATE metrics SET value = 1.01 * value WHERE key = 'val_loss' AND step = 0 AND run_uuid = ?",
        run,
    )
    code, said = replay(uri, run, capfd)
    assert code == 0, said
    assert f"differs: {tag} was another, is " in said
    assert "AGREED within 0.05" in said


def test_run_says_of_which_file_it_is_and_what_it_read(recorded: Path, uri: str) -> None:
    tags = MlflowClient(tracking_uri=uri).get_run(run_id(uri)).data.tags
    digest = hashlib.sha256((recorded / "toy.py").read_bytes()).hexdigest()
    assert (tags["study_file"], tags["sha256.study_file"]) == ("toy.py", digest)
    assert tags["sha256.images"] == load_target("digits").fingerprint()
    assert "sha256.weights" not in tags  # from scratch


# --- what a study file defines ---------------------------------------------------------------------


MINE = SPACE.replace(
    "def space",
    '''from dataclasses import dataclass

@dataclass(frozen=True)
class Halving(strategies.Strategy):
    """What DiscriminativeLR(0.5) does."""
    decay: float

    def lr_scales(self, num_groups, epoch):
        return tuple(self.decay ** (num_groups - 1 - g) for g in range(num_groups))

def space''',
)


@pytest.fixture
def forgets_study_files() -> Iterator[None]:
    """Classes of study files that were read are gone afterwards."""
    yield
    clear_caches()
    gc.collect()
    assert "Halving" not in strategies.names()


@pytest.mark.usefixtures("forgets_study_files")
def test_strategy_of_a_study_file_is_known_with_that_file(
    uri: str, recorded: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run, file = run_id(uri), tmp_path / "mine.py"
    change(
        uri,
        "UPDATE params SET value = 'Halving' WHERE key = 'strategy' AND run_uuid = ?",
        run,
    )
    code, said = replay(uri, run, capfd)
    assert (code, said.count("\n")) == (2, 1)
    assert "unknown strategy 'Halving'" in said
    assert said.endswith("; if toy.py defines it, add --space FILE\n")
    code, said = replay(uri, run, capfd, "--space", str(recorded / "toy.py"))
    assert (code, said.count("\n")) == (2, 1)
    assert said.endswith("toy.py does not define it either\n")
    file.write_text(MINE)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    code, said = replay(uri, run, capfd, "--space", str(file))
    assert code == 0, said
    assert f", is {digest}\n" in said.partition("differs: sha256.study_file was ")[2]
    assert "AGREED: bitwise equal; the study file has changed" in said
    MlflowClient(tracking_uri=uri).set_tag(run, "sha256.study_file", digest)
    assert replay_run(run, tracking_uri=uri, space=str(file)).agreed  # as typed in a notebook
    assert "differs" not in capfd.readouterr().out


@pytest.mark.parametrize(("key", "kind"), [("target", "target"), ("backbone", "backbone")])
def test_name_that_only_a_study_file_can_know_is_answered_with_the_way_to_give_it(
    key: str, kind: str, uri: str, capfd: pytest.CaptureFixture[str]
) -> None:
    run = run_id(uri)
    change(uri, "UPDATE params SET value = 'mine' WHERE key = ? AND run_uuid = ?", key, run)
    code, said = replay(uri, run, capfd)
    assert code == 2
    assert re.fullmatch(
        rf"error: unknown {kind} 'mine'; .*; if toy.py defines it, add --space FILE\n", said
    )


# --- images and weights that changed ---------------------------------------------------------------


@pytest.fixture
def own(uri: str, tmp_path: Path) -> tuple[str, Path]:
    """The trial as if it had been of images and weights of the user's, with losses of digits'."""
    torch.manual_seed(0)
    write_classes(tmp_path / "images", a=13, b=13)
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "w.pt")
    run = run_id(uri)
    for key, value in (
        ("target", f"folder:{tmp_path}/images"),
        ("source", f"file:{tmp_path}/w.pt"),
    ):
        change(uri, "UPDATE params SET value = ? WHERE key = ? AND run_uuid = ?", value, key, run)
    client, found = (
        MlflowClient(tracking_uri=uri),
        TrialSpec.from_flat(MlflowClient(tracking_uri=uri).get_run(run).data.params),
    )
    for name, value in input_tags(inputs_of(found.target, found.backbone, found.source)).items():
        client.set_tag(run, name, value)
    return run, tmp_path


def test_changed_images_and_weights_are_the_reason_given(
    own: tuple[str, Path], uri: str, capfd: pytest.CaptureFixture[str]
) -> None:
    run, folder = own
    code, said = replay(uri, run, capfd)
    assert code == 1
    assert "differs" not in said
    assert "DISAGREED: values must be bitwise equal" in said
    paint(folder / "images" / "a" / "0.png")
    code, said = replay(uri, run, capfd)
    assert code == 1
    assert [line.split()[1] for line in said.splitlines() if line.startswith("differs")] == [
        "sha256.images"
    ]
    assert "DISAGREED: it is another trial now (sha256.images changed)" in said
    torch.save(timm.create_model("test_resnet").state_dict(), folder / "w.pt")
    code, said = replay(uri, run, capfd)
    assert code == 1
    assert "DISAGREED: it is another trial now (sha256.images, sha256.weights changed)" in said


@pytest.mark.parametrize("gone", ["images", "w.pt"])
def test_missing_images_or_weights_are_named_in_one_line(
    gone: str, own: tuple[str, Path], uri: str, capfd: pytest.CaptureFixture[str]
) -> None:
    run, folder = own
    (folder / gone).rename(folder / "elsewhere")
    code, said = replay(uri, run, capfd)
    assert (code, said.count("\n")) == (2, 1)
    assert f"{folder}/{gone}" in said


# --- bad input -------------------------------------------------------------------------------------


def test_unknown_run_is_refused(uri: str, capfd: pytest.CaptureFixture[str]) -> None:
    code, said = replay(uri, "nonsense", capfd)
    assert (code, said.count("\n")) == (2, 1)
    assert said.startswith("error: no run 'nonsense' in sqlite:///")


def test_absent_store_is_refused_and_not_made(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code, said = replay(f"sqlite:///{tmp_path}/gone.db", "x", capfd)
    assert (code, said.count("\n")) == (2, 1)
    assert "there is no tracking store" in said
    assert list(tmp_path.iterdir()) == []


def test_store_that_is_none_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").write_text("These are no trials.\n" * 100)
    code, said = replay(f"sqlite:///{tmp_path}/notes.txt", "x", capfd)
    assert (code, said.count("\n")) == (2, 1)
    assert "cannot read the tracking store" in said


def test_run_that_is_no_trial_is_refused(uri: str, capfd: pytest.CaptureFixture[str]) -> None:
    code, said = replay(uri, run_id(uri, "tags.kind = 'study'"), capfd)
    assert (code, said.count("\n")) == (2, 1)
    assert "is not a trial of a study" in said


def test_trial_that_did_not_complete_is_refused(
    uri: str, capfd: pytest.CaptureFixture[str]
) -> None:
    run = run_id(uri)
    MlflowClient(tracking_uri=uri).set_tag(run, "outcome", "killed")
    code, said = replay(uri, run, capfd)
    assert (code, said.count("\n")) == (2, 1)
    assert "is killed; only a complete trial can be compared" in said


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("strategy", "Mine", "unknown strategy 'Mine'"),
        ("strategy.decay", "7", "decay must be in"),
        ("lr", "fast", "lr must be in"),
        ("target", "digitz", "unknown target 'digitz'"),
    ],
)
def test_row_that_makes_no_trial_is_refused(
    key: str, value: str, why: str, uri: str, capfd: pytest.CaptureFixture[str]
) -> None:
    run = run_id(uri)
    change(uri, "UPDATE params SET value = ? WHERE key = ? AND run_uuid = ?", value, key, run)
    code, said = replay(uri, run, capfd)
    assert (code, said.count("\n")) == (2, 1)
    assert why in said


# --- digits ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "recorded", "replayed", "digits"),
    [
        ("val_loss", 2.0, 2.0, math.inf),
        ("val_loss", 200.0, 200.02, 4.0),
        ("val_accuracy", 0.5, 0.51, 2.0),
        ("val_loss", 1.0, -1.0, 0.0),
        ("test_loss", math.nan, 1.0, -1.0),
    ],
)
def test_digits_are_those_that_agree(
    name: str, recorded: float, replayed: float, digits: float
) -> None:
    assert Comparison(name, 0, recorded, replayed).digits == pytest.approx(digits, abs=1e-4)
