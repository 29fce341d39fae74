"""How sure is a score, with other training draws and other test images? From the predictions that were kept.

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

RESAMPLES = 1000
CHUNK = 20_000_000
"""Numbers held at once."""


def hits(predictions: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Cell -> seeds x test examples: 1 right, 0 wrong, NaN where that seed was not scored on it."""
    right = (predictions["label"] == predictions["predicted"]).astype(float)
    known = predictions[["cell", "seed", "example"]].assign(right=right)
    return {
        str(cell): own.pivot_table(index="seed", columns="example", values="right")
        for cell, own in known.groupby("cell", sort=False)
    }


def over_examples(predictions: pd.DataFrame, resamples: int = RESAMPLES) -> pd.DataFrame:
    """Accuracy of each cell with an interval over seeds and test images.

    Seeds are drawn with replacement, then images, once for all of the drawn seeds that were scored on
    them: the seeds of a study share their test images, so an easy draw is easy for all. Deviations over
    seeds are stretched by sqrt(n / (n - 1)) (Rao and Wu 1988). The interval is the mean -+ t times the
    standard deviation of the resampled means, since percentiles of few seeds are far too narrow; its
    degrees of freedom are those of Satterthwaite (1946) for the seeds' n - 1 and the images' many.

    Returns:
        One row per cell: cell, n seeds, examples, mean, low, high (95%), se_seeds and se_examples (what
        either alone contributes to the standard error; with one seed the first is NaN and the interval
        is that of the images).
    """
    rows = []
    for cell, table in hits(predictions).items():
        right = table.to_numpy(dtype=float)
        seeds, count = right.shape
        scores = _image_draws(right, resamples)
        centre = scores.mean(axis=1)
        weights = seed_weights(seeds, resamples) / seeds
        stretch = math.sqrt(seeds / (seeds - 1)) if seeds > 1 else 0.0
        drawn = centre + stretch * ((weights * scores).sum(axis=1) - centre)
        own = np.nanmean(right, axis=1)
        of_seeds = float(own.std(ddof=1)) / math.sqrt(seeds) if seeds > 1 else math.nan
        of_images = float(centre.std(ddof=1))
        half = _quantile(of_seeds, of_images, seeds) * float(drawn.std(ddof=1))
        mean = float(own.mean())
        rows.append(
            {"cell": cell, "n": seeds, "examples": count, "mean": mean}
            | {"low": mean - half, "high": mean + half}
            | {"se_seeds": of_seeds, "se_examples": of_images}
        )
    columns = ["cell", "n", "examples", "mean", "low", "high", "se_seeds", "se_examples"]
    return pd.DataFrame(rows, columns=columns)


def _quantile(of_seeds: float, of_images: float, seeds: int) -> float:
    """t for 95% with the degrees of freedom of the sum of both variances; normal without seeds' variance."""
    if math.isnan(of_seeds) or of_seeds < 1e-9:
        return float(stats.norm.ppf((1 + CONFIDENCE) / 2))
    freedom = (seeds - 1) * (1 + (of_images / of_seeds) ** 2) ** 2
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom))


def _image_draws(right: np.ndarray, resamples: int) -> np.ndarray:
    """Scores of each seed (resamples x seeds) when the images of `right` are drawn with replacement."""
    random = np.random.default_rng(1)
    count = right.shape[1]
    known, filled = ~np.isnan(right), np.nan_to_num(right)
    parts, step = [], max(1, CHUNK // count)
    for start in range(0, resamples, step):
        draws = min(step, resamples - start)
        weights = random.multinomial(count, np.full(count, 1 / count), size=draws).astype(float)
        parts.append((weights @ filled.T) / np.maximum(weights @ known.T, 1.0))
    return np.concatenate(parts)


def mcnemar_over_seeds(
    tables: Mapping[str, pd.DataFrame], cell: str, reference: str
) -> dict[str, float]:
    """Would other test images turn two cells round? McNemar's exact test (1947) on each shared seed.

    Args:
        tables: from `hits`.
        cell, reference: the two cells.

    Returns:
        only_cell, only_reference (mean number of images that only this one gets right) and p_images:
        twice the median p over the seeds, at most 1, which is a p whatever their dependence (Rueger
        1978). It speaks of these trained networks, not of other training draws. NaN without shared
        predictions.
    """
    nothing = dict.fromkeys(("only_cell", "only_reference", "p_images"), math.nan)
    if cell not in tables or reference not in tables:
        return nothing
    a, b = tables[cell].align(tables[reference], join="inner")
    if a.empty:
        return nothing
    only, other, p = [], [], []
    for mine, theirs in zip(a.to_numpy(dtype=float), b.to_numpy(dtype=float), strict=True):
        ahead, behind = int((mine > theirs).sum()), int((mine < theirs).sum())
        only.append(ahead)
        other.append(behind)
        p.append(float(mcnemar([[0, ahead], [behind, 0]], exact=True).pvalue))
    return {
        "only_cell": float(np.mean(only)),
        "only_reference": float(np.mean(other)),
        "p_images": min(1.0, 2 * float(np.median(p))),
    }
