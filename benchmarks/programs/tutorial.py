"""The loop of PyTorch's transfer learning tutorial, with ImageFolder, transforms and DataLoader.

As in the tutorial, frozen parameters get requires_grad = False and the whole model is put in train() at each
epoch, so that frozen batch norms follow the new images. There are four loader workers, or one per core if
there are fewer cores (DataLoader warns if there are more workers). Unlike in the tutorial, there is no random
augmentation, the optimiser is AdamW with a cosine by step, and the best weights are not written to disk.

https://docs.pytorch.org/tutorials/beginner/transfer_learning_tutorial.html
"""

from __future__ import annotations

import os

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from benchmarks import recipe
from benchmarks.programs.common import (
    Task,
    frozen_and_trained,
    measure,
    parser,
    plain_network,
    task_from,
)

WORKERS = min(4, os.cpu_count() or 1)


def train(task: Task, lr: float) -> float:
    """One trial; returns the validation accuracy of the last epoch."""
    transform = transforms.Compose(
        [transforms.ToTensor(), transforms.Normalize(recipe.MEAN, recipe.STD)]
    )
    image_datasets = {
        x: datasets.ImageFolder(str(task.data / x), transform) for x in ("train", "val")
    }
    dataloaders = {
        x: DataLoader(
            image_datasets[x], batch_size=recipe.BATCH, shuffle=x == "train", num_workers=WORKERS
        )
        for x in ("train", "val")
    }
    backbone = plain_network()
    model = backbone.model
    frozen, trained = frozen_and_trained(backbone, task.work)
    for param in frozen:
        param.requires_grad = False
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=recipe.WEIGHT_DECAY)
    steps = recipe.EPOCHS * len(dataloaders["train"])
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    accuracy = 0.0
    for _ in range(recipe.EPOCHS):
        for phase in ("train", "val"):
            model.train(phase == "train")
            running_loss, running_corrects = 0.0, 0
            for inputs, labels in dataloaders[phase]:
                optimizer.zero_grad()
                with torch.set_grad_enabled(phase == "train"):
                    outputs = model(inputs)
                    _, preds = torch.max(outputs, 1)
                    loss = criterion(outputs, labels)
                    if phase == "train":
                        loss.backward()
                        optimizer.step()
                        scheduler.step()
                running_loss += loss.item() * inputs.size(0)
                running_corrects += int(torch.sum(preds == labels.data))
            accuracy = running_corrects / len(image_datasets[phase])
    return accuracy


if __name__ == "__main__":
    task = task_from(parser().parse_args())
    measure(task, lambda: [train(task, lr) for lr in task.rates()], workers=WORKERS)
