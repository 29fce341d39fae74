"""Targets derived from other targets by an expression: selected classes, parts, mixtures, altered images.

    X[classes=0-4]      some classes, by name or position, joined by "+": [classes=bag+boot], [classes=0-2+7]
    X[part=1/3]         one of three disjoint parts of each class; [part=2-3/3] is the other two
    mix(X,Y,0.25)       a quarter of each class from X, the rest from Y; the total is the same for any share
    shuffle(4,X)        the 4 x 4 tiles of each image in random order, different for each image
    permute(X)          the pixels of all images in the same random order
    random_labels(X)    the labels randomly permuted, so that each occurs as often as before

X and Y are names of targets or expressions, e.g. shuffle(2,fashion_mnist[classes=0-4][part=1/2]).
"""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar, final

import numpy as np
import torch
from numpy.typing import NDArray

from harness.core.errors import UserError
from harness.core.spec import derive_seed
from harness.data.groups import folds
from harness.data.labels import numbered
from harness.data.media import Images
from harness.data.options import OPTIONS
from harness.data.target import Indices, Target
from harness.inputs import Input
from harness.inputs.corruptions import with_tiles_moved

Load = Callable[[str], Target]
T = TypeVar("T", int, float)
FORMS = "X[classes=0-4], X[part=1/2], mix(X,Y,0.5), shuffle(4,X), permute(X), random_labels(X)"


class Change(ABC):
    """A change of an image's pixels."""

    @abstractmethod
    def __call__(self, images: torch.Tensor, positions: Indices) -> torch.Tensor:
        """(n, 3, s, s) changed copies of n images, which are at these positions in the target."""


@final
@dataclass(frozen=True)
class Shuffle(Change):
    """The k x k tiles of each image in an order that depends on its position."""

    k: int

    def __call__(self, images: torch.Tensor, positions: Indices) -> torch.Tensor:
        k = self.k
        if images.shape[-1] < k:
            raise UserError(
                f"shuffle({k},...): images of {images.shape[-1]} pixels cannot be divided into {k} x {k} "
                "tiles"
            )
        orders = [
            np.random.default_rng(derive_seed("shuffle", k, i)).permutation(k * k)
            for i in positions
        ]
        order = torch.from_numpy(np.array(orders, np.int64).reshape(len(images), k * k))
        return with_tiles_moved(images, k, order)


@final
@dataclass(frozen=True)
class Permute(Change):
    """One random order of the pixels, the same for every image of that size in every data set."""

    def __call__(self, images: torch.Tensor, positions: Indices) -> torch.Tensor:
        size = images.shape[-1]
        order = np.random.default_rng(derive_seed("permute", size)).permutation(size * size)
        return images.flatten(2)[:, :, torch.from_numpy(order)].view(images.shape)


@final
@dataclass(frozen=True)
class DerivedTarget(Target):
    """Images of other targets with new labels.

    Attributes:
        parts: the other targets.
        which, where: (n,) index of the target that each image comes from, and its position there.
        change: change of the pixels, or None.
    """

    parts: tuple[Target, ...]
    which: Indices
    where: Indices
    change: Change | None = None

    def describe(self, position: int) -> str:
        return self.parts[int(self.which[position])].describe(int(self.where[position]))

    def files(self) -> tuple[Path, ...]:
        return tuple(path for part in self.parts for path in part.files())

    @property
    def key(self) -> str:
        own = "\x1f".join([repr(self.change), *(part.key for part in self.parts)])
        hashed = hashlib.sha256(own.encode())
        hashed.update(self.which.tobytes() + self.where.tobytes())
        return hashed.hexdigest()

    def fingerprints(self, indices: Indices) -> NDArray[np.uint8]:
        found = [(at, part.fingerprints(where)) for part, at, where in self._by_part(indices)]
        width = max((fingerprints.shape[1] for _, fingerprints in found), default=0)
        out = np.zeros((len(indices), width), np.uint8)
        for at, fingerprints in found:
            out[at, : fingerprints.shape[1]] = fingerprints
        return out

    def _identity(self) -> Iterable[bytes]:
        yield repr(self.change).encode()
        yield self.which.tobytes() + self.where.tobytes()
        for part in self.parts:
            yield part.fingerprint().encode()

    def read(self, indices: Indices, form: Input) -> torch.Tensor:
        out = form.blank(len(indices))
        for part, at, where in self._by_part(indices):
            out[torch.from_numpy(at)] = part.read(where, form)
        return out if self.change is None else self.change(out, indices)

    def _by_part(self, indices: Indices) -> Iterator[tuple[Target, Indices, Indices]]:
        """For every target that some of these images come from: the target, which images, and their positions
        in it."""
        which = self.which[indices]
        for number, part in enumerate(self.parts):
            if len(at := np.flatnonzero(which == number)):
                yield part, at, self.where[indices[at]]


