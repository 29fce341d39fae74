"""How is a study carried out, once it is known to be right? Stores are opened, workers started, the end told.

python -m harness.study --space studies/freeze_depth.py
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from harness.command import program
from harness.errors import without_password
from harness.progress import show
from harness.record import StudyInfo
from harness.rows import Cache, default_folder
from harness.search.bench import Bench, Limits
from harness.search.preemption import forget_request, stop_on_request
from harness.search.runner import (
    StudyStopped,
    TrialDone,
    any_complete,
    prepare,
    run_study,
    storage_failures,
)
from harness.search.signals import Terminated, handlers_put_back, raise_on_terminate
from harness.search.workers import Job, run_in_processes
from harness.sizes import parse_size
from harness.spec import Study
from harness.study_file import question_of, study_sha256

ROOT = Path("mlruns")


def open_cache(arguments: argparse.Namespace) -> Cache:
    """As it was asked for; where the folder cannot be used, a warning and none."""
    budget = parse_size(arguments.cache_budget)
    cache = Cache((arguments.cache_dir or default_folder()) if budget else None, budget)
    if complaint := cache.complaint():
        print(f"warning: {complaint}; name another folder with --cache-dir", file=sys.stderr)
        return Cache(None, 0)
    return cache


def job_of(
    study: Study, arguments: argparse.Namespace, leaks: tuple[str, ...], cache: Cache
) -> Job:
    """What was asked for, in words that another process understands."""
    memory = None if arguments.max_memory is None else parse_size(arguments.max_memory)
    seconds = None if arguments.max_minutes is None else 60 * arguments.max_minutes
    return Job(
        space=arguments.space,
        info=study_info(study, arguments, leaks),
        device=arguments.device,
        storage=arguments.storage,
        tracking_uri=arguments.tracking_uri,
        root=ROOT.resolve(),
        cache=cache,
        limits=Limits(memory, seconds),
    )


def carry_out(study: Study, job: Job, arguments: argparse.Namespace) -> int:
    """Run it, or go on with it; returns the command's exit code.

    Raises:
        UserError: if it is not the study that was recorded, or one of the stores is not to be had.
    """
    forget_request()
    with handlers_put_back():
        return _carry_out(study, job, arguments)


def _carry_out(study: Study, job: Job, arguments: argparse.Namespace) -> int:
    # A cluster that is not there, or cannot share the stores, is told before one of them is made.
    begin = _on_ray(job, arguments) if arguments.engine == "ray" else _here
    raise_on_terminate()
    if arguments.workers == 1 and arguments.engine != "ray":
        stop_on_request()
    try:
        bench = job.bench()
        with storage_failures():
            others = prepare(study, bench)
        for other in sorted(others):
            print(f"process {other} works on this study too; joining in", file=sys.stderr)
        show(study, bench.storage, begin(study, job, bench, arguments.workers), arguments.detail)
        if waiting := bench.recorder.flush():
            print(
                f"warning: the tracking store lacks what is kept for it of {waiting} runs; when it answers, "
                f"python -m harness.verify --study {study.name} sends it",
                file=sys.stderr,
            )
        with storage_failures():
            completed = any_complete(study, bench.storage)
    except StudyStopped as error:
        return _say(f"study stopped: {error}", 1)
    except Terminated:
        return _say("stopped by SIGTERM or SIGUSR1; run the same command again to go on", 143)
    if not completed:
        return _say("no trial of any cell completed; the report counts how they ended", 1)
    print_where_to_look(study, arguments.tracking_uri)
    return 0


def _here(study: Study, job: Job, bench: Bench, workers: int) -> Iterator[TrialDone]:
    if workers > 1:
        return run_in_processes(job, bench, study, workers)
    return run_study(study, bench)


def _on_ray(
    job: Job, arguments: argparse.Namespace
) -> Callable[[Study, Job, Bench, int], Iterator[TrialDone]]:
    """Join the cluster; returns what runs a study there."""
    from harness.search.ray_engine import Room, connect, run_on_ray  # an optional extra

    cpus = 1.0 if arguments.worker_cpus is None else arguments.worker_cpus
    room = Room(cpus, arguments.worker_gpus or 0.0)
    connect(arguments.address or "auto", job, room)
    return lambda study, job, bench, workers: run_on_ray(job, bench, study, workers, room)


def _say(message: str, code: int) -> int:
    print(message, file=sys.stderr)
    return code


def warn_of_addresses(arguments: argparse.Namespace) -> None:
    """Say what is odd about how the stores were named: nothing is wrong with them."""
    for option, url, better in (
        ("--storage", arguments.storage, "~/.pgpass"),
        ("--tracking-uri", arguments.tracking_uri, "~/.mlflow/credentials"),
    ):
        if url and without_password(url) != url:
            print(
                f"warning: every user of this machine can read the password in {option} while this runs; "
                f"leave it out, and put it into {better}",
                file=sys.stderr,
            )


def study_info(study: Study, arguments: argparse.Namespace, leaks: tuple[str, ...]) -> StudyInfo:
    """The study as the recorder describes it."""
    command = f"python -m harness.study --space {shlex.quote(str(arguments.space))}"
    for name in (
        "device",
        "trials",
        "repeats",
        "storage",
        "tracking_uri",
        "max_memory",
        "max_minutes",
        "workers",
        "engine",
        "address",
        "worker_cpus",
        "worker_gpus",
        "cache_budget",
    ):
        value = getattr(arguments, name)
        if value is not None and (name, value) not in (
            ("device", "auto"),
            ("workers", 1),
            ("engine", "processes"),
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
        space_sha256=study_sha256(arguments.space),
    )


def print_where_to_look(study: Study, given_uri: str | None) -> None:
    """The next two commands, ready to paste."""
    uri = given_uri or "sqlite:///mlruns/mlflow.db"
    extra = f" --tracking-uri {shlex.quote(without_password(given_uri))}" if given_uri else ""
    print(f"report:    {program('python')} -m analysis.report --study {study.name}{extra}")
    if uri.startswith("http"):
        print(f"MLflow UI: {without_password(uri)}")
    else:
        shown = shlex.quote(without_password(uri))
        print(
            f"MLflow UI: {program('mlflow')} ui --backend-store-uri {shown} --host 127.0.0.1 --workers 1"
        )
