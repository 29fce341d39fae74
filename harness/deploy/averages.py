"""Averages of the networks of a cell's repeats: which can be made, and how good they are.

All networks of an average have the seed of one repeat: they start with the same weights, head included, and
learn from the same images, so none has seen the validation images on which the average is chosen. Networks of
different repeats have different heads at the start, and one learns from the validation images of another.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from harness.backbones import build
from harness.core.errors import UserError
from harness.core.html import as_table
from harness.core.selection import Metric
from harness.core.spec import TrialSpec
from harness.core.strategies import LinearProbe
from harness.data.cached import Cache
from harness.deploy.soup import Average, Judge, Kind, soup, trained, wise_ft
from harness.tracking.results import CellRecord
from harness.tracking.runs import Recorded
from harness.training.device import Device

ROUNDING = 1e-6
"""Largest difference of a score that merging adapters or the batch size may make."""
PHASE = "average"
"""Phase of the runs that say how good averages are."""
SHARED = (
    *("target", "backbone", "source", "head", "depth", "resolution"),
    *("shots", "val_shots", "test_shots"),
)
"""Settings that, with the seed, decide the weights with which a network starts and the images of each
part."""


@dataclass(frozen=True)
class RepeatAverages:
    """A repeat and the averages that were made with its seed; a table in a notebook.

    Attributes:
        name: of the repeat.
        metric: what its study chooses by.
        single: validation and test metrics of the repeat, as recorded.
        again: validation metrics of the network that was trained again.
        averages: the averages.
    """

    name: str
    metric: Metric
    single: Mapping[str, float]
    again: Mapping[str, float]
    averages: tuple[Average, ...]

    def recorded(self) -> dict[str, float]:
        """The metrics of the averages as they are recorded: with the kind as prefix."""
        values: dict[str, float] = {}
        for average in self.averages:
            own = {"amount": average.amount, **average.metrics}
            values |= {f"{average.kind}.{name}": value for name, value in own.items()}
        return values

    def rows(self) -> list[tuple[str, str, str]]:
        """Each network, its validation and its test score."""
        named = [("single", self.single), *((str(a), a.metrics) for a in self.averages)]
        names = (self.metric.validation, self.metric.test)
        return [
            (what, *(self.metric.text(found[n]) if n in found else "" for n in names))  # type: ignore[misc]
            for what, found in named
        ]

    def __str__(self) -> str:
        shown = "; ".join(f"{what} {val}, {test}" for what, val, test in self.rows())
        name = self.metric.validation
        if abs(self.single.get(name, self.again[name]) - self.again[name]) > ROUNDING:
            now = self.metric.text(self.again[name])
            shown += f" (trained again, the single network is NOT as recorded: validation {now})"
        return f"{self.name}: {shown}"

    def _repr_html_(self) -> str:
        columns = ("network", f"validation {self.metric.label}", f"test {self.metric.label}")
        return as_table(self.name, columns, self.rows())


@dataclass(frozen=True)
class Plan:
    """What can be averaged with the seed of one repeat.

    Attributes:
        run: the repeat.
        metric: what its study chooses by.
        specs: the repeat's trial, then those of other configurations with its seed.
        path: whether there is a path from a linear probe to it.
    """

    run: Recorded
    metric: Metric
    specs: tuple[TrialSpec, ...]
    path: bool

    @property
    def name(self) -> str:
        """The repeat, as text."""
        return f"{self.run.tags['cell']}, repeat {self.run.tags['index']}"

    @cached_property
    def identity(self) -> str:
        """Equal only for equal trials of the same repeat."""
        what = [self.run.run_id, *(spec.flat() for spec in self.specs)]
        return hashlib.sha256(json.dumps(what).encode()).hexdigest()

    def tags(self) -> dict[str, str]:
        """Tags of the run that records the averages."""
        tags = self.run.tags  # beside the repeat, under its cell
        same = {k: tags[k] for k in ("cell", "seed", "mlflow.parentRunId") if k in tags}
        own = {"phase": PHASE, "repeat": self.run.run_id, "identity": self.identity}
        return {"study": self.run.experiment, **same, **own}

    def average(self, kind: Kind, device: Device, cache: Cache) -> Average:
        """One kind of average.

        Raises:
            UserError: if there is none of that kind, or as `carry_out`.
        """
        for average in self.carry_out(device, cache).averages:
            if average.kind == kind:
                return average
        raise UserError(
            f"“{self.name}” has no average of the kind {kind}: its other networks diverged"
        )

    def carry_out(self, device: Device, cache: Cache) -> RepeatAverages:
        """Train the networks and average their weights.

        Raises:
            UserError: if the repeat diverges now, or images or weights are not available.
        """
        networks = [trained(spec, device, cache) for spec in self.specs]
        judge = Judge(self.specs[0], self.metric, device, cache)
        tuned, complete = networks[0], [state for state in networks if state is not None]
        if tuned is None:
            raise UserError(f"“{self.name}” diverged when it was trained again")
        made = [soup(judge, complete)] if len(complete) > 1 else []
        if self.path:
            probe = trained(replace(self.specs[0], strategy=LinearProbe()), device, cache)
            made += [] if probe is None else [wise_ft(judge, probe, tuned)]
        again = judge.validation(tuned)
        return RepeatAverages(self.name, self.metric, self.run.metrics, again, tuple(made))


def plans(
    record: CellRecord, tuned: Iterable[Recorded], members: int, target: str | None = None
) -> tuple[list[Plan], list[str]]:
    """What can be averaged for each repeat of a cell, and why the rest cannot.

    Args:
        record: the cell.
        tuned: tuning trials of the study.
        members: largest number of configurations in a soup.
        target: where its images are now; None takes the recorded place.

    Raises:
        UserError: if nothing can be averaged.
    """
    tried = [run for run in tuned if run.tags["cell"] == record.cell]
    found, why = list[Plan](), list[str]()
    for run in record.repeats:
        spec = TrialSpec.from_flat(run.params)
        specs = configurations(tried, spec, record.metric)[:members]
        no = no_average(spec)
        reasons = [no] if no else [no_soup(specs), no_path(spec)]
        if all(reasons):
            raise UserError(
                f"no weights of cell “{record.cell}” can be averaged: {'; '.join(reasons)}"
            )
        why = why or [
            f"no {what}: {r}" for what, r in zip(("soup", "WiSE-FT"), reasons, strict=True) if r
        ]
        specs = [spec] if reasons[0] else specs
        moved = tuple(replace(s, target=target or s.target) for s in specs)
        found.append(Plan(run, record.metric, moved, not reasons[1]))
    return found, why


def plan_of_kind(
    kind: Kind,
    record: CellRecord,
    tuned: Iterable[Recorded],
    members: int,
    target: str | None = None,
) -> tuple[Plan, Kind]:
    """What is averaged with the seed of a cell's first repeat.

    Raises:
        UserError: if there is no average of that kind.
    """
    found, why = plans(replace(record, repeats=record.repeats[:1]), tuned, members, target)
    if (kind == "soup" and len(found[0].specs) < 2) or (kind == "wise_ft" and not found[0].path):
        raise UserError(f"cell “{record.cell}”: {why[0]}")
    return found[0], kind


def configurations(tuned: Iterable[Recorded], chosen: TrialSpec, metric: Metric) -> list[TrialSpec]:
    """The chosen configuration, then the others that were tried, best validation score first.

    Args:
        tuned: tuning trials of the cell.
        chosen: a repeat of the chosen configuration; the others get its seed and fold.
        metric: what the study chooses by.
    """
    specs: list[TrialSpec] = []  # a strategy of the user's may have no hash
    merits: list[list[float]] = []  # several of each with k-fold resampling
    for run in tuned:
        spec = replace(TrialSpec.from_flat(run.params), seed=chosen.seed, fold=chosen.fold)
        if spec not in specs:
            specs.append(spec)
            merits.append([])
        merits[specs.index(spec)].append(metric.merit(run.metrics))
    means = [float(np.mean(own)) for own in merits]
    others = [i for i, spec in enumerate(specs) if spec != chosen and not np.isnan(means[i])]
    return [chosen, *(specs[i] for i in sorted(others, key=lambda i: -means[i]))]


def no_average(spec: TrialSpec) -> str:
    """Why no weights of such trials can be averaged; "" if they can."""
    if spec.source == "scratch":
        return (
            "its networks start from random weights, and only networks that start from the same pretrained "
            "weights lie close enough together"
        )
    if spec.strategy.classifier != "head":
        return "it trains no weights: a classifier of scikit-learn is fitted on frozen features"
    return ""


def no_soup(specs: Sequence[TrialSpec]) -> str:
    """Why there is no soup of these trials; "" if there is one."""
    if len(specs) < 2:
        return "it needs at least two configurations"
    if any(spec.strategy.classifier != "head" for spec in specs):
        return "some of the configurations train no weights"
    for name in SHARED:
        values = dict.fromkeys(str(getattr(spec, name)) for spec in specs)
        if len(values) > 1:
            return (
                f"the configurations differ in {name} ({', '.join(values)}), so their networks do not share "
                "a start"
            )
    return ""


def no_path(spec: TrialSpec) -> str:
    """Why there is no path from a linear probe to the network of this trial; "" if there is one."""
    network = build(
        spec.backbone, "scratch", 2, 0, resolution=spec.resolution, head=spec.head, depth=spec.depth
    )
    groups = len(network.groups)
    rows = (spec.strategy.lr_scales(groups, epoch) for epoch in range(spec.epochs))
    if all(scale is None for row in rows for scale in row[:-1]):
        return "only the head is trained, so the pretrained weights did not change"
    return ""
