"""How does one trial run? Training yields one EpochResult per epoch; what to do with it is the caller's.

    fit = Training(spec, resolve_device("cpu"))
    for epoch in fit:
        print(epoch.val_accuracy)
    result = fit.finish(test=True)

Knows neither Optuna nor MLflow, and never the name of a strategy: a row of scales is all it applies.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from harness.audit import Audit
from harness.backbone import Backbone, build
from harness.data import Examples, load_target, read_examples, split_indices
from harness.measure import Clock, Device
from harness.spec import (
    EpochResult,
    Predictions,
    TrialResult,
    TrialSpec,
    derive_seed,
)
from harness.transfer import Scales

EVAL_BATCH = 256


class Diverged(Exception):
    """The training loss is not finite."""


@dataclass(frozen=True)
class Schedule:
    """Share of the peak rate at each step: linear warm-up, then cosine to zero (Loshchilov & Hutter 2017).

    A group warms up from the step in which it is unfrozen, because its Adam state starts empty.
    """

    steps: int
    warmup_steps: int

    def factor(self, step: int, born: int) -> float:
        """In (0, 1] for the `step`-th step (from 0) of a group unfrozen before step `born`."""
        warm = min(1.0, (step - born + 1) / max(1, self.warmup_steps))
        return warm * 0.5 * (1 + math.cos(math.pi * step / self.steps))


class GroupedOptimizer:
    """A torch optimiser whose learning rates follow the layer groups.

    All groups are in it from the start. A frozen group has no gradients (None, not zero), so its
    parameters, moments and weight decay rest.

    Args:
        backbone: the model and its groups.
        spec: optimiser, peak rate and weight decay.
        schedule: share of the peak rate by step.
    """

    def __init__(self, backbone: Backbone, spec: TrialSpec, schedule: Schedule) -> None:
        self._backbone, self._schedule, self._lr = backbone, schedule, spec.lr
        self._scales: Scales = ()
        self._born: dict[int, int] = {}
        entries = []
        for g, group in enumerate(backbone.groups):
            plain = {
                n: p
                for n, p in group.parameters.items()
                if p.ndim <= 1 or n in backbone.no_decay or n.endswith(".bias")
            }
            decayed = [p for n, p in group.parameters.items() if n not in plain]
            for tensors, decay in ((decayed, spec.weight_decay), (list(plain.values()), 0.0)):
                if tensors:
                    entries.append({"params": tensors, "weight_decay": decay, "group": g})
        if spec.optimizer == "adamw":
            self._torch: torch.optim.Optimizer = torch.optim.AdamW(entries, lr=spec.lr, fused=True)
        else:
            self._torch = torch.optim.SGD(entries, lr=spec.lr, momentum=0.9, fused=True)

    def begin_epoch(self, scales: Scales, step: int) -> None:
        """Freeze and unfreeze by the epoch's scales; call before its first step."""
        self._torch.zero_grad(set_to_none=True)
        self._scales = scales
        for g, (group, scale) in enumerate(zip(self._backbone.groups, scales, strict=True)):
            for parameter in group.parameters.values():
                parameter.requires_grad_(scale is not None)
            if scale is None:
                self._born.pop(g, None)
            else:
                self._born.setdefault(g, step)
        self._backbone.train_mode(self._born)

    def rate(self, step: int) -> list[float]:
        """Learning rate of a group with scale 1 at this step, per group."""
        return [
            self._lr * self._schedule.factor(step, self._born.get(g, step))
            for g in range(len(self._scales))
        ]

    def step(self, loss: torch.Tensor, step: int) -> None:
        """One update from a scalar loss."""
        rate = self.rate(step)
        for entry in self._torch.param_groups:
            scale = self._scales[entry["group"]]
            entry["lr"] = 0.0 if scale is None else scale * rate[entry["group"]]
        self._torch.zero_grad(set_to_none=True)
        loss.backward()
        self._torch.step()

    def applied(self) -> dict[int, set[float]]:
        """Group -> the learning rates that its entries have now."""
        found: dict[int, set[float]] = {}
        for entry in self._torch.param_groups:
            found.setdefault(entry["group"], set()).add(float(entry["lr"]))
        return found


def batches(count: int, size: int, generator: torch.Generator) -> list[torch.Tensor]:
    """Shuffled positions 0..count-1 in batches of `size`; a last batch of one joins the one before,
    because batch norm cannot train on a single image."""
    parts = list(torch.randperm(count, generator=generator).split(size))
    if len(parts) > 1 and len(parts[-1]) == 1:
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts


