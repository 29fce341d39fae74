"""What spoils a comparison is said before its figures."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from analysis import compare
from analysis.text import warnings
from tests.made_studies import scored, table, trial


def test_a_run_that_took_far_longer_than_the_others_is_a_warning() -> None:
    rows = [*scored("a", 0.8), trial("a", "tune", 5, 0.7, train_seconds=443.0)]
    assert any(line.startswith("Times are uneven") for line in warnings(compare.find(table(rows))))


@pytest.mark.parametrize(
    ("rows", "warning"),
    [
        ([*scored("a", 0.8), *scored("b", 0.9, device="cuda")], "Mixed devices (cpu, cuda)"),
        ([*scored("a", 0.8), *scored("b", 0.9, threads=1)], "Mixed thread counts (1, 2)"),
        (
            [*scored("a", 0.8), *scored("b", 0.9)[:-1]],
            "Fewer scored repeats than requested: “b” 5 of 6",
        ),
        ([*scored("a", 0.8), *scored("b", 0.9)[:-1]], "repeated on different seeds"),
        ([*scored("a", 0.8)[1:]], "Fewer tuning trials than requested: “a” 0 of 1"),
        (
            [*scored("a", 0.8), trial("a", "tune", 9, None, outcome="unfinished")],
            "Unfinished: 1 run.",
        ),
        (
            [*scored("a", 0.8)[1:], scored("a", 0.8)[0] | {"env.torch": "2.9.0"}],
            "The environment changed between runs: torch",
        ),
        ([row | {"env.dirty": "true"} for row in scored("a", 0.8)], "uncommitted code"),
        (scored("a", 0.8, chosen=4), "do not use the best configuration of their tuning trials"),
    ],
)
def test_what_spoils_the_comparison_is_said_before_the_figures(
    rows: list[dict[str, object]], warning: str
) -> None:
    made = table(rows)
    assert any(warning in line for line in warnings(compare.find(made)))


def test_repeats_of_another_configuration_are_explained_by_a_study_resumed_with_fewer_trials() -> (
    None
):
    """The study has two trials, but only one is requested now."""
    rows = [*scored("a", 0.8, chosen=0), trial("a", "tune", 1, 0.9)]
    (said,) = (line for line in warnings(compare.find(table(rows))) if "do not use" in line)
    assert "resumed with fewer trials (1 per cell) than it had" in said


def test_predictions_that_contradict_a_score_are_reported() -> None:
    made = table(scored("full", 0.9))
    made.predictions["predicted"] = 0
    assert any("6 repeats" in line for line in warnings(compare.find(made)))


def test_costs_of_other_conditions_are_left_out_with_a_sentence() -> None:
    made = table(
        [*scored("a", 0.8), *scored("b", 0.9, seconds=9)[:3], *scored("c", 0.9, threads=1)]
    )
    found = compare.find(made)
    assert any(
        "only for repeats on cpu, 2 threads; the times and memory of 6 repeats on cpu, 1 thread"
        in line
        for line in warnings(found)
    )
    summary = found.summary.set_index("cell")["train_seconds_median"]
    assert math.isnan(summary["c"])
    assert summary["b"] == 9


def test_unequal_classes_are_said_with_what_they_do_to_the_metric() -> None:
    counts = {"train": {"cat": 120, "owl": 5, "dog": 60}, "val": 3, "test": {"cat": 40, "owl": 2}}
    named = json.dumps(counts)
    rows = scored("full", 0.9, images_per_class=named)
    seeds = {"train": {"cat": 118, "owl": 4, "dog": 61}, "val": 3, "test": {"cat": 40, "owl": 2}}
    rows[-1]["images_per_class"] = json.dumps(seeds)
    study = table(rows)
    (said,) = (line for line in warnings(compare.find(study)) if "imbalanced" in line)
    assert "training 4 (“owl”) to 120 (“cat”); test 2 (“owl”) to 40 (“cat”)" in said
    assert said.endswith("Accuracy depends mostly on the large classes.")
    info = replace(study.info, metric="balanced accuracy", score="balanced_accuracy")
    (said,) = (
        line for line in warnings(compare.find(replace(study, info=info))) if "imbalanced" in line
    )
    assert (
        "All classes have the same weight in balanced accuracy, so it depends strongly on the few examples"
        in said
    )
