"""Layer groups of a network, stem first and head last; every tensor is in exactly one group."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from harness.core.strategies import Tuned
from harness.inputs import Input


@dataclass(frozen=True)
class Group:
    """The parameters and buffers of one layer group, by full name."""

    name: str
    parameters: Mapping[str, nn.Parameter]
    buffers: Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Backbone:
    """A model whose parameters are divided into `groups`.

    Attributes:
        model: classifier with a new head for the classes of the target.
        heads: its classifier modules: one, or several whose logits are combined.
        groups: layer groups, stem first, head last.
        modes: every module, with the groups of the tensors in it.
        no_decay: names of parameters without weight decay, as the model declares them.
        input: the input that the weights expect, in the resolution that was asked for.
        layout: memory order in which the model computes.
        notes: how the weights were adapted, one line each.
    """

    model: nn.Module
    heads: tuple[nn.Module, ...]
    groups: tuple[Group, ...]
    modes: tuple[tuple[nn.Module, frozenset[int]], ...]
    no_decay: frozenset[str]
    input: Input
    layout: torch.memory_format = torch.channels_last
    notes: tuple[str, ...] = ()

    @property
    def head(self) -> nn.Module:
        """The first classifier module."""
        return self.heads[0]

    @property
    def device(self) -> torch.device:
        """Device of the network."""
        return next(self.model.parameters()).device

    def prepared(self, rows: torch.Tensor) -> torch.Tensor:
        """A batch of rows of its input as the argument of the network, on its device."""
        return self.input.preparation(self.device, self.layout)(rows.to(self.device))

    def train_mode(
        self, trained: Iterable[int], batch_statistics: Iterable[int] | None = None
    ) -> None:
        """Put modules with a tensor of a trained group in train(), all others in eval().

        Frozen batch norms thus keep their statistics, and frozen dropout stays off. Call it before every
        epoch, because an evaluation puts all modules in eval().

        Args:
            trained: positions of the groups that train.
            batch_statistics: positions of those of them whose batch norms are put in train(); None is all.
        """
        on = frozenset(trained)
        follow = on if batch_statistics is None else on & frozenset(batch_statistics)
        for module, groups in self.modes:
            norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
            module.training = bool(groups & (follow if norm else on))

    def tuned_names(self, kind: Tuned) -> frozenset[str]:
        """Names of the parameters that may train when their group is unfrozen.

        Args:
            kind: "all"; "norm", those of normalisation layers; "bias", those with that name, which is
                bias_ih_l0 and the like in recurrent layers; "lora", those of the adapters. The parameters of
                the head are always included.
        """
        norms = {
            f"{path}.{n}"
            for path, module in self.model.named_modules()
            if "Norm" in type(module).__name__
            for n, _ in module.named_parameters(recurse=False)
        }
        rules: dict[Tuned, Callable[[str], bool]] = {
            "all": lambda n: True,
            "norm": lambda n: n in norms,
            "bias": lambda n: n.endswith("bias") or ".bias_" in n,
            "lora": lambda n: ".lora_" in n,
        }
        wanted = rules[kind]
        inner = {n for g in self.groups[:-1] for n in g.parameters if wanted(n)}
        return frozenset(inner | set(self.groups[-1].parameters))


def depths_to_groups(depth: Mapping[str, int], head_names: Sequence[str]) -> dict[str, int]:
    """Full tensor name -> number of its group, from 0 without gaps.

    The last group contains only the classifier, whatever depth the library gave it.

    Args:
        depth: full name of every parameter and buffer -> its depth, numbered by the library.
        head_names: names of the classifier modules.
    """
    head = tuple(f"{name}." for name in head_names)
    used = sorted({d for name, d in depth.items() if not name.startswith(head)})
    rank = {d: g for g, d in enumerate(used)}
    return {n: len(used) if n.startswith(head) else rank[d] for n, d in depth.items()}


def parameter_groups(
    model: nn.Module, index: Mapping[str, int], names: Sequence[str] = ()
) -> tuple[Group, ...]:
    """The layer groups of a model.

    Args:
        model: the model.
        index: as from `depths_to_groups`.
        names: names of the groups; by default those of `group_names`.
    """
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    members = [[n for n, at in index.items() if at == g] for g in range(max(index.values()) + 1)]
    return tuple(
        Group(
            name=name,
            parameters={n: parameters[n] for n in own if n in parameters},
            buffers={n: buffers[n] for n in own if n in buffers},
        )
        for name, own in zip(names or group_names([m[0] for m in members]), members, strict=True)
    )


def module_groups(
    model: nn.Module, index: Mapping[str, int]
) -> tuple[tuple[nn.Module, frozenset[int]], ...]:
    """Every module with the groups of the tensors in it.

    A leaf without tensors (dropout, activation) belongs to the group of its parent if that is in a single
    group, else to the group of the module before it, or to the head if the head comes next.
    """
    inside: dict[str, set[int]] = {name: set() for name, _ in model.named_modules()}
    for tensor, group in index.items():
        path = tensor
        while path:
            path = path.rpartition(".")[0]
            inside[path].add(group)
    order = [n for n, m in model.named_modules() if not list(m.children())]
    head = {max(index.values())}
    for position, name in enumerate(order):
        if inside[name]:
            continue
        parent = inside[name.rpartition(".")[0]]
        after = next((inside[n] for n in order[position + 1 :] if inside[n]), head)
        before = next((inside[n] for n in reversed(order[:position]) if inside[n]), {0})
        inside[name] = parent if len(parent) == 1 else head if after == head else {max(before)}
    return tuple((module, frozenset(inside[name])) for name, module in model.named_modules())


def group_names(firsts: Sequence[str]) -> list[str]:
    """A short name for each group, from the name of its first tensor, with as many parts as make it unique.

    >>> group_names(["conv1.weight", "layer1.0.conv1.weight", "layer2.0.conv1.weight", "fc.weight"])
    ['conv1', 'layer1', 'layer2', 'head']
    """
    paths = [name.split(".") for name in firsts]
    names = []
    for path in paths[:-1]:
        length = next(
            k
            for k in range(1, len(path) + 1)
            if k == len(path) or sum(other[:k] == path[:k] for other in paths) == 1
        )
        names.append(".".join(path[:length]))
    return [*names, "head"]
