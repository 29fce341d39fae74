"""Compare time and memory of a study with those of other programs, in interleaved runs.

    make bench                                        # all tasks; about an hour on two otherwise idle cores
    python -m benchmarks.run --only linear_probe      # one task; the last results of the others are kept
    python -m benchmarks.run --images small           # a quick test that everything runs

Writes runs.jsonl (all measurements), table.md, table.csv and plot.png to benchmarks/results.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks import recipe, tables
from benchmarks.data import FULL, SMALL, make_folders, scratch

ROOT = Path(__file__).parents[1]
WORKS = (
    *recipe.WORKS,
    "default_study",
    "overhead",
    "first_result",
    "busy_neighbour",
    "time_box",
    "large_folder",
)
NEEDS = {
    "lightning": ("lightning",),
    "fastai": ("fastai",),
    "trainer": ("transformers", "accelerate", "datasets"),
}
"""Packages of the extra `bench` without which a program is reported as not installed."""


@dataclass(frozen=True)
class Job:
    """One program with one task: its command, the trials that it runs, the trials of the study, and its
    rounds."""

    work: str
    program: str
    command: tuple[str, ...]
    trials: int
    wanted: int
    rounds: int


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run")
    parser.add_argument("--only", action="append", choices=WORKS, help="this work; may be repeated")
    parser.add_argument("--images", choices=("full", "small"), default="full")
    parser.add_argument("--rounds", type=int, default=3, help="of ours and of the limits")
    parser.add_argument("--peer-rounds", type=int, default=1, help="of peers and the default study")
    parser.add_argument(
        "--peer-trials", type=int, default=1, help="of a peer; scaled to the study's"
    )
    parser.add_argument("--threads", type=int, default=2, help="of every program's main process")
    parser.add_argument("--out", type=Path, help="folder (default: benchmarks/results)")
    arguments = parser.parse_args(argv)
    small = arguments.images == "small"
    # A quick test must not overwrite measurements.
    default = scratch() / "results-small" if small else ROOT / "benchmarks" / "results"
    arguments.out = arguments.out or default
    arguments.only = arguments.only or list(WORKS)
    return arguments


def jobs(arguments: argparse.Namespace, work: str) -> list[Job]:
    """The programs that are run for one task, in the order of a round."""
    small = arguments.images == "small"
    if work == "default_study":
        effort = ("--trials", "1", "--repeats", "1") if small else ()
        command = ("benchmarks.programs.ours", "--work", work, *effort)
        return [
            Job(work, name, command + flag, 0, 0, arguments.peer_rounds)
            for name, flag in ((tables.OURS, ()), (tables.NO_REUSE, ("--no-reuse",)))
        ]
    if work == "overhead":
        command = ("benchmarks.overhead", "--trials", "110" if small else "5000")
        return [Job(work, tables.OURS, command, 0, 0, 1)]
    if work == "first_result":
        return [Job(work, tables.OURS, ("benchmarks.first_result",), 0, 0, arguments.rounds)]
    if work == "busy_neighbour":
        command = ("benchmarks.neighbour", "--rounds", "1" if small else str(arguments.rounds))
        return [Job(work, tables.OURS, command, 0, 0, 1)]
    if work == "time_box":
        command = ("benchmarks.race", "--studies", "2" if small else "60")
        return [Job(work, tables.OURS, command, 0, 0, 1)]
    if work == "large_folder":
        command = ("benchmarks.large_folder", "--images", "20000" if small else "200000")
        return [Job(work, tables.OURS, command, 0, 0, arguments.rounds)]
    data = make_folders(SMALL if small else FULL)
    limits = {tables.BARE: 1, tables.ONE_PASS: recipe.TRIALS[work]}
    if work != "linear_probe":
        del limits[tables.ONE_PASS]
    if work == "full":  # the goal is within a twentieth, so trials are not scaled
        limits[tables.BARE] = recipe.TRIALS[work]
    trials = {tables.OURS: recipe.TRIALS[work], **limits}
    trials |= dict.fromkeys(tables.PEERS, arguments.peer_trials)
    return [
        Job(
            work,
            program,
            (
                f"benchmarks.programs.{program}",
                *("--work", work, "--trials", str(count), "--data", str(data)),
            ),
            count,
            recipe.TRIALS[work],
            arguments.peer_rounds if program in tables.PEERS else arguments.rounds,
        )
        for program, count in trials.items()
    ]


def measured(arguments: argparse.Namespace, work: str) -> Iterator[dict[str, Any]]:
    """Lines of one task, round by round, so that a slowdown of the machine affects all programs alike."""
    plan = jobs(arguments, work)
    for number in range(max(job.rounds for job in plan)):
        for job in plan:
            if number < job.rounds:
                print(f"{work}: {job.program}, round {number}", file=sys.stderr, flush=True)
                line = one_line(job, arguments.threads)
                print(f"    {line.get('seconds', line.get('note'))}", file=sys.stderr, flush=True)
                yield line | {"round": number, "images_size": arguments.images}


def one_line(job: Job, threads: int) -> dict[str, Any]:
    """Run a program, and return what it printed, or a note why it failed."""
    line: dict[str, Any] = {"work": job.work, "program": job.program, "machine": machine(threads)}
    if job.wanted:
        line["wanted"] = job.wanted
    absent = [p for p in NEEDS.get(job.program, ()) if importlib.util.find_spec(p) is None]
    if absent:
        return line | {"note": f"not installed: {', '.join(absent)}"}
    # Each worker of a loader uses one thread.
    fixed = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    done = subprocess.run(
        [sys.executable, "-m", *job.command],
        cwd=ROOT,
        env={**os.environ, **fixed, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
        capture_output=True,
        text=True,
    )
    printed = [x for x in done.stdout.splitlines() if x.startswith("{")]
    if done.returncode or not printed:
        why = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        return line | {"note": f"failed ({done.returncode}): {why}".replace("|", "/")}
    line |= {k: v for k, v in json.loads(printed[-1]).items() if k != "work"}
    if "--data" in job.command:
        data = Path(job.command[-1])
        line["val_images"] = sum(1 for _ in (data / "val").rglob("*.png"))
    if job.work == "default_study":
        line["wanted"] = line["trials"]
    return line


def machine(threads: int) -> str:
    """Date, machine and versions, in one line."""
    from harness.training.device import Cpu

    packages = ("torch", "torchvision", "timm", "lightning", "fastai", "transformers")
    known = [p for p in packages if importlib.util.find_spec(p)]
    versions = ", ".join(f"{p} {version(p)}" for p in known)
    day = datetime.datetime.now(datetime.UTC).date()
    return (
        f"{day}: {Cpu().describe()}, {os.cpu_count()} cores, {threads} threads, "
        f"Python {platform.python_version()}, {versions}."
    )


def plot(lines: Sequence[tables.Line], file: Path) -> None:
    """Seconds of each study, one panel per task; bars are hatched if fewer trials were measured and
    scaled."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    found = [r for r in tables.rows(lines) if r.seconds == r.seconds]
    works = list(dict.fromkeys(r.work for r in found))
    if not works:
        return
    figure, axes = plt.subplots(
        len(works), 1, figsize=(7, 0.6 + 1.9 * len(works)), squeeze=False, layout="constrained"
    )
    for axis, work in zip(axes[:, 0], works, strict=True):
        shown = sorted((r for r in found if r.work == work), key=lambda r: -r.seconds)
        bars = axis.barh(
            [r.program for r in shown],
            [r.seconds for r in shown],
            color=["#0072b2" if r.program == tables.OURS else "#bbbbbb" for r in shown],
            hatch=["//" if r.measured_trials != r.trials else "" for r in shown],
            edgecolor="white",
        )
        axis.bar_label(bars, labels=[f"{r.seconds:,.0f} s" for r in shown], padding=3)
        axis.margins(x=0.12)
        axis.set_title(f"{work.replace('_', ' ')}, {shown[0].trials} trials", loc="left")
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1, 0].set_xlabel("seconds of the study (hatched: one trial measured, scaled)")
    figure.savefig(file, dpi=150)
    plt.close(figure)


def write(lines: Sequence[tables.Line], folder: Path) -> None:
    """Write all four files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "runs.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    (folder / "table.md").write_text(tables.markdown(lines))
    (folder / "table.csv").write_text(tables.to_csv(lines))
    plot(lines, folder / "plot.png")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code, which is 0 even if goals are missed."""
    arguments = parse(argv)
    kept: list[dict[str, Any]] = []
    if (arguments.out / "runs.jsonl").is_file():
        text = (arguments.out / "runs.jsonl").read_text()
        kept = [json.loads(x) for x in text.splitlines()]
    for work in arguments.only:
        new = list(measured(arguments, work))
        kept = [x for x in kept if x["work"] != work] + new
        kept.sort(key=lambda x: WORKS.index(x["work"]))
        write(kept, arguments.out)  # after every work, so that an interrupted run keeps what it has
    print((arguments.out / "table.md").read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
