"""Seconds from the command to the first finished trial: a linear probe on digits, in an empty folder with an
empty cache.

    python -m benchmarks.first_result

Prints one line of JSON. `imports` is the time that importing torch, torchvision's models and timm takes.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STUDY = """
from harness import Study, TrialSpec, strategies

ARMS = {"linear probe": lambda t: strategies.LinearProbe()}


def space(trial, strategy):
    return TrialSpec(
        target="digits", backbone="tf_efficientnet_lite0", source="imagenet", strategy=ARMS[strategy](trial),
        shots=30, val_shots=20, test_shots=50, resolution=48, epochs=4, batch_size=16,
        lr=trial.suggest_float("lr", 3e-4, 3e-2, log=True),
    )


study = Study(compare={"strategy": ARMS}, space=space, trials=1, repeats=0)
"""
LIBRARIES = "import torch, torchvision.models, timm"


def seconds_to_first_result() -> float:
    """From the start of the process to its first line about a trial."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "probe.py").write_text(STUDY)
        command = [
            sys.executable,
            "-m",
            "harness.study",
            "--space",
            "probe.py",
            "--cache-dir",
            "cache",
        ]
        began = time.perf_counter()
        with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            first = next(line for line in process.stdout if line.startswith("["))
            seconds = time.perf_counter() - began
            process.communicate()
    assert "validation" in first, first
    return seconds


def main() -> None:
    """The program."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", LIBRARIES], check=True)
    imports = time.perf_counter() - began
    print(json.dumps({"seconds": seconds_to_first_result(), "imports": imports}))


if __name__ == "__main__":
    main()
