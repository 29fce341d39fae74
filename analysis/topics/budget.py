"""Value of tuning: the expected best score of fewer trials.

    python -c "from analysis import load_study, topics; \\
               print(topics.budget.budget_curve(load_study('freeze_depth').trials))"
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator
from scipy.special import gammaln

from analysis import plots
from analysis.compare import Findings, completed
from analysis.compare.runs import CONFIDENCE, tuning
from analysis.text.numbers import span
from analysis.topics.section import Plot, Section, cell_styles

TITLE = "Value of tuning"
LINES = 12
"""With more curves than this, no figure is drawn."""
WORTHLESS = ("diverged", "oom", "timeout", "pruned")
"""Outcomes that used up a tuning trial without a result that could be chosen. The other incomplete outcomes
(crashed, killed, audit_failed) are faults of the run, not of its configuration."""
RESAMPLES = 200
POINTS = 60
"""Number of budgets at which a curve is computed; with fewer trials, all of them."""
TAILS = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]


def section(found: Findings) -> Section:
    """The budget curves, by trials and by seconds."""
    curve = budget_curve(found.trials)
    shown = len(curve) and found.info.sampler != "tpe"
    parts = _plots(found, curve) if shown else []
    return Section(TITLE, parts, tables={"budget": curve})


def _plots(found: Findings, curve: pd.DataFrame) -> list[Plot]:
    metric = found.info.metric
    trials = span(curve.groupby("cell")["trials"].max())
    worth = (
        f"Expected best validation {metric} after n tuning trials: exact mean over all subsets "
        f"of n of the {trials} trials per cell. A diverged, out-of-memory, timed-out or pruned "
        "trial counts as the lowest score of the study."
    )
    drawn = " Valid only if trials were drawn at random." * (not found.info.sampler)
    band = (
        " Band: central 95% of bootstrap resamples of the cell's own trials. It shows how much "
        "these trials differ and is not a confidence interval: for a cell with 5 trials it "
        "contains the true value in about 80% of cases at n = 1 and 55% at n = 5, because no "
        "resample is better than the best trial."
    ) + drawn
    if curve["cell"].nunique() > LINES:
        return [_plot_of_many(found, curve, worth, drawn)]
    made = [_plot(found, curve, "trials", worth + band)]
    if (curve["seconds"] > 0).all() and curve["trials"].max() > 1:
        cost = (
            "As above, against the time that n trials take: n times the median training time of "
            "the cell's trials."
        )
        made.append(_plot(found, curve, "seconds", cost + band))
    return made


def _weights(total: int, budgets: np.ndarray) -> np.ndarray:
    """(budgets, total) weight of the i-th smallest of `total` values in the expected maximum of n draws
    without replacement: C(i - 1, n - 1) / C(total, n), computed with logarithms (the unbiased form of Dodge
    et al. 2019)."""
    i, n = np.arange(1, total + 1)[None], budgets[:, None]
    with np.errstate(invalid="ignore"):
        logs = gammaln(i) - gammaln(n) - gammaln(np.maximum(i - n + 1, 1))
        logs -= gammaln(total + 1) - gammaln(n + 1) - gammaln(total - n + 1)
    weights: np.ndarray = np.where(i >= n, np.exp(logs), 0.0)
    return weights


def _expected_best(scores: np.ndarray, budgets: np.ndarray) -> np.ndarray:
    """(1 + RESAMPLES) x budgets: expected best of the trials with these scores, then of resamples of them."""
    rows = np.random.default_rng(0).integers(len(scores), size=(RESAMPLES, len(scores)))
    sets = np.vstack([scores[None], scores[rows]])
    best: np.ndarray = np.sort(sets, axis=1) @ _weights(len(scores), budgets).T
    return best


def _spent(trials: pd.DataFrame) -> dict[str, tuple[np.ndarray, float]]:
    """Cell -> scores of its tuning trials, worthless ones as the study's lowest, and median seconds of
    one."""
    tuned = completed(trials, "tune").dropna(subset="val_score")
    wasted = tuning(trials).query("outcome in @WORTHLESS")
    wasted = wasted.drop_duplicates(["cell", "index"])
    worst = float(tuned["val_score"].min()) if len(tuned) else math.nan
    lost = wasted["cell"].value_counts()
    seconds = pd.concat([tuned, wasted])[["cell", "train_seconds"]].groupby("cell").median()
    return {
        str(cell): (
            np.array([*own["val_score"], *[worst] * int(lost.get(cell, 0))], dtype=float),
            float(seconds["train_seconds"].get(cell, math.nan)),
        )
        for cell, own in tuned.groupby("cell", sort=False)
    }


def budget_curve(trials: pd.DataFrame) -> pd.DataFrame:
    """Expected best validation accuracy of a cell after n tuning trials.

    A trial without a result (WORTHLESS) counts as the lowest accuracy of all trials of the study, because it
    used up budget. Faulty runs are omitted. Valid only for an i.i.d. sampler ("random").

    Returns:
        cell, trials (n), seconds (n times the median training seconds of the cell's trials), val_score,
        spread_low, spread_high (central 95% of resamples of the cell's trials; not a confidence interval,
        because no resample can be better than the best trial). Cells without a complete trial have no rows.
    """
    rows = []
    for cell, (scores, seconds) in _spent(trials).items():
        total = len(scores)
        budgets = np.unique(np.geomspace(1, total, POINTS).round().astype(int))
        budgets = np.arange(1, total + 1) if total <= POINTS else budgets
        drawn = _expected_best(scores, budgets)
        low, high = np.quantile(drawn[1:], TAILS, axis=0)
        rows += [
            {"cell": cell, "trials": n, "seconds": n * seconds, "val_score": v}
            | {"spread_low": a, "spread_high": b}
            for n, v, a, b in zip(budgets.tolist(), drawn[0], low, high, strict=True)
        ]
    columns = ["cell", "trials", "seconds", "val_score", "spread_low", "spread_high"]
    return pd.DataFrame(rows, columns=columns)


def _plot(found: Findings, curve: pd.DataFrame, unit: str, caption: str) -> Plot:
    """Expected best validation score of each cell after n tuning trials, with the spread of resamples; with
    the unit "seconds", by the time that these trials take."""
    style = cell_styles(found)
    figure, (axes,) = plots.canvas(4.2)
    ends = []
    for name in (name for name in style if name in set(curve["cell"])):
        own, look = curve[curve["cell"] == name].sort_values("trials"), style[name]
        band = own["spread_low"], own["spread_high"]
        axes.fill_between(own[unit], *band, color=look.color, alpha=0.12, lw=0)
        axes.plot(own[unit], own["val_score"], color=look.color, lw=2,
                  marker=look.marker, ms=4)  # fmt: skip
        ends.append((float(own[unit].iloc[-1]), float(own["val_score"].iloc[-1]), name))
    if unit == "trials":
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, steps=plots.ROUND))
        axes.set_xlabel("Tuning trials per cell")
    else:
        plots.log_cost(
            axes, curve[unit].min(), curve[unit].max(), "Training time of the tuning trials (s)"
        )
    plots.percent(axes, "y", f"Expected best validation {found.info.metric}")
    if plots.crowded([name for _, _, name in ends]) or unit != "trials":
        plots.add_key(figure, [name for _, _, name in ends], style)
    else:
        plots.name_ends(axes, ends, style)
    if unit == "trials":
        return Plot("budget", TITLE, figure, caption)
    return Plot("budget_seconds", f"{TITLE}, in seconds", figure, caption)


def _plot_of_many(found: Findings, curve: pd.DataFrame, worth: str, drawn: str) -> Plot:
    """Difference between the expected best score after n trials and the best score of the same cell: median
    and quartiles over many cells."""
    top = curve.groupby("cell")["val_score"].transform("max")
    behind = curve.assign(behind=100 * (top - curve["val_score"])).groupby("trials")["behind"]
    enough = behind.size() >= curve["cell"].nunique() / 2
    low, middle, high = (behind.quantile(q)[enough] for q in (0.25, 0.5, 0.75))
    figure, (axes,) = plots.canvas(3.6)
    axes.fill_between(middle.index, low, high, color=plots.GREY, alpha=0.35, lw=0)
    axes.plot(middle.index, middle, color=plots.INK, lw=2)
    axes.set_xlabel("Tuning trials per cell")
    label = f"Expected best validation {found.info.metric}:\npoints below the best of all trials"
    axes.set_ylabel(label)
    axes.set_ylim(bottom=0)
    caption = (
        f"{worth} Line: median over cells; band: quartiles of the cells, not an interval.{drawn}"
    )
    return Plot("budget_of_many", TITLE, figure, caption)
