"""Base class of trials: data, network, validation, and the single evaluation on the test images.

The two kinds of trials are in `harness.training.loop`.
"""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from math import isfinite
from typing import get_args

import numpy as np
import torch
from torch.nn import functional as F

from harness.backbones import Backbone
from harness.core.metrics import scores
from harness.core.results import (
    MOST_MISTAKES,
    MOST_PROBABILITIES,
    EpochResult,
    Predictions,
    TrialResult,
)
from harness.core.selection import METRICS, Selectable
from harness.core.spec import TrialSpec
from harness.data import (
    Examples,
    as_jpeg,
    images_per_class,
    load_target,
    read_examples,
    shifted,
    split_indices,
)
from harness.data.cached import Cache
from harness.data.splits import LONGEST_TAG
from harness.training.audit import Audit
from harness.training.balance import class_weights
from harness.training.checkpoint import Checkpoint
from harness.training.device import Device, Seconds
from harness.training.features import FittedClassifier
from harness.training.inference_cost import inference_cost
from harness.training.network import Network, check_policies, network_of
from harness.training.provenance import located_anywhere, provenance_of
from harness.training.resident import Part


class Diverged(Exception):
    """The training loss is not finite."""


class Fit(ABC):
    """One trial, given its spec. Iterate over it to train epoch by epoch, then call `finish`.

    Args:
        spec: everything that determines the run.
        device: where to compute.
        cache: where decoded images and outputs of frozen groups are stored for other trials.
        checkpoint: checkpoint of the same trial; training continues after its epochs, which are not yielded
            again.

    Raises:
        UserError: if the target, the backbone or the source are not available.
        BadCheckpoint: here, or when iteration begins, if the checkpoint belongs to another trial, or was made
            with other versions, images or weights.
    """

    def __init__(
        self,
        spec: TrialSpec,
        device: Device,
        cache: Cache = Cache(),
        checkpoint: Checkpoint | None = None,
    ) -> None:
        if checkpoint is not None:
            checkpoint.check(located_anywhere(spec), provenance_of(spec))
        self.spec, self.device, self.cache, self._resumed = spec, device, cache, checkpoint
        self._started = time.perf_counter()
        device.reset_peak()
        target = load_target(spec.target)
        self._classes = len(target.classes)
        self._split, self._groups = split_indices(target, spec), target.groups
        self._backbone = network_of(spec, device.torch_device)
        check_policies(self._backbone, spec)
        weights = None
        if spec.class_weights == "balanced":
            weights = class_weights(target.labels[self._split.train], target.classes)
        self._network = Network(self._backbone, spec, device, cache, weights)
        self._tuned = self._backbone.tuned_names(spec.strategy.tuned)
        self._audit: Audit | None = None
        self._seconds = Seconds()
        self._trained: set[int] = set()
        self._earlier_peaks: dict[str, float] = {}
        self._notes = {"images_per_class": images_per_class(target, self._split)}
        names = json.dumps(target.classes, ensure_ascii=False)
        if len(names) <= LONGEST_TAG:
            self._notes["class_names"] = names

    @property
    def backbone(self) -> Backbone:
        """The network in its current state; do not change it before `finish`."""
        return self._backbone

    @property
    def classifier(self) -> FittedClassifier | None:
        """The fitted classifier on frozen features, if there is one."""
        return None

    @abstractmethod
    def __iter__(self) -> Iterator[EpochResult]:
        """Train, and yield one result per epoch. The clock is paused while the caller handles a result."""

    def checkpoint(self) -> Checkpoint | None:
        """The state after the epoch that was just yielded; None if the trial has only one epoch."""
        return None

    @abstractmethod
    def _predict(self, examples: Examples, part: Part | None = None) -> torch.Tensor:
        """(n, classes) log-probabilities on the CPU. `part` is given for examples that are scored in every
        epoch."""

    def finish(self, test: bool) -> TrialResult:
        """Audit the trial, collect the metrics and, if `test` is true, score the test images.

        Raises:
            AuditFailed: if a frozen group changed, or a trained one did not.
        """
        if self._audit is not None:
            self._audit.finish()
        metrics = {**self._shares(), **self._peaks()}
        if resident := self._network.resident_mib:
            metrics["resident_examples_mib"] = resident
        if self._seconds.counted is not None:
            metrics["train_seconds"] = self._seconds.cold
            metrics["marginal_seconds"] = self._seconds.marginal
        predictions = None
        if test:
            scores, predictions = self._test()
            metrics |= scores
        metrics["total_seconds"] = time.perf_counter() - self._started
        if test:
            spec = self.spec
            network, form = (spec.backbone, self._classes, spec.resolution), self._backbone.input
            metrics |= inference_cost(*network, self.device, form, spec.head, spec.depth)
        notes = {**self._notes, "prefix": "; ".join(self._network.words)}
        return TrialResult("complete", metrics, predictions=predictions, notes=notes)

    def _test(self) -> tuple[dict[str, float], Predictions]:
        examples = self._read(self._split.test)
        log_p = self._predict(examples)
        loss, accuracy = score(log_p, examples.labels)
        predicted = log_p.argmax(1)
        metrics = {"test_loss": loss, "test_accuracy": accuracy}
        metrics |= {
            METRICS[name].test: value
            for name, value in further_scores(log_p, examples.labels).items()
        }
        for name in self.spec.shift_names():
            moved = shifted(examples, name, load_target(self.spec.target))
            metrics[f"test_accuracy.{name}"] = score(self._predict(moved), moved.labels)[1]
        predictions = Predictions(
            example=examples.index,
            label=examples.labels.numpy(),
            predicted=predicted.numpy(),
            probability=_of_class(log_p, examples.labels),
            confidence=_of_class(log_p, predicted),
            probabilities=log_p.exp().numpy() if log_p.numel() <= MOST_PROBABILITIES else None,
            group=None if self._groups is None else self._groups[examples.index],
            file=self._file_names(examples.index),
            image=_worst_mistakes(examples, log_p),
        )
        return metrics, predictions

    def _file_names(self, index: np.ndarray) -> np.ndarray | None:
        target = load_target(self.spec.target)
        return np.array([target.describe(int(i)) for i in index]) if target.files() else None

    def _judge(self, epoch: int, train_loss: float, val: Examples) -> EpochResult:
        log_p = self._predict(val, "val")
        val_loss, val_accuracy = score(log_p, val.labels)
        for name, loss in (("training", train_loss), ("validation", val_loss)):
            if not isfinite(loss):
                raise Diverged(f"{name} loss {loss} in epoch {epoch}")
        seconds = (self._seconds.cold, self._seconds.marginal)
        further = {
            k: v for k, v in further_scores(log_p, val.labels).items() if k in get_args(Selectable)
        }
        return EpochResult(epoch, train_loss, val_loss, val_accuracy, *seconds, further)

    def _shares(self) -> dict[str, float]:
        """Share of all parameters that were trained, and depth of training: the share of the groups from the
        deepest trained one to the head."""
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

    def _peaks(self) -> dict[str, float]:
        """Peak memory of the whole trial, including the part before a checkpoint."""
        now, then = self.device.peaks(), self._earlier_peaks
        return {k: max(d[k] for d in (now, then) if k in d) for k in {**now, **then}}

    def _read(self, part: np.ndarray) -> Examples:
        return read_examples(
            self.spec.target,
            tuple(part.tolist()),
            self._backbone.input,
            self.cache,
        )


