"""Studies made for tests of the analysis: tables as analysis.load gives them."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.load import Info, StudyTable
from analysis.load import study as load

SEEDS = range(6)
CONSTANT: dict[str, object] = {"env.torch": "2.14.0", "env.dirty": "false", "param.epochs": 3.0}


def trial(
    cell: str, phase: str, index: int, accuracy: float | None, **more: object
) -> dict[str, object]:
    """One run as analysis.load gives it; `accuracy` None is a trial that gave no score."""
    scored = {} if accuracy is None else {"val_score": accuracy, "val_loss": 1 - accuracy}
    if phase == "repeat" and accuracy is not None:
        scored |= {"test_score": accuracy, "test_accuracy": accuracy}
    named = {"run_id": f"{cell}-{phase}-{index}", "cell": cell, "phase": phase, "index": index}
    return named | {"seed": index, "param.lr": 10.0 ** -(index + 1)} | scored | more


def frame(rows: Sequence[Mapping[str, object]], **common: object) -> pd.DataFrame:
    """Runs with every column of analysis.load; what neither a row nor `common` has is missing."""
    numbers = [*load.EPOCH_METRICS, *load.FINAL_METRICS]
    base = ["run_id", "superseded", *load.TEXT_TAGS, *load.INTEGER_TAGS, *numbers]
    blank = {"outcome": "complete", "superseded": False, "device": "cpu", "threads": 2}
    made = pd.DataFrame(
        [
            {"run_id": f"run{i}", "index": i, "seed": i} | blank | common | dict(row)
            for i, row in enumerate(rows)
        ]
    )
    made = made.reindex(columns=list(dict.fromkeys([*base, *made.columns])))
    types = dict.fromkeys(numbers, "float") | dict.fromkeys(load.INTEGER_TAGS, "Int64")
    return made.astype(types | {"superseded": "bool"})


def repeats(cell: str, scores: Sequence[float], **more: object) -> list[dict[str, object]]:
    """Repeats with these test scores, on seeds 0, 1, ..."""
    return [
        {"cell": cell, "phase": "repeat", "index": i, "seed": i, "test_score": s} | more
        for i, s in enumerate(scores)
    ]


def tuned(cell: str, scores: Sequence[float], **more: object) -> list[dict[str, object]]:
    """Tuning trials with these validation scores."""
    return [
        {"cell": cell, "phase": "tune", "index": i, "val_score": s, "val_loss": 1 - s} | more
        for i, s in enumerate(scores)
    ]


def predicted(cell: str, right: np.ndarray, group: np.ndarray | None = None) -> pd.DataFrame:
    """Predictions of a cell from a 0/1 matrix, seeds x examples; `group` is of each example."""
    seeds, examples = np.indices(right.shape)
    kept = {"run_id": "r", "cell": cell, "seed": seeds.ravel(), "example": examples.ravel()}
    made = pd.DataFrame(kept | {"label": 1, "predicted": right.ravel().astype(int)})
    return made if group is None else made.assign(group=np.tile(group, len(right)))


def table(
    rows: Sequence[Mapping[str, object]],
    factors: Mapping[str, list[str]] | None = None,
    baseline: Mapping[str, str] | None = None,
    question: str = "How deep?",
    repeats: int = len(SEEDS),
    **more: Any,
) -> StudyTable:
    """A study of these runs; `more` are further fields of its Info."""
    factors = dict(factors or {"strategy": sorted({str(row["cell"]) for row in rows})})
    asked: dict[str, Any] = {"question": question, "command": "python -m study", "trials": 1}
    info = Info("depth", factors, baseline=dict(baseline or {}), repeats=repeats, **asked, **more)
    runs = frame(rows, **CONSTANT)
    runs["start_time"] = pd.Timestamp("2026-01-02 03:04", tz="UTC")
    epochs = pd.DataFrame(
        [
            {"run_id": run, "epoch": e, "val_score": a * (e + 1) / 3}
            for run, a in zip(runs["run_id"], runs["val_score"], strict=True)
            for e in range(3)
        ],
        columns=["run_id", "epoch", *load.EPOCH_METRICS],
    )
    tested = runs.dropna(subset="test_accuracy")
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
    return StudyTable(info, "sqlite:////data/mlflow.db", runs, epochs, predictions)


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


def words_of(page: Path) -> str:
    """The words of a report, without tags and pictures."""
    text = re.sub(
        r"<style>.*?</style>|<script>.*?</script>|<[^>]+>",
        " ",
        page.read_text(encoding="utf-8"),
        flags=re.DOTALL,
    )
    return " ".join(html.unescape(text).split())
