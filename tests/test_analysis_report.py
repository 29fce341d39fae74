"""The report states what the data show, and no more. Pages are built from tables that are made here;
`test_analysis_load` has one from a store that the harness wrote.

    python -m pytest tests/test_analysis_report.py
"""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis import compare, report
from analysis.load import StudyTable
from analysis.load import study as load
from analysis.text import methods
from analysis.topics import learning_curves
from harness.core.addresses import viewer_command
from harness.core.errors import UserError
from tests.made_studies import SEEDS, scored, table, trial, words_of


@pytest.fixture
def pictures() -> None:
    """For tests of what is drawn."""


@pytest.fixture(autouse=True)
def figures_are_not_drawn(request: pytest.FixtureRequest) -> None:
    if "pictures" not in request.fixturenames:
        request.getfixturevalue("undrawn")


def two_cells() -> StudyTable:
    rows = [*scored("probe", 0.8), *scored("full", 0.9, seconds=30)]
    return table(rows, baseline={"strategy": "probe"})


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of two cells, with its figures."""
    return report.build(two_cells(), tmp_path_factory.mktemp("page"))


def test_the_page_opens_with_the_answer_and_its_uncertainty(page: Path) -> None:
    text = words_of(page)
    answer = text.index(
        "“full” is recommended: test accuracy 90.0% (95% interval 89.8 to 90.1, 6 seeds"
    )
    assert answer < text.index("Costs")
    assert (
        "It has the highest mean validation accuracy over its 6 repeats, 90.0%; “probe” follows with 80.0%."
        in text
    )
    assert "It is significantly better than “probe” (+10.0 points, " in text
    assert "“full” is 10.0 points above “probe”" in text  # the list below
    assert "It costs 30 s of training and 3000 MiB of peak memory" in text
    assert "Read this first" not in text
    assert "mlflow ui --backend-store-uri sqlite:////data/mlflow.db --host 127.0.0.1" in text


def test_report_without_a_tested_pair_shows_no_formula_for_zero_pairs(tmp_path: Path) -> None:
    rows = [trial(cell, "repeat", 0, 0.9) for cell in ("full", "probe")]
    text = words_of(report.build(table(rows, baseline={"strategy": "full"}), tmp_path))
    assert "No pair of cells could be tested" in text
    assert ".05 / 0" not in text
    assert "0 pairs" not in text


def test_learning_curves_of_few_epochs_are_not_squeezed_by_a_cell_with_many() -> None:
    made = table([*scored("full", 0.9), *scored("probe", 0.8)])
    probes = made.trials.loc[made.trials["cell"] == "probe", "run_id"]
    more = [{"run_id": r, "epoch": e, "val_score": 0.8} for r in probes for e in range(3, 30)]
    made = replace(made, epochs=pd.concat([made.epochs, pd.DataFrame(more)], ignore_index=True))
    (plot,) = learning_curves.section(compare.find(made)).plots
    widths = {panel.get_title(): panel.get_xlim()[1] for panel in plot.figure.axes}
    assert widths["full"] < 4
    assert widths["probe"] > 30


def test_killed_trial_is_no_failure_of_its_configuration(tmp_path: Path) -> None:
    ends = [trial("full", "tune", i, None, outcome=o) for i, o in ((7, "killed"), (8, "oom"))]
    text = words_of(report.build(table([*scored("full", 0.9), *ends]), tmp_path))
    assert " 1 / 1 " in text


def test_a_cheaper_equal_is_named(tmp_path: Path) -> None:
    jitter = [0.01, -0.01, 0.02, -0.02, 0.01, -0.005]
    cheap = [
        trial("probe", "repeat", s, 0.9 + j, train_seconds=2.0)
        for s, j in zip(SEEDS, jitter, strict=True)
    ]
    rows = [*scored("full", 0.903, seconds=30), trial("probe", "tune", 0, 0.9), *cheap]
    text = words_of(report.build(table(rows), tmp_path))
    assert "It is not significantly different from “probe”. With 6 seeds, a difference of" in text
    assert re.search(r"No other cell is more than \d\.\d points better \(95% confidence\)", text)
    assert (
        "“probe”, which is not significantly different in accuracy, costs 2 s of training" in text
    )


def test_equal_scores_are_not_taken_for_certain(tmp_path: Path) -> None:
    """Nothing is known about how much scores vary, so there is no interval of width 0."""
    rows = [trial(cell, "repeat", s, 1.0) for cell in ("probe", "full") for s in SEEDS]
    page = report.build(table(rows, baseline={"strategy": "probe"}), tmp_path)
    text = words_of(page)
    assert (
        "test accuracy 100.0% (the same score on each of 6 seeds, so there is no interval" in text
    )
    assert "“full” and “probe” have the same score on each of 6 seeds. All test scores are" in text
    assert "100.0 to 100.0" not in text
    assert "0.0 to +0.0" not in text
    assert "0.0 points" not in text
    tables = page.parent / "tables"
    (row,) = pd.read_csv(tables / "contrasts.csv").to_dict("records")
    assert (row["difference"], row["verdict"]) == (0, "open")
    assert pd.isna([row[x] for x in ("low", "high", "p", "least_detectable")]).all()
    assert pd.read_csv(tables / "summary.csv")[["low", "high"]].isna().all(axis=None)


def test_the_page_needs_no_network_and_keeps_figures_and_tables_beside_it(page: Path) -> None:
    assert not re.search(r"(src|href)=\"(?!data:)|url\(|@import|<script[^>]", page.read_text())
    figures = {path.stem for path in page.parent.glob("figures/*.png")}
    assert figures == {
        "accuracy",
        "differences",
        "recall",
        "confusion",
        "reliability",
        "train_seconds",
        "peak_memory_mib",
        "learning_curves",
        "budget",
        "learning_rates",
    }
    assert {path.stem for path in page.parent.glob("figures/*.svg")} == figures  # for print
    assert page.read_text().count("data:image/png;base64,") == len(figures)
    summary = pd.read_csv(page.parent / "tables" / "summary.csv").set_index("cell")
    assert summary.loc["full", "mean"] == pytest.approx(0.9, abs=0.01)


def test_pictures_of_an_earlier_report_do_not_linger(tmp_path: Path) -> None:
    stale = tmp_path / "depth" / "figures" / "accuracy.png"
    stale.parent.mkdir(parents=True)
    stale.touch()
    page = report.build(table([trial("full", "tune", 0, None, outcome="oom")]), tmp_path)
    assert list(page.parent.glob("figures/*.png")) == []


LEAK = "target digits: 1 exact and 0 near duplicates between train, validation and test: <3> = 7"
COLD = (
    "cold-equivalent, that is, as if nothing had been cached by other trials; with the cache of this study "
    "it took 0.5 s"
)
PAGES: dict[str, tuple[dict[str, Any], list[str], list[str]]] = {
    "without repeats no cell is called better": (
        {"rows": [trial("probe", "tune", 0, 0.8), trial("full", "tune", 0, 0.9)], "repeats": 0},
        ["The study has no repeats, so there are no test scores",
         "highest validation accuracy in tuning was that of “full”: 90.0%"],
        ["Read this first"],
    ),
    "no result at all": (
        {"rows": [trial("full", "tune", 0, None, outcome="crashed")]},
        ["There is no result yet: no trial was completed and scored (1 crashed)."], [],
    ),
    "no result yet": (
        {"rows": [trial("full", "tune", 0, None, outcome="unfinished")]},
        ["There is no result yet: no trial was completed and scored (1 unfinished)."], [],
    ),
    "two factors are compared within the other": (
        {
            "rows": [
                row
                for net, plus in (("a", 0.0), ("b", 0.03))
                for strategy, accuracy in (("probe", 0.8), ("full", 0.9))
                for row in scored(f"{net} | {strategy}", accuracy + plus)
            ],
            "factors": {"net": ["a", "b"], "strategy": ["probe", "full"]},
            "baseline": {"strategy": "probe"},
        },
        ["“a | full” is 10.0 points above “a | probe”", "“b | full” is 10.0 points above “b | probe”"], [],
    ),
    "images shared between the parts": (
        {"rows": scored("a", 0.8), "leaks": (LEAK,)}, [f"Scores may be too high: {LEAK}"], [],
    ),
    "cold-equivalent time, beside what was spent": (
        {"rows": [*scored("probe", 0.8, marginal_seconds=0.5), *scored("full", 0.7, marginal_seconds=3.0)]},
        ["It costs 3 s of training", COLD, "With the cache, s"], [],
    ),
    "times of a busy machine": (
        {"rows": [*scored("probe", 0.8, waited_share=0.004), *scored("full", 0.7, waited_share=0.4)]},
        ["in 6 of 12 repeats, threads waited for a processor for more than 10%", "(up to 40%)",
         "Waited for the processor, %"], [],
    ),
    "every failure with its reason": (
        {
            "rows": [
                trial("full", "tune", 3, None, outcome="crashed", reason="RuntimeError: <boom>"),
                *scored("probe", 0.8),
            ]
        },
        ["full tune 3 crashed RuntimeError: <boom>"], [],
    ),
    "nothing of what the study has not": (
        {"rows": scored("full", 0.9, waited_share=0.004, images_per_class='{"train": 30, "test": 50}')},
        [], ["With the cache, s", "aited for", "imbalanced", "Shifted test sets", "Sign changes"],
    ),
}  # fmt: skip
"""What a study is -> its table, and what its page says and does not say."""


@pytest.mark.parametrize("what", PAGES)
def test_the_page_says_what_the_runs_show_and_no_more(what: str, tmp_path: Path) -> None:
    made, said, unsaid = PAGES[what]
    text = words_of(report.build(table(**made), tmp_path))
    assert [words for words in said if words not in text] == []
    assert [words for words in unsaid if words in text] == []


def test_a_study_that_has_not_begun_still_has_a_page(tmp_path: Path) -> None:
    made = table([trial("full", "tune", 0, 0.5)])
    empty = StudyTable(made.info, made.tracking_uri, made.trials[:0])
    assert "no runs at all" in words_of(report.build(empty, tmp_path))


def test_bad_ends_stand_out_and_what_is_not_there_has_no_file(tmp_path: Path) -> None:
    rows = [trial("full", "tune", 0, None, outcome="oom"), *scored("probe", 0.8)]
    page = report.build(table(rows), tmp_path)
    text = words_of(page)
    assert "No tuning trial of “full” completed: 1 oom." in text
    assert "No other cell has a test score" in text
    assert re.search(r'class="bad">\s*1', page.read_text())
    written = {path.stem for path in page.parent.glob("*/*")}
    assert not {"shifted", "losses", "by_size", "crossings"} & written


def test_missing_costs_are_said_not_drawn(tmp_path: Path) -> None:
    rows = [
        row | {"train_seconds": None, "peak_process_rss_mib": None} for row in scored("full", 0.9)
    ]
    page = report.build(table(rows), tmp_path)
    assert "Its cost was not measured." in words_of(page)
    assert not (page.parent / "figures" / "train_seconds.png").exists()


def test_what_was_trained_is_shown_as_shares(tmp_path: Path) -> None:
    rows = scored("a", 0.8, trained_depth=1 / 9, trainable_share=0.0037856)
    page = report.build(table(rows), tmp_path).read_text(encoding="utf-8")
    assert re.search(r"<td>11</td><td>0.379</td>", page)


def moved(cell: str, accuracy: float, loss: float, jitter: float) -> list[dict[str, object]]:
    """`scored`, and two shifted test sets on which `loss` of the accuracy is gone."""
    return [
        row
        if row["phase"] == "tune"
        else row
        | {
            f"test_accuracy.{shift}": accuracy
            - loss
            + jitter * ((5 * int(str(row["seed"]))) % 7 - 3)
            for shift in ("noise", "blur")
        }
        for row in scored(cell, accuracy)
    ]


@pytest.mark.usefixtures("pictures")
@pytest.mark.slow
def test_the_cells_that_lose_least_and_most_under_shift_are_named_if_they_can_be(
    tmp_path: Path,
) -> None:
    clear = [*moved("probe", 0.8, 0.1, 0.001), *moved("full", 0.9, 0.3, 0.001)]
    page = report.build(table(clear), tmp_path)
    text = words_of(page)
    assert "On 2 shifted test sets, “probe” loses the least accuracy on average, 9.9 poi" in text
    assert "and “full” the most, 29.9 points" in text
    assert (page.parent / "figures" / "shifted.png").exists()
    assert len(pd.read_csv(page.parent / "tables" / "shifted.csv")) == 6
    vague = [*moved("probe", 0.8, 0.1, 0.05), *moved("full", 0.9, 0.11, -0.05)]
    assert "are not significantly different with 6 seeds" in words_of(
        report.build(table(vague), tmp_path)
    )


@pytest.mark.usefixtures("pictures")
def test_words_from_the_store_cannot_become_markup(tmp_path: Path) -> None:
    cell = "<b>$x_{$</b>"
    page = report.build(table(scored(cell, 0.9), question="<script>alert(1)</script>?"), tmp_path)
    assert "<script>alert" not in page.read_text()
    assert "&lt;b&gt;" in page.read_text()


def test_cells_out_of_memory_are_named_and_shown(tmp_path: Path) -> None:
    dead = [trial("full", "tune", i, None, outcome="oom", forecast_peak_mib=9e3) for i in (0, 1)]
    page = report.build(table([*dead, *scored("probe", 0.8)]), tmp_path)
    text = words_of(page)
    assert "because runs ran out of memory; they are not on any Pareto front: “full”." in text
    assert "Hollow triangles" in text
    assert re.search(r"<td>full</td><td>oom</td><td>2</td><td>2</td><td>no</td><td>–</td><td>9000</td>",
                     page.read_text())  # fmt: skip


def test_the_methods_paragraph_tells_the_numbers_of_this_study(page: Path) -> None:
    text = methods(compare.find(two_cells()))
    assert "We compared 2 cells" in text
    assert "run again on 6 new seeds" in text
    assert "on cpu, 2 threads (single runs took" in text
    assert "; memory is the peak of the process, measured" in text
    whole = words_of(page)
    assert "The pair was tested by a paired t interval at 1 - .05 / 1" in whole
    assert all(sentence in whole for sentence in text.split(". "))


def test_tables_for_a_paper_escape_what_their_language_would_read(tmp_path: Path) -> None:
    made = table([*scored("50% | a_b", 0.8), *scored("full", 0.9)], baseline={"strategy": "full"})
    folder = report.build(made, tmp_path).parent / "tables"
    markdown = (folder / "main.md").read_text().splitlines()
    assert markdown[2].startswith("| 50% \\| a_b | 80.0 [79.8, 80.1] | 6 | -10.0 [")
    assert len({line.replace("\\|", "").count("|") for line in markdown}) == 1
    latex = (folder / "main.tex").read_text()
    assert "50\\% | a\\_b & 80.0 [79.8, 80.1] & 6 &" in latex
    assert "\\toprule" in latex


def test_a_run_leads_to_its_page_in_mlflow(page: Path, tmp_path: Path) -> None:
    assert "<a href" not in page.read_text()
    made = table(scored("full", 0.9))
    made = replace(made, info=replace(made.info, experiment_id="7"))
    linked = report.build(made, tmp_path).read_text()
    assert 'href="http://127.0.0.1:5000/#/experiments/7/runs/full-tune-0"' in linked


def test_two_studies_stand_side_by_side(tmp_path: Path) -> None:
    first = table([*scored("probe", 0.8), *scored("old", 0.9)])
    second = table([*scored("probe", 0.85), *scored("new", 0.5)])
    second = replace(second, info=replace(second.info, name="again"))
    page = report.build_comparison(first, second, tmp_path)
    text = words_of(page)
    assert page.parent.name == "depth-vs-again"
    assert "From depth to again, 1 of 1 cells changed significantly" in text
    assert "“probe” +5.0 points" in text
    assert "Only in again: “new”." in text
    with pytest.raises(UserError, match="no cell in common"):
        report.build_comparison(first, table(scored("other", 0.5)), tmp_path)


def similarity_study() -> StudyTable:
    """Six sources, one a control, and random weights, on three targets, with recorded measures."""
    rows, pairs = [], []
    for s, t, k in itertools.product("abcdefr", "xyz", ("full", "probe")):
        cell = f"{t} | {s} | {k}"
        gain = 0.0 if s == "r" else 0.03 * "abcdef".index(s) + 0.01 * ((3 * ord(s) + ord(t)) % 4)
        more: dict[str, Any] = {"target": t, "source": s, "strategy": k}
        more |= {"param.source": "scratch" if s == "r" else f"recorded:{s}"}
        rows += scored(cell, 0.5 + gain, **more)
        if k == "full" and s != "r":
            row: dict[str, object] = {
                "source": s,
                "target": t,
                "backbone": "small_cnn",
                "measure": "frechet",
            }
            row |= {
                "value": -gain,
                "better": "lower",
                "source_data": "permute(q)" if s == "a" else "q",
            }
            size = {"measure": "log_source_size", "value": float(ord(s)), "better": "higher"}
            pairs += [row, row | size]
    factors = {"target": list("xyz"), "source": list("abcdefr"), "strategy": ["full", "probe"]}
    measures = pd.DataFrame(pairs, columns=load.MEASURE_COLUMNS)
    return replace(table(rows, factors), measures=measures)


@pytest.mark.usefixtures("pictures")
@pytest.mark.slow
def test_recorded_measures_of_similarity_are_judged_without_being_given(tmp_path: Path) -> None:
    made = similarity_study()
    known = compare.similarity_effect(made)
    assert known.blind == ("log_source_size",)
    assert set(known.slopes["measure"]) == {"frechet"}
    assert set(known.verdicts["strategy"]) == {"full", "probe"}
    frechet = known.means.set_index("measure").loc["frechet"]
    assert frechet["tau_w"] == pytest.approx(1)  # a distance: its sign is turned
    assert set(known.points.loc[known.points["control"], "source"]) == {"a"}
    assert set(known.points["source"]) == set("abcdef")
    page = report.build(made, tmp_path)
    text = words_of(page)
    for said in (
        "Gain over scratch against similarity",
        "Hollow markers: controls",
        "a (control)",
        "Does the slope depend on strategy or size?",
        "Shares of the variance of the scores",
        "Without a slope, because they are the same for all targets: log_source_size.",
    ):
        assert said in text
    assert 'title="f -&gt; x: +' in page.read_text(encoding="utf-8")
    assert (page.parent / "figures" / "gain.svg").exists()


def test_a_study_name_cannot_leave_the_output_folder(tmp_path: Path) -> None:
    made = table(scored("full", 0.9))
    for name in ("../elsewhere", "a/b", ".."):
        with pytest.raises(UserError, match="folder name"):
            report.build(replace(made, info=replace(made.info, name=name)), tmp_path)


def test_the_viewer_command_hides_passwords() -> None:
    assert viewer_command("postgresql://ann:s3cret@db/mlflow") == (
        "mlflow ui --backend-store-uri 'postgresql://ann:***@db/mlflow' --host 127.0.0.1 --workers 1"
    )
    assert (
        viewer_command("http://ann:s3cret@host:5000")
        == "open http://ann:***@host:5000 in a browser"
    )
