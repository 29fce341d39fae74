"""What only a machine with an accelerator can show, in one table: forecast against measured memory, replay,
two workers on one device, and trials per hour.

    make gpu                                   # tests/test_gpu.py first
    python -m benchmarks.gpu --on-cpu          # tiny, without an accelerator: tries that everything runs

Images are synthetic, 224 px, in folders of PNG files; networks have random weights, because only time and
memory are measured. All programs compute in channels-last order. Lightning is compared if the extra `bench`
is installed, and the training parts of timm as its train script uses them. Writes gpu.md to
benchmarks/results, and exits with 2 where there is no accelerator.

This has not been run on an accelerator yet. That everything takes at most five minutes is an estimate: after
`--minutes` no further measurement begins, and the table says so.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import importlib.util
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from harness import study
from harness.core import strategies
from harness.core.results import TrialResult
from harness.core.spec import TrialSpec
from harness.data.cached import Cache
from harness.training.device import Device, resolve_device
from harness.training.trial import TrialTask, run_trial

ROOT = Path(__file__).parents[1]
SHARED = """
from harness import Study, TrialSpec, strategies

ARMS = {{"full": lambda t: strategies.FullFineTune()}}


def space(trial, strategy):
    return TrialSpec(strategy=ARMS[strategy](trial), lr=trial.suggest_float("lr", 1e-4, 1e-3), **{fields!r})


