"""Importance of the hyper-parameters in each cell.

    python -c "from analysis import load_study, topics; \\
               print(topics.importance.importances(load_study('freeze_depth').trials))"
"""

from __future__ import annotations

import warnings

import optuna
import pandas as pd
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.trial import create_trial

from analysis import plots
from analysis.compare import Findings, completed
from analysis.topics.section import Plot, Section, cell_styles
from harness.core.caller import undisturbed

FEWEST = 50
"""With fewer complete trials, an importance would be noise: the best tenth should be at least 5 trials, as
Optuna's documentation says."""
GRID = 8
"""With at most this many different values, a number was drawn from a grid, and a density over its range would
be wrong."""


def section(found: Findings) -> Section:
    """Importance of all tuned parameters; empty with few trials."""
    table = importances(found.trials)
    parts = [_plot(found, table)] if len(table) else []
    return Section("Importance of the parameters", parts, tables={"importances": table})


def importances(trials: pd.DataFrame) -> pd.DataFrame:
    """How far each tuned parameter distinguishes good trials of a cell from the others.

    Optuna's PED-ANOVA (Watanabe 2023), on a study made from the data frame, compares the best tenth of the
    trials with all of them. It describes the values that were tried, not values outside of their ranges.

    Returns:
        cell, parameter, trials, importance (in [0, 1], with sum 1 in each cell). Cells with fewer than FEWEST
        complete tuning trials, or fewer than two tuned parameters, have no rows.
    """
    tuned = completed(trials, "tune").dropna(subset="val_score")
    names = [c for c in tuned.columns if c.startswith("param.") and c != "param.seed"]
    rows: list[dict[str, object]] = []
    for cell, own in tuned.groupby("cell", sort=False):
        space = {c: d for c in names if (d := _distribution(own[c])) is not None}
        if len(own) < FEWEST or len(space) < 2:
            continue
        own = own.dropna(subset=list(space))
        shares = _importances(own, space) if len(own) >= FEWEST else {}
        for name, share in shares.items():
            row: dict[str, object] = {"cell": cell, "parameter": name.removeprefix("param.")}
            rows.append(row | {"trials": len(own), "importance": share})
    return pd.DataFrame(rows, columns=["cell", "parameter", "trials", "importance"])


def _distribution(values: pd.Series) -> BaseDistribution | None:
    """A distribution from which a column could have been drawn; None if it is constant."""
    known = values.dropna()
    if known.nunique() < 2 or len(known) < len(values) / 2:
        return None
    numeric = pd.api.types.is_numeric_dtype(known)
    if not numeric or known.nunique() <= GRID:
        return CategoricalDistribution(sorted(known.astype("str").unique()))
    low, high = float(known.min()), float(known.max())
    return FloatDistribution(low, high, log=low > 0 and high / low >= 30)


def _importances(own: pd.DataFrame, space: dict[str, BaseDistribution]) -> dict[str, float]:
    with undisturbed(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "experimental", and ties in the best tenth
        study = optuna.create_study(direction="maximize")
        study.add_trials(
            create_trial(
                params={
                    c: float(row[c]) if isinstance(d, FloatDistribution) else str(row[c])
                    for c, d in space.items()
                },
                distributions=space,
                value=row["val_score"],
            )
            for row in own[[*space, "val_score"]].to_dict("records")
        )
        evaluator = PedAnovaImportanceEvaluator()
        return optuna.importance.get_param_importances(study, evaluator=evaluator)


def _plot(found: Findings, table: pd.DataFrame) -> Plot:
    """Importance of each tuned parameter: one marker per cell, and a bar at their mean."""
    style = cell_styles(found)
    many = table["cell"].nunique() > plots.MANY
    order = list(table.groupby("parameter")["importance"].mean().sort_values().index[::-1])
    figure, (axes,) = plots.canvas(1.1 + 0.5 * len(order))
    names = list(table["cell"].unique())
    for i, parameter in enumerate(order):
        own = table[table["parameter"] == parameter]
        for row in own.to_dict("records"):
            look = plots.BACKGROUND if many else style[row["cell"]]
            aside = 0.5 * (names.index(row["cell"]) / max(1, len(names) - 1) - 0.5)
            axes.plot(row["importance"], i + aside, marker=look.marker, ms=3 if many else 6,
                      color=look.color, mec="white", mew=0 if many else 0.8)  # fmt: skip
        axes.plot([own["importance"].mean()] * 2, [i - 0.35, i + 0.35], color=plots.INK, lw=2)
    plots.name_rows(axes, order)
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel("Share of importance")
    if not many:
        plots.add_key(figure, names, style)
    caption = (
        "PED-ANOVA (Optuna): how strongly each tuned parameter distinguishes the best tenth of a "
        f"cell's trials from all of them. One marker per cell with at least {FEWEST} complete "
        "trials; vertical bar: their mean; no interval. It describes only the ranges that were "
        "tried."
    )
    return Plot("importances", "Importance of hyper-parameters", figure, caption)
