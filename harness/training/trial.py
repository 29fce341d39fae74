"""Run one trial: a worker turns a picklable task into picklable messages.

    for message in run_trial(task):
        ...                           # Started, then EpochResults, then one TrialResult

Imports neither Optuna nor MLflow, so a worker needs no database and no server.
"""

from __future__ import annotations

import gc
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import chain
from pathlib import Path

import torch

from harness.core.errors import UserError, first_line
from harness.core.results import NOT_RUN, WAITED, EpochResult, TrialResult
from harness.core.signals import Terminated, stop_requested, time_limit
from harness.core.spec import TrialSpec
from harness.core.units import format_bytes
from harness.data.cached import Cache
from harness.training.checkpoint import BadCheckpoint, Checkpoint, trial_key
from harness.training.device import MIB, Device, resolve_device
from harness.training.fit import Diverged, Fit
from harness.training.forecast import forecast
from harness.training.loop import start
from harness.training.outcomes import classify, reason_of
from harness.training.provenance import environment, inputs_of, located_anywhere
from harness.training.waiting import Waiting

CHECKPOINT_SECONDS = 30.0
"""Interval between checkpoints; a shorter trial leaves none."""
RESIDENT = 0.5
"""Share of the device memory left by the forecast that examples may take."""


@dataclass(frozen=True)
class Limits:
    """Limits of a trial.

    Attributes:
        memory: in bytes; a trial whose forecast is higher ends as oom without being run.
        seconds: a trial that takes longer ends as timeout.
    """

    memory: int | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class TrialTask:
    """One trial to be run on any machine.

    Attributes:
        spec: everything that decides the run.
        test: score the test images once at the end.
        pruned: after each epoch, wait for the caller's answer whether to go on.
        device: name of the device.
        cache: keeps decoded images and outputs of frozen groups.
        limits: limits of the trial.
        checkpoints: folder for checkpoints; None saves none.
        inputs: expected hashes of the images and weights.
    """

    spec: TrialSpec
    test: bool = False
    pruned: bool = False
    device: str = "cpu"
    cache: Cache = field(default_factory=Cache)
    limits: Limits = field(default_factory=Limits)
    checkpoints: Path | None = None
    inputs: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Started:
    """The first message of a trial.

    Attributes:
        provenance: device, threads and versions of the process that runs the trial, by tag.
        process: id of that process.
    """

    provenance: Mapping[str, str]
    process: int


Message = Started | EpochResult | TrialResult
Messages = Generator[Message, bool | None, None]


def run_trial(task: TrialTask, begin: Callable[..., Fit] = start) -> Messages:
    """Yield the messages of one trial. If the task is `pruned`, send True to go on or False to stop after
    each EpochResult.

    An exception of the training is not raised; it becomes the outcome and reason of the TrialResult.
    SIGTERM and Ctrl-C pass through.

    Args:
        task: the trial to run.
        begin: creates the trial; `harness.training.loop.start` except in tests and benchmarks.
    """
    device = resolve_device(task.device)
    yield Started(_provenance(device, torch.get_num_threads()), os.getpid())
    clock = _Clock(task.limits.seconds)
    peaks, waiting = device.peaks, Waiting()
    try:
        messages = _Trial(task, device, begin).messages()
        answer: bool | None = None
        while True:
            with clock:
                message = messages.send(answer)
            if isinstance(message, TrialResult) and (share := waiting.share()) is not None:
                message = replace(message, metrics={**message.metrics, WAITED: share})
            answer = yield message
    except StopIteration:
        return
    except (GeneratorExit, KeyboardInterrupt, Terminated):
        raise
    except BaseException as error:  # a strategy of the user's may call sys.exit
        # Only text leaves this block: the traceback would keep the model's tensors alive.
        outcome, reason = classify(error), reason_of(error)
    messages.close()
    del messages
    gc.collect()
    yield TrialResult(outcome, peaks(), reason)


def answered(task: TrialTask, ask: Callable[[], bool]) -> Iterator[Message]:
    """The messages of one trial; `ask` waits for the answer to each EpochResult if the task is `pruned`."""
    messages, answer = run_trial(task), None
    with suppress(StopIteration):
        while True:
            message = messages.send(answer)
            yield message
            answer = ask() if task.pruned and isinstance(message, EpochResult) else None


@cache
def _provenance(device: Device, _threads: int) -> Mapping[str, str]:
    """Provenance tags, read once per process and setting, because they need git and some files."""
    return environment(device)


class _Clock:
    """Raise TrialTimeout when its blocks together take longer than the limit."""

    def __init__(self, seconds: float | None) -> None:
        self._limit, self._left = seconds, seconds

    def __enter__(self) -> None:
        self._began = time.monotonic()
        left = None if self._left is None else max(self._left, 1e-3)
        self._alarm = time_limit(left, f"took longer than {self._limit or 0:g} s")
        self._alarm.__enter__()

    def __exit__(self, *_: object) -> None:
        self._alarm.__exit__(None, None, None)
        if self._left is not None:
            self._left -= time.monotonic() - self._began


