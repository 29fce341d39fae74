"""Intervals over images, fronts, budgets, importances and recommendations agree with scipy, statsmodels,
simulation, brute force and cases worked out by hand.

    python -m pytest tests/test_analysis_evidence.py
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scipy.special import expit
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.power import TTestPower

from analysis import compare, recommend
from analysis.load.study import Info, StudyTable
from analysis.topics import budget, importance, learning_rates
from harness.core.errors import UserError
from harness.core.power import seeds_needed
from tests.made_studies import frame, predicted, repeats, tuned

AB = Info("s", {"strategy": ["a", "b"]}, command="python -m harness.study --space s.py")


@pytest.mark.slow
def test_an_interval_over_seeds_and_images_covers_the_truth_where_percentiles_would_not() -> None:
    random, covered, n = np.random.default_rng(0), 0, 300
    truth = stats.norm(1, math.sqrt(0.3**2 + 1)).expect(expit)
    for _ in range(n):
        skill = 1.0 + random.normal(0, 0.3, size=(4, 1)) + random.normal(0, 1, size=(1, 80))
        right = random.random((4, 80)) < expit(skill)
        row = compare.over_examples(predicted("a", right), resamples=200).iloc[0]
        covered += bool(row["low"] <= truth <= row["high"])
    assert 0.92 <= covered / n <= 0.99


def test_images_alone_give_the_binomial_standard_error() -> None:
    right = np.tile(np.arange(200) < 140, (3, 1))
    row = compare.over_examples(predicted("a", right)).iloc[0]
    assert row["se_seeds"] == pytest.approx(0, abs=1e-12)
    assert row["se_examples"] == pytest.approx(math.sqrt(0.7 * 0.3 / 200), rel=0.1)
    assert row["high"] - row["mean"] == pytest.approx(1.96 * math.sqrt(0.7 * 0.3 / 200), rel=0.1)


@pytest.mark.slow
def test_seeds_that_agree_on_every_image_share_still_differ_by_the_t_interval() -> None:
    scores = [140, 150, 160]
    random = np.random.default_rng(0)
    right = np.stack([np.arange(20000) < 100 * s for s in scores])
    right = right[:, random.permutation(20000)]
    row = compare.over_examples(predicted("a", right), resamples=4000).iloc[0]
    low, _ = stats.t.interval(0.95, 2, np.mean(scores) / 200, stats.sem(scores) / 200)
    assert row["low"] == pytest.approx(low, abs=0.01)


def test_mcnemar_is_that_of_statsmodels_on_one_seed_and_twice_the_median_over_several() -> None:
    random = np.random.default_rng(3)
    a, b = random.random((3, 300)) < 0.8, random.random((3, 300)) < 0.7
    tables = compare.hits(pd.concat([predicted("a", a), predicted("b", b)]))
    p = [
        mcnemar([[(x & y).sum(), (x & ~y).sum()], [(~x & y).sum(), (~x & ~y).sum()]]).pvalue
        for x, y in zip(a, b, strict=True)
    ]
    got = compare.mcnemar_over_seeds(tables, "a", "b")
    assert got["p_images"] == pytest.approx(min(1, 2 * np.median(p)))
    assert got["only_cell"] == pytest.approx((a & ~b).sum() / 3)
    assert math.isnan(compare.mcnemar_over_seeds(tables, "a", "none")["p_images"])


@pytest.mark.parametrize(("sd", "points"), [(1.0, 2.0), (3.0, 2.0), (2.5, 0.5)])
@pytest.mark.parametrize("pairs", [1, 10])
def test_the_seeds_needed_are_the_fewest_with_that_power(
    sd: float, points: float, pairs: int
) -> None:
    n = seeds_needed(sd, points, pairs)
    alpha = 0.05 / pairs
    power = [TTestPower().power(points / sd, nobs=m, alpha=alpha) for m in (n, n - 1)]
    assert power[0] >= 0.8 - 1e-6
    assert power[1] < 0.8
    assert seeds_needed(100, 0.5) == math.inf


def test_an_open_contrast_says_how_many_seeds_would_show_more() -> None:
    gap = [0.03, -0.04, 0.05, -0.05, 0.02]
    trials = frame([*repeats("a", [0.5 + g for g in gap]), *repeats("b", [0.5] * 5)])
    row = compare.contrasts(trials, AB).iloc[0].to_dict()
    needed = seeds_needed(100 * float(np.std(gap, ddof=1)), 2.0)
    assert f"; 2 points would need {needed:.0f} seeds." in compare.describe_contrast(row)


def test_times_of_another_device_or_number_of_threads_are_not_pooled() -> None:
    trials = frame(
        [
            *repeats("a", [0.5, 0.6, 0.7], train_seconds=10.0, peak_process_rss_mib=100.0),
            *repeats("b", [0.5, 0.6], train_seconds=1.0, device="cuda"),
            repeats("b", [0.5], seed=7, train_seconds=20.0)[0],
            repeats("b", [0.5], seed=8, train_seconds=5.0, threads=1)[0],
        ]
    )
    table = compare.summary(trials, AB).set_index("cell")
    assert compare.condition(trials) == "cpu, 2 threads"
    assert table.loc["b", "train_seconds_median"] == 20.0
    assert table.loc["b", "n"] == 4  # scores are compared all the same
    gone = compare.left_out(trials).set_index("condition")["runs"]
    assert gone.to_dict() == {"cpu, 1 thread": 1, "cuda, 2 threads": 2}


def test_cold_equivalent_time_is_compared_and_the_marginal_stands_beside_it() -> None:
    trials = frame(
        [
            *repeats("a", [0.5, 0.6], train_seconds=10.0, marginal_seconds=1.0),
            *repeats("b", [0.5, 0.6], train_seconds=9.0, marginal_seconds=9.0),
        ]
    )
    table = compare.summary(trials, AB).set_index("cell")
    assert table["time_front"].to_dict() == {"a": False, "b": True}
    assert table.loc["a", "marginal_seconds_median"] == 1.0


@pytest.mark.parametrize(
    ("metrics", "kind", "value"),
    [
        ({"peak_process_rss_mib": 900.0}, "process, measured", 900.0),
        # A process is mostly libraries: its peak hardly tells strategies apart.
        ({"peak_process_rss_mib": 900.0, "forecast_peak_mib": 50.0}, "accelerator, forecast", 50.0),
        (
            {"peak_accelerator_allocated_mib": 55.0, "forecast_peak_mib": 50.0},
            "accelerator, measured",
            55.0,
        ),
    ],
)
def test_memory_is_the_accelerators_measured_or_forecast_and_says_which(
    metrics: dict[str, float], kind: str, value: float
) -> None:
    rows = frame(repeats("a", [0.5, 0.6], **metrics))
    assert compare.memory_kind(rows) == kind
    assert compare.summary(rows, AB)["peak_memory_mib_median"].iloc[0] == value


def test_out_of_memory_and_time_are_kept_as_lower_bounds() -> None:
    trials = frame(
        [
            *repeats("a", [0.5, 0.6], peak_process_rss_mib=10.0),
            {"cell": "b", "phase": "tune", "outcome": "oom", "forecast_peak_mib": 9000.0},
            {"cell": "b", "phase": "tune", "outcome": "timeout", "total_seconds": 61.0},
            {"cell": "b", "phase": "tune", "outcome": "timeout", "train_seconds": 60.0},
        ]
    )
    rows = compare.censored(trials, AB).set_index("outcome")
    assert rows.loc["oom", "memory_mib"] == 9000.0
    assert (rows.loc["timeout", "runs"], rows.loc["timeout", "seconds"]) == (2, 61.0)
    assert not rows["scored"].any()
    assert compare.front_chance(trials, AB)["cell"].tolist() == ["a"]


def test_the_chance_of_being_on_the_front_counts_the_resamples_of_brute_force() -> None:
    a, b, seconds = [0.5, 0.7, 0.6], [0.6, 0.6, 0.7], [3.0, 3.0, 1.0]
    trials = frame(
        [
            *[r | {"train_seconds": s} for r, s in zip(repeats("a", a), seconds, strict=True)],
            *repeats("b", b, train_seconds=2.0),
        ]
    )
    hits = []
    for draw in itertools.product(range(3), repeat=3):
        mine = sum(a[i] for i in draw) / 3, -sum(seconds[i] for i in draw) / 3
        theirs = sum(b[i] for i in draw) / 3, -2.0
        worse = all(t >= m - 1e-12 for m, t in zip(mine, theirs, strict=True))
        hits.append(not (worse and any(t > m + 1e-12 for m, t in zip(mine, theirs, strict=True))))
    chance = compare.front_chance(trials, AB, resamples=20_000).set_index("cell")["chance"]
    assert chance["a"] == pytest.approx(np.mean(hits), abs=0.015)


def test_a_budget_in_seconds_is_that_of_its_trials() -> None:
    trials = frame(tuned("a", [0.5, 0.7, 0.9], train_seconds=2.0))
    curve = budget.budget_curve(trials)
    assert curve["seconds"].tolist() == [2.0, 4.0, 6.0]
    assert (curve["spread_low"] <= curve["val_score"] + 1e-12).all()
    assert (curve["val_score"] <= curve["spread_high"] + 1e-12).all()


def test_the_spread_of_a_budget_curve_at_one_trial_is_that_of_a_mean() -> None:
    values = np.random.default_rng(0).normal(0.7, 0.05, 60)
    row = budget.budget_curve(frame(tuned("a", list(values)))).iloc[0]
    boot = stats.bootstrap((values,), np.mean, method="percentile", rng=np.random.default_rng(1))
    assert row["spread_low"] == pytest.approx(boot.confidence_interval.low, abs=0.004)
    assert row["spread_high"] == pytest.approx(boot.confidence_interval.high, abs=0.004)


def test_the_parameter_that_decides_is_the_important_one() -> None:
    random = np.random.default_rng(0)
    lr, decay = 10 ** random.uniform(-4, -1, 60), random.uniform(0, 1, 60)
    scores = 0.9 - 0.1 * (np.log10(lr) + 2.5) ** 2 + 0.001 * decay
    trials = frame(tuned("a", list(scores)))
    trials = trials.assign(**{"param.lr": lr, "param.decay": decay, "param.fixed": np.ones(60)})
    table = importance.importances(trials).set_index("parameter")["importance"]
    assert set(table.index) == {"lr", "decay"}
    assert table["lr"] > 0.8
    assert table.sum() == pytest.approx(1)
    # Optuna's documentation asks for 5 trials in the best tenth
    assert len(importance.importances(trials[:50])) == 2
    assert importance.importances(trials[:49]).empty


def test_values_from_a_grid_are_weighed_as_such() -> None:
    random = np.random.default_rng(0)
    rates, decays = [1e-5, 1e-4, 1e-3, 1e-2, 1e-1], [0.0, 1e-6, 1e-5, 1e-4]
    grid = np.array(list(itertools.product(rates, decays, range(3))))
    scores = 0.9 - 0.1 * np.abs(np.log10(grid[:, 0]) + 2) + random.normal(0, 0.01, len(grid))
    trials = frame(tuned("a", list(scores)))
    trials = trials.assign(**{"param.lr": grid[:, 0], "param.decay": grid[:, 1]})
    table = importance.importances(trials).set_index("parameter")["importance"]
    assert table["lr"] > 3 * table["decay"]


def test_the_range_of_good_rates_worked_by_hand() -> None:
    trials = frame(tuned("a", [0.80, 0.895, 0.91, 0.5]))
    row = learning_rates.rate_ranges(trials.assign(**{"param.lr": [1e-4, 1e-3, 1e-2, 1e-1]})).iloc[
        0
    ]
    assert row["edge"] == ""  # the declared range is not recorded
    assert (row["good_low"], row["good_high"], row["best"]) == (1e-3, 1e-2, 1e-2)
    assert row["decades"] == pytest.approx(1)
    assert row["good_share"] == 0.5


def test_arms_are_ranked_within_each_target() -> None:
    info = Info("s", {"target": ["x", "y", "z"], "net": ["a", "b"]})
    scores = {"x | a": 0.9, "x | b": 0.8, "y | a": 0.3, "y | b": 0.2, "z | a": 0.5, "z | b": 0.6}
    trials = frame([row for cell, s in scores.items() for row in repeats(cell, [s])])
    table = compare.mean_ranks(trials, info).set_index("arm")
    assert table.loc["a", "mean_rank"] == pytest.approx(4 / 3)
    assert table["wins"].to_dict() == {"a": 2, "b": 1}
    assert table.loc["b", "behind"] == pytest.approx(100 * (0.1 + 0.1) / 3)
    pairs = compare.contrasts(trials, info)
    assert list(zip(pairs["cell"], pairs["reference"], strict=True)) == [
        (f"{t} | a", f"{t} | b") for t in "xyz"
    ]
    assert compare.mean_ranks(trials, Info("s", {"net": ["a", "b"]})).empty


def test_two_studies_are_paired_on_shared_seeds_and_else_compared_by_welch() -> None:
    old, new = [0.5, 0.52, 0.49, 0.51, 0.5, 0.53], [0.6, 0.63, 0.58, 0.62, 0.61, 0.62]
    first = frame([*repeats("a", old), *repeats("b", old)])
    second = frame(
        [*repeats("a", new), *[row | {"seed": 50 + i} for i, row in enumerate(repeats("b", new))]]
    )
    rows = compare.side_by_side(first, second).set_index("cell")
    paired = stats.ttest_rel(new, old).confidence_interval(1 - 0.05 / 2)
    assert rows.loc["a", "low"] == pytest.approx(100 * paired.low)
    welch = stats.ttest_ind(new, old, equal_var=False)
    assert rows.loc["b", "p"] == pytest.approx(2 * welch.pvalue)
    assert rows["pairs"].to_dict() == {"a": 6, "b": 0}


def study(rows: Sequence[Mapping[str, object]]) -> StudyTable:
    return StudyTable(AB, "", frame(rows))


def test_limits_leave_out_what_is_over_or_unmeasured_and_name_the_runs_that_would_help() -> None:
    a = [0.80, 0.83, 0.79, 0.86, 0.84]
    rows = [
        *repeats("a", a, train_seconds=100.0, total_seconds=120.0, peak_process_rss_mib=900.0),
        *repeats("b", [x - 0.005 + 0.01 * (i % 2) for i, x in enumerate(a)],
                 train_seconds=10.0, total_seconds=20.0, peak_process_rss_mib=800.0),
    ]  # fmt: skip
    table = study(rows)
    said = recommend.recommend_cell(table)
    assert said[0].startswith("Use “a”: test accuracy 82.4% (5 seeds), 100 s of training, 900 MiB")
    assert "--repeats" in said[-1]
    tight = compare.choice(table.trials, AB, {"train_seconds": 60})
    assert tight["cell"].tolist() == ["b", "a"]
    assert tight["why"].tolist() == ["", "training: 100 s, the limit is 60"]
    none = compare.choice(
        table.trials.assign(peak_process_rss_mib=math.nan), AB, {"peak_memory_mib": 1e6}
    )
    assert set(none["why"]) == {"peak memory not measured"}
    assert recommend.recommend_cell(table, limits={"peak_memory_mib": 1.0})[0].startswith(
        "No cell fits. “"
    )


def test_a_study_of_several_targets_asks_which_one() -> None:
    info = Info("s", {"target": ["x", "y"], "net": ["a"]})
    several = replace(study(repeats("a", [0.5])), info=info)
    with pytest.raises(UserError, match="choose one with --where target=NAME"):
        recommend.within(several, [])
    assert recommend.within(several, ["target=y"])["target"] == ["y"]
    with pytest.raises(UserError, match="no value 'q'; values: x, y"):
        recommend.within(several, ["target=q"])
