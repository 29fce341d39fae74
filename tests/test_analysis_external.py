"""Tables of trials of other programs are read correctly, and bad tables are refused in one line.

python -m pytest tests/test_analysis_external.py
"""

from __future__ import annotations

import gzip
import importlib
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis import compare, report
from analysis.load.external import load_measures, load_table, read_table
from analysis.load.mapping import TableMapping, mapping_from, read_mapping
from analysis.load.study import StudyTable, trials_frame
from analysis.text import methods, warnings
from analysis.topics import TOPICS
from analysis.topics.scores import answer
from harness.core.errors import UserError
from tests.made_studies import scored, table, words_of

MEDMNIST: dict[str, Any] = {
    "factors": ["source", "target"],
    "val": "val_auc",
    "val_loss": "val_loss",
    "select": "val_loss",
    "test": "test_auc",
    "metric": "AUC",
    "trial": "run",
    "status": "Status",
    "time": "minutes",
    "time_unit": "min",
    "memory": "gpu_mem_used_mb",
    "device": "gpu_letter",
    "parameters": ["lr", "momentum", "wd", "batch_size"],
}
ROWS = """\
source,target,id,lr,val_acc,val_loss,test_acc,minutes,mem,state
a,x,r1,0.1,0.80,0.50,0.70,1,1.5,finished
a,x,r2,0.2,0.90,0.60,0.60,2,1.5,finished
a,x,r3,0.3,0.95,0.10,0.99,3,1.5,crashed
b,x,r4,0.1,0.70,0.90,0.50,4,,FINISHED
b,x,r5,0.2,,,,,,running
"""
PLAIN: dict[str, Any] = {"factors": ["source", "target"], "test": "test_acc", "val": "val_acc"}


def read(folder: Path, text: str = ROWS, **mapping: Any) -> StudyTable:
    path = folder / "runs.csv"
    path.write_text(text, encoding="utf-8")
    return load_table(path, mapping_from(PLAIN | mapping))


def scores(table: StudyTable) -> dict[str, float]:
    repeats = table.trials[table.trials["phase"] == "repeat"]
    return dict(zip(repeats["cell"], repeats["test_score"], strict=True))


def test_the_best_complete_trial_on_validation_gives_its_test_score(tmp_path: Path) -> None:
    table = read(tmp_path, val_loss="val_loss", status="state", trial="id")
    assert scores(table) == {"a | x": 0.60, "b | x": 0.50}
    assert scores(read(tmp_path)) == {"a | x": 0.99, "b | x": 0.50}
    by_loss = read(tmp_path, val_loss="val_loss", status="state", select="val_loss")
    assert scores(by_loss) == {"a | x": 0.70, "b | x": 0.50}
    assert by_loss.info.selection == "val_loss"


def test_the_frame_has_the_columns_and_types_of_a_study_of_our_own(tmp_path: Path) -> None:
    table = read(tmp_path, trial="id", parameters={"rate": "lr"})
    ours = trials_frame(pd.DataFrame(), table.info)
    pd.testing.assert_series_equal(table.trials[ours.columns].dtypes, ours.dtypes)
    assert list(table.trials["param.rate"].iloc[:5]) == [0.1, 0.2, 0.3, 0.1, 0.2]
    assert table.trials["run_id"].is_unique
    assert table.info.factors == {"source": ["a", "b"], "target": ["x"]}
    assert len(table.epochs) == len(table.predictions) == 0


def test_status_time_and_memory_are_translated(tmp_path: Path) -> None:
    table = read(
        tmp_path, status="state", time="minutes", time_unit="min", memory="mem", memory_unit="GiB"
    )
    rows = table.trials.iloc[:5]
    assert list(rows["outcome"]) == ["complete"] * 2 + ["crashed", "complete", "unfinished"]
    assert list(rows["train_seconds"])[:4] == [60, 120, 180, 240]
    assert list(rows["peak_accelerator_allocated_mib"])[:3] == [1536] * 3
    assert math.isnan(rows["peak_accelerator_allocated_mib"].iloc[3])


