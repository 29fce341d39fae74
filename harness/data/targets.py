"""Targets by name: labelled images whose pixels are read on demand.

    python -c "from harness.data import load_target; print(load_target('digits').classes)"

To add a data set, add a function to LOADERS. `harness.data.expressions` describes derived targets such as
digits[classes=0-4].
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from functools import lru_cache

from harness.core.errors import UnknownName
from harness.data.embedded import digits, fashion_mnist, mnist5k
from harness.data.expressions import evaluate
from harness.data.folder import folder_target
from harness.data.huggingface import huggingface_target
from harness.data.options import path_exists, split_options
from harness.data.table import table_target
from harness.data.target import Target
from harness.data.torchvision_sets import TORCHVISION, torchvision_target

LOADERS: dict[str, Callable[[], Target]] = {
    "digits": digits,
    "mnist5k": mnist5k,
    "fashion_mnist": fashion_mnist,
}
"""Targets by name, in addition to torchvision's data sets."""

PATH_LOADERS: dict[str, Callable[[str, Mapping[str, str]], Target]] = {
    "folder": folder_target,
    "csv": table_target,
    "hf": huggingface_target,
}
"""Targets by path, given as KIND:PATH or KIND:PATH[OPTION=VALUE,...]."""


@lru_cache(maxsize=32)
def load_target(name: str) -> Target:
    """The target of that name, or the target that an expression describes.

    Raises:
        UserError: if there is no such target (near matches are listed), or its files are missing or unusable.
    """
    kind, _, path = name.partition(":")
    by_path = bool(path) and kind in PATH_LOADERS
    # A path that exists as written is not an expression, even if it contains brackets.
    if not (by_path and path_exists(path)) and (made := evaluate(name, load_target)) is not None:
        return made
    if by_path:
        return PATH_LOADERS[kind](*split_options(kind, path))
    if name in LOADERS:
        return LOADERS[name]()
    if name.lower() in TORCHVISION:
        return torchvision_target(name)
    known = [*LOADERS, *TORCHVISION]
    near = difflib.get_close_matches(name.lower(), known, n=3)
    raise UnknownName(
        f"unknown target {name!r}; "
        + (
            f"did you mean {', '.join(near)}?"
            if near
            else f"known: folder:PATH, csv:PATH, hf:PATH, {', '.join(known)}"
        )
    )
