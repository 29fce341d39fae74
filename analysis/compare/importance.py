"""Which hyper-parameter mattered in each cell, and how forgiving is its learning rate?

    python -c "from analysis import compare, load; t = load.load_study('freeze_depth'); \\
               print(compare.importances(t.trials), compare.rate_ranges(t.trials))"
"""

from __future__ import annotations

import warnings

import numpy as np
import optuna
import pandas as pd
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.trial import create_trial

from analysis.compare.runs import completed, tuning

FEWEST = 10
"""Complete trials under which an importance would be noise."""
NEAR = 2.0
"""Points from the cell's best validation score within which a learning rate counts as good."""
GRID = 8
"""Different values up to which a number was drawn from a grid: a density over its range would be wrong."""
LR = "param.lr"


def importances(trials: pd.DataFrame, fewest: int = FEWEST) -> pd.DataFrame:
    """Share of each tuned parameter in telling good trials of a cell from the rest.

    Optuna's PED-ANOVA (Watanabe 2023) on a study rebuilt from the frame: the best tenth of the trials
    against all. It says what mattered among the values that were tried, not what would matter elsewhere.

    Returns:
        cell, parameter, trials, importance (in [0, 1], adds up to 1 in a cell). Cells with fewer than
        `fewest` complete tuning trials, or fewer than two tuned parameters, have no rows.
    """
    tuned = completed(trials, "tune").dropna(subset="val_accuracy")
    names = [c for c in tuned.columns if c.startswith("param.") and c != "param.seed"]
    rows: list[dict[str, object]] = []
    for cell, own in tuned.groupby("cell", sort=False):
        space = {c: d for c in names if (d := _distribution(own[c])) is not None}
        if len(own) < fewest or len(space) < 2:
            continue
        own = own.dropna(subset=list(space))
        shares = _importances(own, space) if len(own) >= fewest else {}
        for name, share in shares.items():
            row: dict[str, object] = {"cell": cell, "parameter": name.removeprefix("param.")}
            rows.append(row | {"trials": len(own), "importance": share})
    return pd.DataFrame(rows, columns=["cell", "parameter", "trials", "importance"])


def _distribution(values: pd.Series) -> BaseDistribution | None:
    """What a column could have been drawn from; None when it does not vary."""
    known = values.dropna()
    if known.nunique() < 2 or len(known) < len(values) / 2:
        return None
    numeric = pd.api.types.is_numeric_dtype(known)
    if not numeric or known.nunique() <= GRID:
        return CategoricalDistribution(sorted(known.astype("str").unique()))
    low, high = float(known.min()), float(known.max())
    return FloatDistribution(low, high, log=low > 0 and high / low >= 30)


def _importances(own: pd.DataFrame, space: dict[str, BaseDistribution]) -> dict[str, float]:
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(direction="maximize")
        study.add_trials(
            create_trial(
                params={
                    c: float(row[c]) if isinstance(d, FloatDistribution) else str(row[c])
                    for c, d in space.items()
                },
                distributions=space,
                value=row["val_accuracy"],
            )
            for row in own[[*space, "val_accuracy"]].to_dict("records")
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "experimental", and ties in the best tenth
            return optuna.importance.get_param_importances(
                study, evaluator=PedAnovaImportanceEvaluator()
            )
    finally:
        optuna.logging.set_verbosity(level)


def rate_ranges(trials: pd.DataFrame, near: float = NEAR) -> pd.DataFrame:
    """How wide the range of good learning rates of each cell is.

    Returns:
        cell, trials, low, high (rates tried), best (rate of the best validation score), good_low,
        good_high (lowest and highest rate of a trial within `near` points of that score), decades
        (log10 of their ratio), good_share (of all trials, failed ones too), edge (the best rate lies in
        the outer tenth of the range in logs: it was too narrow). Empty when no learning rate was tuned.
    """
    columns = ["cell", "trials", "low", "high", "best", "good_low", "good_high", "decades"]
    columns += ["good_share", "edge"]
    if LR not in trials or not pd.api.types.is_numeric_dtype(trials[LR]):
        return pd.DataFrame(columns=columns)
    tried = tuning(trials)
    tried = tried[(tried[LR] > 0) & ~tried["outcome"].isin(["unfinished", "killed", "crashed"])]
    rows = []
    for cell, own in tried.groupby("cell", sort=False):
        scored = own[(own["outcome"] == "complete") & own["val_accuracy"].notna()]
        if own[LR].nunique() < 2 or scored.empty:
            continue
        top = float(scored["val_accuracy"].max())
        good = scored.loc[100 * (top - scored["val_accuracy"]) <= near, LR]
        best = float(scored[LR].to_numpy()[scored["val_accuracy"].to_numpy().argmax()])
        low, high = float(own[LR].min()), float(own[LR].max())
        place = np.log(best / low) / np.log(high / low)
        rows.append(
            {"cell": cell, "trials": len(own), "low": low, "high": high, "best": best}
            | {"good_low": float(good.min()), "good_high": float(good.max())}
            | {"decades": float(np.log10(good.max() / good.min()))}
            | {"good_share": len(good) / len(own), "edge": bool(place < 0.1 or place > 0.9)}
        )
    return pd.DataFrame(rows, columns=columns)
