"""What the commands do, from Python: light to import, the same options, results as tables."""

from __future__ import annotations

import importlib
import subprocess
import sys
from argparse import Namespace

import pytest

import analysis
import harness
from harness import api
from harness.record_runs import Kept, Recorded
from harness.spec import UserError
from harness.winner.choice import CellRecord


def test_import_is_light_and_every_offered_name_is_there() -> None:
    code = (
        "import sys, harness, analysis; harness.Study; print({'torch', 'mlflow'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
    for package in (harness, analysis):
        for name in package.__all__:
            assert getattr(package, name) is not None
        with pytest.raises(AttributeError, match="no attribute 'magic'"):
            package.magic  # noqa: B018
    assert callable(harness.run_study)
    # No name is a command's module.
    assert importlib.import_module("harness.export").export_model is harness.export_model


def test_options_are_those_of_the_command(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Namespace] = []

    def noted(arguments: Namespace) -> int:
        seen.append(arguments)
        return 1

    monkeypatch.setattr("harness.study.run", noted)
    with pytest.raises(UserError, match="ended early"):
        harness.run_study("toy.py", trials=5, cache_budget="0")
    assert (seen[0].trials, seen[0].repeats, seen[0].cache_budget) == (5, None, "0")
    assert not seen[0].dry_run
    with pytest.raises(UserError, match=r"unknown option 'trails'; there are .*trials"):
        harness.run_study("toy.py", trails=5)
    assert len(seen) == 1


def test_result_is_a_table_of_means_over_repeats() -> None:
    runs = [
        Kept(
            "id",
            Recorded("s", {}, {}, {"val_accuracy": 0.5, "test_accuracy": a, "train_seconds": 2}),
        )
        for a in (0.4, 0.6)
    ]
    result = api.StudyResult("s", (CellRecord("a<b", tuple(runs)),))
    assert result.rows() == [("a<b", "2", "50.0", "50.0", "40.0 to 60.0", "2.0")]
    page = result._repr_html_()
    assert "<td>a&lt;b</td><td>2</td>" in page
    assert "a<b" not in page
    assert "40.0 to 60.0" in str(result)
