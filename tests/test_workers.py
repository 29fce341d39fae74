"""Several processes at one study: the real command, real databases, trials of a moment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from harness.search.leases import start_of

from analysis.load import load_study
from harness.search.storage import open_storage
from harness.tracking.runs import every_run

STUDY = '''"""Does it run?"""
import os
import signal
import signal
from multiprocessing import current_process
from pathlib import Path

from harness import transfer
from harness.spec import Study, TrialSpec


def space(trial, strategy):
    lr = trial.suggest_float("lr", 1e-3, 1e-1, log=True)
    {trouble}
    return TrialSpec(
        target="digits", backbone="small_cnn", strategy=transfer.LinearProbe(), source="scratch",
        shots=4, val_shots=4, test_shots=4, resolution=28, epochs=2, lr=lr,
    )


study = Study(compare={{"strategy": ["a", "b"]}}, space=space, trials={trials}, repeats=2, name="toy",
              sampler="{sampler}")
'''
RUN = [sys.executable, "-m", "harness.study", "--space", "toy.py", "--device", "cpu"]
ROOT = Path(__file__).parents[1]
ONCE = """
    mark = Path("mark")
    if trial.number > 2 and not mark.exists():
        {what}
"""


@pytest.fixture
def here(tmp_path: Path, mlflow_template: Path, optuna_template: Path) -> Path:
    """A folder with both databases made, where the command is typed."""
    (tmp_path / "mlruns").mkdir()
    (tmp_path / "mlruns" / "mlflow.db").write_bytes(mlflow_template.read_bytes())
    (tmp_path / "mlruns" / "optuna.db").write_bytes(optuna_template.read_bytes())
    return tmp_path


def write_study(folder: Path, trouble: str = "", trials: int = 4, sampler: str = "random") -> None:
    text = STUDY.format(trouble=trouble, trials=trials, sampler=sampler)
    (folder / "toy.py").write_text(text)


def run(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*RUN, *options],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def trials(folder: Path) -> pd.DataFrame:
    found = load_study("toy", f"sqlite:///{folder}/mlruns/mlflow.db").trials
    return found.sort_values(["cell", "phase", "index"]).reset_index(drop=True)


def results(folder: Path) -> pd.DataFrame:
    """What must not hang on how it was run."""
    complete = trials(folder).query("outcome == 'complete'").reset_index(drop=True)
    return complete[["cell", "phase", "index", "seed", "param.lr", "val_loss", "test_loss"]]


def assert_whole(folder: Path, count: int = 12) -> None:
    found = trials(folder)
    complete = found[found["outcome"] == "complete"]
    assert len(complete) == count
    assert not complete.duplicated(["cell", "phase", "index"]).any()
    assert set(found["outcome"]) <= {"complete", "killed"}
    storage = open_storage(f"sqlite:///{folder}/mlruns/optuna.db")
    states = {
        t.state.name for s in storage.get_all_studies() for t in storage.get_all_trials(s._study_id)
    }
    assert "RUNNING" not in states


@pytest.fixture(scope="module")
def alone(
    tmp_path_factory: pytest.TempPathFactory, mlflow_template: Path, optuna_template: Path
) -> Callable[[str], pd.DataFrame]:
    """Results of one uninterrupted worker, by sampler."""
    made: dict[str, pd.DataFrame] = {}

    def results_of(sampler: str) -> pd.DataFrame:
        if sampler not in made:
            folder = tmp_path_factory.mktemp("alone")
            (folder / "mlruns").mkdir()
            (folder / "mlruns" / "mlflow.db").write_bytes(mlflow_template.read_bytes())
            (folder / "mlruns" / "optuna.db").write_bytes(optuna_template.read_bytes())
            write_study(folder, sampler=sampler)
            done = run(folder)
            assert done.returncode == 0, done.stderr
            made[sampler] = results(folder)
        return made[sampler]

    return results_of


@pytest.mark.parametrize("sampler", ["random", pytest.param("qmc", marks=pytest.mark.slow)])
def test_workers_try_and_find_what_one_would(
    here: Path, alone: Callable[[str], pd.DataFrame], sampler: str
) -> None:
    write_study(here, sampler=sampler)
    done = run(here, "--workers", "2")
    assert done.returncode == 0, done.stderr
    assert_whole(here)
    pd.testing.assert_frame_equal(results(here), alone(sampler))


@pytest.mark.slow
def test_worker_that_is_killed_is_replaced_and_its_trial_run_again(
    here: Path, alone: Callable[[str], pd.DataFrame]
) -> None:
    write_study(here, ONCE.format(what="mark.touch(); os.kill(os.getpid(), signal.SIGKILL)"))
    done = run(here, "--workers", "2")
    assert done.returncode == 0, done.stderr
    assert_whole(here)
    pd.testing.assert_frame_equal(results(here), alone("random"))


@pytest.mark.slow
def test_workers_end_when_their_parent_is_killed_and_the_study_goes_on(here: Path) -> None:
    write_study(
        here, ONCE.format(what="mark.write_text(str(os.getpid())); import time; time.sleep(600)")
    )
    parent = subprocess.Popen(
        [*RUN, "--workers", "2"],
        cwd=here,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    wait_for(lambda: (here / "mark").exists() and (here / "mark").read_text() != "")
    worker = int((here / "mark").read_text())
    parent.kill()
    parent.wait()
    wait_for(lambda: not start_of(worker))
    assert run(here).returncode == 0
    assert_whole(here)


@pytest.mark.slow
def test_study_whose_workers_keep_dying_stops_and_says_why(here: Path) -> None:
    write_study(here, '"worker" in current_process().name and os._exit(9)')
    done = run(here, "--workers", "2")
    assert done.returncode == 1
    assert "3 workers in a row died (exit code 9)" in done.stderr


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


@pytest.mark.slow
def test_parent_that_is_asked_to_stop_lets_its_workers_end_their_epochs(here: Path) -> None:
    waits = "mark.touch(); [time.sleep(0.01) for _ in iter(preemption.is_asked, True)]"
    write_study(
        here,
        f"    import time; from harness.search import preemption\n{ONCE.format(what=waits)}".strip(),
    )
    parent = subprocess.Popen(
        [*RUN, "--workers", "2"],
        cwd=here,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: (here / "mark").exists())
    parent.send_signal(signal.SIGUSR1)
    _, said = parent.communicate(timeout=240)
    assert parent.returncode == 143
    assert "stopped by SIGTERM or SIGUSR1" in said
    kept = list((here / "mlruns" / "checkpoints").iterdir())
    assert run(here).returncode == 0
    assert_whole(here)
    runs = every_run("toy", f"sqlite:///{here}/mlruns/mlflow.db")
    notes = [run.tags["resumed"] for run in runs if "resumed" in run.tags]
    assert len(notes) == len(kept) > 0
    assert set(notes) <= {"after epoch 0", "after epoch 1"}, "each was in one of its two epochs"


@pytest.mark.slow
def test_parent_that_gets_sigterm_stops_its_workers_and_the_study_goes_on(here: Path) -> None:
    write_study(here, ONCE.format(what="mark.touch(); import time; time.sleep(600)"))
    parent = subprocess.Popen(
        [*RUN, "--workers", "2"],
        cwd=here,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: (here / "mark").exists())
    parent.terminate()
    _, said = parent.communicate(timeout=240)
    assert parent.returncode == 143
    assert "stopped by SIGTERM or SIGUSR1" in said
    assert run(here).returncode == 0
    assert_whole(here)