def test_every_analysis_runs_on_such_a_table(tmp_path: Path) -> None:
    table = read(tmp_path, status="state", trial="id", time="minutes")
    found = compare.find(table)
    assert list(found.summary["mean"]) == [0.60, 0.50]
    sections = [topic(found) for topic in TOPICS]
    tables = {name: table for section in sections for name, table in section.tables.items()}
    assert list(tables["chosen"]["run_id"]) == ["r2", "r4"]
    assert list(tables["outcomes"]["complete"]) == [2, 1]  # a row counts once


def test_the_chosen_trial_is_the_one_whose_test_score_is_compared(tmp_path: Path) -> None:
    fields = {"val_loss": "val_loss", "status": "state", "trial": "id"}
    for select, run in (("val", "r2"), ("val_loss", "r1")):
        table = read(tmp_path, select=select, **fields)
        assert list(compare.chosen(table.trials, table.info.selection)["run_id"]) == [run, "r4"]
    nothing = read(tmp_path, "arm,t\np,.5\nq,.6\n", factors=["arm"], val="", test="t")
    assert compare.chosen(nothing.trials, nothing.info.selection).empty


def test_measures_are_read_once_per_pair_and_as_numbers(tmp_path: Path) -> None:
    path = tmp_path / "alike.csv"
    path.write_text("source,target,m\na,x,0.5\nb,x,\n")
    assert load_measures(path)["m"].tolist()[0] == 0.5
    for text, message in (
        ("source,target,m\na,x,1\na,x,2\n", "the pair of row 2 twice"),
        ("source,target\na,x\n", "no column of a measure besides"),
        ("source,goal,m\na,x,1\n", "no column 'target'"),
        ("source,target,m\na,x,much\n", "holds 'much' in row 1, not a number"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            load_measures(path)


def test_csv_gz_tsv_and_parquet_read_the_same(tmp_path: Path) -> None:
    first = read(tmp_path, trial="id", status="state").trials
    frame = pd.read_csv(tmp_path / "runs.csv")
    frame.to_csv(tmp_path / "runs.tsv", sep="\t", index=False)
    frame.to_parquet(tmp_path / "runs.parquet")
    with gzip.open(tmp_path / "runs.csv.gz", "wt", encoding="utf-8-sig") as file:
        file.write(ROWS)
    mapping = mapping_from({**PLAIN, "trial": "id", "status": "state"})
    for name in ("runs.tsv", "runs.parquet", "runs.csv.gz"):
        pd.testing.assert_frame_equal(load_table(tmp_path / name, mapping).trials, first)


def test_a_phase_column_is_believed_and_nothing_is_copied(tmp_path: Path) -> None:
    text = "arm,stage,seed,v,t\np,tune,1,.9,\np,repeat,1,,.6\np,repeat,2,,.7\n"
    mapping = {"factors": ["arm"], "val": "v", "test": "t", "phase": "stage", "seed": "seed"}
    table = read(tmp_path, text, **mapping)
    assert list(table.trials["phase"]) == ["tune", "repeat", "repeat"]
    assert compare.find(table).summary["n"].tolist() == [2]


def test_without_validation_every_row_is_a_repeat_and_seeds_pair_the_cells(tmp_path: Path) -> None:
    text = "arm,seed,t\n" + "".join(
        f"{arm},{seed},{50 + seed + gain}\n"
        for seed in range(8)
        for arm, gain in (("p", 0), ("q", 3))
    )
    path = tmp_path / "runs.csv"
    path.write_text(text)
    fields = {"factors": ["arm"], "test": "t", "seed": "seed", "percent": True}
    table = load_table(path, mapping_from({**fields, "baseline": {"arm": "p"}}))
    (row,) = compare.find(table).differences.to_dict("records")
    assert row["n"] == 8
    assert row["difference"] == pytest.approx(3)


def test_each_mapped_seed_is_a_search_of_its_own(tmp_path: Path) -> None:
    text = "arm,seed,v,t\np,1,.8,.1\np,1,.9,.2\np,2,.9,.3\np,2,.8,.4\n"
    table = read(tmp_path, text, factors=["arm"], val="v", test="t", seed="seed")
    repeats = table.trials[table.trials["phase"] == "repeat"]
    assert list(zip(repeats["seed"], repeats["test_score"], strict=True)) == [(1, 0.2), (2, 0.3)]
    assert list(repeats["chosen"]) == [1, 2]


def test_an_export_of_weights_and_biases_needs_only_the_scores_and_factors(tmp_path: Path) -> None:
    text = (
        '"Name","State","Notes","User","Tags","Created","Runtime","Sweep","lr","model","val/auc","test/auc"\n'
        '"sweepy-1","finished","-","u","","2025-11-13T09:48:11.000Z","99","s","0.1","vit","0.7","0.6"\n'
        '"sweepy-2","failed","-","u","","2025-11-13T09:34:15.000Z","50","s","0.2","vit","NaN",""\n'
    )
    path = tmp_path / "wandb.csv"
    path.write_text(text)
    (tmp_path / "map.toml").write_text(
        'preset = "wandb"\nfactors = {backbone = "model"}\nval = "val/auc"\ntest = "test/auc"\n'
        'parameters = ["lr"]\nmetric = "AUC"\n'
    )
    table = load_table(path, read_mapping(tmp_path / "map.toml"))
    assert list(table.trials["run_id"]) == ["sweepy-1", "sweepy-2", "sweepy-1 (chosen)"]
    assert list(table.trials["outcome"]) == ["complete", "crashed", "complete"]
    assert table.trials["start_time"].iloc[0] == pd.Timestamp("2025-11-13T09:48:11Z")
    assert table.trials["train_seconds"].iloc[0] == 99
    assert scores(table) == {"vit": 0.6}
    assert table.info.metric == "AUC"


def test_toml_and_json_say_the_same(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text(json.dumps(MEDMNIST))
    lines = (f"{name} = {json.dumps(value)}" for name, value in MEDMNIST.items())
    (tmp_path / "m.toml").write_text("\n".join(lines))
    first = read_mapping(tmp_path / "m.json")
    assert first == read_mapping(tmp_path / "m.toml") == mapping_from(MEDMNIST)


@pytest.mark.parametrize(
    ("text", "mapping", "message"),
    [
        (ROWS, {"val": "val_accuracy"}, "no column 'val_accuracy'; near: 'val_acc'"),
        (ROWS.replace("r2", "r1"), {"trial": "id"}, "trial 'r1' occurs twice, in rows 1 and 2"),
        (ROWS.replace("0.60,0.60", "0.60,good"), {}, "'test_acc' holds 'good' in row 2, not a number"),
        (ROWS.replace("0.60,0.60", "0.60,60"), {}, "holds '60' in row 2, not a score in .* percent = true"),
        ("", {}, "is empty"),
        (ROWS.splitlines()[0], {}, "has no rows"),
        ("source,target,val_acc,test_acc\na,x,,.5\n", {}, "'val_acc' has no number in any row"),
        (ROWS.replace("b,x,r4", ",x,r4"), {}, "'source' is empty in row 4"),
        (ROWS.replace("running", "odd"), {"status": "state"}, "status 'odd' in row 5 is not known"),
        (ROWS, {"val": ""}, "second repeat of one seed in row 2"),
        (ROWS, {"seed": "lr"}, "'lr' is not a whole number in row 1"),
        (ROWS, {"started": "id"}, "holds 'r1' in row 1, not a date and time"),
        (ROWS, {"phase": "state"}, "holds 'finished', neither 'tune' nor 'repeat'"),
        (ROWS.replace("finished", "x").replace("FINISHED", "x"),
         {"status": "state", "outcomes": {"x": "crashed"}}, "no complete trial has a validation score"),
    ],
)  # fmt: skip
def test_a_bad_table_is_refused_in_one_line(
    tmp_path: Path, text: str, mapping: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read(tmp_path, text, **mapping)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"factor": ["a"]}, "no field 'factor'; near: 'factors'"),
        ({"factors": ["a"]}, "a mapping needs test"),
        ({**PLAIN, "preset": "wb"}, "no preset 'wb'; presets: wandb"),
        ({**PLAIN, "time_unit": "days"}, "time_unit 'days' is not one of ms, s, min, h"),
        ({**PLAIN, "select": "val_loss"}, "no column is mapped to val_loss"),
        ({**PLAIN, "factors": ["size"]}, "'size' has a reserved name"),
        ({**PLAIN, "percent": "yes"}, "percent = 'yes' is not a bool"),
        ({**PLAIN, "baseline": {"model": "a"}}, "baseline 'model' is not a factor"),
    ],
)
def test_a_bad_mapping_is_refused_in_one_line(entries: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        mapping_from(entries)


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    mapping = TableMapping({"source": "source"}, "t")
    (tmp_path / "a.xlsx").write_text("x")
    (tmp_path / "b.csv.gz").write_text("not compressed")
    (tmp_path / "c.parquet").write_text("nor this")
    for name in ("a.xlsx", "b.csv.gz", "c.parquet", "d.csv"):
        with pytest.raises(UserError, match=name):
            load_table(tmp_path / name, mapping)
    (tmp_path / "bad.toml").write_text("factors = [")
    with pytest.raises(UserError, match="cannot read the mapping"):
        read_mapping(tmp_path / "bad.toml")


def test_the_medmnist_ledger_gives_its_published_matrix(tables: Path) -> None:
    start = time.perf_counter()
    table = load_table(tables / "medmnist_hpo_runs.csv.gz", mapping_from(MEDMNIST))
    assert time.perf_counter() - start < 3
    repeats = table.trials[table.trials["phase"] == "repeat"]
    ours = repeats.pivot(index="source", columns="target", values="test_score")
    published = pd.read_csv(tables / "medmnist_AUCs_dataset.csv", index_col="source")
    gap = (ours - published.loc[ours.index, ours.columns]).abs()
    assert gap.count().sum() == 168
    assert np.nanmax(gap) < 2e-16
    assert len(table.trials) == 20157 + 168
    assert table.trials["peak_accelerator_allocated_mib"].isna().sum() > 0


def test_text_in_a_parquet_file_that_is_no_utf8_is_refused(tmp_path: Path) -> None:
    pa: Any = importlib.import_module("pyarrow")
    pq: Any = importlib.import_module("pyarrow.parquet")
    column = pa.array([b"a", b"\xff\xfe"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"source": column}), tmp_path / "t.parquet")
    with pytest.raises(UserError, match=r"cannot read .*t\.parquet: .*(UTF|utf)"):
        read_table(tmp_path / "t.parquet")


