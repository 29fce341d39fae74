"""The images of a trial: targets (data sets by name), splits, seeded variants, shifts, and leakage checks.

The name of a target and a seed determine the training, validation and test images. Only this package uses
torchvision's data sets.
"""

from harness.data import cached
from harness.data.images import as_jpeg, open_image
from harness.data.leakage import Leak, describe_leaks, find_leaks
from harness.data.shift import shifted
from harness.data.splits import (
    Examples,
    SplitIndices,
    images_per_class,
    read_examples,
    split_indices,
)
from harness.data.target import ArrayTarget, Target
from harness.data.targets import LOADERS, load_target
from harness.data.views import seeded_view

__all__ = [
    "LOADERS",
    "ArrayTarget",
    "Examples",
    "Leak",
    "SplitIndices",
    "Target",
    "as_jpeg",
    "clear_caches",
    "describe_leaks",
    "find_leaks",
    "images_per_class",
    "load_target",
    "open_image",
    "read_examples",
    "seeded_view",
    "shifted",
    "split_indices",
]


def clear_caches() -> None:
    """Forget all targets that were read, so that the next use reads them again."""
    load_target.cache_clear()
    read_examples.cache_clear()
    cached.clear_caches()
