"""A run says what computed it: versions, settings, variables that change bits, and no other variable."""

from __future__ import annotations

from importlib.metadata import version

import pytest
import torch

from harness.core.versions import versions
from harness.training.device import Accelerator, Cpu
from harness.training.provenance import VARIABLES, environment


def test_versions_of_what_computes_are_those_installed() -> None:
    tags = environment(Cpu())
    for package in ("torch", "torchvision", "timm", "numpy", "scipy", "scikit-learn", "pillow"):
        assert tags[f"env.{package}"] == version(package)
    assert versions("torch", "no-such-package") == {"torch": version("torch")}


def test_only_variables_that_change_bits_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert environment(Cpu())["env.variables"] == "none"
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    monkeypatch.setenv("MKL_TOKEN", "canary")
    monkeypatch.setenv("PGPASSWORD", "canary")
    tags = environment(Cpu())
    assert tags["env.variables"] == "MKL_CBWR=COMPATIBLE ONEDNN_MAX_CPU_ISA=AVX2"
    assert "canary" not in str(tags)


def test_settings_of_torch_are_recorded() -> None:
    before = environment(Cpu())["env.arithmetic"]
    assert "deterministic=False" in before
    precision = torch.backends.cuda.matmul.fp32_precision
    try:
        torch.use_deterministic_algorithms(True)
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        after = environment(Cpu())["env.arithmetic"]
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cuda.matmul.fp32_precision = precision
    changed = set(after.split()) - set(before.split())
    assert changed == {"deterministic=True", "cuda.matmul=tf32"}
    assert environment(Cpu())["env.arithmetic"] == before


def test_gpu_names_its_libraries_and_everything_fits_one_call_of_mlflow() -> None:
    tags = environment(Accelerator(torch.device("cuda", 0)))
    assert tags["env.cuda"].startswith(f"{torch.version.cuda}, cuDNN ")
    assert "env.cuda" not in environment(Cpu())
    assert len(tags) < 50, "MLflow takes 100 tags a call; the study's own come on top"
    assert all(0 < len(value) < 500 for value in tags.values())
