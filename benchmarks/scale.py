"""How many workers does each storage bear? Measured with trials that only sleep, beyond that modelled.

    python -m benchmarks.scale --measure benchmarks/results/scale.csv
    python -m benchmarks.scale --draw docs/pages/images/scale.png

Every trial sleeps and does what the runner makes of a trial: it takes a slot, reports, ends. MLflow is left
out: each worker writes to nothing, so that the storage of the search is all that is shared. PostgreSQL is
started from Debian's packages, and left out where it is not installed.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.overhead import Nothing, one_cell
from benchmarks.postgres import Server
from harness.measure import resolve_device
from harness.results import EpochResult
from harness.search import attempt
from harness.search.bench import Bench
from harness.search.leases import Owner, Watch
from harness.search.runner import run_study
from harness.search.storage import open_storage
from harness.spec import Study

WORKERS = (1, 2, 4, 8, 16)
TRIALS_PER_WORKER = 8
SLEEP_SECONDS = 1.0
STORAGES = ("SQLite", "journal file", "PostgreSQL")
RESULTS = Path(__file__).parent / "results" / "scale.csv"


class Nowhere:
    """A recorder that writes nothing."""

    def start(self, *_: object) -> str:
        """A run without a name."""
        return "none"

    def unfinished(self) -> dict[str, str]:
        """No runs."""
        return {}

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


class Sleep(Nothing):
    """A trial of one epoch that sleeps."""

    def __iter__(self) -> Iterator[EpochResult]:
        time.sleep(SLEEP_SECONDS)
        yield from super().__iter__()


def work(url: str, study: Study, begin: Any, ends: Any) -> None:
    """One worker, from the moment at which all are ready; says when it ended its last trial."""
    bench = Bench(
        open_storage(url),
        Nowhere(),  # type: ignore[arg-type]
        resolve_device("cpu"),
        {},
        watch=Watch(Owner.here("scale")),
    )
    end = 0.0
    begin.wait()
    with patch.object(attempt, "start", Sleep), patch.object(attempt, "forecast", _no_forecast):
        for done in run_study(study, bench):
            if done.result is not None:
                end = time.monotonic()
    ends.put(end)


def _no_forecast(_: object) -> Any:
    return argparse.Namespace(peak_mib=0.0)


def seconds(url: str, workers: int) -> float:
    """Wall seconds for TRIALS_PER_WORKER trials of each worker."""
    study = dataclasses.replace(one_cell(workers * TRIALS_PER_WORKER), name=f"scale{workers}")
    open_storage(url)  # the tables
    context = multiprocessing.get_context("fork")  # one import of torch for all
    begin, ends = context.Barrier(workers + 1), context.Queue()
    processes = [
        context.Process(target=work, args=(url, study, begin, ends)) for _ in range(workers)
    ]
    for process in processes:
        process.start()
    begin.wait()
    start = time.monotonic()  # one clock for all processes of a machine
    last = max(ends.get(timeout=600) for _ in processes)
    for process in processes:
        process.join()
    return float(last - start)


def measure() -> Iterator[dict[str, object]]:
    """One line per storage and number of workers."""
    with tempfile.TemporaryDirectory() as folder:
        urls = {"SQLite": f"sqlite:///{folder}/o.db", "journal file": f"journal:{folder}/journal"}
        server = None
        try:
            server = Server()
            urls["PostgreSQL"] = server.url
        except FileNotFoundError as error:
            print(error)
        try:
            for storage, url in urls.items():
                for workers in WORKERS:
                    spent, trials = seconds(url, workers), workers * TRIALS_PER_WORKER
                    line: dict[str, object] = {
                        "storage": storage, "workers": workers, "trials": trials,
                        "seconds": round(spent, 3), "cores": os.cpu_count() or 1,
                        "load": round(os.getloadavg()[0], 1),
                    }  # fmt: skip
                    print(line)
                    yield line
        finally:
            if server:
                server.remove()


def service_seconds(lines: Sequence[dict[str, str]], storage: str) -> tuple[float, float]:
    """Seconds of a trial that the storage costs a worker alone, and seconds of it that cannot overlap.

    The first is what one worker's trial takes beyond its sleep. The second is that of the best throughput
    measured with any number of workers: the storage bears at least that.
    """
    mine = {
        int(x["workers"]): float(x["seconds"]) / int(x["trials"])
        for x in lines
        if x["storage"] == storage
    }
    alone = mine[1] - SLEEP_SECONDS
    return alone, min(mine.values())


def throughput(workers: float, trial_seconds: float, alone: float, serial: float) -> float:
    """Trials a second, modelled: workers in parallel until the storage, one at a time, is full.

    The bound of a closed queueing network with one server: min(N / (R + D), 1 / D_max), see Lazowska et al.,
    Quantitative System Performance (1984), chapter 5.
    """
    return min(workers / (trial_seconds + alone), 1 / serial)


def draw(lines: Sequence[dict[str, str]], path: Path) -> None:
    """Overhead per trial as measured, and throughput as modelled for trials of a second and of a minute."""
    import matplotlib

    matplotlib.use("Agg")
    import numpy as np
    import seaborn as sns
    from matplotlib import pyplot as plt

    sns.set_theme(style="whitegrid")
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    colours = dict(zip(STORAGES, sns.color_palette("colorblind"), strict=False))
    for storage, marker in zip(STORAGES, "os^", strict=True):
        mine = [x for x in lines if x["storage"] == storage]
        if not mine:
            continue
        workers = np.array([int(x["workers"]) for x in mine])
        per_worker = np.array([float(x["seconds"]) for x in mine]) / TRIALS_PER_WORKER
        style = {"color": colours[storage], "marker": marker, "label": storage}
        left.plot(workers, 1000 * (per_worker - SLEEP_SECONDS), **style)
        alone, serial = service_seconds(lines, storage)
        many = np.geomspace(1, 4096, 200)
        for seconds_each, dashes in ((60.0, "-"), (1.0, "--")):
            rate = [60 * throughput(n, seconds_each, alone, serial) for n in many]
            right.plot(
                many, rate, dashes, color=colours[storage],
                label=f"{storage}, trials of {seconds_each:g} s",
            )  # fmt: skip
    left.set(
        xscale="log", yscale="log", xlabel="workers", ylabel="ms per trial beyond its sleep",
        title="Measured: what a trial waits for the storage", xticks=WORKERS, xticklabels=WORKERS,
    )  # fmt: skip
    right.set(
        xscale="log", yscale="log", xlabel="workers", ylabel="trials per minute",
        title="MODELLED, not measured: throughput",
    )  # fmt: skip
    left.legend()
    right.legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale")
    parser.add_argument("--measure", type=Path, metavar="CSV", help="measure, and write this table")
    parser.add_argument("--draw", type=Path, metavar="PNG", help="draw what was measured")
    arguments = parser.parse_args()
    results = arguments.measure or RESULTS
    if arguments.measure:
        found = list(measure())
        with results.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(found[0]))
            writer.writeheader()
            writer.writerows(found)
    with results.open(newline="") as file:
        lines = list(csv.DictReader(file))
    for storage in dict.fromkeys(x["storage"] for x in lines):
        alone, serial = service_seconds(lines, storage)
        print(
            f"{storage}: {1000 * alone:.0f} ms alone, full at {60 / serial:.0f} trials a minute or more"
        )
    if arguments.draw:
        draw(lines, arguments.draw)


if __name__ == "__main__":
    main()
