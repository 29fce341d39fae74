"""Averages of weights that `harness.average` recorded for the repeats of a study."""

from __future__ import annotations

import pandas as pd

from harness.core.selection import Metric

PHASE = "average"
KINDS = ("soup", "wise_ft")
AVERAGE_COLUMNS = ["run_id", "cell", "kind", "amount", "val_score", "test_score"]


def averages_frame(raw: pd.DataFrame, compared: Metric, choosing: Metric) -> pd.DataFrame:
    """One row per repeat and kind; of two of a kind the later counts.

    Args:
        raw: the runs of phase PHASE, older first.
        compared: the metric of test_score.
        choosing: the metric of val_score.

    Returns:
        AVERAGE_COLUMNS: the repeat's run, its cell, the kind, the number of networks of a soup or alpha of
        WiSE-FT, and the scores.
    """
    parts = [pd.DataFrame(columns=AVERAGE_COLUMNS)]
    for kind in KINDS:
        wanted = {
            "amount": "amount",
            "val_score": choosing.validation,
            "test_score": compared.test,
        }
        columns = {name: f"metrics.{kind}.{metric}" for name, metric in wanted.items()}
        if not {*columns.values()} <= {*raw.columns}:
            continue
        frame = pd.DataFrame(
            {"run_id": raw["tags.repeat"].astype("str"), "cell": raw["tags.cell"].astype("str")}
            | {"kind": kind}
            | {name: raw[column].astype(float) for name, column in columns.items()}
        )
        parts.append(frame.dropna(subset="test_score").drop_duplicates("run_id", keep="last"))
    return pd.concat([part for part in parts if len(part)] or parts, ignore_index=True)
