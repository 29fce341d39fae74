"""Faults that need whole processes: the real command, its workers killed, stopped, suspended, doubled.

Numbers are rows of docs/pages/faults.md. Trial 1 of cell "b" is the one in trouble (`tests.toy`).
"""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pandas as pd
import pytest

from harness.core.study import Study
from tests.toy import (
    RUN,
    SYNC,
    Place,
    begin,
    call,
    go_on,
    is_alive,
    kill,
    results,
    resume,
    trials_of,
    wait_for,
    write_study,
)

SAY = "Path('new').write_text(str(os.getpid())); os.rename('new', 'mark')"
"""Tell which process runs the trial in trouble."""
WAIT = f"if epoch == 1 and once('begun'): {SAY}; time.sleep(600)"
"""The trial hangs before its second epoch, the first time."""
GO = "[time.sleep(0.05) for _ in iter(Path('go').exists, True)]"
WAIT_FOR_GO = f"if epoch == 1 and once('begun'): {SAY}; {GO}"
FULL = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
from harness.study import main
sys.exit(main(["--space", "toy.py", "--device", "cpu"]))
"""
HANG = """signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM}); time.sleep(600)
        return super().lr_scales(num_groups, epoch)


from harness.search.executors import processes

processes.HUNG_SECONDS = 1


