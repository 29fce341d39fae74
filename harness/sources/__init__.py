"""Sources of our own: how they are trained, how alike they are to a target, which of them to choose.

from harness.sources import SourceSpec

sources = [SourceSpec("garments", data="fashion_mnist[classes=0-4]", shots=300, steps=600, models=3)]
"""

from harness.sources.spec import SourceSpec

__all__ = ["SourceSpec"]
