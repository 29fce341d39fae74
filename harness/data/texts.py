"""Read text files in any usual encoding."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

from harness.core.errors import UserError, one_line
from harness.data.encoding import decoded

SUFFIXES = frozenset((".txt", ".text"))
LONGEST = 10_000_000
"""Bytes; a longer file is probably several examples."""


@dataclass(frozen=True)
class Size:
    """Size of a text in bytes of UTF-8, and whether it was read as cp1252."""

    bytes: int
    guessed: bool


def is_text(path: Path) -> bool:
    """Whether a file is a text, by its suffix."""
    return path.suffix.lower() in SUFFIXES


def read_size(path: Path) -> Size | None:
    """The size of a text file; None if it cannot be read or is empty."""
    try:
        text, guessed = _decoded(path.read_bytes(), "")
        return Size(size_of(require_text(text, "")), guessed)
    except (OSError, UserError):
        return None


def size_of(text: str) -> int:
    """Bytes of a text in UTF-8."""
    return len(text.encode("utf-8", "surrogatepass"))


def decode_text(source: Path | io.BytesIO, name: str) -> str:
    """The text of a file, or in the bytes of one.

    Raises:
        UserError: by this name, if it cannot be read, is not text, or is empty.
    """
    with one_line(f"text {name} cannot be read"):
        content = source.read_bytes() if isinstance(source, Path) else source.getvalue()
    return require_text(_decoded(content, name)[0], name)


def require_text(text: str, name: str) -> str:
    """The text.

    Raises:
        UserError: if it has nothing but blanks.
    """
    if not text.strip():
        raise UserError(f"text {name} is empty")
    return text


def _decoded(content: bytes, name: str) -> tuple[str, bool]:
    if len(content) > LONGEST:
        raise UserError(
            f"text {name} has more than {LONGEST // 10**6} million bytes; cut it into examples"
        )
    with one_line(f"text {name} cannot be read"):
        return decoded(content)
