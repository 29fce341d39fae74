"""Which cell should be used under a limit on memory and time, how sure is that, and what would make it surer?

    python -c "from analysis import compare, load; t = load.load_study('freeze_depth'); \\
               print(compare.choice(t.trials, t.info.factors, max_seconds=60))"
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from analysis.compare.contrasts import seeds_needed
from analysis.compare.costs import priced
from analysis.compare.runs import cells, completed

DRAWS = 20_000
LEAST = 0.5
"""Points: a smaller lead is not worth more seeds."""


def choice(
    trials: pd.DataFrame,
    factors: Mapping[str, Sequence[str]],
    max_seconds: float = math.inf,
    max_mib: float = math.inf,
    draws: int = DRAWS,
) -> pd.DataFrame:
    """Every cell, those that fit the limits first, by mean test accuracy.

    Costs are medians over repeats of the training seconds and the peak memory; a cell whose cost was not
    measured does not fit a limit on it. Chance: means are drawn from their multivariate t distribution
    given the seeds, with n - 1 degrees of freedom and the covariance over shared seeds (the posterior
    under a flat prior), since a bootstrap of few seeds is far too sure.

    Returns:
        cell, n seeds, mean, seconds, memory_mib, fits, why (why not), p_best (share of draws in which
        it has the highest mean of the cells that fit; ties shared) and regret (mean points by which it
        stays below the best of the draw). NaN for a cell that does not fit, and with one seed.
    """
    repeats = priced(trials)
    limits = (("train_seconds", max_seconds, "s"), ("peak_memory_mib", max_mib, "MiB"))
    rows = []
    for cell in cells(factors)["cell"]:
        own = repeats[repeats["cell"] == cell]
        scores = own["test_accuracy"].dropna()
        cost = {name: float(own[name].median()) for name, _, _ in limits}
        why = "no test score" if scores.empty else ""
        for name, limit, unit in limits:
            if why or limit == math.inf:
                continue
            if math.isnan(cost[name]):
                why = f"{name.replace('_', ' ').removesuffix(' mib')} not measured"
            elif cost[name] > limit:
                why = f"{cost[name]:.3g} {unit} is over the limit"
        rows.append(
            {"cell": cell, "n": len(scores), "mean": float(scores.mean())}
            | {"seconds": cost["train_seconds"], "memory_mib": cost["peak_memory_mib"]}
            | {"fits": not why, "why": why, "p_best": math.nan, "regret": math.nan}
        )
    table = pd.DataFrame(rows).sort_values(
        ["fits", "mean"], ascending=False, kind="stable", ignore_index=True
    )
    sure = table["fits"] & (table["n"] > 1)
    names = list(table.loc[sure, "cell"])
    if not names:
        return table
    scores = completed(trials, "repeat").pivot(index="seed", columns="cell", values="test_accuracy")
    drawn = _posterior(scores[names].to_numpy(dtype=float), draws)
    top = drawn.max(axis=1, keepdims=True)
    first = drawn >= top - 1e-12
    table.loc[sure, "p_best"] = (first / first.sum(axis=1, keepdims=True)).mean(axis=0)
    table.loc[sure, "regret"] = 100 * (top - drawn).mean(axis=0)
    return table


def _posterior(values: np.ndarray, draws: int) -> np.ndarray:
    """Means (draws x cells) given `values` (seeds x cells, NaN where unknown, at least two of each cell).

    Normal combinations of the deviations have their covariance, a common chi-square makes them t.
    """
    random = np.random.default_rng(0)
    count = (~np.isnan(values)).sum(axis=0)
    centre = np.nanmean(values, axis=0)
    deviations = np.nan_to_num(values - centre) / np.sqrt(count * (count - 1))
    freedom = int(count.min()) - 1
    scale = np.sqrt(freedom / random.chisquare(freedom, size=(draws, 1)))
    means: np.ndarray = centre + scale * (random.standard_normal((draws, len(values))) @ deviations)
    return means


def surer(trials: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """What would have to be run to tell the choice from each rival that fits.

    Args:
        trials: as loaded.
        table: from `choice`.

    Returns:
        rival, n shared seeds, lead (points), seeds (with which a difference of that size, at least LEAST, is
        found 4 times in 5; inf: more than are worth it), more (seeds on top of n) and minutes (that these
        runs of both cells take, whole trials, as far as measured). The likeliest rival first.
    """
    fit = table[table["fits"]]
    columns = ["rival", "n", "lead", "seeds", "more", "minutes"]
    if len(fit) < 2:
        return pd.DataFrame(columns=columns)
    repeats = completed(trials, "repeat")
    scores = repeats.pivot(index="seed", columns="cell", values="test_accuracy")
    spent = repeats.groupby("cell")[["total_seconds", "train_seconds"]].median()
    each = spent["total_seconds"].fillna(spent["train_seconds"])
    best = fit.iloc[0]["cell"]
    rows = []
    for rival in fit["cell"].iloc[1:]:
        points = (100 * (scores[best] - scores[rival])).dropna()
        lead = float(points.mean())
        needed = seeds_needed(float(points.std(ddof=1)), max(abs(lead), LEAST))
        more = max(0.0, needed - len(points))
        rows.append(
            {"rival": rival, "n": len(points), "lead": lead, "seeds": needed, "more": more}
            | {"minutes": more * float(each[best] + each[rival]) / 60}
        )
    order = dict(zip(fit["cell"], fit["p_best"], strict=True))
    ranked = pd.DataFrame(rows, columns=columns)
    return ranked.sort_values(
        "rival", key=lambda s: -s.map(order), kind="stable", ignore_index=True
    )
