"""Known paths of a target's images, so that a recorded trial finds its images after they have moved.

A target with the same content under another path is the same target. Every name under which a target was
hashed is stored in the same file as the checksums.
"""

from __future__ import annotations

import sqlite3
import time
from contextlib import suppress
from pathlib import Path

from harness.core.errors import UserError
from harness.data.checksums import memory
from harness.data.options import path_exists
from harness.data.targets import PATH_LOADERS, load_target


def remember_place(name: str, fingerprint: str) -> None:
    """Store that the target of that name has this content now. Only targets with a path are stored."""
    if ":" not in name:
        return
    with suppress(sqlite3.Error, OSError), memory() as database:
        database.execute(
            "CREATE TABLE IF NOT EXISTS places (fingerprint TEXT, name TEXT, seen REAL, "
            "PRIMARY KEY (fingerprint, name))"
        )
        row = (fingerprint, _absolute(name), time.time())
        database.execute("INSERT OR REPLACE INTO places VALUES (?, ?, ?)", row)


def find_again(name: str, fingerprint: str) -> str:
    """A name under which this content is found now.

    Args:
        name: the recorded name.
        fingerprint: recorded hash of the target; "" if it was not recorded.

    Returns:
        `name` if it still has this content, else the latest known name that has it, else `name`.
    """
    if ":" not in name or not fingerprint:
        return name
    known: list[str] = []
    with suppress(sqlite3.Error, OSError), memory() as database:
        rows = database.execute(
            "SELECT name FROM places WHERE fingerprint = ? ORDER BY seen DESC", (fingerprint,)
        )
        known = [str(row[0]) for row in rows]
    return next((n for n in (name, *known) if _has(n, fingerprint)), name)


def _has(name: str, fingerprint: str) -> bool:
    try:
        return load_target(name).fingerprint() == fingerprint
    except UserError:
        return False


def _absolute(name: str) -> str:
    """The name with an absolute path; expressions such as mixtures are unchanged."""
    kind, _, rest = name.partition(":")
    if kind not in PATH_LOADERS:
        return name
    ends = [at for at, sign in enumerate(rest) if sign == "["]
    path = next((rest[:end] for end in (len(rest), *ends) if path_exists(rest[:end])), "")
    return f"{kind}:{Path(path).expanduser().absolute()}{rest[len(path) :]}" if path else name
