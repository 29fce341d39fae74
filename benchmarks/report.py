"""Time and memory for the report on 20,157 trials.

    python -m benchmarks.report [--tables ../shared/tables] [--folder build/report]

The trials are those on MedMNIST that others have published (docs/pages/medmnist.md). The tables are not part
of this project; they are read from --tables, else $HARNESS_TABLES, else ../shared/tables. The report is made
in a new process, whose start and imports count. Goal: under 20 s.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd

RUNS = "medmnist_hpo_runs.csv.gz"
SCORES = ("lp", "logme", "leep", "nleep", "parc", "sfda", "ncti")
GOAL = 20.0
MAPPING = """
name = "medmnist"
factors = ["source", "target"]
val = "val_auc"
val_loss = "val_loss"
select = "val_loss"
test = "test_auc"
metric = "AUC"
trial = "run"
status = "Status"
time = "minutes"
time_unit = "min"
memory = "gpu_mem_used_mb"
device = "gpu_letter"
parameters = ["lr", "momentum", "wd", "batch_size"]
"""
BUILD = """
import json, resource, sys, time
begin = time.perf_counter()
from analysis.report import main
sys.stdout = sys.stderr
code = main(sys.argv[1:])
seconds = time.perf_counter() - begin
used = resource.getrusage(resource.RUSAGE_SELF)
took = {"seconds": round(seconds, 2), "cpu_seconds": round(used.ru_utime + used.ru_stime, 2)}
print(json.dumps(took | {"peak_mib": round(used.ru_maxrss / 1024)}), file=sys.__stdout__)
sys.exit(code)
"""
"""Run in a process of its own, because the peak memory of a process cannot be reset."""


def main() -> int:
    """Make the report, and print time and memory as one line of JSON; returns 2 if the tables are missing."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    default = Path(os.environ.get("HARNESS_TABLES", "../shared/tables"))
    parser.add_argument("--tables", type=Path, default=default)
    parser.add_argument("--folder", type=Path, default=Path("build/report"))
    options = parser.parse_args()
    if not (options.tables / RUNS).is_file():
        print(
            f"error: no {RUNS} in {options.tables}: give --tables, or set HARNESS_TABLES",
            file=sys.stderr,
        )
        return 2
    options.folder.mkdir(parents=True, exist_ok=True)
    mapping, measures = options.folder / "medmnist.toml", options.folder / "similarity.csv"
    mapping.write_text(MAPPING, encoding="utf-8")
    melted(options.tables).to_csv(measures, index=False)
    trials = len(pd.read_csv(options.tables / RUNS, usecols=["run"]))
    command = [sys.executable, "-c", BUILD, "--table", str(options.tables / RUNS)]
    command += ["--mapping", str(mapping), "--measures", str(measures)]
    done = subprocess.run(
        [*command, "--out", str(options.folder)], stdout=subprocess.PIPE, text=True, check=True
    )
    took = json.loads(done.stdout)
    print(json.dumps({"trials": trials, **took, "goal": GOAL, "reached": took["seconds"] < GOAL}))
    return 0


def melted(tables: Path) -> pd.DataFrame:
    """A table with source, target and one column for each published measure, from its matrix."""
    parts = []
    for name in SCORES:
        wide = pd.read_csv(tables / f"medmnist_{name}_dataset.csv", index_col=0)
        long = wide.melt(id_vars="source", var_name="target", value_name=name)
        parts.append(long.set_index(["source", "target"])[name])
    return pd.concat(parts, axis="columns").reset_index()


if __name__ == "__main__":
    sys.exit(main())
