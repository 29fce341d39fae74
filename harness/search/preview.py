"""Print what a study would run, and what it would take."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from harness.core.errors import counted
from harness.core.selection import METRICS
from harness.core.spec import TrialSpec
from harness.core.study import Study
from harness.search.costs import CellCost, busy_warnings, study_seconds
from harness.training.device import Device


def print_plan(study: Study, specs: Mapping[str, TrialSpec], device: Device) -> None:
    """What would run."""
    cells = study.cells()
    trials, repeats = (
        len(cells) * study.trials * study.fold_count,
        len(cells) * study.repeats,
    )
    print(f"study {study.name} on {device.name} ({device.describe()})")
    if study.budget is None:
        runs = f"{counted(trials, 'trial')} + {counted(repeats, 'repeat')}"
        effort = f"{counted(len(cells), 'cell')} x ({study.effort}) = {runs}"
    else:
        effort = f"a race of {len(cells)} cells in {study.budget}"
    print(
        f"{effort}, {study.sampler} sampling, pruner {study.pruner}, "
        f"chosen by {METRICS[study.metric].label}"
    )
    flats = {label: _shown(spec) for label, spec in specs.items()}
    first = next(iter(flats.values()))
    common = {k: v for k, v in first.items() if all(f.get(k) == v for f in flats.values())}
    print(f"every cell: {_entries(common)}")
    print("first trial of each cell:")
    for label, flat in flats.items():
        print(f"  {label}: {_entries({k: v for k, v in flat.items() if k not in common})}")


def print_costs(study: Study, costs: Iterable[CellCost], max_memory: int | None) -> list[CellCost]:
    """Print what the first trial of each cell would take: memory on an accelerator, time on this device.
    Returns the costs."""
    print(
        "forecast of each cell: accelerator memory at the peak, of training by part, and training time"
    )
    print("of one trial, cold, from a few steps on this device:")
    known = []
    for cost in costs:
        known.append(cost)
        print(f"  {cost.describe(max_memory)}")
    if study.budget is None:
        minutes = study_seconds(study, known) / 60
        print(
            f"training of the whole study, if nothing were kept between trials: {minutes:.1f} min"
        )
    for line in busy_warnings(known):
        print(line)
    return known


def _shown(spec: TrialSpec) -> dict[str, object]:
    return {k: v for k, v in spec.flat().items() if v is not None and k not in ("seed", "fold")}


def _entries(flat: Mapping[str, object]) -> str:
    return ", ".join(
        f"{k}={v:.3g}" if isinstance(v, float) else f"{k}={v}" for k, v in flat.items()
    )
