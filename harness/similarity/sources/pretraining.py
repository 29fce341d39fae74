"""Train a source: one loop for all objectives, which returns a state dict and its scores."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from harness.backbones import build
from harness.core.errors import UserError
from harness.core.spec import derive_seed
from harness.data import Examples, SplitIndices, Target, load_target, read_examples
from harness.data.cached import Cache
from harness.data.groups import held_out
from harness.similarity.sources.objectives import OBJECTIVES, Objective, check_objective
from harness.similarity.sources.spec import SourceSpec
from harness.training.device import Clock, Device
from harness.training.loop import Diverged
from harness.training.optimizer import Schedule, batches

WARMUP = 0.1
"""Share of the steps in which the learning rate rises."""


@dataclass(frozen=True)
class Trained:
    """One source model.

    Attributes:
        state: state dict on the CPU, including the head.
        classes: number of classes of its data.
        images, val_images: numbers of its training and validation examples.
        metrics: measured metrics, by their names in MLflow.
    """

    state: dict[str, torch.Tensor]
    classes: int
    images: int
    val_images: int
    metrics: Mapping[str, float]


def split_source(target: Target, spec: SourceSpec, number: int) -> SplitIndices:
    """The training and validation examples of model `number`, stratified and drawn by its seed; there are no
    test examples.

    `shots` and `val_shots` are upper bounds per class. Official test examples are left out, an official
    validation set is used as it is, and all examples of a group are in the same part.

    Raises:
        UserError: naming the class that is too small.
    """
    name = target.identity if ":" in spec.data else spec.data  # whatever the path of the files
    seed = derive_seed("source split", name, spec.seed(number))
    rng, is_val, noun = np.random.default_rng(seed), target.official_val, target.medium.noun
    own = np.ones(len(target.labels), np.bool_)
    if target.official_test is not None:
        own &= ~target.official_test
    if target.groups is not None and is_val is None:
        is_val = held_out(target, own, 10, 1, seed)
    parts: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for label, class_name in enumerate(target.classes):
        members = rng.permutation(np.flatnonzero((target.labels == label) & own))
        if is_val is None:
            wanted = spec.val_shots or max(1, round(0.1 * len(members)))
            if wanted + (spec.shots or 1) > len(members):
                wanted = min(wanted, len(members) // 2)
            val, train = members[:wanted], members[wanted:]
        else:
            val, train = members[is_val[members]][: spec.val_shots], members[~is_val[members]]
        if not len(train) or (is_val is None and not len(val)):
            raise UserError(
                f"source {spec.name}: class {class_name!r} of {spec.data} has {len(members)} {noun}s, too "
                f"few for 1 validation + 1 training {noun}"
            )
        parts[0].append(train[: spec.shots])
        parts[1].append(val)
    train, val_rows = (np.sort(np.concatenate(part)).astype(np.int64) for part in parts)
    return SplitIndices(train, val_rows, np.array([], dtype=np.int64))


def pretrain(spec: SourceSpec, number: int, device: Device, cache: Cache = Cache()) -> Trained:
    """Train one model.

    Args:
        spec: its source.
        number: number of the model.
        device: where to compute.
        cache: where decoded examples are stored.

    Raises:
        UserError: if the data or the backbone are not available.
        Diverged: if a loss is not finite.
    """
    target = load_target(spec.data)
    split, seed = split_source(target, spec, number), spec.seed(number)
    kind = OBJECTIVES[spec.objective]
    outputs, place = kind.outputs or len(target.classes), device.torch_device
    backbone = build(spec.backbone, "scratch", outputs, seed, place, spec.resolution)
    backbone = replace(backbone, input=target.medium.form(backbone.input))
    check_objective(spec.objective, backbone.input)
    train, val = (
        read_examples(spec.data, tuple(part.tolist()), backbone.input, cache)
        for part in (split.train, split.val)
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "objective"))
        noise = torch.Generator().manual_seed(derive_seed(seed, "noise"))
        objective = kind(backbone, noise)
    clock = Clock(device.synchronize)
    losses = _fit(objective, train, spec, seed, device)
    seconds = clock.seconds
    metrics = {**losses, **_validate(objective, val, spec, device), "train_seconds": seconds}
    state = {n: t.detach().cpu().clone() for n, t in backbone.model.state_dict().items()}
    return Trained(state, len(target.classes), len(train), len(val), metrics)


def _fit(
    objective: Objective, train: Examples, spec: SourceSpec, seed: int, device: Device
) -> dict[str, float]:
    """Run all steps and return the last loss of each player."""
    optimizers = [_optimizer(p.module, p.betas, spec) for p in objective.players]
    for player in objective.players:
        player.module.train()
    schedule = Schedule(spec.steps, round(WARMUP * spec.steps))
    values = [math.nan] * len(optimizers)
    order = torch.Generator().manual_seed(derive_seed(seed, "batches"))
    size = min(spec.batch_size, len(train))
    epochs = (batches(len(train), size, order) for _ in itertools.count())
    every = itertools.chain.from_iterable(epochs)
    for step, drawn in enumerate(itertools.islice(every, spec.steps)):
        rows, labels = (x[drawn].to(device.torch_device) for x in (train.values, train.labels))
        for i, (player, optimizer) in enumerate(zip(objective.players, optimizers, strict=True)):
            for entry in optimizer.param_groups:
                entry["lr"] = spec.lr * schedule.factor(step, 0)
            optimizer.zero_grad(set_to_none=True)
            loss = player.loss(rows, labels)
            loss.backward()
            optimizer.step()
            values[i] = float(loss.detach())
        if not all(map(math.isfinite, values)):
            raise Diverged(f"loss {values} in step {step}")
    names = ("train_loss",) if len(values) == 1 else ("train_loss", "train_loss.generator")
    return dict(zip(names, values, strict=True)) if spec.steps else {}


def _optimizer(
    module: nn.Module, betas: tuple[float, float], spec: SourceSpec
) -> torch.optim.Optimizer:
    parameters = list(module.parameters())
    return torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": spec.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=spec.lr,
        betas=betas,
    )


@torch.inference_mode()
def _validate(
    objective: Objective, val: Examples, spec: SourceSpec, device: Device
) -> dict[str, float]:
    for player in objective.players:
        player.module.eval()
    total: dict[str, float] = {}
    for start in range(0, len(val), 64):
        batch = slice(start, start + 64)
        rows, labels = (x[batch].to(device.torch_device) for x in (val.values, val.labels))
        for name, value in objective.scores(rows, labels).items():
            total[name] = total.get(name, 0.0) + value
    return {name: value / len(val) for name, value in total.items()}
