"""Comparisons agree with independent results: scipy's own tests, tables worked out by hand, or brute force.

python -m pytest tests/test_analysis_compare.py
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis import compare
from analysis.load import Info
from analysis.topics import budget
from harness.core.errors import UserError
from harness.core.power import least_detectable
from tests.made_studies import frame, repeats, tuned

STRATEGIES = Info("s", {"strategy": ["probe", "full", "scratch"]})


def make(rows: Sequence[Mapping[str, object]]) -> pd.DataFrame:
    return frame(rows, cell="probe", phase="tune", index=0, seed=0)


def test_chosen_is_the_best_on_validation_with_ties_by_loss_then_index() -> None:
    trials = make(
        [
            {"index": 0, "val_score": 0.8, "val_loss": 0.5},
            {"index": 3, "val_score": 0.9, "val_loss": 0.3},
            {"index": 2, "val_score": 0.9, "val_loss": 0.3},
            {"index": 1, "val_score": 0.9, "val_loss": 0.4, "test_score": 1.0},
            {"index": 4, "val_score": 0.99, "outcome": "pruned"},
        ]
    )
    assert list(compare.chosen(trials)["index"]) == [2]


def test_a_slot_filled_twice_is_refused_by_name() -> None:
    trials = make([*repeats("probe", [0.5]), *repeats("probe", [0.6])])
    with pytest.raises(UserError, match="two complete repeat runs for cell 'probe', seed 0"):
        compare.completed(trials, "repeat")


def test_superseded_and_killed_runs_are_not_compared() -> None:
    trials = make(
        [
            *repeats("probe", [0.5]),
            *repeats("probe", [0.9], superseded=True),
            *repeats("probe", [0.9], outcome="killed"),
        ]
    )
    assert list(compare.completed(trials, "repeat")["test_score"]) == [0.5]


def test_the_interval_is_that_of_scipy() -> None:
    values = [0.71, 0.74, 0.69, 0.77, 0.73]
    mean, sd, low, high = compare.mean_interval(values)
    expected = stats.t.interval(0.95, 4, loc=np.mean(values), scale=stats.sem(values))
    assert (mean, sd) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    assert (low, high) == pytest.approx(expected)


@pytest.mark.parametrize("values", [[], [0.5], [0.5, math.nan]])
def test_fewer_than_two_values_have_no_interval(values: list[float]) -> None:
    assert all(math.isnan(x) for x in compare.mean_interval(values)[1:])


@pytest.mark.parametrize("value", [1.0, 0.9])
def test_equal_values_have_no_interval_as_in_scipy(value: float) -> None:
    mean, sd, low, high = compare.mean_interval([value] * 3)
    assert mean == pytest.approx(value)
    assert sd == 0
    with np.errstate(invalid="ignore"):
        assert np.isnan(stats.t.interval(0.95, 2, loc=value, scale=0)).all()
    assert np.isnan([low, high]).all()


def test_summary_lists_every_cell_and_leaves_missing_missing() -> None:
    trials = make(
        [
            *tuned("probe", [0.6, 0.7]),
            *tuned("full", [math.nan], outcome="oom"),
            *repeats("probe", [0.5, 0.6], train_seconds=3.0),
        ]
    )
    table = compare.summary(trials, STRATEGIES).set_index("cell")
    assert list(table.index) == STRATEGIES.factors["strategy"]
    assert list(table["n"]) == [2, 0, 0]
    assert list(table["failed"]) == [0, 1, 0]
    assert table.loc["probe", "val_score"] == 0.7
    assert table.loc["probe", "train_seconds_median"] == 3.0
    assert table["peak_memory_mib_median"].isna()["probe"]
    assert table.loc["full":, ["mean", "train_seconds_median", "val_score"]].isna().all(axis=None)
    assert table["time_front"].tolist() == [True, False, False]
    assert not table["memory_front"].any()


def test_process_and_accelerator_memory_are_never_mixed() -> None:
    trials = make(
        [
            *repeats("probe", [0.5, 0.6], peak_process_rss_mib=900.0),
            *repeats(
                "full", [0.5, 0.6], peak_process_rss_mib=950.0, peak_accelerator_allocated_mib=80.0
            ),
        ]
    )
    table = compare.summary(trials, STRATEGIES).set_index("cell")
    assert table.loc["full", "peak_memory_mib_median"] == 80.0
    assert table["peak_memory_mib_median"].isna()["probe"]


def test_the_intervals_of_all_pairs_are_scipys_at_the_level_of_bonferroni() -> None:
    a = [0.80, 0.83, 0.79, 0.86, 0.84, 0.81]
    b = [0.78, 0.80, 0.80, 0.81, 0.80, 0.79]
    c = [0.70, 0.74, 0.71, 0.77, 0.73, 0.70]
    trials = make([*repeats("full", a), *repeats("probe", b), *repeats("scratch", c)])
    table = compare.contrasts(trials, STRATEGIES)
    scores = {"full": a, "probe": b, "scratch": c}
    assert len(table) == 3
    for row in table.to_dict("records"):
        test = stats.ttest_rel(scores[row["cell"]], scores[row["reference"]])
        wide, alone = test.confidence_interval(1 - 0.05 / 3), test.confidence_interval(0.95)
        assert (row["low"], row["high"]) == pytest.approx((100 * wide.low, 100 * wide.high))
        assert row["alone_low"] == pytest.approx(100 * alone.low)
        assert row["p"] == pytest.approx(min(1, 3 * test.pvalue))
        assert (row["verdict"] != "open") == (3 * test.pvalue < 0.05)


def test_only_shared_seeds_are_paired_and_a_pair_can_be_turned() -> None:
    trials = make([*repeats("full", [0.9, 0.8, 0.7]), *repeats("probe", [0.5, 0.5])])
    table = compare.contrasts(trials, STRATEGIES)
    [row] = table.to_dict("records")
    assert (row["cell"], row["n"], row["difference"]) == ("probe", 2, pytest.approx(-35.0))
    [turned] = compare.against(table, "full").to_dict("records")
    assert (turned["reference"], turned["difference"]) == ("probe", pytest.approx(35.0))
    assert (turned["low"], turned["high"]) == pytest.approx((-row["high"], -row["low"]))


def test_each_cell_meets_the_baseline_that_equals_it_in_the_other_factors() -> None:
    factors = {"net": ["a", "b"], "strategy": ["probe", "full"]}
    rows = [r for n in "ab" for s in ("probe", "full") for r in repeats(f"{n} | {s}", [0.5, 0.6])]
    info = Info("s", factors, baseline={"strategy": "probe"})
    every = compare.contrasts(make(rows), info)
    table = compare.against_baseline(every, info)
    assert list(zip(table["cell"], table["reference"], strict=True)) == [
        ("a | full", "a | probe"),
        ("b | full", "b | probe"),
    ]
    assert set(every["pairs"]) == {6}  # the family is that of all pairs
    assert compare.against_baseline(every, Info("s", factors)).empty


@pytest.mark.parametrize(
    "differences", [[1, 2, 3, 4, 5], [3, -1, 2, 2], [1, -1, 2, -2], [0.5, -0.1]]
)
def test_sign_flip_p_counts_every_assignment(differences: list[float]) -> None:
    sums = [
        abs(np.dot(signs, differences))
        for signs in itertools.product([1, -1], repeat=len(differences))
    ]
    expected = np.mean([s >= abs(sum(differences)) - 1e-9 for s in sums])
    assert compare.sign_flip_p(differences) == pytest.approx(expected)


def test_five_seeds_that_agree_reach_one_in_sixteen_and_no_further() -> None:
    assert compare.sign_flip_p([1, 2, 3, 4, 5]) == 0.0625


@pytest.mark.parametrize("pairs", [1, 5, 15])
def test_least_detectable_difference_has_the_power_it_promises(pairs: int) -> None:
    n, sd = 8, 2.0
    effect = least_detectable(sd, n, pairs) / sd
    cut = stats.t.ppf(1 - 0.025 / pairs, n - 1)
    shift = effect * math.sqrt(n)
    power = stats.nct.sf(cut, n - 1, shift) + stats.nct.cdf(-cut, n - 1, shift)
    assert power == pytest.approx(0.80, abs=1e-3)
    assert math.isnan(least_detectable(math.nan, 1))


def test_least_detectable_difference_is_found_for_every_number_of_seeds() -> None:
    found = [least_detectable(1.0, n) for n in range(2, 130)]
    assert found == sorted(found, reverse=True)
    assert found[0] == pytest.approx(11.54989, rel=1e-5)  # statsmodels, as the next
    assert found[98] == pytest.approx(0.2829117, rel=1e-5)


@pytest.mark.parametrize(
    ("scores", "verdict", "phrase"),
    [
        ([0.6], "untested", "share 1 scored seed, so the difference cannot be tested"),
        (
            [0.61, 0.62, 0.63, 0.64, 0.65],
            "higher",
            "13.0 points above “probe” (+11.0 to +15.0, 5 seeds)",
        ),
        ([0.4, 0.41, 0.42, 0.39, 0.38, 0.4], "lower", "10.0 points below"),
        (
            [0.51, 0.48, 0.52, 0.49, 0.50],
            "open",
            "is not significantly different from “probe”: +0.0 points",
        ),
        ([0.5, 0.5, 0.5], "open", "have the same score on each of 3 seeds"),
    ],
)
def test_a_contrast_claims_no_more_than_its_seeds_allow(
    scores: list[float], verdict: str, phrase: str
) -> None:
    trials = make([*repeats("probe", [0.5] * len(scores)), *repeats("full", scores)])
    row = compare.against(compare.contrasts(trials, STRATEGIES), "full").iloc[0].to_dict()
    assert row["verdict"] == verdict
    assert phrase in compare.describe_contrast(row)


def test_two_seeds_that_happen_to_differ_by_the_same_image_show_nothing() -> None:
    """Scores on 20 images: a standard deviation of 0 is only rounding."""
    trials = make([*repeats("probe", [0.50, 0.60]), *repeats("full", [0.55, 0.65])])
    assert compare.contrasts(trials, STRATEGIES)["verdict"].tolist() == ["open"]


def test_pareto_front_worked_by_hand() -> None:
    table = pd.DataFrame(
        {
            "accuracy": [0.9, 0.8, 0.8, 0.7, 0.95, 0.9, math.nan],
            "cost": [10.0, 5.0, 6.0, 5.0, math.nan, 10.0, 1.0],
        }
    )
    # the dear but best, its twin and the cheapest of the good; dominated by cost, by accuracy; unknown
    expected = [True, True, False, False, False, True, False]
    assert compare.pareto_front(table, "accuracy", ["cost"]).tolist() == expected


def test_expected_best_equals_the_mean_over_all_subsets() -> None:
    values = [0.3, 0.9, 0.5, 0.5, 0.7, 0.1]
    expected = [
        np.mean([max(subset) for subset in itertools.combinations(values, n)])
        for n in range(1, len(values) + 1)
    ]
    curve = budget.budget_curve(make(tuned("probe", values)))
    assert curve["val_score"].tolist() == pytest.approx(expected)


def test_wasted_trials_use_up_budget_and_faulty_ones_do_not() -> None:
    trials = make(
        [
            *tuned("probe", [0.6, 0.8]),
            {"cell": "probe", "index": 2, "outcome": "diverged"},
            {"cell": "probe", "index": 3, "outcome": "crashed"},
            {"cell": "probe", "index": 4, "outcome": "killed"},
            *tuned("full", [0.2]),
        ]
    )
    curve = budget.budget_curve(trials)
    own = curve.loc[curve["cell"] == "probe", "val_score"]
    assert list(own) == pytest.approx([(0.6 + 0.8 + 0.2) / 3, (0.8 + 0.8 + 0.6) / 3, 0.8])


def test_outcomes_count_every_run_once_and_name_only_what_was_seen() -> None:
    trials = make(
        [
            *repeats("full", [0.5]),
            *repeats("full", [0.5], superseded=True),
            *tuned("full", [0.5]),
            {"cell": "probe", "outcome": "oom"},
        ]
    )
    table = compare.outcomes(trials, STRATEGIES)
    assert list(table.columns) == ["cell", "phase", "complete", "oom", "superseded"]
    assert table.to_numpy().tolist() == [
        ["probe", "tune", 0, 1, 0],
        ["full", "tune", 1, 0, 0],
        ["full", "repeat", 1, 0, 1],
    ]


def test_predictions_that_do_not_bear_out_the_score_are_found() -> None:
    trials = make(repeats("probe", [0.5, 0.5, 0.5])).assign(test_accuracy=0.5)
    predictions = pd.DataFrame(
        {"run_id": ["run0"] * 2 + ["run1"] * 2, "label": [1, 1, 1, 1], "predicted": [1, 0, 1, 1]}
    )
    assert compare.prediction_mismatches(trials, predictions) == ["run1", "run2"]
