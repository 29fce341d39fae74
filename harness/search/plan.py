"""The plan of a study: its cells, the seed of each slot, and the share of the cells that one job runs."""

from __future__ import annotations

import re
from dataclasses import dataclass

from harness.core.errors import UserError
from harness.core.folds import Fold
from harness.core.spec import derive_seed
from harness.core.study import Cell, Phase, Study


@dataclass(frozen=True)
class Shard:
    """Every `count`-th cell, from the `number`-th on; numbers start at 1.

    One job of an array runs one shard, with stores of its own; `python -m harness.bundle` merges them.
    """

    number: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """The shard given as text, such as "3/16".

        Raises:
            UserError: if the text is not of that form.
        """
        found = re.fullmatch(r"(\d+)/(\d+)", text.strip())
        shard = cls(int(found[1]), int(found[2])) if found else None
        if shard is None or not 1 <= shard.number <= shard.count:
            raise UserError(f"--cells must be K/N with K from 1 to N, e.g. 3/16, got {text!r}")
        return shard

    def cells(self, study: Study) -> list[Cell]:
        """The cells of the study that belong to this shard.

        Raises:
            UserError: if there are none.
        """
        every = study.cells()
        if self.number > len(every):
            raise UserError(
                f"--cells {self.number}/{self.count} selects no cell: study {study.name!r} has "
                f"{len(every)}, so at most {len(every)} jobs have work"
            )
        return list(every[self.number - 1 :: self.count])


def trial_seed(study: Study, phase: Phase, index: int) -> int:
    """Seed of a trial: one for all tuning trials, so that all configurations are compared on the same
    examples; one per repeat, shared by all cells."""
    if phase == "tune":
        return derive_seed(study.seed, "tune")
    return derive_seed(study.seed, phase, index)


def trial_fold(study: Study, phase: Phase, index: int) -> str:
    """Fold of a trial; "" with a single split. All configurations are scored on the folds of one division,
    each round of repeats on those of a new one.

    Each run still has a seed of its own: runs on the folds of one division share their examples, and nothing
    else.
    """
    if study.fold_count == 1:
        return ""
    number, fold = divmod(index, study.fold_count)
    shuffle = derive_seed(study.seed, "folds", phase, 0 if phase == "tune" else number)
    return str(Fold(fold + 1, study.fold_count, shuffle))
