"""The analysis finds similarity effects that exist, and no others: against scipy, tables worked out by hand,
data with a known effect, and published tables.

    python -m pytest tests/test_analysis_similarity.py
"""

from __future__ import annotations

import itertools
import math
import tracemalloc

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from scipy import stats
from statsmodels.stats.anova import anova_lm

from analysis.compare import Similarity
from analysis.compare.agreement import (
    STATIC,
    null_taus,
    rank_agreement,
    static_ranking,
)
from analysis.compare.responses import pair_gains, responses, with_scratch
from analysis.compare.similarity import family_of
from analysis.compare.slopes import (
    decisive_targets,
    interactions,
    shuffled_p,
    slopes,
    variance_shares,
)
from analysis.compare.verdicts import interaction_verdicts, verdicts
from analysis.topics.similarity import describe_similarity
from harness.core.errors import UserError


def made(
    seed: int, effect: float, quality: float, carries: float, sources: int = 12, targets: int = 8
) -> pd.DataFrame:
    """Responses with a known slope on the measure `m`, sources that differ in quality, and a measure
    that carries that quality."""
    random = np.random.default_rng(seed)
    good, hard = random.normal(size=sources), random.normal(size=targets)
    m = carries * good[:, None] + random.normal(size=(sources, targets))
    noise = 0.3 * random.normal(size=m.shape)
    y = quality * good[:, None] + effect * m + hard[None] + noise
    return pd.DataFrame(
        [
            {"source": f"s{i}", "target": f"t{j}", "response": y[i, j], "m": m[i, j]}
            for i, j in itertools.product(range(sources), range(targets))
        ]
    )


def by_model(table: pd.DataFrame, column: str) -> dict[str, float]:
    return dict(zip(table["model"], table[column], strict=True))


def test_null_sd_of_weighted_tau_is_that_of_all_orders() -> None:
    x = np.arange(6.0)
    orders = np.array(list(itertools.permutations(x)))
    exact = [stats.weightedtau(order, x).statistic for order in orders]
    drawn = null_taus(x, x, 2000)
    assert drawn.std() == pytest.approx(np.std(exact), rel=0.05)
    assert np.std(exact) == pytest.approx(0.40, abs=0.01)
    assert null_taus(np.arange(10), np.arange(10), 2000).std() == pytest.approx(0.29, abs=0.01)


def test_agreement_is_nan_for_a_constant_measure_and_rare_p_for_a_perfect_one() -> None:
    accuracy = np.linspace(0.5, 0.9, 8)
    scores = pd.DataFrame(
        {
            "source": list("abcdefgh"),
            "target": "x",
            "accuracy": accuracy,
            "c": 1.0,
            "m": accuracy**2,
        }
    )
    constant, perfect = rank_agreement(scores, ["c", "m"]).to_dict("records")
    assert math.isnan(constant["tau_w"])
    assert math.isnan(constant["p"])
    assert perfect["tau_w"] == pytest.approx(1)
    assert perfect["p"] < 0.005


def test_static_ranking_leaves_the_target_out() -> None:
    scores = pd.DataFrame(
        [
            ("a", "x", 0.9), ("b", "x", 0.8), ("c", "x", 0.7),
            ("a", "y", 0.6), ("b", "y", 0.7), ("c", "y", 0.5),
            ("a", "z", 0.1), ("b", "z", 0.2),
        ],
        columns=["source", "target", "accuracy"],
    )  # fmt: skip
    ranked = static_ranking(scores)
    assert ranked[STATIC].tolist() == [-2.0, -1.0, -3.0, -1.5, -1.5, -3.0, -1.5, -1.5]


def test_response_is_the_difference_of_logits_to_the_matching_scratch_run() -> None:
    scores = pd.DataFrame(
        [
            ("a", "x", 1, 0.8),
            ("a", "x", 2, 0.9),
            ("scratch", "x", 1, 0.5),
            ("scratch", "x", 2, 0.8),
        ],
        columns=["source", "target", "seed", "accuracy"],
    )
    paired = responses(with_scratch(scores))
    assert paired["response"].tolist() == pytest.approx([math.log(4), math.log(9) - math.log(4)])
    full = responses(pd.DataFrame({"accuracy": [1.0, 0.5], "examples": 10}))
    assert full["response"].tolist() == pytest.approx([math.log(10.5 / 0.5), 0])
    with pytest.raises(UserError, match="add the column examples"):
        responses(pd.DataFrame({"accuracy": [1.0]}))
    with pytest.raises(UserError, match="no run from 'scratch' for target x, seed 2"):
        with_scratch(scores.iloc[:3])


