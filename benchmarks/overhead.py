"""Overhead of the harness per trial: trials that train nothing, recorded in Optuna and MLflow on SQLite.

    python -m benchmarks.overhead --trials 5000

Prints one line of JSON: the median milliseconds from one finished trial to the next, early (trials 5 to
55) and late (the last 50).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from statistics import mean, median

from harness.core.results import EpochResult, TrialResult
from harness.core.spec import TrialSpec
from harness.core.study import Study
from harness.core.study_file import load_study, study_file_tags
from harness.search.coordinator import Coordinator, RunContext
from harness.search.executors.inline import Inline
from harness.search.launch import study_info
from harness.search.options import StudyOptions
from harness.search.record import Record
from harness.search.space import quiet_optuna
from harness.search.storage import open_storage
from harness.tracking.projection import Projection
from harness.training.device import Device
from harness.training.fit import Fit
from harness.training.trial import Messages, TrialTask, run_trial

ROOT = Path(__file__).parents[1]
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


def one_cell(trials: int) -> Study:
    """The linear probe of the default study."""
    study = load_study(ROOT / "studies" / "freeze_depth.py")
    cell = next(iter(study.compare["strategy"]))
    return dataclasses.replace(
        study, compare={"strategy": [cell]}, baseline={}, trials=trials, repeats=0
    )


def run_nothing(task: TrialTask) -> Messages:
    """The messages of a trial that trains nothing."""
    begin: Callable[..., Fit] = Nothing  # type: ignore[assignment] # as much of one as is asked for
    return run_trial(task, begin)


def seconds_per_trial(trials: int) -> list[float]:
    """Wall seconds between one finished trial and the next, `trials` - 1 of them."""
    study = one_cell(trials)
    path = ROOT / "studies" / "freeze_depth.py"
    info, tags = study_info(study, path, StudyOptions()), study_file_tags(path)
    with tempfile.TemporaryDirectory() as folder, quiet_optuna():
        record = Record(open_storage(f"sqlite:///{folder}/optuna.db"), Path(folder))
        projection = Projection(f"sqlite:///{folder}/mlflow.db", info, record)
        context = RunContext(record, projection, tags=tags)
        ends = []
        for done in Coordinator(study, info, context, Inline(run_nothing)).run():
            assert done.trial is not None
            assert done.trial.outcome == "complete", done.trial.reason
            ends.append(time.perf_counter())
    return [after - before for before, after in pairwise(ends)]


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overhead")
    parser.add_argument("--trials", type=int, default=5000)
    trials = parser.parse_args().trials
    spent = [1000 * s for s in seconds_per_trial(trials)]
    line = {
        "early_ms": median(spent[EARLY]),
        "late_ms": median(spent[LATE]),
        "mean_ms": mean(spent),
        "trials": trials,
    }
    print(json.dumps({**line, "seconds": sum(spent) / 1000}))


if __name__ == "__main__":
    main()
