"""The race of a study with a time budget: which cells get further trials and repeats, and which are dropped.

A race has two parts:

1. Screening, with SCREENING of the time. Every cell gets FIRST tuning trials; the time is divided into
   stages of equal length, in each of which every remaining cell gets equally many trials. After each stage
   the better half, by the best validation score so far, goes on (successive halving, Jamieson and Talwalkar
   2016), until FINALISTS are left. The others are *set aside*: there is no time for them, and nothing has
   been shown about them. A cell without a complete trial is never a finalist.
2. Repeats. The chosen configuration of each finalist is run on new seeds, the same for all, one seed at a
   time. After each seed a finalist that is shown to be behind the leader is *retired*. The test is a paired
   t test with one variance for all finalists that are left, one-sided, at the level
   ALPHA / (finalists - 1) / (n (n - 1)) after n seeds. These levels sum to ALPHA over all seeds and rivals,
   so the chance that the best finalist is ever retired is at most ALPHA, however long the race lasts
   (Bonferroni; it assumes roughly normal differences of roughly equal variance).

The race ends when one finalist is left, when the others cannot be better by more than INDIFFERENCE, or when
the next seed does not fit into the time that is left. All decisions follow from the scores and seconds of the
trials, so a resumed study decides as before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy.special import stdtrit  # scipy.stats takes half a second more at every start

from harness.core.study import MAX_EFFORT, Phase

ALPHA = 0.05
"""Largest chance that the best finalist is retired."""
SCREENING = 0.6
"""Share of the budget for tuning trials."""
FIRST = 2
"""Tuning trials of each cell before any is set aside."""
FINALISTS = 4
"""Number of cells whose chosen configuration is repeated."""
INDIFFERENCE = 0.005
"""A smaller difference of mean validation scores is not worth further repeats."""
MOST_REPEATS = 100
"""Seeds after which a race ends in any case."""


@dataclass(frozen=True)
class Round:
    """The next slots: of each of these cells, the trials or repeats with these indices."""

    phase: Phase
    cells: tuple[str, ...]
    indices: range


@dataclass(frozen=True)
class Result:
    """One slot that needs no more work.

    Attributes:
        merit: validation score, higher is better; NaN if no attempt completed.
        seconds: what the slot takes of the budget.
    """

    merit: float
    seconds: float


Results = Mapping[str, Sequence[Result]]
"""Cell -> the results of the slots of a round, by index."""


def race(
    cells: Sequence[str], budget: float, screening: float, read: Callable[[Round], Results]
) -> Iterator[Round]:
    """The rounds of a race; the caller runs the slots of each before it asks for the next one.

    Args:
        cells: labels of the cells.
        budget: seconds.
        screening: seconds of it for tuning.
        read: returns the results of a round that was run.
    """
    tuned: dict[str, list[Result]] = {cell: [] for cell in cells}
    finalists = yield from _screening(tuned, screening, read)
    spent = sum(result.seconds for own in tuned.values() for result in own)
    each = {cell: _mean_seconds(tuned[cell]) for cell in finalists}
    repeats: dict[str, list[float]] = {cell: [] for cell in finalists}
    left = finalists
    for n in range(MOST_REPEATS):
        if n and spent + sum(each[cell] for cell in left) > budget:
            return
        now = Round("repeat", left, range(n, n + 1))
        yield now
        results = read(now)
        for cell in left:
            spent += results[cell][0].seconds
            repeats[cell].append(results[cell][0].merit)
        after = standing(repeats)
        left = after.left
        if len(left) < 2 or after.most_behind < INDIFFERENCE:
            return


def _screening(
    tuned: dict[str, list[Result]], seconds: float, read: Callable[[Round], Results]
) -> Generator[Round, None, tuple[str, ...]]:
    """Tune; `tuned` is filled with the results. Returns the finalists."""
    left = tuple(tuned)
    count = FIRST
    stages = max(0, math.ceil(math.log2(len(left) / FINALISTS))) + 1 if left else 0
    for stage in range(stages):
        if stage:
            left = _better(tuned, left, max(FINALISTS, math.ceil(len(left) / 2)))
        else:
            yield from _tune(tuned, left, FIRST, read)
        spent = sum(result.seconds for own in tuned.values() for result in own)
        share = seconds * (stage + 1) / stages - spent
        count = int(share / sum(_mean_seconds(tuned[cell]) for cell in left))
        count = min(count, MAX_EFFORT)  # all of them are planned at once
        yield from _tune(tuned, left, count, read)
    return tuple(c for c in _better(tuned, left, FINALISTS) if _merits(tuned[c]))


def _tune(
    tuned: dict[str, list[Result]],
    cells: tuple[str, ...],
    count: int,
    read: Callable[[Round], Results],
) -> Iterator[Round]:
    if count < 1:
        return
    done = len(tuned[cells[0]])
    now = Round("tune", cells, range(done, done + count))
    yield now
    results = read(now)
    for cell in cells:
        tuned[cell] += results[cell]


def _better(
    tuned: Mapping[str, Sequence[Result]], cells: tuple[str, ...], count: int
) -> tuple[str, ...]:
    """The cells with the best scores, in their order; of equals the cheaper ones."""

    def key(cell: str) -> tuple[float, float]:
        return -max(_merits(tuned[cell]), default=-math.inf), _mean_seconds(tuned[cell])

    kept = sorted(cells, key=key)[:count]
    return tuple(cell for cell in cells if cell in kept)


def _merits(results: Sequence[Result]) -> list[float]:
    """The scores of the results that have one."""
    return [result.merit for result in results if not math.isnan(result.merit)]


def _mean_seconds(results: Sequence[Result]) -> float:
    return max(1e-3, sum(r.seconds for r in results) / max(1, len(results)))


@dataclass(frozen=True)
class Standing:
    """Which finalists are left after their complete rounds of repeats.

    Attributes:
        seeds: cell -> number of seeds that it was compared on, until it was retired.
        left: the finalists that are not retired.
        behind: cell -> how far its mean is behind that of the leader of the last round it took part in, with
            the ends of the interval of that round: (difference, low, high).
        most_behind: by how much the leader may be behind another finalist that is left.
    """

    seeds: Mapping[str, int]
    left: tuple[str, ...]
    behind: Mapping[str, tuple[float, float, float]]
    most_behind: float


def standing(repeats: Mapping[str, Sequence[float]]) -> Standing:
    """Replay the rounds of repeats.

    Args:
        repeats: finalist -> validation scores of its repeats by index, higher is better; NaN if a repeat did
            not complete, which retires its cell.
    """
    left = tuple(repeats)
    seeds, most = dict.fromkeys(repeats, 0), math.inf
    behind: dict[str, tuple[float, float, float]] = {}
    for n in range(1, max(map(len, repeats.values()), default=0) + 1):
        if not left or any(len(repeats[cell]) < n for cell in left):
            break
        seeds |= dict.fromkeys(left, n)
        left = tuple(cell for cell in left if not math.isnan(repeats[cell][n - 1]))
        scores = np.array([repeats[cell][:n] for cell in left])
        if n < 2 or len(left) < 2:
            continue
        means = scores.mean(axis=1)
        lag = means.max() - means
        half = _half_width(scores, len(repeats))
        behind |= {c: (d, d - half, d + half) for c, d in zip(left, lag.tolist(), strict=True)}
        left = tuple(cell for cell in left if behind[cell][1] <= 0)
        others = np.delete(means, means.argmax())
        most = max((half - (means.max() - m) for m in others if means.max() - m <= half), default=0)
    return Standing(seeds, left, behind, most)


def _half_width(scores: np.ndarray, finalists: int) -> float:
    """Half width of the interval of a difference of two means, from scores (cells x seeds)."""
    cells, n = scores.shape
    rest = scores - scores.mean(axis=0) - scores.mean(axis=1, keepdims=True) + scores.mean()
    freedom = (cells - 1) * (n - 1)
    sd = math.sqrt(2 * float((rest**2).sum()) / freedom)
    sd = max(sd, rounding_error(scores))
    return sd / math.sqrt(n) * _critical(n, freedom, finalists - 1)


def rounding_error(scores: np.ndarray) -> float:
    """Standard deviation that rounding alone gives a difference of two scores: that of two uniform errors as
    wide as the least difference between two different scores (one image, mostly). 0 if all are equal."""
    steps = np.diff(np.unique(np.round(scores[~np.isnan(scores)], 9)))
    return float(steps.min()) / math.sqrt(6) if len(steps) else 0.0


@cache
def _critical(n: int, freedom: int, rivals: int) -> float:
    return -float(stdtrit(freedom, ALPHA / rivals / (n * (n - 1))))
