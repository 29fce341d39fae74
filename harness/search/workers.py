"""How does a study run in several processes? Each is a worker that takes slots; the parent watches over them.

The parent trains nothing. It starts a worker anew when one dies, ends what it left open, and stops the study
when too much goes wrong in a row. Workers on other machines join by the same command.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType
from typing import Protocol

from harness.environment import environment
from harness.errors import UserError
from harness.measure import resolve_device
from harness.record import Recorder, StudyInfo
from harness.results import TrialResult
from harness.rows import Cache
from harness.search.bench import Bench, Limits
from harness.search.leases import GRACE_SECONDS, Owner, Watch
from harness.search.outcomes import Row
from harness.search.preemption import Checkpoints, is_asked, stop_if_asked, stop_on_request
from harness.search.runner import (
    StudyStopped,
    TrialDone,
    finished,
    reap,
    run_study,
    stop_if_too_long,
)
from harness.search.signals import Terminated, die_with_parent, raise_on_terminate
from harness.search.storage import open_storage
from harness.spec import Study
from harness.stores import default_tracking_uri, home_of, search_url
from harness.study_file import load_study, study_file_tags

DEATHS_IN_A_ROW = 3
PATIENCE_SECONDS = 30.0
"""How long a worker may take to write down that it was stopped, before it is killed."""


@dataclass(frozen=True)
class Job:
    """A study to be run, in words that another process understands.

    Attributes:
        space: study file.
        info: the study as the recorder describes it.
        device: name of where to compute.
        storage: URL of Optuna's memory; None is beside MLflow's database.
        tracking_uri: MLflow's; None is a database in `root`.
        root: absolute path of the folder for what is kept.
        cache: where decoded images and outputs of frozen groups are kept.
        limits: what a trial may take.
        grace: seconds after which a lease that is not renewed is over.
        session: names this run of the command.
    """

    space: Path
    info: StudyInfo
    device: str
    storage: str | None
    tracking_uri: str | None
    root: Path
    cache: Cache = field(default_factory=Cache)
    limits: Limits = field(default_factory=Limits)
    grace: float = GRACE_SECONDS
    session: str = field(default_factory=lambda: Owner.here().session)

    def study(self) -> Study:
        """The study, read from its file, with trials and repeats as they were asked for."""
        asked = {"trials": self.info.trials, "repeats": self.info.repeats}
        return dataclasses.replace(load_study(self.space), **asked)  # type: ignore[arg-type]

    def bench(self) -> Bench:
        """Both stores opened, for this process.

        Raises:
            UserError: if one of them, or the device, is not to be had.
        """
        # What the user named is opened first: if it is refused, no default database is left behind.
        storage = open_storage(self.storage) if self.storage else None
        uri = self.tracking_uri or default_tracking_uri(self.root)
        recorder = Recorder(uri, self.info)
        storage = storage or open_storage(search_url(uri, self.root))
        device = resolve_device(self.device)
        watch = Watch(Owner.here(self.session), self.grace)
        tags = {**environment(device), **study_file_tags(self.space)}
        kept = Checkpoints(home_of(uri, self.root) / "checkpoints")
        return Bench(storage, recorder, device, tags, self.cache, self.limits, watch, kept)


@dataclass(frozen=True)
class Failed:
    """A worker's last words: why the study cannot go on."""

    reason: str
    by_user: bool


@dataclass(frozen=True)
class Died:
    """A worker is no more, and had no last words.

    Attributes:
        how: in words.
        owner: the name under which it held its trial, where whoever says this knows.
    """

    how: str
    owner: str = ""


class Pool(Protocol):
    """Workers, wherever they are."""

    deaths_at_most: int
    """So many deaths in a row without a trial done say that something is broken."""

    def start(self, number: int) -> None:
        """Start worker `number`."""

    def messages(self) -> Iterator[tuple[int, TrialDone | Failed | Died]]:
        """(worker, what was heard of it), until all have ended."""

    def stop(self) -> None:
        """Let every worker write down that it was stopped; end what does not."""


def run_in_processes(job: Job, bench: Bench, study: Study, count: int) -> Iterator[TrialDone]:
    """Run the study in `count` processes of this machine, as `watch_over`. SIGUSR1 stops them after the
    epochs that are running."""
    pool = _Processes(job, count)
    stop_on_request(pool.pass_on)
    return watch_over(pool, bench, study, count)


