"""Lower limit for a linear probe: one forward pass per image, then training of the heads alone."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks import recipe
from benchmarks.programs.bare import decode, outputs
from benchmarks.programs.common import Task, measure, network, parser, task_from


def head_trial(head: nn.Module, lr: float, parts: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """Train a head on features; returns the validation accuracy of the last epoch."""
    (features, labels), (val_features, val_labels) = parts
    optimizer = torch.optim.AdamW(
        head.parameters(), lr=lr, weight_decay=recipe.WEIGHT_DECAY, fused=True
    )
    steps = recipe.EPOCHS * -(-len(labels) // recipe.BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    accuracy = 0.0
    for _ in range(recipe.EPOCHS):
        for rows in torch.randperm(len(labels)).split(recipe.BATCH):
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(head(features[rows]), labels[rows]).backward()
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            accuracy = float((head(val_features).argmax(1) == val_labels).double().mean())
    return accuracy


def run(task: Task) -> list[float]:
    """Decode the images, pass training and validation images through the network once, then train one head
    per trial."""
    model = network().model
    model.reset_classifier(0)  # type: ignore[operator] # features instead of logits
    data = [decode(task.data / part) for part in ("train", "val")]
    parts = [(outputs(model, images), labels) for images, labels in data]
    width = parts[0][0].shape[1]
    return [head_trial(nn.Linear(width, recipe.CLASSES), lr, parts) for lr in task.rates()]


if __name__ == "__main__":
    task = task_from(parser().parse_args())
    if task.work != "linear_probe":
        raise SystemExit("one_pass is for linear_probe")
    measure(task, lambda: run(task), workers=0)
