"""Decode the bytes of text files in any usual encoding."""

from __future__ import annotations

import codecs
import re

BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
FALLBACK = "cp1252 (Western European Windows)"


def decoded(content: bytes) -> tuple[str, bool]:
    """The text of a file, and whether it had to be read as cp1252, of which Latin-1 is a part.

    The encoding is given by a byte order mark; else it is UTF-8, or UTF-16 if there are many zero bytes, or
    cp1252 if the bytes are not UTF-8.

    Raises:
        ValueError: if this is not text.
    """
    for mark, encoding in BOMS:
        if content.startswith(mark):
            return content.decode(encoding), False
    try:
        text = content.decode("utf-8")
        if text.count("\0") * 4 < len(text) or not text:
            return text, False
    except UnicodeDecodeError:
        pass
    even, odd = content[::2].count(0), content[1::2].count(0)
    if even + odd > len(content) // 4:
        return content.decode("utf-16-be" if even > odd else "utf-16-le"), False
    text = content.decode("cp1252")
    if re.search(r"[\x00-\x08\x0e-\x1f]", text):
        raise ValueError("it is not text")
    return text, True
