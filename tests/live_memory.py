"""Memory that real tensors take in a plain training loop, which forecasts must equal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch.nn import functional as F

from harness.backbones import build
from harness.core.spec import TrialSpec
from harness.data import load_target
from harness.training.device import MIB
from harness.training.forecast.storages import StorageMeter

Inputs = Callable[[int], torch.Tensor]
"""What the network gets for so many examples."""


def live_peak(run: Callable[[], object], held: Iterable[torch.Tensor] = ()) -> float:
    """Highest sum of the sizes of live tensors, in MiB, while `run()` computes with real ones; those `held`
    were made before."""
    meter = StorageMeter()
    with meter:
        meter.follow(held)
        run()
    return sum(meter.peak().values()) / MIB


def inputs_of(trial: TrialSpec) -> Inputs:
    """Random examples of a target of sounds or texts."""
    backbone = build(trial.backbone, "scratch", 2, 0, resolution=trial.resolution)
    form = load_target(trial.target).medium.form(backbone.input)
    prepare = form.preparation(torch.device("cpu"), backbone.layout)
    rows = form.random(trial.batch_size, torch.Generator().manual_seed(0))
    # Not sliced: the meter would count `rows` as well.
    return lambda _: prepare(rows.clone() if rows.is_floating_point() else rows)


def loop_peaks(
    trial: TrialSpec, inputs: Inputs, classes: int, tested: int = 0
) -> tuple[float, float]:
    """Peaks of training and of evaluation over all epochs, in MiB.

    Args:
        trial: what is trained.
        inputs: of the network.
        classes: how many there are.
        tested: number of examples of an evaluation; 0 leaves it out.
    """
    rank = trial.strategy.lora_rank
    choice: dict[str, Any] = {"head": trial.head, "depth": trial.depth, "lora_rank": rank}
    backbone = build(trial.backbone, "scratch", classes, 0, resolution=trial.resolution, **choice)
    model, tuned = backbone.model, backbone.tuned_names(trial.strategy.tuned)
    learn = [p for n, p in model.named_parameters() if n in tuned]
    optimizer: torch.optim.Optimizer = (
        torch.optim.AdamW(learn, fused=True)
        if trial.optimizer == "adamw"
        else torch.optim.SGD(learn, lr=0.01, momentum=0.9, fused=True)
    )
    anchors = [p.detach().clone() for n, p in model.named_parameters() if "fc" not in n]
    held_anchors = anchors if trial.strategy.l2_sp else []
    low_precision = trial.precision == "bfloat16"

    def logits(count: int) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, low_precision):
            out: torch.Tensor = model(inputs(count))
        return out.float()

    def step() -> None:
        labels = torch.arange(trial.batch_size) % classes
        F.cross_entropy(logits(trial.batch_size), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    def evaluate() -> None:
        model.eval()
        with torch.inference_mode():
            logits(tested)

    def held() -> Iterator[torch.Tensor]:
        yield from [*model.parameters(), *model.buffers(), *held_anchors]
        yield from (p.grad for p in model.parameters() if p.grad is not None)
        for state in optimizer.state.values():
            yield from (v for v in state.values() if isinstance(v, torch.Tensor))

    train, evaluation = [], []
    for epoch in range(trial.epochs):
        optimizer.zero_grad()
        scales = trial.strategy.lr_scales(len(backbone.groups), epoch)
        for group, scale in zip(backbone.groups, scales, strict=True):
            for name, parameter in group.parameters.items():
                parameter.requires_grad_(scale is not None and name in tuned)
        backbone.train_mode(g for g, scale in enumerate(scales) if scale is not None)
        if trial.strategy.classifier == "head":
            train += [live_peak(step, held()) for _ in range(2)]
        if tested:
            evaluation.append(live_peak(evaluate, held()))
    most = max(evaluation, default=0.0)
    return max(train, default=most), most
