"""How does a value look in a notebook? As a table; whatever it says is escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence


def as_table(caption: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """HTML for `_repr_html_`: text to the left, everything made of digits to the right."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return (
        f"<table><caption>{html.escape(caption)}</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    )


def _cell(value: object) -> str:
    text = str(value)
    side = "right" if text[:1].isdigit() else "left"
    return f'<td style="text-align: {side}">{html.escape(text)}</td>'
