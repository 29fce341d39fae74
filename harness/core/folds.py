"""K-fold resampling: the fold that a run is validated on, and the variance of the mean of such runs."""

from __future__ import annotations

import re
from dataclasses import dataclass

from harness.core.errors import UserError


@dataclass(frozen=True)
class Fold:
    """One fold of a division of a target's images, written as "2/5 of shuffle 1234".

    Attributes:
        number: of the fold whose images are the validation images, counted from 1.
        count: number of folds.
        shuffle: seed of the division into folds.
    """

    number: int
    count: int
    shuffle: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count} of shuffle {self.shuffle}"

    @classmethod
    def parse(cls, text: object) -> Fold:
        """The fold given as text.

        Raises:
            UserError: if the text is not of that form.
        """
        found = re.fullmatch(r"(\d+)/(\d+) of shuffle (\d+)", str(text))
        fold = cls(*map(int, found.groups())) if found else None
        if fold is None or fold.count < 2 or not 1 <= fold.number <= fold.count:
            raise UserError(
                f"TrialSpec: fold must be 'K/N of shuffle SEED' with K from 1 to N, got {text!r}"
            )
        return fold


def independent_runs(n: int, folds: int = 1) -> float:
    """Number of independent runs whose mean has the standard error of the mean of n runs.

    The runs of (repeated) k-fold cross-validation share images, so they are correlated, and sd / sqrt(n) is
    far too small. The corrected variance of their mean is (1 / n + n_val / n_train) sd^2 (Nadeau and Bengio
    2003), here written as sd^2 / independent_runs(n, folds), with n_val / n_train = 1 / (folds - 1). As in
    Bouckaert and Frank (2004) n counts the runs of all repetitions, and t has n - 1 degrees of freedom. It
    tends to folds - 1: further repetitions do not make new images.

    Args:
        n: number of runs.
        folds: number of folds; 1 if the runs are independent, of which there are n.
    """
    return n if folds == 1 else n / (1 + n / (folds - 1))