def further_scores(log_probabilities: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Metrics beyond accuracy and log loss, of the probabilities as they are kept (float32)."""
    probabilities = log_probabilities.exp().float().numpy()
    return scores(probabilities, labels.numpy(), log_probabilities.argmax(1).numpy())


def _worst_mistakes(examples: Examples, log_probabilities: torch.Tensor) -> np.ndarray | None:
    """JPEG files of the most confident mistakes, None for all other examples; None without mistakes."""
    confidence, predicted = log_probabilities.max(1)
    wrong = (predicted != examples.labels).nonzero()[:, 0]
    if not len(wrong):
        return None
    worst = wrong[confidence[wrong].argsort(descending=True, stable=True)[:MOST_MISTAKES]]
    images = np.full(len(examples), None, dtype=object)
    images[worst.numpy()] = [as_jpeg(x) for x in examples.form.pictures(examples.values[worst])]
    return images


def _of_class(log_probabilities: torch.Tensor, classes: torch.Tensor) -> np.ndarray:
    """Probability of one class per example."""
    chosen: np.ndarray = log_probabilities.gather(1, classes[:, None])[:, 0].exp().numpy()
    return chosen


def score(log_probabilities: torch.Tensor, labels: torch.Tensor) -> tuple[float, float]:
    """Mean cross-entropy in nats, and accuracy, of (n, classes) log-probabilities for (n,) labels."""
    loss = F.nll_loss(log_probabilities, labels)
    return float(loss), float((log_probabilities.argmax(1) == labels).double().mean())
