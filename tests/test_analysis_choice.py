"""Report, recommendation and export choose the same cell, and say how much that choice rests on."""

from __future__ import annotations

import math

import pytest

from analysis import compare, recommend
from analysis.text import methods
from analysis.topics import scores
from harness.core.errors import UserError
from harness.core.selection import preference
from harness.deploy.choice import choose
from harness.tracking.results import cell_records
from harness.tracking.runs import Recorded
from tests.made_studies import scored, table, trial


def test_bound_and_no_probability_is_printed_unless_the_choice_is_better_than_all_others() -> None:
    close = [trial("b", "repeat", seed, 0.8 + 0.01 * (seed % 2)) for seed in range(6)]
    for rivals, bounded in ((close, True), (scored("b", 0.81), False)):
        said = " ".join(recommend.recommend_cell(table([*scored("a", 0.8), *rivals])))
        assert "robab" not in said
        assert ("points better (95% confidence)" in said) == bounded


def test_report_and_recommend_choose_the_same_cell_by_validation_and_name_the_best_by_test() -> (
    None
):
    """b is ahead on validation, a on test."""
    rows = [row | {"val_score": 0.7} for row in scored("a", 0.9)] + [
        row | {"val_score": 0.75} for row in scored("b", 0.8)
    ]
    made = table(rows)
    found = compare.find(made)
    assert found.chosen == "b"
    said = " ".join(scores.answer(found))
    assert "“b” is recommended: test accuracy 80.0%" in said
    assert "The test accuracy of “a” is 10.0 points higher." in said
    recommended = recommend.recommend_cell(made)
    assert recommended[0].startswith("Use “b”: test accuracy 80.0%")
    assert any("“a” has a higher test score" in line for line in recommended)


def test_of_equal_cells_the_faster_is_preferred_and_an_unscored_one_is_last() -> None:
    keys = {"slow": (0.9, 9.0), "fast": (0.9, 1.0), "none": (math.nan, 0.1), "low": (0.8, 0.1)}
    order = sorted(keys, key=lambda name: preference(*keys[name]))
    assert order == ["fast", "slow", "low", "none"]


def test_a_choice_by_few_validation_images_says_how_little_it_rests_on() -> None:
    counts = '{"train": {"x": 30, "y": 30}, "val": {"x": 100, "y": 100}, "test": 50}'

    def found(next_best: float) -> compare.Findings:
        rows = [*scored("a", 0.8), trial("a", "tune", 1, next_best)]
        return compare.find(table([row | {"images_per_class": counts} for row in rows]))

    said = " ".join(scores.answer(found(0.795)))
    assert "0.5 points better than the second best of 2 on 200 validation examples" in said
    assert "from the sampling of these examples, is at most about 4.0 points" in said
    assert "validation examples" not in " ".join(scores.answer(found(0.5)))
    assert "Each run had 60 training, 200 validation" in methods(found(0.5))


def test_lead_in_tuning_is_not_told_of_a_configuration_that_was_not_repeated() -> None:
    counts = '{"train": {"x": 30, "y": 30}, "val": {"x": 100, "y": 100}, "test": 50}'
    for chosen, told in ((1, True), (0, False)):
        rows = [*scored("a", 0.8, chosen=chosen), trial("a", "tune", 1, 0.805)]
        found = compare.find(table([row | {"images_per_class": counts} for row in rows]))
        assert ("better than the second best" in " ".join(scores.answer(found))) == told


def test_recommendation_is_provisional_while_a_cell_waits_for_its_repeats() -> None:
    waits, failed = (
        [*scored("a", 0.8), trial("b", "tune", 0, score, outcome=outcome)]
        for score, outcome in ((0.9, "complete"), (None, "diverged"))
    )
    for rows, awaited in ((waits, True), (failed, False), (scored("a", 0.8), False)):
        made = table(rows)
        for said in (scores.answer(compare.find(made))[0], recommend.recommend_cell(made)[0]):
            begin = "This is provisional, because the study is not finished: 1 of 2 cells has no test score"
            assert said.startswith(begin) == awaited