GRID = "model,lr,seed,v,t,minutes\n" + "".join(
    f"net,{lr},{seed},{v + 0.01 * seed:.2f},{t + 0.01 * seed:.2f},{seed}\n"
    for lr, v, t in ((0.1, 0.70, 0.60), (0.2, 0.80, 0.50), (0.3, 0.75, 0.90))
    for seed in (1, 2, 3)
)


MAPPING: dict[str, Any] = {"factors": ["model"], "val": "v", "test": "t", "seed": "seed"}


MAPPING |= {"parameters": ["lr"], "over_seeds": True, "time": "minutes", "time_unit": "min"}


def grid(folder: Path, text: str, **mapping: Any) -> StudyTable:
    return read(folder, text, **MAPPING | mapping)


def test_of_a_grid_with_seeds_the_best_mean_over_seeds_is_chosen_and_its_seeds_compared(
    tmp_path: Path,
) -> None:
    lucky = GRID.replace("net,0.1,1,0.71", "net,0.1,1,0.99")  # one good seed does not choose
    made = grid(tmp_path, lucky)
    found = compare.find(made)
    row = found.summary.iloc[0]
    assert (row["n"], row["tuned"]) == (3, 3)
    assert row["mean"] == pytest.approx(0.52)
    assert row["val_score"] == pytest.approx(0.82)
    [best] = compare.chosen(made.trials)["param.lr"]
    assert best == 0.2
    said = methods(found)
    assert "In each cell 3 configurations of lr were tried" in said
    assert "was chosen, by its mean over seeds." in said
    assert "Its test scores on 3 seeds are compared." in said
    assert len(compare.recorded(made.trials)) == 9


