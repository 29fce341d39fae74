"""Checks that reject an invalid study before anything is trained or recorded."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from types import FrameType

import numpy as np

from harness.backbones import Backbone, check_gradients
from harness.core.errors import UserError, counted, first_line
from harness.core.power import POWER, WANTED, least_detectable, pairs_of, seeds_needed
from harness.core.signals import time_limit
from harness.core.spec import TrialSpec
from harness.core.study import Phase, Study, cell_label
from harness.data import (
    describe_leaks,
    find_leaks,
    load_target,
    read_examples,
    split_indices,
)
from harness.data.cached import Cache
from harness.search.plan import trial_fold, trial_seed
from harness.search.space import first_draw
from harness.training.forecast import forecast
from harness.training.network import check_network, check_policies, network_of

SECONDS = 10
"""Time limit for drawing the first trial of every cell, and for a strategy's schedule of a trial."""


@dataclass(frozen=True)
class Preflight:
    """Results of the checks.

    Attributes:
        specs: the first spec of each cell, by the cell's label.
        leaks: one line per target whose parts share examples.
        notes: how the targets' files were read, which were skipped, and how weights files were adapted.
    """

    specs: Mapping[str, TrialSpec]
    leaks: tuple[str, ...]
    notes: tuple[str, ...]


def check_study(study: Study, cache: Cache = Cache(), memory_is_limited: bool = False) -> Preflight:
    """Draw the first spec of every cell, and try each distinct one: build its network, pass one blank
    example, split its target for every seed, and read the examples of a target that the user brought.

    Args:
        study: the study.
        cache: where decoded examples are kept.
        memory_is_limited: every cell must have a forecast of its memory.

    Raises:
        UserError: naming what is wrong.
    """
    drawing = f"study {study.name!r}: drawing the first trial of each cell"
    with _time_limit(drawing, study.space):
        specs = {cell_label(cell): first_draw(study, cell) for cell in study.cells()}
    alike: dict[tuple[object, ...], list[TrialSpec]] = {}
    for spec in specs.values():
        sizes = (spec.shots, spec.val_shots, spec.test_shots, spec.exact_shots)
        alike.setdefault((_network_key(spec), spec.target, sizes), []).append(spec)
    leaks, remarks = dict[str, str](), dict[str, None]()
    compared = set[object]()  # networks whose gradients were compared
    for (key, *_), same in alike.items():
        spec, network = same[0], network_of(same[0])
        for one in same:
            check_policies(network, one)
        check_network(network, spec)
        remarks |= dict.fromkeys(network.notes)
        leak, remark = _try_examples(study, spec, network, cache)
        if leak:
            leaks[spec.target] = leak  # one split of each target is enough
        if remark:
            remarks[f"{load_target(spec.target).name}: {remark}"] = None
        last = len(network.groups) - 1
        trained = {group for one in same for group in _try_strategy(one, last + 1)}
        if min(trained, default=last) < last and key not in compared:  # more than the head
            compared.add(key)
            check_gradients(network, spec.backbone)
    if memory_is_limited:
        for spec in specs.values():
            forecast(spec)
    targets = [load_target(name) for name in dict.fromkeys(s.target for s in specs.values())]
    notes = [f"{target.name}: {note}" for target in targets for note in target.notes]
    notes += [
        f"{target.name}: with k-fold resampling the examples of its validation part are divided into the "
        "folds together with the training examples"
        for target in targets
        if study.fold_count > 1 and target.official_val is not None
    ]
    return Preflight(specs, tuple(leaks.values()), (*notes, *remarks, *_power(study, specs)))


def _power(study: Study, specs: Mapping[str, TrialSpec]) -> list[str]:
    """What is to be known of a study whose repeats can confirm only large differences between its cells."""
    if study.budget is not None:
        return []
    sizes = Counter(spec.target for spec in specs.values()).values()
    pairs = sum(map(pairs_of, sizes))
    folds = study.fold_count
    least = least_detectable(1.0, study.repeats, pairs, folds) if pairs else 0.0
    if not least > WANTED:  # NaN: fewer than 2 repeats are for a first look
        return []
    enough = seeds_needed(1.0, WANTED, pairs, folds)
    more = "no number of" if enough == math.inf else f"{enough:g}"
    return [
        f"{study.repeats} repeats{' on shared examples' * (folds > 1)} and {counted(pairs, 'pair')} "
        f"of cells: with {POWER:.0%} power the report detects a difference of {least:.1f} standard "
        f"deviations (of the paired differences over seeds); {more} repeats would detect one of {WANTED:g}"
    ]


