"""How is a program told what to do, and how is it timed? Alike for all of them.

    python -m benchmarks.programs.tutorial --work linear_probe --trials 1 --data DIR

prints one line of JSON: seconds (imports and data folder done before; all else within), accuracy (median
over trials of the last epoch's validation accuracy), accuracies, peak_rss_mib of the process (workers that
it starts are not in it) and trials.
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
"""Groups at the head's end that train; all of them in a full fine-tune."""


@dataclass(frozen=True)
class Task:
    """What the command line asks for."""

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
    """The pretrained network with a head re-made; its groups run from stem to head."""
    return build(recipe.BACKBONE, "imagenet", recipe.CLASSES, seed=0, resolution=recipe.SIZE)


def plain_network() -> Backbone:
    """The network as libraries hand it out: parameters in the default, contiguous, order."""
    backbone = network()
    backbone.model.to(memory_format=torch.contiguous_format)
    return backbone


def frozen_and_trained(
    backbone: Backbone, work: str
) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Parameters that stay and parameters that learn."""
    cut = len(backbone.groups) - TRAINED_GROUPS.get(work, len(backbone.groups))
    parts = backbone.groups[:cut], backbone.groups[cut:]
    frozen, trained = ([p for g in part for p in g.parameters.values()] for part in parts)
    return frozen, trained


def frozen_modules_in_eval(backbone: Backbone, work: str) -> None:
    """train() where something learns, eval() elsewhere: frozen batch norms keep their statistics."""
    count = len(backbone.groups)
    backbone.train_mode(range(count - TRAINED_GROUPS.get(work, count), count))


class Peak:
    """Highest VmHWM of this process. Looked at all along, because the harness sets it back at each trial."""

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
    """Time `run`, which returns one accuracy per trial, and print the line."""
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
