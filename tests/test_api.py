"""What the commands do, from Python: light to import, the same options, results as tables."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import math
import re
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import analysis
import harness
from harness import StudyOptions, study
from harness.data.cache_folder import Entry
from harness.similarity import Candidate, Measurement
from harness.tracking.replay import Comparison
from harness.tracking.results import CellRecord
from harness.tracking.runs import Recorded
from tests.processes import output_of
from tests.refusals import refused
from tests.test_command import NEEDED


def test_import_is_light_and_every_offered_name_is_there() -> None:
    code = (
        "import sys, harness, analysis, harness.core.spec; harness.Study, harness.strategies; "
        "print({'torch', 'mlflow'} & {*sys.modules})"
    )
    assert output_of("-c", code) == "set()"
    for package in (harness, analysis):
        for name in package.__all__:
            assert getattr(package, name) is not None
        with pytest.raises(AttributeError, match="no attribute 'magic'"):
            package.magic  # noqa: B018
    assert callable(harness.run_study)
    # No name is a command's module.
    assert importlib.import_module("harness.export").export_model is harness.export_model


FUNCTIONS: Mapping[str, Callable[..., object]] = {
    "analysis.recommend": analysis.recommend_cell,
    "analysis.report": analysis.build_report,
    "harness.average": harness.average_networks,
    "harness.bundle": harness.merge_bundles,
    "harness.cache": harness.list_cache,
    "harness.export": harness.export_model,
    "harness.lr_find": harness.find_lr,
    "harness.new": harness.propose_study,
    "harness.predict": harness.predict_images,
    "harness.pretrain": harness.pretrain_sources,
    "harness.rank": harness.rank_sources,
    "harness.replay": harness.replay_run,
    "harness.similarity": harness.measure_similarity,
    "harness.status": harness.study_status,
    "harness.study": harness.run_study,
    "harness.sync": harness.sync_study,
}
"""Command -> what does the same from Python."""


def test_every_command_has_a_documented_function_that_it_is_made_of() -> None:
    assert sorted(FUNCTIONS) == sorted(NEEDED)
    for command, function in FUNCTIONS.items():
        assert function.__module__ in (command, f"{command}.__main__"), command
        said = function.__doc__ or ""
        assert "Raises:\n" in said, command
        for name, parameter in inspect.signature(function).parameters.items():
            assert parameter.annotation is not inspect.Parameter.empty, (command, name)
            assert f" {name}" in said, (command, name)


@pytest.fixture
def launched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[tuple[Path, StudyOptions, bool]]:
    """What would have been run, of a study that ends early."""
    monkeypatch.chdir(tmp_path)
    for path in (Path("toy.py"), Path("my studies", "toy.py")):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    seen: list[tuple[Path, StudyOptions, bool]] = []

    def noted(path: Path, options: StudyOptions, dry_run: bool = False) -> int:
        seen.append((path, options, dry_run))
        return 1

    monkeypatch.setattr("harness.search.launch.launch", noted)
    return seen


def test_options_of_a_study_may_be_given_by_name(
    launched: list[tuple[Path, StudyOptions, bool]],
) -> None:
    with refused("ended early"):
        harness.run_study("toy.py", trials=5, cache_budget=0, max_memory="8GiB", cache_dir="kept")
    [(path, given, dry)] = launched
    assert (path, dry) == (Path("toy.py"), False)
    assert (given.trials, given.repeats, given.cache_budget) == (5, None, 0)
    assert (given.max_memory, given.cache_dir) == (8 * 2**30, Path("kept"))
    with refused("ended early"):
        harness.run_study("toy.py", given, trials=6)
    assert launched[1][1] == dataclasses.replace(given, trials=6)
    with pytest.raises(TypeError, match="unexpected keyword argument 'trails'"):
        harness.run_study("toy.py", trails=5)
    with refused("--max-memory: size 'lots' is not valid"):
        harness.run_study("toy.py", max_memory="lots")
    with refused("--engine must be processes or ray, got 'dask'"):
        harness.run_study("toy.py", engine="dask")
    assert len(launched) == 2


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"trials": 3, "repeats": 0, "cells": "2/3", "device": "cpu", "quiet": True},
        {"max_memory": "1.5GiB", "cache_budget": "500MB", "max_minutes": 0.5, "verbose": True},
        {"storage": "sqlite:///my files/a.db", "tracking_uri": "http://h/x?a=1&b=2", "cache_dir": "a b"},
        {"engine": "ray", "workers": 4, "address": "auto", "worker_cpus": 2.0, "worker_gpus": 0.5},
    ],
)  # fmt: skip
def test_recorded_command_gives_the_same_options(
    changes: dict[str, Any], launched: list[tuple[Path, StudyOptions, bool]]
) -> None:
    options = StudyOptions(**changes)
    words = shlex.split(options.command(Path("my studies/toy.py")))
    assert words[:3] == ["python", "-m", "harness.study"]
    assert study.main(words[3:]) == 1
    assert launched == [(Path("my studies/toy.py"), options, False)]
    assert len(words) == 5 + 2 * len(changes) - ("quiet" in changes) - ("verbose" in changes)


def test_recorded_command_holds_no_password() -> None:
    options = StudyOptions(
        tracking_uri="http://ann:s3cret@h", storage="postgresql://h/x?password=s3cret"
    )
    assert "s3cret" not in options.command(Path("x.py"))


def test_result_is_a_table_of_means_over_repeats() -> None:
    runs = [
        Recorded("id", "s", {}, {}, {"val_accuracy": 0.5, "test_accuracy": a, "train_seconds": 2})
        for a in (0.4, 0.6)
    ]
    result = harness.StudyResult("s", (CellRecord("a<b", tuple(runs)),))
    assert result.rows() == [("a<b", "2", "50.0", "50.0", "40.0 to 60.0", "2.0")]
    page = result._repr_html_()
    assert cells_of(page) == ["a&lt;b", "2", "50.0", "50.0", "40.0 to 60.0", "2.0"]
    assert "40.0 to 60.0" in str(result)


def never_drawn(trial: object, net: str) -> harness.TrialSpec:
    raise AssertionError("nothing is drawn to be shown")


def cells_of(page: str) -> list[str]:
    assert "a<b" not in page, "not escaped"
    return re.findall(r"<td[^>]*>(.*?)</td>", page)


def test_what_functions_give_is_a_table_in_a_notebook_and_escaped() -> None:
    one = Measurement("knn", 0.5, 9, 2, 0, math.nan, math.nan, 0, "higher")
    none = Measurement("mmd", math.nan, 9, 2, 0, math.nan, math.nan, 0, "lower", "a<b")
    ranking = harness.Ranking(
        "a<b", 9, "images", "x", (Candidate("a<b", {"knn": one, "mmd": none}),), "knn", (), ("a<b",)
    )
    assert cells_of(ranking._repr_html_()) == ["knn", "0.5"]
    pair = harness.PairMeasured("a<b", (one, none))
    assert cells_of(pair._repr_html_()) == [
        *("knn", "0.5", "higher", ""),
        *("mmd", "nan", "lower", "a&lt;b"),
    ]
    again = harness.Replayed("a<b", True, (Comparison("a<b", 1, 0.25, 0.25),))
    assert cells_of(again._repr_html_()) == ["a&lt;b", "1", "0.25", "0.25", "bitwise equal"]
    assert "a&lt;b: agreed" in again._repr_html_()
    written = harness.Exported(Path("a<b"), "a<b", "it leads", 0.5, 0.25, "image")
    assert cells_of(written._repr_html_()) == ["a&lt;b", "50.0%", "25.0%", "it leads"]
    study = harness.Study({"net": ["a<b", "c"]}, never_drawn, baseline={"net": "c"})
    assert cells_of(study._repr_html_()) == ["net", "a&lt;b, c", "c"]
    assert "2 cells x (16 trials + 5 repeats)" in study._repr_html_()
    kept = harness.CacheContents(Path("a<b"), (Entry(Path("x"), "a<b", 1536, 0.0),))
    assert cells_of(kept._repr_html_())[::2] == ["1.5 KiB", "a&lt;b"]


def test_look_at_a_target_shows_its_classes_in_a_notebook() -> None:
    page = harness.look_at("digits")._repr_html_()
    assert "<li>10 classes, 1797 images" in page
    assert '<img src="data:image/png;base64,' in page
