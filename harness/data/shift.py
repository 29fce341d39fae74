"""Shifts of the test set, by name: changes of the test set under which a model is scored again."""

from __future__ import annotations

from dataclasses import replace

import torch

from harness.core.spec import derive_seed
from harness.data.splits import Examples
from harness.data.target import Target

IMBALANCE = 10.0


def shifted(examples: Examples, name: str, target: Target) -> Examples:
    """The test examples under one shift; the result is the same in every trial.

    Args:
        examples: n test examples.
        name: "label_shift" (a subset in which the first class is ten times as frequent as the last, the
            others in between on a geometric scale), or a corruption of their kind of input (see
            harness.inputs).
        target: the target that they are from.
    """
    generator = torch.Generator().manual_seed(derive_seed("shift", name, len(examples.labels)))
    if name == "label_shift":
        return _label_shift(examples, generator)
    corrupted = examples.form.corrupted(
        examples.tensor, name, generator, lambda form: target.read(examples.index, form)
    )
    return replace(examples, values=corrupted)


def _label_shift(examples: Examples, generator: torch.Generator) -> Examples:
    classes = int(examples.labels.max()) + 1
    counts = torch.bincount(examples.labels, minlength=classes)
    wanted = IMBALANCE ** -torch.linspace(0, 1, classes)
    most = counts[counts > 0].min()  # an official test part may lack a class
    keep = []
    for label in range(classes):
        members = torch.nonzero(examples.labels == label)[:, 0]
        order = members[torch.randperm(len(members), generator=generator)]
        keep.append(order[: max(1, round(float(most * wanted[label])))])
    rows = torch.cat(keep).sort().values
    return replace(
        examples,
        values=examples.values[rows],
        labels=examples.labels[rows],
        index=examples.index[rows.numpy()],
    )
