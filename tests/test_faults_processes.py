"""Faults that need whole processes: the real command, stopped, doubled, or eight times at once.

Numbers are rows of the issue's table of faults.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from harness.search.leases import start_of

from tests.test_workers import (
    ONCE,
    ROOT,
    RUN,
    assert_whole,
    environment,
    run,
    trials,
    wait_for,
    write_study,
)

pytestmark = pytest.mark.slow
VERIFY = [sys.executable, "-m", "harness.verify", "--study", "toy"]
HANG = ONCE.format(what="mark.write_text(str(os.getpid())); import time; time.sleep(600)")
FULL = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
from harness.study import main
sys.exit(main(["--space", "toy.py", "--device", "cpu"]))
"""
HANGS_FOR_EVER = """
from dataclasses import dataclass
import time
from harness.search import signals

signals.HUNG_SECONDS = 1


@dataclass(frozen=True)
class Hangs(transfer.LinearProbe):
    def lr_scales(self, num_groups, epoch):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})  # as in a call that never returns
        time.sleep(600)


def space(trial, strategy):"""
SUSPENDED = """
from dataclasses import dataclass


@dataclass(frozen=True)
class Suspended(transfer.LinearProbe):
    def lr_scales(self, num_groups, epoch):
        if not Path("mark").exists():
            Path("mark").touch()
            os.kill(os.getpid(), signal.SIGSTOP)
        return super().lr_scales(num_groups, epoch)


def space(trial, strategy):"""
SHORT_LEASES = """
import sys
from harness.search import leases
leases.GRACE_SECONDS = 2
from harness.study import main
sys.exit(main(["--space", "toy.py", "--device", "cpu"]))
"""
RACER = """
import sys
from pathlib import Path
from harness.record import PlainInfo, Recorder
from harness.search.storage import open_storage
print("ready", flush=True)
sys.stdin.readline()
Recorder(f"sqlite:///{sys.argv[1]}/mlflow.db", PlainInfo("toy"))
open_storage(f"sqlite:///{sys.argv[1]}/optuna.db")
"""


@pytest.fixture
def here(tmp_path: Path, mlflow_template: Path, optuna_template: Path) -> Path:
    (tmp_path / "mlruns").mkdir()
    (tmp_path / "mlruns" / "mlflow.db").write_bytes(mlflow_template.read_bytes())
    (tmp_path / "mlruns" / "optuna.db").write_bytes(optuna_template.read_bytes())
    return tmp_path


def verify(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        VERIFY, cwd=folder, env=environment(), capture_output=True, text=True, timeout=300
    )


def begin(folder: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*RUN, *options],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def hanging(folder: Path) -> int:
    """Wait until a trial hangs; returns its process."""
    wait_for(lambda: (folder / "mark").exists() and (folder / "mark").read_text() != "")
    return int((folder / "mark").read_text())


def go_on(folder: Path) -> None:
    done = run(folder)
    assert done.returncode == 0, done.stderr
    assert_whole(folder)
    found = verify(folder)
    assert found.returncode == 0, found.stdout + found.stderr


def test_2_ctrl_c_ends_all_workers_and_their_trials(here: Path) -> None:
    write_study(here, HANG)
    parent = begin(here, "--workers", "2")
    worker = hanging(here)
    os.killpg(parent.pid, signal.SIGINT)
    _, err = parent.communicate(timeout=240)
    assert parent.returncode == 130
    assert "stopped by Ctrl-C" in err
    assert not start_of(worker)
    found = verify(here)
    assert found.returncode == 1
    assert "wrong" not in found.stdout
    assert "unfinished: I3: " in found.stdout
    go_on(here)