@pytest.mark.slow
def test_an_effect_that_is_there_is_found_with_its_size() -> None:
    table = slopes(made(0, effect=0.2, quality=0.5, carries=0.7), ["m"], permutations=500)
    assert (table["p"] < 0.01).all()
    scale = made(0, effect=0.2, quality=0.5, carries=0.7).groupby("target")["m"].std().mean()
    for model in ("crossed", "fixed"):
        assert by_model(table, "slope")[model] == pytest.approx(0.2 * scale, rel=0.25)
    (row,) = verdicts(table).to_dict("records")
    assert row["verdict"] == "similarity"
    assert row["sentence"].startswith(
        "It was shown that sources which m ranks higher transfer better"
    )


def test_a_measure_of_source_quality_alone_does_not_pass_for_similarity() -> None:
    table = slopes(made(0, effect=0.0, quality=1.0, carries=0.7), ["m"], permutations=500)
    assert by_model(table, "p")["naive"] < 1e-4
    assert by_model(table, "p")["fixed"] > 0.05
    (row,) = verdicts(table).to_dict("records")
    assert row["verdict"] == "open"
    assert row["sentence"].startswith("It was not shown that")


def test_a_verdict_of_quality_alone_or_of_contradicting_signs_is_put_into_words() -> None:
    table = slopes(made(0, effect=0.2, quality=0.5, carries=0.7), ["m"], permutations=200)
    quality = table.assign(p_holm=[1e-9, 0.01, 0.4, 0.01])
    (row,) = verdicts(quality).to_dict("records")
    assert row["verdict"] == "source"
    assert "but not that this depends on similarity to the target" in row["sentence"]
    signs = table.assign(slope=[0.2, -0.1, -0.1, 0.2])
    (row,) = verdicts(signs).to_dict("records")
    assert row["verdict"] == "open"
    assert "The slopes of the models differ in sign" in row["sentence"]


def test_a_summary_of_many_measures_counts_those_that_depend_on_few_targets() -> None:
    found = slopes(made(0, effect=0.2, quality=0.5, carries=0.7), ["m"], permutations=10)
    judged = [("a", "similarity", 1), ("b", "similarity", 0)]
    rows = [
        {"strategy": "", "measure": measure, "verdict": verdict, "decisive": decisive}
        for measure, verdict, decisive in [*judged, ("c", "source", 0), ("d", "open", 0)]
    ]
    (text,) = describe_similarity(Similarity(slopes=found, verdicts=pd.DataFrame(rows)))
    assert "Of these “a” and “b” were shown to predict which source suits a target." in text
    assert "“c” was only shown to predict which sources are good for all targets." in text
    assert "1 of the 2 depend on few targets" in text


@pytest.mark.slow
def test_crossed_model_keeps_its_level_where_least_squares_does_not() -> None:
    tables = [slopes(made(s, 0.0, 0.5, 0.7), ["m"], permutations=10) for s in range(15)]
    ps = pd.DataFrame([by_model(table, "p") for table in tables])
    assert (ps["naive"] < 0.05).sum() >= 13
    assert (ps["crossed"] < 0.05).sum() <= 3
    assert (ps["fixed"] < 0.05).sum() <= 3


@pytest.mark.slow
def test_crossed_model_converges_when_the_sources_do_not_differ() -> None:
    tables = [slopes(made(s, 0.2, 0.0, 0.7), ["m"], permutations=10) for s in range(4)]
    assert all(by_model(table, "p")["crossed"] < 0.01 for table in tables)
    assert any("variance" in table["note"].iloc[1] for table in tables)


