"""Run a study: tune every cell, repeat what was chosen on fresh seeds, record every trial.

    python -m harness.study --space studies/freeze_depth.py

Running the same command again resumes the study where the last run stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from harness.core.command_line import Parser, add_stores, run_command, size
from harness.core.errors import UserError, without_password
from harness.core.spec import Study
from harness.core.study_file import load_study, study_path

if TYPE_CHECKING:
    from harness.core.spec import TrialSpec
    from harness.search.costs import CellCost
    from harness.training.device import Device


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(
        prog="python -m harness.study",
        description="Tune every cell of a study, repeat the chosen configurations on fresh seeds.",
        epilog="Running the same command again resumes the study where the last run stopped.",
    )
    parser.add_argument(
        "--space",
        required=True,
        type=study_path,
        help="study file, a Python file (its code is run), or the name of a shipped study",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default: auto)")
    parser.add_argument("--trials", type=int, help="configurations per cell, instead of the file's")
    parser.add_argument("--repeats", type=int, help="seeds per cell, instead of the file's")
    parser.add_argument(
        "--cells",
        metavar="K/N",
        help="run every N-th cell only, from the K-th on: one job of an array (see harness.bundle)",
    )
    add_stores(parser)
    parser.add_argument(
        "--cache-dir",
        type=Path,
        help="folder that caches outputs of frozen layers (default: in the user's cache folder)",
    )
    parser.add_argument(
        "--cache-budget",
        default="10GiB",
        type=size,
        help="size limit of that folder; 0 caches nothing (default: 10GiB)",
    )
    parser.add_argument(
        "--max-memory",
        type=size,
        help="memory limit, e.g. 8GiB: a trial with a higher forecast is recorded as oom, not run",
    )
    parser.add_argument(
        "--max-minutes",
        type=float,
        help="time limit of a trial; a longer one is recorded as timeout",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=1,
        help="trials at a time, each with its share of threads or GPUs (default: 1)",
    )
    parser.add_argument(
        "--engine",
        choices=["processes", "ray"],
        default="processes",
        help="run trials in processes of this machine or on a Ray cluster (default: processes)",
    )
    parser.add_argument("--address", help="address of the Ray cluster (default: auto)")
    parser.add_argument("--worker-cpus", type=float, help="CPUs of each Ray task (default: 1)")
    parser.add_argument(
        "--worker-gpus",
        type=float,
        help="GPUs of each Ray task; 0.5 runs two tasks on one GPU (default: 0)",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print cells, trials, forecasts of memory and time; then stop",
    )
    how_much = parser.add_mutually_exclusive_group()
    how_much.add_argument(
        "--quiet",
        dest="detail",
        action="store_const",
        const="quiet",
        default="normal",
        help="print no line for each trial",
    )
    how_much.add_argument(
        "--verbose",
        dest="detail",
        action="store_const",
        const="verbose",
        help="print a line per trial also on a terminal, and the accuracy after each epoch",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    return run_command(lambda: _typed(parse(argv)), "run the same command again to go on")


def _typed(arguments: argparse.Namespace) -> int:
    """A study that was typed: a Python session may keep another MLflow's address for its own use."""
    if not arguments.tracking_uri and (elsewhere := os.environ.get("MLFLOW_TRACKING_URI")):
        shown = without_password(elsewhere)
        print(
            f"warning: MLFLOW_TRACKING_URI={shown} is not used; --tracking-uri is", file=sys.stderr
        )
    return run(arguments)


def run(arguments: argparse.Namespace) -> int:
    """Everything after the command line has been read.

    Raises:
        UserError: on bad input.
    """
    check_options(arguments)
    study = load_study(arguments.space)
    changes = {k: getattr(arguments, k) for k in ("trials", "repeats")}
    study = dataclasses.replace(study, **{k: v for k, v in changes.items() if v is not None})

    # Heavy imports wait until the command line and the study file are known to be right.
    from harness.search.costs import cell_costs
    from harness.search.launch import (
        carry_out,
        limits_of,
        open_cache,
        study_info,
        warn_of_addresses,
    )
    from harness.search.plan import Shard
    from harness.search.preflight import check_study
    from harness.search.space import quiet_optuna
    from harness.search.storage import check_storage_url
    from harness.tracking.experiment import check_tracking_uri
    from harness.training.device import resolve_device
    from harness.training.provenance import clear_caches

    if arguments.cells:
        Shard.parse(arguments.cells).cells(study)
    if arguments.storage:
        check_storage_url(arguments.storage)
    if arguments.tracking_uri:
        check_tracking_uri(arguments.tracking_uri)
    with quiet_optuna():
        device = resolve_device(arguments.device)
        cache = open_cache(arguments)
        clear_caches()
        checked = check_study(study, cache, arguments.max_memory is not None)
        for line in checked.notes:
            print(f"note: {line}", file=sys.stderr)
        for line in checked.leaks:
            print(f"warning: {line}", file=sys.stderr)
        warn_of_addresses(arguments)
        if arguments.dry_run:
            print_plan(study, checked.specs, device)
            print_costs(
                study, cell_costs(checked.specs, device, cache), limits_of(arguments).memory
            )
            return 0
        return carry_out(study, study_info(study, arguments, checked.leaks), arguments, cache)


def check_options(arguments: argparse.Namespace) -> None:
    """Raises UserError if an option is out of range, or given where it would do nothing."""
    for name, least in (("trials", 1), ("repeats", 0), ("workers", 1)):
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise UserError(f"--{name} must be at least {least}, got {value}")
    if arguments.max_minutes is not None and not arguments.max_minutes > 0:
        raise UserError(f"--max-minutes must be above 0, got {arguments.max_minutes:g}")
    for name in ("address", "worker_cpus", "worker_gpus"):
        value, option = getattr(arguments, name), f"--{name.replace('_', '-')}"
        if value is not None and arguments.engine != "ray":
            raise UserError(f"{option} is for --engine ray")
        if isinstance(value, float) and not 0 <= value < float("inf"):
            raise UserError(f"{option} must be at least 0, got {value:g}")
    gpus = arguments.worker_gpus or 0.0
    if gpus > 1 and gpus != int(gpus):
        raise UserError(f"--worker-gpus must be a part of one or a whole number, got {gpus:g}")


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


def print_costs(study: Study, costs: Iterable[CellCost], max_memory: int | None) -> None:
    """What the first trial of each cell would take: memory on an accelerator, time on this device."""
    from harness.search.costs import study_seconds

    print(
        "forecast of each cell: accelerator memory at the peak, of training by part, and training time"
    )
    print("of one trial, cold, from a few steps on this device:")
    known = []
    for cost in costs:
        known.append(cost)
        print(f"  {cost.describe(max_memory)}")
    minutes = study_seconds(study, known) / 60
    print(f"training of the whole study, if nothing were kept between trials: {minutes:.1f} min")


def _shown(spec: TrialSpec) -> dict[str, object]:
    return {k: v for k, v in spec.flat().items() if v is not None and k != "seed"}


def _entries(flat: Mapping[str, object]) -> str:
    return ", ".join(
        f"{k}={v:.3g}" if isinstance(v, float) else f"{k}={v}" for k, v in flat.items()
    )


if __name__ == "__main__":
    sys.exit(main())
