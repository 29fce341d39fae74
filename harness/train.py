"""How does one trial run? Training yields one EpochResult per epoch; what to do with it is the caller's.

    fit = start(spec, resolve_device("cpu"))
    for epoch in fit:
        print(epoch.val_accuracy)
    result = fit.finish(test=True)

Knows neither Optuna nor MLflow, and never the name of a strategy: a row of scales is all it applies.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from math import inf, isfinite
from statistics import median
from typing import final

import numpy as np
import torch
from torch.nn import functional as F

from harness.audit import Audit
from harness.backbone import Backbone, build
from harness.data import (
    Examples,
    augmentation,
    load_target,
    read_examples,
    seeded_view,
    shifted,
    split_indices,
)
from harness.features import Readout, fit_readout
from harness.measure import Clock, Device
from harness.network import Feed, Network
from harness.optimizer import GroupedOptimizer, Schedule, batches
from harness.rows import Cache
from harness.spec import EpochResult, Predictions, TrialResult, TrialSpec, derive_seed
from harness.transfer import Scales


class Diverged(Exception):
    """The training loss is not finite."""


class Seconds:
    """What training took: by the clock, and for outputs of frozen groups that another trial may have made.

    Attributes:
        counted: by the clock, which stands still while outputs of frozen groups are made or looked up;
            None before the first epoch has ended.
    """

    def __init__(self) -> None:
        self.counted: float | None = None
        self._paid = 0.0
        self._cold: dict[tuple[str, str], float] = {}

    def add(self, part: str, feed: Feed) -> None:
        """Count what feeding a part of the split took; the same outputs again cost nothing."""
        self._paid += feed.paid_seconds
        self._cold[part, feed.key] = feed.cold_seconds

    @property
    def cold(self) -> float:
        """As if nothing had been kept before this trial."""
        return (self.counted or 0.0) + sum(self._cold.values())

    @property
    def marginal(self) -> float:
        """What this trial itself spent."""
        return (self.counted or 0.0) + self._paid


def start(spec: TrialSpec, device: Device, cache: Cache = Cache()) -> Fit:
    """One trial, ready to be iterated: gradient steps, or a readout on frozen features."""
    kind = Training if spec.strategy.readout == "head" else FeatureTraining
    return kind(spec, device, cache)


class Fit(ABC):
    """One trial from its spec. Iterate it for its epochs, then call `finish`.

    Args:
        spec: everything that decides the run.
        device: where to compute.
        cache: where decoded images and outputs of frozen groups are kept for other trials.

    Raises:
        UserError: if target, backbone or source are not to be had.
    """

    def __init__(self, spec: TrialSpec, device: Device, cache: Cache = Cache()) -> None:
        self.spec, self.device, self.cache = spec, device, cache
        self._started = time.perf_counter()
        device.reset_peak()
        target = load_target(spec.target)
        self._classes = len(target.classes)
        self._split = split_indices(target, spec)
        self._backbone = build(
            spec.backbone,
            spec.source,
            self._classes,
            spec.seed,
            device.torch_device,
            spec.resolution,
            spec.strategy.lora_rank,
        )
        self._network = Network(self._backbone, spec, device, cache)
        self._tuned = self._backbone.tuned_names(spec.strategy.tuned)
        self._audit: Audit | None = None
        self._seconds = Seconds()
        self._trained: set[int] = set()

    @property
    def backbone(self) -> Backbone:
        """The network as it is now; do not change it before `finish`."""
        return self._backbone

    @property
    def readout(self) -> Readout | None:
        """The fitted classifier on frozen features, where there is one."""
        return None

    @abstractmethod
    def __iter__(self) -> Iterator[EpochResult]:
        """Train; one result per epoch. The clock stands still while the caller has it."""

    @abstractmethod
    def _predict(self, examples: Examples) -> torch.Tensor:
        """Log-probabilities (n, classes) on the CPU."""

    def finish(self, test: bool) -> TrialResult:
        """Audit, measurements and, if asked, the one look at the test images.

        Raises:
            AuditFailed: if a frozen group changed or a trained one did not move.
        """
        if self._audit is not None:
            self._audit.finish()
        metrics = {**self._shares(), **self.device.peaks()}
        if self._seconds.counted is not None:
            metrics["train_seconds"] = self._seconds.cold
            metrics["marginal_seconds"] = self._seconds.marginal
        predictions = None
        if test:
            scores, predictions = self._test()
            metrics |= scores
        metrics["total_seconds"] = time.perf_counter() - self._started
        notes = {"prefix": self._network.prefix_in_words}
        return TrialResult("complete", metrics, predictions=predictions, notes=notes)

    def _test(self) -> tuple[dict[str, float], Predictions]:
        examples = self._read(self._split.test)
        log_p = self._predict(examples)
        loss, accuracy = score(log_p, examples.labels)
        metrics = {"test_loss": loss, "test_accuracy": accuracy}
        for name in self.spec.shift_names():
            moved = shifted(examples, name)
            metrics[f"test_accuracy.{name}"] = score(self._predict(moved), moved.labels)[1]
        predictions = Predictions(
            example=examples.index,
            label=examples.labels.numpy(),
            predicted=log_p.argmax(1).numpy(),
            probability=log_p.gather(1, examples.labels[:, None])[:, 0].exp().numpy(),
        )
        return metrics, predictions

    def _judge(self, epoch: int, train_loss: float, val: Examples) -> EpochResult:
        val_loss, val_accuracy = score(self._predict(val), val.labels)
        for name, loss in (("training", train_loss), ("validation", val_loss)):
            if not isfinite(loss):
                raise Diverged(f"{name} loss {loss} in epoch {epoch}")
        seconds = (self._seconds.cold, self._seconds.marginal)
        return EpochResult(epoch, train_loss, val_loss, val_accuracy, *seconds)

    def _shares(self) -> dict[str, float]:
        """Share of all parameters that were trained, and how deep: share of the groups above the stem
        side of the deepest trained one."""
        groups = self._backbone.groups
        every = sum(p.numel() for g in groups for p in g.parameters.values())
        trained = sum(
            p.numel()
            for g in self._trained
            for n, p in groups[g].parameters.items()
            if n in self._tuned
        )
        depth = (len(groups) - min(self._trained)) / len(groups) if self._trained else 0.0
        return {"trainable_share": trained / every, "trained_depth": depth}

    def _read(self, part: np.ndarray) -> Examples:
        return read_examples(
            self.spec.target,
            tuple(part.tolist()),
            self._network.size,
            self._backbone.input.interpolation,
            self.cache,
        )


@final
class Training(Fit):
    """Gradient steps on the groups that the strategy unfreezes."""

    def __iter__(self) -> Iterator[EpochResult]:
        """Train; one result per epoch. The clock stands still while the caller has it.

        Raises:
            Diverged: after an epoch whose loss is not finite.
            AuditFailed: if frozen tensors moved or a learning rate is not the strategy's.
        """
        spec, train, val = self.spec, self._read(self._split.train), self._read(self._split.val)
        count = len(train)
        order = torch.Generator().manual_seed(derive_seed(spec.seed, "batches"))
        variation = torch.Generator().manual_seed(derive_seed(spec.seed, "augment"))
        vary = augmentation(spec.augment, self._network.size, self._classes)
        per_epoch = len(batches(count, spec.batch_size, torch.Generator()))
        steps = per_epoch * spec.epochs
        schedule = Schedule(steps, round(spec.warmup * steps), spec.schedule)
        clock = Clock(self.device.synchronize)
        if spec.batch_norm == "reestimate":
            self._network.reestimate_statistics(train)
        with clock.pause():
            audit = Audit(self._backbone.groups, self._tuned)
            self._audit = audit
        optimizer = GroupedOptimizer(self._backbone, spec, schedule)
        for epoch in range(spec.epochs):
            scales = self._scales(epoch)
            with clock.pause():
                audit.begin_epoch(scales)
                self._network.freeze(scales, audit.frozen_digest)
                seen, varied = train, vary
                if spec.views is not None:
                    view = epoch % spec.views
                    seen = seeded_view(train, vary, view, spec.seed, self.cache)
                    varied = augmentation("none", self._network.size, self._classes)
                feed = self._network.feed(seen)
                self._seconds.add("train", feed)
            step = epoch * per_epoch
            optimizer.begin_epoch(scales, step)
            total = torch.zeros((), device=self.device.torch_device)
            for rows in batches(count, spec.batch_size, order):
                images, labels = varied(feed.values[rows], feed.labels[rows], variation)
                loss = self._network.loss(feed.run(images), labels)
                optimizer.step(loss, step)
                total += loss.detach() * len(rows)
                step += 1
            self._seconds.counted = clock.seconds
            with clock.pause():
                audit.check_rates(optimizer.applied(), scales, optimizer.rate(step - 1))
                yield self._judge(epoch, float(total) / count, val)

    def range_test(self, steps: int) -> Iterator[tuple[float, float]]:
        """Learning-rate range test (Smith 2017): one batch per step while the rate grows to spec.lr.

        Args:
            steps: at most this many; it ends early once the loss is four times the lowest one.

        Yields:
            (learning rate, loss in nats) per step; the scales are those of the first epoch.
        """
        train = self._read(self._split.train)
        order = torch.Generator().manual_seed(derive_seed(self.spec.seed, "batches"))
        optimizer = GroupedOptimizer(self._backbone, self.spec, Schedule(steps, 0, "range"))
        optimizer.begin_epoch(self._scales(0), 0)
        queue: list[torch.Tensor] = []
        feed, lowest = self._network.feed(train), inf
        for step in range(steps):
            queue = queue or list(batches(len(train), self.spec.batch_size, order))
            rows = queue.pop(0)
            loss = self._network.loss(feed.run(feed.values[rows]), feed.labels[rows])
            value = float(loss.detach())
            optimizer.step(loss, step)
            yield self.spec.lr * Schedule(steps, 0, "range").factor(step, 0), value
            lowest = min(lowest, value)
            if not isfinite(value) or value > 4 * lowest:
                return

    def estimate_seconds(self, steps: int = 4) -> float:
        """Cold-equivalent training seconds of the whole trial, from a few measured steps per row of scales.

        Args:
            steps: measured per distinct row; the first warms up and is left out.
        """
        spec, train = self.spec, self._read(self._split.train)
        count = len(train)
        order = batches(count, spec.batch_size, torch.Generator().manual_seed(0))
        queue = [order[i % len(order)] for i in range(steps)]
        few = train.part(torch.cat(queue).unique())
        optimizer = GroupedOptimizer(self._backbone, spec, Schedule(steps, 0))
        total, costs = 0.0, dict[Scales, float]()
        for epoch in range(spec.epochs):
            scales = self._scales(epoch)
            if scales not in costs:
                self._network.freeze(scales, lambda depth: f"first {depth} groups")
                feed = self._network.feed(few)
                total += feed.cold_seconds / len(few) * count
                optimizer.begin_epoch(scales, 0)
                spent = []
                for step, batch in enumerate(queue):
                    clock = Clock(self.device.synchronize)
                    rows = torch.arange(len(batch)) % len(few)
                    loss = self._network.loss(feed.run(feed.values[rows]), feed.labels[rows])
                    optimizer.step(loss, step)
                    spent.append(clock.seconds)
                costs[scales] = median(spent[1:])
            total += costs[scales] * len(order)
        return total

    def _scales(self, epoch: int) -> Scales:
        scales = self.spec.strategy.lr_scales(len(self._backbone.groups), epoch)
        self._trained |= {
            g
            for g, scale in enumerate(scales)
            if scale is not None and self._tuned & self._backbone.groups[g].parameters.keys()
        }
        return scales

    def _predict(self, examples: Examples) -> torch.Tensor:
        return self._network.log_probabilities(examples)


@final
class FeatureTraining(Fit):
    """Features of the frozen network, once, into scikit-learn; a single epoch without gradients."""

    _readout: Readout

    @property
    def readout(self) -> Readout:
        """The fitted classifier; there is none before the epoch."""
        return self._readout

    def __iter__(self) -> Iterator[EpochResult]:
        """Fit the readout; one result."""
        kind = self.spec.strategy.readout
        assert kind != "head"
        train, val = self._read(self._split.train), self._read(self._split.val)
        self._audit = Audit(self._backbone.groups, frozenset())
        scales = (None,) * len(self._backbone.groups)
        self._audit.begin_epoch(scales)
        self._network.freeze(scales, self._audit.frozen_digest)
        clock = Clock(self.device.synchronize)
        with clock.pause():
            # C or k is chosen on validation: its features are part of the fit.
            for name, part in (("train", train), ("val", val)):
                self._seconds.add(name, self._network.feed(part))
        parts = [(self._features(part), part.labels.numpy()) for part in (train, val)]
        self._readout = fit_readout(kind, parts[0], parts[1], self._classes)
        self._seconds.counted = clock.seconds
        with clock.pause():
            train_loss, _ = score(self._predict(train), train.labels)
            yield self._judge(0, train_loss, val)

    def _features(self, examples: Examples) -> np.ndarray:
        """(n, d) inputs of the head, from the network in eval()."""
        features: np.ndarray = self._network.features(examples).numpy()
        return features

    def _predict(self, examples: Examples) -> torch.Tensor:
        return torch.from_numpy(self._readout.log_probabilities(self._features(examples)))


def score(log_probabilities: torch.Tensor, labels: torch.Tensor) -> tuple[float, float]:
    """Mean cross-entropy in nats and accuracy of (n, classes) log-probabilities against (n,) labels."""
    loss = F.nll_loss(log_probabilities, labels)
    return float(loss), float((log_probabilities.argmax(1) == labels).double().mean())
