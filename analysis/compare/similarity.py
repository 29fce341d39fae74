"""Does a source that is more like the target transfer better? What was shown, and what was not.

    python -c "import pandas as pd; from analysis.compare.similarity import *; \\
               s = responses(pd.read_csv('scores.csv')); print(slopes(s, ['logme']))"

Takes one row per run: columns source, target, accuracy (a share), one per measure (more meaning more
alike, the same for all runs of a pair), and where they exist seed, strategy, size and scratch (accuracy
without any source under the same target, seed, strategy and size; see `with_scratch`).

The unit is the source and the target, never the run: runs of a pair are averaged first, and because pairs
share their sources and targets a slope is given four times: the naive way, in a crossed mixed model, with
source and target effects, and against shuffled sources.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import statsmodels.formula.api as smf
from scipy.special import logit
from statsmodels.stats.multitest import multipletests

from analysis.compare.agreement import STATIC, require
from analysis.compare.runs import mean_interval
from harness.spec import UserError

CONDITIONS = ("strategy", "size")
ALPHA = 0.05
PERMUTATIONS = 10_000
MODELS = ("naive", "crossed", "fixed", "shuffled")
FORMULAS = {"naive": "response ~ z + C(target)", "fixed": "response ~ z + C(target) + C(source)"}


def with_scratch(scores: pd.DataFrame, scratch: str = "scratch") -> pd.DataFrame:
    """The runs with a source, and as column scratch the accuracy of the run without one, under the same
    target and, where the columns exist, seed, strategy and size.

    Args:
        scores: source, target, accuracy, ...
        scratch: what `source` is for a run without one.

    Raises:
        UserError: if a run has no such partner, or several.
    """
    require(scores, ["source", "target", "accuracy"])
    keys = [key for key in ("target", "seed", *CONDITIONS) if key in scores]
    partners = scores.loc[scores["source"] == scratch, [*keys, "accuracy"]]
    require(partners, keys, unique=keys)
    runs = scores[scores["source"] != scratch].drop(columns="scratch", errors="ignore")
    joined = runs.merge(
        partners.rename(columns={"accuracy": "scratch"}), on=keys, how="left", indicator=True
    )
    if (alone := joined["_merge"] == "left_only").any():
        first = joined.loc[alone, keys].iloc[0]
        which = ", ".join(f"{name} {value}" for name, value in first.items())
        raise UserError(f"no run from {scratch!r} for {which}")
    return joined.drop(columns="_merge")


def responses(scores: pd.DataFrame, examples: int | None = None) -> pd.DataFrame:
    """With a column response: logit(accuracy) - logit(scratch), or logit(accuracy) without scratch.

    Args:
        scores: accuracy and perhaps scratch, shares.
        examples: size of the test set. Then the logit is the empirical one, log((k + .5) / (n - k + .5))
            with k hits of n (Haldane 1956), which is finite at 0 and 1.

    Raises:
        UserError: if a share is not in [0, 1], or is 0 or 1 and the number of examples is not given.
    """
    require(scores, ["accuracy"])

    def of(column: str) -> pd.Series:
        share = scores[column].astype(float)
        if ((share < 0) | (share > 1)).any():
            raise UserError(f"{column} holds values outside [0, 1]")
        if examples is not None:
            share = (share * examples + 0.5) / (examples + 1)
        elif share.isin([0.0, 1.0]).any():
            raise UserError(f"{column} holds a 0 or 1, whose logit is infinite: give `examples`")
        return pd.Series(logit(share), index=scores.index)

    gain = of("accuracy") - of("scratch") if "scratch" in scores else of("accuracy")
    return scores.assign(response=gain)


def gains(scores: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Points of accuracy gained over scratch.

    Returns:
        One row per combination of the columns `by`: those, targets, gain (mean over targets of the
        mean over their runs), low, high (t interval over targets).
    """
    require(scores, ["target", "accuracy", "scratch", *by])
    points = 100 * (scores["accuracy"] - scores["scratch"])
    table = scores.assign(gain=points).groupby([*by, "target"], sort=False)["gain"].mean()
    rows = []
    for key, own in table.groupby(level=list(range(len(by))), sort=False):
        mean, _, low, high = mean_interval(own)
        names = key if isinstance(key, tuple) else (key,)
        rows.append(
            dict(zip(by, names, strict=True))
            | {"targets": int(own.notna().sum()), "gain": mean, "low": low, "high": high}
        )
    return pd.DataFrame(rows, columns=[*by, "targets", "gain", "low", "high"])


