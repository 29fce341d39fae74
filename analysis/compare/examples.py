"""Uncertainty of scores over training samples and test examples, from the recorded test predictions.

    python -c "from analysis import compare, load; t = load.load_study('freeze_depth'); \\
               print(compare.over_examples(t.predictions))"
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar

from analysis.compare.costs import seed_weights
from analysis.compare.runs import CONFIDENCE
from harness.core.folds import independent_runs

RESAMPLES = 1000
CHUNK = 20_000_000
"""Numbers held in memory at a time."""


def hits(predictions: pd.DataFrame, balanced: bool = False) -> dict[str, pd.DataFrame]:
    """Cell -> seeds x test examples: 1 if correct, 0 if wrong, NaN if that seed was not scored on it.

    With `balanced`, the linear approximation of the balanced accuracy is returned for each example, whose
    mean over the examples of a seed is the balanced accuracy b: b + n / (k n_c) (x - r_c) for x in {0, 1},
    with r_c the recall of its class, n_c the size of the class, n the number of examples and k the number of
    classes.

    Columns are named by (group, example), because examples of one group (patient, sequence, product) are not
    independent. Without groups, each example is a group.
    """
    right = (predictions["label"] == predictions["predicted"]).astype(float)
    if balanced:
        run, images = predictions["run_id"], predictions.groupby("run_id")["label"]
        of_class = right.groupby([run, predictions["label"]])
        recall, size = of_class.transform("mean"), of_class.transform("size")
        weight = images.transform("size") / images.transform("nunique") / size
        balanced_accuracy = of_class.mean().groupby(level=0).mean()
        right = run.map(balanced_accuracy) + weight * (right - recall)
    known = predictions[["cell", "seed", "example"]].assign(right=right, group=_groups(predictions))
    return {
        str(cell): own.pivot_table(index="seed", columns=["group", "example"], values="right")
        for cell, own in known.groupby("cell", sort=False)
    }


def _groups(predictions: pd.DataFrame) -> pd.Series:
    """Number of the group of each prediction; examples without a group get large negative numbers, in their
    order."""
    alone = predictions["example"].astype(int) - 2**40
    if "group" not in predictions:
        return alone
    return predictions["group"].fillna(alone).astype(int)


def are_grouped(predictions: pd.DataFrame) -> bool:
    """Whether any test example belongs to a group."""
    return "group" in predictions and bool(predictions["group"].notna().any())


def over_examples(
    predictions: pd.DataFrame,
    resamples: int = RESAMPLES,
    folds: int = 1,
    score: str = "accuracy",
) -> pd.DataFrame:
    """Accuracy, or balanced accuracy, of each cell with an interval over seeds and test examples. Other
    scores have no rows, because they are not means over examples.

    Seeds are resampled with replacement, and then examples (or groups of examples), once for all of the drawn
    seeds that were scored on them: the seeds of a study share their test examples, so an easy sample is easy
    for all of them. Deviations over seeds are scaled by sqrt(n / (n - 1)) (Rao and Wu 1988) and, with
    `folds`, to the standard error of `harness.core.folds.independent_runs`. The interval is the mean -+ t
    times the standard deviation of the resampled means, because percentiles of few seeds are far too narrow.
    The degrees of freedom are those of Satterthwaite (1946), with n - 1 for the seeds and infinitely many for
    the examples.

    Returns:
        One row per cell: cell, n (seeds), examples, mean, low, high (95%), se_seeds and se_examples
            (contributions to the standard error; with one seed the first is NaN and the interval is that of
            the examples). There is no interval if every seed is right, or wrong, on every example.
    """
    rows = []
    means = ("accuracy", "balanced_accuracy")
    tables = hits(predictions, score == "balanced_accuracy") if score in means else {}
    for cell, table in tables.items():
        right = table.to_numpy(dtype=float)
        seeds, count = right.shape
        scores = _image_draws(right, table.columns.get_level_values("group"), resamples)
        centre = scores.mean(axis=1)
        weights = seed_weights(seeds, resamples) / seeds
        worth = independent_runs(seeds, folds)
        stretch = math.sqrt(seeds / (seeds - 1)) * math.sqrt(seeds / worth) if seeds > 1 else 0.0
        drawn = centre + stretch * ((weights * scores).sum(axis=1) - centre)
        own = np.nanmean(right, axis=1)
        of_seeds = float(own.std(ddof=1)) / math.sqrt(worth) if seeds > 1 else math.nan
        of_images = float(centre.std(ddof=1))
        error = float(drawn.std(ddof=1))
        half = _quantile(of_seeds, of_images, seeds) * error if error > 1e-9 else math.nan
        mean = float(own.mean())
        rows.append(
            {"cell": cell, "n": seeds, "examples": count, "mean": mean}
            | {"low": float(np.clip(mean - half, 0, 1)), "high": float(np.clip(mean + half, 0, 1))}
            | {"se_seeds": of_seeds, "se_examples": of_images}
        )
    columns = ["cell", "n", "examples", "mean", "low", "high", "se_seeds", "se_examples"]
    return pd.DataFrame(rows, columns=columns)


def _quantile(of_seeds: float, of_images: float, seeds: int) -> float:
    """The t quantile for 95% with the degrees of freedom of the sum of both variances; the normal one without
    variance over seeds."""
    if math.isnan(of_seeds) or of_seeds < 1e-9:
        return float(stats.norm.ppf((1 + CONFIDENCE) / 2))
    freedom = (seeds - 1) * (1 + (of_images / of_seeds) ** 2) ** 2
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom))


def _image_draws(right: np.ndarray, groups: pd.Index, resamples: int) -> np.ndarray:
    """Scores of each seed (resamples x seeds) when the groups of the examples of `right` are resampled; an
    example without a group is resampled by itself."""
    random = np.random.default_rng(1)
    number = pd.factorize(groups)[0]
    count = int(number.max()) + 1
    known, filled = (
        np.stack([np.bincount(number, row, minlength=count) for row in values])
        for values in ((~np.isnan(right)).astype(float), np.nan_to_num(right))
    )
    parts, step = [], max(1, CHUNK // count)
    for start in range(0, resamples, step):
        draws = min(step, resamples - start)
        weights = random.multinomial(count, np.full(count, 1 / count), size=draws).astype(float)
        parts.append((weights @ filled.T) / np.maximum(weights @ known.T, 1.0))
    return np.concatenate(parts)


def mcnemar_over_seeds(
    tables: Mapping[str, pd.DataFrame], cell: str, reference: str
) -> dict[str, float]:
    """Whether two cells differ beyond the variation over test examples: McNemar's exact test (1947) on each
    shared seed; with groups, its form for clustered pairs, in which the differences of whole groups change
    sign.

    Args:
        tables: from `hits`.
        cell, reference: the two cells.

    Returns:
        only_cell, only_reference (mean number of examples that only this cell classifies correctly) and
        p_images: twice the median p over the seeds, at most 1, which is a valid p under any dependence
        (Rueger 1978). It is about these trained networks, not about other training samples. NaN without
        shared predictions.
    """
    nothing = dict.fromkeys(("only_cell", "only_reference", "p_images"), math.nan)
    if cell not in tables or reference not in tables:
        return nothing
    a, b = tables[cell].align(tables[reference], join="inner")
    if a.empty:
        return nothing
    number = pd.factorize(a.columns.get_level_values("group"))[0]
    clustered = len(set(number)) < len(number)
    only, other, p = [], [], []
    for mine, theirs in zip(a.to_numpy(dtype=float), b.to_numpy(dtype=float), strict=True):
        ahead, behind = int((mine > theirs).sum()), int((mine < theirs).sum())
        only.append(ahead)
        other.append(behind)
        if clustered:
            p.append(_sign_flip(np.bincount(number, np.nan_to_num(mine - theirs))))
        else:
            p.append(float(mcnemar([[0, ahead], [behind, 0]], exact=True).pvalue))
    return {
        "only_cell": float(np.mean(only)),
        "only_reference": float(np.mean(other)),
        "p_images": min(1.0, 2 * float(np.median(p))),
    }


def _sign_flip(differences: np.ndarray) -> float:
    """Exact two-sided p of the sum of integers whose signs are equally likely, by convolution of their
    distributions. It is McNemar's exact p if all integers are 1, 0 or -1."""
    sizes = np.abs(np.rint(differences)).astype(int)
    chances = np.ones(1)  # of the sums -n, -n + 2, ..., n when all are 1
    for size in sizes[sizes > 0]:
        step = np.zeros(size + 1)
        step[[0, -1]] = 0.5
        chances = np.convolve(chances, step)
    sums = 2 * np.arange(len(chances)) - sizes.sum()
    seen = abs(int(np.rint(differences).sum()))
    return min(1.0, float(chances[np.abs(sums) >= seen].sum()))
