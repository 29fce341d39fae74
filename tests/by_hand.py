"""What a trial starts from, made with timm and torch alone: its network, its images and their order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import timm
import torch
from sklearn.datasets import load_digits
from timm.data.config import resolve_model_data_config
from torch import nn

from harness.core.spec import TrialSpec, derive_seed
from harness.data import load_target, read_examples, split_indices
from harness.inputs import Pixels


def model_by_hand(spec: TrialSpec) -> Any:
    """The untrained network."""
    torch.manual_seed(derive_seed(spec.seed, "weights"))
    model: Any = timm.create_model(spec.backbone)
    if spec.source != "scratch":
        model.load_state_dict(torch.load(spec.source.removeprefix("file:"), weights_only=True))
    torch.manual_seed(derive_seed(spec.seed, "head"))
    model.reset_classifier(10)
    return model.to(memory_format=torch.channels_last)


def images_by_hand(spec: TrialSpec, part: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised images and labels of one part of the split of the digits."""
    positions = getattr(split_indices(load_target(spec.target), spec), part)
    config = resolve_model_data_config(timm.create_model(spec.backbone))
    assert spec.resolution is not None
    form = Pixels(spec.resolution, config["interpolation"])
    read = read_examples(spec.target, tuple(positions.tolist()), form)
    mean, std = (torch.tensor(config[k]).view(1, 3, 1, 1) for k in ("mean", "std"))
    # In the memory order of the harness, or rounding errors alone would differ visibly after 8 steps.
    images = ((read.tensor / 255 - mean) / std).contiguous(memory_format=torch.channels_last)
    return images, torch.from_numpy(load_digits().target[positions])


def entries_by_hand(modules: list[nn.Module], decay: float) -> list[dict[str, Any]]:
    """Parameter groups of torch: weights of two or more dimensions decay, others do not."""
    parameters = [p for m in modules for p in m.parameters()]
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def orders_by_hand(spec: TrialSpec, count: int) -> Iterator[list[torch.Tensor]]:
    """The batches of each epoch, as positions."""
    generator = torch.Generator().manual_seed(derive_seed(spec.seed, "batches"))
    for _ in range(spec.epochs):
        yield list(torch.randperm(count, generator=generator).split(spec.batch_size))
