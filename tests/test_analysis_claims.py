"""What the report claims, against what is true: error rates, coverage and wording of every claim, on studies
whose truth is known because they were simulated.

    python -m pytest tests/test_analysis_claims.py            # a few repetitions each
    python -m pytest tests/test_analysis_claims.py -m slow    # 500 each: a Monte Carlo error of 2 points at 5
    %
"""

from __future__ import annotations

import json
import math
import warnings as warnings_module
from functools import cache

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier

from analysis import compare
from analysis.compare.agreement import mean_agreement, rank_agreement
from analysis.compare.slopes import shuffled_p
from analysis.load import Info
from analysis.text import methods
from analysis.topics import TOPICS, budget, learning_rates, sizes
from harness.core.power import least_detectable
from tests.made_studies import frame, scored, table, trial
from tests.made_studies import repeats as repeats_of

FEW, MANY = 40, 500
REPETITIONS = pytest.mark.parametrize(
    "repetitions", [FEW, pytest.param(MANY, marks=pytest.mark.slow)]
)


def at_most(hits: int, of: int, share: float) -> bool:
    """Whether a true share at most `share` would give as many hits: two Monte Carlo standard errors more."""
    return hits / of <= share + 2 * math.sqrt(share * (1 - share) / of)


@cache
def blank(seeds: int, cells: int) -> pd.DataFrame:
    """Complete repeats of cells a, b, ..., one after another, without scores."""
    return frame([row for i in range(cells) for row in repeats_of(chr(97 + i), [math.nan] * seeds)])


def repeats(accuracy: np.ndarray) -> pd.DataFrame:
    """Complete repeats with these test accuracies (seeds x cells a, b, ...)."""
    return blank(*accuracy.shape).assign(test_score=accuracy.T.ravel())


def cells_of(count: int, folds: int = 1) -> Info:
    return Info("s", {"cell_name": [chr(97 + i) for i in range(count)]}, folds=folds)


def drawn(
    random: np.random.Generator, truth: np.ndarray, seeds: int, images: int, uneven: bool = False
) -> np.ndarray:
    """Test accuracies (seeds x cells): hits of so many images, training draws common to all and to each
    cell."""
    spread = np.linspace(0.3, 3, len(truth)) if uneven else np.ones(len(truth))
    common = random.normal(0, 0.02, (seeds, 1))
    own = random.normal(0, 0.01, (seeds, len(truth))) * spread
    share = np.clip(truth + common + own, 0.01, 0.99)
    return random.binomial(images, share) / images


@REPETITIONS
@pytest.mark.parametrize(
    ("cells", "seeds", "images", "uneven"),
    [(6, 10, 500, False), (6, 5, 100, True), (4, 3, 20, False), (10, 12, 200, True)],
)
def test_equal_cells_get_a_wrong_verdict_in_at_most_one_study_of_twenty(
    cells: int, seeds: int, images: int, uneven: bool, repetitions: int
) -> None:
    random, wrong = np.random.default_rng(0), 0
    for _ in range(repetitions):
        accuracy = drawn(random, np.full(cells, 0.8), seeds, images, uneven)
        verdicts = compare.contrasts(repeats(accuracy), cells_of(cells))["verdict"]
        wrong += bool(verdicts.isin(["higher", "lower"]).any())
    assert at_most(wrong, repetitions, 0.05)


@pytest.mark.slow
def test_six_cells_that_are_the_same_get_a_wrong_verdict_in_at_most_one_study_of_twenty() -> None:
    """From the predictions of trained networks instead of random hits: for each of 8 seeds (a draw of 100
    training images) 12 networks that differ in their initial weights; a cell has one of them at each seed."""
    images, labels = load_digits(return_X_y=True)
    right = np.zeros((8, 12, 500), dtype=bool)
    for seed, start in np.ndindex(right.shape[:2]):
        order = np.random.default_rng(seed).permutation(len(labels) - 500)[:100]
        network = MLPClassifier((16,), max_iter=60, learning_rate_init=0.02, random_state=start)
        with warnings_module.catch_warnings():
            warnings_module.simplefilter("ignore")  # it need not have converged
            network.fit(images[order] / 16, labels[order])
        right[seed, start] = network.predict(images[-500:] / 16) == labels[-500:]
    accuracy = right.mean(axis=2)
    assert accuracy.std(axis=1).min() > 0.002  # the networks of a seed do differ
    random, wrong = np.random.default_rng(6), 0
    for _ in range(MANY):
        drawn_cells = np.stack([random.permutation(own)[:6] for own in accuracy])
        verdicts = compare.contrasts(repeats(drawn_cells), cells_of(6))["verdict"]
        wrong += bool(verdicts.isin(["higher", "lower"]).any())
    assert at_most(wrong, MANY, 0.05)


