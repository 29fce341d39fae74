"""Cost of using an exported model on this machine: file size, latency and throughput of each file."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch

from harness.backbones import memory_format
from harness.core.errors import counted
from harness.deploy.int8 import INT8
from harness.deploy.model import CPU, WEIGHTS, Model
from harness.deploy.onnx import FILE, logits_of, session
from harness.training.device import MIB, Cpu
from harness.training.inference_cost import speed

RUNTIMES = {WEIGHTS: "torch", FILE: "onnxruntime", INT8: "onnxruntime, 8 bits"}
"""Files that are measured, and by what they are run."""


def cost_in_use(model: Model, folder: Path) -> dict[str, Any]:
    """Measure the files of a model on the CPU.

    Returns:
        hardware: the processor.
        threads: number of them.
        files: name -> size (mib), time of a single image (latency_ms) and throughput (images_per_second).
    """
    return {
        "hardware": Cpu().describe(),
        "threads": torch.get_num_threads(),
        "files": {
            name: {"mib": (folder / name).stat().st_size / MIB, **_speed(model, folder / name)}
            for name in RUNTIMES
            if (folder / name).exists()
        },
    }


def _speed(model: Model, path: Path) -> dict[str, float]:
    form = model.form
    if path.name != WEIGHTS:
        network = partial(logits_of, session(path))
        return speed(network, lambda n: model.prepare(form.blank(n)))
    prepare = form.preparation(CPU, memory_format(model.network, CPU))
    with torch.inference_mode():
        return speed(model.network, lambda n: prepare(form.blank(n)))


def describe_cost(use: dict[str, Any], noun: str) -> list[str]:
    """One line per file; `noun` is what an example is called."""
    return [
        f"{name} ({RUNTIMES[name]}): {cost['mib']:.2f} MiB, {cost['latency_ms']:.2f} ms for a single {noun}, "
        f"{cost['images_per_second']:.0f} {noun}s per second with "
        f"{counted(use['threads'], 'thread')} of {use['hardware']}"
        for name, cost in use["files"].items()
    ]
