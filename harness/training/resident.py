"""Training and validation examples that stay on the device during a trial, so that batches are not copied to
it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch

from harness.data import Examples
from harness.data.cached import CachedView
from harness.training.device import MIB, Device

Part = Literal["train", "val"]
CHUNK = 256
"""Rows copied at a time, so that little memory of the host is needed."""


def staying(sizes: Iterable[int], room: int) -> list[int]:
    """The bytes of each array that stay: all or none of it, the first arrays first.

    Args:
        sizes: bytes of each array.
        room: bytes of all that may stay.
    """
    found: list[int] = []
    for size in sizes:
        found.append(size if sum(found) + size <= room else 0)
    return found


class Resident:
    """The arrays of one trial that stay on its device.

    The room for a part is reserved with its first array, for the examples as the network takes them. Outputs
    of frozen layers stay in their place if they are not larger, so a forecast need not know them.

    Args:
        device: the device, with the room on it.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._sizes: dict[Part, int] = {}
        self._kept: dict[Part, tuple[tuple[object, ...], torch.Tensor]] = {}

    @property
    def mib(self) -> float:
        """MiB of what is on the device now."""
        return sum(rows.nbytes for _, rows in self._kept.values()) / MIB

    def place(
        self, part: Part, examples: Examples, values: torch.Tensor | CachedView
    ) -> torch.Tensor | CachedView:
        """The rows on the device, where they replace those of the same part; as they are if they do not fit.

        Args:
            part: the part of the split.
            examples: its examples.
            values: one row per example: those of the examples, or outputs of frozen layers.
        """
        source = (values.rows, values.index) if isinstance(values, CachedView) else (values,)
        kept = self._kept.get(part)
        if kept is not None and all(a is b for a, b in zip(kept[0], source, strict=False)):
            return kept[1]
        self._kept.pop(part, None)
        del kept  # its memory is needed
        self._sizes.setdefault(part, len(examples) * examples.form.row_bytes)
        room = dict(zip(self._sizes, staying(self._sizes.values(), self._device.room), strict=True))
        first = values[:1]
        if not len(values) or len(values) * first.nbytes > room[part]:
            return values
        where = self._device.torch_device
        rows = torch.empty(len(values), *first.shape[1:], dtype=first.dtype, device=where)
        for start in range(0, len(values), CHUNK):
            rows[start : start + CHUNK] = values[start : start + CHUNK]
        self._kept[part] = source, rows
        return rows
