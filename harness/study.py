"""Run a study: tune every cell, repeat what was chosen on fresh seeds, record every trial.

    python -m harness.study --space studies/freeze_depth.py

Running the same command again goes on where the last run stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from harness.spec import Study, UserError, program, run_command, without_password
from harness.study_file import load_study, question_of

if TYPE_CHECKING:
    from harness.measure import Device
    from harness.record import StudyInfo
    from harness.search.runner import TrialDone
    from harness.spec import TrialSpec

ROOT = Path("mlruns")


class Terminated(BaseException):
    """SIGTERM; no Exception, so that nothing mistakes it for a failed trial."""


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m harness.study",
        description="Tune every cell of a study, repeat what was chosen on fresh seeds, record it all.",
        epilog="Running the same command again goes on where the last run stopped.",
    )
    parser.add_argument(
        "--space", required=True, type=Path, help="study file, a Python file (its code is run)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default: auto)")
    parser.add_argument("--trials", type=int, help="configurations per cell, instead of the file's")
    parser.add_argument("--repeats", type=int, help="seeds per cell, instead of the file's")
    parser.add_argument(
        "--storage", help="Optuna storage URL (default: optuna.db beside the MLflow database)"
    )
    parser.add_argument(
        "--tracking-uri", help="MLflow tracking URI (default: sqlite:///mlruns/mlflow.db)"
    )
    parser.add_argument(
        "--cache-dir",
        type=Path,
        help="where outputs of frozen layers are kept (default: user's cache)",
    )
    parser.add_argument(
        "--cache-budget", default="10GiB", help="bytes kept there; 0 keeps nothing (default: 10GiB)"
    )
    parser.add_argument(
        "--max-memory",
        help="e.g. 8GiB: a trial whose forecast is higher is recorded as oom, not run",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print cells, trials, forecasts of memory and time; then stop",
    )
    return parser.parse_args(argv)


def environment(device: Device) -> dict[str, str]:
    """What a reader must know to repeat a run or to compare its times: tags of every run."""
    import platform
    from importlib.metadata import version

    import torch

    tags = {
        "device": device.name,
        "threads": str(torch.get_num_threads()),
        "env.hardware": device.describe(),
        "env.cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "env.host": platform.node(),
        "env.platform": platform.platform(),
        "env.python": platform.python_version(),
    }
    for package in ("torch", "torchvision", "timm", "optuna", "mlflow"):
        tags[f"env.{package}"] = version(package)
    return {**tags, **code_revision()}


def code_revision() -> dict[str, str]:
    """Git revision of the harness and whether it was changed since; empty outside a checkout."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return {"env.revision": git("rev-parse", "HEAD"), "env.dirty": str(bool(changed)).lower()}
    except (OSError, subprocess.CalledProcessError):
        return {}


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    arguments = parse(argv)
    try:
        return run_command(lambda: run(arguments), "run the same command again to go on")
    except Terminated:
        return _say("stopped by SIGTERM; run the same command again to go on", 143)


def _say(message: str, code: int) -> int:
    print(message, file=sys.stderr)
    return code


