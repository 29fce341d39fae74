"""Screen the backbones of a study before any is trained: a linear probe and nearest neighbours on frozen
features."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from harness.core.spec import TrialSpec
from harness.data import load_target
from harness.data.cached import Cache
from harness.similarity import MEASURES, Candidate
from harness.similarity.sources.measuring import Pair, features, first_model
from harness.training.device import Device

SCREENED = ("probe_accuracy", "knn_accuracy")
EXAMPLES = 200
"""Largest number of training examples that are looked at."""
SHARE, LEAST = 1 / 3, 2
"""The share of the backbones that is kept, by the linear probe, and their smallest number."""
MISSES = (
    "What screening may miss, on published tables: where a linear probe kept 4 of 15 sources, the best was "
    "not among them for 2 of 11 targets, which cost 0.02 points of AUC on average and 0.2 at most; with 2 of "
    "15 for 4 of 11, 0.28 and 2.0 points. An order that ignores the target did as well (docs/pages/race.md)."
)


@dataclass(frozen=True)
class Screening:
    """What was screened.

    Attributes:
        found: the backbones with the measures SCREENED, those with the best linear probe first.
        kept: names of those that are kept, in this order.
        examples: what was looked at, e.g. "200 training examples".
        seconds: what it took.
    """

    found: tuple[Candidate, ...]
    kept: tuple[str, ...]
    examples: str
    seconds: float

    def describe(self) -> list[str]:
        """What was screened, what was dropped and why, and what may be missed, in sentences."""
        if reason := next(_refusals(self.found), ""):
            return [f"The backbones could not be screened, so all are kept: {reason}."]
        values = "; ".join(_describe(c) for c in self.found)
        lines = [
            f"Screened on frozen features of {self.examples} in {self.seconds:.0f} s (cross-validated "
            f"accuracy of a linear probe with its 95% interval, then of nearest neighbours): {values}."
        ]
        dropped = [c for c in self.found if c.name not in self.kept]
        if not dropped:
            return [*lines, "None was dropped."]
        count = number_kept(len(self.found))
        last, probe = self.found[count - 1], "probe_accuracy"
        why = (
            f"Dropped: {', '.join(c.name for c in dropped)}. By the linear probe not among the first "
            f"{count} of {len(self.found)}, nor first by nearest neighbours."
        )
        lowest = last.measures[probe].low
        close = [c.name for c in dropped if not c.measures[probe].high < lowest]
        if close:
            why += (
                f" This does not show that they are worse: the intervals of {', '.join(close)} overlap with "
                f"that of {last.name}."
            )
        return [*lines, why, MISSES]


def number_kept(count: int) -> int:
    """How many of so many backbones are kept by their linear probe."""
    return min(count, max(LEAST, math.ceil(SHARE * count)))


def screen(specs: Iterable[TrialSpec], device: Device, cache: Cache) -> Screening:
    """Measure the backbones of a study, with its own sources, sizes and training examples.

    The first by linear probe are kept (see `number_kept`), and also the first by nearest neighbours. All are
    kept if one cannot be measured.

    Args:
        specs: specs of one target; the first of each backbone counts.
        device: where to compute.
        cache: where decoded examples and features are kept.
    """
    began = time.perf_counter()
    first: dict[str, TrialSpec] = {}
    for spec in specs:
        first.setdefault(spec.backbone, spec)
    found, examples = [], ""
    for name, spec in first.items():
        pair = Pair(name, spec.target, spec, first_model(spec.source), EXAMPLES)
        rows, target = pair.target_data[1], load_target(spec.target)
        examples = f"{len(rows)} training {target.medium.noun}s"
        x, y = features(spec, pair.target_data, device, cache), target.labels[list(rows)]
        found.append(Candidate(name, {m: MEASURES[m](x, y) for m in SCREENED}))
    kept = set(first)
    if not any(_refusals(found)):
        found.sort(key=lambda c: c.measures["probe_accuracy"].value, reverse=True)
        kept = {c.name for c in found[: number_kept(len(found))]}
        kept.add(max(found, key=lambda c: c.measures["knn_accuracy"].value).name)
    seconds = time.perf_counter() - began
    names = tuple(c.name for c in found if c.name in kept)
    return Screening(tuple(found), names, examples, seconds)


def _refusals(found: Iterable[Candidate]) -> Iterator[str]:
    return (m.reason for c in found for m in c.measures.values() if m.refused)


def _describe(one: Candidate) -> str:
    """A backbone with both accuracies, and the interval of the first."""
    probe, neighbours = (one.measures[m] for m in SCREENED)
    ends = f"{probe.low:.0%} to {probe.high:.0%}"
    return f"{one.name} {probe.value:.0%} ({ends}), {neighbours.value:.0%}"
