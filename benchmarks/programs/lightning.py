"""Lightning, with freezing as in its transfer learning guide.

As in the guide, the frozen part is put in eval() and runs without gradients. The number of loader workers is
that of its speed guide: one per core, persistent. Logger, checkpoints and progress bar are switched off to
save time.

https://lightning.ai/docs/pytorch/stable/advanced/transfer_learning.html
https://lightning.ai/docs/pytorch/stable/advanced/speed.html
"""

from __future__ import annotations

import os
import warnings

import lightning as L
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from benchmarks import recipe
from benchmarks.programs.common import (
    Task,
    frozen_and_trained,
    frozen_modules_in_eval,
    measure,
    parser,
    plain_network,
    task_from,
)

WORKERS = os.cpu_count() or 1


class Classifier(L.LightningModule):
    """The network; Lightning keeps the train() and eval() that its parts have when fit() starts."""

    def __init__(self, task: Task, lr: float, steps: int) -> None:
        super().__init__()
        backbone = plain_network()
        frozen, self.trained = frozen_and_trained(backbone, task.work)
        for parameter in frozen:
            parameter.requires_grad = False
        frozen_modules_in_eval(backbone, task.work)
        self.model, self.lr, self.steps = backbone.model, lr, steps
        self.hits = self.seen = 0

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.cross_entropy(self.model(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        logits = self.model(x)
        self.log("val_loss", F.cross_entropy(logits, y))
        self.log("val_accuracy", (logits.argmax(1) == y).float().mean())

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.trained, lr=self.lr, weight_decay=recipe.WEIGHT_DECAY)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


def train(task: Task, lr: float) -> float:
    """One trial; returns the validation accuracy of the last epoch."""
    transform = transforms.Compose(
        [transforms.ToTensor(), transforms.Normalize(recipe.MEAN, recipe.STD)]
    )
    loaders = [
        DataLoader(
            datasets.ImageFolder(str(task.data / part), transform),
            batch_size=recipe.BATCH,
            shuffle=part == "train",
            num_workers=WORKERS,
            persistent_workers=True,
        )
        for part in ("train", "val")
    ]
    model = Classifier(task, lr, recipe.EPOCHS * len(loaders[0]))
    trainer = L.Trainer(
        max_epochs=recipe.EPOCHS,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, *loaders)
    return float(trainer.callback_metrics["val_accuracy"])


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    task = task_from(parser().parse_args())
    measure(task, lambda: [train(task, lr) for lr in task.rates()], workers=WORKERS)