@dataclass(frozen=True)
class Unused(strategies.LinearProbe):
    def lr_scales(self, num_groups, epoch):
        pass"""
"""As in a call that never returns; a minute is one second."""


@pytest.fixture
def here(tmp_path: Path, with_stores: Callable[[Path], Path]) -> Path:
    """A folder with both databases made, where the command is typed."""
    return with_stores(tmp_path / "mlruns").parent


@pytest.fixture(scope="module")
def alone(
    tmp_path_factory: pytest.TempPathFactory, with_stores: Callable[[Path], Path]
) -> pd.DataFrame:
    """Results of one uninterrupted process."""
    folder = with_stores(tmp_path_factory.mktemp("alone") / "mlruns").parent
    go_on(folder, write_study(folder))
    return results(folder)


def marked(folder: Path, process: subprocess.Popen[str]) -> int:
    """The process of the trial in trouble, once it is."""
    wait_for((folder / "mark").exists, process)
    return int((folder / "mark").read_text())


def outcomes(folder: Path) -> dict[str, int]:
    return dict(trials_of(folder)["outcome"].value_counts())


@pytest.mark.slow
def test_workers_try_and_find_what_one_process_would(here: Path, alone: pd.DataFrame) -> None:
    go_on(here, write_study(here), "--workers", "2")
    pd.testing.assert_frame_equal(results(here), alone)


@pytest.mark.slow
def test_1_worker_that_is_killed_disturbs_no_other_and_its_trial_is_run_again_once(
    here: Path, alone: pd.DataFrame
) -> None:
    study = write_study(here, WAIT)
    parent = begin(here, "--workers", "4")
    kill(marked(here, parent))
    _, err = parent.communicate(timeout=240)
    assert parent.returncode == 0, err
    assert outcomes(here) == {"complete": 8, "killed": 1}
    [lost] = trials_of(here).query("outcome == 'killed'").to_dict("records")
    assert (lost["cell"], lost["index"], lost["reason"]) == (
        "b", 1, "its process died: SIGKILL, as when memory runs out"
    )  # fmt: skip
    assert set(trials_of(here).query("cell == 'a'")["attempt"].astype(int)) == {1}
    resume(here, study)
    pd.testing.assert_frame_equal(results(here), alone)


@pytest.mark.slow
def test_1_slot_that_ends_its_worker_each_time_is_crashed_and_the_others_are_run(
    here: Path,
) -> None:
    write_study(here, "os.kill(os.getpid(), signal.SIGSEGV)")
    done = call(here, RUN, "--workers", "2")
    assert done.returncode == 0, done.stderr
    assert outcomes(here) == {"complete": 7, "killed": 1, "crashed": 1}
    [given_up] = trials_of(here).query("outcome == 'crashed'").to_dict("records")
    assert (given_up["cell"], given_up["index"]) == ("b", 1)
    assert given_up["reason"] == (
        "its process ended 2 times (its process died: SIGSEGV); it is not tried again"
    )
    assert call(here, RUN).returncode == 0
    assert len(trials_of(here)) == 9


@pytest.mark.slow
def test_1_slot_that_ends_the_command_each_time_is_crashed_and_the_others_are_run(
    here: Path,
) -> None:
    write_study(here, "os.kill(os.getpid(), signal.SIGSEGV)")
    assert [call(here, RUN).returncode for _ in range(3)] == [-signal.SIGSEGV] * 2 + [0]
    assert outcomes(here) == {"complete": 7, "killed": 1, "crashed": 1}


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 2])
def test_2_ctrl_c_ends_all_workers_and_their_trials(here: Path, times: int) -> None:
    """Also one that does not listen, and if it is pressed again meanwhile."""
    study = write_study(
        here, WAIT.replace("time.sleep", "signal.signal(15, signal.SIG_IGN); time.sleep")
    )
    parent = begin(here, "--workers", "2")
    worker = marked(here, parent)
    for _ in range(times):
        os.killpg(parent.pid, signal.SIGINT)
    _, err = parent.communicate(timeout=240)
    assert parent.returncode == 130
    assert "stopped by Ctrl-C" in err
    assert "Traceback" not in err
    wait_for(lambda: not is_alive(worker))
    resume(here, study)


@pytest.mark.slow
def test_3_sigterm_ends_the_command_and_its_workers_at_once(here: Path) -> None:
    study = write_study(here, WAIT)
    parent = begin(here, "--workers", "2")
    worker = marked(here, parent)
    parent.terminate()
    _, err = parent.communicate(timeout=240)
    assert parent.returncode == 143
    assert "stopped by SIGTERM or SIGUSR1; run the same command again to resume" in err
    wait_for(lambda: not is_alive(worker))
    resume(here, study)


@pytest.mark.slow
def test_3_sigusr1_lets_workers_end_their_epochs_which_are_kept(
    here: Path, alone: pd.DataFrame
) -> None:
    study = write_study(here, WAIT_FOR_GO)
    parent = begin(here, "--workers", "2")
    marked(here, parent)
    parent.send_signal(signal.SIGUSR1)
    time.sleep(1)  # until it has been passed on
    (here / "go").touch()
    _, err = parent.communicate(timeout=240)
    assert parent.returncode == 143, err
    kept = len(list((here / "mlruns" / "checkpoints").iterdir()))
    resume(here, study)
    tags = [run.data.tags for run in Place(here / "mlruns").runs()]
    resumed = [t["resumed"] for t in tags if "resumed" in t]
    assert len(resumed) == kept > 0
    assert set(resumed) <= {"after epoch 0", "after epoch 1"}
    pd.testing.assert_frame_equal(results(here), alone)


@pytest.mark.slow
def test_4_worker_that_is_suspended_is_waited_for(here: Path, alone: pd.DataFrame) -> None:
    study = write_study(
        here, "if epoch == 1 and once('begun'): os.kill(os.getpid(), signal.SIGSTOP)"
    )
    parent = begin(here, "--workers", "2")
    wait_for(lambda: len(stopped_children(parent.pid)) == 1, parent)
    [worker] = stopped_children(parent.pid)
    os.kill(worker, signal.SIGCONT)
    _, err = parent.communicate(timeout=240)
    assert parent.returncode == 0, err
    assert outcomes(here) == {"complete": 8}
    resume(here, study)
    pd.testing.assert_frame_equal(results(here), alone)


def stopped_children(process: int) -> list[int]:
    """Suspended processes that it has started."""
    found = []
    for child in Path(f"/proc/{process}/task").glob("*/children"):
        for pid in map(int, child.read_text().split()):
            if "State:\tT" in Path(f"/proc/{pid}/status").read_text():
                found.append(pid)
    return found


@pytest.mark.slow
def test_14_full_disk_ends_the_study_in_one_line_and_spoils_no_database(here: Path) -> None:
    study = write_study(here)
    size = max(p.stat().st_size for p in (here / "mlruns").iterdir())
    (here / "full.py").write_text(FULL)
    full = call(here, [sys.executable, "full.py", str(size)])
    assert full.returncode in (0, 1, 2)
    assert "Traceback" not in full.stderr
    assert "full" in full.stderr or "I/O" in full.stderr, full.stderr
    for name in ("mlflow.db", "optuna.db"):
        with closing(sqlite3.connect(here / "mlruns" / name)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    resume(here, study)


def hold(here: Path) -> tuple[Study, subprocess.Popen[str]]:
    """A command at work on the study, and a trial of it that goes on when told so."""
    study = write_study(here, WAIT_FOR_GO)
    first = begin(here)
    marked(here, first)
    return study, first


@pytest.mark.slow
def test_17_second_command_on_a_study_is_refused_and_told_who_runs_it(here: Path) -> None:
    study, first = hold(here)
    for command in (RUN, SYNC):
        second = call(here, command)
        assert second.returncode == 2
        [line] = second.stderr.splitlines()
        assert (
            f"'toy' is running already (process {first.pid} on {os.uname().nodename}, since "
            in line
        )
    (here / "go").touch()
    _, err = first.communicate(timeout=240)
    assert first.returncode == 0, err
    assert outcomes(here) == {"complete": 8}
    resume(here, study)


@pytest.mark.slow
def test_28_workers_end_with_a_command_that_is_killed_and_the_next_one_says_so(here: Path) -> None:
    study = write_study(here, WAIT)
    parent = begin(here, "--workers", "2")
    worker = marked(here, parent)
    kill(parent.pid)
    parent.communicate(timeout=60)
    wait_for(lambda: not is_alive(worker))
    said = resume(here, study)
    assert f"note: 'toy' was left by process {parent.pid} on " in said
    assert "which died; resuming" in said


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_30_trial_that_nothing_interrupts_ends_with_its_process(here: Path, workers: int) -> None:
    write_study(here, HANG)
    done = call(here, RUN, "--workers", str(workers), "--max-minutes", "0.1")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert outcomes(here) == {"complete": 7, "timeout": 1}
    [hung] = trials_of(here).query("outcome == 'timeout'").to_dict("records")
    assert (hung["cell"], hung["index"]) == ("b", 1)
    assert "could not be interrupted: its process was ended" in hung["reason"]
