"""Packages that the harness uses, and their versions."""

from __future__ import annotations

from functools import cache

COMPUTING = (
    *"torch torchvision torchaudio timm numpy scipy scikit-learn pillow peft".split(),
    *"soundfile tokenizers transformers".split(),
)
"""Packages whose version may change what a trial computes."""
IMPORTED = frozenset(
    "PIL alembic datasets jinja2 matplotlib mlflow numpy onnx optuna ot pandas peft pyarrow ray rich "
    "safetensors scipy seaborn sklearn soundfile sqlalchemy statsmodels timm tokenizers torch "
    "torchvision transformers".split()
)
"""Top-level modules of installed packages that the harness imports, some of them late."""


@cache
def _version(package: str) -> str | None:
    from importlib import metadata  # slow to import, and --help needs no versions

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def versions(*packages: str) -> dict[str, str]:
    """Package -> its version, of those that are installed."""
    return {package: found for package in packages if (found := _version(package)) is not None}
