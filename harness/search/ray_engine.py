"""How does a study run on many machines at once? Each worker is a task of Ray, which finds it a place.

    python -m harness.study --space STUDY.py --engine ray --address auto --workers 16 --worker-gpus 0.5 ...

A worker whose node dies is started again wherever there is room; what it left open is ended at once, because
Ray says that it is dead. Imported only when asked for: Ray is an optional extra.
"""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import UserError, first_line
from harness.search.bench import Bench
from harness.search.leases import Owner
from harness.search.runner import TrialDone
from harness.search.workers import (
    DEATHS_IN_A_ROW,
    PATIENCE_SECONDS,
    Died,
    Failed,
    Job,
    watch_over,
    work,
)
from harness.spec import Study
from harness.stores import default_tracking_uri, sqlite_path

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
try:
    import ray
    from ray.exceptions import RayError, RayTaskError
except ImportError as _error:
    raise UserError('--engine ray needs Ray: pip install "transfer-harness[ray]"') from _error


@dataclass(frozen=True)
class Room:
    """What a worker takes of its node: processors, and accelerators or a part of one."""

    cpus: float = 1.0
    gpus: float = 0.0

    def __str__(self) -> str:
        return f"{self.cpus:g} CPUs and {self.gpus:g} GPUs"


def connect(address: str, job: Job, room: Room) -> None:
    """Join a cluster that is up.

    Raises:
        UserError: if there is none, no node of it has room for a worker, or it cannot share the job's stores.
    """
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # ConnectionError, ValueError, RuntimeError of another version, ...
        raise UserError(
            f"no Ray cluster at {address!r} ({first_line(error)}); `ray start --head` begins one"
        ) from error
    nodes = [node for node in _nodes() if node["Alive"]]
    if not any(_has(node["Resources"], room) for node in nodes):
        raise UserError(f"no node of the Ray cluster has {room}, which a worker asks for")
    require_shared(job, {node["NodeManagerHostname"] for node in nodes})


def _nodes() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return found


def _has(resources: dict[str, float], room: Room) -> bool:
    return resources.get("CPU", 0) >= room.cpus and resources.get("GPU", 0) >= room.gpus


def require_shared(job: Job, hosts: set[str]) -> None:
    """Refuse a database file where there are several machines.

    Raises:
        UserError: naming the option.
    """
    if len(hosts) < 2:
        return
    tracking = job.tracking_uri or default_tracking_uri(job.root)
    storage = job.storage or "sqlite:///optuna.db"
    for option, url, better in (
        ("storage", storage, "postgresql+psycopg://USER@HOST/DATABASE"),
        ("tracking-uri", tracking, "http://HOST:5000 of an MLflow server"),
    ):
        if sqlite_path(url) is not None:
            raise UserError(
                f"{len(hosts)} machines cannot share a SQLite file; want --{option} {better}"
            )


def run_on_ray(job: Job, bench: Bench, study: Study, count: int, room: Room) -> Iterator[TrialDone]:
    """Run the study in `count` tasks of the connected cluster; as `watch_over`.

    Args:
        job: what they run.
        bench: the parent's own, of the same job.
        study: the same as `job.study()`.
        count: workers at a time; those for which there is no room wait for it.
        room: what each takes.
    """
    return watch_over(_Tasks(job, count, room), bench, study, count)


class _Tasks:
    """The workers that are alive, each a task that yields what it has to say."""

    def __init__(self, job: Job, count: int, room: Room) -> None:
        # A node that dies may take all workers with it.
        self.deaths_at_most = DEATHS_IN_A_ROW + count - 1
        self._job, self._folder = job, Path.cwd()
        # Not tried again by Ray: what the dead worker left open has to be ended first.
        place = ray.remote(
            num_cpus=room.cpus, num_gpus=room.gpus, max_retries=0, num_returns="streaming"
        )
        self._task: Any = place(_live)
        self._alive: dict[Any, tuple[int, str]] = {}

    def start(self, number: int) -> None:
        """Start worker `number` where there is room."""
        self._alive[self._task.remote(self._job, self._folder)] = (number, "")

    def messages(self) -> Iterator[tuple[int, TrialDone | Failed | Died]]:
        """(worker, what was heard of it), until all have ended."""
        while self._alive:
            ready: list[Any] = ray.wait(list(self._alive), num_returns=1)[0]
            for worker in ready:
                number, owner = self._alive[worker]
                try:
                    message: Any = ray.get(next(worker))
                except StopIteration:
                    del self._alive[worker]
                except RayError as error:
                    del self._alive[worker]
                    yield number, Died(_in_words(error), owner)
                else:
                    if isinstance(message, str):
                        self._alive[worker] = (number, message)
                    else:
                        yield number, message

    def stop(self) -> None:
        """Let every worker write down that it was stopped; end what does not, or at a second Ctrl-C."""
        workers = list(self._alive)
        try:
            for worker in workers:
                ray.cancel(worker)
            if workers:
                ends = [worker.completed() for worker in workers]
                ray.wait(ends, num_returns=len(ends), timeout=PATIENCE_SECONDS)
        finally:
            for worker in workers:
                ray.cancel(worker, force=True)


def _live(job: Job, folder: Path) -> Iterator[str | TrialDone | Failed]:
    """A worker's whole life: its name first, then what it does."""
    yield Owner.here(job.session).name
    try:
        os.chdir(folder)
    except OSError as error:
        yield Failed(
            f"node {platform.node()} has no {folder} ({error.strerror}): the study must be started in a "
            "folder that all nodes share",
            by_user=True,
        )
        return
    yield from work(job)


def _in_words(error: RayError) -> str:
    if isinstance(error, RayTaskError):
        return f"{type(error.cause).__name__}: {first_line(error.cause)}"
    return type(error).__name__