def watch_over(pool: Pool, bench: Bench, study: Study, count: int) -> Iterator[TrialDone]:
    """Run the study with `count` workers.

    Args:
        pool: starts them.
        bench: the parent's own, of the same job.
        study: the same as the workers'.
        count: workers at a time.

    Yields:
        What was finished before, then every slot as a worker ends it; predictions stay in the record.

    Raises:
        StudyStopped: after too many bad ends of one kind, or deaths of workers, in a row.
        Terminated: if SIGUSR1 came, when the workers have ended.
        UserError: as a worker said.
    """
    yield from finished(study, bench.storage)
    deaths, row = 0, Row()
    try:
        for number in range(count):
            if not is_asked():
                pool.start(number)
        for number, message in pool.messages():
            if isinstance(message, TrialDone):
                assert message.result is not None
                yield message
                deaths, row = 0, row.then(message.result, message.broke_before)
                stop_if_too_long(row, message.slot, message.result)
            elif isinstance(message, Failed):
                raise (UserError if message.by_user else StudyStopped)(message.reason)
            elif not is_asked():
                deaths += 1
                if deaths >= pool.deaths_at_most:
                    raise StudyStopped(f"{deaths} workers in a row died ({message.how})")
                bench.watch.believe_dead(message.owner)
                reap(study, bench.storage, bench.recorder, bench.watch)
                pool.start(number)
        stop_if_asked()
    finally:
        pool.stop()
        reap(study, bench.storage, bench.recorder, bench.watch)


def _in_words(exit_code: int) -> str:
    if exit_code >= 0:
        return f"exit code {exit_code}"
    name = signal.Signals(-exit_code).name
    return f"{name}, as when memory runs out" if name == "SIGKILL" else name


class _Processes:
    """The workers that are alive, each with a pipe of its own: one that dies in the middle of a message
    holds up nobody else."""

    deaths_at_most = DEATHS_IN_A_ROW

    def __init__(self, job: Job, count: int) -> None:
        self._job, self._count = job, count
        self._alive: dict[Connection, tuple[int, BaseProcess]] = {}

    def start(self, number: int) -> None:
        """Start worker `number` with its share of the machine."""
        context = multiprocessing.get_context("spawn")
        receive, send = context.Pipe(duplex=False)
        process = context.Process(
            target=_work, args=(self._job, os.getpid(), send), name=f"worker {number}"
        )
        share = _share(self._job.device, number, self._count)
        with share, _deaf_to_interrupts(), _main_hidden():
            process.start()
        send.close()
        self._alive[receive] = (number, process)
        if is_asked():  # while it was being started, and not among those who are told
            self.pass_on()

    def messages(self) -> Iterator[tuple[int, TrialDone | Failed | Died]]:
        """(worker, what was heard of it), until all have ended."""
        while self._alive:
            for pipe in wait(list(self._alive)):
                assert isinstance(pipe, Connection)
                number, process = self._alive[pipe]
                try:
                    message = pipe.recv()
                except (EOFError, OSError):
                    process.join()
                    pipe.close()
                    del self._alive[pipe]
                    if process.exitcode:
                        yield number, Died(_in_words(process.exitcode))
                else:
                    yield number, message

    def pass_on(self) -> None:
        """Let every worker end after the epoch that it is in; one that is still starting ends at once."""
        for _, process in list(self._alive.values()):
            if process.pid is not None and process.is_alive():
                os.kill(process.pid, signal.SIGUSR1)

    def stop(self) -> None:
        """Let every worker write down that it was stopped; kill what does not end, or at a second Ctrl-C."""
        processes = [process for _, process in self._alive.values()]
        try:
            for process in processes:
                process.terminate()
            for process in processes:
                process.join(PATIENCE_SECONDS)
        finally:
            for process in processes:
                process.kill()
                process.join()


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Ctrl-C is for the parent to decide on: what is started in the block does not hear it, also before
    it can say so. This one hears it after the block."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _main_hidden() -> Iterator[None]:
    """What is started in the block does not import the caller's script: one without a main guard would run
    the study again, and what was typed into `python -` is in no file."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextmanager
def _share(device: str, number: int, count: int) -> Iterator[None]:
    """Environment of worker `number` of `count`: its threads, and its accelerator where there are several.

    Threads are those of the processor divided by the workers, unless the user has set OMP_NUM_THREADS; GPUs
    are dealt out one by one."""
    import torch

    changes = {}
    if "OMP_NUM_THREADS" not in os.environ:
        changes["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // count))
    if device in ("auto", "cuda") and torch.cuda.is_available():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        gpus = [v for v in visible if v] or [str(i) for i in range(torch.cuda.device_count())]
        changes["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
    before = dict(os.environ)
    os.environ.update(changes)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _work(job: Job, parent: int, send: Connection) -> None:
    """A worker's whole life."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    raise_on_terminate()
    stop_on_request()
    try:
        die_with_parent(parent)
        for message in work(job):
            send.send(message)
    except Terminated:
        sys.exit(128 + signal.SIGTERM)
    except BrokenPipeError:
        pass  # the parent is gone
    finally:
        signal.signal(
            signal.SIGTERM, signal.SIG_IGN
        )  # nothing is left that a second one could stop


def work(job: Job) -> Iterator[TrialDone | Failed]:
    """What a worker does and says: each slot that it ran, without predictions, and why it cannot go on."""
    try:
        for done in run_study(job.study(), job.bench()):
            if done.result is not None:
                yield dataclasses.replace(done, result=_light(done.result))
    except (UserError, StudyStopped) as error:
        yield Failed(str(error), isinstance(error, UserError))


def _light(result: TrialResult) -> TrialResult:
    return dataclasses.replace(result, predictions=None)
