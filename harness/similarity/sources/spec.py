"""Specification of sources, for files with `sources = [SourceSpec(...), ...]`."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from harness.core.errors import UserError, require_count
from harness.core.spec import derive_seed, require_choices, require_short, typed
from harness.core.strategies import Scalar
from harness.core.study import SAFE_NAME

Objective = Literal["supervised", "autoencoder", "gan"]


@dataclass(frozen=True)
class SourceSpec:
    """A model, or several models with different seeds, to be trained and recorded.

    Attributes:
        name: name of the source; trials refer to it as source="recorded:NAME".
        data: the training data: a target's name or an expression (see harness.data.expressions).
        backbone: as in TrialSpec.
        objective: "supervised"; for images and spectrograms also "autoencoder" (its encoder is the
            backbone) and "gan" (its discriminator is the backbone).
        shots: largest number of training examples per class; None takes all that are not used for validation.
            Official test examples are never used.
        val_shots: largest number of validation examples per class; None takes a tenth.
        resolution: side of the square input in pixels, for backbones that take images or spectrograms; None
            takes the backbone's own.
        steps: number of optimiser steps; 0 leaves the weights random.
        batch_size: examples per step.
        lr: peak learning rate of AdamW, which rises over a tenth of the steps and then falls to zero as a
            cosine.
        weight_decay: decoupled; never on norms and biases.
        models: number of models, numbered from 0. Model i of every source has the same seed for its examples,
            initialisation and batches.
    """

    name: str
    data: str
    backbone: str = "small_cnn"
    objective: Objective = "supervised"
    shots: int | None = None
    val_shots: int | None = None
    resolution: int | None = None
    steps: int = 600
    batch_size: int = 64
    lr: float = 3e-3
    weight_decay: float = 0.01
    models: int = 1

    def __post_init__(self) -> None:
        if not SAFE_NAME.fullmatch(self.name) or re.search(r"\.\d+$", self.name):
            raise UserError(
                f"SourceSpec: name {self.name!r} must be letters, digits, '_', '.', '-', and must not end "
                "with a number, because the number of the model is appended"
            )
        require_short(f"SourceSpec {self.name}", self.flat())
        require_choices(self)
        for field, least in (("steps", 0), ("batch_size", 2), ("models", 1)):
            require_count(f"SourceSpec {self.name}: {field}", getattr(self, field), least)
        for field in ("shots", "val_shots", "resolution"):
            if (value := getattr(self, field)) is not None:
                require_count(f"SourceSpec {self.name}: {field}", value)
        if not 0 < self.lr < 1 or not 0 <= self.weight_decay < 1:
            raise UserError(
                f"SourceSpec {self.name}: lr must be in (0, 1) and weight_decay in [0, 1), got "
                f"{self.lr!r} and {self.weight_decay!r}"
            )

    def flat(self) -> dict[str, Scalar]:
        """Everything that determines a model except its number, as parameters to be logged."""
        fields = dataclasses.asdict(self)
        del fields["models"]
        return fields

    def seed(self, number: int) -> int:
        """Seed of the model with that number."""
        return derive_seed("source", number)


def spec_from(about: Mapping[str, str]) -> tuple[SourceSpec, int]:
    """The spec and the number of a recorded model, from its description."""
    names = (field.name for field in dataclasses.fields(SourceSpec))
    own = {name: about[name] for name in names if name in about}
    return SourceSpec(**typed(SourceSpec, own)), int(about["number"])


def sources_of(defined: Mapping[str, Any], path: object) -> list[SourceSpec]:
    """The `sources` that a study file defines.

    Raises:
        UserError: if there are no `sources`, or they are not a list of SourceSpec.
    """
    if "sources" not in defined:
        raise UserError(
            f"study file {path} defines no `sources`; end it with sources = [SourceSpec(...), ...]"
        )
    sources = defined["sources"]
    listed = isinstance(sources, (list, tuple))
    wrong = [s for s in sources if not isinstance(s, SourceSpec)] if listed else [sources]
    if wrong or not sources:
        got = type(wrong[0]).__name__ if wrong else "an empty one"
        raise UserError(f"study file {path}: `sources` must be a list of SourceSpec, got {got}")
    names = [source.name for source in sources]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"study file {path}: source {twice!r} is defined twice")
    return list(sources)
