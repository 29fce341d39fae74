"""What would be missed if only the sources that a measure ranks first were fine-tuned? On published tables.

    python -m benchmarks.screening [--tables ../shared/tables]

For each measure and number of sources kept: the share of targets whose best source is not among them, and the
test score (AUC or accuracy) that is lost by that in points, on average and at most. `static` ranks the
sources by their mean rank on the other targets, `random` is the mean of 200 random orders.
docs/pages/race.md has the result.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.report import SCORES

SHARES = (1 / 7, 2 / 7, 1 / 2)
"""Parts of the sources that are kept."""


def medmnist(tables: Path) -> tuple[pd.DataFrame, dict[str, pd.DataFrame]]:
    """Test AUCs (sources x targets), and each measure in the same form."""
    scores = _matrix(tables / "medmnist_AUCs_dataset.csv")
    for name in set(scores.index) & set(scores.columns):  # the target itself is no source
        scores.loc[name, name] = np.nan
    measures = {name: _matrix(tables / f"medmnist_{name}_dataset.csv") for name in SCORES}
    shared = [t for t in scores if all(t in m for m in measures.values())]
    return 100 * scores[shared], measures


def _matrix(path: Path) -> pd.DataFrame:
    return pd.read_csv(path).set_index("source").filter(regex="mnist$")


def torchvision(tables: Path) -> tuple[pd.DataFrame, dict[str, pd.DataFrame]]:
    """Accuracies of ten networks on eight targets, and each measure in the same form."""
    table = pd.read_csv(tables / "tll_model_ranking.csv")
    names = ["finetuned_acc", "HScore", "LEEP", "LogME", "NCE"]
    wide = {n: table.pivot_table(index="model", columns="dataset", values=n) for n in names}
    return wide.pop("finetuned_acc"), wide


def missed(scores: pd.DataFrame, measures: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """One row per measure and number kept: measure, kept, sources, targets, missed, lost, most."""
    static = pd.DataFrame(
        {t: -scores.drop(columns=t).rank(ascending=False).mean(axis=1) for t in scores}
    )
    random = np.random.default_rng(0)
    chance = [
        pd.DataFrame(random.random(scores.shape), scores.index, scores.columns) for _ in range(200)
    ]
    rows = []
    for name, orders in {**{n: [m] for n, m in measures.items()}, "static": [static], "random": chance}.items():  # fmt: skip  # noqa: E501
        for share in SHARES:
            kept = max(1, round(share * len(scores)))
            lost = np.array(
                [_lost(scores[t], m[t], kept) for m in orders for t in scores if t in m]
            )
            rows.append(
                {
                    "measure": name,
                    "kept": kept,
                    "sources": len(scores),
                    "targets": len(scores.columns),
                }
                | {"missed": (lost > 0).mean(), "lost": lost.mean(), "most": lost.max()}
            )
    return pd.DataFrame(rows)


def _lost(scores: pd.Series, measure: pd.Series, kept: int) -> float:
    """Points by which the best of the kept sources is behind the best of all."""
    both = pd.DataFrame({"score": scores, "measure": measure}).dropna()
    first = both.nlargest(kept, "measure")
    return float(both["score"].max() - first["score"].max())


def main() -> int:
    """Print the tables; returns 2 if they are missing."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.screening", description=__doc__)
    default = Path(os.environ.get("HARNESS_TABLES", "../shared/tables"))
    parser.add_argument("--tables", type=Path, default=default)
    tables = parser.parse_args().tables
    if not (tables / "tll_model_ranking.csv").is_file():
        print(f"error: no published tables in {tables}: set HARNESS_TABLES", file=sys.stderr)
        return 2
    for read in (medmnist, torchvision):
        print(missed(*read(tables)).round(2).to_string(index=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
