"""The command as a user meets it: every bad input in one line, and a study that survives being killed."""

from __future__ import annotations

import contextlib
import io
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import optuna
import pytest
import timm
import torch
from mlflow import MlflowClient
from mlflow.entities import Run
from optuna.trial import TrialState

from harness.backbones import timm_models
from harness.core import signals
from harness.core.study_file import load_study
from harness.data import clear_caches
from harness.data.cached import Cache
from harness.search.lock import sole_runner
from harness.study import main
from tests.pictures import paint, write_classes

STUDY = '''"""Does a toy learn?"""
from harness import strategies
from harness.core.spec import TrialSpec
from harness.core.study import Study

ARMS = {"probe": strategies.LinearProbe(), "full": strategies.FullFineTune()}

def space(trial, strategy):
    return TrialSpec(
        target="digits", backbone="test_resnet", strategy=ARMS[strategy], source="scratch",
        shots=5, val_shots=4, test_shots=6, resolution=32, epochs=1, batch_size=16,
        lr=trial.suggest_float("lr", 1e-3, 1e-1, log=True),
    )

study = Study(compare={"strategy": ARMS}, space=space, trials=2, repeats=2)
'''


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory with a good study in it; the signal handler is put back."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.py").write_text(STUDY)
    before = signal.getsignal(signal.SIGTERM)
    yield tmp_path
    signal.signal(signal.SIGTERM, before)
    clear_caches()  # by name, and the next working directory has its own folder:pets


def write(here: Path, old: str, new: str) -> None:
    """The good study with one thing changed."""
    assert old in STUDY
    (here / "toy.py").write_text(STUDY.replace(old, new))


def assert_refused(capfd: pytest.CaptureFixture[str], here: Path, said: str, *options: str) -> None:
    """Exit code 2, one line on stderr that says it, and nothing left behind."""
    before = {p: p.read_bytes() for p in here.rglob("*") if p.is_file() and "data" not in p.parts}
    code = main(["--space", "toy.py", "--device", "cpu", *options])
    out, err = capfd.readouterr()
    # Nearly equal images and few repeats are named, whatever happens next.
    lines = [x for x in err.splitlines() if not x.startswith(("warning: ", "note: "))]
    assert len(lines) == 1, err
    assert re.match(rf"error: .*{said}", lines[0]), lines[0]
    assert out == ""
    assert code == 2
    left = {p for p in here.rglob("*") if p.is_file() and p.suffix == ".db"}
    assert left <= set(before), "a database was made"
    assert all(p.read_bytes() == content for p, content in before.items())


# --- the study file --------------------------------------------------------------------------------

BAD_FILES: dict[str, tuple[str, str, str]] = {
    "syntax error": ("study = Study(", "study = = Study(", r"toy\.py:\d+: syntax error"),
    "raises": ("ARMS = {", "1 / 0\nARMS = {", r"toy\.py:\d+: ZeroDivisionError"),
    "exits": ("ARMS = {", "raise SystemExit(3)\nARMS = {", r"toy\.py:\d+: SystemExit"),
    "unknown import": ("import strategies", "import strategis", r"toy\.py:\d+: ImportError"),
    "no study": ("study = Study(", "stuady = Study(", r"toy\.py defines no `study`"),
    "another type": ("study = Study(", "study = dict(", r"`study` must be a harness.Study, got dict"),
    "no cells": ("compare={", "compare={} and {", "compare needs"),
    "unknown backbone": ("test_resnet", "resnet19", "unknown backbone 'resnet19'; did you mean .*resnet18"),
    "unknown target": ("digits", "digit", "unknown target 'digit'; did you mean digits"),
    "unknown strategy": ("ARMS[strategy]", "'magic'", "strategy must be one of .*'magic'"),
    "unknown source": ("scratch", "imagnet", "unknown source 'imagnet'; use imagenet, pretrained"),
    "no strategy of ours": ("strategies.LinearProbe()", "strategies.Probe()", r"toy\.py:\d+: AttributeError"),
    "absent weights": ("scratch", "file:gone.pt", r"gone\.pt does not exist"),
    "absent folder": ("digits", "folder:gone", "folder:gone: no such folder"),
    "no trials": ("trials=2", "trials=0", "trials must be .* at least 1"),
    "negative repeats": ("repeats=2", "repeats=-1", "repeats must be"),
    "space raises": ("return TrialSpec(", "1 / 0; return TrialSpec(", "space failed for probe: ZeroDiv"),
    "space gives None": ("return TrialSpec(", "TrialSpec(", "space must return a TrialSpec, got None"),
    "low above high": ('"lr", 1e-3, 1e-1', '"lr", 1e-1, 1e-3', "'lr': `low <= high` must hold"),
    "bad field": ("epochs=1", "epochs=0", "epochs must be"),
    "too many shots": ("shots=5", "exact_shots=True, shots=500", "class '0' has 178 images"),
    "other arguments": ("(trial, strategy)", "(trial)", "space failed for probe: TypeError"),
}  # fmt: skip


