"""Cached outputs of the frozen leading part of a network, computed once per example.

The leading frozen groups of a strategy give the same outputs in all epochs, trials, cells and processes with
the same weights and examples. A `Cut` divides a network after its last frozen module; `Prefix` stores the
outputs at the cut in a Cache, under the hash of everything that determines them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import numpy as np
import torch
from torch import nn

from harness.backbones import Backbone, outputs_before
from harness.core.errors import first_line
from harness.core.units import format_bytes
from harness.core.versions import versions
from harness.data.cached import Cache, CachedView, Positions
from harness.training.flops import count_flops

WORTH = 20
"""Number of operations per cached byte from which reading is faster than computing; on a CPU, the two are
equal at about 10."""
PROBES = 2
"""Number of examples on which a cut is tested."""


class NoCut(Exception):
    """This network cannot be divided there, or caching does not pay; the message says why."""


class _Reached(Exception):
    """Raised when the gate has its output, to skip the rest of the network."""


@dataclass(frozen=True)
class Cut:
    """Where a network is divided.

    Attributes:
        gate: name of the module whose output is cached: the last one before the first trained module.
        skipped: the other outermost modules before the gate -> shape of their outputs, where the batch axis,
            first, is in units of examples.
        shape: shape of the cached output per example, channels last.
        dtype: type of the cached output.
        flops: operations per example of the part before the cut.
        order: axes of the output in the order in which they lie in memory, because sums of the next module
            may depend on it; of an output with 4 axes it is that of the network.
    """

    gate: str
    skipped: Mapping[str, tuple[int, ...]]
    shape: tuple[int, ...]
    dtype: torch.dtype
    flops: float
    order: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        """Cached bytes per example."""
        return math.prod(self.shape) * self.dtype.itemsize


def find_cut(backbone: Backbone, depth: int, images: torch.Tensor) -> Cut:
    """Divide a network; see `_find_cut`. Any error in an unusual network means that it is not divided."""
    try:
        return _find_cut(backbone, depth, images)
    except NoCut:
        raise
    except Exception as error:  # each architecture has its own kind
        raise NoCut(f"it cannot be divided: {type(error).__name__}: {first_line(error)}") from error


def _find_cut(backbone: Backbone, depth: int, images: torch.Tensor) -> Cut:
    """Divide a network after its `depth` leading groups, and test the result.

    Pooling and similar modules after the last frozen group count as frozen. A network can be divided if the
    modules before the cut pass on a single tensor; this is tested, not assumed.

    Args:
        backbone: the network; it is put in eval().
        depth: number of leading groups that are frozen, at least 1 and fewer than all.
        images: (n, 3, s, s) normalised images for the test, n > 1.

    Raises:
        NoCut: if the network is not a chain at that place, or caching its outputs does not pay.
    """
    before, whole = outputs_before(backbone, depth, images)
    cut = _cut(before, len(images))
    tail = Tail(backbone, cut, images.shape)
    flops = count_flops(backbone.model, lambda: tail.before(images))
    cut = replace(cut, flops=flops / len(images))
    with torch.no_grad():
        # Not the outputs that were counted: the counter lets torch run recurrent layers and attention as
        # simpler operations, which round differently.
        kept = tail.before(images)
        again, swapped = tail.after(kept), tail.after(kept.flip(0))
    exact = images.device.type == "cpu"
    if not (torch.equal(whole, again) if exact else torch.allclose(whole, again, 1e-3, 1e-3)):
        raise NoCut(f"the network is not a chain of modules at {cut.gate}")
    if torch.equal(again, swapped):
        raise NoCut(
            "its logits are the same for different examples, so that nothing can be checked"
        )
    if cut.flops < WORTH * cut.row_bytes:
        raise NoCut(f"up to {cut.gate} computing costs less than reading")
    return cut


def _cut(before: Sequence[tuple[str, Any]], count: int) -> Cut:
    """The cut that follows from the names and outputs of the modules before it."""
    names = [name for name, _ in before]
    if not before or len(set(names)) < len(names):
        raise NoCut("no module, or one module twice, before the first that trains")
    shapes: dict[str, tuple[int, ...]] = {}
    for name, out in before:
        if not isinstance(out, torch.Tensor) or not out.ndim or len(out) % count:
            raise NoCut(f"the output of {name} is not one tensor per example")
        shapes[name] = (len(out) // count, *out.shape[1:])
    gate, output = before[-1]
    if shapes.pop(gate)[0] != 1:
        raise NoCut(f"the output of {gate} is not one tensor per example")
    order = tuple(sorted(range(output.ndim), key=lambda axis: -output.stride(axis)))
    return Cut(gate, shapes, tuple(_channels_last(output).shape[1:]), output.dtype, 0.0, order)


def _channels_last(output: torch.Tensor) -> torch.Tensor:
    return output.permute(0, 2, 3, 1) if output.ndim == 4 else output


class Tail:
    """A network in two parts, before and after a cut.

    Args:
        backbone: the network.
        cut: where it is divided.
        shape: shape (any, 3, s, s) of its images.
    """

    def __init__(self, backbone: Backbone, cut: Cut, shape: Sequence[int]) -> None:
        self._model, self._cut, self._shape = backbone.model, cut, tuple(shape[1:])
        self._layout = backbone.layout
        self._gate = backbone.model.get_submodule(cut.gate)
        self._skipped = [(backbone.model.get_submodule(n), s) for n, s in cut.skipped.items()]

    def before(self, images: torch.Tensor) -> torch.Tensor:
        """(n, 3, s, s) normalised images -> (n, *cut.shape); puts the network in eval()."""
        self._model.eval()
        found: list[torch.Tensor] = []

        def stop(module: nn.Module, inputs: object, output: torch.Tensor) -> NoReturn:
            found.append(_channels_last(output))
            raise _Reached

        hook = self._gate.register_forward_hook(stop)
        try:
            self._model(images)
        except _Reached:
            pass
        finally:
            hook.remove()
        return found[0].contiguous()

    def after(self, kept: torch.Tensor) -> torch.Tensor:
        """(n, *cut.shape) -> (n, classes) logits."""
        blank = kept.new_zeros((), dtype=torch.float32)
        output = kept
        if kept.ndim == 4:
            output = kept.permute(0, 3, 1, 2).contiguous(memory_format=self._layout)
        else:
            back = [self._cut.order.index(axis) for axis in range(kept.ndim)]
            output = kept.permute(self._cut.order).contiguous().permute(back)
        stand_ins = {self._gate: output}
        for module, shape in self._skipped:
            stand_ins[module] = blank.expand(len(kept) * shape[0], *shape[1:])
        with _constant_outputs(stand_ins):
            logits: torch.Tensor = self._model(blank.expand(len(kept), *self._shape))
        return logits


@contextmanager
def _constant_outputs(outputs: Mapping[nn.Module, torch.Tensor]) -> Iterator[None]:
    """Let modules return these outputs without computing anything."""

    def constant(output: torch.Tensor) -> Callable[..., torch.Tensor]:
        return lambda *args, **kwargs: output

    for module, output in outputs.items():
        module.forward = constant(output)
    try:
        yield
    finally:
        for module in outputs:
            del module.forward


@dataclass(frozen=True)
class Prefix:
    """Caches the outputs of the part before a cut.

    Attributes:
        cut: where the network is divided.
        tail: the network in two parts.
        key: everything that determines the outputs, except the images.
        cache: where outputs are stored.
        chunk: number of images computed at a time; always the same, because the last bit of a sum may depend
            on it.
    """

    cut: Cut
    tail: Tail
    key: Mapping[str, str]
    cache: Cache
    chunk: int

    def of(
        self, images: CachedView, run: Callable[[torch.Tensor], torch.Tensor]
    ) -> tuple[CachedView, float]:
        """The outputs for some images, and the seconds that it took to get them.

        Args:
            images: pixels, (3, s, s) uint8 each.
            run: (n, 3, s, s) pixels -> outputs of `tail.before`.

        Raises:
            CacheFull: if the outputs do not fit into the cache.
        """
        key = {
            **self.key,
            "what": f"{self.key['backbone']} up to {self.cut.gate}, "
            f"{format_bytes(self.cut.row_bytes)} an example",
            "gate": self.cut.gate,
            "images": images.rows.key,
            **versions("torch", "torchvision", "timm", "transformers"),
        }
        rows = self.cache.array(key, images.rows.count, self.cut.shape, self.cut.dtype)

        def make(at: Positions) -> torch.Tensor:
            padded = np.concatenate([at, np.repeat(at[:1], self.chunk - len(at))])
            with torch.no_grad():
                return run(images.rows.take(padded))[: len(at)]

        paid = rows.fill(images.index, images.rows.checksums(images.index), make, self.chunk)
        return CachedView(rows, images.index), paid
