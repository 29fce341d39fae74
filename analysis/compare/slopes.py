"""Slopes of transfer on the similarity of source and target, how they differ between strategies and sizes,
and shares of the variance of transfer.

    python -c "import pandas as pd; from analysis.compare.slopes import *; \\
               print(slopes(pd.read_csv('responses.csv'), ['logme']))"

Takes one row per run: columns source, target, response (see `responses`), one per measure (more meaning more
alike, the same for all runs of a pair), and where they exist seed, strategy and size.

The unit is the source and the target, never the run: runs of a pair are averaged first, and because pairs
share their sources and targets a slope is given four times: the naive way, in a crossed mixed model, with
source and target effects, and against shuffled sources.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import statsmodels.formula.api as smf
from statsmodels.stats.multitest import multipletests

from analysis.compare.agreement import STATIC
from analysis.compare.responses import by_condition, pair_means, standardised
from harness.core.errors import UserError

PERMUTATIONS = 10_000
MODELS = ("naive", "crossed", "fixed", "shuffled")
FORMULAS = {"naive": "response ~ z + C(target)", "fixed": "response ~ z + C(target) + C(source)"}


def slopes(
    scores: pd.DataFrame, measures: Sequence[str], permutations: int = PERMUTATIONS
) -> pd.DataFrame:
    """The change of the response (logits) with one standard deviation of a measure within its target.

    Models: "naive" is least squares with target effects and takes all pairs for independent; "crossed" a
    mixed model with random sources and targets (restricted maximum likelihood, Wald z: p a little too
    small with few sources); "fixed" least squares with target and source effects, so blind to a source
    that is good everywhere; "shuffled" the naive slope against that of a measure whose sources were
    exchanged as wholes, within their families (two-sided share of correlations within targets at least as far
    from 0).

    Each strategy is judged by itself: what holds for a linear probe, which reads the very features that many
    measures fit, need not hold for fine-tuning.

    Returns:
        One row per strategy, measure and model: strategy ("" if there is one), measure, model, slope, low,
        high (95%, NaN where shuffled), p, p_holm (Holm 1979 over strategies and measures, within the model),
        n pairs, sources, targets, left_out (pairs without the measure or a condition), note (what the fit
        complained about). NaN where it can't be told.

    Raises:
        UserError: if a column is missing, a source is its own target, or the static ranking, which is
            made of the response itself, is among the measures.
    """
    if STATIC in measures:
        raise UserError(
            "the static ranking is made of the accuracies: it has no slope to be tested"
        )
    parts = {"": scores}
    if "strategy" in scores and scores["strategy"].nunique() > 1:
        parts = {str(name): own for name, own in scores.groupby("strategy", sort=False)}
    rows = []
    for strategy, own in parts.items():
        pairs = pair_means(own, measures)
        asked = len(own[["source", "target"]].drop_duplicates())
        for measure in measures:
            table = standardised(pairs, measure)
            head = {"strategy": strategy, "measure": measure}
            rows += [
                {**head, **row, "left_out": asked - len(table)}
                for row in _all_slopes(table, permutations)
            ]
    return _adjusted(pd.DataFrame(rows))


def decisive_targets(scores: pd.DataFrame, measure: str, permutations: int = 2000) -> list[str]:
    """Targets without which the measure no longer passes each of the three tests at .05, unadjusted."""
    pairs = pair_means(scores, [measure])
    found = []
    for target in pairs["target"].unique():
        rest = standardised(pairs[pairs["target"] != target], measure)
        rows = {row["model"]: row for row in _all_slopes(rest, permutations)}
        tests = [rows[model]["p"] for model in ("crossed", "fixed", "shuffled")]
        if not all(p <= 0.05 for p in tests):
            found.append(str(target))
    return found


def _adjusted(frame: pd.DataFrame) -> pd.DataFrame:
    """With p_holm behind p: Holm over the rows of a model that have a p."""
    frame.insert(list(frame.columns).index("p") + 1, "p_holm", frame["p"])
    for _, own in frame.dropna(subset="p").groupby("model"):
        frame.loc[own.index, "p_holm"] = multipletests(own["p"], method="holm")[1]
    return frame


def _all_slopes(table: pd.DataFrame, permutations: int) -> list[dict[str, Any]]:
    """One row per model for one standardised measure: model, slope, low, high, p, n, ..., note."""
    shape = {"n": len(table), "sources": table["source"].nunique()}
    shape |= {"targets": table["target"].nunique()}
    rows: list[dict[str, Any]] = []
    for model in MODELS:
        row: dict[str, Any] = {"model": model, "slope": math.nan, "low": math.nan}
        row |= {"high": math.nan, "p": math.nan, **shape, "note": ""}
        if shape["sources"] < 3 or shape["targets"] < 2:
            row["note"] = "fewer than 3 sources or 2 targets"
        elif model == "crossed":
            row |= _crossed(table)
        elif model == "shuffled":
            row |= {"slope": rows[0]["slope"], "p": shuffled_p(table, permutations)}
            if row["p"] != row["p"]:
                row["note"] = "no two sources of a family to exchange"
        else:
            row |= _least_squares(table, FORMULAS[model])
        rows.append(row)
    return rows


def _least_squares(table: pd.DataFrame, formula: str) -> dict[str, Any]:
    of_z = smf.ols(formula.replace("response ~ z +", "z ~"), table).fit()
    if of_z.ssr < 1e-9 * of_z.uncentered_tss or of_z.df_resid < 2:
        return {"note": "the measure does not vary beyond the other effects"}
    fit = smf.ols(formula, table).fit()
    low, high = fit.conf_int().loc["z"]
    return {"slope": fit.params["z"], "low": low, "high": high, "p": fit.pvalues["z"]}


def _crossed(table: pd.DataFrame) -> dict[str, Any]:
    """Random sources and targets, crossed: variance components within one group that holds all.

    Powell's method, because the default (BFGS) stops short of the maximum, or fails, when the best
    variance of the sources is 0.
    """
    parts = {"source": "0 + C(source)", "target": "0 + C(target)"}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            fit = smf.mixedlm(
                "response ~ z", table, groups=np.ones(len(table)), vc_formula=parts
            ).fit(method="powell")
        except (np.linalg.LinAlgError, ValueError) as error:
            return {"note": f"no fit: {error}"}
    if not fit.converged or math.isnan(fit.pvalues["z"]):
        return {"note": "the mixed model did not converge"}
    low, high = fit.conf_int().loc["z"]
    at_zero = any("boundary" in str(w.message) for w in caught)
    note = "a variance of the mixed model is 0" if at_zero else ""
    return {"slope": fit.params["z"], "low": low, "high": high, "p": fit.pvalues["z"], "note": note}


def shuffled_p(table: pd.DataFrame, permutations: int) -> float:
    """Two-sided p of the correlation within targets between z and response under shuffled sources.

    A shuffle gives each source the z of another one of its family on all targets at once; pairs that it
    leaves without a z are left out of that shuffle. The smallest p is 1 / (permutations + 1). NaN if no
    family has two sources.
    """
    wide = table.pivot(index="source", columns="target", values="z")
    z = wide.to_numpy()
    y = table.pivot(index="source", columns="target", values="response").to_numpy()
    family = np.zeros(len(z), dtype=int)
    if "family" in table:
        names = table.drop_duplicates("source").set_index("source")["family"].reindex(wide.index)
        family = pd.factorize(names.fillna(""))[0]
    if np.bincount(family).max() < 2:
        return math.nan
    seen = abs(_within(z[None], y)[0])
    random = np.random.default_rng(0)
    hits, chunk = 0, max(1, 2_000_000 // z.size)
    for start in range(0, permutations, chunk):
        draws = min(chunk, permutations - start)
        order = np.empty((draws, len(z)), dtype=int)
        for number in range(family.max() + 1):
            members = np.flatnonzero(family == number)
            order[:, members] = random.permuted(np.tile(members, (draws, 1)), axis=1)
        hits += int((np.abs(_within(z[order], y)) >= seen - 1e-12).sum())
    return (hits + 1) / (permutations + 1)


def _within(z: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Correlation within targets of z (draws x sources x targets, NaN if unknown) with y (sources x
    targets): both centred on the target's mean over the pairs where both are known."""
    known = ~np.isnan(z) & ~np.isnan(y)
    count = np.maximum(known.sum(axis=1, keepdims=True), 1)
    centred = []
    for values in (z, np.broadcast_to(y, z.shape)):
        filled = np.where(known, values, 0.0)
        centred.append(np.where(known, filled - filled.sum(axis=1, keepdims=True) / count, 0.0))
    a, b = centred
    both: np.ndarray = (a * b).sum(axis=(1, 2))
    scale = np.sqrt((a**2).sum(axis=(1, 2)) * (b**2).sum(axis=(1, 2)))
    correlation: np.ndarray = np.divide(both, scale, out=np.zeros_like(both), where=scale > 0)
    return correlation


