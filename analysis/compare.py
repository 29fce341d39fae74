"""Which cell is better, by how much, and what does it cost? DataFrame -> DataFrame, nothing else.

    python -c "from analysis import compare, load; t = load.load_study('freeze_depth'); \
               print(compare.summary(t.trials, t.info.factors))"

Takes the trials of `analysis.load`. Accuracies are shares in [0, 1]; differences are in points (1
point is an accuracy of .01). Every interval is a 95% t interval over seeds: it says how far the mean
would move with other training draws on these test images, not how far with other test images.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from harness.spec import UserError, cell_label

CONFIDENCE = 0.95
ALPHA = 0.05
POWER = 0.80
CLAIM_SEEDS = 10
MAX_FLIPS = 2**15
WORTHLESS = ("diverged", "oom", "timeout", "pruned")
"""Outcomes that used up a tuning trial and gave nothing that could be chosen; the other incomplete
outcomes (crashed, killed, audit_failed) are faults of the run, not of its configuration."""


def cells(factors: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """Every cell in the order written: one row each, columns cell and one per factor."""
    rows = [dict(zip(factors, v, strict=True)) for v in itertools.product(*factors.values())]
    return pd.DataFrame([{"cell": cell_label(row), **row} for row in rows])


def completed(trials: pd.DataFrame, phase: str) -> pd.DataFrame:
    """The runs of one phase that may be compared: complete and not superseded.

    Raises:
        UserError: if two of them fill the same slot, which would count it twice.
    """
    kept = trials[
        (trials["phase"] == phase) & (trials["outcome"] == "complete") & ~trials["superseded"]
    ]
    slot = "seed" if phase == "repeat" else "index"
    double = kept[kept.duplicated(["cell", slot], keep=False)]
    if len(double):
        first = double.iloc[0]
        same = double[(double["cell"] == first["cell"]) & (double[slot] == first[slot])]
        raise UserError(
            f"two complete {phase} runs for cell {first['cell']!r}, {slot} {first[slot]}: "
            f"{', '.join(same['run_id'])}; delete one in MLflow"
        )
    return kept.reset_index(drop=True)


def chosen(trials: pd.DataFrame) -> pd.DataFrame:
    """The configuration of each cell with the best validation accuracy; one row per scored cell.

    Ties go to the lower val_loss, then to the lower index. Test scores play no part.
    """
    tuned = completed(trials, "tune").dropna(subset="val_accuracy")
    ranked = tuned.sort_values(["val_accuracy", "val_loss", "index"], ascending=[False, True, True])
    return ranked.drop_duplicates("cell").reset_index(drop=True)


def memory_column(trials: pd.DataFrame) -> str:
    """The memory metric to compare: the accelerator's where any run has it, else the process's.

    One for the whole study: the two measure different things and are never mixed in one column.
    """
    gpu = "peak_accelerator_allocated_mib"
    return gpu if trials[gpu].notna().any() else "peak_process_rss_mib"


def mean_interval(values: Iterable[float]) -> tuple[float, float, float, float]:
    """Mean, standard deviation (n - 1) and 95% t interval of `values`, NaNs left out.

    mean -+ t(.975, n - 1) sd / sqrt(n) (Student 1908). With n < 2 all but the mean are NaN.
    """
    x = np.asarray(list(values), dtype=float)
    x = x[~np.isnan(x)]
    if len(x) < 2:
        return (float(x[0]) if len(x) else math.nan), math.nan, math.nan, math.nan
    mean, sd = float(x.mean()), float(x.std(ddof=1))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(x) - 1)) * sd / math.sqrt(len(x))
    return mean, sd, mean - half, mean + half


def summary(trials: pd.DataFrame, factors: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """One row per cell of the study, also for cells without a single complete run.

    Returns:
        cell, the factors, tuned and failed (numbers of tuning trials), val_accuracy of the chosen
        one, n (repeats with a test score), mean, sd, low, high of test_accuracy (interval resamples
        seeds), and median, min and max over repeats of train_seconds and peak_memory_mib;
        time_front and memory_front: on the Pareto front of accuracy against that cost.
    """
    repeats = completed(trials, "repeat")
    repeats = repeats.assign(peak_memory_mib=repeats[memory_column(trials)])
    best = chosen(trials).set_index("cell")["val_accuracy"]
    tune = trials[trials["phase"] == "tune"]
    rows = []
    for row in cells(factors).to_dict("records"):
        own = repeats[repeats["cell"] == row["cell"]]
        tried = tune.loc[tune["cell"] == row["cell"], "outcome"]
        mean, sd, low, high = mean_interval(own["test_accuracy"])
        costs = {
            f"{cost}_{name}": float(getattr(own[cost], name)())
            for cost in ("train_seconds", "peak_memory_mib")
            for name in ("median", "min", "max")
        }
        rows.append(
            row
            | {"tuned": int((tried == "complete").sum())}
            | {"failed": int((~tried.isin(["complete", "pruned", "unfinished"])).sum())}
            | {"val_accuracy": best.get(row["cell"], math.nan)}
            | {"n": int(own["test_accuracy"].notna().sum())}
            | {"mean": mean, "sd": sd, "low": low, "high": high}
            | costs
        )
    table = pd.DataFrame(rows)
    table["time_front"] = pareto_front(table, "mean", ["train_seconds_median"])
    table["memory_front"] = pareto_front(table, "mean", ["peak_memory_mib_median"])
    return table


def pareto_front(table: pd.DataFrame, value: str, costs: Sequence[str]) -> pd.Series:
    """Whether each row is on the front: no other is at least as good in `value` (more is better)
    and in every cost (less is better), and better in one. A row with a NaN is never on it."""
    points = np.column_stack([table[value], *(-table[cost] for cost in costs)]).astype(float)
    known = ~np.isnan(points).any(axis=1)
    front = [
        bool(ok)
        and not any(
            bool((other >= point).all() and (other > point).any()) for other in points[known]
        )
        for point, ok in zip(points, known, strict=True)
    ]
    return pd.Series(front, index=table.index, dtype=bool)


def sign_flip_p(differences: Sequence[float]) -> float:
    """Exact two-sided sign-flip p of a mean difference (Fisher 1935): the share of the 2^n ways to
    swap the two cells seed by seed that give a mean at least this far from 0.

    Exact up to 15 differences, above that from 32768 random flips with a fixed seed. It cannot be
    under 2 / 2^n: .0625 with 5 seeds. NaN without a difference.
    """
    if len(differences) == 0:
        return math.nan
    test = stats.permutation_test(
        (np.asarray(differences, dtype=float),),
        np.mean,
        permutation_type="samples",
        n_resamples=MAX_FLIPS,
        vectorized=True,
        rng=np.random.default_rng(0),
    )
    return float(test.pvalue)


def least_detectable(sd: float, n: int) -> float:
    """The mean paired difference that a two-sided t test at .05 on n pairs finds with 80% power, in
    the unit of `sd`, the standard deviation of the differences (Cohen 1988). NaN for n < 2."""
    if n < 2 or math.isnan(sd):
        return math.nan
    effect = TTestPower().solve_power(effect_size=None, nobs=n, alpha=ALPHA, power=POWER)
    return float(effect) * sd


def paired_differences(
    trials: pd.DataFrame, factors: Mapping[str, Sequence[str]], baseline: Mapping[str, str]
) -> pd.DataFrame:
    """Each cell against the one that has the baseline's values and equals it in the other factors.

    Returns:
        The table of `contrasts`; empty without a baseline.
    """
    table = cells(factors)
    references = [
        cell_label({k: baseline.get(k, str(row[k])) for k in factors})
        for row in table.to_dict("records")
    ]
    pairs = [(a, b) for a, b in zip(table["cell"], references, strict=True) if a != b]
    return contrasts(trials, pairs)


def against_best(trials: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """The cell with the highest mean test accuracy in `table` (a `summary`) against every other.

    The best was picked with the same scores, so its lead is overstated (winner's curse): Holm over
    all rivals guards the test, not the size of the difference. Empty without two scored cells.
    """
    scored = table.dropna(subset="mean").sort_values("mean", ascending=False, kind="stable")
    names = list(scored["cell"])
    return contrasts(trials, [(names[0], rival) for rival in names[1:]])


def contrasts(trials: pd.DataFrame, pairs: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """Paired comparison of cells over the seeds that both were repeated on.

    Returns:
        One row per pair: cell, reference, n pairs, difference (points of test accuracy, positive
        when cell is better), low, high (95% t interval, resamples seeds, not adjusted for the
        number of contrasts), p (sign flip), p_holm (Holm 1979 over all rows), least_detectable (points),
        verdict (higher, lower, leaning, open or untested) and sentence.
    """
    scores = completed(trials, "repeat").pivot(index="seed", columns="cell", values="test_accuracy")
    rows = []
    for cell, reference in pairs:
        both = scores.reindex(columns=[cell, reference]).dropna()
        points = 100 * (both[cell] - both[reference])
        mean, sd, low, high = mean_interval(points)
        rows.append(
            {"cell": cell, "reference": reference, "n": len(points)}
            | {"difference": mean, "low": low, "high": high}
            | {"p": sign_flip_p(list(points)) if len(points) > 1 else math.nan, "p_holm": math.nan}
            | {"least_detectable": least_detectable(sd, len(points))}
        )
    columns = ["cell", "reference", "n", "difference", "low", "high", "p", "p_holm"]
    table = pd.DataFrame(rows, columns=[*columns, "least_detectable"])
    tested = table["p"].notna()
    if tested.any():
        table.loc[tested, "p_holm"] = multipletests(table.loc[tested, "p"], method="holm")[1]
    records = table.to_dict("records")
    table["verdict"] = [_verdict(row) for row in records]
    table["sentence"] = [_sentence(row, int(tested.sum())) for row in table.to_dict("records")]
    return table


def _verdict(row: Mapping[Hashable, Any]) -> str:
    """What may be said: higher or lower (Holm p at most .05), leaning (interval clear of 0 only),
    open (neither) or untested (fewer than two shared seeds)."""
    if math.isnan(row["p_holm"]):
        return "untested"
    if row["p_holm"] <= ALPHA:
        return "higher" if row["difference"] > 0 else "lower"
    return "leaning" if row["low"] > 0 or row["high"] < 0 else "open"


def _sentence(row: Mapping[Hashable, Any], family: int) -> str:
    """One contrast in plain words; `family` is the number of contrasts that Holm adjusts for."""
    a, b, n = f"“{row['cell']}”", f"“{row['reference']}”", row["n"]
    if row["verdict"] == "untested":
        return f"{a} and {b} share {n} scored seed{'s' * (n != 1)}: nothing can be tested."
    if row["difference"] == row["low"] == row["high"] == 0:
        return f"{a} and {b} scored the same on each of {n} seeds."
    interval = f"{row['low']:+.1f} to {row['high']:+.1f}"
    if row["verdict"] == "open":
        return (
            f"{a} can't be told apart from {b} with {n} seeds: {row['difference']:+.1f} points "
            f"({interval}); so few would miss a difference of {row['least_detectable']:.1f} points "
            f"one time in five."
        )
    side = "above" if row["difference"] > 0 else "below"
    gap = f"{abs(row['difference']):.1f} points {side} {b} ({interval}, {n} seeds"
    if row["verdict"] in ("higher", "lower"):
        caution = (
            "" if n >= CLAIM_SEEDS else f" Confirm with {CLAIM_SEEDS} seeds before claiming it."
        )
        return f"{a} is {gap}, Holm p = {row['p_holm']:.2g}).{caution}"
    floor = min(1.0, family * 2 / 2**n)
    limit = (
        f" ({n} seeds and {family} contrast{'s' * (family != 1)} cannot give less than {floor:.2g})"
        if floor > ALPHA
        else ""
    )
    return (
        f"{a} is probably {gap}), but the exact test does not confirm it: "
        f"Holm p = {row['p_holm']:.2g}{limit}."
    )


def outcomes(trials: pd.DataFrame, factors: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """How many runs of each cell and phase ended how: one row per cell and phase that has runs, one
    column per outcome seen, plus superseded. Killed attempts that were tried again count here."""
    table = pd.crosstab([trials["cell"], trials["phase"]], trials["outcome"])
    table["superseded"] = trials.groupby(["cell", "phase"])["superseded"].sum()
    order = {cell: i for i, cell in enumerate(cells(factors)["cell"])}
    table = table.rename_axis(columns=None).reset_index()
    table["phase"] = table["phase"].astype(pd.CategoricalDtype(["tune", "repeat"]))
    rank = table["cell"].map(lambda cell: order.get(cell, len(order)))
    table = table.assign(_rank=rank).sort_values(["_rank", "phase"]).drop(columns="_rank")
    table["phase"] = table["phase"].astype("str")
    return table.reset_index(drop=True)


def expected_best(values: Sequence[float]) -> list[float]:
    """Expected best of n draws without replacement from `values`, for n = 1..N.

    sum_i v_(i) C(i - 1, n - 1) / C(N, n) with v sorted ascending (the unbiased form of Dodge et al.
    2019). An estimate of best-of-n only when the values come from independent, identical draws.
    """
    ordered = sorted(values)
    total = len(ordered)
    return [
        sum(v * (math.comb(i, n - 1) / math.comb(total, n)) for i, v in enumerate(ordered))
        for n in range(1, total + 1)
    ]


def budget_curve(trials: pd.DataFrame) -> pd.DataFrame:
    """Expected best validation accuracy of a cell after n tuning trials.

    A trial that was wasted (WORTHLESS) counts as the lowest accuracy any trial of the study had: it
    used up budget. Faulty runs are left out. Valid only for an i.i.d. sampler ("random").

    Returns:
        cell, trials (n), val_accuracy; cells without a complete trial have no rows.
    """
    tuned = completed(trials, "tune").dropna(subset="val_accuracy")
    wasted = trials[(trials["phase"] == "tune") & trials["outcome"].isin(WORTHLESS)]
    wasted = wasted.drop_duplicates(["cell", "index"])
    worst = float(tuned["val_accuracy"].min()) if len(tuned) else math.nan
    rows = []
    for cell, own in tuned.groupby("cell", sort=False):
        lost = int((wasted["cell"] == cell).sum())
        curve = expected_best([*own["val_accuracy"], *[worst] * lost])
        rows += [{"cell": cell, "trials": n, "val_accuracy": v} for n, v in enumerate(curve, 1)]
    return pd.DataFrame(rows, columns=["cell", "trials", "val_accuracy"])


def learning_curves(trials: pd.DataFrame, epochs: pd.DataFrame) -> pd.DataFrame:
    """Validation accuracy by epoch of the compared repeats; without any, of the chosen trials.

    Returns:
        run_id, cell, epoch, val_accuracy, and mean: over the runs of the cell at that epoch.
    """
    runs = completed(trials, "repeat")
    runs = runs if len(runs) else chosen(trials)
    curves = epochs.merge(runs[["run_id", "cell"]], on="run_id", validate="many_to_one")
    curves = curves.dropna(subset="val_accuracy")
    mean = curves.groupby(["cell", "epoch"])["val_accuracy"].transform("mean")
    return curves[["run_id", "cell", "epoch", "val_accuracy"]].assign(mean=mean)


def prediction_mismatches(trials: pd.DataFrame, predictions: pd.DataFrame) -> list[str]:
    """Run ids of complete repeats whose predictions are missing or disagree with test_accuracy."""
    repeats = completed(trials, "repeat").dropna(subset="test_accuracy").set_index("run_id")
    hit = predictions["label"] == predictions["predicted"]
    share = hit.groupby(predictions["run_id"]).mean().reindex(repeats.index)
    wrong = ~((share.astype(float) - repeats["test_accuracy"]).abs() < 1e-6)
    return list(repeats.index[wrong])
