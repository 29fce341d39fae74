"""Check a study, then run it: open the record and MLflow, choose the executor, show the progress."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from harness.core.addresses import viewer_command
from harness.core.command_line import program
from harness.core.errors import UserError, without_password
from harness.core.race import SCREENING
from harness.core.records import StudyInfo
from harness.core.signals import (
    Terminated,
    forget_request,
    handlers_put_back,
    raise_on_terminate,
    request_stop_on_signal,
)
from harness.core.stores import default_tracking_uri, record_home, record_url
from harness.core.study import Study
from harness.core.study_file import (
    load_study,
    study_docstring,
    study_file_tags,
    study_sha256,
    study_text,
)
from harness.data.cache_folder import default_folder
from harness.data.cached import Cache
from harness.search.budget import check_first_round, check_one_target, check_options
from harness.search.coordinator import Coordinator, RunContext, StudyStopped
from harness.search.costs import CellCost, cell_costs
from harness.search.executors import Executor
from harness.search.executors.inline import Inline
from harness.search.lock import sole_runner
from harness.search.options import StudyOptions
from harness.search.overview import overview
from harness.search.plan import Shard
from harness.search.preflight import Preflight, check_study
from harness.search.preview import print_costs, print_plan
from harness.search.progress import show
from harness.search.record import Record, StorageFailed, read_record
from harness.search.space import quiet_optuna
from harness.search.storage import check_storage_url, open_storage
from harness.tracking.projection import Projection
from harness.training.device import resolve_device
from harness.training.provenance import clear_caches
from harness.training.trial import Limits


def launch(path: Path, options: StudyOptions, dry_run: bool = False) -> int:
    """Check a study, then run or resume it; returns the exit code of the command.

    Args:
        path: the study file.
        options: how it is run.
        dry_run: print what would run, and run nothing.

    Raises:
        UserError: on bad input, if another command runs the study, or if it differs from the recorded one.
    """
    study = load_study(path)
    study = dataclasses.replace(
        study,
        trials=study.trials if options.trials is None else options.trials,
        repeats=study.repeats if options.repeats is None else options.repeats,
        budget=study.budget if options.budget is None else options.budget,
    )
    shard = Shard.parse(options.cells) if options.cells else Shard()
    shard.cells(study)
    if study.budget is not None:
        check_options(study, options)
    if options.storage:
        check_storage_url(options.storage)
    if options.tracking_uri:
        from harness.tracking.experiment import check_tracking_uri  # MLflow takes seconds to import

        check_tracking_uri(options.tracking_uri)
    with quiet_optuna():
        device = resolve_device(options.device)
        cache = open_cache(options)
        clear_caches()
        checked = check_study(study, cache, options.max_memory is not None)
        print_notes(checked, options)
        if study.budget is not None:
            check_one_target(study, checked.specs)
        # A generator: costs are computed only where they are asked for.
        costs: Iterable[CellCost] = cell_costs(checked.specs, device, cache)
        if dry_run:
            print_plan(study, checked.specs, device)
            costs = print_costs(study, costs, options.max_memory)
        if study.budget is not None and not is_recorded(study.name, options):
            check_first_round(study, costs)
        if dry_run:
            return 0
        info = study_info(study, path, options, checked.leaks)
        forget_request()
        with handlers_put_back():
            return _carry_out(study, info, path, options, shard, cache)


def print_notes(checked: Preflight, options: StudyOptions) -> None:
    """Print what the checks found, and warn of passwords in the addresses of the stores."""
    for line in checked.notes:
        print(f"note: {line}", file=sys.stderr)
    for line in checked.leaks:
        print(f"warning: {line}", file=sys.stderr)
    for option, url, better in (
        ("--storage", options.storage, "~/.pgpass"),
        ("--tracking-uri", options.tracking_uri, "~/.mlflow/credentials"),
    ):
        if url and without_password(url) != url:
            print(
                f"warning: every user of this machine can read the password in {option} while this runs; "
                f"leave it out, and put it into {better}",
                file=sys.stderr,
            )


def is_recorded(name: str, options: StudyOptions) -> bool:
    """Whether there is a record of the study. Nothing is created; stores that cannot be read count as empty,
    because opening them says what is wrong."""
    with suppress(UserError):
        return read_record(options.storage, options.tracking_uri).has(name)
    return False


def open_cache(options: StudyOptions) -> Cache:
    """The requested cache; if its folder cannot be used, a warning is printed and nothing is cached."""
    budget = options.cache_budget
    cache = Cache((options.cache_dir or default_folder()) if budget else None, budget)
    if problem := cache.problem():
        print(f"warning: {problem}; name another folder with --cache-dir", file=sys.stderr)
        return Cache(None, 0)
    return cache


def _carry_out(
    study: Study,
    info: StudyInfo,
    path: Path,
    options: StudyOptions,
    shard: Shard,
    cache: Cache,
) -> int:
    # If there is no cluster, this fails before a store is created.
    executor = executor_of(path, options)
    raise_on_terminate()
    request_stop_on_signal(executor.request_stop)
    home = record_home(options.storage, options.tracking_uri)
    # The store that the user named is opened first: if it is refused, no default database is created.
    record = Record(open_storage(record_url(options.storage, options.tracking_uri)), home)
    seconds = None if options.max_minutes is None else 60 * options.max_minutes
    limits = Limits(options.max_memory, seconds)
    try:
        with sole_runner(home, study.name):
            uri = options.tracking_uri or default_tracking_uri()
            projection = Projection(uri, info, record)
            projection.open()
            context = RunContext(
                record=record,
                projection=projection,
                device=options.device,
                cache=cache,
                limits=limits,
                shard=shard,
                tags=study_file_tags(path),
            )
            coordinator = Coordinator(study, info, context, executor)
            cells = shard.cells(study)
            show(
                lambda: overview(coordinator.info, coordinator.trials(), cells),
                coordinator.run(),
                "quiet" if options.quiet else "verbose" if options.verbose else "normal",
            )
            completed = any(trial.outcome == "complete" for trial in coordinator.trials())
    except (StudyStopped, StorageFailed) as error:
        return _say(f"study stopped: {error}", 1)
    except Terminated:
        return _say("stopped by SIGTERM or SIGUSR1; run the same command again to resume", 143)
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
    print_where_to_look(study, options.tracking_uri)
    return 0


def executor_of(path: Path, options: StudyOptions) -> Executor:
    """The executor of the trials.

    Raises:
        UserError: if there is no such cluster.
    """
    if options.engine == "ray":
        from harness.search.executors.ray_tasks import RayTasks, Room, connect  # an optional extra

        cpus = 1.0 if options.worker_cpus is None else options.worker_cpus
        room = Room(cpus, options.worker_gpus or 0.0)
        connect(options.address or "auto", room)
        return RayTasks(options.workers, room, path)
    if options.workers > 1 or options.max_minutes is not None:  # a process can be ended
        from harness.search.executors.processes import Processes

        return Processes(options.workers, path)
    return Inline()


def _say(message: str, code: int) -> int:
    print(message, file=sys.stderr)
    return code


def study_info(
    study: Study, path: Path, options: StudyOptions, leaks: tuple[str, ...] = ()
) -> StudyInfo:
    """The description of the study for the record."""
    return StudyInfo(
        name=study.name,
        question=study_docstring(path),
        command=options.command(path),
        factors={k: list(v) for k, v in study.compare.items()},
        baseline=dict(study.baseline),
        trials=study.trials,
        repeats=study.repeats,
        sampler=study.sampler,
        seed=study.seed,
        leaks=leaks,
        study_file=path.name,
        space_sha256=study_sha256(path),
        source=study_text(path),
        folds=study.fold_count,
        metric=study.metric,
        budget=study.seconds,
        screening=None if study.seconds is None else SCREENING * study.seconds,
    )


def print_where_to_look(study: Study, given_uri: str | None) -> None:
    """The next two commands, ready to paste."""
    uri = given_uri or "sqlite:///mlruns/mlflow.db"
    extra = f" --tracking-uri {shlex.quote(without_password(given_uri))}" if given_uri else ""
    print(f"report:    {program('python')} -m analysis.report --study {study.name}{extra}")
    print(f"MLflow UI: {viewer_command(uri, program('mlflow'))}")
