"""Losses under shift and crossings over sizes agree with lines whose crossing is known, by hand or by
simulation, and with scipy's own intervals.

    python -m pytest tests/test_analysis_sizes.py
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis import compare, plots, report
from analysis.load import Info
from analysis.topics import shifts, sizes
from analysis.topics.sizes import crossing, crossing_interval
from tests.made_studies import frame, scored, table, words_of
from tests.made_studies import repeats as repeats_of

FACTORS = {"shots": ["10", "100", "1000"], "strategy": ["probe", "full"]}
STUDY = Info("s", FACTORS, baseline={"strategy": "probe"})


def repeats(scores: Mapping[str, Sequence[float]], **more: Sequence[float]) -> pd.DataFrame:
    """Complete repeats of each cell on seeds 0, 1, ...; `more` are further metrics of every cell."""
    rows = [
        row | {name: values[seed] for name, values in more.items()}
        for cell, own in scores.items()
        for seed, row in enumerate(repeats_of(cell, own))
    ]
    trials = frame(rows)
    return trials.assign(test_accuracy=trials["test_score"])


def lines(probe: Sequence[Sequence[float]], full: Sequence[Sequence[float]]) -> pd.DataFrame:
    """Repeats of both lines; one list of scores (by seed) per size."""
    labels = FACTORS["shots"]
    scores = {f"{s} | probe": list(v) for s, v in zip(labels, probe, strict=False)}
    scores |= {f"{s} | full": list(v) for s, v in zip(labels, full, strict=False)}
    return repeats(scores)


@pytest.mark.parametrize(
    ("factors", "expected"),
    [
        ({"shots": ["5", "10"], "strategy": ["a"]}, "shots"),
        ({"strategy": ["a", "b"], "share": ["0.1", "1e2"]}, "share"),
        ({"strategy": ["a", "5"]}, None),
        ({"depth": ["0", "1"]}, None),
        ({"shots": ["5"]}, None),
        ({"shots": ["5", "5.0"]}, None),
        ({"shots": ["5", "inf"]}, None),
        ({"shots": ["5", "nan"]}, None),
    ],
)
def test_a_size_is_a_factor_of_different_positive_numbers(
    factors: dict[str, list[str]], expected: str | None
) -> None:
    assert compare.size_factor(factors) == expected


def test_a_line_is_what_the_other_factors_say() -> None:
    factors = {"net": ["a", "b"], "shots": ["5", "10"], "strategy": ["x"]}
    table = compare.size_lines(factors)
    assert table.to_dict("records")[3] == {"cell": "b | 10 | x", "line": "b | x", "size": 10.0}
    assert set(compare.size_lines({"shots": ["5", "10"]})["line"]) == {"shots"}
    assert compare.size_lines({"strategy": ["x"]}).empty


def test_accuracy_by_size_has_the_interval_of_scipy() -> None:
    scores = [0.5, 0.54, 0.49]
    row = sizes.by_size(repeats({"100 | full": scores}), STUDY).iloc[0]
    expected = stats.t.interval(0.95, 2, loc=np.mean(scores), scale=stats.sem(scores))
    assert (row["line"], row["size"], row["n"]) == ("full", 100.0, 3)
    assert (row["low"], row["high"]) == pytest.approx(expected)


def test_a_crossing_is_interpolated_in_log_size() -> None:
    # full minus probe: -4, -2, +2 points: the sign changes half way, in logs, from 100 to 1000
    trials = lines([[0.54] * 6, [0.62] * 6, [0.70] * 6], [[0.50] * 6, [0.60] * 6, [0.72] * 6])
    row = sizes.crossings(trials, STUDY).iloc[0]
    assert (row["line"], row["other"], row["n"], row["changes"]) == ("probe", "full", 6, 1)
    assert row["size"] == pytest.approx(10**2.5)
    assert (row["low"], row["high"]) == pytest.approx((10**2.5, 10**2.5))
    assert row["shown"]


def test_no_crossing_is_called_none() -> None:
    trials = lines([[0.5, 0.52]] * 3, [[0.6, 0.61]] * 3)
    row = sizes.crossings(trials, STUDY).iloc[0]
    assert (row["line"], row["changes"], row["shown"]) == ("full", 0, False)
    assert math.isnan(row["size"])
    assert math.isnan(row["low"])


@pytest.mark.parametrize(
    ("means", "expected"),
    [
        ([-1, 1, -1], [0.5, 1.5]),
        ([-1, 3, 3], [0.25]),
        ([-1, 0, 2], [1]),
        ([1, 0, 2], []),
        ([0, 1, 2], []),
        ([0, 0, 0], []),
        ([-1, math.nan, 1], [1]),
    ],
)
def test_sign_changes_worked_by_hand(means: list[float], expected: list[float]) -> None:
    assert sizes.sign_changes([0, 1, 2], means) == expected


def test_the_interval_of_a_crossing_holds_what_a_paired_t_test_does_not_reject() -> None:
    rng = np.random.default_rng(4)
    points = rng.normal([3.0, 1.0, -5.0], 0.8, (5, 3))
    grid = np.linspace(0, 2, 4001)
    along = np.array([[np.interp(x, [0, 1, 2], seed) for x in grid] for seed in points])
    kept = grid[stats.ttest_1samp(along, 0).pvalue >= 0.05]
    [place] = sizes.sign_changes([0, 1, 2], points.mean(axis=0))
    low, high = sizes.zero_interval(np.array([0.0, 1.0, 2.0]), points, place)
    assert (math.log(low), math.log(high)) == pytest.approx((kept.min(), kept.max()), abs=1e-3)


def test_an_interval_that_leaves_the_sizes_is_open() -> None:
    # seed 0 crosses at 10^1.5; seed 1 has probe ahead throughout
    trials = lines([[0.53, 0.52], [0.50, 0.51]], [[0.50, 0.50], [0.53, 0.50]])
    row = sizes.crossings(trials, STUDY).iloc[0]
    assert row["size"] == pytest.approx(10 ** (1 + 2.5 / 3.5))
    assert (row["low"], row["high"], row["shown"]) == (0, math.inf, False)


def test_one_seed_has_a_crossing_but_no_interval() -> None:
    trials = lines([[0.54], [0.62], [0.70]], [[0.50], [0.60], [0.72]])
    row = sizes.crossings(trials, STUDY).iloc[0]
    assert row["size"] == pytest.approx(10**2.5)
    assert row[["low", "high"]].isna().all()
    assert not row["shown"]


def test_sizes_without_shared_seeds_are_left_out() -> None:
    trials = lines([[0.54] * 2, [0.62] * 2], [[0.50] * 2, [0.64] * 2, [0.7] * 2])
    row = sizes.crossings(trials, STUDY).iloc[0]
    assert (row["smallest"], row["largest"]) == (10, 100)
    assert sizes.crossings(lines([[0.5]], [[0.5]]), STUDY).empty


def test_each_line_meets_the_baseline_at_its_own_size() -> None:
    trials = lines([[0.5, 0.51]] * 3, [[0.4, 0.42], [0.52, 0.52], [0.6, 0.63]])
    every = compare.contrasts(trials, STUDY)
    table = compare.against_baseline(every, STUDY)
    assert list(zip(table["cell"], table["reference"], strict=True)) == [
        (f"{s} | full", f"{s} | probe") for s in FACTORS["shots"]
    ]
    assert table["difference"].tolist() == pytest.approx([-9.5, 1.5, 11.0])


def test_cells_of_one_line_share_its_colour_and_differ_in_marker() -> None:
    table = compare.size_lines(FACTORS)
    cells, names = list(table["cell"]), list(table["line"].unique())
    style = plots.styles(cells, dict(zip(table["cell"], table["line"], strict=True)))
    line = plots.styles(names)
    assert all(style[f"{s} | {n}"].color == line[n].color for s in FACTORS["shots"] for n in names)
    assert len({(s.color, s.marker) for s in style.values()}) == len(cells)


STRATEGIES = Info("s", {"strategy": ["probe", "full"]})


def test_a_loss_is_paired_within_the_repeat() -> None:
    plain, blur = [0.80, 0.70, 0.75], [0.70, 0.62, 0.68]
    trials = repeats({"probe": plain}, **{"test_accuracy.blur": blur})
    table = shifts.shifted(trials, STRATEGIES).set_index("test_set")
    expected = stats.ttest_rel(plain, blur).confidence_interval(0.95)
    assert list(table.index) == ["plain", "blur"]
    assert table.loc["plain", "mean"] == pytest.approx(0.75)
    assert math.isnan(table["loss"]["plain"])
    assert table.loc["blur", "loss"] == pytest.approx(100 * np.mean(np.subtract(plain, blur)))
    assert table.loc["blur", "loss_low"] == pytest.approx(100 * expected.low)
    assert table.loc["blur", "loss_high"] == pytest.approx(100 * expected.high)


def test_shifts_come_in_the_order_of_the_vocabulary_and_only_if_there() -> None:
    trials = repeats(
        {"probe": [0.8, 0.7]},
        **{"test_accuracy.label_shift": [0.8, 0.7], "test_accuracy.noise": [0.4, 0.4]},
        **{"test_accuracy.blur": [math.nan, math.nan]},
    )
    table = shifts.shifted(trials, STRATEGIES)
    assert list(table["test_set"]) == ["plain", "noise", "label_shift"]
    bare = repeats({"probe": [0.8, 0.7]})
    assert shifts.shifted(bare, STRATEGIES).empty
    assert shifts.shift_losses(bare, STRATEGIES).empty


def test_mean_losses_are_paired_on_seeds_and_widened_for_every_pair() -> None:
    info = Info("s", {"strategy": ["a", "b", "c"]})
    rng = np.random.default_rng(0)
    trials = repeats({name: [0.8] * 6 for name in "abc"})
    for shift in ("noise", "blur"):
        trials[f"test_accuracy.{shift}"] = rng.uniform(0.3, 0.6, len(trials))
    losses = shifts.shift_losses(trials, info)
    assert losses["loss"].is_monotonic_increasing
    table = shifts.loss_pairs(trials, list(losses["cell"]))
    assert len(table) == 3
    moved = ["test_accuracy.noise", "test_accuracy.blur"]
    lost = 100 * (trials["test_score"] - trials[moved].mean(axis=1))
    by_cell = {name: lost[trials["cell"] == name].to_numpy() for name in "abc"}
    for row in table.to_dict("records"):
        test = stats.ttest_rel(by_cell[row["reference"]], by_cell[row["cell"]])
        expected = test.confidence_interval(1 - 0.05 / 3)
        assert (row["low"], row["high"]) == pytest.approx((expected.low, expected.high))
        assert row["significant"] == (3 * test.pvalue < 0.05)


def test_a_repeat_that_misses_a_test_set_has_no_mean_loss() -> None:
    trials = repeats(
        {"probe": [0.8, 0.7]},
        **{"test_accuracy.noise": [0.5, 0.5], "test_accuracy.blur": [0.6, math.nan]},
    )
    row = shifts.shift_losses(trials, STRATEGIES).iloc[0]
    assert (row["n"], row["loss"]) == (1, pytest.approx(25.0))


@pytest.mark.usefixtures("undrawn")
def test_a_study_of_sizes_says_where_lines_cross(tmp_path: Path) -> None:
    factors = {"shots": ["10", "100"], "strategy": ["probe", "full", "scratch"]}
    means = {"10": (0.8, 0.75, 0.3), "100": (0.82, 0.87, 0.5)}
    rows = [
        row
        for shots, accuracies in means.items()
        for strategy, accuracy in zip(factors["strategy"], accuracies, strict=True)
        for row in scored(f"{shots} | {strategy}", accuracy)
    ]
    page = report.build(table(rows, factors, {"strategy": "probe"}), tmp_path)
    text = words_of(page)
    assert "Highest mean test score by shots: “probe” at 10; “full” at 100." in text
    assert "“probe” leads “full” up to about 31.6 shots (95% interval 31.6, 6 seeds)." in text
    assert "No crossing was shown for 2 other pairs of lines." in text
    assert (page.parent / "figures" / "by_size.png").exists()
    assert len(pd.read_csv(page.parent / "tables" / "crossings.csv")) == 3


def test_a_crossing_that_was_not_shown_is_not_claimed() -> None:
    row: dict[Hashable, object] = {"line": "a", "other": "b", "n": 6, "changes": 1, "shown": True}
    row |= {"smallest": 5.0, "largest": 300.0, "size": 42.0, "low": 9.0, "high": math.inf}
    assert crossing(row, "shots") == (
        "“a” leads “b” up to about 42 shots (95% interval 9 to above 300, 6 seeds)."
    )
    assert "it was not shown that each of them is ahead on one side" in crossing(
        row | {"shown": False}, "shots"
    )
    assert crossing_interval(row | {"low": 0.0}) == "below 5 to above 300"
    assert crossing_interval(row | {"low": math.nan}) == "–"
    none = row | {"changes": 0, "size": math.nan}
    assert crossing(none, "shots").startswith("No crossing between 5 and 300 shots")
    alone = row | {"n": 1, "low": math.nan, "shown": False}
    assert "(one seed: no interval)" in crossing(alone, "shots")