def test_gaps_copies_and_single_seeds_of_a_grid(tmp_path: Path) -> None:
    gap = GRID.replace("net,0.2,3,0.83,0.53,3\n", "")
    made = grid(tmp_path, gap)
    assert compare.chosen(made.trials)["param.lr"].tolist() == [0.3]
    assert any("1 configuration without a seed" in line for line in warnings(compare.find(made)))
    with pytest.raises(UserError, match="row 10 has the configuration and seed of an earlier row"):
        grid(tmp_path, GRID + "net,0.1,1,0.71,0.61,1\n")
    with pytest.raises(UserError, match="over_seeds needs seed, parameters"):
        grid(tmp_path, GRID, parameters=[])
    single = "".join(line for line in GRID.splitlines(True) if ",1," in line or "seed" in line)
    assert compare.find(grid(tmp_path, single)).summary["n"].tolist() == [1]


@pytest.mark.usefixtures("undrawn")
def test_the_methods_of_a_table_say_only_what_its_mapping_declares(tmp_path: Path) -> None:
    made = grid(tmp_path, GRID, over_seeds=False, parameters=[])
    page = report.build(made, tmp_path).read_text()
    said = methods(compare.find(made))
    for invented in ("fresh seeds", "one seed fixes", "excludes evaluation", "head initialisation"):
        assert invented not in said
    assert "The scores are from a table of 9 runs." in said
    assert "Times are those of the table" in said
    assert "<p>9 runs" in page  # the chosen rows are not counted a second time


