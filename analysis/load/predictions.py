"""Read the test predictions of repeats, and make those of the ensemble of each cell's repeats."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pandas as pd
from pyarrow import parquet

from analysis.load.client import Client
from analysis.load.ensembles import ENSEMBLE_COLUMNS, Votes
from harness.core.addresses import local_folder
from harness.core.results import CLASS_COLUMN, OPTIONAL_COLUMNS, PREDICTIONS_FILE

PREDICTION_TYPES = {
    "example": int,
    "label": int,
    "predicted": int,
    "probability": float,
    "confidence": float,
}


def predictions_frames(
    trials: pd.DataFrame, folders: dict[str, str], uri: str
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Test predictions of every complete repeat, and those of the ensemble of each cell's repeats; a repeat
    whose file is missing has no rows.

    Args:
        trials: from `trials_frame`.
        folders: run_id -> artifact URI.
        uri: the store, which is asked for files that are not on this machine.
    """
    repeats = trials[(trials["phase"] == "repeat") & (trials["outcome"] == "complete")]
    frames, together = [], [pd.DataFrame(columns=ENSEMBLE_COLUMNS)]
    with tempfile.TemporaryDirectory() as temporary:
        for cell, own in repeats.groupby("cell", sort=False):
            # Of one cell at a time: the probabilities of all classes take much memory.
            votes = Votes()
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
                    votes.add(table, by_class)
                for position, name in enumerate(("run_id", "cell", "seed")):
                    table.insert(position, name, run[name])
                frames.append(table)
            together.append(votes.ensemble().assign(cell=cell))
    columns = ["run_id", "cell", "seed", *PREDICTION_TYPES]
    ensembles = pd.concat([t for t in together if len(t)] or together, ignore_index=True)
    if not frames:
        return pd.DataFrame(columns=columns), ensembles
    columns += [name for name in OPTIONAL_COLUMNS if any(name in frame for frame in frames)]
    return pd.concat(frames, ignore_index=True).reindex(columns=columns), ensembles


def _read_predictions(file: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The predictions of one run, and the probability of every class; without columns if it was not kept."""
    read: pd.DataFrame = parquet.read_table(file).to_pandas()
    by_class = [name for name in read if str(name).startswith(CLASS_COLUMN)]
    return read.drop(columns=by_class).astype(PREDICTION_TYPES), read[by_class]