@pytest.mark.parametrize(("old", "new", "said"), BAD_FILES.values(), ids=BAD_FILES)
def test_bad_study_file_is_refused_in_one_line(
    old: str, new: str, said: str, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write(here, old, new)
    assert_refused(capfd, here, said)


def test_absent_space_file_is_refused(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (here / "toy.py").unlink()
    assert_refused(capfd, here, r"study file toy\.py does not exist")


@pytest.mark.parametrize(
    ("name", "end"),
    [("freeze_dept", "; did you mean freeze_depth?"), ("nothing_of_the_kind", "")],
)
def test_nearest_shipped_study_is_suggested_for_a_misspelt_name(
    name: str, end: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--space", name]) == 2
    assert capsys.readouterr().err == f"error: study file {name} does not exist{end}\n"


def test_space_file_that_is_not_python_is_refused(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (here / "toy.txt").write_text(STUDY)
    assert_refused(capfd, here, "toy.txt is not a Python file", "--space", "toy.txt")


# --- files of the user's ---------------------------------------------------------------------------


def weights_of_another_architecture(path: Path) -> None:
    torch.save(timm.create_model("test_efficientnet").state_dict(), path)


def weights_with_nan(path: Path) -> None:
    state = timm.create_model("test_resnet").state_dict()
    state["layer1.0.bn1.bias"][0] = float("nan")
    torch.save(state, path)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (weights_of_another_architecture, r"another architecture: .*conv1\S* is missing"),
        (weights_with_nan, r"layer1\.0\.bn1\.bias contains NaN"),
        (lambda path: path.write_text("hello"), "not a weights file"),
        (lambda path: path.write_bytes(b""), "not a weights file"),
        (lambda path: path.mkdir(), "w.pt"),
    ],
    ids=["another architecture", "nan", "text", "empty", "directory"],
)
def test_bad_weights_file_is_refused(
    make: Callable[[Path], object], said: str, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    make(here / "w.pt")
    write(here, "scratch", "file:w.pt")
    assert_refused(capfd, here, said)


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ({}, "at least 2 class folders"),
        ({"cat": 20}, "at least 2 class folders.*found 1"),
        ({"cat": 20, "dog": 0}, "'dog' contains no images"),
        ({"cat": 20, "dog": 2}, "'dog' has 2 images, too few"),
    ],
    ids=["empty", "one class", "class without images", "small class"],
)
def test_bad_folder_is_refused(
    counts: dict[str, int], said: str, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (here / "pets").mkdir()
    write_classes(here / "pets", **counts)
    write(here, "digits", "folder:pets")
    assert_refused(capfd, here, said)


def test_corrupt_image_is_refused(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_classes(here / "pets", cat=20, dog=20)
    for path in (here / "pets" / "dog").iterdir():
        path.write_bytes(b"\x89PNG\r\n\x1a\n broken")
    write(here, "digits", "folder:pets")
    assert_refused(capfd, here, r"dog/\d+\.png cannot be read")


def test_study_runs_in_any_thread_and_leaves_the_signals_of_its_process_as_they_were(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["--space", "toy.py", "--device", "cpu", "--trials", "1", "--repeats", "0"]
    handlers = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGUSR1)]
    monkeypatch.setattr(signals, "_requested", True)  # an earlier study of this process was stopped
    ends: list[int] = []
    thread = threading.Thread(target=lambda: ends.append(main(command)))
    thread.start()
    thread.join()
    assert ends == [0]
    assert main(command) == 0
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGUSR1)] == handlers


