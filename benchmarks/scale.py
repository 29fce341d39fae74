"""A study of 20,000 trials that train nothing: overhead, memory, and how long its commands take afterwards.

    python -m benchmarks.scale                    # about 20 minutes
    python -m benchmarks.scale --trials 500

Prints a table of goals, and then one line of JSON: what `benchmarks.overhead` prints; `early_mib` and
`late_mib`, the resident memory of the process after a tenth of the trials and after the last one; and the
seconds that the same command takes to resume (there is nothing left to do), the status, and the report.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from benchmarks import tables
from benchmarks.overhead import FILE, Spent, summary
from benchmarks.tables import Goal

NAME = FILE.stem
SECONDS = {"resume": 20.0, "status": 2.0, "report": 60.0}
"""Goals for the time of the commands."""


def seconds(*command: str) -> float:
    """How long a command takes, with its imports."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", *command], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def goals(line: Mapping[str, float]) -> list[Goal]:
    """What was measured against what is wanted."""
    found = []
    for name, unit in (("overhead", "ms"), ("memory", "mib")):
        early, late = line[f"early_{unit}"], line[f"late_{unit}"]
        goal = f"{name} late within {tables.SAME:g}x of early"
        text = f"{late / early:.2f}x ({early:.0f}, then {late:.0f} {unit.replace('mib', 'MiB')})"
        found.append(Goal("scale", goal, text, late <= tables.SAME * early))
    for name, most in SECONDS.items():
        taken = line[f"{name}_s"]
        goal = f"{name} in under {most:g} s"
        found.append(Goal("scale", goal, f"{taken:.1f} s", taken < most))
    return found


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale")
    parser.add_argument("--trials", type=int, default=20_000)
    trials = parser.parse_args().trials
    with tempfile.TemporaryDirectory() as folder:
        spent = Spent.of(trials, Path(folder))
        store = ("--tracking-uri", f"sqlite:///{folder}/mlflow.db")
        effort = ("--trials", str(trials), "--repeats", "0", "--quiet")
        line = {
            **summary(spent),
            "early_mib": spent.resident_mib[trials // 10],
            "late_mib": spent.resident_mib[-1],
            "resume_s": seconds("harness.study", "--space", str(FILE), *effort, *store),
            "status_s": seconds("harness.status", "--study", NAME, *store),
            "report_s": seconds(
                "analysis.report", "--study", NAME, *store, "--out", f"{folder}/report"
            ),
        }
    print(tables.goals_table(goals(line)))
    print(json.dumps(line))


if __name__ == "__main__":
    main()
