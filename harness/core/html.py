"""Show a value as an HTML table in a notebook; its text is escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence


def as_table(caption: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """HTML for `_repr_html_`: columns of numbers are aligned right, others left."""
    table = [[str(value) for value in row] for row in rows]
    numbers = [
        all(value[:1].isdigit() or not value for value in column)
        for column in zip(*table, strict=True)
    ]
    sides = ["right" if number else "left" for number in numbers or [False] * len(columns)]
    return (
        f"<table><caption>{html.escape(caption)}</caption><thead>{_row('th', columns, sides)}</thead>"
        f"<tbody>{''.join(_row('td', row, sides) for row in table)}</tbody></table>"
    )


def _row(kind: str, values: Sequence[str], sides: Sequence[str]) -> str:
    cells = zip(values, sides, strict=True)
    inside = (f'<{kind} style="text-align: {s}">{html.escape(v)}</{kind}>' for v, s in cells)
    return f"<tr>{''.join(inside)}</tr>"
