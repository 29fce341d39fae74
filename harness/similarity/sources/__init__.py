"""Sources trained with this harness: pretraining, similarity to a target, and ranking.

from harness.similarity.sources import SourceSpec

sources = [SourceSpec("garments", data="fashion_mnist[classes=0-4]", shots=300, steps=600, models=3)]
"""

from harness.similarity.sources.spec import SourceSpec

__all__ = ["SourceSpec"]