def test_shuffled_p_is_the_share_of_all_orders_of_the_sources() -> None:
    table = made(3, effect=0.1, quality=0.2, carries=0.0, sources=5, targets=3)
    table["z"] = table.groupby("target")["m"].transform(lambda v: (v - v.mean()) / v.std())
    table = table.drop(index=[4, 9])

    def correlation(order: tuple[str, ...]) -> float:
        names = dict(zip(order, sorted(set(table["source"])), strict=True))
        moved = table.assign(source=table["source"].map(names))[["source", "target", "z"]]
        both = table.drop(columns="z").merge(moved, on=["source", "target"])
        a, b = (both[c] - both.groupby("target")[c].transform("mean") for c in ("z", "response"))
        return float((a * b).sum() / math.sqrt((a**2).sum() * (b**2).sum()))

    every = [correlation(order) for order in itertools.permutations(sorted(set(table["source"])))]
    seen = correlation(tuple(sorted(set(table["source"]))))
    exact = np.mean(np.abs(every) >= abs(seen) - 1e-12)
    assert 0.05 < exact < 0.95
    assert shuffled_p(table, 4000) == pytest.approx(exact, abs=0.03)


def test_runs_of_a_pair_are_one_observation() -> None:
    once = made(0, 0.1, 0.5, 0.7, sources=6, targets=4)
    shift = pd.concat([once.assign(seed=s, response=once["response"] + s) for s in (-1, 0, 1)])
    first, second = (slopes(table, ["m"], permutations=50) for table in (once, shift))
    pd.testing.assert_frame_equal(first, second)


def test_pairs_without_every_condition_are_left_out_and_counted() -> None:
    once = made(0, 0.1, 0.5, 0.7)
    both = pd.concat([once.assign(size=s) for s in (10, 100)], ignore_index=True)
    table = slopes(both.drop(index=0), ["m"], permutations=50)
    assert set(table["left_out"]) == {1}
    assert set(table["n"]) == {95}


def test_interactions_have_the_pair_as_their_unit() -> None:
    flat, steep = made(0, 0.0, 0.5, 0.7), made(0, 0.3, 0.5, 0.7)
    noise = np.random.default_rng(9).normal(scale=0.1, size=len(flat))
    runs = pd.concat(
        [
            base.assign(strategy=name, size=size, response=base["response"] + noise * i)
            for i, (size, name, base) in enumerate(
                [
                    (10, "full", flat),
                    (100, "full", flat),
                    (10, "probe", steep),
                    (100, "probe", steep),
                ]
            )
        ]
    )
    table = interactions(runs, ["m"], permutations=200)
    assert list(table["term"].unique()) == ["probe - full", "ln size"]
    probe = table[table["term"] == "probe - full"]
    size = table[table["term"] == "ln size"]
    spread = flat.groupby("target")["m"].std().mean()
    assert by_model(probe, "slope")["fixed"] == pytest.approx(0.3 * spread, rel=0.15)
    assert (probe["p"] < 0.01).all()
    assert abs(by_model(size, "slope")["fixed"]) < 0.03
    assert set(table["n"]) == {96}


def test_a_slope_that_differs_is_told_from_one_that_does_not_and_holm_counts_every_row() -> None:
    flat, steep = made(0, 0.0, 0.5, 0.7), made(0, 0.3, 0.5, 0.7)
    noise = np.random.default_rng(9).normal(scale=0.1, size=len(flat))
    runs = pd.concat(
        [
            flat.assign(strategy="full"),
            steep.assign(strategy="probe", response=steep["response"] + noise),
        ]
    )
    runs["other"] = np.tile(np.random.default_rng(3).normal(size=len(flat)), 2)
    table = interactions(runs, ["m", "other"], permutations=200)
    for _, own in table.groupby("model"):
        low, high = sorted(own["p"])
        assert sorted(own["p_holm"]) == pytest.approx([2 * low, max(2 * low, high)])
    rows = interaction_verdicts(table).set_index("measure")
    assert rows.loc["m", "verdict"] == "similarity"
    assert rows.loc["other", "verdict"] == "open"
    assert rows["term"].unique().tolist() == ["probe - full"]
    crossed = table[(table["measure"] == "m") & (table["model"] == "crossed")].iloc[0]
    assert rows.loc["m", "slope"] == crossed["slope"]


