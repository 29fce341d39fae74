"""Compute logits from examples: prepare them, and pass them through the whole network in the trial's
precision, or start from cached outputs of its frozen leading groups.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from harness.backbones import Backbone, build, check_size
from harness.core.errors import UserError
from harness.core.spec import TrialSpec
from harness.core.strategies import Scales, Tuned
from harness.core.units import format_bytes
from harness.data import Examples, load_target
from harness.data.cached import Cache, CachedView, CacheFull
from harness.training.device import Device
from harness.training.prefix import PROBES, Cut, NoCut, Prefix, Tail, find_cut
from harness.training.resident import Part, Resident

T = TypeVar("T")
CHUNK = 64
"""Batch size without gradients: large, but not so large that evaluating a linear probe needs more memory than
training it. On a CPU half as many, which fit into its cache."""
TUNED: dict[Tuned, tuple[str, str]] = {
    "norm": ("normalisation layers", "a backbone that has them, such as vgg11_bn, or BiasOnly"),
    "bias": ("biases", "another backbone, or NormOnly"),
    "lora": (
        "attention layers (qkv, proj)",
        "a vit_*, deit_* or swin_* backbone of timm, torchvision's vit_* or swin_*, or transformers:NAME for "
        "texts or sounds",
    ),
}
"""What strategies train that do not train all parameters of a group, and what to use without it."""
_cuts: dict[tuple[object, ...], Cut | NoCut] = {}
"""Cuts that this process has found, or the reasons why there are none, by everything that determines them."""


def network_of(spec: TrialSpec, device: torch.device = torch.device("cpu")) -> Backbone:
    """The network with which a trial starts, with the form in which it takes the target's examples.

    Raises:
        UserError: if the target, the backbone or the source are not available, or do not fit.
    """
    target = load_target(spec.target)
    built = build(
        spec.backbone,
        spec.source,
        len(target.classes),
        spec.seed,
        device,
        spec.resolution,
        spec.strategy.lora_rank,
        spec.head,
        spec.depth,
    )
    return replace(built, input=target.medium.form(built.input))


def check_policies(backbone: Backbone, spec: TrialSpec) -> None:
    """Check that the augmentation, the shifts and the strategy of a trial suit its network.

    Raises:
        UserError: naming what does not, and what would.
    """
    backbone.input.check(spec.augment, spec.shift_names())
    strategy, head = spec.strategy, backbone.groups[-1].parameters.keys()
    if strategy.tuned in TUNED and not backbone.tuned_names(strategy.tuned) - head:
        layers, instead = TUNED[strategy.tuned]
        where = "" if spec.depth is None else f" at depth {spec.depth}"
        raise UserError(
            f"strategy {type(strategy).__name__} needs {layers}, which {spec.backbone}{where} does not have "
            f"below its head; use {instead}"
        )


def check_network(backbone: Backbone, spec: TrialSpec) -> None:
    """Check that a trial can run on this network: the size of its input, and its classifier.

    Raises:
        UserError: naming what does not work, and what would.
    """
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    hook = backbone.head.register_forward_hook(lambda _, x, y: seen.append((x[0], y)))
    try:
        logits = check_size(backbone, spec.backbone)
    finally:
        hook.remove()
    if spec.strategy.classifier == "head":
        return
    vector = len(seen) == 1 and seen[0][0][0].numel() == seen[0][0].shape[1]
    linear = (
        isinstance(backbone.head, (nn.Linear, nn.Conv2d)) or spec.strategy.classifier != "logistic"
    )
    if len(backbone.heads) > 1 or not vector or not linear or not _same(seen[0][1], logits):
        raise UserError(
            f"strategy {type(spec.strategy).__name__} replaces a linear classifier with one of scikit-learn, "
            f"but {spec.backbone} has several classifiers, or one that is more than a linear layer; use a "
            "strategy that trains the network's own classifier, such as LinearProbe"
        )


def _same(outputs: object, logits: torch.Tensor) -> bool:
    return isinstance(outputs, torch.Tensor) and torch.equal(outputs.flatten(1), logits)


@dataclass(frozen=True)
class Feed:
    """Examples in the form that the network takes with the current frozen part.

    Attributes:
        values: rows of the network's input, or outputs of the frozen part, in the memory of the host or on
            the device.
        labels: (n,) int64 labels.
        run: function from a batch to (n, classes) logits.
        key: key of the cached outputs; "" for rows of the input.
        paid_seconds: time spent now on outputs of the frozen part.
        cold_seconds: time for these outputs with an empty cache, as measured when each was computed.
    """

    values: torch.Tensor | CachedView
    labels: torch.Tensor
    run: Callable[[torch.Tensor], torch.Tensor]
    key: str = ""
    paid_seconds: float = 0.0
    cold_seconds: float = 0.0


class Network:
    """The network of one trial, with cached outputs of its frozen part.

    Args:
        backbone: the model and its groups.
        spec: the trial.
        device: where to compute.
        cache: where outputs of the frozen part are stored.
        class_weights: (classes,) weights of the classes in the loss; None weighs all equally.

    Attributes:
        words: descriptions of what was cached of the frozen part, or of why nothing was; one key per cut, in
            order.
    """

    def __init__(
        self,
        backbone: Backbone,
        spec: TrialSpec,
        device: Device,
        cache: Cache,
        class_weights: torch.Tensor | None = None,
    ) -> None:
        self._backbone, self._spec, self._device, self._cache = backbone, spec, device, cache
        where = device.torch_device
        self._class_weights = None if class_weights is None else class_weights.to(where)
        self._prepare = backbone.input.preparation(where, backbone.layout)
        self._train_model = torch.compile(backbone.model) if spec.compile else backbone.model
        self._prefix: Prefix | None = None
        self._chunk = CHUNK // 2 if where.type == "cpu" else CHUNK
        self._resident = Resident(device)
        self.words: dict[str, None] = {}

    @property
    def resident_mib(self) -> float:
        """MiB of examples that are on the device now."""
        return self._resident.mib

    def freeze(self, scales: Scales, weights: Callable[[int], str]) -> None:
        """Set the frozen part to the leading groups with scale None.

        Args:
            scales: one per group.
            weights: number of leading groups -> hash of their tensors.
        """
        self._prefix = None
        frozen = next((g for g, s in enumerate(scales) if s is not None), len(scales))
        depth = min(frozen, len(self._backbone.groups) - 1)
        try:
            cut = self._cut(depth)
        except NoCut as reason:
            self.words[f"whole network: {reason}"] = None
            return
        spec = self._spec
        key = {
            "backbone": spec.backbone,
            "weights": weights(depth),
            "input": repr(self._backbone.input),
            "precision": spec.precision,
            "device": self._device.describe(),
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "threads": str(torch.get_num_threads()),
        }
        blank = self._input(self._backbone.input.blank(1))
        tail = Tail(self._backbone, cut, blank.shape)
        self._prefix = Prefix(cut, tail, key, self._cache, self._chunk)

    def _cut(self, depth: int) -> Cut:
        spec = self._spec
        if depth == 0:
            raise NoCut("nothing is frozen before the first trained group")
        if spec.compile:
            raise NoCut("it is compiled")
        if spec.augment != "none" and spec.views is None:
            raise NoCut("augmentation without a number of views gives no example twice")
        if not self._cache.budget:
            raise NoCut("the cache is switched off")
        key = (
            *(
                type(self._backbone.model),
                spec.backbone,
                spec.source,
                self._backbone.input,
                spec.strategy.lora_rank,
                *(spec.head, spec.depth),
            ),
            *(depth, spec.precision, self._device.name),
        )
        if key not in _cuts:
            probe = self._backbone.input.random(PROBES, torch.Generator())
            try:
                _cuts[key] = self._in_precision(
                    lambda x: find_cut(self._backbone, depth, x), self._input(probe)
                )
            except NoCut as reason:
                _cuts[key] = reason
        found = _cuts[key]
        if isinstance(found, NoCut):
            raise found
        return found

    def feed(self, examples: Examples) -> Feed:
        """Examples, through the frozen part if there is one and its outputs can be kept."""
        prefix = self._prefix
        if prefix is not None and isinstance(examples.values, torch.Tensor):
            if not self.words:  # otherwise these are a shifted test set, which is not cached
                self.words["whole network: its examples do not fit the cache"] = None
        elif prefix is not None:
            assert isinstance(examples.values, CachedView)
            try:
                kept, paid = prefix.of(examples.values, self._before)
            except CacheFull as reason:
                self.words[f"whole network: {reason}"] = None
            else:
                size = format_bytes(prefix.cut.row_bytes)
                self.words[f"kept after {prefix.cut.gate}, {size} an example"] = None
                cold = kept.rows.seconds(kept.index)
                return Feed(kept, examples.labels, self._after, kept.rows.key, paid, cold)
        return Feed(examples.values, examples.labels, self._whole)

    def resident(self, feed: Feed, examples: Examples, part: Part) -> Feed:
        """The feed of a part of the split, whose rows stay on the device where there is room for them."""
        if not self._device.room:
            return feed
        return replace(feed, values=self._resident.place(part, examples, feed.values))

    def batch(self, feed: Feed, rows: torch.Tensor) -> torch.Tensor:
        """The rows of a batch, on the device."""
        values = feed.values
        if isinstance(values, torch.Tensor) and values.device.type != "cpu":
            rows = self._on_device(rows)
        return self._on_device(values[rows])

    @torch.inference_mode()
    def log_probabilities(self, examples: Examples, part: Part | None = None) -> torch.Tensor:
        """(n, classes) log-probabilities on the CPU, from the network in eval(). With a `part`, the examples
        stay on the device where there is room for them."""
        self._backbone.model.eval()
        feed = self.feed(examples)
        if part is not None:
            feed = self.resident(feed, examples, part)
        parts = [feed.run(batch).float() for batch in self._chunks(feed.values)]
        return torch.cat(parts).log_softmax(1).cpu()

    @torch.inference_mode()
    def features(self, examples: Examples) -> torch.Tensor:
        """(n, d) inputs of the head on the CPU, from the network in eval()."""
        self._backbone.model.eval()
        feed, found = self.feed(examples), list[torch.Tensor]()
        hook = self._backbone.head.register_forward_pre_hook(lambda _, x: found.append(x[0].cpu()))
        for batch in self._chunks(feed.values):
            feed.run(batch)
        hook.remove()
        return torch.cat(found).flatten(1).float()

    def reestimate_statistics(self, examples: Examples) -> None:
        """Batch norm statistics as plain averages over the images (Li et al. 2017, AdaBN)."""
        torch.optim.swa_utils.update_bn(self._even_batches(examples), self._backbone.model)

    @torch.no_grad()
    def estimate_statistics(self, examples: Examples, norms: Sequence[_BatchNorm]) -> None:
        """The same for some batch norms only; the rest of the network is in eval()."""
        momenta = [norm.momentum for norm in norms]
        self._backbone.model.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
            norm.train()
        for images in self._even_batches(examples):
            self._backbone.model(images)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()

    def _even_batches(self, examples: Examples) -> Iterator[torch.Tensor]:
        """Inputs in batches of nearly equal size, because each has the same weight in an average."""
        edges = (
            np.linspace(0, len(examples), math.ceil(len(examples) / 256) + 1).round().astype(int)
        )
        return (self._input(examples.values[a:b]) for a, b in itertools.pairwise(edges.tolist()))

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy in nats, weighted by class if there are class weights."""
        return F.cross_entropy(
            logits.float(),
            self._on_device(labels),
            weight=self._class_weights,
            label_smoothing=self._spec.label_smoothing,
        )

    def _chunks(self, values: torch.Tensor | CachedView) -> Iterator[torch.Tensor]:
        for start in range(0, len(values), self._chunk):
            rows = values[start : start + self._chunk]
            # A copy, because the layer behind the frozen ones may work in place.
            yield rows.clone() if isinstance(values, torch.Tensor) else rows

    def _whole(self, rows: torch.Tensor) -> torch.Tensor:
        model = self._train_model if torch.is_grad_enabled() else self._backbone.model
        logits: torch.Tensor = self._in_precision(model, self._input(rows))
        return logits

    def _before(self, rows: torch.Tensor) -> torch.Tensor:
        assert self._prefix is not None
        return self._in_precision(self._prefix.tail.before, self._input(rows))

    def _after(self, kept: torch.Tensor) -> torch.Tensor:
        assert self._prefix is not None
        return self._in_precision(self._prefix.tail.after, self._on_device(kept))

    def _in_precision(self, run: Callable[[torch.Tensor], T], batch: torch.Tensor) -> T:
        with torch.autocast(
            self._device.torch_device.type, torch.bfloat16, self._spec.precision == "bfloat16"
        ):
            return run(batch)

    def _input(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows of the input -> the argument of the network, on the device."""
        return self._prepare(self._on_device(rows))

    def _on_device(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor on the device. Copying from pinned memory does not wait for the device, which computes
        while the next batch is gathered."""
        where = self._device.torch_device
        if where.type == "cuda" and tensor.device.type == "cpu":
            tensor = tensor.pin_memory()
        return tensor.to(where, non_blocking=True)
