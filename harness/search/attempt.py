"""How does a claimed slot become a result? Forecast, then trained epoch by epoch, from its checkpoint on."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain

import optuna

from harness.checkpoint import BadCheckpoint
from harness.errors import UserError, first_line
from harness.forecast import forecast
from harness.measure import MIB
from harness.results import NOT_RUN, EpochResult, TrialResult
from harness.search.bench import Bench
from harness.search.cells import Claim
from harness.search.signals import Terminated
from harness.sizes import in_words
from harness.train import Diverged, Fit, start


class LeaseLost(Exception):
    """Another process took this trial for dead and has ended it."""


@dataclass(frozen=True)
class Attempt:
    """One attempt at a slot.

    Attributes:
        bench: where and with what.
        claim: on the slot, open in Optuna.
        run_id: of its run in MLflow.
    """

    bench: Bench
    claim: Claim
    run_id: str

    def run(self) -> TrialResult:
        """What came of it; a trial that is forecast not to fit is not run.

        Raises:
            LeaseLost: if another process has ended it.
            Exception: whatever training raises.
        """
        expected = self._forecast()
        needed, limit = expected.get("forecast_peak_mib", 0.0) * MIB, self.bench.limits.memory
        if limit is not None and needed > limit:
            reason = f"forecast {in_words(needed)}, --max-memory {in_words(limit)}"
            return TrialResult("oom", expected, NOT_RUN + reason)
        result = self._train()
        return replace(result, metrics={**result.metrics, **compared(expected, result.metrics)})

    def _train(self) -> TrialResult:
        spec, checkpoints = self.claim.spec, self.bench.checkpoints
        kept = checkpoints.find(spec)
        try:
            fit = start(spec, self.bench.device, self.bench.cache, kept)
            result = self._follow(fit, kept.epochs if kept else ())
        except BadCheckpoint as error:
            checkpoints.drop(spec, first_line(error))
            kept = None
            fit = start(spec, self.bench.device, self.bench.cache)
            result = self._follow(fit, ())
        finally:
            if not isinstance(sys.exception(), (Terminated, KeyboardInterrupt, LeaseLost)):
                checkpoints.drop(spec)
        if kept is not None:
            notes = {**result.notes, "resumed": f"after epoch {kept.epochs[-1].epoch}"}
            result = replace(result, notes=notes)
        return result

    def _follow(self, fit: Fit, earlier: tuple[EpochResult, ...]) -> TrialResult:
        """Train epoch by epoch and tell both stores of each; those of an earlier attempt come first."""
        claim, last = self.claim, None
        epochs = self.bench.checkpoints.keeping(claim.spec, fit)
        # A checkpoint may turn out bad when training begins: nothing of it is told before.
        begun = [e for e in [next(epochs, None)] if e is not None]
        for last in chain(earlier, begun, epochs):
            if not (math.isfinite(last.val_accuracy) and math.isfinite(last.val_loss)):
                # Optuna would take infinity for the best value of all, and NaN for none.
                raise Diverged(f"validation loss {last.val_loss}, accuracy {last.val_accuracy}")
            self.bench.recorder.epoch(self.run_id, last)
            told(partial(claim.trial.report, last.val_accuracy, last.epoch))
            if claim.slot.phase == "tune" and claim.trial.should_prune():
                return replace(fit.finish(test=False), outcome="pruned")
        result = fit.finish(test=claim.slot.phase == "repeat")
        assert last is not None  # a spec has at least one epoch
        final = {"val_loss": last.val_loss, "val_accuracy": last.val_accuracy}
        return replace(result, metrics={**result.metrics, **final})

    def _forecast(self) -> dict[str, float]:
        """Peak accelerator memory as a metric; none for a network that cannot be forecast.

        Raises:
            UserError: if there is a limit and no forecast can be made.
        """
        try:
            return {"forecast_peak_mib": forecast(self.claim.spec).peak_mib}
        except UserError:
            if self.bench.limits.memory is not None:
                raise
            return {}


def compared(expected: Mapping[str, float], metrics: Mapping[str, float]) -> dict[str, float]:
    """The forecast, and the measured peak as a share of it where an accelerator measured one."""
    measured = metrics.get("peak_accelerator_allocated_mib")
    if not expected or measured is None:
        return dict(expected)
    return {**expected, "measured_over_forecast": measured / expected["forecast_peak_mib"]}


def told(tell: Callable[[], None]) -> None:
    """Tell Optuna something of a trial; raises LeaseLost if another process has ended it."""
    try:
        tell()
    except optuna.exceptions.UpdateFinishedTrialError:
        raise LeaseLost from None
