"""Interface of a kind of network input."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch

from harness.core.errors import UserError
from harness.inputs.augment import Augment

Prepare = Callable[[torch.Tensor], torch.Tensor]
"""(n, *shape) rows on the device -> the argument of the network, with n as its first axis."""


@dataclass(frozen=True)
class Input(ABC):
    """The form in which a network takes an example.

    Each example of a target becomes one row, a tensor of fixed shape and type, which is cached. Batches of
    rows are varied (augmentation), then prepared on the device. Everything that a network needs of an example
    must be in its row: rows of texts, for instance, would hold both the ids and the mask.

    Attributes:
        dtype: type of the rows.
        near: smallest correlation of the thumbnails of two examples that counts as a near duplicate.
        augmentations, corruptions: names that `augmentation` and `corrupted` take.
        corruption: corruption of the example before it becomes a row; "" for none.
    """

    corruption: str = field(default="", kw_only=True)

    dtype: ClassVar[torch.dtype] = torch.uint8
    near: ClassVar[float] = 0.99
    augmentations: ClassVar[tuple[str, ...]]
    corruptions: ClassVar[tuple[str, ...]]

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Shape of one row."""

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return math.prod(self.shape) * self.dtype.itemsize

    @abstractmethod
    def __str__(self) -> str:
        """A short description for messages, e.g. "32 x 32 pixels"."""

    @abstractmethod
    def key(self) -> dict[str, str]:
        """Everything that determines the row of a given example."""

    @abstractmethod
    def row(self, example: Any) -> torch.Tensor:
        """The row of a decoded example, such as an image of Pillow."""

    @abstractmethod
    def preparation(self, device: torch.device, layout: torch.memory_format) -> Prepare:
        """The function that turns rows on a device into the argument of a network.

        Args:
            device: device of the network.
            layout: memory order in which the network computes, where that matters.
        """

    def blank(self, count: int) -> torch.Tensor:
        """(count, *shape) zeros."""
        return torch.zeros(count, *self.shape, dtype=self.dtype)

    @abstractmethod
    def random(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """(count, *shape) random rows, no two of them equal, on which a network is tested."""

    def at(self, resolution: int) -> Input:
        """The same input in another resolution.

        Raises:
            UserError: if this kind has no resolution.
        """
        raise UserError(
            f"resolution {resolution} is for networks that take images; this one takes {self}"
        )

    @abstractmethod
    def augmentation(self, name: str, num_classes: int) -> Augment:
        """The augmentation policy of that name, as in TrialSpec.

        Args:
            name: name of the policy.
            num_classes: number of classes, needed to mix labels.
        """

    def corrupted(
        self,
        rows: torch.Tensor,
        name: str,
        generator: torch.Generator,
        read: Callable[[Input], torch.Tensor],
    ) -> torch.Tensor:
        """Rows of corrupted examples, which are read again unless a kind of input corrupts its rows.

        Args:
            rows: (n, *shape) rows of the examples.
            name: name of the corruption, as in TrialSpec.shifts.
            generator: source of all random numbers.
            read: reads the same examples in another form.
        """
        return read(replace(self, corruption=name))

    def check(self, augment: str, corruptions: Iterable[str]) -> None:
        """Check that these policies exist for this kind of input.

        Raises:
            UserError: naming those that do.
        """
        if augment not in self.augmentations:
            raise UserError(
                f"augment {augment!r} is not for {self}; use {', '.join(self.augmentations)}"
            )
        for name in corruptions:
            if name not in (*self.corruptions, "label_shift"):
                raise UserError(
                    f"shift {name!r} is not for {self}; use {', '.join(self.corruptions)} or label_shift"
                )

    @abstractmethod
    def thumbnails(self, rows: torch.Tensor) -> torch.Tensor:
        """(n, d) coarse copies as floats, by whose correlation near duplicates are found."""

    @abstractmethod
    def pictures(self, rows: torch.Tensor) -> torch.Tensor:
        """(n, 3, h, w) uint8 pictures of examples, for people."""

    @abstractmethod
    def in_words(self) -> str:
        """How an example is prepared, in Markdown, for use of an exported model without the harness."""

    def remark(self, rows: Iterable[torch.Tensor]) -> str:
        """A note on the rows of a data set, given in batches, for the user; "" if there is none."""
        return ""

    def files(self) -> dict[str, str]:
        """Name -> contents of the files that an exported model needs besides its settings, e.g. a
        tokenizer."""
        return {}

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Settings as they are written to model.json."""
