"""Options of the study command and of `run_study`."""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Group, Parameter

from harness.core.command_line import SIZE, TIME
from harness.core.errors import UserError, without_password
from harness.core.units import Seconds, Size

STUDY = Parameter(group=Group("Study", sort_key=1))
STORES = Parameter(group=Group("Stores", sort_key=2))
LIMITS = Parameter(group=Group("Limits", sort_key=3))
WORKERS = Parameter(group=Group("Workers", sort_key=4))
OUTPUT = Parameter(group=Group("Output", sort_key=5))
CACHE_BUDGET = Size("10GiB")


@dataclass(frozen=True)
class StudyOptions:
    """How a study is run: keywords of `run_study`, and options of `python -m harness.study`.

    Attributes:
        device: auto, cpu, cuda or mps.
        trials: configurations per cell, instead of the file's.
        repeats: seeds per cell, instead of the file's.
        budget: time for all trials, e.g. 20m, instead of equal numbers of trials: cells that fall behind get
            fewer.
        cells: K/N runs only every N-th cell, from the K-th on, as one job of an array (see harness.bundle).
        storage: Optuna storage URL; the default is optuna.db beside MLflow's database.
        tracking_uri: MLflow tracking URI; the default is sqlite:///mlruns/mlflow.db.
        cache_dir: folder that caches outputs of frozen layers; the default is in the user's cache.
        cache_budget: size limit of that folder; 0 caches nothing.
        max_memory: memory limit such as 8GiB: a trial with a higher forecast is not run but recorded as oom.
        max_minutes: time limit of a trial: a longer one ends as timeout; its process is ended if it hangs.
        workers: trials at a time, each with its share of threads or GPUs.
        engine: run trials in processes of this machine or on a Ray cluster.
        address: address of the Ray cluster; the default is auto.
        worker_cpus: CPUs of each Ray task; the default is 1.
        worker_gpus: GPUs of each Ray task; 0.5 runs two tasks on one GPU. The default is 0.
        quiet: do not print a line for each trial.
        verbose: print a line for each trial, even on a terminal, with the validation score after each epoch.
    """

    device: Annotated[str, STUDY] = "auto"
    trials: Annotated[int | None, STUDY] = None
    repeats: Annotated[int | None, STUDY] = None
    budget: Annotated[Seconds | None, STUDY, TIME] = None
    cells: Annotated[str | None, STUDY, Parameter(metavar="K/N")] = None
    storage: Annotated[str | None, STORES] = None
    tracking_uri: Annotated[str | None, STORES] = None
    cache_dir: Annotated[Path | None, STORES] = None
    cache_budget: Annotated[Size, STORES, SIZE] = CACHE_BUDGET
    max_memory: Annotated[Size | None, LIMITS, SIZE] = None
    max_minutes: Annotated[float | None, LIMITS] = None
    workers: Annotated[int, WORKERS] = 1
    engine: Annotated[Literal["processes", "ray"], WORKERS] = "processes"
    address: Annotated[str | None, WORKERS] = None
    worker_cpus: Annotated[float | None, WORKERS] = None
    worker_gpus: Annotated[float | None, WORKERS] = None
    quiet: Annotated[bool, OUTPUT] = False
    verbose: Annotated[bool, OUTPUT] = False

    def __post_init__(self) -> None:
        for name, kind in (
            ("budget", Seconds),
            ("cache_budget", Size),
            ("max_memory", Size),
            ("cache_dir", Path),
        ):
            if (value := getattr(self, name)) is not None:  # from Python also as text
                try:
                    object.__setattr__(self, name, kind(value))
                except UserError as error:
                    raise UserError(f"{_option(name)}: {error}") from error
        for name, least in (("trials", 1), ("repeats", 0), ("workers", 1)):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int) and value >= least):
                raise UserError(f"{_option(name)} must be at least {least}, got {value!r}")
        if self.max_minutes is not None and not self.max_minutes > 0:
            raise UserError(f"--max-minutes must be above 0, got {self.max_minutes:g}")
        if self.engine not in ("processes", "ray"):
            raise UserError(f"--engine must be processes or ray, got {self.engine!r}")
        if self.quiet and self.verbose:
            raise UserError("--quiet and --verbose cannot be combined")
        self._check_ray()

    def _check_ray(self) -> None:
        for name in ("address", "worker_cpus", "worker_gpus"):
            value = getattr(self, name)
            if value is not None and self.engine != "ray":
                raise UserError(f"{_option(name)} needs --engine ray")
            if isinstance(value, float) and not 0 <= value < math.inf:
                raise UserError(f"{_option(name)} must be at least 0, got {value:g}")
        gpus = self.worker_gpus or 0.0
        if gpus > 1 and gpus != int(gpus):
            raise UserError(
                f"--worker-gpus must be a fraction of one or a whole number, got {gpus:g}"
            )

    def command(self, path: Path) -> str:
        """The command that runs a study file with these options; without passwords."""
        words = ["python -m harness.study --space", shlex.quote(str(path))]
        for field in fields(self):
            if (value := getattr(self, field.name)) != field.default:
                words.append(_option(field.name))
                words += [shlex.quote(without_password(str(value)))] if value is not True else []
        return " ".join(words)


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
