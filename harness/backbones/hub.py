"""Files of the Hugging Face Hub."""

from __future__ import annotations

import socket
from functools import lru_cache
from pathlib import Path

from harness.core.errors import one_line


def is_unreachable() -> bool:
    """Whether the hub cannot be reached. Its client would retry for most of a minute before it fails."""
    try:
        socket.create_connection(("huggingface.co", 443), timeout=3).close()
    except OSError:
        return True
    return False


@lru_cache(maxsize=64)
def hub_folder(name: str, files: tuple[str, ...]) -> Path:
    """A folder with some files of a model, from the cache of the hub's client or downloaded into it.

    Args:
        name: name of the model.
        files: patterns of the files.

    Raises:
        UserError: if they are not on this machine and cannot be downloaded.
    """
    from huggingface_hub import snapshot_download

    with one_line(
        f"model {name} is not on this machine and could not be loaded from the hub",
        "; run once with network access, or use a folder, transformers:PATH",
    ):
        return Path(
            snapshot_download(name, allow_patterns=list(files), local_files_only=is_unreachable())
        )
