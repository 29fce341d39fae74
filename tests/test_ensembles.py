"""The ensemble of a cell's repeats, against means by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis import compare, topics
from analysis.load import StudyTable
from analysis.load.predictions import predictions_frames
from harness.core.results import Predictions, predictions_parquet
from tests.made_studies import table, trial

LABELS = np.array([0, 1, 2, 1])
# The first two networks are wrong on one example each, the third on two; together they are right on three.
NETWORKS = [
    [[0.6, 0.3, 0.1], [0.5, 0.4, 0.1], [0.1, 0.1, 0.8], [0.1, 0.8, 0.1]],
    [[0.3, 0.6, 0.1], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6], [0.1, 0.7, 0.2]],
    [[0.9, 0.0, 0.1], [0.1, 0.9, 0.0], [0.9, 0.05, 0.05], [0.6, 0.1, 0.3]],
]


def predictions(network: list[list[float]]) -> Predictions:
    shares = np.array(network)
    rows = np.arange(len(LABELS))
    predicted = shares.argmax(1)
    return Predictions(
        rows + 10, LABELS, predicted, shares[rows, LABELS], shares.max(1), probabilities=shares
    )


def read(path: Path, kept: Sequence[bool]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The frames of repeats of one cell, read from their files; the probabilities of some were kept."""
    runs, folders = [], {}
    for i, (network, whole) in enumerate(zip(NETWORKS, kept, strict=False)):
        folder = path / str(i)
        folder.mkdir()
        made = predictions(network)
        made = made if whole else replace(made, probabilities=None)
        (folder / "predictions.parquet").write_bytes(predictions_parquet(made))
        folders[f"r{i}"] = folder.as_uri()
        runs.append({"run_id": f"r{i}", "cell": "full", "phase": "repeat", "seed": i})
    trials = pd.DataFrame(runs).assign(outcome="complete", superseded=False)
    return predictions_frames(trials, folders, "")


@pytest.fixture
def loaded(tmp_path: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Those of three repeats whose probabilities were kept."""
    return read(tmp_path, [True] * 3)


def test_an_ensemble_predicts_by_the_mean_of_the_probabilities(
    loaded: tuple[pd.DataFrame, pd.DataFrame],
) -> None:
    _, together = loaded
    mean = np.mean(NETWORKS, axis=0)
    assert list(together["example"]) == [10, 11, 12, 13]
    assert list(together["predicted"]) == list(mean.argmax(1))
    np.testing.assert_allclose(together["probability"], mean[np.arange(4), LABELS], rtol=1e-6)
    assert set(together["networks"]) == {3}


def test_the_gain_is_over_the_mean_of_the_single_networks(
    loaded: tuple[pd.DataFrame, pd.DataFrame],
) -> None:
    each, together = loaded
    rows = [
        trial("full", "repeat", i, 0.7) | {"run_id": f"r{i}", "latency_ms": 2.0} for i in range(3)
    ]
    study: StudyTable = replace(table(rows), predictions=each, ensembles=together)
    gain = topics.ensembles.gains(compare.find(study)).iloc[0]
    right = np.array([np.argmax(n, axis=1) == LABELS for n in NETWORKS])
    ensemble = np.mean(NETWORKS, axis=0).argmax(1) == LABELS
    assert gain["single"] == pytest.approx(right.mean())
    assert gain["ensemble"] == pytest.approx(ensemble.mean())
    assert gain["gain"] == pytest.approx(ensemble.mean() - right.mean())
    assert gain["low"] <= gain["gain"] <= gain["high"]
    assert gain["latency_ms"] == 6.0
    section = topics.ensembles.section(compare.find(study))
    assert section.title == "Ensembles"
    assert len(section.parts) == 1


@pytest.mark.parametrize("kept", [[True], [True, False], [False, True]])
def test_without_the_probabilities_of_several_networks_there_is_no_ensemble(
    kept: list[bool], tmp_path: Path
) -> None:
    assert read(tmp_path, kept)[1].empty


def test_the_gain_is_not_over_repeats_of_another_configuration(
    loaded: tuple[pd.DataFrame, pd.DataFrame],
) -> None:
    each, together = loaded
    rows = [trial("full", "repeat", i, 0.7) | {"run_id": f"r{i}"} for i in range(3)]
    rows.append(trial("full", "repeat", 0, 0.1, superseded=True) | {"run_id": "stale"})
    wrong = each[each["run_id"] == "r0"].assign(run_id="stale", predicted=-1)
    both = pd.concat([each, wrong], ignore_index=True)
    study = replace(table(rows), predictions=both, ensembles=together)
    right = np.array([np.argmax(n, axis=1) == LABELS for n in NETWORKS])
    single = topics.ensembles.gains(compare.find(study))["single"][0]
    assert single == pytest.approx(right.mean())