class Training:
    """One trial from its spec. Iterate it for its epochs, then call `finish`.

    Args:
        spec: everything that decides the run.
        device: where to compute.

    Raises:
        UserError: if target, backbone or source are not to be had.
    """

    def __init__(self, spec: TrialSpec, device: Device) -> None:
        self.spec, self.device = spec, device
        self._started = time.perf_counter()
        device.reset_peak()
        target = load_target(spec.target)
        self._split = split_indices(target, spec)
        self._backbone = build(
            spec.backbone, spec.source, len(target.classes), spec.seed, device.torch_device
        )
        self._size = spec.resolution or self._backbone.resolution
        shape = (1, 3, 1, 1)
        self._mean = torch.tensor(self._backbone.mean, device=device.torch_device).view(shape) * 255
        self._std = torch.tensor(self._backbone.std, device=device.torch_device).view(shape) * 255
        self._audit = Audit(self._backbone.groups)
        self._train_seconds: float | None = None
        self._scales: Scales = ()

    def __iter__(self) -> Iterator[EpochResult]:
        """Train; one result per epoch. The clock stands still while the caller has it.

        Raises:
            Diverged: after an epoch whose loss is not finite.
            AuditFailed: if frozen tensors moved or a learning rate is not the strategy's.
        """
        spec, train, val = self.spec, self._read(self._split.train), self._read(self._split.val)
        generator = torch.Generator().manual_seed(derive_seed(spec.seed, "batches"))
        per_epoch = len(batches(len(train.labels), spec.batch_size, torch.Generator()))
        steps = per_epoch * spec.epochs
        schedule = Schedule(steps, round(spec.warmup * steps))
        optimizer = GroupedOptimizer(self._backbone, spec, schedule)
        clock = Clock(self.device.synchronize)
        for epoch in range(spec.epochs):
            self._scales = spec.strategy.lr_scales(len(self._backbone.groups), epoch)
            with clock.pause():
                self._audit.begin_epoch(self._scales)
            step = epoch * per_epoch
            optimizer.begin_epoch(self._scales, step)
            total = torch.zeros((), device=self.device.torch_device)
            for rows in batches(len(train.labels), spec.batch_size, generator):
                loss = self._loss(train, rows)
                optimizer.step(loss, step)
                total += loss.detach() * len(rows)
                step += 1
            self._train_seconds = clock.seconds
            with clock.pause():
                self._audit.check_rates(optimizer.applied(), self._scales, optimizer.rate(step - 1))
                yield self._judge(epoch, float(total) / len(train.labels), val)

    def _judge(self, epoch: int, train_loss: float, val: Examples) -> EpochResult:
        val_loss, val_accuracy = score(self._predict(val), val.labels)
        for name, loss in (("training", train_loss), ("validation", val_loss)):
            if not math.isfinite(loss):
                raise Diverged(f"{name} loss {loss} in epoch {epoch}")
        assert self._train_seconds is not None
        return EpochResult(epoch, train_loss, val_loss, val_accuracy, self._train_seconds)

    def finish(self, test: bool) -> TrialResult:
        """Audit, measurements and, if asked, the one look at the test images.

        Raises:
            AuditFailed: if a frozen group changed or a trained one did not move.
        """
        self._audit.finish()
        metrics = {"trainable_share": self._trainable_share(), **self.device.peaks()}
        if self._train_seconds is not None:
            metrics["train_seconds"] = self._train_seconds
        predictions = None
        if test:
            examples = self._read(self._split.test)
            log_p = self._predict(examples)
            metrics["test_loss"], metrics["test_accuracy"] = score(log_p, examples.labels)
            predictions = Predictions(
                example=examples.index,
                label=examples.labels.numpy(),
                predicted=log_p.argmax(1).numpy(),
                probability=log_p.gather(1, examples.labels[:, None])[:, 0].exp().numpy(),
            )
        metrics["total_seconds"] = time.perf_counter() - self._started
        return TrialResult("complete", metrics, predictions=predictions)

    def _read(self, part: np.ndarray) -> Examples:
        return read_examples(
            self.spec.target, tuple(part.tolist()), self._size, self._backbone.interpolation
        )

    def _input(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 (n, 3, s, s) -> normalised float on the device, channels last."""
        moved = images.to(self.device.torch_device, non_blocking=True)
        normalised = (moved.float() - self._mean) / self._std
        return normalised.contiguous(memory_format=torch.channels_last)

    def _loss(self, train: Examples, rows: torch.Tensor) -> torch.Tensor:
        logits = self._backbone.model(self._input(train.images[rows]))
        labels = train.labels[rows].to(self.device.torch_device)
        return F.cross_entropy(logits, labels, label_smoothing=self.spec.label_smoothing)

    def _predict(self, examples: Examples) -> torch.Tensor:
        """Log-probabilities (n, classes) on the CPU, from the model in eval()."""
        model = self._backbone.model.eval()
        with torch.inference_mode():
            parts = [model(self._input(x)).float() for x in examples.images.split(EVAL_BATCH)]
            return torch.cat(parts).log_softmax(1).cpu()

    def _trainable_share(self) -> float:
        """Share of all parameters that the last epoch trained."""
        counts = [sum(p.numel() for p in g.parameters.values()) for g in self._backbone.groups]
        trained = sum(c for c, s in zip(counts, self._scales, strict=True) if s is not None)
        return trained / sum(counts)


def score(log_probabilities: torch.Tensor, labels: torch.Tensor) -> tuple[float, float]:
    """Mean cross-entropy in nats and accuracy of (n, classes) log-probabilities against (n,) labels."""
    loss = F.nll_loss(log_probabilities, labels)
    return float(loss), float((log_probabilities.argmax(1) == labels).double().mean())
