"""Outputs of the frozen leading part of a network, computed once per image and kept.

The leading frozen groups of a strategy give the same outputs in every epoch, trial, cell and process that
share weights and images. A `Cut` divides a network after its last frozen module; `Prefix` keeps the outputs
at the cut in a Cache, under the hash of all that decides them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from harness.backbones import Backbone
from harness.core.errors import first_line
from harness.core.units import format_bytes
from harness.core.versions import versions
from harness.data.cached import Cache, CachedView, Positions

WORTH = 20
"""Operations per kept byte from which reading beats computing; about 10 break even on a CPU."""
PROBES = 2
"""Images on which a cut is tried."""


class NoCut(Exception):
    """This network cannot be divided there, or it does not pay; says why."""


class _Reached(Exception):
    """The gate has given its output; the rest of the network is not wanted."""


@dataclass(frozen=True)
class Cut:
    """Where a network is divided.

    Attributes:
        gate: name of the module whose output is kept; it runs last before the first trained one.
        skipped: the other outermost modules before it -> shape of their outputs per image, the batch
            axis in units of images first.
        shape: of the kept output per image, channels last.
        dtype: of the kept output.
        flops: of the part before the cut, per image.
    """

    gate: str
    skipped: Mapping[str, tuple[int, ...]]
    shape: tuple[int, ...]
    dtype: torch.dtype
    flops: float

    @property
    def row_bytes(self) -> int:
        """Bytes kept per image."""
        return math.prod(self.shape) * self.dtype.itemsize


def find_cut(backbone: Backbone, depth: int, images: torch.Tensor) -> Cut:
    """As `_find_cut`; whatever goes wrong in an unusual network means that it is not divided."""
    try:
        return _find_cut(backbone, depth, images)
    except NoCut:
        raise
    except Exception as error:  # each architecture has its own kind
        raise NoCut(f"it cannot be divided: {type(error).__name__}: {first_line(error)}") from error


def _find_cut(backbone: Backbone, depth: int, images: torch.Tensor) -> Cut:
    """Divide a network after its `depth` leading groups, and try it.

    Pooling and the like behind the last frozen group count as frozen. Any network will do whose modules
    before the cut hand on one tensor; whether they do is tried, not assumed.

    Args:
        backbone: the network; it is put in eval().
        depth: leading groups that are frozen, at least 1 and less than all.
        images: (n, 3, s, s) normalised images to try it on, n > 1.

    Raises:
        NoCut: if the network is not a chain at that place, or keeping its outputs does not pay.
    """
    backbone.model.eval()
    events: list[tuple[str, torch.Tensor | None]] = []
    hooks = []
    for name, module, early in _outermost(backbone, depth):
        if early:
            hook = module.register_forward_hook(lambda m, a, out, n=name: events.append((n, out)))
        else:
            hook = module.register_forward_pre_hook(lambda m, a, n=name: events.append((n, None)))
        hooks.append(hook)
    try:
        with torch.no_grad():
            whole = backbone.model(images)
    finally:
        for hook in hooks:
            hook.remove()
    cut = _cut(events, len(images))
    tail = Tail(backbone, cut, images.shape)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        kept = tail.before(images)
    cut = Cut(cut.gate, cut.skipped, cut.shape, cut.dtype, counter.get_total_flops() / len(images))
    with torch.no_grad():
        again, swapped = tail.after(kept), tail.after(kept.flip(0))
    exact = images.device.type == "cpu"
    if not (torch.equal(whole, again) if exact else torch.allclose(whole, again, 1e-3, 1e-3)):
        raise NoCut(f"the network is no chain of modules at {cut.gate}")
    if torch.equal(again, swapped):
        raise NoCut("its logits are the same for different images, so that nothing can be checked")
    if cut.flops < WORTH * cut.row_bytes:
        raise NoCut(f"up to {cut.gate} computing costs less than reading")
    return cut


def _outermost(backbone: Backbone, depth: int) -> Iterator[tuple[str, nn.Module, bool]]:
    """Name, module and whether it lies before the cut: the largest modules that do, and the leaves that
    do not."""
    groups = {id(module): inside for module, inside in backbone.modes}
    early = frozenset(range(depth))

    def walk(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module, bool]]:
        inside = groups.get(id(module), frozenset())
        if (inside and inside <= early) or _is_plain(module):
            yield name, module, True
        elif children := list(module.named_children()):
            for child, inner in children:
                yield from walk(f"{name}.{child}" if name else child, inner)
        else:
            yield name, module, False

    return walk("", backbone.model)


def _is_plain(module: nn.Module) -> bool:
    """Without tensors and the same in train() and eval(): pooling, flattening, nothing."""
    if any(True for _ in module.parameters()) or any(True for _ in module.buffers()):
        return False
    return "Pool" in type(module).__name__ or isinstance(module, (nn.Identity, nn.Flatten))


def _cut(events: Sequence[tuple[str, Any]], count: int) -> Cut:
    """The cut that a traced forward pass allows: events are (module, its output, or None if trained)."""
    first = next((i for i, (_, out) in enumerate(events) if out is None), len(events))
    before = events[:first]
    names = [name for name, _ in before]
    if not before or len(set(names)) < len(names):
        raise NoCut("no module, or one module twice, before the first that trains")
    shapes: dict[str, tuple[int, ...]] = {}
    for name, out in before:
        if not isinstance(out, torch.Tensor) or not out.ndim or len(out) % count:
            raise NoCut(f"the output of {name} is not one tensor per image")
        shapes[name] = (len(out) // count, *out.shape[1:])
    gate, output = before[-1]
    if shapes.pop(gate)[0] != 1:
        raise NoCut(f"the output of {gate} is not one tensor per image")
    return Cut(gate, shapes, tuple(_channels_last(output).shape[1:]), output.dtype, 0.0)


def _channels_last(output: torch.Tensor) -> torch.Tensor:
    return output.permute(0, 2, 3, 1) if output.ndim == 4 else output


class Tail:
    """A network in two parts, by one cut.

    Args:
        backbone: the network.
        cut: where.
        shape: (any, 3, s, s) of its images.
    """

    def __init__(self, backbone: Backbone, cut: Cut, shape: Sequence[int]) -> None:
        self._model, self._cut, self._shape = backbone.model, cut, tuple(shape[1:])
        self._layout = backbone.layout
        self._gate = backbone.model.get_submodule(cut.gate)
        self._skipped = [(backbone.model.get_submodule(n), s) for n, s in cut.skipped.items()]

    def before(self, images: torch.Tensor) -> torch.Tensor:
        """(n, 3, s, s) normalised images -> (n, *cut.shape); leaves the network in eval()."""
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
        stand_ins = {self._gate: output}
        for module, shape in self._skipped:
            stand_ins[module] = blank.expand(len(kept) * shape[0], *shape[1:])
        with _standing_in(stand_ins):
            logits: torch.Tensor = self._model(blank.expand(len(kept), *self._shape))
        return logits


@contextmanager
def _standing_in(outputs: Mapping[nn.Module, torch.Tensor]) -> Iterator[None]:
    """Let modules return these instead of computing anything."""

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
    """Keeps what the part before a cut gives.

    Attributes:
        cut: where.
        tail: the network in two parts.
        key: all that decides the outputs, the images apart.
        cache: where they are kept.
        chunk: images at a time; always the same number, because the last bit of a sum may depend on it.
    """

    cut: Cut
    tail: Tail
    key: Mapping[str, str]
    cache: Cache
    chunk: int

    def of(
        self, images: CachedView, run: Callable[[torch.Tensor], torch.Tensor]
    ) -> tuple[CachedView, float]:
        """The outputs for some images, and the seconds that getting them took now.

        Args:
            images: pixels, (3, s, s) uint8 each.
            run: (n, 3, s, s) pixels -> `tail.before` of them.

        Raises:
            CacheFull: if they do not fit the cache.
        """
        key = {
            **self.key,
            "what": f"{self.key['backbone']} up to {self.cut.gate}, "
            f"{format_bytes(self.cut.row_bytes)} an image",
            "gate": self.cut.gate,
            "images": images.rows.key,
            **versions("torch", "torchvision", "timm"),
        }
        rows = self.cache.array(key, images.rows.count, self.cut.shape, self.cut.dtype)

        def make(at: Positions) -> torch.Tensor:
            padded = np.concatenate([at, np.repeat(at[:1], self.chunk - len(at))])
            with torch.no_grad():
                return run(images.rows.take(padded))[: len(at)]

        paid = rows.fill(images.index, images.rows.checksums(images.index), make, self.chunk)
        return CachedView(rows, images.index), paid
