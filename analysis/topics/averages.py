"""Averages of weights (soups and WiSE-FT), which cost as much to use as a single network."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import pandas as pd

from analysis import compare
from analysis.compare import Findings
from analysis.text.numbers import intervals, numbers, shorts, with_interval
from analysis.topics.section import Section, Table, correction
from harness.core.errors import counted

NAMES = {"soup": "Soup", "wise_ft": "WiSE-FT"}
NOTE = (
    "Soup: mean of the weights of networks with different configurations. They are tried one by "
    "one, best first, and one that lowers the validation score is left out (greedy soup, "
    "Wortsman et al. 2022, model soups). "
    "WiSE-FT: alpha times the weights of the fine-tuned network plus 1 - alpha times those "
    "of a linear probe (Wortsman et al. 2022, robust fine-tuning). The networks of an "
    "average share the seed of a repeat, so they have the same examples and initial weights, "
    "including those of the head. Batch norm statistics that differ between them are "
    "estimated again from the training examples. Members and alpha are chosen on validation, "
    "so an average is never worse there than the single network; each is scored once on test."
)
COLUMNS = [
    *("cell", "kind", "n", "least", "most", "validation", "test", "gain", "low", "high"),
    "latency_ms",
]


def section(found: Findings) -> Section:
    """Scores of the averages and of the single networks; empty if `harness.average` was not run."""
    rows = gains(found)
    if rows.empty:
        return Section("Averages of weights")
    metric = found.info.choosing
    shown = {
        "Cell": list(rows["cell"]),
        "Network": [_name(row) for row in rows.to_dict("records")],
        "Gain on test, points": numbers(rows["gain"], "+.1f", 100),
        "95% interval": intervals(rows["low"], rows["high"], "+.1f", 100),
        f"Test {found.info.metric}, %": numbers(rows["test"], ".1f", 100),
        f"Validation {metric.label}{metric.unit}": numbers(rows["validation"], *metric.form),
        "Latency of a single example, ms": shorts(rows["latency_ms"]),
    }
    paired = f"paired t over the repeats{correction(found)}"
    note = f"{NOTE} Interval: {paired}; not adjusted for the number of rows."
    table = Table(shown, note=note)
    return Section("Averages of weights", [table], answer(found, rows), tables={"averages": rows})


def gains(found: Findings) -> pd.DataFrame:
    """Scores of the single network and of each kind of average, for each cell, and the gain over the single
    network.

    Returns:
        cell, kind ("single", "soup", "wise_ft"), n (repeats), least and most (of the number of networks of a
        soup, or of alpha), validation, test (means), gain (mean of the paired differences on test), low, high
        (95% t interval over seeds), latency_ms. NaN where a column does not apply.
    """
    single = found.repeats.set_index("run_id")
    latency = found.summary.set_index("cell")["latency_ms_median"]
    choosing = found.info.selection
    own = found.table.averages[found.table.averages["run_id"].isin(single.index)]
    rows: list[dict[str, object]] = []
    for cell, averages in own.groupby("cell", sort=False):
        about: dict[str, object] = {"cell": cell, "latency_ms": latency[cell]}
        alone = single.loc[averages["run_id"].unique()]
        rows.append(
            {**about, "kind": "single", "n": len(alone)}
            | {"validation": alone[choosing].mean(), "test": alone["test_score"].mean()}
        )
        for kind, each in averages.groupby("kind", sort=False):
            before = single["test_score"].reindex(each["run_id"]).to_numpy()
            gain, _, low, high = compare.mean_interval(
                each["test_score"].to_numpy() - before, folds=found.info.folds
            )
            rows.append(
                {**about, "kind": kind, "n": len(each), "gain": gain, "low": low, "high": high}
                | {"least": each["amount"].min(), "most": each["amount"].max()}
                | {"validation": each["val_score"].mean(), "test": each["test_score"].mean()}
            )
    return pd.DataFrame(rows, columns=COLUMNS)


def _name(row: Mapping[Hashable, Any]) -> str:
    if row["kind"] == "single":
        return f"Single ({counted(row['n'], 'repeat')})"
    ends = dict.fromkeys(f"{row[end]:g}" for end in ("least", "most"))
    amount = (
        f"{' to '.join(ends)} networks" if row["kind"] == "soup" else f"alpha {' to '.join(ends)}"
    )
    return f"{NAMES[row['kind']]} ({amount})"


def answer(found: Findings, rows: pd.DataFrame) -> list[str]:
    """The gain of the average that is best on validation, for the chosen cell."""
    own = rows[(rows["cell"] == found.chosen) & (rows["kind"] != "single")]
    if own.empty:
        return []
    less = found.info.choosing.less_is_better
    best = own.sort_values("validation", ascending=less, kind="stable").iloc[0].to_dict()
    gain = with_interval(best["gain"], best["low"], best["high"], "+.1f", 100, " points")
    what = {
        "soup": "a soup of its networks",
        "wise_ft": "its average with a linear probe (WiSE-FT)",
    }
    return [
        f"For “{found.chosen}”, the test {found.info.metric} of {what[best['kind']]} differs from that of "
        f"a single network by {gain}, at the same cost of inference."
    ]
