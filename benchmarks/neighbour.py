"""Time of a full fine-tuning trial while another program keeps a core busy, as a multiple of its quiet time.

    python -m benchmarks.neighbour               # on two otherwise idle cores

Measured for one process with two threads, and for two processes with one thread each, as with `--workers 2`;
with the number of spins that the harness sets (`harness.core.caller`), and with OpenMP's own, of which the
former must not be slower when nothing else runs. Prints one line of JSON; conditions take turns in rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from itertools import product
from statistics import median

from harness.core.caller import WAITING, set_variables

OPENMP = {"GOMP_SPINCOUNT": "300000"}
"""What GNU's OpenMP does unless it is told otherwise (gcc.gnu.org/onlinedocs/libgomp)."""
BUSY = "while True: pass"


def train() -> float:
    """Seconds of training of the second of two equal trials."""
    set_variables()
    from harness.core.spec import TrialSpec
    from harness.core.strategies import FullFineTune
    from harness.training.trial import TrialResult, TrialTask, run_trial

    spec = TrialSpec(
        target="digits",
        backbone="tf_efficientnet_lite0",
        strategy=FullFineTune(),
        shots=30,
        val_shots=5,
        test_shots=5,
        resolution=48,
        epochs=2,
        batch_size=16,
    )
    seconds = 0.0
    for _ in range(2):
        for message in run_trial(TrialTask(spec)):
            if isinstance(message, TrialResult):
                assert message.outcome == "complete", message.reason
                seconds = message.metrics["train_seconds"]
    return seconds


def measure(processes: int, ours: bool, busy: bool) -> float:
    """Mean seconds over the processes, which run at the same time; together they have two threads."""
    known = {k: v for k, v in os.environ.items() if k not in WAITING}
    # torch reads both variables.
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(2 // processes))
    variables = {**known, **threads, **({} if ours else OPENMP)}
    neighbour = subprocess.Popen([sys.executable, "-c", BUSY]) if busy else None
    command = [sys.executable, "-m", __spec__.name, "--train"]
    try:
        running = [
            subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, text=True)
            for _ in range(processes)
        ]
        printed = [process.communicate()[0] for process in running]
    finally:
        if neighbour is not None:
            neighbour.kill()
            neighbour.wait()
    return sum(map(float, printed)) / processes


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.neighbour")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--train", action="store_true", help="train in this process and print seconds"
    )
    arguments = parser.parse_args()
    if arguments.train:
        print(train())
        return
    conditions = list(product((1, 2), (True, False), (False, True)))
    rounds = [[measure(*c) for c in conditions] for _ in range(arguments.rounds)]
    seconds = dict(zip(conditions, map(median, zip(*rounds, strict=True)), strict=True))
    line = {
        "seconds": seconds[1, True, False],
        "threads_busy": seconds[1, True, True] / seconds[1, True, False],
        "threads_busy_before": seconds[1, False, True] / seconds[1, False, False],
        "threads_quiet": seconds[1, True, False] / seconds[1, False, False],
        "workers_busy": seconds[2, True, True] / seconds[2, True, False],
        "workers_quiet": seconds[2, True, False] / seconds[2, False, False],
        "rounds": arguments.rounds,
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
