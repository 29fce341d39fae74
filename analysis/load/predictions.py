"""Read the test predictions of repeats, and compute those of the ensemble of each cell's repeats."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from pyarrow import parquet

from analysis.load.client import Client
from harness.core.addresses import local_folder
from harness.core.results import CLASS_COLUMN, OPTIONAL_COLUMNS, PREDICTIONS_FILE

PREDICTION_TYPES = {
    "example": int,
    "label": int,
    "predicted": int,
    "probability": float,
    "confidence": float,
}


PREDICTION_COLUMNS = ["run_id", "cell", "seed", *PREDICTION_TYPES]
ENSEMBLE_COLUMNS = ["cell", "networks", "example", "label", "predicted", "probability"]
"""Cell, number of networks, number of the example, its true class, the predicted class, and the probability
of the true class."""


def predictions_frames(
    trials: pd.DataFrame, folders: dict[str, str], uri: str
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Test predictions of all complete repeats, and of the ensemble of each cell's repeats (mean of class
    probabilities). A repeat whose file is missing has no rows.

    Args:
        trials: from `trials_frame`.
        folders: run_id -> artifact URI.
        uri: the store, from which files are downloaded that are not on this machine.
    """
    repeats = trials[(trials["phase"] == "repeat") & (trials["outcome"] == "complete")]
    frames, together = [], [pd.DataFrame(columns=ENSEMBLE_COLUMNS)]
    with tempfile.TemporaryDirectory() as temporary:
        for cell, own in repeats.groupby("cell", sort=False):
            # Summed as they are read: the probabilities of all classes take much memory.
            counted, total = list[pd.DataFrame](), pd.DataFrame()
            for run in own.to_dict("records"):
                run_id, folder = run["run_id"], local_folder(folders[run["run_id"]])
                try:
                    if folder is None:
                        place = Path(temporary, run_id)
                        folder = Client(uri).download(run_id, PREDICTIONS_FILE, place)
                    table, by_class = _read_predictions(folder / PREDICTIONS_FILE)
                except (OSError, ValueError):
                    continue
                if not run["superseded"]:
                    by_class = by_class.set_axis(table["example"]).astype(float)
                    total = total + by_class if counted else by_class
                    counted.append(table)
                for position, name in enumerate(("run_id", "cell", "seed")):
                    table.insert(position, name, run[name])
                frames.append(table)
            together.append(_ensemble(counted, total).assign(cell=cell))
    ensembles = pd.concat([t for t in together if len(t)] or together, ignore_index=True)
    if not frames:
        return pd.DataFrame(columns=PREDICTION_COLUMNS), ensembles
    predictions = pd.concat(frames, ignore_index=True)
    more = [name for name in OPTIONAL_COLUMNS if name in predictions]
    return predictions.reindex(columns=[*PREDICTION_COLUMNS, *more]), ensembles


def _ensemble(networks: Sequence[pd.DataFrame], total: pd.DataFrame) -> pd.DataFrame:
    """ENSEMBLE_COLUMNS without the cell, for the examples on which all networks were scored; no rows for
    fewer than two networks, or if one of them did not record the probabilities of all classes.

    Args:
        networks: predictions of each network.
        total: (examples, classes) sum of their probabilities; NaN where one of them has none.
    """
    total = total.dropna(axis="columns", how="all").dropna()
    if len(networks) < 2 or total.empty:
        return pd.DataFrame(columns=ENSEMBLE_COLUMNS[1:])
    share = total.to_numpy() / len(networks)
    labels = networks[0].set_index("example").loc[total.index, "label"].to_numpy()
    return pd.DataFrame(
        {
            "networks": len(networks),
            "example": total.index,
            "label": labels,
            "predicted": share.argmax(axis=1),
            "probability": share[np.arange(len(labels)), labels],
        }
    )


def _read_predictions(file: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The predictions of one run, and the probability of every class; without columns if it was not
    recorded."""
    read: pd.DataFrame = parquet.read_table(file).to_pandas()
    by_class = [name for name in read if str(name).startswith(CLASS_COLUMN)]
    return read.drop(columns=by_class).astype(PREDICTION_TYPES), read[by_class]