def _time_limit(what: str, function: Callable[..., object]) -> AbstractContextManager[None]:
    """End a function of the study file that loops, naming the line."""
    code, name = getattr(function, "__code__", None), getattr(function, "__name__", "the function")

    def error(frame: FrameType | None) -> UserError:
        while frame and frame.f_code is not code:
            frame = frame.f_back
        where = f" (at {frame.f_code.co_filename}:{frame.f_lineno})" if frame else ""
        return UserError(f"{what} takes more than {SECONDS} s; does `{name}` loop?{where}")

    return time_limit(SECONDS, error=error, repeat=1)


def _network_key(spec: TrialSpec) -> tuple[object, ...]:
    """Everything that decides a trial's network, but for the number of classes."""
    strategy = spec.strategy
    return (
        *(spec.backbone, spec.source, spec.resolution),
        *(spec.head, spec.depth, strategy.lora_rank, strategy.classifier),
    )


def _try_strategy(spec: TrialSpec, num_groups: int) -> set[int]:
    """The groups that train in any epoch."""
    plan, what = spec.strategy.lr_scales, f"strategy {type(spec.strategy).__name__}"
    try:
        with _time_limit(f"{what}: planning {spec.epochs} epochs", plan):
            rows = [plan(num_groups, e) for e in range(spec.epochs)]
        bad = next((r for r in rows if len(r) != num_groups or not all(map(_is_scale, r))), None)
    except UserError:
        raise
    except Exception as error:  # whatever the user's strategy raises
        raise UserError(f"{what} on {spec.backbone}: {first_line(error)}") from error
    still = [e for e, row in enumerate(rows) if all(scale is None for scale in row)]
    if bad is None and still and spec.strategy.classifier == "head":
        raise UserError(
            f"{what}: lr_scales freezes every group in epoch {still[0]} "
            f"on {spec.backbone}; at least one must train"
        )
    if bad is not None:
        raise UserError(
            f"{what}: lr_scales must return {num_groups} numbers "
            f"above 0, or None for frozen, on {spec.backbone}; got {bad}"
        )
    return {group for row in rows for group, scale in enumerate(row) if scale is not None}


def _is_scale(scale: object) -> bool:
    return scale is None or (isinstance(scale, (int, float)) and 0 < scale < math.inf)


def _try_examples(
    study: Study, spec: TrialSpec, network: Backbone, cache: Cache
) -> tuple[str, str]:
    """Split for every seed and fold, and read the examples that will be used; describes the leaks of the
    first split, and what people should know of its examples."""
    target = load_target(spec.target)
    places: list[tuple[Phase, int]] = [("tune", i) for i in range(study.fold_count)]
    places += [("repeat", i) for i in range(study.repeats)]
    splits = [
        split_indices(
            target, replace(spec, seed=trial_seed(study, *at), fold=trial_fold(study, *at))
        )
        for at in places
    ]
    one_class = any(len(np.unique(target.labels[split.val])) < 2 for split in splits)
    if study.metric == "auroc" and one_class:
        raise UserError(
            f"study {study.name!r}: metric 'auroc' needs validation examples of at least two classes; those "
            f"of target {spec.target} are of one"
        )
    to_read = splits if ":" in spec.target else splits[:1]  # the user's own files may be broken
    read = [
        {
            name: read_examples(spec.target, tuple(part.tolist()), network.input, cache)
            for name, part in (("train", s.train), ("validation", s.val), ("test", s.test))
        }
        for s in to_read
    ]
    rows = (batch for part in read[0].values() for batch in part.batches())
    return describe_leaks(find_leaks(read[0]), target), target.medium.remark(
        network.input, rows, target.files()
    )