def test_variance_shares_add_up_and_are_the_sums_of_squares_of_statsmodels() -> None:
    scores = made(2, effect=0.3, quality=0.5, carries=0.7)
    row = pd.Series(variance_shares(scores, "m"))
    assert (row["measure"], row["n"]) == ("m", len(scores))
    shares = row[["target", "source", "added", "residual"]]
    assert shares.sum() == pytest.approx(1)
    by_target = scores.groupby("target")["m"]
    scores["z"] = (scores["m"] - by_target.transform("mean")) / by_target.transform("std")
    fit = smf.ols("response ~ C(target) + C(source) + z", scores).fit()
    squares = anova_lm(fit, typ=1)["sum_sq"]
    assert shares.tolist() == pytest.approx((squares / squares.sum()).tolist())
    y = scores["response"]
    means = y.groupby(scores["target"]).transform("mean")
    both = np.polyfit(scores["z"], y - means, 1)[0] * scores["z"]  # z has mean 0 in each target
    assert row["at_most"] == pytest.approx((both**2).sum() / ((y - y.mean()) ** 2).sum())
    assert row["at_most"] > row["added"]


def test_gain_of_a_pair_has_the_interval_of_the_paired_differences() -> None:
    random = np.random.default_rng(0)
    accuracy, scratch = random.uniform(0.4, 0.9, (2, 5))
    runs = pd.DataFrame({"source": "a", "target": "x", "strategy": "full", "seed": range(5)})
    row = pair_gains(runs.assign(accuracy=accuracy, scratch=scratch)).iloc[0]
    expected = stats.ttest_rel(100 * accuracy, 100 * scratch).confidence_interval()
    assert (row["low"], row["high"]) == pytest.approx((expected.low, expected.high))
    assert row["seeds"] == 5


def test_what_cannot_be_tested_is_said_to_be_untested() -> None:
    few = made(0, 0.2, 0.5, 0.7, sources=2)
    table = slopes(few, ["m"], permutations=10)
    assert table["p"].isna().all()
    (row,) = verdicts(table).to_dict("records")
    assert row["verdict"] == "untested"
    assert "fewer than 3 sources" in row["sentence"]
    constant = slopes(made(0, 0.2, 0.5, 0.7).assign(m=1.0), ["m"], permutations=10)
    assert verdicts(constant)["verdict"].tolist() == ["untested"]
    per_source = made(0, 0.2, 0.5, 0.7)
    per_source["m"] = per_source["source"].str[1:].astype(float)
    size = slopes(per_source, ["m"], permutations=10)
    assert "is constant" in size["note"].iloc[2]


def test_scores_that_cannot_be_compared_are_refused() -> None:
    scores = made(0, 0.2, 0.5, 0.7)
    with pytest.raises(UserError, match="the scores lack logme"):
        slopes(scores, ["logme"])
    with pytest.raises(UserError, match="is not transfer"):
        slopes(scores.replace({"target": {"t0": "s0"}}), ["m"])
    twice = pd.concat([scores, scores]).assign(accuracy=0.5)
    with pytest.raises(UserError, match="two scores for source s0, target t0"):
        rank_agreement(twice, ["m"])
    with pytest.raises(UserError, match="static ranking is computed from the accuracies"):
        slopes(scores.assign(static=1.0), [STATIC])


def test_the_memory_of_a_ranking_grows_with_the_sources_not_with_their_square() -> None:
    tracemalloc.start()
    null_taus(np.arange(1266.0), np.arange(1266.0), permutations=5)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5e6


@pytest.mark.parametrize(
    ("data", "family"),
    [
        ("mnist5k[classes=0-4]", "mnist5k"),
        ("shuffle(4,mnist5k[classes=0-4])", "mnist5k"),
        ("random_labels(fashion_mnist[part=2/2])", "fashion_mnist"),
        ("mix(fashion_mnist[classes=0-4],mnist5k[classes=0-4],0.75)", "fashion_mnist"),
        ("mix(fashion_mnist[classes=0-4],mnist5k[classes=0-4],0.25)", "mnist5k"),
        ("mix(shuffle(4,mnist5k),folder:data/x,0.6)", "mnist5k"),
        ("permute(folder:data/x[group=.*/])", "folder:data/x"),
    ],
)
def test_the_family_of_a_source_is_the_data_set_of_most_of_its_images(
    data: str, family: str
) -> None:
    assert family_of(data) == family


def test_an_effect_of_one_target_is_said_to_rest_on_it() -> None:
    random = np.random.default_rng(8)
    rows = [
        {"source": f"s{i}", "target": f"t{j}", "m": (m := random.normal())}
        | {"response": (2.0 * m if j == 0 else 0.0) + 0.3 * random.normal()}
        for i in range(30)
        for j in range(4)
    ]
    assert decisive_targets(pd.DataFrame(rows), "m", permutations=200) == ["t0"]
