"""Rank sources for a target by all measures, with the evidence for each measure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from harness.backbones import check_backbone
from harness.backbones.recorded import PREFIX
from harness.core.errors import UserError
from harness.core.spec import TrialSpec
from harness.core.strategies import FeatureTransfer
from harness.data import load_target
from harness.data.cached import Cache
from harness.similarity import Measurement, static_rank
from harness.similarity.sources.evidence import STATIC, Evidence
from harness.similarity.sources.measuring import Measuring, Pair, first_model
from harness.tracking.runs import Recorded
from harness.training.device import Device

DEFAULT = "probe_accuracy"
"""What is ranked by where no recorded study says anything: it looks at target and source, and has bounds."""


@dataclass(frozen=True)
class Candidate:
    """A source and what each measure says of it, by the measure's name."""

    name: str
    measures: Mapping[str, Measurement]


def pair_of(source: str, target: str, resolution: int, images: int) -> Pair:
    """A candidate: a backbone's name stands for its ImageNet weights, recorded:NAME for a model of ours.

    Args:
        source: as the user wrote it.
        target: the data set.
        resolution: side at which backbones look at it; a model of ours looks at its own.
        images: of the target that are looked at, at most.

    Raises:
        UserError: if there is no such source or target.
    """
    model = first_model(source)
    if model is None:
        check_backbone(source)
        spec = TrialSpec(target, source, FeatureTransfer(), resolution=resolution)
    else:
        own = model.about["resolution"]
        spec = TrialSpec(
            target,
            model.about["backbone"],
            FeatureTransfer(),
            source=f"{PREFIX}{model.name}",
            resolution=None if own == "None" else int(own),
        )
    return Pair(source, load_target(target).name, spec, model, images)


def candidates(
    pairs: Sequence[Pair], runs: Sequence[Recorded], device: Device, cache: Cache
) -> list[Candidate]:
    """Every candidate measured, the static ranking from recorded runs with it.

    Args:
        pairs: from `pair_of`, one target.
        runs: recorded ones.
        device: where to compute.
        cache: where images and features are kept.
    """
    measuring = Measuring(pairs, device, cache)
    static = static_ranks(pairs, runs)
    return [
        Candidate(pair.source, {m.name: m for m in (*measuring.measure(pair), static[pair.source])})
        for pair in pairs
    ]


def static_ranks(pairs: Sequence[Pair], runs: Sequence[Recorded]) -> dict[str, Measurement]:
    """Each candidate's mean rank on the targets of recorded studies, this target left out."""
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
    """The measure to rank by: of those that have a value for every candidate, the one that recorded studies
    show to have missed least; else DEFAULT.

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
    """The most promising first."""

    def promise(candidate: Candidate) -> float:
        one = candidate.measures[measure]
        return one.value if one.better == "higher" else -one.value

    return sorted(found, key=promise, reverse=True)


def verdict(found: Sequence[Candidate], measure: str, known: Sequence[Evidence]) -> list[str]:
    """What to believe of the ranking, in lines."""
    order = ranked(found, measure)
    lines = [f"ranked by {measure}: {' > '.join(c.name for c in order)}"]
    first = order[0].measures[measure]
    rivals = [c.name for c in order[1:] if _overlap(first, c.measures[measure])]
    if rivals:
        lines.append(f"its intervals do not tell {order[0].name} from {', '.join(rivals)}")
    own = next((e for e in known if e.measure == measure), None)
    if own is None:
        return [
            *lines,
            "no recorded study has measured pairs (python -m harness.study, then python -m "
            "harness.similarity): whether any measure beats the static ranking is not known here",
        ]
    said = f"on {own.targets} recorded targets it missed the best source by {own.regret:.1%} on average"
    if math.isnan(own.static_regret):
        return [*lines, f"{said}; there was no static ranking to compare it with"]
    word = "better" if own.beats_static else "NO BETTER"
    return [
        *lines,
        f"{said}, the static ranking by {own.static_regret:.1%}: {word} than the same order for every target",
    ]


def _overlap(a: Measurement, b: Measurement) -> bool:
    if math.isnan(a.low) or math.isnan(b.low):
        return True
    return a.low <= b.high and b.low <= a.high
