"""The factor whose labels are sizes, and the lines that are followed over it.

The size is the first compared factor whose labels are all positive numbers; a line is a combination
of the other factors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pandas as pd

from analysis.compare.runs import cells
from harness.core.study import cell_label


def size_factor(factors: Mapping[str, Sequence[str]]) -> str | None:
    """The first factor with at least two labels that are all different positive numbers, or None."""
    for factor, labels in factors.items():
        sizes = {_positive(label) for label in labels}
        if len(sizes) == len(labels) > 1 and None not in sizes:
            return factor
    return None


def _positive(label: str) -> float | None:
    try:
        value = float(label)
    except ValueError:
        return None
    return value if 0 < value < math.inf else None


def size_lines(factors: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """Which line and size each cell stands for: cell, line (values of the other factors; the size
    factor's name when there are none), size. Empty without a size factor."""
    factor = size_factor(factors)
    rows = []
    for row in cells(factors).to_dict("records") if factor else []:
        rest = {name: str(row[name]) for name in factors if name != factor}
        line = cell_label(rest) if rest else factor
        rows.append({"cell": row["cell"], "line": line, "size": float(row[factor])})
    return pd.DataFrame(rows, columns=["cell", "line", "size"]).astype({"size": float})
