"""Seeded variants of examples, which can be cached like the examples themselves."""

from __future__ import annotations

from dataclasses import replace

import torch

from harness.core.spec import derive_seed
from harness.core.versions import versions
from harness.data.cached import Cache, CachedView, CacheFull
from harness.data.splits import Examples
from harness.data.target import Indices
from harness.inputs import Augment


def seeded_view(
    examples: Examples, policy: Augment, number: int, seed: int, cache: Cache = Cache()
) -> Examples:
    """One variant of every image, which depends only on (seed, image, number).

    Args:
        examples: n images.
        policy: policy that varies each image by itself.
        number: number of the variant.
        seed: seed of the trial.
        cache: where the variants are stored; if they do not fit, they are kept in memory.

    Returns:
        n examples in the same order.
    """
    vary, values = policy.per_image, examples.values
    assert vary is not None

    def varied(rows: torch.Tensor, which: Indices) -> torch.Tensor:
        seeds = (derive_seed(seed, "view", number, image) for image in which)
        generators = (torch.Generator().manual_seed(s) for s in seeds)
        return torch.cat([vary(x[None], g) for x, g in zip(rows, generators, strict=True)])

    if isinstance(values, CachedView):
        key = {
            "what": f"view {number} by {policy.name}",
            "seed": str(seed),
            "images": values.rows.key,
            **versions("torch", "torchvision"),
        }
        source = values.rows
        try:
            rows = cache.array(key, source.count, source.shape, source.dtype)
            checksums = source.checksums(values.index)
            rows.fill(values.index, checksums, lambda at: varied(source.take(at), at))
            return replace(examples, values=CachedView(rows, values.index))
        except CacheFull:
            pass
    return replace(examples, values=varied(examples.tensor, examples.index))
