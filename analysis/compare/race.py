"""The course of the race of a study with a time budget; see `harness.core.race`.

    python -c "from analysis import compare, load_study; t = load_study('my_study'); \\
               print(compare.race_table(t.trials, t.info))"
"""

from __future__ import annotations

import math

import pandas as pd

from analysis.compare.runs import cells, recorded
from analysis.load.race import NO_RESULT, race_standing
from analysis.load.study import Info
from harness.core.race import Entrant, Standing


def race_table(trials: pd.DataFrame, info: Info) -> pd.DataFrame:
    """What each cell received, and how it ended.

    Returns:
        cell, trials (tuning trials that have ended), validation (of the best of them), finalists (number of
        its configurations that were repeated), seeds (on which its configuration was compared), seconds (of
        all its runs), state ("left": among the last; "retired": shown to be behind; "failed": no trial or a
        repeat did not complete; "set aside": after tuning; "waiting": no cell was repeated yet), behind, low,
        high (difference between the leader's mean validation score and that of its configuration when it was
        last compared, with the ends of the interval; NaN before two seeds).
    """
    now = race_standing(trials, info.selection, info.choosing)
    every = recorded(trials)
    ended = every[~every["outcome"].isin(NO_RESULT)]
    spent = ended["total_seconds"].fillna(ended["train_seconds"])
    seconds = spent.groupby(ended["cell"]).sum()
    tuned = ended[(ended["phase"] == "tune") & ~ended["superseded"]]
    counts = tuned.groupby("cell")["index"].nunique()
    scores = tuned[tuned["outcome"] == "complete"].groupby("cell")[info.selection]
    best = scores.min() if info.choosing.less_is_better else scores.max()
    rows = []
    for cell in cells(info.factors)["cell"]:
        own = now.of_cell.get(cell)
        gap = (math.nan,) * 3 if own is None else now.behind.get(own, (math.nan,) * 3)
        rows.append(
            {"cell": cell, "trials": int(counts.get(cell, 0))}
            | {"validation": float(best.get(cell, math.nan))}
            | {"finalists": sum(one.cell == cell for one in now.seeds)}
            | {"seeds": 0 if own is None else now.seeds[own]}
            | {"seconds": float(seconds.get(cell, 0.0))}
            | {"state": "failed" if cell in counts and cell not in best else _state(now, own)}
            | dict(zip(("behind", "low", "high"), gap, strict=True))
        )
    return pd.DataFrame(rows)


def _state(now: Standing, own: Entrant | None) -> str:
    if own is None:
        return "set aside" if now.seeds else "waiting"
    if own in now.left:
        return "left"
    return "retired" if now.behind.get(own, (0, 0, 0))[1] > 0 else "failed"
