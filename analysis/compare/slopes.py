"""Regression slopes of transfer on the similarity of source and target, their differences between strategies
and sizes, and shares of the variance of transfer.

    python -c "import pandas as pd; from analysis.compare.slopes import *; \\
               print(slopes(pd.read_csv('responses.csv'), ['logme']))"

The input has one row per run: columns source, target, response (see `responses`), one column per measure
(higher means more similar; the same for all runs of a pair) and, if they were varied, seed, strategy and
size.

The units of analysis are the source and the target, not the run. Runs of a pair are averaged first. Because
pairs share sources and targets, each slope is estimated in four ways: by naive least squares, in a mixed
model with crossed random effects, with fixed source and target effects, and in a permutation test that
shuffles sources.
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
    """Change of the response (in logits) per standard deviation of a measure within its target.

    Models: "naive" is least squares with target effects, which treats all pairs as independent. "crossed" is
    a mixed model with random effects of source and target (restricted maximum likelihood, Wald z; its p is
    slightly too small with few sources). "fixed" is least squares with target and source effects, and so
    ignores how good a source is on all targets. "shuffled" compares the naive slope with those obtained when
    the sources of a measure are exchanged within their families (two-sided p: share of correlations within
    targets at least as far from 0).

    Strategies are analysed separately, because a result for a linear probe, which reads the features from
    which many measures are computed, need not hold for fine-tuning.

    Returns:
        One row per strategy, measure and model: strategy ("" if there is only one), measure, model, slope,
            low, high (95% interval, NaN for "shuffled"), p, p_holm (Holm 1979 over strategies and measures,
            within the model), n (number of pairs), sources, targets, left_out (pairs without the measure or
            one of the conditions), note (problem reported by the fit). NaN if it cannot be estimated.

    Raises:
        UserError: if a column is missing, a source is its own target, or the static ranking, which is
            computed from the response, is among the measures.
    """
    if STATIC in measures:
        raise UserError(
            "the static ranking is computed from the accuracies, so it has no slope to be tested"
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
    """Targets whose removal makes the measure fail one of the three tests at .05, unadjusted."""
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
    """The table with the column p_holm after p: Holm's adjustment over the rows of a model that have a p."""
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
                row["note"] = "no family has two sources to exchange"
        else:
            row |= _least_squares(table, FORMULAS[model])
        rows.append(row)
    return rows


def _least_squares(table: pd.DataFrame, formula: str) -> dict[str, Any]:
    of_z = smf.ols(formula.replace("response ~ z +", "z ~"), table).fit()
    if of_z.ssr < 1e-9 * of_z.uncentered_tss or of_z.df_resid < 2:
        return {"note": "the measure is constant given the other effects"}
    fit = smf.ols(formula, table).fit()
    low, high = fit.conf_int().loc["z"]
    return {"slope": fit.params["z"], "low": low, "high": high, "p": fit.pvalues["z"]}


def _crossed(table: pd.DataFrame) -> dict[str, Any]:
    """A mixed model with crossed random effects of source and target: variance components in a single group.

    It is fitted by Powell's method, because the default (BFGS) stops before the maximum, or fails, if the
    estimated variance of the sources is 0.
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
    """Two-sided p of the correlation within targets between z and the response, when sources are shuffled.

    A shuffle gives each source the z of another source of its family on all targets at once. Pairs without a
    z after a shuffle are omitted from that shuffle. The smallest possible p is 1 / (permutations + 1). NaN if
    no family has two sources.
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
    """Correlation within targets of z (draws x sources x targets, NaN if unknown) with y (sources x targets).
    Both are centred on the target's mean over the pairs for which both are known."""
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
    """Whether slopes differ between strategies, and whether they change with the size of the target data set.

    For each pair, the response is replaced by the difference between one strategy and the first one, or by
    the slope of the response on ln(size). The result is analysed as in `slopes`, so the units are again the
    source and the target.

    Returns:
        The columns of `slopes` except left_out, preceded by term ("STRATEGY - FIRST" or "ln size"). Holm's
        adjustment is over measures and terms, within the model. Empty if there is only one strategy and one
        size.
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
    """Share of the variance of the response that each part explains, by sequential sums of squares.

    Returns:
        measure, n (number of pairs), and the shares of target, source, added (what the measure explains in
        addition to both) and residual, which sum to 1; and at_most (what the measure explains if it is
        entered before the source).

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
