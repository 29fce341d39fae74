"""Cost of inference: parameters, size of the weights, multiply-adds, latency and throughput."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from statistics import median

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from harness.backbones import build
from harness.core.spec import Head
from harness.inputs import Input
from harness.training.device import MIB, Device
from harness.training.flops import count_flops

LEAST, MOST, SECONDS = 5, 20, 1.0
"""Fewest and most forward passes that are timed, and the time that more than the fewest may take."""
BATCH = 32


def inference_cost(
    backbone: str,
    classes: int,
    resolution: int | None,
    device: Device,
    form: Input | None = None,
    head: Head = "linear",
    depth: int | None = None,
) -> dict[str, float]:
    """Cost of inference on this device, in float32, with the number of threads of this process.

    The cost depends on the architecture only, not on the weights or the strategy: adapters are merged when a
    model is exported. Each network is measured once in a process.

    Args:
        backbone: name of the network.
        classes: size of its head.
        resolution: side of its input; None is its own.
        device: where to compute.
        form: the form of an example; None is what the network takes.
        head, depth: as in a TrialSpec.

    Returns:
        parameters: number of them.
        weights_mib: size of parameters and buffers, as they are exported.
        multiply_adds: of one image, in convolutions, linear layers and attention (torch's FlopCounterMode,
            which counts each as two operations).
        latency_ms, images_per_second: as `speed` measures them.
    """
    threads = torch.get_num_threads()
    return {**_measured(backbone, classes, resolution, form, head, depth, device, threads)}


@lru_cache(maxsize=64)
def _measured(
    name: str,
    classes: int,
    resolution: int | None,
    form: Input | None,
    head: Head,
    depth: int | None,
    device: Device,
    _threads: int,
) -> dict[str, float]:
    backbone = build(
        name, "scratch", classes, 0, device.torch_device, resolution, head=head, depth=depth
    )
    if form is not None:
        backbone = replace(backbone, input=form)
    model = backbone.model.eval()
    tensors = [*model.parameters(), *model.buffers()]

    def blank(count: int) -> torch.Tensor:
        return backbone.prepared(backbone.input.blank(count))

    with sdpa_kernel(SDPBackend.MATH):
        flops = count_flops(model, lambda: model(blank(1)))
    with torch.inference_mode():
        measured = speed(model, blank, device.synchronize)
    return {
        "parameters": float(sum(p.numel() for p in model.parameters())),
        "weights_mib": sum(t.numel() * t.element_size() for t in tensors) / MIB,
        "multiply_adds": flops / 2,
        **measured,
    }


def speed(
    classify: Callable[[torch.Tensor], object],
    images: Callable[[int], torch.Tensor],
    synchronize: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Latency and throughput of anything that classifies images.

    Args:
        classify: classifies a batch.
        images: makes a batch of so many images.
        synchronize: waits until the device has finished all queued work.

    Returns:
        latency_ms: median time of a single image, after warming up.
        images_per_second: median for batches of 32 images, or fewer if these take more than a fifth of a
            second.
    """
    latency = _seconds(classify, images(1), synchronize)
    count = max(1, min(BATCH, int(SECONDS / LEAST / latency)))
    batch = _seconds(classify, images(count), synchronize)
    return {"latency_ms": 1000 * latency, "images_per_second": count / batch}


def _seconds(
    classify: Callable[[torch.Tensor], object],
    images: torch.Tensor,
    synchronize: Callable[[], None],
) -> float:
    """Median time of a batch; the first two do not count."""
    spent: list[float] = []
    while len(spent) < LEAST or (len(spent) < MOST and sum(spent) < SECONDS):
        synchronize()
        since = time.perf_counter()
        classify(images)
        synchronize()
        spent.append(time.perf_counter() - since)
    return median(spent[2:])
