"""The analysis of published tables gives what was published, and says what that does not show."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.compare.agreement import (
    STATIC,
    mean_agreement,
    rank_agreement,
    static_ranking,
)
from analysis.compare.responses import gains, responses, with_scratch
from analysis.compare.slopes import slopes
from analysis.compare.verdicts import verdicts

MEASURES = ["lp", "logme", "leep", "nleep", "parc", "sfda", "ncti"]


SPECIALISED = {"Camelyon", "EuroSAT", "Resisc45", "Retinopathy"}


NATURAL = {"CIFAR-100", "Caltech101", "DTD", "Flowers102", "Pets", "SVHN", "Sun397"}


@pytest.fixture(scope="module")
def medmnist(tables: Path) -> pd.DataFrame:
    """accuracy (it is the AUC) and every measure by source and target, with the static ranking."""

    def melted(file: str, name: str) -> pd.DataFrame:
        wide = pd.read_csv(tables / f"medmnist_{file}_dataset.csv", index_col=0)
        return wide.melt(id_vars="source", var_name="target", value_name=name)

    scores = melted("AUCs", "accuracy")
    for measure in MEASURES:
        scores = scores.merge(melted(measure, measure), how="left", validate="one_to_one")
    return static_ranking(scores[scores["source"] != scores["target"]])


def test_medmnist_weighted_taus_are_the_published_ones(
    medmnist: pd.DataFrame, tables: Path
) -> None:
    published = pd.read_csv(tables / "medmnist_tau_w_expected.csv", index_col="target")
    published = published.rename(columns={"perf": "lp"})[MEASURES]
    table = rank_agreement(medmnist, MEASURES, permutations=100)
    ours = table.pivot(index="target", columns="measure", values="tau_w").loc[published.index]
    known = published.notna()
    assert known.sum().sum() == 11 * 7 - 2
    assert (ours[MEASURES].notna() == known).all(axis=None)
    assert np.nanmax((ours[MEASURES] - published).abs()) < 1e-6


def test_medmnist_static_ranking_beats_every_measure(medmnist: pd.DataFrame, tables: Path) -> None:
    scored = medmnist[medmnist["lp"].notna()]
    means = mean_agreement(rank_agreement(scored, [*MEASURES, STATIC], permutations=100))
    means = means.set_index("measure")
    assert means.loc[STATIC, "tau_w"] == pytest.approx(0.561, abs=5e-4)
    assert (means.loc[MEASURES, "lead"] < 0).all()
    published = pd.read_csv(tables / "medmnist_tau_w_expected.csv")
    assert published["our"].mean() == pytest.approx(0.523, abs=5e-4)
    assert (means["tau_w"] > published["our"].mean()).tolist() == [False] * 7 + [True]


def test_medmnist_has_a_highly_significant_effect_that_is_not_there(medmnist: pd.DataFrame) -> None:
    means = mean_agreement(rank_agreement(medmnist, ["lp", STATIC], permutations=100))
    table = slopes(responses(medmnist), ["lp"])
    p = table.set_index("model")["p"]
    assert p["naive"] == pytest.approx(5.3e-8, rel=0.01)
    assert p["crossed"] == pytest.approx(0.053, abs=5e-4)
    assert p["fixed"] == pytest.approx(0.800, abs=5e-4)
    assert set(table["n"]) == {154}
    (row,) = verdicts(table, means).to_dict("records")
    assert row["verdict"] == "open"
    assert row["sentence"].startswith(
        "It was not shown that sources which lp ranks higher transfer better"
    )
    assert "Least squares alone gives p = 5e-08" in row["sentence"]
    assert "(mean weighted tau 0.44, against 0.56)" in row["sentence"]


def test_tll_table_reproduces_where_it_can(tables: Path) -> None:
    scores = pd.read_csv(tables / "tll_model_ranking.csv")
    scores = scores.rename(columns={"dataset": "target", "model": "source"})
    scores["accuracy"] = scores["finetuned_acc"] / 100
    measures = ["HScore", "LEEP", "LogME", "NCE"]
    expected = pd.read_csv(tables / "tll_expected.csv")
    expected = expected.rename(columns={"dataset": "target", "metric": "measure"})
    ours = rank_agreement(scores, measures, permutations=100)
    both = ours.merge(expected, on=["target", "measure"], validate="one_to_one")
    assert len(both) == 32
    assert both["tau_w"].tolist() == pytest.approx(both["tauw_avg"].tolist(), abs=6e-4)
    pearson = [
        stats.pearsonr(own[measure], own["accuracy"]).statistic
        for (target, measure) in zip(both["target"], both["measure"], strict=True)
        for own in [scores[scores["target"] == target]]
    ]
    assert pearson == pytest.approx(both["pear"].tolist(), abs=6e-4)  # the table is read correctly
    published = both[["pub_wtau", "pub_pearson"]].to_numpy()
    gaps = np.nanmax(np.abs(np.c_[both["tau_w"], pearson] - published), axis=1)
    failed = both[gaps > 0.03]  # more than what rounding to a tenth of a point can move
    assert set(zip(failed["target"], failed["measure"], strict=True)) == {
        *itertools.product(["Aircraft", "OxfordIIITPets"], measures),
        ("DTD", "NCE"),
    }


def test_vtab_pretraining_gains_most_on_natural_images_with_few_examples(tables: Path) -> None:
    wide = pd.read_csv(tables / "vtab_results.csv", header=[0, 1], index_col=0)
    long = wide.loc[["Sup-100%", "From-Scratch"]].drop(columns="metadata", level=0).astype(float)
    long.columns.names = ["size", "target"]
    runs = long.div(100).melt(ignore_index=False, value_name="accuracy")
    runs = runs.rename_axis("source").reset_index()
    runs["group"] = [
        "natural" if t in NATURAL else "specialised" if t in SPECIALISED else "structured"
        for t in runs["target"]
    ]
    table = gains(with_scratch(runs.replace("From-Scratch", "scratch")), ["group", "size"])
    got = {(row["group"], row["size"]): row["gain"] for row in table.to_dict("records")}
    expected = {  # differences of two means rounded to a tenth, hence the tolerance
        "natural": (45.6, 32.8),
        "specialised": (13.6, 4.0),
        "structured": (8.5, 3.3),
    }
    for group, (few, full) in expected.items():
        assert got[group, "1000"] == pytest.approx(few, abs=0.1)
        assert got[group, "full"] == pytest.approx(full, abs=0.1)
    assert set(table["targets"]) == {7, 4, 8}