def test_2_second_ctrl_c_does_not_wait_for_a_worker_that_does_not_listen(here: Path) -> None:
    deaf = "signal.signal(signal.SIGTERM, lambda *_: Path('asked').touch())"
    hangs = "mark.write_text(str(os.getpid())); import time; time.sleep(600)"
    write_study(here, ONCE.format(what=f"{deaf}; {hangs}"))
    text = (here / "toy.py").read_text()
    patient = (
        "from harness.search import workers\n\nworkers.PATIENCE_SECONDS = 3600\n\n\ndef space("
    )
    (here / "toy.py").write_text(text.replace("def space(", patient))
    parent = begin(here, "--workers", "2")
    worker = hanging(here)
    os.killpg(parent.pid, signal.SIGINT)
    wait_for((here / "asked").exists)
    os.killpg(parent.pid, signal.SIGINT)
    _, err = parent.communicate(timeout=240)
    assert parent.returncode == 130
    assert "Traceback" not in err
    assert not start_of(worker)
    go_on(here)


def test_4_worker_that_was_suspended_for_longer_than_its_lease_is_not_counted(here: Path) -> None:
    write_study(here)
    text = (here / "toy.py").read_text().replace("def space(trial, strategy):", SUSPENDED.strip())
    once = "Suspended() if trial.number == 2 else transfer.LinearProbe()"
    (here / "toy.py").write_text(text.replace("transfer.LinearProbe(),", f"{once},"))
    (here / "short.py").write_text(SHORT_LEASES)
    first = begin(here)
    wait_for(lambda: (here / "mark").exists())
    os.waitpid(first.pid, os.WUNTRACED)
    other = subprocess.run(
        [sys.executable, "short.py"],
        cwd=here,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert other.returncode == 0, other.stderr
    assert_whole(here)
    first.send_signal(signal.SIGCONT)
    _, err = first.communicate(timeout=240)
    assert first.returncode == 0, err
    assert_whole(here)
    assert verify(here).returncode == 0
    (lost,) = trials(here).query("outcome == 'killed'")["reason"]
    assert "took it over" in lost


def test_14_full_disk_ends_the_study_in_one_line_and_spoils_no_database(here: Path) -> None:
    write_study(here)
    size = max(p.stat().st_size for p in (here / "mlruns").iterdir())
    (here / "full.py").write_text(FULL)
    full = subprocess.run(
        [sys.executable, "full.py", str(size)],
        cwd=here,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert full.returncode in (1, 2)
    assert "Traceback" not in full.stderr
    for name in ("mlflow.db", "optuna.db"):
        with closing(sqlite3.connect(here / "mlruns" / name)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    go_on(here)


def test_16_eight_processes_start_on_no_database(tmp_path: Path) -> None:
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, str(tmp_path)],
            cwd=ROOT,
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(8)
    ]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    assert [racer.wait(300) for racer in racers] == [0] * 8
    for name in ("mlflow.db", "optuna.db"):
        with closing(sqlite3.connect(tmp_path / name)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    for racer in racers:
        racer.communicate()


def test_17_command_typed_twice_at_once_does_the_study_once(here: Path) -> None:
    write_study(here)
    pair = [begin(here), begin(here)]
    ends = [one.communicate(timeout=300) for one in pair]
    assert [one.returncode for one in pair] == [0, 0], ends
    assert_whole(here)
    found = verify(here)
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize("workers", [1, 2])
def test_30_trial_that_nothing_interrupts_ends_with_its_process(here: Path, workers: int) -> None:
    write_study(here)
    text = (
        (here / "toy.py").read_text().replace("def space(trial, strategy):", HANGS_FOR_EVER.strip())
    )
    once = "Hangs() if trial.number == 2 and strategy == 'a' else transfer.LinearProbe()"
    (here / "toy.py").write_text(text.replace("transfer.LinearProbe(),", f"{once},"))
    limits = ("--workers", str(workers), "--max-minutes", "0.2")
    done = run(here, *limits)
    assert "a, trial 2 took longer than --max-minutes, and could not be interrupted" in done.stderr
    assert "Traceback" not in done.stderr
    if workers == 1:
        assert done.returncode == 1
        done = run(here, *limits)
    assert done.returncode == 0, done.stderr
    found = trials(here)
    assert found["outcome"].value_counts().to_dict() == {"complete": 11, "timeout": 1}
    assert found.query("outcome == 'timeout'")["index"].tolist() == [2]
    assert verify(here).returncode == 0
