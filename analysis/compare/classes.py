"""Metrics other than the compared one, results by class, and calibration.

    python -c "from analysis import compare, load_study; t = load_study('freeze_depth'); \\
               print(compare.by_metric(t.trials, t.info))"
"""

from __future__ import annotations

import json
import math
from contextlib import suppress

import numpy as np
import pandas as pd

from analysis.compare.runs import cells, completed, mean_interval
from analysis.load.study import Info
from harness.core.metrics import by_class, calibration, confusion
from harness.core.selection import METRICS

UNEQUAL = 1.5
"""Classes are unequal if the largest has more than this many times the test examples of the smallest."""


def by_metric(trials: pd.DataFrame, info: Info) -> pd.DataFrame:
    """All metrics that were recorded on the test examples, for each cell.

    Returns:
        cell, metric (its name), n (repeats), validation (mean over the repeats; NaN if it was not recorded),
        mean, low, high (of the test values, 95% t interval over seeds).
    """
    repeats, rows = completed(trials, "repeat"), []
    for cell in cells(info.factors)["cell"]:
        own = repeats[repeats["cell"] == cell]
        for metric in METRICS.values():
            if metric.test not in own or own[metric.test].isna().all():
                continue
            inside = (0.0, math.inf if metric.less_is_better else 1.0)
            mean, _, low, high = mean_interval(own[metric.test], within=inside, folds=info.folds)
            known = own[metric.validation] if metric.validation in own else pd.Series(dtype=float)
            rows.append(
                {"cell": cell, "metric": metric.name, "n": int(own[metric.test].notna().sum())}
                | {"validation": float(known.mean()), "mean": mean, "low": low, "high": high}
            )
    return pd.DataFrame(rows, columns=["cell", "metric", "n", "validation", "mean", "low", "high"])


def class_sizes(predictions: pd.DataFrame) -> pd.Series:
    """Number of test examples of each class, by label; the mean over the runs."""
    runs = max(1, predictions["run_id"].nunique())
    return predictions.groupby("label").size() / runs


def are_unequal(predictions: pd.DataFrame) -> bool:
    """Whether the classes of the test set are of unequal size."""
    sizes = class_sizes(predictions)
    return len(sizes) > 1 and bool(sizes.max() > UNEQUAL * sizes.min())


def confusions(predictions: pd.DataFrame) -> np.ndarray:
    """(runs, classes, classes) numbers of test examples by true class (rows) and predicted class
    (columns)."""
    classes = int(predictions[["label", "predicted"]].to_numpy().max()) + 1
    tables = [
        confusion(own["label"].to_numpy(), own["predicted"].to_numpy(), classes)
        for _, own in predictions.groupby("run_id", sort=False)
    ]
    return np.stack(tables)


def per_class(predictions: pd.DataFrame, folds: int = 1) -> pd.DataFrame:
    """Recall and precision of each class for each cell.

    Args:
        predictions: as loaded.
        folds: see `mean_interval`.

    Returns:
        cell, label, examples (mean over repeats), recall, recall_low, recall_high, precision, precision_low,
        precision_high (means over repeats with 95% t intervals over seeds; repeats in which it is not defined
        are left out).
    """
    rows = []
    for cell, own in predictions.groupby("cell", sort=False):
        found = [by_class(table) for table in confusions(own)]
        for label in range(len(found[0].examples)):
            row: dict[str, object] = {"cell": cell, "label": label}
            row["examples"] = float(np.mean([f.examples[label] for f in found]))
            for name in ("recall", "precision"):
                values = [getattr(f, name)[label] for f in found]
                mean, _, low, high = mean_interval(values, within=(0, 1), folds=folds)
                row |= {name: mean, f"{name}_low": low, f"{name}_high": high}
            rows.append(row)
    ends = [f"{name}{end}" for name in ("recall", "precision") for end in ("", "_low", "_high")]
    return pd.DataFrame(rows, columns=["cell", "label", "examples", *ends])


def confused_pairs(predictions: pd.DataFrame) -> pd.DataFrame:
    """Pairs of classes that are confused, most frequent first.

    Args:
        predictions: of one cell.

    Returns:
        label, predicted, share (of the examples of the class, mean over repeats), images (mean number).
    """
    tables = confusions(predictions).astype(float)
    images = tables.mean(axis=0)
    sizes = images.sum(axis=1)
    np.fill_diagonal(images, 0)
    at = np.argwhere(images > 0)
    rows = [
        {"label": i, "predicted": j, "share": images[i, j] / sizes[i], "images": images[i, j]}
        for i, j in at
    ]
    table = pd.DataFrame(rows, columns=["label", "predicted", "share", "images"])
    return table.sort_values(["share", "images"], ascending=False, ignore_index=True)


def reliability(predictions: pd.DataFrame) -> pd.DataFrame:
    """Accuracy of predictions by confidence, over all repeats of a cell.

    Returns:
        cell, confidence (mean of the bin), accuracy, share (of the test examples). Empty without confidences.
    """
    parts = []
    for cell, own in predictions.dropna(subset="confidence").groupby("cell", sort=False):
        hit = (own["label"] == own["predicted"]).to_numpy()
        bins = calibration(own["confidence"].to_numpy(dtype=float), hit)
        columns = {"confidence": bins.confidence, "accuracy": bins.accuracy}
        shares = bins.examples / bins.examples.sum()
        part = pd.DataFrame({"cell": cell, **columns, "share": shares})
        parts.append(part[bins.examples > 0])
    empty = pd.DataFrame(columns=["cell", "confidence", "accuracy", "share"])
    return pd.concat(parts, ignore_index=True) if parts else empty


def confident_mistakes(predictions: pd.DataFrame) -> pd.DataFrame:
    """Test examples that a cell misclassifies, most confident mistakes first.

    Args:
        predictions: of one cell.

    Returns:
        example, label, predicted (most frequent), wrong (number of repeats that misclassify it), repeats,
        confidence (mean over the repeats, 0 where it is correct), file, if examples are files, and image (a
        small JPEG file, or None), if any was recorded. Empty without confidences.
    """
    known = predictions.dropna(subset="confidence")
    missed = known["label"] != known["predicted"]
    wrong = known[missed].groupby("example")
    table = pd.DataFrame(
        {
            "label": wrong["label"].first(),
            "predicted": wrong["predicted"].agg(lambda guesses: guesses.mode().iloc[0]),
            "wrong": wrong.size(),
            "repeats": known.groupby("example").size().reindex(list(wrong.groups)),
        }
    )
    table["confidence"] = wrong["confidence"].sum() / table["repeats"]
    for column in ("file", "image"):
        if column in known:
            table[column] = wrong[column].first()
    return table.sort_values("confidence", ascending=False).rename_axis("example").reset_index()


def class_names(trials: pd.DataFrame, classes: int) -> list[str]:
    """Names of the classes if they are recorded and equal for all runs; else their numbers."""
    recorded = trials["class_names"].dropna() if "class_names" in trials else pd.Series(dtype=str)
    if recorded.nunique() == 1:
        with suppress(ValueError, TypeError):
            names = [str(name) for name in json.loads(recorded.iloc[0])]
            if len(names) >= classes:
                return names
    return [str(label) for label in range(classes)]