def interactions(
    scores: pd.DataFrame, measures: Sequence[str], permutations: int = PERMUTATIONS
) -> pd.DataFrame:
    """Does the slope differ between strategies, or change with the size of the target?

    Per pair, the response under one strategy minus that under the first one, and the slope of the response
    on ln(size); then `slopes` of these, so that here too the source and the target are the unit.

    Returns:
        The columns of `slopes` but left_out, preceded by term ("STRATEGY - FIRST" or "ln size"); Holm over
        measures and terms, within the model. Empty where neither column has two values.
    """
    table = by_condition(scores, measures)
    keys = ["source", "target"]
    base = table.groupby(keys, sort=False)[list(measures)].mean()
    if "family" in table:
        base["family"] = table.groupby(keys, sort=False)["family"].first()
    contrasts: dict[str, pd.Series] = {}
    if "strategy" in table:
        names = list(table["strategy"].unique())
        means = table.groupby([*keys, "strategy"])["response"].mean().unstack("strategy")
        contrasts |= {f"{name} - {names[0]}": means[name] - means[names[0]] for name in names[1:]}
    if "size" in table and table["size"].nunique() > 1:
        means = table.groupby([*keys, "size"])["response"].mean().unstack("size")
        x = np.log(means.columns.to_numpy(dtype=float))
        x -= x.mean()
        contrasts["ln size"] = (means * x).sum(axis=1, skipna=False) / float((x**2).sum())
    rows = []
    for term, response in contrasts.items():
        pairs = base.assign(response=response).reset_index()
        for measure in measures:
            found = _all_slopes(standardised(pairs, measure), permutations)
            rows += [{"term": term, "measure": measure, **row} for row in found]
    columns = "term measure model slope low high p n sources targets note".split()
    return _adjusted(pd.DataFrame(rows, columns=columns))


def variance_shares(scores: pd.DataFrame, measure: str) -> dict[str, object]:
    """How much of the response each part explains: sums of squares, each after the parts before it.

    Returns:
        measure, n pairs, and as shares: target, source, added (by the measure, to both), residual, which add
        up to 1; at_most (what the measure explains if it comes before the source).

    Raises:
        UserError: if a column is missing, or fewer than 3 sources or 2 targets have the measure.
    """
    table = standardised(pair_means(scores, [measure]), measure)
    if table["source"].nunique() < 3 or table["target"].nunique() < 2:
        raise UserError(f"variance shares need 3 sources and 2 targets with {measure!r}")

    def left(terms: str) -> float:
        return float(smf.ols(f"response ~ {terms}", table).fit().ssr)

    total, of_target = left("1"), left("C(target)")
    both, all_three = left("C(target) + C(source)"), left("C(target) + C(source) + z")
    shares = {
        "target": total - of_target,
        "source": of_target - both,
        "added": max(0.0, both - all_three),
        "at_most": of_target - left("C(target) + z"),
        "residual": all_three,
    }
    return {"measure": measure, "n": len(table)} | {k: v / total for k, v in shares.items()}