def roots(target: Target, indices: Indices) -> list[tuple[str, int]]:
    """For each image, the original data set that it comes from and its position there."""
    if not isinstance(target, DerivedTarget):
        return [(target.identity, int(i)) for i in indices]
    return [
        roots(target.parts[part], np.array([at]))[0]
        for part, at in zip(target.which[indices], target.where[indices], strict=True)
    ]


def evaluate(name: str, load: Load) -> Target | None:
    """The target that an expression describes; None if the name is not an expression.

    Args:
        name: the expression.
        load: loads a target by name.

    Raises:
        UserError: naming the error in the expression.
    """
    if match := re.fullmatch(r"(.+)\[(\w+)=([^\[\]]*)\]", name):
        inner, kind, value = match.groups()
        if kind not in ("classes", "part"):
            own = OPTIONS.get(name.partition(":")[0], ())
            if kind in own:
                return None
            known = ", ".join(("classes", "part", *own))
            raise UserError(f"target {name!r}: unknown selection {kind!r}; known: {known}")
        target = load(inner.strip())
        return _classes(target, value, name) if kind == "classes" else _part(target, value, name)
    match = re.fullmatch(r"(\w+)\((.*)\)", name)
    if match is None:
        return None
    function, arguments = match[1], _arguments(match[2])
    if function == "mix" and len(arguments) == 3:
        share = _number(arguments[2], name, float)
        return _mix(load(arguments[0]), load(arguments[1]), share, name)
    if function == "shuffle" and len(arguments) == 2:
        tiles = _number(arguments[0], name, int)
        if tiles < 2:
            raise UserError(
                f"target {name!r}: shuffle needs at least 2 tiles per side, got {tiles}"
            )
        return _changed(load(arguments[1]), f"shuffle({tiles},", Shuffle(tiles))
    if function == "permute" and len(arguments) == 1:
        return _changed(load(arguments[0]), "permute(", Permute())
    if function == "random_labels" and len(arguments) == 1:
        return _random_labels(load(arguments[0]))
    raise UserError(f"target {name!r} is not a valid expression; the forms are {FORMS}")


def _arguments(text: str) -> list[str]:
    """Split at the commas outside brackets."""
    parts, depth = [""], 0
    for sign in text:
        depth += (sign in "([") - (sign in ")]")
        if sign == "," and not depth:
            parts.append("")
        else:
            parts[-1] += sign
    return [part.strip() for part in parts]


def _number(text: str, name: str, kind: type[T]) -> T:
    try:
        return kind(text)
    except ValueError:
        what = "a whole number" if kind is int else "a number"
        raise UserError(f"target {name!r}: expected {what}, got {text!r}") from None


def _subset(target: Target, rows: Indices, name: str) -> DerivedTarget:
    """Some images of a target, labels and classes as they are."""
    return DerivedTarget(
        name,
        target.classes,
        target.labels[rows],
        None if target.official_test is None else target.official_test[rows],
        (target,),
        np.zeros(len(rows), np.int64),
        rows,
        official_val=None if target.official_val is None else target.official_val[rows],
        groups=None if target.groups is None else target.groups[rows],
        notes=target.notes,
        medium=target.medium,
    )


def _classes(target: Target, text: str, name: str) -> Target:
    chosen: list[int] = []
    for item in map(str.strip, text.split("+")):
        ends = [item] if item in target.classes else item.split("-")
        at = [_class(target, end, name) for end in ends]
        chosen += range(at[0], at[-1] + 1) if len(at) == 2 else at[:1]
    if len(set(chosen)) < len(chosen) or len(chosen) < 2:
        raise UserError(f"target {name!r}: name at least 2 classes, each only once")
    rows = np.flatnonzero(np.isin(target.labels, chosen)).astype(np.int64)
    made = _subset(target, rows, f"{target.name}[classes={text}]")
    labels = np.array([chosen.index(label) for label in target.labels[rows]], np.int64)
    return replace(made, classes=tuple(target.classes[c] for c in chosen), labels=labels)


def _class(target: Target, text: str, name: str) -> int:
    if text in target.classes:
        return target.classes.index(text)
    if text.isdecimal() and int(text) < len(target.classes):
        return int(text)
    raise UserError(f"target {name!r}: no class {text!r}; known: {', '.join(target.classes)}")


def _part(target: Target, text: str, name: str) -> Target:
    match = re.fullmatch(r"(\d+)(?:-(\d+))?/(\d+)", text)
    first, last, of = map(int, (match[1], match[2] or match[1], match[3])) if match else (0, 0, 0)
    if not 1 <= first <= last <= of:
        raise UserError(f"target {name!r}: expected a part such as 1/2 or 2-3/3, got {text!r}")
    rows = []
    for stream, members in _members(target):
        rng = np.random.default_rng(derive_seed("part", target.identity, stream))
        rows += np.array_split(rng.permutation(members), of)[first - 1 : last]
    if target.groups is not None and of > 1:
        rows = _parts_of_groups(target, (first, last, of), name)
    kept = np.sort(np.concatenate(rows)).astype(np.int64)
    made = _subset(target, kept, f"{target.name}[part={text}]")
    if len(np.unique(made.labels)) < len(target.classes):
        raise UserError(f"target {name!r}: a class has no examples in that part; use fewer parts")
    return made


