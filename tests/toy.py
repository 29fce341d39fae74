"""A study whose training is a stand-in with real stores, for tests of what is recorded; and the real command
on a study that trains for a moment, for tests of processes."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pandas as pd

from analysis.load import load_study
from harness.core.records import StudyInfo
from harness.core.study import Study
from harness.search.coordinator import SlotDone
from harness.search.sampling import sampler_of
from harness.search.storage import open_storage
from harness.study import main
from tests import lab
from tests.lab import Lab, World, info_of
from tests.processes import environment

ROOT = Path(__file__).parents[1]


def make_study(**changes: Any) -> Study:
    """Two cells of two trials and one repeat."""
    return lab.make_study(**{"trials": 2, "repeats": 1, **changes})


STUDY = make_study()
SMALL = make_study(compare={"strategy": ["probe"]}, trials=1)


class Place(Lab):
    """The two stores of a folder, opened again by every run as by a new process."""

    def __init__(self, folder: Path, **info: Any) -> None:
        self.mlflow, self.optuna = folder / "mlflow.db", folder / "optuna.db"
        self.url = f"sqlite:///{self.optuna}"
        self._info = info
        super().__init__(World(), folder, f"sqlite:///{self.mlflow}")

    def storage(self) -> optuna.storages.BaseStorage:
        return open_storage(self.url)

    def info(self, study: Study) -> StudyInfo:
        return info_of(study, **self._info)

    def events(self, study: Study = STUDY, **options: Any) -> Iterator[SlotDone]:
        return super().events(study, **options)

    def run(self, study: Study = STUDY, **options: Any) -> list[SlotDone]:
        return super().run(study, **options)

    def assert_whole(self, study: Study = STUDY) -> None:
        """Every slot is complete once in both stores, every attempt is in both, and nothing is open."""
        assert_whole(self.folder, study)


def assert_whole(folder: Path, study: Study) -> None:
    """The same of any folder, without the harness's own view of either store."""
    place = Place(folder)
    slots = {
        (cell["strategy"], phase, index)
        for cell in study.cells()
        for phase, count in (("tune", study.trials), ("repeat", study.repeats))
        for index in range(count)
    }
    assert [r.data.tags for r in place.every_run() if r.info.status == "RUNNING"] == []
    shown = Counter(
        (r.data.tags["cell"], r.data.tags["phase"], int(r.data.tags["index"]))
        for r in place.runs(outcome="complete")
    )
    assert shown == dict.fromkeys(slots, 1)
    storage, kept, attempts = open_storage(place.url), Counter[tuple[str, str, int]](), 0
    for name in optuna.get_all_study_names(storage):
        for trial in optuna.load_study(study_name=name, storage=storage).trials:
            assert trial.state.is_finished(), name
            attempts += "slot" in trial.user_attrs
            if trial.state == optuna.trial.TrialState.COMPLETE:
                cell, *phase = name.removeprefix("toy/").split("/")
                index = trial.user_attrs["slot"]["index"]
                kept[cell, "repeat" if phase else "tune", index] += 1
    assert kept == dict.fromkeys(slots, 1)
    assert len(place.runs()) == attempts


# --- the real command ------------------------------------------------------------------------------

COMMAND = '''"""Does it run?"""
import os, signal, time
from dataclasses import dataclass
from pathlib import Path

from harness import Study, TrialSpec, strategies


def once(name):
    """True for the first process that asks."""
    try:
        os.close(os.open(name, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


@dataclass(frozen=True)
class Troubled(strategies.LinearProbe):
    lr: float = 0.0

    def lr_scales(self, num_groups, epoch):
        if self.lr == {troubled}:
            {trouble}
        return super().lr_scales(num_groups, epoch)


def space(trial, strategy):
    lr = trial.suggest_float("lr", 1e-3, 1e-1, log=True)
    chosen = Troubled(lr) if strategy == "b" else strategies.LinearProbe()
    return TrialSpec(
        target="digits", backbone="small_cnn", strategy=chosen, source="scratch",
        shots=2, val_shots=2, test_shots=2, resolution=28, epochs={epochs}, batch_size=4, lr=lr,
    )


study = Study(compare={{"strategy": ["a", "b"]}}, space=space, trials={trials}, repeats=1, name="toy")
'''
RUN = [sys.executable, "-m", "harness.study", "--space", "toy.py", "--device", "cpu"]
SYNC = [sys.executable, "-m", "harness.sync", "--study", "toy"]


def write_study(folder: Path, trouble: str = "", trials: int = 3, epochs: int = 2) -> Study:
    """A study of which trial 1 of cell "b" is in trouble at each epoch; as the command will see it."""
    study = make_study(compare={"strategy": ["a", "b"]}, trials=trials)
    drawn = optuna.create_study(sampler=sampler_of(study, {"strategy": "b"}, 1)).ask()
    troubled = drawn.suggest_float("lr", 1e-3, 1e-1, log=True)
    text = COMMAND.format(
        trouble=trouble or "pass", troubled=troubled, trials=trials, epochs=epochs
    )
    (folder / "toy.py").write_text(text)
    return study


def call(folder: Path, command: list[str], *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*command, *options], cwd=folder, env=environment(), capture_output=True, text=True, timeout=300
    )  # fmt: skip


def begin(folder: Path, *options: str) -> subprocess.Popen[str]:
    """The study's command, in a process group of its own."""
    return subprocess.Popen(
        [*RUN, *options], cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip


def go_on(folder: Path, study: Study, *options: str) -> str:
    """Type the command again: everything is done then. Returns what it said."""
    done = call(folder, RUN, *options)
    assert done.returncode == 0, done.stderr
    assert_whole(folder / "mlruns", study)
    return done.stderr


def resume(folder: Path, study: Study) -> str:
    """As `go_on`, in this process, which imports nothing anew. It has not run the study, so what it knows is
    in the folder."""
    said = io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stderr(said):
        code = main(RUN[3:])
    assert code == 0, said.getvalue()
    assert_whole(folder / "mlruns", study)
    return said.getvalue()


def trials_of(folder: Path) -> pd.DataFrame:
    """What the report reads."""
    found = load_study("toy", f"sqlite:///{folder}/mlruns/mlflow.db").trials
    return found.sort_values(["cell", "phase", "index"]).reset_index(drop=True)


def results(folder: Path) -> pd.DataFrame:
    """What must not depend on how the study was run."""
    complete = trials_of(folder).query("outcome == 'complete'").reset_index(drop=True)
    return complete[["cell", "phase", "index", "seed", "param.lr", "val_loss", "test_loss"]]


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str] | None = None) -> None:
    end = time.monotonic() + 240
    while not condition():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def is_alive(process: int) -> bool:
    """False for a process that has ended, also if nobody has asked for its exit code."""
    try:
        return "State:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False


def kill(process: int) -> None:
    os.kill(process, signal.SIGKILL)
