"""Numbers and names in print."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from harness.core.errors import counted


def quoted(names: Iterable[str]) -> list[str]:
    return [f"“{name}”" for name in names]


def listed(parts: Sequence[str]) -> str:
    """Items in print: "a", "a and b", "a, b and c"."""
    return " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))


def in_seeds(n: int | str) -> str:
    return counted(n, "seed")


def span(values: pd.Series) -> str:
    """Integers in print: "8" or "5 to 8"."""
    low, high = (int(values.min()), int(values.max())) if len(values) else (0, 0)
    return str(low) if low == high else f"{low} to {high}"


def number(value: float, form: str, scale: float = 1) -> str:
    """A number in print; "–" if it was not measured."""
    return "–" if value != value else format(scale * value, form)


def numbers(values: Iterable[float], form: str, scale: float = 1) -> list[str]:
    """`number` of each value."""
    return [number(value, form, scale) for value in values]


def shorts(values: Iterable[float]) -> list[str]:
    """`short` of each value."""
    return [short(value) for value in values]


def intervals(
    lows: Iterable[float], highs: Iterable[float], form: str, scale: float = 1
) -> list[str]:
    """Intervals in print: "1.0 to 2.0"; "–" if there is none."""
    return [
        f"{number(low, form, scale)} to {number(high, form, scale)}" if low == low else "–"
        for low, high in zip(lows, highs, strict=True)
    ]


def with_interval(
    value: float, low: float, high: float, form: str, scale: float = 1, unit: str = ""
) -> str:
    """A number with its unit and its interval, if there is one: "1.5 points (1.0 to 2.0)"."""
    ends = f" ({number(low, form, scale)} to {number(high, form, scale)})" if low == low else ""
    return f"{number(value, form, scale)}{unit}{ends}"


def short(value: float) -> str:
    """A number in print with three significant digits, or all digits before the point; "–" if missing."""
    return number(value, ".0f" if value >= 1000 else ".3g")


def plain(value: Any) -> str:
    """A parameter in print."""
    return short(value) if isinstance(value, float) else str(value)


def condition_rows(trials: pd.DataFrame, prefixes: tuple[str, ...]) -> list[tuple[str, str]]:
    """All columns that start with one of `prefixes`, with their values (a range if there are many)."""
    rows = []
    for column in (c for c in trials.columns if c.startswith(prefixes)):
        values = trials[column].dropna()
        counts = values.value_counts()
        name = column.partition(".")[2] or column
        if 1 <= len(counts) <= 6:
            many = len(counts) > 1
            shown = [
                plain(v) + (f" ({counted(k, 'run')})" if many else "") for v, k in counts.items()
            ]
            rows.append((name, ", ".join(shown)))
        elif len(counts):
            span = f"{plain(values.min())} to {plain(values.max())}"
            rows.append((name, f"{len(counts)} values, {span}"))
    return rows
