"""Track the storages of tensors from operation to operation, and their peak memory.

with StorageMeter() as meter:
    compute()
sum(meter.peak().values())  # bytes
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class StorageMeter(TorchDispatchMode):
    """Tracks the storages of tensors, fake or real, from the operation that creates them until they are
    freed.

    Views share a storage and count once. Tensors that were created before the block count from the moment
    when they are passed to `follow` or returned by an operation.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._events: list[tuple[int, int]] = []  # (serial number, +bytes made or -bytes freed)
        self._known: dict[int, tuple[int, weakref.ref[Any]]] = {}  # by address
        self._count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = NotImplemented
        if torch.is_inference_mode_enabled() and func.namespace == "aten":
            # In inference mode, composite operations are not decomposed yet; their inner tensors count too.
            with self:
                out = func.decompose(*args, **(kwargs or {}))
        if out is NotImplemented:
            out = func(*args, **(kwargs or {}))
        self.follow(x for x in tree_iter(out) if isinstance(x, torch.Tensor))
        return out

    def follow(self, tensors: Iterable[torch.Tensor]) -> frozenset[int]:
        """Count the tensors' storages from now on.

        Returns:
            Their serial numbers; a storage keeps its number.
        """
        return frozenset(self._serial(tensor.untyped_storage()) for tensor in tensors)

    def _serial(self, storage: torch.UntypedStorage) -> int:
        address = storage._cdata
        if address not in self._known:
            number, size = self._count, storage.nbytes()
            self._count += 1

            def freed(_: object) -> None:
                del self._known[address]
                self._events.append((number, -size))

            self._known[address] = number, weakref.ref(storage, freed)
            self._events.append((number, size))
        return self._known[address][0]

    def now(self) -> int:
        """The current moment, for `peak`."""
        return len(self._events)

    def alive(self, moment: int | None = None) -> dict[int, int]:
        """Serial number -> bytes of each storage alive at a moment; None means now."""
        found: dict[int, int] = {}
        for number, size in self._events[:moment]:
            if size >= 0:
                found[number] = size
            else:
                found.pop(number, None)
        return found

    def peak(self, since: int = 0) -> dict[int, int]:
        """Serial number -> bytes of each storage alive at the peak, from moment `since` on."""
        level = sum(size for _, size in self._events[:since])
        highest, moment = level, since
        for i, (_, size) in enumerate(self._events[since:], start=since + 1):
            level += size
            if level > highest:
                highest, moment = level, i
        return self.alive(moment)
