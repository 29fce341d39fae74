"""The metrics by which a study chooses, and the rule by which one of its cells is chosen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

Selectable = Literal["accuracy", "balanced_accuracy", "macro_f1", "auroc", "log_loss"]
"""Names of the metrics by which a study can choose."""


@dataclass(frozen=True)
class Metric:
    """The names of a metric, and whether higher or lower values are better.

    Attributes:
        name: name in study files.
        label: name in text.
        less_is_better: whether lower values are better. Such metrics are losses or errors; all others are
            shares in [0, 1].
    """

    name: str
    label: str
    less_is_better: bool = False

    @property
    def validation(self) -> str:
        """Name of its recorded value on the validation images."""
        return self._on("val")

    @property
    def test(self) -> str:
        """Name of its recorded value on the test images."""
        return self._on("test")

    def _on(self, part: str) -> str:
        return f"{part}_loss" if self.name == "log_loss" else f"{part}_{self.name}"

    def merit(self, values: Mapping[str, float]) -> float:
        """Its validation value, negated if lower is better; NaN if it is not among the recorded values."""
        value = values.get(self.validation, math.nan)
        return -value if self.less_is_better else value

    @property
    def best(self) -> str:
        """Which of its values is the best, in text."""
        return "lowest" if self.less_is_better else "highest"

    @property
    def unit(self) -> str:
        """What follows its label at the head of a column of numbers: ", %" or nothing."""
        return "" if self.less_is_better else ", %"

    @property
    def form(self) -> tuple[str, float]:
        """Format and scale of the numbers in such a column."""
        return (".3f", 1) if self.less_is_better else (".1f", 100)

    def text(self, value: float) -> str:
        """A value as text."""
        return f"{value:.3f}" if self.less_is_better else f"{value:.1%}"


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("accuracy", "accuracy"),
        Metric("balanced_accuracy", "balanced accuracy"),
        Metric("macro_f1", "macro F1"),
        Metric("auroc", "AUROC"),
        Metric("log_loss", "log loss", less_is_better=True),
        Metric("brier", "Brier score", less_is_better=True),
        Metric("ece", "expected calibration error", less_is_better=True),
    )
}
"""By name; they are computed in `harness.core.metrics`."""
assert set(get_args(Selectable)) <= METRICS.keys()


def preference(validation: float, seconds: float = math.nan) -> tuple[float, float]:
    """Sort key of a cell; the chosen cell is the one with the least key.

    The cell with the highest mean validation score over its repeats is chosen; of equals the one that trains
    faster. Test scores play no part, so that the test score of the chosen cell is not biased by the choice.

    Args:
        validation: mean validation score over the repeats, higher is better; NaN if it has none.
        seconds: mean training time of a repeat; NaN if unknown.
    """
    return (
        math.inf if math.isnan(validation) else -validation,
        math.inf if math.isnan(seconds) else seconds,
    )
