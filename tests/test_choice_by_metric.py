"""Study(metric=...): every choice goes by that metric, from Optuna to the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from optuna.trial import BaseTrial

from analysis import compare, load_study, report
from analysis.recommend import recommend_cell
from analysis.topics import scores
from harness.core.results import EpochResult
from harness.core.selection import METRICS
from harness.core.spec import TrialSpec
from harness.core.strategies import LinearProbe
from harness.core.study import Study
from harness.data import targets
from harness.data.cached import Cache
from harness.data.target import ArrayTarget
from harness.deploy.choice import choose
from harness.search.preflight import check_study
from harness.tracking.results import load_result
from harness.training.provenance import clear_caches
from tests.lab import Lab, World, make_study
from tests.refusals import refused


def opposed() -> World:
    """Balanced accuracy rises with the rate, accuracy falls with it; the loss is least near 0.003. The cell
    "full" is ahead in balanced accuracy, "probe" in accuracy."""
    world = World()

    def rate(spec: TrialSpec) -> float:
        return float((np.log10(spec.lr) + 4) / 3)

    def ahead(spec: TrialSpec) -> float:
        return 0.2 if type(spec.strategy).__name__ == "FullFineTune" else 0.0

    world.truth = lambda spec: (abs(rate(spec) - 0.5), 0.7 - 0.3 * rate(spec) - ahead(spec))
    world.further = lambda spec: {"balanced_accuracy": 0.3 + 0.3 * rate(spec) + ahead(spec)}
    return world


def chosen_rate(lab: Lab, cell: str = "probe") -> float:
    return float(str(lab.trials(cell=cell, phase="repeat")[0].spec["lr"]))


@pytest.mark.parametrize("metric", ["accuracy", "balanced_accuracy", "log_loss"])
def test_configuration_is_chosen_by_the_metric(metric: Any, tmp_path: Path) -> None:
    lab = Lab(opposed(), tmp_path)
    lab.run(make_study(metric=metric, trials=6, repeats=1))
    rates = [float(str(t.spec["lr"])) for t in lab.trials(cell="probe", phase="tune")]
    middle = min(rates, key=lambda lr: abs((np.log10(lr) + 4) / 3 - 0.5))
    wanted = {"accuracy": min(rates), "balanced_accuracy": max(rates), "log_loss": middle}
    assert len({min(rates), max(rates), middle}) == 3
    assert chosen_rate(lab) == wanted[metric]


@pytest.mark.parametrize("metric", ["accuracy", "balanced_accuracy", "log_loss"])
def test_optuna_sees_the_metric_turned_so_that_more_is_better(metric: Any, tmp_path: Path) -> None:
    lab = Lab(opposed(), tmp_path)
    lab.run(make_study(metric=metric, repeats=0))
    for trial in lab.optuna_trials("toy/probe"):
        metrics = trial.user_attrs["result"]["metrics"]
        wanted = -metrics["val_loss"] if metric == "log_loss" else metrics[f"val_{metric}"]
        assert trial.value == wanted
        assert set(trial.intermediate_values.values()) == {wanted}


@pytest.mark.parametrize("metric", ["accuracy", "balanced_accuracy", "log_loss"])
def test_epochs_of_a_process_that_died_have_the_metric_that_was_reported(metric: str) -> None:
    known = EpochResult(0, 1.0, 0.5, 0.6, 1.0, 1.0, {"balanced_accuracy": 0.7})
    merit = METRICS[metric].merit(known.validation)
    read = EpochResult.of_merit(0, metric, merit)
    name = METRICS[metric].validation
    assert read.validation[name] == known.validation[name]
    assert METRICS[metric].merit(read.validation) == merit


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_cell_is_chosen_by_the_metric_everywhere(tmp_path: Path, tracking_uri: str) -> None:
    uri, picked = tracking_uri, {}
    for metric in ("accuracy", "balanced_accuracy"):
        lab = Lab(opposed(), tmp_path / metric, uri)
        study = make_study(metric=metric, name=f"by_{metric}", repeats=3)
        lab.run(study)
        best, why = choose(load_result(study.name, uri).cells)
        table = load_study(study.name, uri)
        found = compare.find(table)
        label = METRICS[metric].label
        assert (table.info.metric, table.info.selection) == (label, "val_score")
        assert f"highest mean validation {label}" in why
        assert found.chosen == best.cell
        assert f"highest mean validation {label}" in " ".join(scores.answer(found))
        assert recommend_cell(table)[0].startswith(f"Use “{best.cell}”: test {label}")
        heads = load_result(study.name, uri).columns()
        assert (
            heads[2:4]
            == {
                "accuracy": ("validation, %", "test, %"),
                "balanced_accuracy": (
                    "validation balanced accuracy, %",
                    "test balanced accuracy, %",
                ),
            }[metric]
        )
        picked[metric] = best.cell
        name = METRICS[metric].test
        repeats = table.trials[table.trials["phase"] == "repeat"]
        np.testing.assert_array_equal(repeats["test_score"], repeats[name])
        by_run = table.trials.set_index("run_id")[METRICS[metric].validation]
        wanted = by_run.loc[table.epochs["run_id"]]
        np.testing.assert_array_equal(table.epochs["val_score"], wanted)
        page = report.build(table, tmp_path / "out").read_text()
        assert f"is recommended: test {label}" in page
    assert picked == {"accuracy": "probe", "balanced_accuracy": "full"}


def test_without_repeats_the_lowest_loss_is_named_not_the_highest_accuracy(
    tmp_path: Path, tracking_uri: str
) -> None:
    Lab(opposed(), tmp_path, tracking_uri).run(make_study(metric="log_loss", repeats=0))
    table = load_study("toy", tracking_uri)
    best = table.trials.dropna(subset="val_loss").sort_values("val_loss").iloc[0]
    text = " ".join(scores.answer(compare.find(table)))
    assert f"lowest validation loss in tuning was that of “{best['cell']}”: " in text
    assert f"{best['val_loss']:.3f}, the best of 3 trials" in text
    assert "highest" not in text


def test_study_chosen_by_log_loss_compares_accuracies(tmp_path: Path, tracking_uri: str) -> None:
    uri, lab = tracking_uri, Lab(opposed(), tmp_path, tracking_uri)
    lab.run(make_study(metric="log_loss"))
    table = load_study("toy", uri)
    assert (table.info.metric, table.info.selection) == ("accuracy", "val_loss")
    found = compare.find(table)
    assert "lowest mean validation loss" in " ".join(scores.answer(found))
    repeats = table.trials[table.trials["phase"] == "repeat"]
    assert found.chosen == repeats.groupby("cell")["val_loss"].mean().idxmin()
    best, why = choose(load_result("toy", uri).cells)
    assert (best.cell, why.startswith("lowest mean validation log loss")) == (found.chosen, True)


def test_study_cannot_go_on_with_another_metric(tmp_path: Path) -> None:
    lab = Lab(opposed(), tmp_path)
    lab.run(make_study(repeats=0))
    with refused("chooses by accuracy in its record, now by macro_f1"):
        lab.run(make_study(metric="macro_f1"))


def test_metric_that_does_not_exist_is_refused() -> None:
    with refused(r"metric must be one of accuracy, balanced_accuracy, .* 'f2'"):
        make_study(metric="f2")


def test_auroc_needs_two_classes_on_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 8, 8), np.uint8)
    labels = np.repeat([0, 1], 20)
    own = np.arange(40) < 5
    made = ArrayTarget("lonely", ("a", "b"), labels, None, pixels, official_val=own)
    monkeypatch.setitem(targets.LOADERS, "lonely", lambda: made)

    def space(trial: BaseTrial, strategy: str) -> TrialSpec:
        return TrialSpec("lonely", "small_cnn", LinearProbe(), source="scratch", resolution=8)

    def study(metric: Any) -> Study:
        return make_study(compare={"strategy": ["probe"]}, space=space, metric=metric)

    wanted = (
        "metric 'auroc' needs validation examples of at least two classes; those of target lonely"
    )
    with refused(wanted):
        check_study(study("auroc"), Cache(), False)
    assert check_study(study("balanced_accuracy"), Cache(), False).specs
    clear_caches()
