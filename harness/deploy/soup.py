"""Average the weights of networks that share a start: model soups, and WiSE-FT.

A soup (Wortsman et al. 2022, arXiv 2203.05482) averages networks that were trained with different
configurations. WiSE-FT (Wortsman et al. 2022, arXiv 2109.01903) is a point between the pretrained and the
fine-tuned network; a pretrained classifier of the target does not exist here, so the pretrained end is a
linear probe. What is averaged is chosen on validation, and scored once on test.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from harness.core.errors import counted
from harness.core.selection import METRICS, Metric
from harness.core.spec import TrialSpec
from harness.core.strategies import FullFineTune
from harness.data import Examples, load_target, read_examples, split_indices
from harness.data.cached import Cache
from harness.deploy.model import plain_network
from harness.training.device import Device
from harness.training.fit import Diverged, further_scores, score
from harness.training.loop import start
from harness.training.network import Network, network_of

Kind = Literal["soup", "wise_ft"]
State = Mapping[str, torch.Tensor]
"""The state dict of a plain network, on the CPU."""
ALPHAS = tuple(tenth / 10 for tenth in range(10, -1, -1))
"""Points of the path: 1 is the fine-tuned network, 0 the linear probe. Of equals the first is chosen."""


@dataclass(frozen=True)
class Average:
    """An average of weights.

    Attributes:
        kind: which one.
        amount: number of averaged networks of a soup; alpha of WiSE-FT.
        metrics: on validation and test images, by the names of `METRICS`.
        state: the averaged weights.
    """

    kind: Kind
    amount: float
    metrics: Mapping[str, float]
    state: State

    def __str__(self) -> str:
        if self.kind == "soup":
            return f"soup of {counted(f'{self.amount:g}', 'network')}"
        return f"WiSE-FT at {self.amount:g}"


class Judge:
    """Scores networks with given weights on the images of one trial.

    Args:
        spec: the trial.
        metric: what its study chooses by.
        device: where to compute.
        cache: keeps decoded images.
    """

    def __init__(self, spec: TrialSpec, metric: Metric, device: Device, cache: Cache) -> None:
        plain = replace(spec, source="scratch", strategy=FullFineTune(), compile=False)
        backbone = network_of(plain, device.torch_device)  # without adapters, which were merged
        self._spec, self._metric, self._cache = spec, metric, cache
        self._split = split_indices(load_target(spec.target), spec)
        self._form, self._model = backbone.input, backbone.model.eval()
        self._network = Network(backbone, plain, device, Cache(None, 0))

    def validation(self, state: State) -> dict[str, float]:
        """Every metric on the validation images, as recorded."""
        found = self._scores(state, self._split.val)
        return {METRICS[name].validation: value for name, value in found.items()}

    def merit(self, state: State) -> float:
        """The study's metric on the validation images, higher is better."""
        return self._metric.merit(self.validation(state))

    def final(self, state: State) -> dict[str, float]:
        """Every metric on the validation and the test images, as recorded."""
        found = self._scores(state, self._split.test)
        return self.validation(state) | {METRICS[name].test: v for name, v in found.items()}

    def mean(self, states: Sequence[State], weights: Sequence[float]) -> State:
        """The weighted mean. Statistics of batch norms that differ between the networks are estimated again,
        from the training images; all others are those of the networks."""
        mean = {
            name: torch.stack([w * s[name].double() for w, s in zip(weights, states, strict=True)])
            .sum(0)
            .to(first.dtype)
            if first.is_floating_point()
            else first
            for name, first in states[0].items()
        }
        norms = [
            module
            for name, module in self._model.named_modules()
            if isinstance(module, _BatchNorm) and _differ(states, f"{name}.running_mean")
        ]
        if norms:
            load(self._model, mean)
            self._network.estimate_statistics(self._read(self._split.train), norms)
            mean = {k: v.detach().cpu().clone() for k, v in self._model.state_dict().items()}
        return mean

    def _scores(self, state: State, part: np.ndarray) -> dict[str, float]:
        examples = self._read(part)
        load(self._model, state)
        log_p = self._network.log_probabilities(examples)
        loss, accuracy = score(log_p, examples.labels)
        return {"log_loss": loss, "accuracy": accuracy, **further_scores(log_p, examples.labels)}

    def _read(self, part: np.ndarray) -> Examples:
        return read_examples(self._spec.target, tuple(part.tolist()), self._form, self._cache)


@torch.no_grad()
def load(model: nn.Module, state: State) -> None:
    """Set all weights and buffers of a plain network."""
    for name, tensor in model.state_dict().items():
        tensor.copy_(state[name])


def _differ(states: Sequence[State], name: str) -> bool:
    return any(name in s and not torch.equal(s[name], states[0][name]) for s in states)


def trained(spec: TrialSpec, device: Device, cache: Cache) -> State | None:
    """The weights of a trial's network after training; None if it diverged."""
    fit = start(spec, device, cache)
    try:
        for _ in fit:
            pass
    except Diverged:
        return None
    fit.finish(test=False)
    return plain_network(fit.backbone, None).state_dict()


def soup(judge: Judge, networks: Sequence[State]) -> Average:
    """The greedy soup: networks are added, best validation score first, unless the score falls."""
    merits = [judge.merit(state) for state in networks]
    best, *others = sorted(range(len(networks)), key=lambda i: -merits[i])
    members, state, merit = [networks[best]], networks[best], merits[best]
    for i in others:
        more = [*members, networks[i]]
        tried = judge.mean(more, [1 / len(more)] * len(more))
        if (now := judge.merit(tried)) >= merit:
            members, state, merit = more, tried, now
    return Average("soup", len(members), judge.final(state), state)


def wise_ft(judge: Judge, probe: State, tuned: State) -> Average:
    """The best point on validation of the path between a linear probe and the fine-tuned network."""
    path = {1.0: tuned, 0.0: probe}
    path |= {a: judge.mean([tuned, probe], [a, 1 - a]) for a in ALPHAS if a not in path}
    alpha = max(ALPHAS, key=lambda a: judge.merit(path[a]))
    return Average("wise_ft", alpha, judge.final(path[alpha]), path[alpha])
