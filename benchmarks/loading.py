"""Time and memory for reading a large study.

    python -m benchmarks.loading [--trials 100000] [--folder build/loading]

Writes an MLflow database with that many finished trials (4 epochs each, with the parameters and tags of a
real trial) by bulk insert, unless the folder has it already, and reads it with `analysis.load` in a new
process. Goal: 100,000 trials in under 30 s, with memory bounded by the size of the resulting tables.
"""

from __future__ import annotations

import argparse
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np

from harness.core.records import StudyInfo
from harness.core.spec import TrialSpec
from harness.core.strategies import LinearProbe
from harness.tracking.contents import experiment_tags
from harness.tracking.experiment import open_store

CELLS = [f"arm {i}" for i in range(20)]
EPOCHS = 4
STUDY = "large"
PER_EPOCH = ("train_loss", "val_loss", "val_accuracy", "train_seconds", "marginal_seconds")
FINAL = ("total_seconds", "trainable_share", "trained_depth", "peak_process_rss_mib")
READ = """
import json, resource, sys, time
begin = time.perf_counter()
from analysis.load import load_study
start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
table = load_study(sys.argv[1], sys.argv[2])
seconds = time.perf_counter() - begin
frames = (table.trials, table.epochs, table.predictions)
print(json.dumps({
    "trials": len(table.trials), "epochs": len(table.epochs), "seconds": round(seconds, 2),
    "imports_mib": round(start), "tables_mib": round(sum(f.memory_usage().sum() for f in frames) / 2**20),
    "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
}))
"""
"""Run in a process of its own, because the peak memory of a process cannot be reset."""


def main() -> None:
    """Create the database if necessary, read it, and print time and memory as one line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loading", description=__doc__)
    parser.add_argument("--trials", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, default=Path("build/loading"))
    options = parser.parse_args()
    path = options.folder / f"{options.trials}.db"
    if not path.exists():
        make_database(path, options.trials)
    command = [sys.executable, "-c", READ, STUDY, f"sqlite:///{path.resolve()}"]
    print(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())


def make_database(path: Path, trials: int) -> None:
    """Write `trials` complete tuning trials of one study to `path`, with the same random numbers every
    time."""
    work = path.with_suffix(".part")
    work.unlink(missing_ok=True)
    open_store(f"sqlite:///{work}")
    info = StudyInfo(
        STUDY, "How large?", "python -m benchmarks.loading", {"strategy": CELLS}, {}, trials, 0,
        "random", 0, (), "", "0" * 64,
    )  # fmt: skip
    params = {k: str(v) for k, v in TrialSpec("digits", "resnet18", LinearProbe()).flat().items()}
    with closing(sqlite3.connect(work)) as connection:
        cursor = connection.execute(
            "INSERT INTO experiments (name, artifact_location, lifecycle_stage) VALUES (?, '', 'active')",
            (STUDY,),
        )
        experiment = cursor.lastrowid
        connection.executemany(
            "INSERT INTO experiment_tags (key, value, experiment_id) VALUES (?, ?, ?)",
            [(key, value, experiment) for key, value in experiment_tags(info).items()],
        )
        for start in range(0, trials, 1000):
            _insert(connection, experiment, range(start, min(start + 1000, trials)), params)
        connection.commit()
    work.rename(path)


def _insert(
    connection: sqlite3.Connection, experiment: int | None, numbers: range, params: dict[str, str]
) -> None:
    random = np.random.default_rng(numbers.start)
    runs, tags, settings, latest, history = [], [], [], [], []
    for number in numbers:
        run, at = f"{number:032x}", 1_700_000_000_000 + 1000 * number
        cell = CELLS[number % len(CELLS)]
        runs.append((run, run, "LOCAL", "FINISHED", at, at + 900, "active", "", experiment))
        said: dict[str, object] = {
            "study": STUDY,
            "cell": cell,
            "strategy": cell,
            "phase": "tune",
            "outcome": "complete",
        }
        said |= {"index": number // len(CELLS), "seed": number, "attempt": 1, "device": "cpu"}
        said |= {
            "threads": 1,
            "env.torch": "2.14.0",
            "env.python": "3.12.1",
            "prefix": "nothing kept",
        }
        tags += [(key, str(value), run) for key, value in said.items()]
        tuned = {**params, "lr": repr(10 ** random.uniform(-4, -1)), "seed": str(number)}
        settings += [(key, value, run) for key, value in tuned.items()]
        values = random.random((EPOCHS, len(PER_EPOCH)))
        for step, row in enumerate(values):
            history += [(k, v, at + step, run, step) for k, v in zip(PER_EPOCH, row, strict=True)]
        last = [*zip(PER_EPOCH, values[-1], strict=True), *((k, 0.5) for k in FINAL)]
        latest += [(key, float(value), at, 0, run) for key, value in last]
    for table, columns, rows in (
        ("runs", "run_uuid, name, source_type, status, start_time, end_time, lifecycle_stage, "
         "artifact_uri, experiment_id", runs),
        ("tags", "key, value, run_uuid", tags),
        ("params", "key, value, run_uuid", settings),
        ("latest_metrics", "key, value, timestamp, step, is_nan, run_uuid",
         [(k, v, t, s, False, r) for k, v, t, s, r in latest]),
        ("metrics", "key, value, timestamp, run_uuid, step, is_nan", [(*row, False) for row in history]),
    ):  # fmt: skip
        marks = ", ".join("?" * (columns.count(",") + 1))
        connection.executemany(f"INSERT INTO {table} ({columns}) VALUES ({marks})", rows)


if __name__ == "__main__":
    main()
