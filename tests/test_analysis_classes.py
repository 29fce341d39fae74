"""Metrics by cell and class, calibration and mistakes in the report, against scikit-learn and by hand."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn import metrics as sklearn

from analysis import compare, report
from analysis.load import StudyTable
from analysis.topics import classes, scores
from tests.made_studies import scored, table

NAMES = ("cat", "dog", "owl")


def predictions(
    run: Mapping[str, object], labels: np.ndarray, predicted: np.ndarray, confidence: Any = 0.9
) -> pd.DataFrame:
    """What a run kept."""
    known = {name: run[name] for name in ("run_id", "cell", "seed")}
    known |= {"example": np.arange(len(labels)) + 1000, "label": labels, "predicted": predicted}
    return pd.DataFrame(known | {"confidence": confidence})


def study(cells: dict[str, tuple[float, float, float]], sizes: tuple[int, int, int]) -> StudyTable:
    """A study whose cells recognise these shares of the three classes, in six repeats.

    Wrong images of a class are taken for the next class. Validation values are those of test.
    """
    labels = np.repeat([0, 1, 2], sizes)
    rows, kept = [], []
    for cell, recalls in cells.items():
        for row in scored(cell, 0.5):
            if row["phase"] == "repeat":
                random = np.random.default_rng(int(str(row["seed"])))
                hit = random.random(len(labels)) < np.asarray(recalls)[labels]
                predicted = np.where(hit, labels, (labels + 1) % 3)
                values = {
                    "accuracy": float(hit.mean()),
                    "balanced_accuracy": sklearn.balanced_accuracy_score(labels, predicted),
                    "macro_f1": sklearn.f1_score(labels, predicted, average="macro"),
                    "ece": 0.1,
                }
                row |= {f"{part}_{k}": v for part in ("val", "test") for k, v in values.items()}
                row |= {"val_score": row["val_accuracy"], "test_score": row["test_accuracy"]}
                row["class_names"] = json.dumps(NAMES)
                kept.append(predictions(row, labels, predicted, np.where(hit, 0.85, 0.75)))
            rows.append(row)
    made = table(rows)
    return StudyTable(made.info, "", made.trials, made.epochs, pd.concat(kept, ignore_index=True))


@pytest.fixture(scope="module")
def unequal() -> StudyTable:
    """ "large" is ahead in accuracy, "fair" in balanced accuracy."""
    return study({"large": (0.98, 0.6, 0.2), "fair": (0.8, 0.8, 0.75)}, (300, 60, 20))


def test_values_of_each_class_are_means_over_the_repeats(unequal: StudyTable) -> None:
    own = unequal.predictions[unequal.predictions["cell"] == "fair"]
    wanted = [
        sklearn.precision_recall_fscore_support(run["label"], run["predicted"])
        for _, run in own.groupby("run_id")
    ]
    got = compare.per_class(own)
    np.testing.assert_allclose(got["precision"], np.mean([w[0] for w in wanted], axis=0))
    np.testing.assert_allclose(got["recall"], np.mean([w[1] for w in wanted], axis=0))
    assert list(got["examples"]) == [300, 60, 20]
    interval = compare.mean_interval([w[1][2] for w in wanted])
    assert got[["recall_low", "recall_high"]].iloc[2].tolist() == pytest.approx(interval[2:])


def test_confusions_are_those_of_scikit_learn(unequal: StudyTable) -> None:
    own = unequal.predictions[unequal.predictions["cell"] == "fair"]
    wanted = np.stack(
        [
            sklearn.confusion_matrix(run["label"], run["predicted"])
            for _, run in own.groupby("run_id", sort=False)
        ]
    )
    np.testing.assert_array_equal(compare.confusions(own), wanted)
    first = compare.confused_pairs(own).iloc[0]
    shares = wanted.mean(axis=0) / [[300], [60], [20]] * (1 - np.eye(3))
    at = np.unravel_index(shares.argmax(), shares.shape)
    assert (first["label"], first["predicted"]) == at
    assert first["share"] == pytest.approx(shares.max())


def test_reliability_has_a_bin_for_each_confidence(unequal: StudyTable) -> None:
    own = unequal.predictions[unequal.predictions["cell"] == "fair"]
    got = compare.reliability(own)
    assert got["confidence"].tolist() == pytest.approx([0.75, 0.85])
    assert got["accuracy"].tolist() == [0, 1]
    assert got["share"].iloc[1] == pytest.approx((own["label"] == own["predicted"]).mean())


def test_most_confident_mistakes_are_those_of_most_repeats(unequal: StudyTable) -> None:
    own = unequal.predictions[unequal.predictions["cell"] == "large"]
    got = compare.confident_mistakes(own)
    missed = own[own["label"] != own["predicted"]].groupby("example").size()
    assert got["wrong"].is_monotonic_decreasing
    assert dict(zip(got["example"], got["wrong"], strict=True)) == dict(missed)
    assert got["confidence"].iloc[0] == pytest.approx(0.75 * missed.max() / 6)
    assert got["repeats"].eq(6).all()


def test_mistakes_are_named_by_their_files(unequal: StudyTable) -> None:
    kept = unequal.predictions
    kept = kept.assign(file="/data/pets/" + kept["example"].astype(str) + ".png")
    named = StudyTable(unequal.info, "", unequal.trials, unequal.epochs, kept)
    section = classes.section(compare.find(named))
    [shown] = [
        p for p in section.parts if getattr(p, "title", "").startswith("Most confident mistakes")
    ]
    first = section.tables["mistakes"]["example"].iloc[0]
    assert next(iter(shown.columns["Example"])) == f"pets/{first}.png"  # type: ignore[union-attr]


def test_the_sheet_of_mistakes_shows_the_images_that_repeats_kept(unequal: StudyTable) -> None:
    kept = unequal.predictions.copy()
    shades = {example: i for i, example in enumerate(kept["example"].unique())}
    first = kept["run_id"] == f"{compare.find(unequal).chosen}-repeat-0"
    wrong = first & (kept["label"] != kept["predicted"])
    kept["image"] = [
        jpeg(shades[example] % 200) if seen else None
        for example, seen in zip(kept["example"], wrong, strict=True)
    ]
    found = compare.find(dataclasses.replace(unequal, predictions=kept))
    section = classes.section(found)
    (plot,) = (p for p in section.plots if p.name == "mistakes")
    panels = [axes for axes in plot.figure.axes if axes.images]
    rows = compare.confident_mistakes(found.predictions[found.predictions["cell"] == found.chosen])
    wanted = rows.dropna(subset="image").head(12)
    assert len(panels) == len(wanted) == 12
    for axes, row in zip(panels, wanted.to_dict("records"), strict=True):
        shown = np.asarray(axes.images[0].get_array())
        assert abs(int(shown[0, 0, 0]) - shades[row["example"]] % 200) <= 2
        assert axes.get_title() == f"{NAMES[row['label']]}\nas {NAMES[row['predicted']]}"
    assert "image" not in section.tables["mistakes"]


def jpeg(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), (shade,) * 3).save(buffer, "JPEG")
    return buffer.getvalue()


def test_image_intervals_of_balanced_accuracy_are_around_its_mean(unequal: StudyTable) -> None:
    got = compare.over_examples(unequal.predictions, score="balanced_accuracy").set_index("cell")
    values = compare.by_metric(unequal.trials, unequal.info)
    own = values[values["metric"] == "balanced_accuracy"].set_index("cell")
    np.testing.assert_allclose(got["mean"], own.loc[got.index, "mean"])
    fair = compare.per_class(unequal.predictions[unequal.predictions["cell"] == "fair"])
    errors = fair["recall"] * (1 - fair["recall"]) / fair["examples"]
    # Seeds are independent in this study, so that the images' share is that of the mean of six.
    assert got.loc["fair", "se_examples"] == pytest.approx((errors.sum() / 9 / 6) ** 0.5, rel=0.15)
    assert compare.over_examples(unequal.predictions, score="auroc").empty


def test_choice_by_either_accuracy_is_defended_where_classes_are_unequal(
    unequal: StudyTable,
) -> None:
    found = compare.find(unequal)
    assert found.chosen == "large"
    first = scores.answer(found)[0]
    assert "“large” is recommended: test accuracy" in first
    assert "; balanced accuracy 5" in first
    [text] = classes.answer(found)
    assert "The test classes are imbalanced (20 to 300 examples)." in text
    assert "The lowest recall of “large” is that of owl: " in text
    assert "Validation balanced accuracy would choose “fair” instead" in text


def test_equal_classes_are_answered_by_one_score() -> None:
    found = compare.find(study({"a": (0.9, 0.8, 0.9), "b": (0.7, 0.8, 0.6)}, (60, 60, 60)))
    assert classes.answer(found) == []
    assert "balanced accuracy" not in scores.answer(found)[0]


@pytest.mark.usefixtures("undrawn")
def test_page_shows_classes_by_name_and_every_metric(unequal: StudyTable, tmp_path: Path) -> None:
    page = report.build(unequal, tmp_path)
    text = page.read_text()
    for head in (
        "Recall by class",
        "Confusion matrix of “large”",
        "Most confident mistakes",
        "Macro F1, %",
    ):
        assert head in text
    kept = pd.read_csv(page.parent / "tables" / "metrics.csv")
    assert set(kept["metric"]) == {"accuracy", "balanced_accuracy", "macro_f1", "ece"}
    assert set(pd.read_csv(page.parent / "tables" / "classes.csv")["label"]) == {0, 1, 2}


def test_many_classes_get_a_table_of_the_most_confused_pairs(tmp_path: Path) -> None:
    labels = np.tile(np.arange(30), 4)
    made = table(scored("probe", 0.75))
    predicted = np.where((labels == 7) & (np.arange(120) > 60), 9, labels)
    runs = made.trials[made.trials["phase"] == "repeat"].to_dict("records")
    kept = [predictions({str(k): v for k, v in run.items()}, labels, predicted) for run in runs]
    study = StudyTable(made.info, "", made.trials, made.epochs, pd.concat(kept, ignore_index=True))
    section = classes.section(compare.find(study))
    assert [plot.name for plot in section.plots] == ["recall", "reliability"]
    [pairs] = [p for p in section.parts if getattr(p, "title", "").startswith("Most confused")]
    assert [list(column) for column in list(pairs.columns.values())[:3]] == [["7"], ["9"], ["50.0"]]  # type: ignore[union-attr]


def test_studies_of_earlier_versions_have_no_calibration(unequal: StudyTable) -> None:
    kept = unequal.predictions.assign(confidence=np.nan)
    old = StudyTable(unequal.info, "", unequal.trials, unequal.epochs, kept)
    section = classes.section(compare.find(old))
    assert [plot.name for plot in section.plots] == ["recall", "confusion"]
    assert "mistakes" not in section.tables
