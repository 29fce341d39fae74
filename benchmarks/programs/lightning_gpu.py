"""One full fine-tuning trial with Lightning on an accelerator, as its speed guide advises.

Loader workers: one per core, persistent, with pinned memory. Logger, checkpoints and progress bar are off.

https://lightning.ai/docs/pytorch/stable/advanced/speed.html
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import lightning as L
import timm
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset
from torchvision import datasets, transforms

from harness.core.spec import TrialSpec
from harness.data import load_target, split_indices


class Classifier(L.LightningModule):
    """The same network, optimiser and schedule as in the trial."""

    def __init__(self, spec: TrialSpec, classes: int, steps: int) -> None:
        super().__init__()
        model = timm.create_model(spec.backbone, num_classes=classes)
        model = model.to(memory_format=torch.channels_last)
        self.model = torch.compile(model) if spec.compile else model
        self.lr, self.weight_decay, self.steps = spec.lr, spec.weight_decay, steps

    def training_step(self, batch, batch_idx):
        images, labels = batch
        return F.cross_entropy(self.model(images), labels)

    def validation_step(self, batch, batch_idx):
        images, labels = batch
        self.log("val_loss", F.cross_entropy(self.model(images), labels))

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), self.lr, weight_decay=self.weight_decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


def train(spec: TrialSpec, accelerator: str) -> None:
    """Train on the images of the trial's own split.

    Args:
        spec: a trial with a `folder:` target.
        accelerator: type of the device, "cuda" for instance.
    """
    warnings.filterwarnings("ignore")
    target, split = load_target(spec.target), split_indices(load_target(spec.target), spec)
    transform = transforms.Compose(
        [transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (0.5,) * 3)]
    )
    images = datasets.ImageFolder(str(Path(spec.target.removeprefix("folder:"))), transform)
    loaders = [
        DataLoader(
            Subset(images, part.tolist()),
            batch_size=spec.batch_size,
            shuffle=train,
            num_workers=os.cpu_count() or 1,
            persistent_workers=True,
            pin_memory=accelerator != "cpu",
        )
        for part, train in ((split.train, True), (split.val, False))
    ]
    trainer = L.Trainer(
        max_epochs=spec.epochs,
        accelerator=accelerator,
        devices=1,
        precision="bf16-mixed" if spec.precision == "bfloat16" else "32-true",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Classifier(spec, len(target.classes), spec.epochs * len(loaders[0])), *loaders)
