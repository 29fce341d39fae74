"""fastai's Learner with a splitter, freeze() and fit().

As documented, freeze() continues to train the batch norms of the frozen part (train_bn=True, the default), so
that a linear probe needs a backward pass through the whole network. The number of loader workers is the
default, one per core. To take the same steps as the others, it uses torch's AdamW through OptimWrapper and a
cosine through ParamScheduler.

https://docs.fast.ai/learner.html, https://docs.fast.ai/optimizer.html
"""

from __future__ import annotations

from functools import partial

import torch
from fastai.callback.schedule import ParamScheduler, SchedCos
from fastai.data.transforms import Normalize
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy
from fastai.optimizer import OptimWrapper
from fastai.torch_core import default_device, defaults
from fastai.vision.data import ImageDataLoaders

from benchmarks import recipe
from benchmarks.programs.common import (
    Task,
    frozen_and_trained,
    measure,
    parser,
    plain_network,
    task_from,
)


def train(task: Task, lr: float) -> float:
    """One trial; returns the validation accuracy of the last epoch."""
    dls = ImageDataLoaders.from_folder(
        task.data,
        train="train",
        valid="val",
        bs=recipe.BATCH,
        batch_tfms=Normalize.from_stats(recipe.MEAN, recipe.STD),
    )
    backbone = plain_network()
    parts = [part for part in frozen_and_trained(backbone, task.work) if part]
    learn = Learner(
        dls,
        backbone.model,
        loss_func=CrossEntropyLossFlat(),
        opt_func=partial(OptimWrapper, opt=torch.optim.AdamW),
        splitter=lambda _: parts,
        metrics=accuracy,
    )
    if len(parts) > 1:
        learn.freeze()
    with learn.no_bar():
        cosine = ParamScheduler({"lr": SchedCos(lr, 0.0)})
        learn.fit(recipe.EPOCHS, lr, wd=recipe.WEIGHT_DECAY, cbs=cosine)
    return float(learn.recorder.values[-1][-1])


if __name__ == "__main__":
    default_device(False)
    task = task_from(parser().parse_args())
    measure(task, lambda: [train(task, lr) for lr in task.rates()], workers=defaults.cpus)
