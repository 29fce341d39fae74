"""Parse options in brackets after a path: folder:PATH[layout=parts], csv:FILE[image=file,label=species].

A comma separates options only if the name of an option follows. Values may thus contain commas, brackets and
equals signs: folder:PATH[group=^([0-9]{2,4})_,layout=classes].
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from harness.core.errors import UserError

OPTIONS = {
    "folder": ("layout", "group", "kind", "seconds", "rate", "tokens"),
    "csv": ("image", "audio", "text", "label", "split", "group", "seconds", "rate", "tokens"),
    "hf": ("image", "audio", "text", "label", "group", "seconds", "rate", "tokens"),
}
"""Options by kind of target."""

_NAME = "(?:" + "|".join(sorted({name for names in OPTIONS.values() for name in names})) + ")="


def split_options(kind: str, text: str) -> tuple[str, dict[str, str]]:
    """The path and its options.

    Args:
        kind: "folder", "csv" or "hf".
        text: the text after the kind's colon. A path that exists as written has no options, even if it
            contains brackets.

    Raises:
        UserError: if the kind has no such option, or an option is given twice or is empty.
    """
    starts = [m.start() for m in re.finditer(rf"\[(?=\s*{_NAME})", text)]
    if not starts or not text.endswith("]") or path_exists(text):
        return text, {}
    start = next((at for at in starts if path_exists(text[:at])), starts[0])
    options: dict[str, str] = {}
    for item in re.split(rf"(?:,|\]\[)\s*(?={_NAME})", text[start + 1 : -1]):
        name, _, value = item.strip().partition("=")
        if name not in OPTIONS[kind]:
            known = _either(OPTIONS[kind])
            raise UserError(f"target {kind}:{text}: {kind}: has no option {name!r}; use {known}")
        if name in options or not value.strip():
            wrong = "given twice" if name in options else "empty"
            raise UserError(f"target {kind}:{text}: option {name!r} is {wrong}")
        options[name] = value.strip()
    return text[:start], options


def path_exists(text: str) -> bool:
    """Whether there is such a file or folder; False for an invalid name."""
    return os.path.exists(os.path.expanduser(text))


def _either(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + f" or {names[-1]}"