def _by_condition(scores: pd.DataFrame, measures: Sequence[str]) -> pd.DataFrame:
    """Mean response over the seeds of each pair and condition; only pairs that have every condition, or
    the mean of a pair would depend on which of its conditions failed."""
    require(scores, ["source", "target", "response", *measures])
    if (own := scores["source"] == scores["target"]).any():
        name = scores.loc[own, "source"].iloc[0]
        raise UserError(f"source and target are both {name!r}: its score is no transfer, drop it")
    conditions = [name for name in CONDITIONS if name in scores]
    known = scores.dropna(subset="response")
    keys = ["source", "target", *conditions]
    table = known.groupby(keys, sort=False, as_index=False)[["response", *measures]].mean()
    wanted = len(table[conditions].drop_duplicates()) if conditions else 1
    full = table.groupby(["source", "target"])["response"].transform("size") == wanted
    return table[full]


def _standardised(pairs: pd.DataFrame, measure: str) -> pd.DataFrame:
    """source, target, response and z: the measure with mean 0 and standard deviation 1 (n - 1) within
    each target; targets on which it is constant or has fewer than two sources drop out."""
    known = pairs.dropna(subset=[measure, "response"])
    groups = known.groupby("target")[measure]
    spread = groups.transform("std")
    z = (known[measure] - groups.transform("mean")) / spread.where(spread > 1e-12)
    return known[["source", "target", "response"]].assign(z=z).dropna().reset_index(drop=True)


def _pairs(scores: pd.DataFrame, measures: Sequence[str]) -> pd.DataFrame:
    table = _by_condition(scores, measures)
    pairs = table.groupby(["source", "target"], sort=False, as_index=False)
    return pairs[["response", *measures]].mean()


def slopes(
    scores: pd.DataFrame, measures: Sequence[str], permutations: int = PERMUTATIONS, seed: int = 0
) -> pd.DataFrame:
    """The change of the response (logits) with one standard deviation of a measure within its target.

    Models: "naive" is least squares with target effects and takes all pairs for independent; "crossed" a
    mixed model with random sources and targets (restricted maximum likelihood, Wald z: p a little too
    small with few sources); "fixed" least squares with target and source effects, so blind to a source
    that is good everywhere; "shuffled" the naive slope against that of a measure whose sources were
    exchanged as wholes (two-sided share of correlations within targets at least as far from 0).

    Returns:
        One row per measure and model: measure, model, slope, low, high (95%, NaN where shuffled), p, p_holm
        (Holm 1979 over the measures, within the model), n pairs, sources, targets, left_out (pairs without
        the measure or a condition), note (what the fit complained about). NaN where it can't be told.

    Raises:
        UserError: if a column is missing, a source is its own target, or the static ranking, which is
            made of the response itself, is among the measures.
    """
    if STATIC in measures:
        raise UserError(
            "the static ranking is made of the accuracies: it has no slope to be tested"
        )
    pairs = _pairs(scores, measures)
    asked = len(scores[["source", "target"]].drop_duplicates())
    rows = []
    for measure in measures:
        table = _standardised(pairs, measure)
        rows += [
            {"measure": measure, **row, "left_out": asked - len(table)}
            for row in _all_slopes(table, permutations, seed)
        ]
    frame = pd.DataFrame(rows)
    frame.insert(6, "p_holm", frame["p"])
    for _, own in frame.dropna(subset="p").groupby("model") if len(measures) > 1 else ():
        frame.loc[own.index, "p_holm"] = multipletests(own["p"], method="holm")[1]
    return frame


