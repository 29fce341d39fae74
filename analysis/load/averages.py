"""Averages of weights that `harness.average` recorded for the repeats of a study."""

from __future__ import annotations

import pandas as pd

from harness.core.selection import Metric

PHASE = "average"
KINDS = ("soup", "wise_ft")
AVERAGE_COLUMNS = ["run_id", "cell", "kind", "amount", "val_score", "test_score"]


def averages_frame(raw: pd.DataFrame, compared: Metric, choosing: Metric) -> pd.DataFrame:
    """One row per repeat and kind of average; of duplicates, the latest.

    Args:
        raw: the runs of phase PHASE, oldest first.
        compared: the metric of test_score.
        choosing: the metric of val_score.

    Returns:
        AVERAGE_COLUMNS: the repeat's run, its cell, the kind, the number of networks of a soup or alpha of
            WiSE-FT, and the scores.
    """
    parts = [pd.DataFrame(columns=AVERAGE_COLUMNS)]
    for kind in KINDS:
        metrics = ("amount", choosing.validation, compared.test)
        named = {
            f"metrics.{kind}.{m}": n for m, n in zip(metrics, AVERAGE_COLUMNS[3:], strict=True)
        }
        named |= {"tags.repeat": "run_id", "tags.cell": "cell"}
        if named.keys() <= {*raw.columns}:
            frame = raw[[*named]].rename(columns=named).assign(kind=kind)[AVERAGE_COLUMNS]
            parts.append(frame.dropna(subset="test_score").drop_duplicates("run_id", keep="last"))
    return pd.concat([part for part in parts if len(part)] or parts, ignore_index=True)
