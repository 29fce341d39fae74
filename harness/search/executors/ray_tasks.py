"""Run trials on a Ray cluster, each as one Ray task: Ray queues and schedules them, and runs them again if
a node dies.

    python -m harness.study --space STUDY.py --engine ray --address auto --workers 16 --worker-gpus 0.5

Imported only with `--engine ray`, because Ray is an optional extra.
"""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import platform
import socket
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from harness.core.errors import UserError, first_line
from harness.core.results import TrialResult
from harness.search.executors import Died
from harness.training.trial import Message, TrialTask

try:
    import ray
    from ray.exceptions import RayError, RayTaskError
except ImportError as _error:
    raise UserError('--engine ray needs Ray: pip install "transfer-harness[ray]"') from _error

RETRIES = 3
"""How often Ray runs a task again, from its last checkpoint, if its node or process dies."""
REACH_SECONDS = 20.0


@dataclass(frozen=True)
class Room:
    """Resources that a trial uses on its node: CPUs, and GPUs or a fraction of one."""

    cpus: float = 1.0
    gpus: float = 0.0

    def __str__(self) -> str:
        return f"{self.cpus:g} CPUs and {self.gpus:g} GPUs"


def connect(address: str, room: Room) -> None:
    """Connect to a running cluster.

    Raises:
        UserError: if there is none, or no node has the resources for a trial.
    """
    _reach(address)
    usage = os.environ.get("RAY_USAGE_STATS_ENABLED")
    os.environ["RAY_USAGE_STATS_ENABLED"] = usage or "0"
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # ConnectionError, ValueError, RuntimeError of another version, ...
        raise UserError(
            f"no Ray cluster at {address!r} ({first_line(error)}); `ray start --head` starts one"
        ) from error
    finally:
        if usage is None:
            del os.environ["RAY_USAGE_STATS_ENABLED"]
    found: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    every = [node["Resources"] for node in found if node["Alive"]]
    if not any(r.get("CPU", 0) >= room.cpus and r.get("GPU", 0) >= room.gpus for r in every):
        raise UserError(f"no node of the Ray cluster has {room}, which each trial needs")


def _reach(address: str) -> None:
    """Raises UserError if nothing listens at HOST:PORT; Ray itself would retry for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "/" in host:
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"no Ray cluster at {address!r} ({first_line(error)}); `ray start --head` starts one"
        ) from error


@final
class RayTasks:
    """An executor on the connected cluster.

    Args:
        count: number of tasks at a time; tasks wait in Ray's queue until resources are free.
        room: resources of each task.
        study_file: imported once by each process that runs tasks.
    """

    inline = False

    def __init__(self, count: int, room: Room, study_file: Path | None) -> None:
        self.capacity = count
        self._study_file = None if study_file is None else study_file.resolve()
        self._folder = Path.cwd()
        self._task: Any = ray.remote(
            num_cpus=room.cpus,
            num_gpus=room.gpus,
            max_retries=RETRIES,
            num_returns="streaming",
        )(_run)
        self._mailbox: Any = ray.remote(num_cpus=0)(_Mailbox).remote()
        self._running: dict[Any, int] = {}

    def submit(self, number: int, task: TrialTask) -> None:
        """Hand a task to Ray."""
        mailbox = self._mailbox if task.pruned else None
        stream = self._task.remote(
            pickle.dumps(task), self._study_file, self._folder, number, mailbox
        )
        self._running[stream] = number

    def receive(self) -> tuple[int, Message | Died]:
        """Wait for the next message of any task."""
        while True:
            stream: Any = ray.wait(list(self._running), num_returns=1)[0][0]
            number = self._running[stream]
            try:
                message: Message = ray.get(next(stream))
            except StopIteration:
                del self._running[stream]
                return number, Died("no result", final=True)
            except RayError as error:
                del self._running[stream]
                return number, Died(_describe(error), final=True)
            if isinstance(message, TrialResult):
                del self._running[stream]
            return number, message

    def reply(self, number: int, go_on: bool) -> None:
        """Put the answer into the mailbox from which the task takes it."""
        self._mailbox.put.remote(number, go_on)

    def request_stop(self) -> None:
        """Not possible with Ray: `close` ends the tasks, and work since their last checkpoint is lost."""

    def close(self) -> None:
        """Cancel what still runs."""
        streams = list(self._running)
        for stream in streams:
            with suppress(Exception):
                ray.cancel(stream, force=True)
        self._running.clear()


class _Mailbox:
    """An actor that holds the answers for each task."""

    def __init__(self) -> None:
        self._queues: defaultdict[int, asyncio.Queue[bool]] = defaultdict(asyncio.Queue)

    async def put(self, number: int, go_on: bool) -> None:
        """Leave an answer."""
        await self._queues[number].put(go_on)

    async def take(self, number: int) -> bool:
        """Wait for the next answer."""
        return await self._queues[number].get()


def _run(
    pickled: bytes, study_file: Path | None, folder: Path, number: int, mailbox: Any
) -> Iterator[Message]:
    """Run a task on its node. If Ray runs it again, the same messages are sent again."""
    from harness.core.study_file import load_study
    from harness.training.trial import answered

    missing = next((p for p in (folder, study_file) if p is not None and not p.exists()), None)
    if missing is not None:
        what = f"node {platform.node()} has no {missing}: the study must be started in a folder that all "
        yield TrialResult("crashed", reason=f"{what}nodes share")
        return
    os.chdir(folder)
    if study_file is not None:
        load_study(study_file)
    task: TrialTask = pickle.loads(pickled)
    yield from answered(task, lambda: ray.get(mailbox.take.remote(number)))


def _describe(error: RayError) -> str:
    if isinstance(error, RayTaskError):
        return f"{type(error.cause).__name__}: {first_line(error.cause)}"
    return type(error).__name__