@dataclass(frozen=True)
class _Trial:
    task: TrialTask
    device: Device
    begin: Callable[..., Fit]

    def messages(self) -> Messages:
        """Forecast the memory, then train epoch by epoch, from the checkpoint if there is one."""
        self._check_inputs()
        device, expected = self._forecast()
        needed, limit = expected.get("forecast_peak_mib", 0.0) * MIB, self.task.limits.memory
        if limit is not None and needed > limit:
            reason = f"forecast {format_bytes(needed)}, --max-memory {format_bytes(limit)}"
            yield TrialResult("oom", expected, NOT_RUN + reason)
            return
        result = yield from self._train(device)
        yield replace(result, metrics={**result.metrics, **compared(expected, result.metrics)})

    def _check_inputs(self) -> None:
        """Raises UserError if images or weights on this machine differ from the coordinator's."""
        spec, expected = self.task.spec, self.task.inputs
        if not expected:
            return
        try:
            found = inputs_of(spec.target, spec.backbone, spec.source)
        except UserError as error:
            raise UserError(f"on {platform.node()}: {error}") from error
        for what, wanted in expected.items():
            if found.get(what) != wanted:
                raise UserError(
                    f"{what} of target {spec.target}, backbone {spec.backbone} on {platform.node()} is "
                    f"{str(found.get(what))[:12]}, the study's is {wanted[:12]}: every machine must have the "
                    "same files at the same path"
                )

    def _train(self, device: Device) -> Generator[Message, bool | None, TrialResult]:
        kept: Checkpoint | None = None
        finished = False
        try:
            try:
                kept = self._kept()
                fit = self.begin(self.task.spec, device, self.task.cache, kept)
                result = yield from self._follow(fit, kept.epochs if kept else ())
            except BadCheckpoint as error:
                self._drop(first_line(error))
                kept = None
                fit = self.begin(self.task.spec, device, self.task.cache)
                result = yield from self._follow(fit, ())
            finished = result.outcome != "killed"
        except Exception:
            finished = True
            raise
        finally:
            if finished:
                self._drop()
        if kept is not None:
            notes = {**result.notes, "resumed": f"after epoch {kept.epochs[-1].epoch}"}
            result = replace(result, notes=notes)
        return result

    def _follow(
        self, fit: Fit, earlier: tuple[EpochResult, ...]
    ) -> Generator[Message, bool | None, TrialResult]:
        """Train epoch by epoch; the epochs of an earlier attempt come first."""
        epochs, saved, last = iter(fit), time.monotonic(), None
        # A checkpoint may turn out to be bad when training begins, so its epochs are yielded only afterwards.
        begun = [e for e in [next(epochs, None)] if e is not None]
        resumed = len(earlier)
        for position, last in enumerate(chain(earlier, begun, epochs)):
            if not (math.isfinite(last.val_accuracy) and math.isfinite(last.val_loss)):
                # Optuna would treat infinity as the best value, and NaN as missing.
                raise Diverged(f"validation loss {last.val_loss}, accuracy {last.val_accuracy}")
            go_on = yield last
            if self.task.pruned and go_on is False:
                return replace(fit.finish(test=False), outcome="pruned")
            if position < resumed:
                continue
            due = stop_requested() or time.monotonic() - saved >= CHECKPOINT_SECONDS
            if due and self._save(fit):
                saved = time.monotonic()
            if stop_requested():
                return TrialResult("killed", reason=f"stopped on request after epoch {last.epoch}")
        result = fit.finish(test=self.task.test)
        assert last is not None  # a spec has at least one epoch
        return replace(result, metrics={**result.metrics, **last.validation})

    def _forecast(self) -> tuple[Device, dict[str, float]]:
        """The device, with room for examples in the memory that training leaves, and the forecast of the peak
        accelerator memory as a metric. Without either if the network cannot be forecast.

        Raises:
            UserError: if there is a limit and no forecast can be made.
        """
        limit = self.task.limits.memory
        try:
            found = forecast(self.task.spec)
        except UserError:
            if limit is not None:
                raise
            return self.device, {}
        free = self.device.free_memory()
        left = (free if limit is None else min(free, limit)) - found.peak_mib * MIB
        room = max(0, int(RESIDENT * left))
        expected = found.with_room(room).peak_mib
        return replace(self.device, room=room), {"forecast_peak_mib": expected}

    # --- checkpoints -------------------------------------------------------------------------------

    @property
    def _file(self) -> Path | None:
        folder = self.task.checkpoints
        return (
            None
            if folder is None
            else folder / f"{trial_key(located_anywhere(self.task.spec))}.checkpoint"
        )

    def _kept(self) -> Checkpoint | None:
        """The checkpoint of this trial; None if there is none. Raises BadCheckpoint if it is damaged."""
        with suppress(FileNotFoundError):
            return None if self._file is None else Checkpoint.load(self._file)
        return None

    def _save(self, fit: Fit) -> bool:
        state = fit.checkpoint() if self._file is not None else None
        if state is None or self._file is None:
            return False
        try:
            state.save(self._file)
        except OSError as error:
            _warn(f"no checkpoint could be kept in {self._file.parent}: {first_line(error)}")
        return True

    def _drop(self, why: str = "") -> None:
        if why:
            _warn(f"{why}; the trial starts over")
        if self._file is not None:
            with suppress(OSError):
                self._file.unlink(missing_ok=True)


def compared(expected: Mapping[str, float], metrics: Mapping[str, float]) -> dict[str, float]:
    """The forecast, and the measured peak as a share of it where an accelerator measured one."""
    measured = metrics.get("peak_accelerator_allocated_mib")
    if not expected or measured is None:
        return dict(expected)
    return {**expected, "measured_over_forecast": measured / expected["forecast_peak_mib"]}


def _warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr)
