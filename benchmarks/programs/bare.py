"""Lower limit: a bare loop over tensors that are decoded once and stay in memory, channels last."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from benchmarks import recipe
from benchmarks.programs.common import (
    Task,
    frozen_and_trained,
    frozen_modules_in_eval,
    measure,
    network,
    parser,
    task_from,
)

EVAL_BATCH = 256


def decode(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """(n, 3, s, s) uint8 images, channels last, and (n,) labels."""
    images, labels = [], []
    for label, name in enumerate(sorted(folder.iterdir())):
        files = sorted(name.iterdir())
        images += [np.asarray(Image.open(file).convert("RGB")) for file in files]
        labels += [label] * len(files)
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2), torch.tensor(labels)


def normalised(images: torch.Tensor) -> torch.Tensor:
    """[0, 255] -> [-1, 1]."""
    return (images.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def outputs(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Outputs of the model in eval() for all images."""
    model.eval()
    return torch.cat([model(normalised(x)) for x in images.split(EVAL_BATCH)])


def train(task: Task, lr: float, data: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """One trial; returns the validation accuracy of the last epoch."""
    (images, labels), (val_images, val_labels) = data
    backbone = network()
    model = backbone.model
    frozen, trained = frozen_and_trained(backbone, task.work)
    for parameter in frozen:
        parameter.requires_grad_(False)
    optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=recipe.WEIGHT_DECAY, fused=True)
    steps = recipe.EPOCHS * -(-len(labels) // recipe.BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    accuracy = 0.0
    for _ in range(recipe.EPOCHS):
        frozen_modules_in_eval(backbone, task.work)
        for rows in torch.randperm(len(labels)).split(recipe.BATCH):
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(model(normalised(images[rows])), labels[rows]).backward()
            optimizer.step()
            schedule.step()
        hits = outputs(model, val_images).argmax(1) == val_labels
        accuracy = float(hits.double().mean())
    return accuracy


def run(task: Task) -> list[float]:
    """All trials, on data that are decoded once."""
    data = [decode(task.data / part) for part in ("train", "val")]
    return [train(task, lr, data) for lr in task.rates()]


if __name__ == "__main__":
    task = task_from(parser().parse_args())
    measure(task, lambda: run(task), workers=0)
