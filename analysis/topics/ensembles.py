"""Ensembles of the repeats of each cell, which average their class probabilities."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis import compare
from analysis.compare import Findings
from analysis.compare.costs import seed_weights
from analysis.text.numbers import intervals, numbers, shorts
from analysis.topics.section import Section, Table

COLUMNS = ["cell", "networks", "single", "ensemble", "gain", "low", "high", "latency_ms"]
TAILS = [0.025, 0.975]


def section(found: Findings) -> Section:
    """Accuracy and cost of the ensemble of each cell; empty without recorded class probabilities."""
    rows = gains(found)
    if rows.empty:
        return Section("Ensembles")
    shown = {
        "Cell": list(rows["cell"]),
        "Networks": list(rows["networks"]),
        "Accuracy of a single network, %": numbers(rows["single"], ".1f", 100),
        "Accuracy of the ensemble, %": numbers(rows["ensemble"], ".1f", 100),
        "Gain, points": numbers(rows["gain"], "+.1f", 100),
        "95% interval": intervals(rows["low"], rows["high"], "+.1f", 100),
        "Latency of a single example, ms": shorts(rows["latency_ms"]),
    }
    note = (
        "The mean of the class probabilities of all repeats of a cell (a deep ensemble, "
        "Lakshminarayanan et al. 2017), compared with the mean test accuracy of the single "
        "networks on the same test examples. Each repeat draws its own training examples, so "
        "the ensemble has learned from more examples than a single network. Part of the gain "
        "may be due to these, and one network trained on all of them may be as good. Interval: "
        "bootstrap over test examples (or whole groups of them) with these networks fixed; not "
        "adjusted for the number of cells. Latency: of all networks, run one after the "
        "other. These scores are not used for any choice."
    )
    table = Table(shown, "The repeats of each cell as an ensemble", note)
    return Section("Ensembles", [table], tables={"ensembles": rows})


def gains(found: Findings, resamples: int = 1000) -> pd.DataFrame:
    """Gain of the ensemble of each cell over its single networks.

    Returns:
        cell, networks, single (mean accuracy of the networks), ensemble (its accuracy), gain, low, high (95%
        bootstrap interval over test examples), latency_ms (of all networks, run one after the other; NaN if
        not measured).
    """
    each = compare.hits(found.predictions)
    latency = found.summary.set_index("cell")["latency_ms_median"]
    rows = []
    for cell, own in found.table.ensembles.groupby("cell", sort=False):
        if cell not in each:
            continue
        single = each[str(cell)].mean(axis=0)
        groups = pd.Series(
            single.index.get_level_values("group"), single.index.get_level_values("example")
        )
        own = own.set_index("example")
        right = (own["label"] == own["predicted"]).astype(float)
        mean = single.droplevel("group").reindex(right.index)
        of_group = pd.DataFrame({"gain": right - mean, "images": 1.0})
        of_group = of_group.groupby(groups.reindex(right.index)).sum()
        weights = seed_weights(len(of_group), resamples)
        drawn = weights @ of_group.to_numpy()
        low, high = np.quantile(drawn[:, 0] / drawn[:, 1], TAILS)
        networks = int(own["networks"].iloc[0])
        rows.append(
            {"cell": cell, "networks": networks, "single": mean.mean(), "ensemble": right.mean()}
            | {"gain": float((right - mean).mean()), "low": low, "high": high}
            | {"latency_ms": networks * float(latency.get(cell, np.nan))}
        )
    return pd.DataFrame(rows, columns=COLUMNS)
