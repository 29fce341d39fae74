"""Labelled data sets: labels are loaded at once, examples on demand."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from harness.core.errors import UserError, few
from harness.data.checksums import checksums
from harness.data.images import shown, to_rgb
from harness.data.media import IMAGES, Medium
from harness.data.texts import require_text
from harness.inputs import Input, Pixels

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Target(ABC):
    """A labelled data set whose examples are read on demand.

    Attributes:
        name: short name for people; the split depends on `identity`.
        classes: class names, position = label.
        labels: (n,) int64 labels.
        official_test: (n,) True for images of the data set's own test set; None if it has none.
        official_val: (n,) True for images of its own validation set; None if it has none.
        groups: (n,) number of each image's group (patient, sequence, product); images of one group stay in
            one part of every split. None if there are no groups.
        notes: how the files were read and which were skipped, one sentence each.
        medium: what the examples are.
    """

    name: str
    classes: tuple[str, ...]
    labels: Indices
    official_test: NDArray[np.bool_] | None
    official_val: NDArray[np.bool_] | None = field(default=None, kw_only=True)
    groups: Indices | None = field(default=None, kw_only=True)
    notes: tuple[str, ...] = field(default=(), kw_only=True)
    medium: Medium = field(default=IMAGES, kw_only=True)

    @property
    def part_names(self) -> NDArray[np.str_]:
        """(n,) the official part of each example: "train", "validation" or "test"."""
        part = np.full(len(self.labels), "train", dtype="<U10")
        for name, mask in (("validation", self.official_val), ("test", self.official_test)):
            if mask is not None:
                part[mask] = name
        return part

    def describe(self, position: int) -> str:
        """A name of an image for messages: its file if there is one."""
        return f"{self.name}[{position}]"

    def fingerprint(self) -> str:
        """SHA-256 of the content, or of samples of it: the same as long as the data set is unchanged."""
        hashed = hashlib.sha256("\x1f".join(self.classes).encode())
        hashed.update(self.labels.tobytes())
        for name, given in (("validation", self.official_val), ("groups", self.groups)):
            if given is not None:
                hashed.update(name.encode() + given.tobytes())
        for part in self._identity():
            hashed.update(part)
        return hashed.hexdigest()

    @property
    def identity(self) -> str:
        """The key of the target's random streams: the name of a built-in data set, or a hash of the content
        of the user's own files, which does not depend on their path."""
        return f"sha256:{self._fingerprint[:32]}" if ":" in self.name else self.name

    @property
    def key(self) -> str:
        """Cache key of the images, which determines them together with `fingerprints`."""
        return self._fingerprint

    def fingerprints(self, indices: Indices) -> NDArray[np.uint8]:
        """(n, k) bytes that change if an image changes while `key` stays the same."""
        return np.zeros((len(indices), 0), np.uint8)

    def files(self) -> tuple[Path, ...]:
        """Files from which the images are read; empty if they are in memory or torchvision's."""
        return ()

    @cached_property
    def _fingerprint(self) -> str:
        return self.fingerprint()

    @abstractmethod
    def _identity(self) -> Iterable[bytes]:
        """Further content, besides labels and class names, that identifies the data set."""

    @abstractmethod
    def read(self, indices: Indices, form: Input) -> torch.Tensor:
        """(len(indices), *form.shape): the examples at these positions, in that form."""


@final
@dataclass(frozen=True)
class ArrayTarget(Target):
    """Images that are all in memory: (n, h, w) or (n, h, w, 3) uint8."""

    images: NDArray[np.uint8]

    def _identity(self) -> Iterable[bytes]:
        return [self.images.tobytes()]

    def read(self, indices: Indices, form: Input) -> torch.Tensor:
        images = torch.from_numpy(self.images[indices])
        images = images.unsqueeze(1) if images.ndim == 3 else images.permute(0, 3, 1, 2)
        assert isinstance(form, Pixels)
        return form.square(images).expand(-1, 3, -1, -1).contiguous()


@final
@dataclass(frozen=True)
class FileTarget(Target):
    """Examples in files, decoded on demand."""

    paths: tuple[Path, ...]

    def describe(self, position: int) -> str:
        return shown(self.paths[position])

    def files(self) -> tuple[Path, ...]:
        return self.paths

    def _identity(self) -> Iterable[bytes]:
        """Hashes of all files, independent of their paths, so that replacing an image changes the data
        set."""
        yield b"" if self.official_test is None else self.official_test.tobytes()
        yield from checksums(self.paths)

    def fingerprints(self, indices: Indices) -> NDArray[np.uint8]:
        found = checksums([self.paths[i] for i in indices])
        return np.frombuffer(b"".join(found), np.uint8).reshape(len(indices), 32)

    def read(self, indices: Indices, form: Input) -> torch.Tensor:
        return read_each(lambda i: self.medium.open(self.paths[i]), indices, form)


@final
@dataclass(frozen=True)
class TextTarget(Target):
    """Texts that are all in memory.

    Attributes:
        texts: the texts.
        places: (n,) where each is from, e.g. "row 3".
    """

    texts: tuple[str, ...]
    places: tuple[str, ...]

    def describe(self, position: int) -> str:
        return f"{self.name}: {self.places[position]}"

    def _identity(self) -> Iterable[bytes]:
        yield b"" if self.official_test is None else self.official_test.tobytes()
        for text in self.texts:
            yield hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()

    def read(self, indices: Indices, form: Input) -> torch.Tensor:
        return read_each(lambda i: require_text(self.texts[i], self.describe(i)), indices, form)


@final
@dataclass(frozen=True)
class TorchvisionTarget(Target):
    """A torchvision data set: (image, label) by position, its parts one after the other, train first."""

    images: Any

    def _identity(self) -> Iterable[bytes]:
        """A hash of only a few images, because torchvision checks its downloads."""
        return [np.asarray(self._image(i)).tobytes() for i in range(0, len(self.labels), 997)]

    def read(self, indices: Indices, form: Input) -> torch.Tensor:
        out = form.blank(len(indices))
        for row, i in enumerate(indices):
            out[row] = form.row(to_rgb(self._image(int(i)), f"{self.name}[{i}]"))
        return out

    def _image(self, index: int) -> Image.Image:
        image: Image.Image = self.images[index][0]
        return image


def read_each(example: Callable[[int], Any], indices: Indices, form: Input) -> torch.Tensor:
    """Read examples one by one, in threads; see `Target.read`.

    Args:
        example: returns the decoded example at a position.
        indices: positions of the examples.
        form: the form in which they are read.

    Raises:
        UserError: naming the first ones that cannot be read.
    """

    def one(i: int) -> torch.Tensor | UserError:
        try:
            return form.row(example(i))
        except UserError as error:
            return error

    # The libraries release the GIL while they decode and resize.
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        read = list(pool.map(one, indices))
    if broken := [found for found in read if isinstance(found, UserError)]:
        raise UserError(few(list(map(str, broken))))
    return torch.stack([found for found in read if isinstance(found, torch.Tensor)])
