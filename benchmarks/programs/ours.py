"""This harness: `python -m harness.study` on one task, or on the default study, with new databases and an
empty cache.

    python -m benchmarks.programs.ours --work default_study --no-reuse

In addition to what every program prints, `runs` has the final validation and test accuracy of every trial and
repeat by name, so that two ways of running a study can be compared.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import sys
import tempfile
from pathlib import Path

from analysis.load import load_study
from benchmarks import recipe
from benchmarks.programs.common import Task, measure
from harness import study

# What the command imports late: imports do not count, as for all programs. (`first_result` counts them.)
LATE = (
    "alembic.command",
    "harness.search.launch",
    "harness.search.executors.inline",
    "harness.tracking.study_runs",
    "mlflow.store.tracking.sqlalchemy_store",
    "optuna.storages",
    "optuna.storages._rdb.storage",
    "rich.progress",
    "scipy.stats",
)
for name in LATE:
    importlib.import_module(name)

ROOT = Path(__file__).parents[2]
DEFAULT_STUDY = ROOT / "studies" / "freeze_depth.py"


def cache_flags(folder: Path, reuse: bool) -> list[str]:
    """Options for a new, empty cache, or for no cache."""
    return ["--cache-dir", str(folder), *([] if reuse else ["--cache-budget", "0"])]


def run(task: Task, reuse: bool, repeats: int | None, runs: dict[str, float]) -> list[float]:
    """Run the whole command, and fill `runs`."""
    space = ROOT / "benchmarks" / "study.py"
    os.environ |= {"BENCHMARK_WORK": task.work, "BENCHMARK_DATA": str(task.data)}
    if task.work == "default_study":
        space = DEFAULT_STUDY
    with tempfile.TemporaryDirectory() as folder:
        uri = f"sqlite:///{folder}/mlruns/mlflow.db"
        command = ["--space", str(space), "--device", "cpu", "--tracking-uri", uri]
        command += ["--trials", str(task.trials)] if task.trials else []
        command += ["--repeats", str(repeats)] if repeats is not None else []
        with contextlib.redirect_stdout(sys.stderr):
            code = study.main(command + cache_flags(Path(folder) / "cache", reuse))
        if code:
            raise SystemExit(code)
        trials = load_study(space.stem, uri).trials
    for row in trials.sort_values(["cell", "phase", "index"]).itertuples():
        for kind in ("val_accuracy", "test_accuracy"):
            value = getattr(row, kind)
            if value == value:  # a tuning trial has no test accuracy
                runs[f"{row.cell}, {row.phase} {row.index}, {kind}"] = float(value)
    return [float(x) for x in trials.loc[trials["phase"] == "tune", "val_accuracy"]]


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", required=True, choices=(*recipe.WORKS, "default_study"))
    parser.add_argument("--trials", type=int, default=0, help="0: as the study file says")
    parser.add_argument("--repeats", type=int, help="of the default study")
    parser.add_argument("--data", type=Path, default=Path())
    parser.add_argument("--no-reuse", action="store_true", help="compute everything anew each time")
    arguments = parser.parse_args()
    task = Task(arguments.work, arguments.trials, arguments.data.resolve())
    runs: dict[str, float] = {}
    reuse = not arguments.no_reuse
    measure(
        task,
        lambda: run(task, reuse, arguments.repeats, runs),
        workers=0,
        runs=runs,
    )


if __name__ == "__main__":
    main()
