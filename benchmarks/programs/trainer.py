"""Hugging Face's Trainer on an `imagefolder` data set, as in its image classification guide.

As in the guide: transforms set on the data set, remove_unused_columns=False, evaluation after each epoch,
frozen parameters with requires_grad = False, and no loader workers, which is the default. Saving and
reporting are switched off to save time. Each process creates the Arrow tables of the data set in a temporary
folder.

https://huggingface.co/docs/transformers/tasks/image_classification
"""

from __future__ import annotations

import tempfile

import numpy as np
from datasets import load_dataset
from datasets.utils.logging import disable_progress_bar
from torch import nn
from torchvision import transforms
from transformers import DefaultDataCollator, Trainer, TrainingArguments

from benchmarks import recipe
from benchmarks.programs.common import (
    Task,
    frozen_and_trained,
    measure,
    parser,
    plain_network,
    task_from,
)


class Classifier(nn.Module):
    """The network with the inputs and outputs that Trainer requires."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values, labels=None):
        logits = self.model(pixel_values)
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def train(task: Task, lr: float, folder: str) -> float:
    """One trial; returns the validation accuracy of the last epoch."""
    transform = transforms.Compose(
        [transforms.ToTensor(), transforms.Normalize(recipe.MEAN, recipe.STD)]
    )

    def transformed(examples):
        pixels = [transform(image.convert("RGB")) for image in examples["image"]]
        return {"pixel_values": pixels, "label": examples["label"]}

    images = load_dataset(
        "imagefolder",
        data_files={part: str(task.data / part / "**") for part in ("train", "val")},
        cache_dir=folder,
    ).with_transform(transformed)
    backbone = plain_network()
    for parameter in frozen_and_trained(backbone, task.work)[0]:
        parameter.requires_grad = False
    trainer = Trainer(
        model=Classifier(backbone.model),
        args=TrainingArguments(
            output_dir=folder,
            remove_unused_columns=False,
            eval_strategy="epoch",
            save_strategy="no",
            learning_rate=lr,
            weight_decay=recipe.WEIGHT_DECAY,
            lr_scheduler_type="cosine",
            per_device_train_batch_size=recipe.BATCH,
            per_device_eval_batch_size=recipe.BATCH,
            num_train_epochs=recipe.EPOCHS,
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        ),
        data_collator=DefaultDataCollator(),
        train_dataset=images["train"],
        eval_dataset=images["val"],
        compute_metrics=lambda p: {
            "accuracy": float(np.mean(np.argmax(p.predictions, axis=1) == p.label_ids))
        },
    )
    trainer.train()
    found = [
        entry["eval_accuracy"] for entry in trainer.state.log_history if "eval_accuracy" in entry
    ]
    return found[-1]


def run(task: Task) -> list[float]:
    """All trials; the first creates the Arrow tables."""
    with tempfile.TemporaryDirectory() as folder:
        return [train(task, lr, folder) for lr in task.rates()]


if __name__ == "__main__":
    disable_progress_bar()
    task = task_from(parser().parse_args())
    measure(task, lambda: run(task), workers=0)
