"""Changes from one study to another."""

from __future__ import annotations

import pandas as pd

from analysis.load import StudyTable
from analysis.text.numbers import listed, quoted


def changes(first: StudyTable, second: StudyTable, rows: pd.DataFrame) -> list[str]:
    """The comparison of two studies in sentences; `rows` from `compare.side_by_side`."""
    a, b = first.info.name, second.info.name
    both = rows[rows["first"].notna() & rows["second"].notna()]
    changed = both[both["changed"]]
    text = []
    if len(changed):
        parts = [
            f"“{row['cell']}” {row['difference']:+.1f} points ({row['low']:+.1f} to {row['high']:+.1f})"
            for row in changed.to_dict("records")
        ]
        text.append(
            f"From {a} to {b}, {len(changed)} of {len(both)} cells changed significantly (95% "
            f"simultaneous intervals): {listed(parts)}."
        )
    else:
        text.append(
            f"None of the {len(both)} cells that both studies scored is significantly "
            f"different between {a} and {b} (95% simultaneous intervals)."
        )
    wide = both.dropna(subset="low")
    if len(wide):
        reach = max(wide["low"].abs().max(), wide["high"].abs().max())
        text.append(f"No compared cell differs by more than {reach:.1f} points (95% confidence).")
    for name, column in ((a, "second"), (b, "first")):
        alone = rows.loc[rows[column].isna(), "cell"]
        if len(alone):
            names = quoted(alone)
            shown = listed(names[:4] + [f"{len(names) - 4} more"] * (len(names) > 4))
            text.append(f"Only in {name}: {shown}.")
    return text
