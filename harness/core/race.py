"""The race of a study with a time budget: which cells get further trials and repeats, and which are dropped.

A race has two parts:

1. Screening, with SCREENING of the time. Every cell gets FIRST tuning trials; the time is divided into
   stages of equal length, in each of which every remaining cell gets equally many trials. After each stage
   the better half, by the best validation score so far, goes on (successive halving, Jamieson and Talwalkar
   2016), until CELLS are left.
2. Repeats. The finalists are the best configurations of all cells: at most FINALISTS, and at most OF_A_CELL
   of one cell. Each is run on new seeds, the same for all, one seed at a time. After each seed a finalist
   that is shown to be behind the leader is *retired*. The test is a paired t test with one variance for all
   finalists that are left, one-sided, at the level ALPHA / (finalists - 1) / (n (n - 1)) after n seeds. These
   levels sum to ALPHA over all seeds and rivals, so the chance that the best finalist is ever retired is at
   most ALPHA, however long the race lasts (Bonferroni; it assumes roughly normal differences of roughly equal
   variance).

Cells without a finalist are *set aside*: there is no time for them, and nothing has been shown about them.
The configuration of a cell is its finalist that stayed in the race for the most seeds; of several, that with
the best mean validation score, and of equals the earlier trial.

The race ends when one finalist is left, when the others cannot be better by more than INDIFFERENCE, or when
the next seed does not fit into the time that is left. All decisions follow from the scores and seconds of the
trials, so a resumed study decides as before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit  # scipy.stats takes half a second more at every start

from harness.core.study import MAX_EFFORT, Phase

ALPHA = 0.05
"""Largest chance that the best finalist is retired."""
SCREENING = 0.6
"""Share of the budget for tuning trials."""
FIRST = 2
"""Tuning trials of each cell before any is set aside."""
CELLS = 4
"""Number of cells that are tuned to the end of the screening."""
FINALISTS = 8
"""Largest number of configurations that are repeated."""
OF_A_CELL = 4
"""Largest number of them that are of one cell."""
INDIFFERENCE = 0.005
"""A smaller difference of mean validation scores is not worth further repeats."""
MOST_REPEATS = 100
"""Seeds after which a race ends in any case."""


class Entrant(NamedTuple):
    """What takes part in a round.

    Attributes:
        cell: label of a cell.
        chosen: a configuration of it, by the index of the tuning trial that drew it; None while tuning.
    """

    cell: str
    chosen: int | None = None


@dataclass(frozen=True)
class Round:
    """The next slots: of each of these entrants, the trials or repeats with these indices."""

    phase: Phase
    entrants: tuple[Entrant, ...]
    indices: range


@dataclass(frozen=True)
class Result:
    """One slot that needs no more work.

    Attributes:
        merit: validation score, higher is better; NaN if no attempt completed.
        seconds: what the slot takes of the budget.
        loss: validation loss, which decides between equal scores.
        configuration: the values that were tried; equal ones are one finalist, "" is different from all
            others.
    """

    merit: float
    seconds: float
    loss: float = 0.0
    configuration: str = ""


Results = Mapping[Entrant, Sequence[Result]]
"""The results of the slots of a round, by index."""


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
    repeats: dict[Entrant, list[float]] = {one: [] for one in finalists}
    left = finalists
    for n in range(MOST_REPEATS):
        if n and spent + sum(_mean_seconds(tuned[one.cell]) for one in left) > budget:
            return
        now = Round("repeat", left, range(n, n + 1))
        yield now
        results = read(now)
        for one in left:
            spent += results[one][0].seconds
            repeats[one].append(results[one][0].merit)
        after = standing(repeats)
        left = after.left
        if len(left) < 2 or after.most_behind < INDIFFERENCE:
            return


def _screening(
    tuned: dict[str, list[Result]], seconds: float, read: Callable[[Round], Results]
) -> Generator[Round, None, tuple[Entrant, ...]]:
    """Tune; `tuned` is filled with the results. Returns the finalists."""
    left = tuple(tuned)
    count = FIRST
    stages = max(0, math.ceil(math.log2(len(left) / CELLS))) + 1 if left else 0
    for stage in range(stages):
        if stage:
            left = _better(tuned, left, max(CELLS, math.ceil(len(left) / 2)))
        else:
            yield from _tune(tuned, left, FIRST, read)
        spent = sum(result.seconds for own in tuned.values() for result in own)
        share = seconds * (stage + 1) / stages - spent
        count = int(share / sum(_mean_seconds(tuned[cell]) for cell in left))
        count = min(count, MAX_EFFORT)  # all of them are planned at once
        yield from _tune(tuned, left, count, read)
    return _finalists(tuned)


def _tune(
    tuned: dict[str, list[Result]],
    cells: tuple[str, ...],
    count: int,
    read: Callable[[Round], Results],
) -> Iterator[Round]:
    if count < 1:
        return
    done = len(tuned[cells[0]])
    now = Round("tune", tuple(map(Entrant, cells)), range(done, done + count))
    yield now
    results = read(now)
    for cell in cells:
        tuned[cell] += results[Entrant(cell)]


def _better(
    tuned: Mapping[str, Sequence[Result]], cells: tuple[str, ...], count: int
) -> tuple[str, ...]:
    """The cells with the best scores, in their order; of equals the cheaper ones."""

    def key(cell: str) -> tuple[float, float]:
        return -max(_merits(tuned[cell]), default=-math.inf), _mean_seconds(tuned[cell])

    kept = sorted(cells, key=key)[:count]
    return tuple(cell for cell in cells if cell in kept)


def _finalists(tuned: Mapping[str, Sequence[Result]]) -> tuple[Entrant, ...]:
    """The configurations with the best scores; of equals those with the lower loss, of the cheaper cell, and
    the earlier ones."""
    ranked = sorted(
        (-result.merit, result.loss, seconds, index, cell, result.configuration)
        for cell, own in tuned.items()
        for seconds in [_mean_seconds(own)]
        for index, result in enumerate(own)
        if not math.isnan(result.merit)
    )
    found: dict[tuple[str, str], Entrant] = {}
    for *_, index, cell, configuration in ranked:
        if sum(one.cell == cell for one in found.values()) < OF_A_CELL and len(found) < FINALISTS:
            found.setdefault((cell, configuration or str(index)), Entrant(cell, index))
    return tuple(found.values())


def _merits(results: Sequence[Result]) -> list[float]:
    """The scores of the results that have one."""
    return [result.merit for result in results if not math.isnan(result.merit)]


def _mean_seconds(results: Sequence[Result]) -> float:
    return max(1e-3, sum(r.seconds for r in results) / max(1, len(results)))


@dataclass(frozen=True)
class Standing:
    """Which finalists are left after their complete rounds of repeats.

    Attributes:
        seeds: finalist -> number of seeds that it was compared on, until it was retired.
        left: the finalists that are not retired.
        behind: finalist -> how far its mean is behind that of the leader of the last round it took part in,
            with the ends of the interval of that round: (difference, low, high).
        most_behind: by how much the leader may be behind another finalist that is left.
        of_cell: cell -> the finalist that is its configuration.
    """

    seeds: Mapping[Entrant, int]
    left: tuple[Entrant, ...]
    behind: Mapping[Entrant, tuple[float, float, float]]
    most_behind: float
    of_cell: Mapping[str, Entrant]


def standing(repeats: Mapping[Entrant, Sequence[float]]) -> Standing:
    """Replay the rounds of repeats.

    Args:
        repeats: finalist -> validation scores of its repeats by index, higher is better; NaN if a repeat did
            not complete, which retires it. Those without repeats do not count yet. One that lacks a seed
            after which others had another one is no finalist any more: the choice of the finalists changed.
    """
    repeats = {one: scores for one, scores in repeats.items() if scores}
    left = tuple(repeats)
    seeds, most = dict.fromkeys(repeats, 0), math.inf
    behind: dict[Entrant, tuple[float, float, float]] = {}
    for n in range(1, max(map(len, repeats.values()), default=0) + 1):
        if any(len(repeats[one]) > n for one in left):
            left = tuple(one for one in left if len(repeats[one]) >= n)
        if not left or any(len(repeats[one]) < n for one in left):
            break
        seeds |= dict.fromkeys(left, n)
        left = tuple(one for one in left if not math.isnan(repeats[one][n - 1]))
        scores = np.array([repeats[one][:n] for one in left])
        if n < 2 or len(left) < 2:
            continue
        means = scores.mean(axis=1)
        lag = means.max() - means
        half = _half_width(scores, len(repeats))
        behind |= {c: (d, d - half, d + half) for c, d in zip(left, lag.tolist(), strict=True)}
        left = tuple(one for one in left if behind[one][1] <= 0)
        others = np.delete(means, means.argmax())
        most = max((half - (means.max() - m) for m in others if means.max() - m <= half), default=0)

    def rank(one: Entrant) -> tuple[bool, int, float, int]:
        scores = [score for score in repeats[one][: seeds[one]] if not math.isnan(score)]
        return one in left, seeds[one], fmean(scores) if scores else -math.inf, -(one.chosen or 0)

    best = {one.cell: one for one in sorted(repeats, key=rank)}  # of each cell the last one
    return Standing(seeds, left, behind, most, best)


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
