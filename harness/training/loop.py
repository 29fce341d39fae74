"""Train one trial, yielding an EpochResult after each epoch.

    fit = start(spec, resolve_device("cpu"))
    for epoch in fit:
        print(epoch.val_accuracy)
    result = fit.finish(test=True)

The loop uses neither Optuna nor MLflow, and it does not depend on the strategy: it applies a row of scales.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import inf, isfinite
from statistics import median
from typing import final

import numpy as np
import torch

from harness.core.results import EpochResult
from harness.core.spec import TrialSpec, derive_seed
from harness.core.strategies import Scales
from harness.data import Examples, seeded_view
from harness.data.cached import Cache
from harness.inputs import Augment
from harness.training.audit import Audit
from harness.training.balance import balanced_batches
from harness.training.checkpoint import Checkpoint, copied, trial_key
from harness.training.device import Clock, Device
from harness.training.features import FittedClassifier, fit_classifier
from harness.training.fit import Diverged, Fit, score
from harness.training.network import Feed
from harness.training.optimizer import GroupedOptimizer, Schedule, batches
from harness.training.provenance import located_anywhere, provenance_of
from harness.training.resident import Part

__all__ = ["Diverged", "FeatureTraining", "Fit", "Training", "score", "start"]

FALL = 0.5
"""If validation accuracy falls below this share of its value when groups are unfrozen, the trial says so."""


def start(
    spec: TrialSpec, device: Device, cache: Cache = Cache(), checkpoint: Checkpoint | None = None
) -> Fit:
    """A trial that is ready to be iterated, with gradient steps or a classifier on frozen features. See
    Fit."""
    kind = Training if spec.strategy.classifier == "head" else FeatureTraining
    return kind(spec, device, cache, checkpoint)


@dataclass(frozen=True)
class _Progress:
    """The state of training between epochs, except for the network."""

    clock: Clock
    audit: Audit
    optimizer: GroupedOptimizer
    order: torch.Generator
    variation: torch.Generator
    epochs: list[EpochResult] = field(default_factory=list)


@final
class Training(Fit):
    """A trial with gradient steps on the groups that the strategy unfreezes."""

    _at_rest: tuple[_Progress, float] | None = None
    """Between two epochs: the state of training, and the seconds of the clock."""

    def __iter__(self) -> Iterator[EpochResult]:
        """Train, and yield one result per epoch. The clock is paused while the caller handles a result.

        Raises:
            Diverged: after an epoch whose loss is not finite.
            AuditFailed: if frozen tensors changed or a learning rate is not the strategy's.
            BadCheckpoint: if the trial cannot continue from its checkpoint.
        """
        spec, train, val = self.spec, self._read(self._split.train), self._read(self._split.val)
        vary = train.form.augmentation(spec.augment, self._classes)
        per_epoch = len(batches(len(train), spec.batch_size, torch.Generator()))
        going = self._begin(train, per_epoch * spec.epochs)
        clock, audit, optimizer = going.clock, going.audit, going.optimizer
        for epoch in range(len(going.epochs), spec.epochs):
            scales = self._scales(epoch)
            with clock.pause():
                audit.begin_epoch(scales)
                self._network.freeze(scales, audit.frozen_digest)
                seen, varied = train, vary
                if spec.views is not None:
                    view = epoch % spec.views
                    seen = seeded_view(train, vary, view, spec.seed, self.cache)
                    varied = Augment("none")
                feed = self._network.feed(seen)
                self._seconds.add("train", feed.key, feed.paid_seconds, feed.cold_seconds)
            feed = self._network.resident(feed, seen, "train")
            step = epoch * per_epoch
            optimizer.begin_epoch(scales, step)
            with torch.random.fork_rng(devices=[]):
                # Dropout and similar layers draw from torch's global generator.
                torch.manual_seed(derive_seed(spec.seed, "dropout", epoch))
                total = self._steps(going, feed, varied, step)
            self._seconds.counted = clock.seconds
            del feed  # the next one may take its place on the device
            with clock.pause():
                audit.check_rates(optimizer.applied(), scales, optimizer.rate(step + per_epoch - 1))
                going.epochs.append(self._judge(epoch, float(total) / len(train), val))
                self._note_thaw(going.epochs)
                self._at_rest = going, clock.seconds
                yield going.epochs[-1]
                self._at_rest = None

    def _begin(self, train: Examples, steps: int) -> _Progress:
        """The initial state of training, or that of the checkpoint."""
        spec, kept = self.spec, self._resumed
        clock = Clock(self.device.synchronize)
        if spec.batch_norm == "reestimate" and kept is None:
            self._network.reestimate_statistics(train)
        with clock.pause():
            self._audit = Audit(self._backbone.groups, self._tuned)
        going = _Progress(
            clock,
            self._audit,
            GroupedOptimizer(
                self._backbone,
                spec,
                Schedule(steps, round(spec.warmup * steps), spec.schedule),
            ),
            order=torch.Generator().manual_seed(derive_seed(spec.seed, "batches")),
            variation=torch.Generator().manual_seed(derive_seed(spec.seed, "augment")),
        )
        return going if kept is None else self._restore(going, kept)

    def _steps(self, going: _Progress, feed: Feed, vary: Augment, step: int) -> torch.Tensor:
        """Train one epoch that begins with the given step; returns the sum of the losses of all images, a
        scalar."""
        total = torch.zeros((), device=self.device.torch_device)
        for rows in self._order(feed.labels, going.order):
            images = self._network.batch(feed, rows)
            images, labels = vary(images, feed.labels[rows], going.variation)
            loss = self._network.loss(feed.run(images), labels)
            going.optimizer.step(loss, step)
            total += loss.detach() * len(rows)
            step += 1
        return total

    def _order(self, labels: torch.Tensor, generator: torch.Generator) -> Sequence[torch.Tensor]:
        """Positions of the images of one epoch, batch by batch."""
        if self.spec.sampling == "balanced":
            return balanced_batches(labels, self.spec.batch_size, generator)
        return batches(len(labels), self.spec.batch_size, generator)

    def checkpoint(self) -> Checkpoint:
        """The state after the epoch that was just yielded; call this while handling its result.

        Raises:
            RuntimeError: in the middle of an epoch, or before the first or after the last one.
        """
        if self._at_rest is None:
            raise RuntimeError("a checkpoint can only be made while an epoch's result is handled")
        going, seconds = self._at_rest
        state = {
            "network": self._tensors(),
            "optimizer": going.optimizer.state_dict(),
            "audit": going.audit.state_dict(),
            "order": going.order.get_state(),
            "variation": going.variation.get_state(),
            "clock": seconds,
            "seconds": self._seconds.state_dict(),
            "total_seconds": time.perf_counter() - self._started,
            "peaks": self._peaks(),
            "words": list(self._network.words),
        }
        key, provenance = trial_key(located_anywhere(self.spec)), provenance_of(self.spec)
        return Checkpoint(key, provenance, tuple(going.epochs), copied(state))

    def _restore(self, fresh: _Progress, kept: Checkpoint) -> _Progress:
        """The state of the checkpoint. The network is restored last, because the audit and L2-SP need the
        weights with which the trial started."""
        state = kept.state
        fresh.audit.load_state_dict(state["audit"])
        fresh.optimizer.load_state_dict(state["optimizer"])
        fresh.order.set_state(state["order"])
        fresh.variation.set_state(state["variation"])
        with torch.no_grad():
            for name, tensor in self._tensors().items():
                tensor.copy_(state["network"][name])
        self._seconds.load_state_dict(state["seconds"])
        self._started -= state["total_seconds"]
        self._earlier_peaks = state["peaks"]
        self._network.words = dict.fromkeys(state["words"])
        for epoch in range(len(kept.epochs)):
            scales = self._scales(epoch)
            self._note_thaw(kept.epochs[: epoch + 1])
        # Even if no epochs are left, the test images use the cached outputs.
        self._network.freeze(scales, fresh.audit.frozen_digest)
        clock = Clock(self.device.synchronize, state["clock"])
        return replace(fresh, clock=clock, epochs=list(kept.epochs))

    def _tensors(self) -> dict[str, torch.Tensor]:
        groups = self._backbone.groups
        return {n: t for g in groups for n, t in {**g.parameters, **g.buffers}.items()}

    def range_test(self, steps: int) -> Iterator[tuple[float, float]]:
        """Learning-rate range test (Smith 2017): one batch per step while the rate grows to spec.lr.

        Args:
            steps: largest number of steps; the test ends early when the loss is four times the lowest one.

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
            queue = queue or list(self._order(train.labels, order))
            rows = queue.pop(0)
            images = self._network.batch(feed, rows)
            loss = self._network.loss(feed.run(images), feed.labels[rows])
            value = float(loss.detach())
            optimizer.step(loss, step)
            yield self.spec.lr * Schedule(steps, 0, "range").factor(step, 0), value
            lowest = min(lowest, value)
            if not isfinite(value) or value > 4 * lowest:
                return

    def estimate_seconds(self, steps: int = 4) -> float:
        """Cold-equivalent training seconds of the whole trial, from a few measured steps per row of scales.

        Args:
            steps: number of steps per distinct row; the first is a warm-up and is not counted.
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
                    images = self._network.batch(feed, rows)
                    loss = self._network.loss(feed.run(images), feed.labels[rows])
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

    def _note_thaw(self, epochs: Sequence[EpochResult]) -> None:
        """Note if validation accuracy fell by more than half in the last of these epochs, and groups were
        unfrozen for it."""
        accuracies = [epoch.val_accuracy for epoch in epochs[-2:]]
        if len(accuracies) == 2 and accuracies[1] < FALL * accuracies[0]:
            rows = (self._scales(epoch.epoch) for epoch in epochs[-2:])
            if any(old is None and new is not None for old, new in zip(*rows, strict=True)):
                fall = " to ".join(f"{100 * accuracy:.1f}" for accuracy in accuracies)
                self._notes["unfreezing"] = f"{fall} % in epoch {epochs[-1].epoch + 1}"

    def _predict(self, examples: Examples, part: Part | None = None) -> torch.Tensor:
        return self._network.log_probabilities(examples, part)


@final
class FeatureTraining(Fit):
    """A trial that fits a scikit-learn classifier on features of the frozen network, in a single epoch
    without gradients."""

    _fitted: FittedClassifier

    @property
    def classifier(self) -> FittedClassifier:
        """The fitted classifier; available after the epoch."""
        return self._fitted

    def __iter__(self) -> Iterator[EpochResult]:
        """Fit the classifier, and yield one result."""
        kind = self.spec.strategy.classifier
        assert kind != "head"
        train, val = self._read(self._split.train), self._read(self._split.val)
        self._audit = Audit(self._backbone.groups, frozenset())
        scales = (None,) * len(self._backbone.groups)
        self._audit.begin_epoch(scales)
        self._network.freeze(scales, self._audit.frozen_digest)
        clock = Clock(self.device.synchronize)
        with clock.pause():
            # C or k is chosen on validation, so computing its features is part of training.
            for name, part in (("train", train), ("val", val)):
                feed = self._network.feed(part)
                self._seconds.add(name, feed.key, feed.paid_seconds, feed.cold_seconds)
        parts = [(self._features(part), part.labels.numpy()) for part in (train, val)]
        self._fitted = fit_classifier(
            kind, parts[0], parts[1], self._classes, self.spec.class_weights == "balanced"
        )
        self._seconds.counted = clock.seconds
        with clock.pause():
            train_loss, _ = score(self._predict(train), train.labels)
            yield self._judge(0, train_loss, val)

    def _features(self, examples: Examples) -> np.ndarray:
        """(n, d) inputs of the head, from the network in eval()."""
        features: np.ndarray = self._network.features(examples).numpy()
        return features

    def _predict(self, examples: Examples, part: Part | None = None) -> torch.Tensor:
        return torch.from_numpy(self._fitted.log_probabilities(self._features(examples)))
