"""Provenance of a run: hardware, versions, settings and hashes of inputs, needed to repeat it or compare
times."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from harness import backbones, data
from harness.backbones import files_of, weights_sha256
from harness.core.caller import WAITING
from harness.core.spec import TrialSpec
from harness.core.versions import COMPUTING, versions
from harness.data import load_target
from harness.training.device import Device

PACKAGES = (*COMPUTING, "optuna", "mlflow")
VARIABLES = (
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"),
    *("MKL_CBWR", "MKL_DYNAMIC", "MKL_ENABLE_INSTRUCTIONS", "OPENBLAS_CORETYPE"),
    *("ATEN_CPU_CAPABILITY", "NPY_DISABLE_CPU_FEATURES", "NPY_ENABLE_CPU_FEATURES"),
    *("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ONEDNN_DEFAULT_FPMATH_MODE"),
    *("CUBLAS_WORKSPACE_CONFIG", "NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"),
)
"""Environment variables that may change bits. These are recorded and no others: some hold secrets."""


IMAGES, WEIGHTS = "sha256 of the images", "sha256 of the weights"


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
        "env.variables": _listed({v: os.environ[v] for v in VARIABLES if v in os.environ}),
        "env.waiting": _listed({v: os.environ[v] for v in WAITING if v in os.environ}),
        "env.arithmetic": _listed(_arithmetic()),
    }
    if device.torch_device.type == "cuda":
        tags["env.cuda"] = f"{torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    found = {f"env.{package}": number for package, number in versions(*PACKAGES).items()}
    return {**tags, **found, **code_revision()}


def _listed(values: Mapping[str, object]) -> str:
    return " ".join(f"{name}={value}" for name, value in values.items()) or "none"


def _arithmetic() -> dict[str, object]:
    """What torch is set to; a study file may have changed it. Precisions are of float32, per library."""
    backends: Any = torch.backends
    cudnn, onednn = backends.cudnn, backends.mkldnn
    return {
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "cudnn.deterministic": cudnn.deterministic,
        "cudnn.benchmark": cudnn.benchmark,
        "cudnn.conv": cudnn.conv.fp32_precision,
        "cuda.matmul": backends.cuda.matmul.fp32_precision,
        "mkldnn.conv": onednn.conv.fp32_precision,
        "mkldnn.matmul": onednn.matmul.fp32_precision,
    }


@cache
def _images(target: str, _written: bytes) -> str:
    return load_target(target).fingerprint()


@cache
def _weights(source: str, backbone: str, _written: bytes) -> str | None:
    return weights_sha256(source, backbone)


def _written(files: Iterable[Path]) -> bytes:
    """Sizes and times of the files, which change when one of them is written."""
    hashed = hashlib.sha256()
    for path in files:
        try:
            found = path.stat()
            hashed.update(b"%d %d\n" % (found.st_size, found.st_mtime_ns))
        except OSError:
            hashed.update(b"absent\n")
    return hashed.digest()


def inputs_of(target: str, backbone: str, source: str) -> dict[str, str]:
    """Hashes of the images and, unless they are random, of the weights behind these names; a process takes
    them once, and again when a file was written since.

    Raises:
        UserError: if they are not available.
    """
    weights = _weights(source, backbone, _written(files_of(source, backbone)))
    inputs = {IMAGES: _images(target, _written(load_target(target).files()))}
    return inputs | ({WEIGHTS: weights} if weights else {})


def clear_caches() -> None:
    """Forget which images and weights this process has read: in a notebook, files may change between two
    calls."""
    for known in (_images, _weights):
        known.cache_clear()
    data.clear_caches()
    backbones.clear_caches()


def input_tags(inputs: Mapping[str, str]) -> dict[str, str]:
    """The same as tags of a run: "sha256.images", "sha256.weights"."""
    return {name.replace(" of the ", "."): value for name, value in inputs.items()}


def located_anywhere(spec: TrialSpec) -> TrialSpec:
    """The spec with its target named by content, so that images at another path are the same trial."""
    return replace(spec, target=load_target(spec.target).identity)


def provenance_of(spec: TrialSpec) -> dict[str, str]:
    """What determines a trial's results besides its spec: hashes of its inputs and versions of the
    libraries."""
    return {**inputs_of(spec.target, spec.backbone, spec.source), **versions(*COMPUTING)}


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