def run(arguments: argparse.Namespace) -> int:
    """Everything after the command line has been read.

    Raises:
        UserError: on bad input.
    """
    for name in ("trials", "repeats"):
        least = 1 if name == "trials" else 0
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise UserError(f"--{name} must be at least {least}, got {value}")
    study = load_study(arguments.space)
    changes = {k: getattr(arguments, k) for k in ("trials", "repeats")}
    study = dataclasses.replace(study, **{k: v for k, v in changes.items() if v is not None})

    # Heavy imports wait until the command line and the study file are known to be right.
    from harness.measure import resolve_device
    from harness.record import Recorder, default_tracking_uri, sqlite_path
    from harness.rows import Cache, default_folder, parse_size
    from harness.search.door import check_at_the_door
    from harness.search.runner import StudyStopped, run_study, sole_runner
    from harness.search.storage import open_storage

    device = resolve_device(arguments.device)
    budget = parse_size(arguments.cache_budget)
    cache = Cache((arguments.cache_dir or default_folder()) if budget else None, budget)
    if complaint := cache.complaint():
        print(f"warning: {complaint}; name another folder with --cache-dir", file=sys.stderr)
        cache = Cache(None, 0)
    admitted = check_at_the_door(study, cache)
    for line in admitted.leaks:
        print(f"warning: {line}", file=sys.stderr)
    tracking_uri = arguments.tracking_uri or default_tracking_uri(ROOT)
    if not arguments.tracking_uri and (elsewhere := os.environ.get("MLFLOW_TRACKING_URI")):
        shown = without_password(elsewhere)
        print(
            f"warning: MLFLOW_TRACKING_URI={shown} is not used; --tracking-uri is", file=sys.stderr
        )
    database = sqlite_path(tracking_uri)
    folder = database.parent if database else ROOT.resolve()
    storage_url = arguments.storage or f"sqlite:///{folder}/optuna.db"
    max_memory = None if arguments.max_memory is None else parse_size(arguments.max_memory)
    if arguments.dry_run:
        print_plan(study, admitted.specs, device)
        print_forecasts(study, admitted.specs, device, max_memory)
        return 0
    signal.signal(signal.SIGTERM, _on_terminate)
    with sole_runner(folder, study.name):
        # What the user named is opened first: if it is refused, no default database is left behind.
        storage = open_storage(storage_url) if arguments.storage else None
        recorder = Recorder(tracking_uri, study_info(study, arguments, admitted.leaks))
        storage = storage or open_storage(storage_url)
        events = run_study(study, storage, recorder, device, environment(device), cache, max_memory)
        try:
            show(study, events)
        except StudyStopped as error:
            return _say(f"study stopped: {error}", 1)
        if not recorder.complete():
            return _say("no trial of any cell completed; the report counts how they ended", 1)
    print_where_to_look(study, arguments.tracking_uri, tracking_uri)
    return 0


def _on_terminate(*_: object) -> NoReturn:
    raise Terminated


def study_info(study: Study, arguments: argparse.Namespace, leaks: tuple[str, ...]) -> StudyInfo:
    """The study as the recorder describes it."""
    from harness.record import StudyInfo

    command = f"python -m harness.study --space {shlex.quote(str(arguments.space))}"
    for name in (
        "device",
        "trials",
        "repeats",
        "storage",
        "tracking_uri",
        "max_memory",
        "cache_budget",
    ):
        value = getattr(arguments, name)
        if value is not None and (name, value) not in (
            ("device", "auto"),
            ("cache_budget", "10GiB"),
        ):
            shown = without_password(str(value))
            command += f" --{name.replace('_', '-')} {shlex.quote(shown)}"
    return StudyInfo(
        name=study.name,
        question=question_of(arguments.space),
        command=command,
        factors={k: list(v) for k, v in study.compare.items()},
        baseline=study.baseline,
        trials=study.trials,
        repeats=study.repeats,
        sampler=study.sampler,
        leaks=leaks,
        space_sha256=hashlib.sha256(arguments.space.read_bytes()).hexdigest(),
    )


def print_plan(study: Study, specs: Mapping[str, TrialSpec], device: Device) -> None:
    """What would run."""
    cells = study.cells()
    trials, repeats = len(cells) * study.trials, len(cells) * study.repeats
    print(f"study {study.name} on {device.name} ({device.describe()})")
    print(
        f"{len(cells)} cells x ({study.trials} trials + {study.repeats} repeats) = "
        f"{trials} trials + {repeats} repeats, {study.sampler} sampling, pruner {study.pruner}"
    )
    flats = {label: _shown(spec) for label, spec in specs.items()}
    first = next(iter(flats.values()))
    common = {k: v for k, v in first.items() if all(f.get(k) == v for f in flats.values())}
    print(f"every cell: {_entries(common)}")
    print("first trial of each cell:")
    for label, flat in flats.items():
        print(f"  {label}: {_entries({k: v for k, v in flat.items() if k not in common})}")


