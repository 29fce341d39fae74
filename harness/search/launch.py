"""Run a checked study: open the record and MLflow, choose the executor."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from harness.core.command_line import program
from harness.core.errors import without_password
from harness.core.records import StudyInfo
from harness.core.signals import (
    Terminated,
    forget_request,
    handlers_put_back,
    raise_on_terminate,
    request_stop_on_signal,
)
from harness.core.spec import Study
from harness.core.stores import default_tracking_uri, record_home, record_url
from harness.core.study_file import question_of, study_file_tags, study_sha256
from harness.core.units import parse_size
from harness.data.cached import Cache, default_folder
from harness.search.coordinator import RunContext, StudyStopped, prepare, run_study
from harness.search.executors import Executor
from harness.search.executors.inline import Inline
from harness.search.lock import sole_runner
from harness.search.overview import overview
from harness.search.plan import Plan, Shard
from harness.search.progress import show
from harness.search.record import Record, StorageFailed, storage_failures
from harness.search.storage import open_storage
from harness.tracking.projection import Projection
from harness.training.trial import Limits

ROOT = Path("mlruns")


def open_cache(arguments: argparse.Namespace) -> Cache:
    """The requested cache; if its folder cannot be used, a warning is printed and nothing is cached."""
    budget = parse_size(arguments.cache_budget)
    cache = Cache((arguments.cache_dir or default_folder()) if budget else None, budget)
    if complaint := cache.complaint():
        print(f"warning: {complaint}; name another folder with --cache-dir", file=sys.stderr)
        return Cache(None, 0)
    return cache


def limits_of(arguments: argparse.Namespace) -> Limits:
    """The limits of a trial."""
    memory = None if arguments.max_memory is None else parse_size(arguments.max_memory)
    seconds = None if arguments.max_minutes is None else 60 * arguments.max_minutes
    return Limits(memory, seconds)


def carry_out(study: Study, info: StudyInfo, arguments: argparse.Namespace, cache: Cache) -> int:
    """Run or resume the study; returns the command's exit code.

    Raises:
        UserError: if another command runs it, it differs from the recorded study, or one of the stores
            cannot be used.
    """
    forget_request()
    with handlers_put_back():
        return _carry_out(study, info, arguments, cache)


def _carry_out(study: Study, info: StudyInfo, arguments: argparse.Namespace, cache: Cache) -> int:
    # If there is no cluster, this fails before a store is created.
    executor = executor_of(arguments)
    raise_on_terminate()
    request_stop_on_signal(executor.request_stop)
    home = record_home(arguments.storage, arguments.tracking_uri)
    # The store that the user named is opened first: if it is refused, no default database is created.
    record = Record(open_storage(record_url(arguments.storage, arguments.tracking_uri)), home)
    shard = Shard.parse(arguments.cells) if arguments.cells else Shard()
    try:
        with sole_runner(home, study.name):
            uri = arguments.tracking_uri or default_tracking_uri(ROOT)
            projection = Projection(uri, info, record)
            projection.open()
            context = RunContext(
                record=record,
                projection=projection,
                device=arguments.device,
                cache=cache,
                limits=limits_of(arguments),
                shard=shard,
                tags=study_file_tags(arguments.space),
            )
            prepare(study, info, context)
            projection.settle()
            plan = Plan.of(study, shard.cells(study))
            show(
                lambda: overview(plan, record.trials(info)),
                run_study(study, context, executor),
                arguments.detail,
            )
            with storage_failures():
                completed = any(t.outcome == "complete" for t in record.trials(info))
    except (StudyStopped, StorageFailed) as error:
        return _say(f"study stopped: {error}", 1)
    except Terminated:
        return _say("stopped by SIGTERM or SIGUSR1; run the same command again to go on", 143)
    finally:
        executor.close()
    if projection.behind:
        print(
            f"warning: MLflow lacks a part of the study; when its store answers, "
            f"python -m harness.sync --study {shlex.quote(study.name)} completes it",
            file=sys.stderr,
        )
    if not completed:
        return _say("no trial of any cell completed; the report counts how they ended", 1)
    print_where_to_look(study, arguments.tracking_uri)
    return 0


def executor_of(arguments: argparse.Namespace) -> Executor:
    """The executor of the trials.

    Raises:
        UserError: if there is no such cluster.
    """
    if arguments.engine == "ray":
        from harness.search.executors.ray_tasks import RayTasks, Room, connect  # an optional extra

        cpus = 1.0 if arguments.worker_cpus is None else arguments.worker_cpus
        room = Room(cpus, arguments.worker_gpus or 0.0)
        connect(arguments.address or "auto", room)
        return RayTasks(arguments.workers, room, arguments.space)
    if arguments.workers > 1:
        from harness.search.executors.processes import Processes

        return Processes(arguments.workers, arguments.space)
    return Inline()


def _say(message: str, code: int) -> int:
    print(message, file=sys.stderr)
    return code


def warn_of_addresses(arguments: argparse.Namespace) -> None:
    """Warn of passwords in the addresses of the stores."""
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
    """The description of the study for the record."""
    command = f"python -m harness.study --space {shlex.quote(str(arguments.space))}"
    for name in (
        "device",
        "trials",
        "repeats",
        "cells",
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
        baseline=dict(study.baseline),
        trials=study.trials,
        repeats=study.repeats,
        sampler=study.sampler,
        seed=study.seed,
        leaks=leaks,
        study_file=arguments.space.name,
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