def test_of_equal_means_the_cell_that_is_faster_on_average_is_chosen_as_by_export() -> None:
    """The sums of these scores differ in the last bit if they are added in this order; and the slower cell
    has the lower median of seconds."""
    cells = {"fast": ((0.3, 0.2, 0.1), (2.0, 2.0, 0.1)), "slow": ((0.1, 0.2, 0.3), (1.0, 9.0, 1.0))}
    made = table(
        [
            trial(cell, "repeat", i, score, train_seconds=seconds)
            for cell, both in cells.items()
            for i, (score, seconds) in enumerate(zip(*both, strict=True))
        ]
    )
    made.trials["val_accuracy"] = made.trials["val_score"]
    kept = [
        Recorded(
            "", "", {"cell": row["cell"], "index": str(row["index"])}, {"target": ""},
            {name: row[name] for name in ("val_accuracy", "train_seconds")},
        )
        for row in made.trials.to_dict("records")
    ]  # fmt: skip
    assert choose(cell_records(kept))[0].cell == "fast"
    assert compare.find(made).chosen == "fast"
    assert recommend.recommend_cell(made)[0].startswith("Use “fast”")
    assert compare.chosen_by(made.trials, made.info, "accuracy") == "fast"
    assert compare.chosen_by(made.trials, made.info, "macro_f1") == ""


def test_identical_scores_are_not_taken_for_exact_differences() -> None:
    """As in the verdicts, where a difference has at least the rounding error of single images."""
    rows = [
        trial(cell, "repeat", seed, 0.8 - 0.1 * (seed % 2))
        for cell in ("a", "b")
        for seed in range(6)
    ]
    made = table(rows)
    choices = compare.choice(made.trials, made.info)
    (row,) = compare.more_seeds(made.trials, made.info, choices).to_dict("records")
    (pair,) = compare.contrasts(made.trials, made.info).to_dict("records")
    assert pair["least_detectable"] > 2  # points; one image of ten is 10
    assert row["lead"] == 0
    assert row["seeds"] > row["n"]


@pytest.mark.parametrize(
    ("where", "message"),
    [
        (["strategy"], "must be FACTOR=VALUE, got 'strategy'"),
        (["strategy=a", "strategy=b"], "gives strategy twice, as 'a' and 'b'"),
    ],
)
def test_conditions_that_no_cell_can_meet_are_refused(where: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        recommend.recommend_cell(table([*scored("a", 0.8), *scored("b", 0.7)]), where)


def test_repeats_that_failed_are_named_beside_the_scores_of_the_others() -> None:
    """b diverges on five seeds of six; one of them was killed before, and is counted once."""
    failed = [trial("b", "repeat", s, None, outcome="diverged") for s in range(1, 6)]
    killed = trial("b", "repeat", 1, None, outcome="killed")
    rows = [*scored("a", 0.8), trial("b", "repeat", 0, 0.99), killed, *failed]
    said = recommend.recommend_cell(table(rows))
    assert said[0].startswith("Use “b”: test accuracy 99.0% (1 seed)")
    assert said[1].startswith("5 of its 6 repeats ended without a score (5 diverged): ")
    rerun = [trial("a", "repeat", 0, None, outcome="crashed"), *scored("a", 0.8)]
    assert "ended without" not in " ".join(recommend.recommend_cell(table(rerun)))


def test_equal_validation_scores_are_told() -> None:
    rows = [
        trial(cell, "repeat", s, 0.8, train_seconds=seconds)
        for cell, seconds in (("a", 3.0), ("b", 1.0), ("c", 2.0))
        for s in range(6)
    ]
    said = recommend.recommend_cell(table(rows))
    assert said[0].startswith("Use “b”")
    assert "the best mean validation score of the 3 cells that fit, as have “c” and “a”." in said[1]


@pytest.mark.parametrize(
    ("seeds", "said"), [(6, "run every cell on at least 8 seeds"), (8, "All test scores are equal")]
)
def test_equal_scores_do_not_show_how_far_cells_may_be_apart(seeds: int, said: str) -> None:
    rows = [trial(cell, "repeat", seed, 0.5) for cell in ("a", "b") for seed in range(seeds)]
    text = " ".join(recommend.recommend_cell(table(rows)))
    assert said in text
    assert "points" not in text


def test_limits_that_nothing_can_meet_are_refused() -> None:
    with pytest.raises(UserError, match="limit train_seconds must be above 0, got 0"):
        recommend.recommend_cell(table(scored("a", 0.8)), limits={"train_seconds": 0.0})


def test_costs_that_were_not_measured_are_not_named() -> None:
    made = table(
        [
            trial(cell, "repeat", s, score)
            for cell, score in (("a", 0.8), ("b", 0.7))
            for s in (0, 1)
        ]
    )
    assert recommend.recommend_cell(made)[0] == "Use “a”: test accuracy 80.0% (2 seeds)."
