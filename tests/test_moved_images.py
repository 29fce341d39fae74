"""Images that were copied to another place are the same target: recorded trials are replayed and exported."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest
from mlflow import MlflowClient

from analysis.load.study import Info, trials_frame
from harness import export, replay, study
from harness.core import study_file
from harness.training.provenance import clear_caches
from tests.pictures import paint, write_classes
from tests.study_files import study_text

SPACE = study_text(
    {"probe": "strategies.LinearProbe()"},
    rates=True,
    target="folder:scratch/101/pets",
    epochs=2,
    batch_size=16,
)


@pytest.fixture
def project(
    tmp_path: Path, with_stores: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """A folder in which a study of images in scratch/101/pets was run; they are in 102/pets now."""
    write_classes(tmp_path / "scratch" / "101" / "pets", cat=10, dog=10)
    (tmp_path / "moved.py").write_text(SPACE)
    with_stores(tmp_path / "mlruns")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    assert study.main(["--space", "moved.py", "--device", "cpu"]) == 0
    shutil.copytree(tmp_path / "scratch" / "101", tmp_path / "scratch" / "102")
    shutil.rmtree(tmp_path / "scratch" / "101")
    clear_caches()
    yield tmp_path
    clear_caches()
    study_file.clear_caches()


def repeat() -> str:
    client = MlflowClient(tracking_uri=f"sqlite:///{Path.cwd()}/mlruns/mlflow.db")
    experiment = client.get_experiment_by_name("moved")
    assert experiment is not None
    [run] = client.search_runs([experiment.experiment_id], "tags.phase = 'repeat'")
    found: str = run.info.run_id
    return found


def test_study_goes_on_where_its_images_are_now(
    project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The file names the new place, as each job of a batch system does, here relative and then absolute."""
    for place in ("scratch/102/pets", str(project / "scratch" / "102" / "pets")):
        (project / "moved.py").write_text(SPACE.replace("scratch/101/pets", place))
        capfd.readouterr()
        assert study.main(["--space", "moved.py", "--device", "cpu"]) == 0
        assert "2 of 2 were finished before and not run again" in capfd.readouterr().out
    assert study.main(["--space", "moved.py", "--device", "cpu", "--repeats", "2"]) == 0
    out = capfd.readouterr().out
    assert "2 of 3 were finished before" in out
    changed = project / "scratch" / "102" / "pets" / "cat" / "0.png"
    paint(changed)
    assert study.main(["--space", "moved.py", "--device", "cpu"]) == 2
    assert "sha256 of the images was" in capfd.readouterr().err


@pytest.mark.usefixtures("project")
def test_trial_is_replayed_and_exported_from_the_place_that_is_named(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert replay.main([repeat()]) == 2
    assert "no such folder" in capfd.readouterr().err
    now = ["--target", "folder:scratch/102/pets"]
    assert replay.main([repeat(), *now]) == 0
    assert "AGREED: bitwise equal" in capfd.readouterr().out
    assert export.main(["--study", "moved", "--device", "cpu", *now]) == 0
    assert "exactly as recorded" in capfd.readouterr().out


def test_other_images_under_the_old_name_are_not_taken_for_the_recorded_ones(
    project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(project / "scratch" / "102", project / "scratch" / "101")
    paint(project / "scratch" / "101" / "pets" / "cat" / "0.png")
    assert replay.main([repeat()]) == 1
    assert "sha256.images" in capfd.readouterr().out


def test_runs_of_the_same_images_at_two_paths_are_read_as_one_target() -> None:
    raw = pd.DataFrame(
        {
            "run_id": list("abcd"),
            "params.target": ["folder:/1/pets", "folder:/2/pets", "folder:/1/birds", "digits"],
            "tags.sha256.images": ["aa", "aa", "bb", None],
        }
    )
    info = Info("x", {"strategy": ["full"]})
    found = trials_frame(raw, info)["param.target"].tolist()
    assert found == ["folder:/1/pets", "folder:/1/pets", "folder:/1/birds", "digits"]