@REPETITIONS
def test_all_intervals_of_unequal_cells_hold_at_once(repetitions: int) -> None:
    random, missed = np.random.default_rng(1), 0
    truth = np.array([0.70, 0.74, 0.75, 0.76, 0.80])
    for _ in range(repetitions):
        accuracy = drawn(random, truth, 6, 2000, uneven=True)
        rows = compare.contrasts(repeats(accuracy), cells_of(5))
        gap = [100 * (truth[ord(a) - 97] - truth[ord(b) - 97]) for a, b in
               zip(rows["cell"], rows["reference"], strict=True)]  # fmt: skip
        missed += bool(((rows["low"] > gap) | (rows["high"] < gap)).any())
    assert at_most(missed, repetitions, 0.05)


@REPETITIONS
def test_promised_power_is_that_of_the_rule_that_is_applied(repetitions: int) -> None:
    """6 cells, 8 seeds; one cell is above the others by what the report says would be found 4 times in 5."""
    random, found, sd = np.random.default_rng(2), 0, 1.0
    least = least_detectable(math.sqrt(2) * sd, 8, 15)
    for _ in range(repetitions):
        points = random.normal(np.array([least, 0, 0, 0, 0, 0]), sd, (8, 6))
        rows = compare.contrasts(repeats(0.5 + points / 100), cells_of(6))
        found += bool((rows["verdict"].iloc[0]) == "higher")
    error = math.sqrt(0.8 * 0.2 / repetitions)
    assert abs(found / repetitions - 0.8) < 3 * error


@REPETITIONS
def test_how_far_the_chosen_cell_may_be_behind_holds(repetitions: int) -> None:
    """In place of a probability of being the best, which no few seeds can give: spreads of 0 to 3 errors."""
    random = np.random.default_rng(3)
    missed = 0
    for i in range(repetitions):
        truth = 0.7 + 0.01 * (i % 4) / math.sqrt(5) * random.normal(size=6)
        accuracy = drawn(random, truth, 5, 500)
        chosen = int(accuracy.mean(axis=0).argmax())  # the worst case: chosen by the same scores
        pairs = compare.contrasts(repeats(accuracy), cells_of(6))
        bound = compare.most_behind(pairs, chr(97 + chosen))
        missed += bool(100 * (truth.max() - truth[chosen]) > bound + 1e-9)
    assert at_most(missed, repetitions, 0.05)


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_the_interval_of_a_crossing_covers_it(seeds: int) -> None:
    """Differences of 2, 1, -1 and -3 points: they cross half way from the second to the third size."""
    random, covered, seen = np.random.default_rng(4), 0, 0
    places = np.log([10.0, 30.0, 100.0, 300.0])
    truth = math.exp((places[1] + places[2]) / 2)
    for _ in range(MANY):
        points = (
            random.normal(0, 1.5, (seeds, 1)) + random.normal(0, 1.0, (seeds, 4)) + [2, 1, -1, -3]
        )
        if not (changes := sizes.sign_changes(places, points.mean(axis=0))):
            continue
        low, high = sizes.zero_interval(places, points, changes[0])
        seen += 1
        covered += bool(low <= truth <= high)
    assert seen > 0.9 * MANY
    assert covered / seen >= 0.93


@REPETITIONS
def test_parallel_lines_are_not_said_to_cross(repetitions: int) -> None:
    factors = {"shots": ["10", "30", "100"], "arm": ["p", "q"]}
    random, claimed = np.random.default_rng(5), 0
    for _ in range(repetitions):
        points = random.normal(0, 0.01, (5, 6)) + np.tile([0.003, 0.0], 3) + 0.7
        rows = repeats(points)
        names = [f"{s} | {a}" for s in factors["shots"] for a in factors["arm"]]
        rows["cell"] = rows["cell"].map(lambda c, names=names: names[ord(c) - 97])
        claimed += bool(sizes.crossings(rows, Info("s", factors))["shown"].any())
    assert at_most(claimed, repetitions, 0.05)


def test_the_band_of_a_budget_curve_is_called_no_confidence_interval() -> None:
    rows = [trial("a", "tune", i, 0.5 + 0.05 * i, train_seconds=1.0 + i * i) for i in range(5)]
    section = budget.section(compare.find(table(rows)))
    assert {"spread_low", "spread_high"} < {*section.tables["budget"]}
    banded = [plot for plot in section.plots if plot.name in ("budget", "budget_seconds")]
    assert len(banded) == 2
    assert all("not a confidence interval" in plot.caption for plot in banded)
    assert section.tables["budget"]["seconds"].iloc[0] == 5.0  # the median; the mean is 7


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ({"train": 30, "test": {"x": 5, "y": 0, "z": 5}}, "Each run had 90 training and 10 test"),
        ({"train": 30, "test": 5}, "Each run had 60 training and 10 test"),
        ({"train": {"least": [5, "x"], "most": [9, "y"], "all": 70}}, "Each run had 70 training"),
    ],
)
def test_sizes_of_the_parts_count_classes_without_test_examples(
    counts: dict[str, object], said: str
) -> None:
    made = table(scored("a", 0.8, images_per_class=json.dumps(counts)))
    made.predictions["label"] = made.predictions["example"] % 2
    assert said in methods(compare.find(made))


