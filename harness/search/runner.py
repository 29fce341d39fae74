"""What happens to each slot of the plan? Cells x trials, then cells x repeats, one after the other.

`run_study` yields one TrialDone per slot; showing progress is the caller's business.
"""

from __future__ import annotations

import fcntl
import gc
import os
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import optuna
import torch

from harness.audit import AuditFailed
from harness.forecast import forecast
from harness.measure import MIB, Device
from harness.record import Recorder
from harness.rows import Cache, in_words
from harness.search.cells import CellSearch, Claim, Slot, check_stores_agree, reap
from harness.spec import (
    EpochResult,
    Outcome,
    Study,
    TrialResult,
    TrialSpec,
    UserError,
    cell_label,
    first_line,
)
from harness.train import Diverged, Fit, start

CRASHES_IN_A_ROW = 3


class StudyStopped(Exception):
    """The study ended itself because going on would waste the budget."""


@dataclass(frozen=True)
class TrialDone:
    """One slot of the plan, finished now or (`resumed`) by an earlier run of the command."""

    slot: Slot
    resumed: bool
    result: TrialResult | None = None


@contextmanager
def sole_runner(folder: Path, name: str) -> Iterator[None]:
    """Hold the study's lock; the system drops it when the process dies, however it dies.

    Raises:
        UserError: if another process holds it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        opened = (folder / f".{name}.lock").open("a+")
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {first_line(error)}") from error
    with opened as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            raise UserError(
                f"study {name!r} is running already (process {lock.read().strip() or 'unknown'}); "
                "wait for it or stop it"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def run_study(
    study: Study,
    storage: optuna.storages.BaseStorage,
    recorder: Recorder,
    device: Device,
    tags: Mapping[str, str],
    cache: Cache = Cache(),
    max_memory: int | None = None,
) -> Iterator[TrialDone]:
    """Tune every cell, choose on validation, repeat the chosen configurations and score them on test.

    Cells take turns, so that a machine that slows down slows all of them alike.

    Args:
        study: the question, with trials and repeats as they are to be.
        storage: Optuna's memory.
        recorder: MLflow's.
        device: where to compute.
        tags: environment, put on every run.
        cache: where decoded images and outputs of frozen groups are kept.
        max_memory: bytes; a trial whose forecast is higher ends as oom without being run.

    Raises:
        StudyStopped: after three crashes in a row.
        UserError: if the space changed since the study was recorded.
    """
    tags = {"study": study.name, **tags}
    runner = _Runner(recorder, device, cache, max_memory, tags)
    searches = [CellSearch(study, cell, storage) for cell in study.cells()]
    for search in searches:
        search.check_unchanged()
    runner.reap(reap(study, storage))
    check_stores_agree(study, storage, recorder.complete())
    for index in range(study.trials):
        for search in searches:
            yield runner.run_slot(search, index)
    chosen = [(s.cell, s.choose()) for s in searches]
    repeats = [CellSearch(study, cell, storage, best) for cell, best in chosen if best is not None]
    for search in repeats:
        recorder.supersede(cell_label(search.cell), search.chosen_index)
    for index in range(study.repeats):
        for search in repeats:
            yield runner.run_slot(search, index)


def compared(expected: Mapping[str, float], metrics: Mapping[str, float]) -> dict[str, float]:
    """The forecast, and the measured peak as a share of it where an accelerator measured one."""
    measured = metrics.get("peak_accelerator_allocated_mib")
    if not expected or measured is None:
        return dict(expected)
    return {**expected, "measured_over_forecast": measured / expected["forecast_peak_mib"]}


class _Runner:
    """Runs slots and writes down how they ended, MLflow first, Optuna last."""

    def __init__(
        self,
        recorder: Recorder,
        device: Device,
        cache: Cache,
        max_memory: int | None,
        tags: Mapping[str, str],
    ) -> None:
        self._recorder, self._device, self._cache, self._tags = recorder, device, cache, tags
        self._max_memory = max_memory
        self._crashes = 0

    def reap(self, run_ids: list[str]) -> None:
        """Close the runs of trials whose runner died, and runs never linked to an Optuna trial."""
        for run_id in {*run_ids, *self._recorder.unfinished()}:
            self._recorder.finish(run_id, TrialResult("killed", reason="its runner died"))

    def run_slot(self, search: CellSearch, index: int) -> TrialDone:
        if search.is_done(index):
            return TrialDone(Slot(search.cell, search.phase, index), resumed=True)
        claim = search.claim(index)
        run_id = self._recorder.start(claim.spec, _run_name(claim), self._run_tags(search, claim))
        claim.trial.set_user_attr("run_id", run_id)
        try:
            result = self._run(claim, run_id)
        except BaseException as error:  # Ctrl-C and bad input end the study, but not silently
            killed = TrialResult("killed", reason=f"{type(error).__name__}: {error}"[:500])
            self._recorder.finish(run_id, killed)
            search.close(claim, killed)
            raise
        self._recorder.finish(run_id, result)
        search.close(claim, result)
        self._count_crashes(claim, result)
        return TrialDone(claim.slot, resumed=False, result=result)

    def _run(self, claim: Claim, run_id: str) -> TrialResult:
        try:
            expected = self._forecast(claim.spec)
            needed = expected.get("forecast_peak_mib", 0.0) * MIB
            if self._max_memory is not None and needed > self._max_memory:
                reason = f"forecast {in_words(needed)}, --max-memory {in_words(self._max_memory)}"
                return TrialResult("oom", expected, f"not run: {reason}")
            result = _train(
                claim,
                start(claim.spec, self._device, self._cache),
                lambda e: self._recorder.epoch(run_id, e),
            )
            return replace(result, metrics={**result.metrics, **compared(expected, result.metrics)})
        except UserError:
            raise
        except Exception as error:
            # Only words leave this block: the traceback would keep the model's tensors alive.
            outcome, reason = classify(error), _reason(error)
        gc.collect()
        return TrialResult(outcome, self._device.peaks(), reason)

    def _forecast(self, spec: TrialSpec) -> dict[str, float]:
        """Peak accelerator memory as a metric; none for a network that cannot be forecast.

        Raises:
            UserError: if there is a limit and no forecast can be made.
        """
        try:
            return {"forecast_peak_mib": forecast(spec).peak_mib}
        except UserError:
            if self._max_memory is not None:
                raise
            return {}

    def _run_tags(self, search: CellSearch, claim: Claim) -> dict[str, object]:
        chosen = {} if search.phase == "tune" else {"chosen": search.chosen_index}
        return {
            **self._tags,
            **claim.slot.cell,
            "cell": cell_label(claim.slot.cell),
            "phase": claim.slot.phase,
            "index": claim.slot.index,
            "seed": claim.spec.seed,
            "attempt": claim.attempt,
            "optuna_trial": claim.trial.number,
            **chosen,
        }

    def _count_crashes(self, claim: Claim, result: TrialResult) -> None:
        self._crashes = self._crashes + 1 if result.outcome in ("crashed", "audit_failed") else 0
        if self._crashes >= CRASHES_IN_A_ROW:
            raise StudyStopped(
                f"{CRASHES_IN_A_ROW} trials in a row ended as {result.outcome}, the last one "
                f"({claim.slot}) with: {result.reason}"
            )


def _train(claim: Claim, fit: Fit, log: Callable[[EpochResult], None]) -> TrialResult:
    last = None
    for last in fit:
        log(last)
        claim.trial.report(last.val_accuracy, last.epoch)
        if claim.slot.phase == "tune" and claim.trial.should_prune():
            return replace(fit.finish(test=False), outcome="pruned")
    result = fit.finish(test=claim.slot.phase == "repeat")
    assert last is not None  # a spec has at least one epoch
    final = {"val_loss": last.val_loss, "val_accuracy": last.val_accuracy}
    return replace(result, metrics={**result.metrics, **final})


def classify(error: Exception) -> Outcome:
    """The outcome that an exception in a trial stands for."""
    if isinstance(error, Diverged):
        return "diverged"
    if isinstance(error, AuditFailed):
        return "audit_failed"
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return "oom"
    if isinstance(error, RuntimeError) and "can't allocate memory" in str(error):
        return "oom"
    return "crashed"


def _reason(error: Exception) -> str:
    where = traceback.extract_tb(error.__traceback__)[-1]
    file = "/".join(Path(where.filename).parts[-2:])
    return f"{type(error).__name__}: {error} ({file}:{where.lineno})"


def _run_name(claim: Claim) -> str:
    kind = "trial" if claim.slot.phase == "tune" else "repeat"
    return f"{cell_label(claim.slot.cell)} {kind} {claim.slot.index}"
