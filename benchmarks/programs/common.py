"""Command line and timing that all programs share.

    python -m benchmarks.programs.tutorial --work linear_probe --trials 1 --data DIR

prints one line of JSON: seconds (without imports and the creation of the data folder, with everything else),
accuracy (median over trials of the validation accuracy of the last epoch), accuracies, peak_rss_mib of the
process (without the workers that it starts) and trials.
"""

from __future__ import annotations

import argparse
import json
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from torch import nn

from benchmarks import recipe
from harness.backbones import Backbone, build

EVERY_SECONDS = 0.05
TRAINED_GROUPS = {"linear_probe": 1, "last_block": 2}
"""Number of groups that train, counted from the head; all groups in full fine-tuning."""


@dataclass(frozen=True)
class Task:
    """The settings from the command line."""

    work: str
    trials: int
    data: Path

    def rates(self) -> list[float]:
        """Peak learning rate of each trial."""
        return recipe.rates(self.work, self.trials)


def parser() -> argparse.ArgumentParser:
    """The command line of every program."""
    made = argparse.ArgumentParser()
    made.add_argument("--work", required=True, choices=recipe.WORKS)
    made.add_argument("--trials", type=int, default=1)
    made.add_argument("--data", type=Path, required=True, help="folder made by benchmarks.data")
    return made


def task_from(arguments: argparse.Namespace) -> Task:
    """The task of parsed arguments."""
    return Task(arguments.work, arguments.trials, arguments.data.resolve())


def network() -> Backbone:
    """The pretrained network with a new head; its groups are ordered from stem to head."""
    return build(recipe.BACKBONE, "imagenet", recipe.CLASSES, seed=0, resolution=recipe.SIZE)


def plain_network() -> Backbone:
    """The network as libraries return it, with parameters in the default, contiguous order."""
    backbone = network()
    backbone.model.to(memory_format=torch.contiguous_format)
    return backbone


def frozen_and_trained(
    backbone: Backbone, work: str
) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The frozen parameters and the trained ones."""
    cut = len(backbone.groups) - TRAINED_GROUPS.get(work, len(backbone.groups))
    parts = backbone.groups[:cut], backbone.groups[cut:]
    frozen, trained = ([p for g in part for p in g.parameters.values()] for part in parts)
    return frozen, trained


def frozen_modules_in_eval(backbone: Backbone, work: str) -> None:
    """Put trained modules in train() and the others in eval(), so that frozen batch norms keep their
    statistics."""
    count = len(backbone.groups)
    backbone.train_mode(range(count - TRAINED_GROUPS.get(work, count), count))


class Peak:
    """Highest VmHWM of this process, read repeatedly, because the harness resets it at each trial."""

    def __init__(self) -> None:
        self.mib = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stop.wait(EVERY_SECONDS):
            self._look()

    def _look(self) -> None:
        found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
        self.mib = max(self.mib, int(found[1]) / 1024 if found else 0.0)

    def stop(self) -> float:
        """The peak in MiB."""
        self._stop.set()
        self._thread.join()
        self._look()
        return self.mib


def measure(task: Task, run: Callable[[], Sequence[float]], **more: object) -> None:
    """Measure `run`, which returns one accuracy per trial, and print the line of JSON."""
    peak, start = Peak(), time.perf_counter()
    accuracies = list(run())
    line = {
        "seconds": time.perf_counter() - start,
        "accuracy": median(accuracies),
        "peak_rss_mib": peak.stop(),
        "trials": len(accuracies),
        "accuracies": accuracies,
        "work": task.work,
        "threads": torch.get_num_threads(),
        **more,
    }
    print(json.dumps(line), flush=True)
