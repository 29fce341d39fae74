"""A study with a time budget: which cells go on, what a resumed study decides, and what is refused."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from analysis import compare, text, topics
from analysis.load import StudyTable, load_study
from analysis.topics.section import Table
from harness import load_result, merge_bundles, pack_study, strategies
from harness.core.errors import UserError
from harness.core.race import (
    ALPHA,
    FIRST,
    Entrant,
    Result,
    Results,
    Round,
    Standing,
    race,
    standing,
)
from harness.core.records import TrialRecord
from harness.core.spec import TrialSpec
from harness.core.study import MAX_EFFORT, Study
from harness.core.units import Seconds
from harness.deploy.choice import choose
from harness.search import launch
from harness.search.costs import CellCost
from harness.search.overview import overview
from harness.search.record import Record, entrant, race_standing
from harness.search.storage import read_storage
from harness.study import main
from harness.tracking.results import after_race
from harness.tracking.runs import Recorded
from harness.training.fit import Diverged
from harness.training.forecast import Forecast
from tests.lab import Lab, World, info_of, make_study
from tests.made_studies import table, trial

# --- the policy ------------------------------------------------------------------------------------


def played(merits: dict[str, float], budget: float, seconds: float = 1.0) -> list[Round]:
    """The rounds of a race in which every result of a cell is the same."""

    def read(now: Round) -> Results:
        return {e: [Result(merits[e.cell], seconds) for _ in now.indices] for e in now.entrants}

    return list(race(list(merits), budget, budget / 2, read))


def cost(rounds: Sequence[Round]) -> int:
    return sum(len(r.entrants) * len(r.indices) for r in rounds)


def cells_of(rounds: Sequence[Round], phase: str) -> list[tuple[str, ...]]:
    return [tuple(e.cell for e in r.entrants) for r in rounds if r.phase == phase]


def test_better_half_goes_on_after_each_stage_until_four_are_left() -> None:
    rounds = played({c: i / 10 for i, c in enumerate("abcdefghijkl")}, 400)
    tuned = cells_of(rounds, "tune")
    assert tuned == [tuple("abcdefghijkl")] * 2 + [tuple("ghijkl"), tuple("ijkl")]
    assert all(set(cells) <= set("ijkl") for cells in cells_of(rounds, "repeat"))


def finalists(scores: dict[str, list[Result]]) -> list[tuple[str, int | None]]:
    """The finalists after these results of tuning."""

    def read(now: Round) -> Results:
        return {e: [scores[e.cell][i] for i in now.indices] for e in now.entrants}

    taken = sum(result.seconds for own in scores.values() for result in own)
    rounds = race(list(scores), 2 * taken, taken, read)
    return [(e.cell, e.chosen) for e in next(r for r in rounds if r.phase == "repeat").entrants]


def test_finalists_are_the_best_configurations_at_most_eight_and_four_of_a_cell() -> None:
    scores = {
        c: [Result(top - i / 100, 1) for i in range(6)]
        for c, top in {"a": 0.9, "b": 0.895, "c": 0.8}.items()
    }
    wanted = [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 2), ("b", 2), ("a", 3), ("b", 3)]
    assert finalists(scores) == wanted
    del scores["b"]
    assert finalists(scores) == [("a", i) for i in range(4)] + [("c", i) for i in range(4)]


def test_equal_configurations_are_one_finalist() -> None:
    lr = "lr = 0.1"
    scores = {c: [Result(0.9, 1, configuration=lr), Result(0.8, 1, configuration=lr)] for c in "ab"}
    assert finalists(scores) == [("a", 0), ("b", 0)]


def test_of_equal_scores_the_lower_loss_is_the_better_one() -> None:
    losses = {
        c: [Result(0.9, 1, loss) for loss in own] for c, own in {"a": (3, 1), "b": (4, 2)}.items()
    }
    assert finalists(losses) == [("a", 1), ("b", 1), ("a", 0), ("b", 0)]


def test_slots_of_each_cell_follow_one_another() -> None:
    seen: dict[tuple[str, Entrant], int] = {}
    for step in played(dict.fromkeys("abcdefg", 0.5), 300):
        for one in step.entrants:
            assert step.indices.start == seen.get((step.phase, one), 0)
            seen[step.phase, one] = step.indices.stop


def test_time_is_not_exceeded_by_more_than_the_first_rounds() -> None:
    for budget in (40.0, 100.0, 333.0):
        assert cost(played(dict.fromkeys("abcd", 0.5), budget)) <= budget
    short = played(dict.fromkeys("abcd", 0.5), 1.0)
    assert (
        cost(short) == 4 * FIRST + 8
    )  # the least that can be decided by: one seed of each finalist


def test_race_ends_when_nothing_is_left_to_decide() -> None:
    clear = played({"a": 0.9, "b": 0.5}, 10_000)
    assert cost(clear) < 6000
    equal = played({"a": 0.9, "b": 0.9}, 10_000)
    assert [r.indices.stop for r in equal if r.phase == "repeat"] == [1, 2]


@pytest.mark.parametrize("merits", [{"a": 0.9, "b": math.nan, "c": 0.8}, {"a": math.nan}])
def test_a_cell_of_which_no_trial_completed_is_no_finalist(merits: dict[str, float]) -> None:
    repeated = {cell for cells in cells_of(played(merits, 100), "repeat") for cell in cells}
    assert repeated == {cell for cell, merit in merits.items() if merit == merit}


def test_a_budget_of_years_plans_no_more_trials_at_once_than_a_study_may_have() -> None:
    first, rest = played({"a": 0.9, "b": 0.5}, 1e12)[:2]
    assert (len(first.indices), len(rest.indices)) == (FIRST, MAX_EFFORT)


def stood(scores: dict[str, list[float]]) -> Standing:
    """The standing of finalists of different cells."""
    return standing({Entrant(cell, 0): own for cell, own in scores.items()})


def seeds(now: Standing) -> dict[str, int]:
    return {cell: now.seeds[one] for cell, one in now.of_cell.items()}


def test_interval_of_two_finalists_is_that_of_the_paired_t_test() -> None:
    random = np.random.default_rng(3)
    a, b = 0.8 + 0.02 * random.normal(size=(2, 5))
    behind = stood({"a": a.tolist(), "b": b.tolist()}).behind
    loser = Entrant(min("ab", key=lambda c: {"a": a, "b": b}[c].mean()), 0)
    level = 1 - 2 * ALPHA / (5 * 4)  # one-sided, after 5 seeds
    gap = (a - b) * np.sign(a.mean() - b.mean())
    wanted = stats.ttest_rel(gap, np.zeros(5)).confidence_interval(level)
    assert behind[loser][0] == pytest.approx(gap.mean())
    assert behind[loser][1:] == pytest.approx((wanted.low, wanted.high))


def test_a_cell_is_retired_with_the_seeds_it_was_compared_on() -> None:
    good, near = [0.90, 0.91, 0.92, 0.90], [0.89, 0.92, 0.91, 0.91]
    bad = [0.50, 0.52]
    now = stood({"good": good, "bad": bad, "near": near})
    assert [one.cell for one in now.left] == ["good", "near"]
    assert seeds(now) == {"good": 4, "bad": 2, "near": 4}
    assert now.behind[Entrant("bad", 0)][1] > 0


def test_a_round_that_is_not_complete_does_not_count() -> None:
    scores = {"a": [0.90, 0.91, 0.99], "b": [0.89, 0.92]}
    assert stood(scores) == stood({"a": [0.90, 0.91], "b": [0.89, 0.92]})
    assert seeds(stood(scores)) == {"a": 2, "b": 2}


def test_a_repeat_that_fails_retires_its_cell() -> None:
    now = stood({"a": [0.9, math.nan], "b": [0.5, 0.5]})
    assert ([one.cell for one in now.left], seeds(now)) == (["b"], {"a": 2, "b": 2})


def test_configuration_of_a_cell_is_its_finalist_that_stayed_longest_then_the_best() -> None:
    scores = {
        Entrant("a", 7): [0.50, 0.52],
        Entrant("a", 1): [0.90, 0.91, 0.92, 0.90],
        Entrant("a", 2): [0.91, 0.92, 0.91, 0.91],
        Entrant("b", 0): [0.99, math.nan],
        Entrant("b", 3): [0.49, 0.51],
    }
    now = standing(scores)
    assert now.of_cell["a"] == Entrant("a", 2)
    assert now.left == (Entrant("a", 1), Entrant("a", 2))
    assert now.of_cell["b"] == Entrant("b", 0)  # as many seeds as the other, with the higher score


def test_of_equal_configurations_the_earlier_trial_is_that_of_its_cell_in_any_order() -> None:
    equal = {Entrant("a", i): [0.9, 0.8] for i in (2, 0, 1)}
    assert standing(equal).of_cell == {"a": Entrant("a", 0)}
    assert standing(dict(reversed(equal.items()))).of_cell == {"a": Entrant("a", 0)}


def test_a_finalist_whose_first_repeat_has_not_ended_does_not_count_yet() -> None:
    begun = {Entrant("a", 0): [0.8], Entrant("b", 0): [0.9]}
    assert standing({**begun, Entrant("a", 1): []}) == standing(begun)


def test_repeats_of_a_configuration_that_is_no_finalist_any_more_do_not_end_the_comparison() -> (
    None
):
    before = {Entrant("a", 9): [0.80, 0.85]}
    good = [0.90, 0.91, 0.92, 0.90]
    now = standing({**before, Entrant("a", 0): good, Entrant("b", 1): [g + 0.01 for g in good]})
    assert now.seeds == {Entrant("a", 9): 2, Entrant("a", 0): 4, Entrant("b", 1): 4}
    assert now.of_cell == {"a": Entrant("a", 0), "b": Entrant("b", 1)}


def wrong_retirements(studies: int, finalists: int, spread: float, tests: int = 100) -> float:
    """Share of races of equal finalists, one of which is taken for the best, in which it is retired."""
    random, wrong = np.random.default_rng(5), 0
    deviations = 0.02 * np.linspace(1, spread, finalists)[:, None]
    for _ in range(studies):
        scores = 0.85 + deviations * random.normal(size=(finalists, 40))
        scores = np.round(scores + 0.02 * random.normal(size=40), int(math.log10(tests)))
        now = stood({str(c): own.tolist() for c, own in enumerate(scores)})
        wrong += Entrant(str(random.integers(finalists)), 0) not in now.left
    return wrong / studies


def test_the_best_finalist_is_retired_no_more_often_than_said() -> None:
    assert wrong_retirements(300, 3, 1) <= ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / 300)


@pytest.mark.slow
@pytest.mark.parametrize("finalists", [2, 3])
@pytest.mark.parametrize("spread", [1, 3])
def test_wrong_retirements_stay_below_the_stated_error(finalists: int, spread: float) -> None:
    error = 3 * math.sqrt(ALPHA * (1 - ALPHA) / 3000)
    assert wrong_retirements(3000, finalists, spread) <= ALPHA + error


# --- a study ---------------------------------------------------------------------------------------

RACE: dict[str, Any] = {"compare": {"strategy": ["probe", "full"]}, "budget": "1s"}


def race_info(study: Study) -> dict[str, Any]:
    assert study.seconds is not None
    return {"budget": study.seconds, "screening": study.seconds / 2}


@pytest.fixture
def raced(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """A lab that describes studies with their budgets."""
    monkeypatch.setattr(lab, "info", lambda study: info_of(study, **race_info(study)))
    return lab


def over(lab: Lab) -> bool:
    info = lab.record().info("toy")
    return overview(info, lab.record().trials(info)).over


def test_cells_race_until_the_record_leaves_nothing_to_decide(raced: Lab) -> None:
    study = make_study(**RACE)
    done = raced.run(study)
    assert over(raced)
    assert {t.outcome for t in raced.trials()} == {"complete"}
    assert len({(t.slot.key, t.chosen) for t in raced.trials()}) == len(done)
    again = raced.run(study)
    assert [d.trial for d in again] == [None] * len(done)


def test_an_interrupted_race_goes_on_as_its_record_decides(world: World, raced: Lab) -> None:
    study = make_study(**RACE)
    world.fail_on({5}, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        raced.run(study)
    assert not over(raced)
    before = {(t.slot.key, t.chosen): t.params for t in raced.trials(outcome="complete")}
    world.disturb = lambda spec, epoch: None
    raced.run(study)
    assert over(raced)
    after = {(t.slot.key, t.chosen): t.params for t in raced.trials(outcome="complete")}
    assert before.items() <= after.items()


def test_a_cell_without_a_complete_trial_is_not_repeated(world: World, raced: Lab) -> None:
    def diverge(spec: TrialSpec, epoch: int) -> None:
        if isinstance(spec.strategy, strategies.FullFineTune):
            raise Diverged("nan")

    world.disturb = diverge
    raced.run(make_study(**RACE))
    assert over(raced)
    assert {t.slot.cell["strategy"] for t in raced.trials(phase="repeat")} == {"probe"}


def test_repeats_of_configurations_that_are_not_their_cells_are_superseded(
    world: World, raced: Lab
) -> None:
    world.truth = lambda spec: (0.5, 0.8 - 0.1 * spec.lr + 0.05 * math.sin(spec.seed))
    raced.run(make_study(**{**RACE, "budget": "2s"}))
    repeats = raced.trials(phase="repeat")
    info = raced.record().info("toy")
    now = race_standing(info, repeats)
    assert len({(t.slot.cell["strategy"], t.chosen) for t in repeats}) > 2
    for one in repeats:
        assert one.superseded == (now.of_cell[entrant(one).cell] != entrant(one))


def test_repeats_of_a_race_that_is_not_over_are_read_as_its_record_decides(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.truth = lambda spec: (0.5, 0.8 - 0.1 * spec.lr + 0.05 * math.sin(spec.seed))
    lab = Lab(world, tmp_path, f"sqlite:///{tmp_path / 'mlflow.db'}")
    study = make_study(**{**RACE, "budget": "60s"})
    monkeypatch.setattr(lab, "info", lambda study: info_of(study, budget=60.0, screening=0.2))
    events = lab.events(study)
    for done in events:  # some finalists have two repeats, the others one
        if done.slot.phase == "repeat" and done.slot.index == 1:
            break
    next(events)
    marked = {r.data.tags["superseded"] for r in lab.runs(phase="repeat")}
    assert marked == {"false"}  # until MLflow is compared with the record

    repeats = lab.trials(phase="repeat", outcome="complete")
    own = {(entrant(t).cell, t.chosen) for t in repeats if not t.superseded}
    assert len({entrant(t) for t in repeats}) > len(own) == 2
    loaded = load_study("toy", lab.uri)
    seen = compare.completed(loaded.trials, "repeat")
    assert set(zip(seen["cell"], seen["chosen"], strict=True)) == own
    found = {
        (r.cell, int(t.tags["chosen"]))
        for r in load_result("toy", lab.uri).cells
        for t in r.repeats
    }
    assert found == own
    events.close()  # type: ignore[attr-defined]
    assert {len(r.repeats) for r in load_result("toy", lab.uri).cells} == {1}


def test_more_time_goes_on_with_the_same_finalists(world: World, raced: Lab) -> None:
    world.truth = lambda spec: (0.5, 0.8 + 0.05 * math.sin(spec.seed))
    raced.run(make_study(**RACE))
    tuned = len(raced.trials(phase="tune"))
    raced.run(make_study(**{**RACE, "budget": "2s"}))
    assert len(raced.trials(phase="tune")) == tuned
    info = raced.record().info("toy")
    assert (info.budget, info.screening) == (2.0, 0.5)


def test_equal_numbers_and_a_race_are_not_mixed(raced: Lab, lab: Lab) -> None:
    raced.run(make_study(**RACE))
    with pytest.raises(UserError, match="has a budget of 1s in its record, now equal numbers"):
        Lab.coordinator(_equal(raced), make_study(compare=RACE["compare"]))


def _equal(lab: Lab) -> Lab:
    plain = Lab(lab.world, lab.folder)
    plain.kept = lab.kept
    return plain


@pytest.mark.parametrize("text", ["soon", "20", "0s", "-3m", "1d", "m"])
def test_a_budget_is_a_time_with_a_unit(text: str) -> None:
    with pytest.raises(UserError, match=r"write e\.g\. 90s, 20m or 1\.5h"):
        make_study(budget=text)


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("20m", 1200), ("1.5h", 5400)])
def test_times_are_read_and_written(text: str, seconds: float) -> None:
    assert Seconds(text) == seconds
    assert Seconds(str(Seconds(text))) == seconds


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"repeats": 0}, "repeats=0 asks for none"),
        ({"compare": {"strategy": ["full"]}}, "only one"),
        ({"resampling": "kfold", "folds": 2, "repeats": 2}, "resampling 'split' only"),
    ],
)
def test_studies_that_cannot_race_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        make_study(**{**RACE, **changes})


STUDY = '''"""Does it race?"""
from harness import Study, TrialSpec, strategies

def space(trial, shots):
    return TrialSpec(
        target="digits", backbone="small_cnn", strategy=strategies.FullFineTune(), source="scratch",
        shots=int(shots), val_shots=5, test_shots=5, resolution=28, epochs=1,
        lr=trial.suggest_float("lr", 1e-3, 1e-1, log=True),
    )

study = Study(compare={"shots": SHOTS}, space=space, trials=1, repeats=1, name="toy")
'''


@pytest.mark.parametrize(
    ("options", "shots", "said"),
    [
        (["--budget", "soon"], ["5", "6"], "time 'soon' is not valid"),
        (["--budget", "9m", "--cells", "1/2"], ["5", "6"], "a race compares all cells"),
        (["--budget", "9m", "--trials", "3"], ["5", "6"], "leave out --trials"),
        (["--budget", "9m"], ["5", "6"], "its cells differ in shots (5, 6)"),
    ],
)
def test_options_that_no_race_can_follow_are_refused_with_one_line(
    options: list[str],
    shots: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("toy.py").write_text(STUDY.replace("SHOTS", json.dumps(shots)))
    assert main(["--space", "toy.py", "--device", "cpu", *options]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert said in lines[-1]
    assert not Path("mlruns").exists()


@pytest.mark.parametrize("options", [[], ["--dry-run"]])
def test_a_budget_too_small_for_the_first_round_says_what_would_do(
    options: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    content = STUDY.replace("SHOTS", '["5", "6"]').replace("int(shots)", "6")
    Path("toy.py").write_text(content)
    assert main(["--space", "toy.py", "--device", "cpu", "--budget", "0.0001s", *options]) == 2
    error = capsys.readouterr().err
    assert "a budget of 0.0001s is too small" in error
    assert re.search(r"give at least --budget \d+s", error)
    assert not Path("mlruns").exists()


@pytest.fixture
def second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The arguments of a race of one second, which fits by the forecast."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launch, "cell_costs", lambda *_: [])
    content = STUDY.replace("SHOTS", '["5", "6"]').replace("int(shots)", "6")
    Path("toy.py").write_text(content)
    return ["--space", "toy.py", "--device", "cpu", "--budget", "1s"]


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.slow
def test_a_race_is_resumed_even_if_its_first_round_would_not_fit_by_the_forecast(
    workers: str, second: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [*second, "--workers", workers]
    assert main(command) == 0
    found = trials_in("mlruns")
    slow = CellCost("5", Forecast(0, 0, 0, 0, 0, 0), 1e6)
    monkeypatch.setattr(launch, "cell_costs", lambda *_: [slow])
    assert main(command) == 0
    assert trials_in("mlruns") == found
    assert {t.outcome for t in found} == {"complete"}
    assert {t.slot.cell["shots"] for t in found if t.slot.phase == "repeat"} == {"5", "6"}
    assert main([*command, "--dry-run"]) == 0


def trials_in(folder: str) -> list[TrialRecord]:
    record = Record(read_storage(f"sqlite:///{folder}/optuna.db"), Path(folder))
    info = record.info("toy")
    assert overview(info, record.trials(info)).over
    return record.trials(info)


@pytest.mark.slow
def test_a_race_is_over_in_the_record_that_its_bundle_is_merged_into(
    second: list[str],
) -> None:
    assert main(second) == 0
    pack_study("toy", "toy.zip")
    merge_bundles(["toy.zip"], "there")
    keys = [t.slot.key for t in trials_in("there")]
    assert keys == [t.slot.key for t in trials_in("mlruns")]
    assert main([*second, "--tracking-uri", "sqlite:///there/mlflow.db"]) == 0
    assert [t.slot.key for t in trials_in("there")] == keys


# --- the report ------------------------------------------------------------------------------------


def made(scores: dict[str, Sequence[float]], tuned: dict[str, int]) -> StudyTable:
    """A study in which these cells were repeated; "aside" was tuned only."""
    rows = [trial(c, "tune", i, 0.7 + i / 100) for c, n in tuned.items() for i in range(n)]
    again = {"chosen": 0}
    rows += [
        trial(c, "repeat", i, v) | again for c, own in scores.items() for i, v in enumerate(own)
    ]
    study = table([row | {"total_seconds": 2.0} for row in rows])
    return replace(study, info=replace(study.info, budget=60.0, trials=0, repeats=0))


SCORES: dict[str, Sequence[float]] = {
    "left": [0.90, 0.91, 0.92, 0.90],
    "rival": [0.89, 0.92, 0.91, 0.905],
    "lucky": [0.95],
    "retired": [0.50, 0.52],
}


def test_report_says_who_was_retired_and_who_was_set_aside_and_claims_no_more() -> None:
    scores = {c: SCORES[c] for c in ("left", "rival", "retired")}
    study = made(scores, {"left": 4, "rival": 4, "retired": 4, "aside": 2})
    found = compare.find(study)
    assert found.chosen == "left"
    rows = compare.race_table(found.trials, found.info).set_index("cell")
    assert rows["state"].to_dict() == {
        "aside": "set aside", "left": "left", "retired": "retired", "rival": "left"
    }  # fmt: skip
    assert rows["seconds"].to_dict() == {"aside": 4, "left": 16, "retired": 12, "rival": 16}
    section = topics.race.section(found)
    (said,) = section.answer
    assert "budget of 1m; their runs took 48 s" in said
    assert "Not retired: “rival”; with 95% confidence none of the finalists is better" in said
    assert "Set aside after tuning, without a verdict: “aside”" in said
    warned = " ".join(text.warnings(found))
    assert "raced for a time budget" in warned
    assert "asked for" not in warned
    assert "the cells raced for 1m" in text.methods(found, [section.methods])
    assert "same numbers of trials" not in text.methods(found)


def test_the_configuration_of_a_cell_in_the_report_is_the_one_that_stayed() -> None:
    study = made({"left": SCORES["left"], "rival": SCORES["rival"]}, {"left": 4, "rival": 4})
    rows = [{str(k): v for k, v in row.items()} for row in study.trials.to_dict("records")]
    early = [trial("left", "repeat", i, v) for i, v in enumerate([0.5, 0.52])]
    rows += [row | {"chosen": 3, "superseded": True, "total_seconds": 2.0} for row in early]
    found = compare.find(replace(table(rows), info=study.info))
    assert found.chosen == "left"
    row = compare.race_table(found.trials, found.info).set_index("cell").loc["left"]
    assert (row["finalists"], row["seeds"], row["seconds"]) == (2, 4, 20)
    own = compare.chosen(found.trials, found.info.selection).set_index("cell")["index"]
    assert own.to_dict() == {"left": 0, "rival": 0}
    assert "do not use the best configuration" not in " ".join(text.warnings(found))


def test_report_says_of_which_cell_no_trial_completed() -> None:
    study = made({c: SCORES[c] for c in ("left", "rival")}, {"left": 2, "rival": 2})
    rows = [{str(k): v for k, v in row.items()} for row in study.trials.to_dict("records")]
    rows += [trial("large", "tune", i, None) | {"outcome": "oom"} for i in range(2)]
    found = compare.find(replace(table(rows), info=replace(table(rows).info, budget=60.0)))
    (answer,) = topics.race.section(found).answer
    assert "large" not in answer
    (shown,) = topics.race.section(found).parts
    assert isinstance(shown, Table)
    ended = dict(zip(shown.columns["Cell"], shown.columns["How it ended"], strict=True))
    assert ended["large"] == "none of 2 trials completed"


def test_report_of_equal_numbers_says_so_and_has_no_race() -> None:
    study = made({"a": SCORES["left"], "b": SCORES["rival"]}, {"a": 2, "b": 2})
    found = compare.find(replace(study, info=replace(study.info, budget=None)))
    assert topics.race.section(found).parts == ()
    assert "All cells had the same numbers of trials and repeats." in text.methods(found)


def test_one_lucky_seed_does_not_beat_a_cell_that_stayed_in_the_race() -> None:
    study = made(SCORES, {})
    failed = trial("lucky", "repeat", 1, None) | {"outcome": "diverged", "total_seconds": 1.0}
    failed |= {"chosen": 0}
    rows = [{str(k): v for k, v in row.items()} for row in study.trials.to_dict("records")]
    study = table([*rows, failed])
    found = compare.find(replace(study, info=replace(study.info, budget=60.0)))
    assert found.chosen == "left"
    every = [
        Recorded(row["run_id"], "s", tags, {"target": "t"}, {"val_accuracy": row["val_score"]})
        for row in found.trials.to_dict("records")
        for tags in [{k: str(row[k]) for k in ("cell", "chosen", "index", "outcome")}]
    ]
    records = after_race(every)
    assert {r.cell: r.stayed for r in records} == {"left": 4, "rival": 4, "lucky": 2, "retired": 2}
    assert choose(records)[0].cell == "left"
