"""Forecast what a study takes per cell: accelerator memory, and training time from a few steps here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import fmean

from harness.core.results import BUSY
from harness.core.spec import TrialSpec
from harness.core.study import Study
from harness.core.units import format_bytes
from harness.data.cached import Cache
from harness.training.device import MIB, Device
from harness.training.forecast import Forecast, forecast
from harness.training.loop import Training
from harness.training.waiting import Waiting

BUSY_FORECAST = (
    "warning: the processor is busy (the measured steps waited for {:.0%} of their time), so these times are "
    "too long"
)


@dataclass(frozen=True)
class CellCost:
    """What the first trial of a cell would take.

    Attributes:
        cell: its label.
        memory: at the peak, on an accelerator.
        seconds: of training, cold; None where there are no gradient steps.
        waited: share of its time that the measurement waited for a processor; 0 if not known.
    """

    cell: str
    memory: Forecast
    seconds: float | None
    waited: float = 0.0

    def describe(self, max_memory: int | None = None) -> str:
        """One line; a forecast above `max_memory` (bytes) is marked."""
        found = self.memory
        parts = ", ".join(
            f"{part.removesuffix('_mib')} {getattr(found, part):.0f}"
            for part in ("parameters_mib", "gradients_mib", "optimizer_mib", "activations_mib")
        )
        memory = (
            f"{found.peak_mib:.0f} MiB (training {found.train_peak_mib:.0f}: {parts}; "
            f"evaluation {found.eval_peak_mib:.0f})"
        )
        if max_memory is not None and found.peak_mib * MIB > max_memory:
            memory += f", MORE THAN {format_bytes(max_memory)}: would not run"
        if self.seconds is None:
            return f"{self.cell}: {memory}; time not forecast, no gradient steps"
        return f"{self.cell}: {memory}; {self.seconds:.1f} s"


def cell_costs(
    specs: Mapping[str, TrialSpec], device: Device, cache: Cache = Cache()
) -> Iterator[CellCost]:
    """One per cell, as soon as it is known.

    Args:
        specs: first spec of each cell, by the cell's label.
        device: whose time is measured.
        cache: where decoded examples are kept.
    """
    for label, spec in specs.items():
        steps = spec.strategy.classifier == "head"
        waiting = Waiting()
        seconds = Training(spec, device, cache).estimate_seconds() if steps else None
        waited = waiting.share() or 0.0
        yield CellCost(label, forecast(spec), seconds, waited)


def busy_warnings(costs: list[CellCost]) -> list[str]:
    """A warning if the forecast times are too long, because other programs used the processor; else none."""
    waited = fmean(known) if (known := [c.waited for c in costs if c.seconds is not None]) else 0.0
    return [BUSY_FORECAST.format(waited)] if waited > BUSY else []


def study_seconds(study: Study, costs: list[CellCost]) -> float:
    """Training time of the whole study, if nothing were kept between trials."""
    return sum(c.seconds or 0.0 for c in costs) * study.runs_per_cell
