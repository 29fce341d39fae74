"""Samplers that are seeded per slot: random and quasi-random values depend only on the slot's round."""

from __future__ import annotations

import math
import warnings
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial

from harness.core.spec import derive_seed
from harness.core.study import Cell, Study, cell_label

DIMENSIONS = 64


def sampler_of(study: Study, cell: Cell, number: int) -> optuna.samplers.BaseSampler:
    """The sampler of one round of slots: a function of (study seed, cell, number of the round), except for
    TPE, which also looks at what has finished."""
    label = cell_label(cell)
    seed = derive_seed(study.seed, study.name, label, number)
    if study.sampler == "tpe":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return optuna.samplers.TPESampler(seed=seed, group=True, multivariate=True)
    if study.sampler == "qmc":
        return SobolPoint(number, derive_seed(study.seed, study.name, label))
    return optuna.samplers.RandomSampler(seed=seed)


def fixed(
    values: dict[str, Any], otherwise: optuna.samplers.BaseSampler
) -> optuna.samplers.BaseSampler:
    """These values; a name that is not among them is drawn by `otherwise`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.PartialFixedSampler(values, otherwise)


class SobolPoint(optuna.samplers.RandomSampler):
    """One point of a scrambled Sobol sequence (Owen 1998, by scipy); its k-th coordinate is the k-th value
    drawn. Optuna's own QMCSampler takes the next free point of the study instead, so that the point of a
    trial depends on the order in which trials begin.

    Args:
        index: of the point; the first 2^m points together are the most even.
        seed: of the scrambling, the same for all points of a sequence.
    """

    def __init__(self, index: int, seed: int) -> None:
        from scipy.stats import qmc  # takes a second to import

        super().__init__(seed)
        sequence = qmc.Sobol(DIMENSIONS, scramble=True, rng=seed)
        if index:
            sequence.fast_forward(index)
        with warnings.catch_warnings():
            # One point is no balanced set; all of them are, in the end.
            warnings.simplefilter("ignore", UserWarning)
            self._point = sequence.random(1)[0]
        self._next = 0

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """The value at the point's next coordinate."""
        share = float(self._point[self._next % DIMENSIONS])
        self._next += 1
        return value_at(share, param_distribution)


def value_at(share: float, distribution: BaseDistribution) -> Any:
    """The quantile at `share` in [0, 1) of the distribution that Optuna's random sampler draws from."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[int(share * len(distribution.choices))]
    assert isinstance(distribution, (FloatDistribution, IntDistribution))
    low, high, step = distribution.low, distribution.high, distribution.step
    if isinstance(distribution, IntDistribution) and distribution.log:
        # Whole numbers fill their rounding intervals, as in Optuna's transform.
        value = math.exp(_between(math.log(low - 0.5), math.log(high + 0.5), share))
        return min(max(round(value), int(low)), int(high))
    if step is not None:
        count = math.floor((high - low) / step + 1e-9) + 1
        value = low + int(share * count) * step
        return int(value) if isinstance(distribution, IntDistribution) else value
    if distribution.log:
        return math.exp(_between(math.log(low), math.log(high), share))
    return _between(low, high, share)


def _between(low: float, high: float, share: float) -> float:
    return low + (high - low) * share
