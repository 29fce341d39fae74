"""Cost of inference: size, multiply-adds, latency and throughput of the networks of the cells."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from analysis import compare
from analysis.compare import Findings
from analysis.text.numbers import short, shorts
from analysis.topics.costs import plot_cost
from analysis.topics.section import Parts, Section, Table, over_seeds, repeats_of

SIZE = ["parameters", "multiply_adds"]


def section(found: Findings) -> Section:
    """The costs of each cell, and accuracy against latency if the networks differ."""
    measured = found.summary.dropna(subset="latency_ms_median")
    if measured.empty:
        return Section("Inference")
    where = compare.condition(found.trials) or "the device of the study"
    parts: Parts = []
    if len(measured[SIZE].drop_duplicates()) > 1 and not len(found.ranks):
        label = f"Latency of a single example on {where.partition(',')[0]} (ms)"
        caption = (
            f"Markers: mean test {found.info.metric} of {repeats_of(found)} repeats and median "
            f"time for a single example on {where}; horizontal bars: minimum and maximum. "
            f"Dotted: the Pareto front. {over_seeds(found)}"
        )
        plot = plot_cost(found, "latency_ms", "latency", label, caption)
        parts.append(replace(plot, name="latency"))
    parts.append(_table(measured, where))
    return Section("Inference", parts, answer(found, where))


def _table(rows: pd.DataFrame, where: str) -> Table:
    return Table(
        {
            "Cell": list(rows["cell"]),
            "Parameters, million": shorts(rows["parameters"] / 1e6),
            "Weights, MiB": shorts(rows["weights_mib"]),
            "Multiply-adds per example, million": shorts(rows["multiply_adds"] / 1e6),
            "Latency of a single example, ms": shorts(rows["latency_ms_median"]),
            "Examples per second, in batches": shorts(rows["images_per_second_median"]),
        },
        note=(
            f"The network in float32 on {where}: medians over repeats, each a median of forward "
            "passes after a warm-up, on examples that are already decoded and resized. Batches: "
            "of at most 32 examples. Multiply-adds: in "
            "convolutions, linear layers and attention. Adapters are merged first; a "
            "nearest-neighbour classifier is not included."
        ),
    )


def answer(found: Findings, where: str) -> list[str]:
    """Cost of inference with the chosen cell."""
    rows = found.summary[found.summary["cell"] == found.chosen].dropna(subset="latency_ms_median")
    return [
        f"Inference takes {short(row['latency_ms_median'])} ms for a single example, and in batches "
        f"reaches {short(row['images_per_second_median'])} examples per second, on {where}; the weights "
        f"take {short(row['weights_mib'])} MiB."
        for row in rows.to_dict("records")
    ]