def test_sizes_of_targets_with_different_numbers_of_classes_are_not_mixed() -> None:
    counts = '{"train": 30, "test": 5}'
    rows = [row for cell in ("a", "b") for row in scored(cell, 0.8, images_per_class=counts)]
    made = table(rows)
    made.predictions["label"] = made.predictions["example"] % 2
    made.predictions.loc[made.predictions["cell"] == "b", "label"] = 1
    assert "Each run had" not in methods(compare.find(made))


def test_no_verdict_is_contradicted_by_another_p_value() -> None:
    found = compare.find(table([*scored("a", 0.8), *scored("b", 0.81)], baseline={"strategy": "a"}))
    for topic in TOPICS:
        for sentence in topic(found).answer:
            assert " p = " not in sentence
            assert "probably" not in sentence


def test_intervals_stay_within_what_the_number_can_be() -> None:
    factors = {"target": ["x", "y"], "arm": [str(i) for i in range(9)]}
    random = np.random.default_rng(6)
    rows = [
        row
        for target in factors["target"]
        for arm in factors["arm"]
        for row in scored(f"{target} | {arm}", float(random.uniform(0.4, 0.9)))
    ]
    ranks = compare.mean_ranks(table(rows, factors).trials, Info("s", factors))
    assert ranks["low"].min() >= 1
    assert ranks["high"].max() <= 9
    near = compare.find(table([*scored("a", 0.9995)])).summary
    assert near["high"].max() <= 1
    pairs = pd.DataFrame(
        [
            (s, t, k + 0.01 * j, -k if t == "z" else k)
            for k, s in enumerate("abcd")
            for j, t in enumerate("xyz")
        ],
        columns=["source", "target", "accuracy", "m"],
    )  # fmt: skip
    means = mean_agreement(rank_agreement(pairs, ["m"], permutations=20))
    assert means["low"].iloc[0] >= -1
    assert means["high"].iloc[0] <= 1
    assert means["tau"].iloc[0] == pytest.approx(1 / 3)  # 1, 1 and -1


@pytest.mark.parametrize(("high", "edge"), [(0.1, "no"), (0.004, "yes")])
def test_an_edge_is_that_of_the_declared_space_not_of_the_rates_tried(
    high: float, edge: str
) -> None:
    drawn_from = f'{{"lr": "FloatDistribution(high={high}, log=True, low=0.0001, step=None)"}}'
    rows = [
        trial("a", "tune", i, 0.5 + 0.1 * i, **{"param.lr": lr}, ranges=drawn_from)
        for i, lr in enumerate([1e-3, 2e-3, 4e-3])
    ]
    [row] = learning_rates.rate_ranges(table(rows).trials).to_dict("records")
    assert (row["space_low"], row["space_high"], row["edge"]) == (1e-4, high, edge)


ANY_NAME = [
    "line",
    *(
        pytest.param(n, marks=pytest.mark.slow)
        for n in ("family", "arm", "context", "iqm", "ranges", "derived")
    ),
]


@pytest.mark.parametrize("name", ANY_NAME)
def test_a_factor_may_have_any_name(name: str) -> None:
    factors = {"shots": ["10", "100"], name: ["u", "v"]}
    rows = [
        row
        for shots in factors["shots"]
        for value in factors[name]
        for row in scored(f"{shots} | {value}", 0.8, 3.0, **{"shots": shots, name: value})
    ]
    found = compare.find(table(rows, factors, {name: "u"}))
    for topic in TOPICS:
        topic(found)


def in_families(random: np.random.Generator, families: int = 4, size: int = 4) -> pd.DataFrame:
    """Pairs whose response and measure both have effects of the family, unrelated to each other."""
    names = [f"s{i}" for i in range(families * size)]
    good, like = (np.repeat(random.normal(size=families), size) for _ in range(2))
    return pd.DataFrame(
        [
            {"source": s, "target": f"t{j}", "family": str(i // size)}
            | {"z": like[i] + 0.5 * random.normal(), "response": good[i] + 0.5 * random.normal()}
            for i, s in enumerate(names)
            for j in range(3)
        ]
    )


@REPETITIONS
def test_sources_of_a_family_are_shuffled_among_themselves_only(repetitions: int) -> None:
    random, free, within = np.random.default_rng(7), 0, 0
    for _ in range(repetitions):
        pairs = in_families(random)
        within += shuffled_p(pairs, 200) <= 0.05
        free += shuffled_p(pairs.drop(columns="family"), 200) <= 0.05
    assert at_most(within, repetitions, 0.05)
    assert free / repetitions > 0.2  # what families do to a shuffle that ignores them


def test_two_seeds_leave_no_more_open_than_100_points() -> None:
    """With one degree of freedom t(.05 / 15 / 2) is 191: the plain interval would reach over 1,000 points."""
    accuracy = [[80, 81, 82, 83, 84, 85], [80, 82, 82, 84, 84, 86]]
    table = compare.contrasts(repeats(np.array(accuracy) / 100), cells_of(6))
    assert table["low"].min() == -100
    assert table["high"].max() <= 100
    uneven = table[table["least_detectable"] > 100].iloc[0].to_dict()
    assert "With 2 seeds, no difference can be shown" in compare.describe_contrast(uneven)
    assert all(compare.describe_contrast(row) for _, row in table.iterrows())  # as a notebook would