def _parts_of_groups(target: Target, part: tuple[int, int, int], name: str) -> list[Indices]:
    """A part of a target with groups. Every group is in one part only; the official parts are divided
    separately."""
    assert target.groups is not None
    first, last, of = part
    rows = []
    for given in _given_parts(target).values():
        try:
            seed = derive_seed("part", target.identity)
            fold = folds(target.labels[given], target.groups[given], of, seed)
        except ValueError:
            raise UserError(
                f"target {name!r}: too few groups for {of} parts; use fewer parts"
            ) from None
        rows.append(given[(first - 1 <= fold) & (fold < last)])
    return rows


def _mix(first: Target, second: Target, share: float, name: str) -> Target:
    """A mixture of two targets. Official test images are left out, because mixtures are for training."""
    if len(first.classes) != len(second.classes):
        raise UserError(
            f"target {name!r}: mix needs equal numbers of classes, got {len(first.classes)} and "
            f"{len(second.classes)}; select classes with [classes=...]"
        )
    if type(first.medium) is not type(second.medium):
        raise UserError(
            f"target {name!r}: {first.medium.noun}s and {second.medium.noun}s cannot be mixed"
        )
    if not 0 <= share <= 1:
        raise UserError(f"target {name!r}: the share must be in [0, 1], got {share}")
    which, where, labels = [], [], []
    for label in range(len(first.classes)):
        own = []
        for target in (first, second):
            members = np.flatnonzero((target.labels == label) & (target.part_names != "test"))
            rng = np.random.default_rng(derive_seed("mix", target.identity, label))
            own.append(rng.permutation(members))
        size = min(map(len, own))
        counts = round(share * size), size - round(share * size)
        which.append(np.repeat([0, 1], counts))
        where += [order[:count] for order, count in zip(own, counts, strict=True)]
        labels.append(np.full(size, label))
    parts = np.concatenate(which).astype(np.int64)
    places = np.concatenate(where).astype(np.int64)
    return DerivedTarget(
        f"mix({first.name},{second.name},{share:g})",
        tuple(f"{a}/{b}" for a, b in zip(first.classes, second.classes, strict=True)),
        np.concatenate(labels).astype(np.int64),
        None,
        (first, second),
        parts,
        places,
        groups=_mixed_groups((first, second), parts, places),
        notes=tuple(dict.fromkeys(first.notes + second.notes)),
        medium=first.medium,
    )


def _mixed_groups(parts: tuple[Target, ...], which: Indices, where: Indices) -> Indices | None:
    """Groups of a mixture; an image from a data set without groups is a group of its own."""
    if all(part.groups is None for part in parts):
        return None
    keys = []
    for part, at in zip(which, where, strict=True):
        groups = parts[part].groups
        ((root, place),) = roots(parts[part], np.array([at]))
        keys.append((root, place, -1) if groups is None else (root, -1, int(groups[at])))
    return numbered(keys)


def _changed(target: Target, prefix: str, change: Change) -> Target:
    if not isinstance(target.medium, Images):
        raise UserError(f"target {prefix}{target.name}): only the pixels of images can be moved")
    every = np.arange(len(target.labels))
    return replace(_subset(target, every, f"{prefix}{target.name})"), change=change)


def _random_labels(target: Target) -> Target:
    labels = target.labels.copy()
    for part, rows in _given_parts(target).items():
        rng = np.random.default_rng(derive_seed("random labels", target.identity, part))
        labels[rows] = rng.permutation(labels[rows])
    made = _subset(target, np.arange(len(labels)), f"random_labels({target.name})")
    return replace(made, labels=labels)


def _given_parts(target: Target) -> dict[str, Indices]:
    """Positions of the official test images, the validation images and the rest, by the name of their random
    stream."""
    streams, part = (
        {"train": "False", "test": "True", "validation": "validation"},
        target.part_names,
    )
    parts = {stream: np.flatnonzero(part == name) for name, stream in streams.items()}
    return {stream: rows for stream, rows in parts.items() if len(rows)}


def _members(target: Target) -> Iterable[tuple[str, Indices]]:
    """Positions by class and official part, each with the name of its random stream."""
    given = _given_parts(target)
    for label in range(len(target.classes)):
        for name, part in given.items():
            rows = part[target.labels[part] == label]
            if len(rows):
                yield f"{label} {name}", rows
