"""Sources of our own: training them, measuring their similarity to a target, ranking them.

from harness.similarity.sources import SourceSpec

sources = [SourceSpec("garments", data="fashion_mnist[classes=0-4]", shots=300, steps=600, models=3)]
"""

from harness.similarity.sources.spec import SourceSpec

__all__ = ["SourceSpec"]
