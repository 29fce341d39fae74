"""Forecast the accelerator memory of a trial, without an accelerator.

    python -c "from harness import TrialSpec, strategies; from harness.training.forecast import forecast; \
print(forecast(TrialSpec('digits', 'resnet18', strategies.FullFineTune())))"

The steps of the trial run on fake tensors (torch's FakeTensorMode), which have shapes and lifetimes but no
contents, while a meter records which storages are alive. The forecast is the largest sum of their sizes. It
does not include memory outside of tensors: the CUDA context, workspaces of cuDNN and cuBLAS, rounding and
fragmentation of the allocator, and the batch before it is normalised. It assumes that the network is not
compiled (TrialSpec.compile makes no difference) and that the cache is empty (with cached outputs of frozen
layers, a trial needs less). It has been checked against real tensors on a CPU, but not yet on an accelerator.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

from harness.core.errors import UserError
from harness.core.spec import Head, TrialSpec
from harness.core.strategies import Scales
from harness.data import Examples, load_target, split_indices
from harness.data.cached import Cache
from harness.inputs import Input
from harness.training.device import MIB, Cpu
from harness.training.forecast.fake import AcceleratorNorms, Fake, Workspaces, fake_backbone
from harness.training.forecast.storages import StorageMeter
from harness.training.network import CHUNK, Network
from harness.training.optimizer import GroupedOptimizer, Schedule
from harness.training.resident import staying


@dataclass(frozen=True)
class Forecast:
    """Peak accelerator memory of one trial, in MiB.

    The four parts are the memory in use at the peak of training; their sum is `train_peak_mib`. For a trial
    without gradient steps, they are those of the inference pass.

    Attributes:
        parameters_mib: parameters and buffers.
        gradients_mib: gradients of the trained parameters.
        optimizer_mib: moments, and the copy of the pretrained weights for L2-SP.
        activations_mib: everything else: the normalised batch, activations, temporary tensors.
        train_peak_mib: peak of a training step.
        eval_peak_mib: peak of an evaluation between two epochs, in batches of up to 64 images.
        fed: bytes of the examples that are fed in every epoch: those for training and for validation.
        resident_mib: those of them that stay on the device; none before `with_room`.
        peak_mib: the higher of the two peaks, and the examples on the device.
    """

    parameters_mib: float
    gradients_mib: float
    optimizer_mib: float
    activations_mib: float
    train_peak_mib: float
    eval_peak_mib: float
    fed: tuple[int, ...] = ()
    resident_mib: float = 0.0

    @property
    def peak_mib(self) -> float:
        return max(self.train_peak_mib, self.eval_peak_mib) + self.resident_mib

    def with_room(self, room: int) -> Forecast:
        """The forecast for a device on which that many bytes of examples may stay; see
        `harness.training.resident`."""
        return dataclasses.replace(self, resident_mib=_mib(staying(self.fed, room)))


def _mib(sizes: Iterable[int]) -> float:
    return sum(sizes) / MIB


@dataclass(frozen=True)
class _Work:
    """Everything that determines the memory of a trial. `spec` provides the other settings, which make no
    difference.

    Attributes:
        network: arguments of `fake_backbone`.
        form: the form of an example.
        first: groups that train in the first epoch, where that decides about their batch norms; else none.
        rows: (groups that have trained so far, groups that train) for each relevant row of scales.
        batch: number of images of the largest training step.
        eval_batch: number of images of the largest inference pass.
        settings: fields of the spec that matter.
    """

    network: tuple[str, int, int | None, int, Head, int | None]
    form: Input
    first: frozenset[int]
    rows: tuple[tuple[frozenset[int], frozenset[int]], ...]
    batch: int
    eval_batch: int
    settings: tuple[object, ...]
    spec: TrialSpec = field(compare=False)


def forecast(spec: TrialSpec) -> Forecast:
    """Peak accelerator memory of a trial, forecast on the CPU in a few seconds or less.

    Trials that differ only in settings without influence (rates, seeds, weights) share one computation.

    Raises:
        UserError: if the target or the backbone is not available, or if what the network computes depends on
            the values of tensors.
    """
    target = load_target(spec.target)
    split = split_indices(target, spec)
    classes, lora_rank = len(target.classes), spec.strategy.lora_rank
    network = (spec.backbone, classes, spec.resolution, lora_rank, spec.head, spec.depth)
    count = len(split.train)
    # As in harness.training.optimizer.batches, a last batch of one image is merged with the one before.
    joins = count > spec.batch_size and count % spec.batch_size == 1
    scored = [len(split.val), len(split.test)]
    reads_train = spec.strategy.classifier != "head" or spec.batch_norm == "reestimate"
    strategy = spec.strategy
    backbone = fake_backbone(*network).backbone
    form = target.medium.form(backbone.input)
    first, *rows = _rows(spec, len(backbone.groups))
    found = _forecast(
        _Work(
            network=network,
            form=form,
            first=first[1] if spec.batch_norm == "auto" and rows != [first] else frozenset(),
            rows=tuple(rows),
            batch=min(count, spec.batch_size) + joins,
            eval_batch=min(CHUNK, max([*scored, count] if reads_train else scored)),
            settings=(
                *(strategy.tuned, strategy.l2_sp > 0, strategy.classifier == "head"),
                *(spec.optimizer, spec.precision, spec.batch_norm),
                *(spec.label_smoothing > 0, spec.weight_decay > 0),
            ),
            spec=spec,
        )
    )
    fed = (count, len(split.val)) if strategy.classifier == "head" else ()
    return dataclasses.replace(found, fed=tuple(n * form.row_bytes for n in fed))


def _rows(spec: TrialSpec, groups: int) -> list[tuple[frozenset[int], frozenset[int]]]:
    """Rows of scales, as groups that have trained so far (whose moments remain) and groups that train: that
    of the first epoch, then those that may have the highest peak. A row is left out of the latter if another
    row has at least the same groups in both."""
    found: dict[tuple[frozenset[int], frozenset[int]], None] = {}
    ever: frozenset[int] = frozenset()
    for epoch in range(spec.epochs):
        scales = spec.strategy.lr_scales(groups, epoch)
        trained = frozenset(g for g, scale in enumerate(scales) if scale is not None)
        ever |= trained
        found[ever, trained] = None
    return [
        next(iter(found)),
        *(
            row
            for row in found
            if not any(row != o and row[0] <= o[0] and row[1] <= o[1] for o in found)
        ),
    ]


@lru_cache(maxsize=256)
def _forecast(work: _Work) -> Forecast:
    fake = fake_backbone(*work.network)
    try:
        found = [_measure(work, fake, *row) for row in work.rows]
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise UserError(
            f"no memory forecast for backbone {work.network[0]}: its computation depends on the values of "
            f"tensors ({error.func}), and a forecast uses only their shapes"
        ) from error
    finally:
        fake.backbone.model.zero_grad(set_to_none=True)
    highest = max(found, key=lambda f: f.train_peak_mib)
    return dataclasses.replace(highest, eval_peak_mib=max(f.eval_peak_mib for f in found))


def _measure(work: _Work, fake: Fake, ever: frozenset[int], trained: frozenset[int]) -> Forecast:
    """Forecast for one row of scales: two steps, because the first creates the optimiser's state, and an
    evaluation."""
    backbone = dataclasses.replace(fake.backbone, input=work.form)
    spec, model = work.spec, backbone.model
    model.zero_grad(set_to_none=True)
    groups = len(backbone.groups)
    gradients: set[int] = set()
    with fake.mode:
        network = Network(backbone, spec, Cpu(), Cache(budget=0))
        batch, scored = (_blank(n, backbone.input) for n in (work.batch, work.eval_batch))
    workspaces = Workspaces()  # type: ignore[no-untyped-call]
    with fake.mode, workspaces, StorageMeter() as meter, _seeing(model, meter, gradients):
        own = meter.follow([*model.parameters(), *model.buffers()])
        # These are in the memory of the host.
        host = meter.follow([batch.tensor, batch.labels, scored.tensor, scored.labels])
        train: dict[int, int] | None = None
        if spec.strategy.classifier == "head":
            optimizer = GroupedOptimizer(backbone, spec, Schedule(3, 0, "constant"))
            rows = [trained, trained] if ever == trained else [ever, trained, trained]
            if work.first:
                rows.insert(0, work.first)
            for step, row in enumerate(rows):
                if step == 0 or row != rows[step - 1]:
                    optimizer.begin_epoch(_scales(row, groups), step)
                begin = meter.now()
                optimizer.step(_loss(network, batch), step)
            train = meter.peak(begin)
        begin = meter.now()
        _evaluate(model, network, scored)
        evaluation = meter.peak(begin)
        # Everything that is still alive and is neither the model nor a gradient belongs to the optimiser.
        state = frozenset(meter.alive()) - own - gradients - host
    for found in (train or {}, evaluation):
        for number in host:
            found.pop(number, None)
    top = evaluation if train is None else train
    parameters, kept, moments = (_mib(top.get(n, 0) for n in x) for x in (own, gradients, state))
    total = _mib(top.values())
    return Forecast(
        parameters_mib=parameters,
        gradients_mib=kept,
        optimizer_mib=moments,
        activations_mib=total - parameters - kept - moments,
        train_peak_mib=total,
        eval_peak_mib=_mib(evaluation.values()),
    )


def _scales(trained: frozenset[int], groups: int) -> Scales:
    return tuple(1.0 if g in trained else None for g in range(groups))


@contextmanager
def _seeing(model: nn.Module, meter: StorageMeter, seen: set[int]) -> Iterator[None]:
    """Collect the serial numbers of gradients, which exist from the backward pass to the end of a step."""

    def note(parameter: torch.Tensor) -> None:
        assert parameter.grad is not None
        seen.update(meter.follow([parameter.grad]))

    hooks = []
    for parameter in model.parameters():
        trained = (
            parameter.requires_grad
        )  # the hook can only be registered on a tensor with gradient
        hooks.append(parameter.requires_grad_().register_post_accumulate_grad_hook(note))
        parameter.requires_grad_(trained)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _blank(count: int, form: Input) -> Examples:
    labels = torch.zeros(count, dtype=torch.int64)
    return Examples(form.blank(count), labels, np.arange(count), form)


def _logits(network: Network, examples: Examples) -> torch.Tensor:
    assert isinstance(examples.values, torch.Tensor)
    with AcceleratorNorms():
        return network.feed(examples).run(examples.values)


def _loss(network: Network, batch: Examples) -> torch.Tensor:
    return network.loss(_logits(network, batch), batch.labels)


def _evaluate(model: nn.Module, network: Network, scored: Examples) -> torch.Tensor:
    model.eval()
    with torch.inference_mode():
        return _logits(network, scored).float().log_softmax(1)