def print_forecasts(
    study: Study, specs: Mapping[str, TrialSpec], device: Device, max_memory: int | None
) -> None:
    """What the first trial of each cell would take: memory on an accelerator, time on this device."""
    from harness.forecast import forecast
    from harness.measure import MIB
    from harness.rows import in_words
    from harness.train import Training

    print(
        "forecast of each cell: accelerator memory at the peak, of training by part, and training time"
    )
    print("of one trial, cold, from a few steps on this device:")
    total = 0.0
    for label, spec in specs.items():
        found = forecast(spec)
        parts = ", ".join(
            f"{part.removesuffix('_mib')} {getattr(found, part):.0f}"
            for part in ("parameters_mib", "gradients_mib", "optimizer_mib", "activations_mib")
        )
        memory = (
            f"{found.peak_mib:.0f} MiB (training {found.train_peak_mib:.0f}: {parts}; "
            f"evaluation {found.eval_peak_mib:.0f})"
        )
        if max_memory is not None and found.peak_mib * MIB > max_memory:
            memory += f", MORE THAN {in_words(max_memory)}: would not run"
        if spec.strategy.readout == "head":
            seconds = Training(spec, device).estimate_seconds()
            total += seconds * (study.trials + study.repeats)
            print(f"  {label}: {memory}; {seconds:.1f} s")
        else:
            print(f"  {label}: {memory}; time not forecast, no gradient steps")
    print(f"training of the whole study, if nothing were kept between trials: {total / 60:.1f} min")


def _shown(spec: TrialSpec) -> dict[str, object]:
    return {k: v for k, v in spec.flat().items() if v is not None and k != "seed"}


def _entries(flat: Mapping[str, object]) -> str:
    return ", ".join(
        f"{k}={v:.3g}" if isinstance(v, float) else f"{k}={v}" for k, v in flat.items()
    )


def show(study: Study, events: Iterator[TrialDone]) -> None:
    """Progress: a bar and lines on a terminal, plain lines when piped."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    total = len(study.cells()) * (study.trials + study.repeats)
    console = Console(highlight=False, soft_wrap=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    resumed = 0
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(study.name, total=total)
        for number, event in enumerate(events, 1):
            bar.advance(task)
            if event.result is None:
                resumed += 1
                continue
            console.print(f"[{number:>3}/{total}] {event.slot}: {_in_words(event)}", markup=False)
    if resumed:
        console.print(f"{resumed} of {total} were finished before and not run again")
    if resumed == total:
        console.print("nothing was left to do")


def _in_words(event: TrialDone) -> str:
    assert event.result is not None
    metrics, outcome = event.result.metrics, event.result.outcome
    if outcome != "complete":
        return f"{outcome.upper()} {event.result.reason}".strip()
    names = {"val_accuracy": "validation", "test_accuracy": "test"}
    scores = [f"{words} {metrics[k]:.1%}" for k, words in names.items() if k in metrics]
    return f"{', '.join(scores)}, trained {metrics['train_seconds']:.1f} s"


def print_where_to_look(study: Study, given_uri: str | None, tracking_uri: str) -> None:
    """The next two commands, ready to paste."""
    uri = given_uri or "sqlite:///mlruns/mlflow.db"
    extra = f" --tracking-uri {shlex.quote(without_password(given_uri))}" if given_uri else ""
    print(f"report:    {program('python')} -m analysis.report --study {study.name}{extra}")
    if tracking_uri.startswith("http"):
        print(f"MLflow UI: {without_password(tracking_uri)}")
    else:
        shown = shlex.quote(without_password(uri))
        print(
            f"MLflow UI: {program('mlflow')} ui --backend-store-uri {shown} --host 127.0.0.1 --workers 1"
        )


if __name__ == "__main__":
    sys.exit(main())
