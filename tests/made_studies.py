"""Studies made for tests of the analysis: tables as analysis.load gives them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from analysis.load import Info, StudyTable
from analysis.load import study as load

SEEDS = range(6)
CONSTANT = {
    "device": "cpu",
    "threads": 2,
    "env.torch": "2.14.0",
    "env.dirty": "false",
    "param.epochs": 3.0,
}


def trial(
    cell: str, phase: str, index: int, accuracy: float | None, **more: object
) -> dict[str, object]:
    """One run as analysis.load gives it; `accuracy` None is a trial that gave no score."""
    scored = {} if accuracy is None else {"val_score": accuracy, "val_loss": 1 - accuracy}
    if phase == "repeat" and accuracy is not None:
        scored |= {"test_score": accuracy, "test_accuracy": accuracy}
    return (
        {"run_id": f"{cell}-{phase}-{index}", "cell": cell, "phase": phase, "index": index}
        | {
            "seed": index,
            "outcome": "complete",
            "superseded": False,
            "param.lr": 10.0 ** -(index + 1),
        }
        | scored
        | more
    )


def table(
    rows: Sequence[Mapping[str, object]],
    factors: Mapping[str, list[str]] | None = None,
    baseline: Mapping[str, str] | None = None,
    question: str = "How deep?",
    repeats: int = len(SEEDS),
) -> StudyTable:
    factors = dict(factors or {"strategy": sorted({str(row["cell"]) for row in rows})})
    info = Info("depth", question, "python -m study", factors, dict(baseline or {}), 1, repeats)
    base = [*load.TEXT_TAGS, *load.INTEGER_TAGS, *load.EPOCH_METRICS, *load.FINAL_METRICS]
    frame = pd.DataFrame([CONSTANT | dict(row) for row in rows])
    frame = frame.reindex(
        columns=list(dict.fromkeys(["run_id", "superseded", *base, *frame.columns]))
    )
    numeric = [*load.EPOCH_METRICS, *load.FINAL_METRICS]
    frame = frame.astype(dict.fromkeys(numeric, float) | dict.fromkeys(load.INTEGER_TAGS, "Int64"))
    frame["superseded"] = frame["superseded"].astype(bool)
    frame["start_time"] = pd.Timestamp("2026-01-02 03:04", tz="UTC")
    epochs = pd.DataFrame(
        [
            {"run_id": run, "epoch": e, "val_score": a * (e + 1) / 3}
            for run, a in zip(frame["run_id"], frame["val_score"], strict=True)
            for e in range(3)
        ],
        columns=["run_id", "epoch", *load.EPOCH_METRICS],
    )
    tested = frame.dropna(subset="test_accuracy")
    predictions = pd.DataFrame(  # a thousand images, of which as many right as the score says
        {
            "run_id": np.repeat(tested["run_id"].to_numpy(), 1000),
            "cell": np.repeat(tested["cell"].to_numpy(), 1000),
            "seed": np.repeat(tested["seed"].to_numpy(), 1000),
            "example": np.tile(np.arange(1000), len(tested)),
            "label": 1,
            "predicted": np.concatenate(
                [[], *((np.arange(1000) < round(1000 * a)) for a in tested["test_accuracy"])]
            ).astype(int),
            "confidence": 0.9,
        }
    )
    return StudyTable(info, "sqlite:////data/mlflow.db", frame, epochs, predictions)


def scored(
    cell: str, accuracy: float, seconds: float = 3.0, **more: object
) -> list[dict[str, object]]:
    """One tuning trial and six repeats around `accuracy`."""
    cost = {"train_seconds": seconds, "peak_process_rss_mib": 100 * seconds}
    wobble = [0.001 * ((7 * s) % 5 - 2) for s in SEEDS]
    repeats = [
        trial(cell, "repeat", s, accuracy + w, **cost, **more)
        for s, w in zip(SEEDS, wobble, strict=True)
    ]
    return [trial(cell, "tune", 0, accuracy), *repeats]
