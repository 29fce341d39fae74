"""One full fine-tuning trial with the parts of timm that its train script is made of, on an accelerator.

The script itself, train.py of https://github.com/huggingface/pytorch-image-models, is not in timm's package.
As in the script: loaders whose prefetcher copies and normalises the next batch on a stream of its own, an
incomplete last batch is left out, no decay for norms and biases, channels last, autocast (for bfloat16 the
script scales no losses), and the loss is read after each update. Logs, checkpoints and augmentation are off,
and the schedule is that of the trial. Loader workers: one per core, where the script has four by default.
"""

from __future__ import annotations

import os
from pathlib import Path

import timm
import torch
from timm.data import create_loader
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import AverageMeter, accuracy
from torch import nn
from torchvision import datasets

from harness.core.spec import TrialSpec
from harness.data import load_target, split_indices


def loader(spec: TrialSpec, part, train: bool, device: torch.device):
    """A loader of some images of the trial's target."""
    images = datasets.ImageFolder(str(Path(spec.target.removeprefix("folder:"))))
    images.samples = [images.samples[i] for i in part]
    return create_loader(
        images,
        input_size=(3, spec.resolution, spec.resolution),
        batch_size=spec.batch_size,
        is_training=train,
        no_aug=True,
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        crop_pct=1.0,
        num_workers=os.cpu_count() or 1,
        pin_memory=device.type != "cpu",
        device=device,
    )


def train(spec: TrialSpec, accelerator: str) -> None:
    """Train on the images of the trial's own split.

    Args:
        spec: a trial with a `folder:` target.
        accelerator: type of the device, "cuda" for instance.
    """
    device = torch.device(accelerator)
    target, split = load_target(spec.target), split_indices(load_target(spec.target), spec)
    training = loader(spec, split.train, True, device)
    validation = loader(spec, split.val, False, device)
    model = timm.create_model(spec.backbone, num_classes=len(target.classes))
    model = model.to(device, memory_format=torch.channels_last)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=spec.lr, weight_decay=spec.weight_decay)
    schedule, epochs = create_scheduler_v2(
        optimizer,
        num_epochs=spec.epochs,
        step_on_epochs=False,
        updates_per_epoch=len(training),
    )
    if spec.compile:
        model = torch.compile(model)
    criterion = nn.CrossEntropyLoss().to(device)
    updates = 0

    def forward(images, labels):
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, spec.precision == "bfloat16"):
            logits = model(images)
            return logits, criterion(logits, labels)

    for epoch in range(epochs):
        model.train()
        losses = AverageMeter()
        for images, labels in training:
            _, loss = forward(images, labels)
            loss.backward()
            optimizer.step()
            losses.update(loss.item(), len(images))
            updates += 1
            optimizer.zero_grad()
            schedule.step_update(num_updates=updates, metric=losses.avg)
        schedule.step(epoch + 1, validate(model, validation, forward))


@torch.no_grad()
def validate(model: nn.Module, images, forward) -> float:
    """Accuracy in percent."""
    model.eval()
    losses, shares = AverageMeter(), AverageMeter()
    for batch, labels in images:
        logits, loss = forward(batch, labels)
        losses.update(loss.item(), len(batch))
        shares.update(accuracy(logits, labels)[0].item(), len(batch))
    return shares.avg