def _all_slopes(table: pd.DataFrame, permutations: int, seed: int) -> list[dict[str, Any]]:
    """One row per model for one standardised measure: model, slope, low, high, p, n, ..., note."""
    shape = {"n": len(table), "sources": table["source"].nunique()}
    shape |= {"targets": table["target"].nunique()}
    rows: list[dict[str, Any]] = []
    for model in MODELS:
        row: dict[str, Any] = {
            "model": model,
            **dict.fromkeys(("slope", "low", "high", "p"), math.nan),
        }
        row |= {**shape, "note": ""}
        if shape["sources"] < 3 or shape["targets"] < 2:
            row["note"] = "fewer than 3 sources or 2 targets"
        elif model == "crossed":
            row |= _crossed(table)
        elif model == "shuffled":
            row |= {"slope": rows[0]["slope"], "p": shuffled_p(table, permutations, seed)}
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


def shuffled_p(table: pd.DataFrame, permutations: int, seed: int) -> float:
    """Two-sided p of the correlation within targets between z and response under shuffled sources.

    A shuffle gives each source the z of another one on all targets at once; pairs that it leaves
    without a z are left out of that shuffle. The smallest p is 1 / (permutations + 1).
    """
    z = table.pivot(index="source", columns="target", values="z").to_numpy()
    y = table.pivot(index="source", columns="target", values="response").to_numpy()
    seen = abs(_within(z[None], y)[0])
    random = np.random.default_rng(seed)
    hits, chunk = 0, max(1, 2_000_000 // z.size)
    for start in range(0, permutations, chunk):
        draws = min(chunk, permutations - start)
        order = random.permuted(np.tile(np.arange(len(z)), (draws, 1)), axis=1)
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


def variance_shares(scores: pd.DataFrame, measure: str) -> pd.DataFrame:
    """How much of the response each part explains: sums of squares, each after the parts before it.

    Returns:
        One row per part (target, source, measure, residual): part, df, share (in that order, so the
        measure has what neither target nor source explains), share_measure_first (order target,
        measure, source: what it could have at most). Each adds up to 1.

    Raises:
        UserError: if a column is missing, or fewer than 3 sources or 2 targets have the measure.
    """
    table = _standardised(_pairs(scores, [measure]), measure)
    if table["source"].nunique() < 3 or table["target"].nunique() < 2:
        raise UserError(f"variance shares need 3 sources and 2 targets with {measure!r}")
    chains = {
        "share": ["C(target)", "C(source)", "z"],
        "share_measure_first": ["C(target)", "z", "C(source)"],
    }
    names = {"C(target)": "target", "C(source)": "source", "z": "measure"}
    parts = pd.DataFrame({"part": [*names.values(), "residual"], "df": 0}).set_index("part")
    for column, chain in chains.items():
        last = smf.ols("response ~ 1", table).fit()
        total = last.ssr
        parts[column] = 0.0
        for i, term in enumerate(chain):
            fit = smf.ols(f"response ~ {' + '.join(chain[: i + 1])}", table).fit()
            parts.loc[names[term], column] = max(0.0, (last.ssr - fit.ssr) / total)
            if column == "share":
                parts.loc[names[term], "df"] = int(last.df_resid - fit.df_resid)
            last = fit
        parts.loc["residual", column] = last.ssr / total
        parts.loc["residual", "df"] = int(last.df_resid)
    return parts.reset_index()


def interactions(
    scores: pd.DataFrame, measure: str, permutations: int = PERMUTATIONS, seed: int = 0
) -> pd.DataFrame:
    """Does the slope differ between strategies, or change with the size of the target?

    Per pair, the response under one strategy minus that under the first one, and the slope of the response
    on ln(size); then `slopes` of these, so that here too the source and the target are the unit.

    Returns:
        The columns of `slopes` but p_holm and left_out, preceded by term ("STRATEGY - FIRST" or "ln size").
        Empty where neither column has two values.
    """
    table = _by_condition(scores, [measure])
    keys = ["source", "target"]
    base = table.groupby(keys, sort=False)[[measure]].mean()
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
        found = _all_slopes(_standardised(pairs, measure), permutations, seed)
        rows += [{"term": term, "measure": measure, **row} for row in found]
    columns = "term measure model slope low high p n sources targets note".split()
    return pd.DataFrame(rows, columns=columns)


def verdicts(slopes: pd.DataFrame, means: pd.DataFrame | None = None) -> pd.DataFrame:
    """What was and what was not shown about each measure.

    Args:
        slopes: from `slopes`.
        means: from `agreement.mean_agreement`, for how far the ranking beats the static one.

    Returns:
        measure, verdict ("similarity": all three tests at .05 after Holm, with one sign; "source": the
        crossed model and the shuffles, but not within sources; "open": anything less; "untested") and
        sentence.
    """
    known = {} if means is None else {row["measure"]: row for row in means.to_dict("records")}
    names = list(slopes["measure"].unique())
    rows = []
    for measure in names:
        own = slopes[slopes["measure"] == measure].set_index("model").to_dict("index")
        verdict = _verdict(own)
        sentence = _sentence(measure, verdict, own, len(names))
        if measure in known:
            sentence += _against_static(known[measure])
        rows.append({"measure": measure, "verdict": verdict, "sentence": sentence})
    return pd.DataFrame(rows, columns=["measure", "verdict", "sentence"])


def _verdict(own: Mapping[Hashable, Mapping[Hashable, Any]]) -> str:
    tests = ("crossed", "fixed", "shuffled")
    if any(math.isnan(own[model]["p"]) for model in tests):
        return "untested"
    low = {model for model in tests if own[model]["p_holm"] <= ALPHA}
    if len(low) == 3 and len({own[model]["slope"] > 0 for model in tests}) == 1:
        return "similarity"
    same = (own["crossed"]["slope"] > 0) == (own["shuffled"]["slope"] > 0)
    return "source" if low == {"crossed", "shuffled"} and same else "open"


def _sentence(
    measure: str, verdict: str, own: Mapping[Hashable, Mapping[Hashable, Any]], family: int
) -> str:
    """One measure in plain words; `family` is the number of measures that Holm adjusts for."""
    naive, crossed, fixed = own["naive"], own["crossed"], own["fixed"]
    shape = f"{naive['n']} pairs of {naive['sources']} sources and {naive['targets']} targets"
    if verdict == "untested":
        why = next((row["note"] for row in own.values() if row["note"]), "a fit failed")
        return f"Nothing can be said about {measure} ({shape}): {why}."
    way = "worse" if crossed["slope"] < 0 and verdict != "open" else "better"
    claim = f"that sources with a higher {measure} transfer {way}"
    slope = f"{crossed['slope']:+.2g} logits per standard deviation"
    interval = f"{slope}, {crossed['low']:+.2g} to {crossed['high']:+.2g}"
    evidence = (
        f"with sources and targets crossed p = {crossed['p_holm']:.2g} ({interval}), within sources "
        f"p = {fixed['p_holm']:.2g}, with sources shuffled p = {own['shuffled']['p_holm']:.2g}"
        f"{f' (Holm over {family} measures)' * (family > 1)}"
    )
    if verdict == "similarity":
        return f"Shown {claim}, for a given target and beyond the source's own quality ({shape}): {evidence}."
    if verdict == "source":
        return (
            f"Shown {claim} ({shape}); not shown that it takes likeness to the target: the same sources "
            f"may be the good ones everywhere. {evidence[0].upper()}{evidence[1:]}."
        )
    trap = ""
    if naive["p_holm"] <= ALPHA:
        trap = (
            f" Least squares alone would say p = {naive['p_holm']:.1g}, for it takes the pairs for "
            f"independent."
        )
    if len({row["slope"] > 0 for row in own.values()}) > 1:
        trap += " The models don't agree on the sign."
    return f"Not shown {claim} ({shape}): {evidence}.{trap}"


def _against_static(row: Mapping[Hashable, Any]) -> str:
    if math.isnan(row["lead"]):
        return ""
    if row["lead_low"] > 0:
        how = "it ranks the sources better than"
    elif row["lead_high"] < 0:
        how = "it ranks the sources worse than"
    else:
        how = "its ranking can't be told apart from"
    return (
        f" Over {row['targets']} targets {how} the one that ignores the target (mean weighted tau "
        f"{row['static'] + row['lead']:.2f} against {row['static']:.2f})."
    )
