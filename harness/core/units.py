"""Parse sizes such as "8GiB" and times such as "20m", and format numbers of bytes."""

from __future__ import annotations

import re

from harness.core.errors import UserError

UNITS = {"": 1, "b": 1} | {
    f"{prefix}{suffix}": base**power
    for power, prefix in enumerate("kmgt", start=1)
    for suffix, base in (("", 1024), ("ib", 1024), ("b", 1000))
}
"""Unit of memory -> bytes, as in GNU coreutils: G and GiB are 1024^3, GB is 1000^3."""


def parse_size(text: str) -> int:
    """Bytes in a size such as "8GiB", "500MB", "2G" (= 2GiB) or "1000000".

    Raises:
        UserError: if the text is not a size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([A-Za-z]*)\s*", text)
    unit = UNITS.get(match[2].lower()) if match else None
    if match is None or unit is None or len(match[1]) > 18:
        raise UserError(f"size {text!r} is not valid; write e.g. 8GiB, 500MB, 2G or 0")
    return int(float(match[1]) * unit)


class Size(int):
    """A number of bytes, given as such or as text: `Size("8GiB")`. As text it is exact: 8GiB, 1000."""

    def __new__(cls, value: str | int) -> Size:
        return super().__new__(cls, parse_size(value) if isinstance(value, str) else value)

    def __str__(self) -> str:
        units = ((unit, 1024**power) for power, unit in enumerate(("KiB", "MiB", "GiB"), start=1))
        exact = [f"{self // size}{unit}" for unit, size in units if self and self % size == 0]
        return exact[-1] if exact else int.__str__(self)


TIMES = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
"""Unit of time -> seconds."""


class Seconds(float):
    """A time in seconds, given as such or as text with a unit: `Seconds("20m")`."""

    def __new__(cls, value: str | float) -> Seconds:
        return super().__new__(cls, parse_time(value) if isinstance(value, str) else value)

    def __str__(self) -> str:
        for unit in ("h", "m"):
            if self and self % TIMES[unit] == 0:
                return f"{self / TIMES[unit]:.0f}{unit}"
        return f"{float(self):g}s"


def parse_time(text: str) -> float:
    """Seconds in a time such as "90s", "20m" or "1.5h".

    Raises:
        UserError: if the text is not a time above 0.
    """
    match = re.fullmatch(r"\s*(\d{1,9}(?:\.\d*)?|\.\d+)\s*([A-Za-z]+)\s*", text)
    unit = TIMES.get(match[2].lower()) if match else None
    seconds = 0.0 if match is None or unit is None else float(match[1]) * unit
    if not seconds:
        raise UserError(f"time {text!r} is not valid; write e.g. 90s, 20m or 1.5h")
    return seconds


def format_bytes(size: float) -> str:
    """A number of bytes with a suitable unit, e.g. "512 B" or "1.5 MiB"."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.3g} GiB"
