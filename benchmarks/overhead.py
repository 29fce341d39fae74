"""Overhead of the harness per trial: trials that train nothing, recorded in Optuna and MLflow on SQLite.

    python -m benchmarks.overhead --trials 5000

Prints one line of JSON: the median milliseconds from one finished trial to the next, early (trials 5 to
55) and late (the last 50), and those of similar calls of Optuna and MLflow without the harness. Both take
turns, trial by trial, so that their ratio does not depend on the machine.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median

import optuna
from mlflow.entities import Metric, Param
from mlflow.tracking import MlflowClient

from harness.core.results import EpochResult, TrialResult
from harness.core.spec import TrialSpec
from harness.core.study_file import load_study, study_file_tags
from harness.search.coordinator import Coordinator, RunContext
from harness.search.executors.inline import Inline
from harness.search.launch import study_info
from harness.search.options import StudyOptions
from harness.search.record import Record
from harness.search.space import quiet_optuna
from harness.search.storage import open_storage
from harness.tracking.experiment import open_store
from harness.tracking.projection import Projection
from harness.training.device import Device
from harness.training.fit import Fit
from harness.training.trial import Messages, TrialTask, run_trial

FILE = Path(__file__).with_name("one_cell.py")
EARLY = slice(5, 55)
LATE = slice(-50, None)


class Nothing:
    """A trial of one epoch that trains nothing."""

    def __init__(self, spec: TrialSpec, device: Device, *_: object, **__: object) -> None:
        self._device = device

    def __iter__(self) -> Iterator[EpochResult]:
        yield EpochResult(0, 0.5, 0.5, 0.5, 0.5, 0.5)

    def finish(self, test: bool) -> TrialResult:
        metrics = {"trainable_share": 1.0, "trained_depth": 1.0, "total_seconds": 0.0}
        return TrialResult("complete", {**metrics, "train_seconds": 0.0})


def run_nothing(task: TrialTask) -> Messages:
    """The messages of a trial that trains nothing."""
    begin: Callable[..., Fit] = Nothing  # type: ignore[assignment] # as much of one as is asked for
    return run_trial(task, begin)


class Libraries:
    """What Optuna and MLflow take to record such trials, called directly on stores with the same settings.

    Args:
        folder: folder for both stores.

    Attributes:
        seconds: wall seconds of each trial.
    """

    def __init__(self, folder: Path) -> None:
        self.seconds: list[float] = []
        with quiet_optuna():
            self._study = optuna.create_study(
                storage=open_storage(f"sqlite:///{folder}/optuna.db"),
                sampler=optuna.samplers.RandomSampler(),  # as in the study
            )
        open_store(uri := f"sqlite:///{folder}/mlflow.db")
        self._client = MlflowClient(uri)
        location = folder.as_uri()
        self._experiment = self._client.create_experiment("alone", artifact_location=location)

    def record(self) -> None:
        """Record one trial with as many values as one of the harness has."""
        tags = {f"tag_{i}": "text" for i in range(30)}
        params = [Param(f"parameter_{i}", "text") for i in range(30)]
        metrics = [Metric(f"metric_{i}", 0.5, 0, 0) for i in range(10)]
        began = time.perf_counter()
        trial = self._study.ask()
        trial.suggest_float("lr", 3e-4, 3e-2, log=True)
        trial.suggest_float("weight_decay", 1e-4, 1e-1, log=True)
        for name in ("slot", "task", "result"):
            trial.set_user_attr(name, tags)
        trial.report(0.5, 0)
        self._study.tell(trial, 0.5)
        run = self._client.create_run(self._experiment, tags=tags)
        self._client.log_batch(run.info.run_id, metrics, params, [])
        self._client.set_terminated(run.info.run_id)
        self.seconds.append(time.perf_counter() - began)


@dataclass(frozen=True)
class Spent:
    """What a study of trials that train nothing took.

    Attributes:
        seconds: wall seconds between one finished trial and the next, one fewer than there are trials.
        resident_mib: resident memory of this process after each trial.
    """

    seconds: list[float]
    resident_mib: list[float]

    @staticmethod
    def of(trials: int, folder: Path, libraries: Libraries | None = None) -> Spent:
        """Run that many trials, with both stores in the folder, taking turns with the libraries alone."""
        study = dataclasses.replace(load_study(FILE), trials=trials)
        info, tags = study_info(study, FILE, StudyOptions()), study_file_tags(FILE)
        seconds, resident = list[float](), list[float]()
        began = None
        with quiet_optuna():
            record = Record(open_storage(f"sqlite:///{folder}/optuna.db"), folder)
            projection = Projection(f"sqlite:///{folder}/mlflow.db", info, record)
            context = RunContext(record, projection, tags=tags)
            for done in Coordinator(study, info, context, Inline(run_nothing)).run():
                assert done.trial is not None
                assert done.trial.outcome == "complete", done.trial.reason
                if began is not None:
                    seconds.append(time.perf_counter() - began)
                resident.append(_resident_mib())
                if libraries is not None:
                    libraries.record()
                began = time.perf_counter()
        return Spent(seconds, resident)


def _resident_mib() -> float:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:  # no Linux
        return math.nan
    return pages * resource.getpagesize() / 2**20


def summary(spent: Spent) -> dict[str, float]:
    """Median milliseconds per trial early and late, their mean, and the seconds of all."""
    each = [1000 * s for s in spent.seconds]
    return {
        "early_ms": median(each[EARLY]),
        "late_ms": median(each[LATE]),
        "mean_ms": mean(each),
        "trials": len(each) + 1,
        "seconds": sum(spent.seconds),
    }


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overhead")
    parser.add_argument("--trials", type=int, default=5000)
    trials = parser.parse_args().trials
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as other:
        alone = Libraries(Path(other))
        spent = Spent.of(trials, Path(folder), alone)
    theirs = [1000 * s for s in alone.seconds]
    shares = {"early_alone_ms": median(theirs[EARLY]), "late_alone_ms": median(theirs[LATE])}
    print(json.dumps(summary(spent) | shares))


if __name__ == "__main__":
    main()
