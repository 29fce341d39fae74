"""Choose the best recorded cell by its validation scores, so that its test score remains an unbiased
estimate."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence

from harness.core.errors import UserError, counted
from harness.core.selection import preference
from harness.tracking.results import CellRecord


def choose(records: Sequence[CellRecord], cell: str | None = None) -> tuple[CellRecord, str]:
    """The cell chosen by the rule of `harness.core.selection`, or the given one; and the reason for the
    choice.

    Raises:
        UserError: if no cell has a complete repeat, there is no such cell, or the cells have different
            targets and no cell is given.
    """
    by_name = {r.cell: r for r in records}
    if not by_name:
        raise UserError(
            "the study has no complete repeats; run it with --repeats 1 or more, and see how its "
            "trials ended with python -m harness.status"
        )
    if cell is not None:
        if cell not in by_name:
            near = difflib.get_close_matches(cell, by_name, n=1) or list(by_name)
            raise UserError(f"no cell {cell!r} with complete repeats; there are: {'; '.join(near)}")
        return by_name[cell], "given by --cell"
    targets = {run.params["target"] for r in records for run in r.repeats}
    if len(targets) > 1:
        raise UserError(
            f"cells with different targets cannot be compared; choose one with --cell "
            f"({'; '.join(by_name)})"
        )
    ranked = sorted(records, key=_preference)
    best = ranked[0]
    why = (
        f"{best.metric.best} mean validation {best.metric.label}, "
        f"{best.validation} over {counted(len(best.repeats), 'repeat')}"
    )
    if len(ranked) > 1:
        second = ranked[1]
        why += f"; next “{second.cell}”, {second.validation}"
        if second.merit == best.merit:
            why += ", equal but slower"
    return best, why


def _preference(record: CellRecord) -> tuple[int, float, float]:
    """Sort key; after a race a cell that stayed in it for more seeds comes first."""
    seconds = record.mean("train_seconds")
    return (
        -record.stayed,
        *preference(record.merit, math.nan if seconds is None else seconds),
    )