study = Study(compare={{"strategy": ARMS}}, space=space, trials=4, repeats=0)
"""
"""A study whose trials two workers share."""
Precision = Literal["float32", "bfloat16"]
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")
Row = tuple[str, str, str]
"""What was measured, under which setting, and the result."""
PEERS = {"Lightning": "lightning", "timm": "timm"}
"""Name of a program -> the library that it needs; it is benchmarks/programs/LIBRARY_gpu.py."""


@dataclass(frozen=True)
class Size:
    """How much is trained.

    Attributes:
        backbone: name of the network.
        resolution: side of the images in pixels.
        per_class: images of each of 10 classes; half of them are training images.
        batch_size: images per step.
    """

    backbone: str = "resnet50"
    resolution: int = 224
    per_class: int = 200
    batch_size: int = 64


TINY = Size("test_resnet", 32, 12, 16)


def make_images(folder: Path, size: Size) -> None:
    """Images of noise around one colour per class, as folder/CLASS/NUMBER.png."""
    random = np.random.default_rng(0)
    side = size.resolution
    for label in range(10):
        (folder / str(label)).mkdir(parents=True)
        for number in range(size.per_class):
            noise = random.integers(0, 64, (side, side, 3)) + 19 * label
            Image.fromarray(noise.astype(np.uint8)).save(folder / str(label) / f"{number}.png")


def fields_of(folder: Path, size: Size) -> dict[str, Any]:
    """The fields of a TrialSpec that all measurements share."""
    shots = size.per_class // 2
    return {
        "target": f"folder:{folder}",
        "backbone": size.backbone,
        "source": "scratch",
        "shots": shots,
        "val_shots": shots // 2,
        "test_shots": shots // 2,
        "resolution": size.resolution,
        "epochs": 2,
        "batch_size": size.batch_size,
    }


def result_of(
    spec: TrialSpec, device: Device, cache: Cache = Cache(), test: bool = False
) -> TrialResult:
    """The result of one trial on the device."""
    for message in run_trial(TrialTask(spec, test, device=device.torch_device.type, cache=cache)):
        if isinstance(message, TrialResult):
            if message.outcome != "complete":
                raise RuntimeError(f"{spec.strategy}: {message.outcome} {message.reason}")
            return message
    raise RuntimeError("the trial gave no result")


def memory_rows(spec: TrialSpec, device: Device) -> Iterator[Row]:
    """The measured peak as a share of the forecast, for six configurations."""
    kinds = strategies.LinearProbe(), strategies.LastBlock(), strategies.FullFineTune()
    for strategy, precision in product(kinds, PRECISIONS):
        changed = dataclasses.replace(spec, strategy=strategy, precision=precision)
        metrics = result_of(changed, device).metrics
        share, resident = (
            metrics.get(name) for name in ("measured_over_forecast", "resident_examples_mib")
        )
        text = "not measured on this device" if share is None else f"{share:.3f}"
        text += f", {resident:.0f} MiB of it examples" if resident else ""
        yield "measured peak / forecast", f"{type(strategy).__name__}, {precision}", text


def replay_rows(spec: TrialSpec, device: Device) -> Iterator[Row]:
    """Whether the same spec gives the same bits twice."""
    for precision in PRECISIONS:
        changed = dataclasses.replace(spec, precision=precision)
        one, other = (result_of(changed, device, test=True) for _ in range(2))
        assert one.predictions is not None
        assert other.predictions is not None
        same = np.array_equal(one.predictions.probability, other.predictions.probability)
        yield "bitwise replay", precision, "equal" if same else "**different**"


def per_hour(run: Callable[[], object]) -> str:
    """Trials per hour, from the second of two runs; in the first, kernels are chosen and compiled."""
    run()
    began = time.perf_counter()
    run()
    return f"{3600 / (time.perf_counter() - began):,.0f}"


def speed_rows(spec: TrialSpec, device: Device, cache: Cache) -> Iterator[Row]:
    """Trials per hour of ours and of other programs."""
    for compiled, precision in product((False, True), PRECISIONS):
        setting = f"{precision}{', compiled' * compiled}"
        changed = dataclasses.replace(spec, precision=precision, compile=compiled)
        yield "ours, trials per hour", setting, per_hour(partial(result_of, changed, device, cache))
        for name, library in PEERS.items():
            text = "not installed"
            if importlib.util.find_spec(library) is not None:
                program = importlib.import_module(f"benchmarks.programs.{library}_gpu")
                text = per_hour(partial(program.train, changed, device.torch_device.type))
            yield f"{name}, trials per hour", setting, text


def sharing_rows(fields: dict[str, Any], device: Device) -> Iterator[Row]:
    """Seconds of a study of four trials with one worker and with two."""
    for workers in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "shared.py")
            file.write_text(SHARED.format(fields=fields))
            words = ["--space", str(file), "--device", device.torch_device.type]
            words += ["--tracking-uri", f"sqlite:///{folder}/mlflow.db", "--workers", str(workers)]
            began = time.perf_counter()
            with contextlib.redirect_stdout(sys.stderr):
                code = study.main([*words, "--cache-dir", f"{folder}/cache"])
            seconds = time.perf_counter() - began
        text = f"{seconds:.1f} s" if code == 0 else f"**failed ({code})**"
        yield "study of 4 trials", f"{workers} worker{'s' * (workers > 1)}", text


def rows(size: Size, device: Device) -> Generator[Row]:
    """Every measurement."""
    with tempfile.TemporaryDirectory() as folder:
        images, cache = Path(folder, "images"), Cache(Path(folder, "cache"), 2**33)
        make_images(images, size)
        fields = fields_of(images, size)
        spec = TrialSpec(strategy=strategies.FullFineTune(), **fields)
        yield from memory_rows(spec, device)
        yield from replay_rows(spec, device)
        yield from sharing_rows(fields, device)
        yield from speed_rows(spec, device, cache)


def markdown(found: Sequence[Row], device: Device) -> str:
    """The table, below the names of the device and of torch."""
    head = [("measured", "setting", "result"), ("---",) * 3, *found]
    lines = ["| " + " | ".join(cells) + " |" for cells in head]
    return "\n".join([f"{device.describe()}, torch {torch.__version__}", "", *lines, ""])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu")
    parser.add_argument("--on-cpu", action="store_true", help="try everything, tiny, on the CPU")
    parser.add_argument("--minutes", type=float, default=4.0, help="of measuring (default: 4)")
    parser.add_argument("--out", type=Path, help="file (default: benchmarks/results/gpu.md)")
    arguments = parser.parse_args(argv)
    device, size = resolve_device("cpu" if arguments.on_cpu else "auto"), Size()
    if arguments.on_cpu:
        size = TINY
    elif device.torch_device.type == "cpu":
        print(
            "error: this machine has no accelerator; --on-cpu tries the program without",
            file=sys.stderr,
        )
        return 2
    found, began = list[Row](), time.monotonic()
    with contextlib.closing(rows(size, device)) as measured:
        for row in measured:
            print(*row, sep=", ", file=sys.stderr, flush=True)
            found.append(row)
            if time.monotonic() - began > 60 * arguments.minutes:
                found.append(
                    ("stopped", f"after {arguments.minutes:g} minutes", "the rest is missing")
                )
                break
    table = markdown(found, device)
    if arguments.out or not arguments.on_cpu:
        (arguments.out or ROOT / "benchmarks" / "results" / "gpu.md").write_text(table)
    print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