def test_image_that_changed_between_two_calls_in_one_python_is_noticed(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_classes(here / "pets", ant=15, bee=15)
    write(here, "digits", "folder:pets")
    command = ["--space", "toy.py", "--device", "cpu", "--trials", "1", "--repeats", "0"]
    assert main(command) == 0
    paint(here / "pets" / "ant" / "0.png")
    assert main(command) == 2
    assert "changed since it was recorded: sha256 of the images was" in capfd.readouterr().err


@pytest.mark.usefixtures("here")
def test_weights_of_the_hub_are_refused_when_offline(
    here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(here / "cache"))
    monkeypatch.setattr(timm_models, "is_unreachable", lambda: True)
    write(here, "scratch", "imagenet")
    assert_refused(capfd, here, "ImageNet weights of test_resnet are not on this machine")


# --- options ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--trials", "0"), "--trials must be at least 1, got 0"),
        (("--trials", "-2"), "--trials must be at least 1, got -2"),
        (("--repeats", "-1"), "--repeats must be at least 0, got -1"),
        (("--workers", "0"), "--workers must be at least 1, got 0"),
        (("--cells", "0/2"), "--cells must be K/N with K from 1 to N, e.g. 3/16, got '0/2'"),
        (("--cells", "3/2"), "--cells must be K/N"),
        (("--cells", "2"), "--cells must be K/N"),
        (("--cells", "3/3"), "--cells 3/3 selects no cell: study 'toy' has 2, so at most 2 jobs"),
        (("--device", "gpu"), "unknown device 'gpu'; choose from auto, cpu, cuda, mps"),
        (("--storage", "sqlite:///folder"), "cannot open the storage sqlite:///folder"),
        (("--storage", "sqlite:///notes.txt"), "cannot open the storage"),
        (("--storage", "sqlite:///notes.txt/x.sqlite"), "cannot open the storage"),
        (("--storage", "journal:folder"), "cannot open the storage journal:folder"),
        (("--storage", "nonsense"), "cannot open the storage nonsense"),
        (("--storage", "mysql+nodriver://u:s3cret@h/d"), r"storage mysql\+nodriver://u:\*\*\*@h/d"),
        (("--tracking-uri", "sqlite:///folder"), "cannot open the tracking store"),
        (("--tracking-uri", "sqlite:///notes.txt"), "cannot open the tracking store"),
        (("--tracking-uri", "sqlite:///notes.txt/x.sqlite"), "notes.txt"),
        (("--tracking-uri", "nonsense://x"), "cannot open the tracking store"),
        (("--max-minutes", "nan"), "--max-minutes must be above 0, got nan"),
        (("--quiet", "--verbose"), "--quiet and --verbose cannot be combined"),
        (("--worker-cpus", "2"), "--worker-cpus needs --engine ray"),
        (("--address", "auto"), "--address needs --engine ray"),
        (("--engine", "ray", "--worker-cpus", "-1"), "--worker-cpus must be at least 0, got -1"),
        (("--engine", "ray", "--worker-gpus", "nan"), "--worker-gpus must be at least 0, got nan"),
        (("--engine", "ray", "--worker-gpus", "1.5"), "--worker-gpus must be a fraction of one or a whole"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, tuple) else "",
)  # fmt: skip
def test_bad_option_is_refused(
    options: tuple[str, ...], said: str, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (here / "folder").mkdir()
    (here / "notes.txt").write_text("These are no trials.\n" * 100)
    assert_refused(capfd, here, said, *options)


def test_tracking_server_that_does_not_answer_is_warned_of_and_made_good_by_the_next_command(
    here: Path,
    tracking_uri: str,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    storage = f"sqlite:///{here}/mlruns/optuna.db"
    options = ["--space", "toy.py", "--device", "cpu", "--trials", "1", "--repeats", "0"]
    options += ["--storage", storage]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused at once
        uri = f"http://ann:s3cret@127.0.0.1:{taken.getsockname()[1]}"
        assert main([*options, "--tracking-uri", uri]) == 0
    said = capfd.readouterr().err
    assert said.count("the tracking store does not take what is written") == 1
    assert "python -m harness.sync --study toy completes it" in said
    assert "s3cret" not in said.replace("every user", "")
    assert main([*options, "--tracking-uri", tracking_uri]) == 0
    assert capfd.readouterr().out.count("nothing was left to do") == 1
    assert Place(here).states() == ({"COMPLETE": 2}, {"FINISHED": 2})


def test_second_command_on_a_running_study_is_refused_with_who_runs_it(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with sole_runner(here / "mlruns", "toy"):
        assert main(["--space", "toy.py", "--device", "cpu"]) == 2
    said = capfd.readouterr().err
    who = rf"process {os.getpid()} on {re.escape(platform.node())}, since \d{{4}}-\d\d-\d\d "
    assert re.search(rf"(?m)^error: 'toy' is running already \({who}.*\); wait .*\n\Z", said)
    assert not (here / "mlruns" / "mlflow.db").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_is_refused_where_there_is_none(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert_refused(capfd, here, "device cuda is not available", "--device", "cuda")


@pytest.mark.usefixtures("here")
def test_ctrl_c_ends_with_130_and_says_how_to_go_on(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("harness.search.launch.launch", interrupted)
    assert main(["--space", "toy.py"]) == 130
    assert "same command again" in capfd.readouterr().err


def test_dry_run_shows_the_plan_and_makes_nothing(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["--space", "toy.py", "--device", "cpu", "--trials", "5", "--dry-run"]) == 0
    shown = capfd.readouterr().out
    assert "2 cells x (5 trials + 2 repeats) = 10 trials + 4 repeats" in shown
    assert all(word in shown for word in ("probe", "full", "test_resnet", "lr="))
    forecasts = re.findall(r"(probe|full): (\d+) MiB \(training .*\); ([\d.]+) s", shown)
    assert [name for name, _, _ in forecasts] == ["probe", "full"]
    assert int(forecasts[0][1]) <= int(forecasts[1][1])
    assert "MORE THAN" not in shown
    assert [p.name for p in here.iterdir() if p.name != "__pycache__"] == ["toy.py"]


def test_dry_run_marks_what_would_not_fit(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--space", "toy.py", "--dry-run", "--max-memory", "1KiB"]) == 0
    assert capfd.readouterr().out.count("MORE THAN 1 KiB: would not run") == 2


@pytest.mark.parametrize("url", ["nonsense", "sqlite:///toy.py"])
def test_storage_that_cannot_be_one_is_refused_before_images_are_read(
    url: str, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write(here, "digits", "folder:gone")  # what is read later, and refused then
    assert_refused(capfd, here, "cannot open the storage", "--storage", url)


def test_reuse_can_be_switched_off_and_its_folder_named(here: Path, tmp_path: Path) -> None:
    kept = Cache(tmp_path / "kept")
    options = ["--space", "toy.py", "--device", "cpu", "--trials", "1", "--repeats", "0"]
    options += ["--cache-dir", str(kept.folder)]
    assert main([*options, "--cache-budget", "0"]) == 0
    assert sum(entry.size for entry in kept.entries()) == 0
    assert main([*options, "--tracking-uri", "sqlite:///again/mlflow.db"]) == 0
    assert any("up to" in entry.what and entry.size for entry in kept.entries())


def test_study_is_named_after_its_file_unless_it_has_a_name(here: Path) -> None:
    assert load_study(here / "toy.py").name == "toy"
    write(here, "trials=2", "trials=2, name='mine'")
    assert load_study(here / "toy.py").name == "mine"


# --- a real study ----------------------------------------------------------------------------------

SLOTS = {(c, p, str(i)) for c in ("probe", "full") for p in ("tune", "repeat") for i in range(2)}

DIES = """
import os, sys
from harness import study
from harness.search.cell import CellSearch
real, calls = CellSearch.report, []
def report(self, *arguments):
    calls.append(1)
    if len(calls) == int(sys.argv[1]):
        os.kill(os.getpid(), int(sys.argv[2]))
    real(self, *arguments)
CellSearch.report = report
sys.exit(study.main(sys.argv[3:]))
"""
"""The command, which sends itself a signal in the middle of its n-th trial."""


def command(folder: Path, *before: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *before, "--space", "toy.py", "--device", "cpu"],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@dataclass
class Place:
    """A working directory in which the command was run, perhaps several times."""

    folder: Path
    done: subprocess.CompletedProcess[str] | None = None

    @property
    def end(self) -> subprocess.CompletedProcess[str]:
        assert self.done is not None
        return self.done

    def runs(self) -> list[Run]:
        client = MlflowClient(tracking_uri=f"sqlite:///{self.folder}/mlruns/mlflow.db")
        experiment = client.get_experiment_by_name("toy")
        assert experiment is not None
        every = client.search_runs([experiment.experiment_id])
        return [run for run in every if "phase" in run.data.tags]  # not the study's own run

    def complete(self) -> dict[tuple[str, ...], Run]:
        """Complete runs by slot."""
        keys = ("cell", "phase", "index")
        found = [r for r in self.runs() if r.data.tags["outcome"] == "complete"]
        slots = [tuple(r.data.tags[k] for k in keys) for r in found]
        assert max(Counter(slots).values()) == 1, "a slot is complete twice"
        return dict(zip(slots, found, strict=True))

    def trials(self) -> list[optuna.trial.FrozenTrial]:
        storage = optuna.storages.RDBStorage(f"sqlite:///{self.folder}/mlruns/optuna.db")
        found = [
            t
            for name in optuna.get_all_study_names(storage)
            for t in optuna.load_study(study_name=name, storage=storage).trials
        ]
        storage.engine.dispose()
        return found

    def states(self) -> tuple[Counter[str], Counter[str]]:
        """Of the trials in Optuna and of the runs in MLflow."""
        return Counter(t.state.name for t in self.trials()), Counter(
            r.info.status for r in self.runs()
        )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Run once, from nothing, in this process."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "toy.py").write_text(STUDY)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.chdir(folder), redirect_stdout(out), redirect_stderr(err):
        code = main(["--space", "toy.py", "--device", "cpu"])
    return Place(folder, subprocess.CompletedProcess([], code, out.getvalue(), err.getvalue()))


@pytest.fixture(scope="module")
def broken(
    tmp_path_factory: pytest.TempPathFactory, mlflow_template: Path, optuna_template: Path
) -> Place:
    """Terminated in the third trial; a test goes on from there."""
    folder = tmp_path_factory.mktemp("broken")
    (folder / "toy.py").write_text(STUDY)
    (folder / "mlruns").mkdir()
    for template in (mlflow_template, optuna_template):
        shutil.copy(template, folder / "mlruns" / template.name)
    return Place(folder, command(folder, "-c", DIES, "3", str(int(signal.SIGTERM))))


def test_real_study_completes_every_slot_once(whole: Place) -> None:
    first = whole.end
    assert first.returncode == 0, first.stderr
    assert whole.complete().keys() == SLOTS
    assert whole.states() == ({"COMPLETE": 8}, {"FINISHED": 8})


def test_real_study_shows_its_progress_and_the_next_commands(whole: Place) -> None:
    out = whole.end.stdout
    assert [int(n) for n in re.findall(r"^\[ *(\d+)/8\]", out, re.MULTILINE)] == list(range(1, 9))
    assert "python -m analysis.report --study toy" in out
    assert "mlflow ui --backend-store-uri" in out


def test_real_study_leaves_only_databases_and_artifacts(whole: Place) -> None:
    assert {p.name for p in whole.folder.iterdir()} - {"__pycache__"} == {"toy.py", "mlruns"}
    names = {p.name for p in (whole.folder / "mlruns").iterdir() if not p.name.startswith(".")}
    # -wal and -shm are SQLite's own and may stay behind.
    assert {n.removesuffix("-wal").removesuffix("-shm") for n in names} == {
        "mlflow.db", "optuna.db", "artifacts", "predictions",
    }  # fmt: skip


def test_repeats_of_the_real_study_have_test_scores_and_predictions(whole: Place) -> None:
    for (_, phase, _), run in whole.complete().items():
        assert ("test_accuracy" in run.data.metrics) == (phase == "repeat")
        kept = (
            Path(run.info.artifact_uri.removeprefix("file://")) / "predictions.parquet"
        ).exists()
        assert kept == (phase == "repeat")


@pytest.mark.usefixtures("here")
def test_second_run_of_a_finished_study_says_that_nothing_was_left(
    whole: Place, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(whole.folder)
    assert main(["--space", "toy.py", "--device", "cpu"]) == 0
    assert "nothing was left to do" in capfd.readouterr().out
    assert len(whole.runs()) == 8


@pytest.mark.slow
def test_terminated_study_ends_with_143_and_no_open_trial(broken: Place) -> None:
    assert broken.end.returncode == 143, broken.end.stderr
    assert "same command again" in broken.end.stderr
    assert "Traceback" not in broken.end.stderr
    assert broken.states() == ({"COMPLETE": 2, "FAIL": 1}, {"FINISHED": 2, "KILLED": 1})


@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_killed_study_goes_on_to_the_results_of_one_that_was_not(
    broken: Place,
    whole: Place,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    killed = command(broken.folder, "-c", DIES, "3", str(int(signal.SIGKILL)))
    assert killed.returncode == -signal.SIGKILL
    trials, runs = broken.states()
    assert trials["RUNNING"] == 1, "kill -9 leaves no time to tidy up"
    assert runs["RUNNING"] == 0, "a trial that ends at once is shown at its end"
    monkeypatch.chdir(broken.folder)
    assert main(["--space", "toy.py", "--device", "cpu"]) == 0
    assert broken.states() == ({"COMPLETE": 8, "FAIL": 2}, {"FINISHED": 8, "KILLED": 2})
    assert "note: 'toy' was left by process" in capfd.readouterr().err
    results, wanted = broken.complete(), whole.complete()
    assert results.keys() == wanted.keys() == SLOTS
    for slot, run in results.items():
        assert run.data.params == wanted[slot].data.params
        for name in ("val_accuracy", "val_loss", "train_loss"):
            assert run.data.metrics[name] == wanted[slot].data.metrics[name]
    assert all(t.state != TrialState.RUNNING for t in broken.trials())
