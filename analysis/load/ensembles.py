"""Predictions of the ensemble of a cell's repeats: the mean of their class probabilities."""

from __future__ import annotations

import numpy as np
import pandas as pd

ENSEMBLE_COLUMNS = ["cell", "networks", "example", "label", "predicted", "probability"]
"""Cell, number of networks, position of the example, its true class, the predicted class, and the probability
of the true class."""


class Votes:
    """The sum of the class probabilities of several networks for the same examples."""

    def __init__(self) -> None:
        self._labels = pd.Series(dtype=int)
        self._sum = pd.DataFrame()
        self._networks = 0

    def add(self, predictions: pd.DataFrame, by_class: pd.DataFrame) -> None:
        """Add a network.

        Args:
            predictions: its columns example and label.
            by_class: (n, classes) probabilities for the same rows; without columns if they were not kept,
                and then there is no ensemble.
        """
        own = by_class.set_axis(predictions["example"].to_numpy(), axis="index").astype(float)
        if self._networks == 0:
            self._labels = predictions.set_index("example")["label"]
            self._sum = own
        else:
            shared = self._sum.index.intersection(own.index)
            self._sum = self._sum.loc[shared].add(own.loc[shared], axis="columns")
        self._networks += 1

    def ensemble(self) -> pd.DataFrame:
        """ENSEMBLE_COLUMNS without the cell, for the examples that all networks were scored on; no rows for
        fewer than two networks."""
        total = self._sum.dropna(axis="columns", how="all")
        if self._networks < 2 or total.empty or total.isna().to_numpy().any():
            return pd.DataFrame(columns=ENSEMBLE_COLUMNS[1:])
        share = total.to_numpy() / self._networks
        labels = self._labels.loc[total.index].to_numpy()
        return pd.DataFrame(
            {
                "networks": self._networks,
                "example": total.index,
                "label": labels,
                "predicted": share.argmax(axis=1),
                "probability": share[np.arange(len(labels)), labels],
            }
        )
