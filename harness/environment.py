"""On what was this computed? What a reader must know to repeat a run or to compare its times."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import torch

from harness.measure import Device
from harness.spec import versions

PACKAGES = ("torch", "torchvision", "timm", "optuna", "mlflow")


def environment(device: Device) -> dict[str, str]:
    """Tags of every run: device and threads, and under `env.` hardware, system, versions and revision."""
    tags = {
        "device": device.name,
        "threads": str(torch.get_num_threads()),
        "env.hardware": device.describe(),
        "env.cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "env.host": platform.node(),
        "env.platform": platform.platform(),
        "env.python": platform.python_version(),
    }
    found = {f"env.{package}": number for package, number in versions(*PACKAGES).items()}
    return {**tags, **found, **code_revision()}


def code_revision() -> dict[str, str]:
    """Git revision of the harness and whether it was changed since; empty outside a checkout."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return {"env.revision": git("rev-parse", "HEAD"), "env.dirty": str(bool(changed)).lower()}
    except (OSError, subprocess.CalledProcessError):
        return {}
