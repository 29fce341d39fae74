"""The table of the benchmarks states what was measured, including missed goals; lines and results are made by
hand."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from benchmarks import overhead, race, recipe, scale, tables
from benchmarks.data import make_folders
from harness.data.embedded import FASHION_MNIST


def line(program: str, seconds: float, work: str = "linear_probe", **more: Any) -> dict[str, Any]:
    """One measured line: a study of ten trials, all of them run."""
    fixed: dict[str, Any] = {"wanted": 10, "trials": 10, "accuracy": 0.8, "peak_rss_mib": 1000.0}
    fixed |= {"val_images": 1000, "machine": "a machine"}
    return {"work": work, "program": program, "seconds": seconds, **fixed, **more}


def goal(lines: list[dict[str, Any]], words: str, work: str = "linear_probe") -> tables.Goal:
    """The one goal of a work whose text holds `words`."""
    (found,) = [g for g in tables.goals(lines) if g.work == work and words in g.goal]
    return found


def test_a_peer_that_ran_one_trial_is_scaled_and_the_table_says_so() -> None:
    ours, peer = tables.rows([line("ours", 15.0), line("tutorial", 40.0, trials=1)])
    assert (ours.seconds, ours.note) == (15.0, "")
    assert peer.seconds == 400.0
    assert peer.times_ours == pytest.approx(400 / 15)
    assert peer.note == "1 measured, x10"


def test_rounds_are_summed_up_by_their_medians() -> None:
    rounds = [line("ours", s, peak_rss_mib=p) for s, p in ((9.0, 1.0), (5.0, 7.0), (6.0, 3.0))]
    (row,) = tables.rows(rounds)
    assert (row.seconds, row.peak_mib, row.rounds) == (6.0, 3.0, 3)


def test_the_fastest_peer_decides_and_absent_peers_are_named() -> None:
    lines = [line("ours", 10.0), line("tutorial", 210.0), line("trainer", 199.0)]
    found = goal(lines, "fastest peer")
    assert found.reached is False
    assert found.measured == "19.9x (trainer; without lightning, fastai)"
    lines[2]["seconds"] = 200.0
    assert goal(lines, "fastest peer").reached is True


def test_limits_compare_with_their_own_program() -> None:
    lines = [line("ours", 13.0), line("one_pass", 10.0), line("bare", 1.0)]
    assert goal(lines, "one forward pass").reached is True
    full = [line("ours", 106.0, "full"), line("bare", 100.0, "full"), line("one_pass", 1.0, "full")]
    (time,) = [g for g in tables.goals(full) if g.work == "full" and g.goal.startswith("time")]
    assert (time.measured, time.reached) == ("1.06x", False)


def test_accuracy_is_compared_with_the_noise_of_two_shares() -> None:
    # sqrt(2 * 0.8 * 0.2 / 1000) is 0.01789: two of them are 3.6 points.
    near = [line("ours", 1.0), line("fastai", 1.0, accuracy=0.766), line("trainer", 1.0)]
    found = goal(near, "accuracy")
    assert found.reached is True
    assert "noise 3.6 points" in found.measured
    far = [line("ours", 1.0), line("fastai", 1.0, accuracy=0.763), line("trainer", 1.0)]
    assert goal(far, "accuracy").reached is False


def test_memory_is_compared_with_the_bare_loop() -> None:
    lines = [line("ours", 1.0, peak_rss_mib=1301.0), line("bare", 1.0)]
    assert goal(lines, "memory").reached is False
    assert goal([line("ours", 1.0, peak_rss_mib=1300.0), lines[1]], "memory").reached is True


@pytest.mark.parametrize(
    ("without", "reached"),
    [({"a": 0.5, "b": 0.7}, True), ({"a": 0.5, "b": 0.7001}, False), ({"a": 0.5}, False)],
)
def test_results_are_the_same_only_if_every_accuracy_is(
    without: dict[str, float], reached: bool
) -> None:
    lines = [
        line("ours", 10.0, "default_study", runs={"a": 0.5, "b": 0.7}),
        line("ours, no reuse", 16.0, "default_study", runs=without),
    ]
    assert goal(lines, "same results", "default_study").reached is reached
    assert goal(lines, "at least 1.6x", "default_study").reached is True


def test_overhead_must_be_small_early_and_late_and_not_grow() -> None:
    alone = {"early_alone_ms": 28.0, "late_alone_ms": 30.0}
    grows = [line("ours", 1.0, "overhead", early_ms=30.0, late_ms=44.0, **alone)]
    assert goal(grows, "under 45 ms", "overhead").reached is True
    assert goal(grows, "the same late", "overhead").reached is False
    assert goal(grows, "of calling", "overhead").reached is False
    slow = [
        line("ours", 1.0, "overhead", early_ms=46.0, late_ms=44.0, **dict.fromkeys(alone, 40.0))
    ]
    assert goal(slow, "under 45 ms", "overhead").reached is False
    assert goal(slow, "of calling", "overhead").reached is True


def test_first_result_is_compared_with_the_imports_alone() -> None:
    for seconds, reached in ((7.0, True), (8.0, False)):
        found = goal([line("ours", seconds, "first_result", imports=4.0)], "within", "first_result")
        assert found.reached is reached
        assert f"{seconds / 4:.2f}x" in found.measured


def test_busy_program_may_cost_three_times_the_quiet_time_and_a_quiet_machine_nothing() -> None:
    measured = {
        "threads_busy": 2.5,
        "threads_quiet": 1.1,
        "workers_busy": 3.5,
        "workers_quiet": 1.0,
    }
    lines = [line("ours", 1.0, "busy_neighbour", threads_busy_before=9.0, **measured)]
    found = [g for g in tables.goals(lines) if g.work == "busy_neighbour"]
    assert [g.reached for g in found] == [True, False, False, True]
    assert "9.00x" in found[0].measured


def test_a_race_that_is_never_as_good_misses_its_goal() -> None:
    shares = {"needed": {"a": 0.3, "b": 0.48, "c": None}, "wrong": {"a": 0.01, "b": 0.02, "c": 0.0}}
    lines = [line("ours", 60.0, "time_box", **shares)]
    found = [(g.measured, g.reached) for g in tables.goals(lines) if g.work == "time_box"]
    expected = [("0.30", True), ("0.48", False), ("not even in all of it", False), ("2.0%", True)]
    assert found == expected


def test_a_race_that_was_not_as_good_in_all_of_the_time_has_no_share() -> None:
    index = pd.MultiIndex.from_tuples([("ledger", 16, 5), ("ledger", 6, 10)])
    medians = pd.DataFrame({"needed": [np.inf, 0.5], "wrong": [0.0, 0.01]}, index)
    first, second = "ledger, 16 trials + 5 repeats", "ledger, 6 trials + 10 repeats"
    assert race.summary(medians) == {
        "needed": {first: None, second: 0.5},
        "wrong": {first: 0.0, second: 0.01},
    }


def test_a_large_study_must_stay_level_and_answer_soon() -> None:
    level = {"early_ms": 10.0, "late_ms": 13.0, "early_mib": 100.0, "late_mib": 110.0}
    seconds = {"resume_s": 19.0, "status_s": 2.5, "report_s": 59.0}
    assert [g.reached for g in scale.goals(level | seconds)] == [False, True, True, False, True]


def test_reading_pixels_fails_the_large_folder() -> None:
    lines = [
        line("ours", 5.0, "large_folder", images=200_000, read_mib=20.0, grown_mib=100.0),
    ]
    assert goal(lines, "without reading", "large_folder").reached is False
    assert "0.51 KiB per image" in goal(lines, "index under", "large_folder").measured


def test_nothing_measured_is_neither_reached_nor_missed() -> None:
    assert {g.reached for g in tables.goals([])} == {None}
    missing = {"work": "full", "program": "fastai", "note": "not installed", "machine": "m"}
    text = tables.markdown([missing])
    assert "yes" not in text
    assert "| full | fastai | 0 |  |  |  |  | 0 | 0 | not installed |" in text


def test_the_csv_leaves_empty_what_was_not_measured() -> None:
    missing = {"work": "full", "program": "fastai", "note": "failed (1): x", "machine": "m"}
    (row,) = csv.DictReader(io.StringIO(tables.to_csv([missing])))
    assert (row["seconds"], row["accuracy"], row["note"]) == ("", "", "failed (1): x")


def test_rates_lie_evenly_about_the_single_one() -> None:
    assert recipe.rates("full", 1) == [1e-3]
    assert recipe.rates("full", 3) == pytest.approx([1e-3 / 1.5, 1e-3, 1.5e-3])


@pytest.mark.skipif(not FASHION_MNIST.is_dir(), reason="Fashion-MNIST is not installed")
def test_train_and_validation_folders_share_no_file_and_leave_the_test_quarter(
    tmp_path: Path,
) -> None:
    data = make_folders(8, tmp_path)
    names = {
        part: {p.relative_to(data / part) for p in (data / part).rglob("*.png")}
        for part in ("all", "train", "val")
    }
    assert [len(names[part]) for part in names] == [80, 40, 20]
    assert not names["train"] & names["val"]
    assert names["train"] | names["val"] < names["all"]


def test_what_the_runner_itself_costs_is_measured_with_trials_that_train_nothing(
    tmp_path: Path,
) -> None:
    (tmp_path / "alone").mkdir()
    alone = overhead.Libraries(tmp_path / "alone")
    spent = overhead.Spent.of(3, tmp_path, alone)
    assert len(spent.seconds) == 2
    assert all(0 < seconds < 60 for seconds in spent.seconds)
    assert len(spent.resident_mib) == 3
    assert len(alone.seconds) == 3