def test_without_validation_scores_the_choice_says_what_it_is_worth(tmp_path: Path) -> None:
    mapping = {"over_seeds": False, "parameters": [], "val": "", "factors": ["model", "lr"]}
    said = " ".join(answer(compare.find(grid(tmp_path, GRID, **mapping))))
    assert "No validation scores were recorded" in said


PAIRS = "source,target,seed,v,t\n" + "".join(
    f"{s},{t},{i},{0.5 + 0.01 * (i + k)},{0.6 + 0.02 * k + 0.01 * j + 0.001 * i}\n"
    for k, s in enumerate("abcd")
    for j, t in enumerate("xyz")
    for i in range(2)
)


@pytest.mark.usefixtures("undrawn")
def test_a_table_from_elsewhere_gets_the_same_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runs.csv").write_text(PAIRS)
    (tmp_path / "map.toml").write_text(
        'factors = ["source", "target"]\nval = "v"\ntest = "t"\nmetric = "AUC"\nseed = "seed"\n'
    )
    pairs = [(s, t) for s in "abcd" for t in "xyz"]
    lines = [f"{s},{t},{i % 5}" for i, (s, t) in enumerate(pairs)]
    (tmp_path / "alike.csv").write_text("\n".join(["source,target,similarity", *lines]))
    arguments = ["--table", str(tmp_path / "runs.csv"), "--mapping", str(tmp_path / "map.toml")]
    arguments += ["--measures", str(tmp_path / "alike.csv"), "--out", str(tmp_path / "out")]
    assert report.main(arguments) == 0
    assert "runs:" not in capsys.readouterr().out
    page = tmp_path / "out" / "runs" / "index.html"
    text = words_of(page)
    assert "“d” has the best mean rank over 3 targets: 1.0" in text
    assert "“d” is first most often, on 3 of them" in text
    assert "No arm is best for all targets" not in text
    assert "Test AUC, %" in text
    assert "accuracy" not in text.replace("test accuracy", "")
    assert "It was not shown that sources which similarity ranks higher transfer better" in text
    for absent in (
        "To repeat the study",
        "0 tuning trials",
        "Look at the runs",
        "recorded predictions",
    ):
        assert absent not in text
    assert {p.stem for p in page.parent.glob("figures/*.png")} >= {"accuracy", "ranks", "agreement"}


def test_a_table_without_a_mapping_and_measures_that_fit_nothing_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report.main(["--table", "runs.csv"]) == 2
    assert "--table needs --mapping" in capsys.readouterr().err
    measures = pd.DataFrame({"source": ["p"], "target": ["q"], "m": [1.0]})
    with pytest.raises(UserError, match="factors source and target"):
        report.build(table(scored("full", 0.9)), tmp_path, measures)
