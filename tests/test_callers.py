"""Studies that are run from scripts, `python -` and notebooks, on odd terminals and in odd folders."""

from __future__ import annotations

import importlib
import io
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from analysis.load import load_study
from harness import study
from tests.processes import ROOT, python
from tests.study_files import study_text

TINY: dict[str, Any] = {"backbone": "small_cnn", "resolution": 28}
TINY |= dict.fromkeys(("shots", "val_shots", "test_shots"), 4)
PROBE = "strategies.LinearProbe()"
STUDY = study_text({"a": PROBE, "b": PROBE}, **TINY)
CALL = """
from harness import run_study
print("called")
result = run_study("toy.py", device="cpu", workers=2, quiet=True)
print(len(result.cells), "cells")
"""
GUARDED = f"if __name__ == '__main__':\n{textwrap.indent(CALL, '    ')}"


WithStores = Callable[[Path], Path]


@pytest.fixture
def here(tmp_path: Path, with_stores: WithStores) -> Path:
    """A folder with a study and both databases, where something is typed."""
    return furnish(tmp_path, with_stores)


def furnish(folder: Path, with_stores: WithStores) -> Path:
    with_stores(folder / "mlruns")
    (folder / "toy.py").write_text(STUDY)
    return folder


def run(folder: Path, *words: str, given: str = "", **variables: str) -> str:
    """What a Python program prints that is run in that folder and does well."""
    done = python(*words, folder=folder, given=given, more=variables)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout


# --- several workers -------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("how", ["python -", "script", "guarded script", "python -c"])
def test_study_of_two_workers_runs_once_wherever_it_is_called(how: str, here: Path) -> None:
    (here / "call.py").write_text(GUARDED if how == "guarded script" else CALL)
    words, given = {
        "python -": (["-"], CALL),
        "python -c": (["-c", CALL], ""),
    }.get(how, (["call.py"], ""))
    said = run(here, *words, given=given)
    assert (said.count("called"), said.count("2 cells")) == (1, 1)
    trials = load_study("toy", f"sqlite:///{here}/mlruns/mlflow.db").trials
    assert list(trials["outcome"]) == ["complete"] * 4


@pytest.mark.slow
def test_study_of_two_workers_runs_in_a_notebook(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nbclient = pytest.importorskip("nbclient")
    v4 = pytest.importorskip("nbformat.v4")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = v4.new_notebook(cells=[v4.new_code_cell(CALL), v4.new_code_cell("result")])
    nbclient.NotebookClient(notebook, resources={"metadata": {"path": str(here)}}).execute()
    assert "2 cells" in notebook.cells[0].outputs[-1]["text"]


# --- terminals -------------------------------------------------------------------------------------

FOREIGN = study_text({"Käfer “λ”": PROBE}, **TINY, target="folder:Tiere")
COMMANDS = [
    "harness.new --target folder:Tiere --out studies/nochmal.py --device cpu",
    "harness.study --space toy.py --device cpu --dry-run",
    "harness.study --space toy.py --device cpu",
    "harness.study --space toy.py --device cpu --verbose",
    "harness.status --study toy",
    "harness.sync --study toy",
    "harness.cache",
    "harness.export --study toy --space toy.py --device cpu",
    "harness.predict models/toy Tiere",
    "harness.lr_find --space toy.py --device cpu",
    "harness.rank --target folder:Tiere --backbones small_cnn",
    "analysis.report --study toy",
    "analysis.recommend --study toy",
]
REFUSED = {"harness.rank --target folder:Tiere --backbones small_cnn"}
"""It says why in one line, with the name of the target."""


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_no_command_fails_where_the_terminal_lacks_letters(
    encoding: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(here)
    (here / "toy.py").write_text(FOREIGN, encoding="utf-8")
    for name in ("Käfer", "Eule", "Łoś"):
        (here / "Tiere" / name).mkdir(parents=True)
        for i in range(14):
            shade = np.random.default_rng(i).integers(0, 255, (28, 28, 3), dtype=np.uint8)
            Image.fromarray(shade).save(here / "Tiere" / name / f"{name}{i}.png")
    for command in COMMANDS:
        out, err = (io.TextIOWrapper(io.BytesIO(), encoding) for _ in range(2))
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)
        name, *words = command.split()
        code = importlib.import_module(name).main(words)
        monkeypatch.undo()
        monkeypatch.chdir(here)
        for stream in (out, err):
            stream.seek(0)
        said = out.read() + err.read()
        assert code == (2 if command in REFUSED else 0), (command, said)
        assert (out.errors, err.errors) == ("strict", "strict")  # as they were


@pytest.mark.slow
def test_study_is_carried_out_in_the_plain_c_locale(here: Path) -> None:
    plain = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    (here / "toy.py").write_text(FOREIGN.replace("folder:Tiere", "digits"), encoding="utf-8")
    for words in (
        ["harness.study", "--space", "toy.py", "--device", "cpu"],
        ["harness.status", "--study", "toy"],
        ["analysis.report", "--study", "toy"],
        ["analysis.recommend", "--study", "toy"],
    ):
        run(here, "-m", *words, **plain)


# --- the caller's session --------------------------------------------------------------------------

SESSION = """
import logging, os, random, signal, sys, warnings
import matplotlib, mlflow, numpy, optuna, torch
import matplotlib.pyplot as plt
import seaborn, torchvision
from pathlib import Path

matplotlib.rcParams["figure.dpi"] = 77
warnings.simplefilter("ignore", FutureWarning)
optuna.logging.set_verbosity(optuna.logging.INFO)
random.seed(1), numpy.random.seed(1), torch.manual_seed(1)
mlflow.set_tracking_uri("sqlite:///mine.db")
mlflow.set_experiment("mine")
mlflow.start_run()

def state():
    loggers = ("", "optuna", "mlflow", "alembic", "mlflow.store.db.utils", "mlflow.store.db.base_sql_model")
    return {
        "environment": dict(os.environ), "filters": list(warnings.filters),
        "run": mlflow.active_run().info.run_id, "store": mlflow.get_tracking_uri(),
        "random": random.getstate(), "numpy": str(numpy.random.get_state()),
        "torch": torch.get_rng_state().tolist(), "threads": torch.get_num_threads(),
        "plots": dict(matplotlib.rcParams), "backend": matplotlib.get_backend(), "figures": plt.get_fignums(),
        "signals": [signal.getsignal(s) for s in (2, 10, 15)], "folder": os.getcwd(),
        "logs": [(logging.getLogger(n).level, len(logging.getLogger(n).handlers)) for n in loggers],
        "streams": (sys.stdout.errors, sys.stderr.errors), "verbosity": optuna.logging.get_verbosity(),
    }

before = state()
def check(what):
    after = state()
    for key in before:
        assert after[key] == before[key], (what, key, before[key], after[key])

import harness, analysis
check("import")
for package in (harness, analysis):
    for name in package.__all__:
        getattr(package, name)
check("every name")
harness.dry_run("toy.py", device="cpu")
harness.run_study("toy.py", device="cpu", quiet=True)
harness.run_study("toy.py", device="cpu", repeats=2)
check("run_study")
table = analysis.load_study("toy")
analysis.build_report(table, Path("report"))
analysis.recommend_cell(table)
analysis.publish_report("toy", table.tracking_uri, [Path("report/toy/index.html")])
check("report")
harness.study_status("toy"), harness.sync_study("toy"), harness.load_result("toy")
check("status")
harness.export_model("toy", device="cpu", log_model=True)
harness.replay_run(table.trials["run_id"][0])
check("export")
try:
    harness.run_study("toy.py", trials=0)
except harness.UserError:
    pass
check("an error")
print("as before")
"""
FRESH = """
import os, random
random.seed(1)
before = dict(os.environ), random.getstate()
import harness, analysis
harness.run_study("toy.py", device="cpu", quiet=True)
analysis.load_study("toy")
assert (dict(os.environ), random.getstate()) == before
import mlflow, optuna
assert not mlflow.is_tracking_uri_set()
assert optuna.logging.get_verbosity() == optuna.logging.INFO
print("as before")
"""


@pytest.mark.slow
@pytest.mark.parametrize("session", [SESSION, FRESH], ids=["libraries in use", "fresh"])
def test_session_of_the_caller_is_as_before(session: str, here: Path) -> None:
    # MLflow writes the variable of its own address, and another test may have had it do so.
    done = python("-c", session, folder=here, without=["MLFLOW_TRACKING_URI"])
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("as before\n")
    assert "MLFLOW_TRACKING_URI" not in done.stderr


def test_store_that_the_shell_names_is_warned_of_by_the_command(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(here)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///other.db")
    assert study.main(["--space", "gone.py"]) == 2
    warning = "warning: MLFLOW_TRACKING_URI=sqlite:///other.db is not used"
    assert warning in capsys.readouterr().err


@pytest.mark.slow
def test_study_runs_in_an_odd_environment(tmp_path: Path) -> None:
    """No threads, no home, locale C, an odd time zone, inside another run of another MLflow."""
    (tmp_path / "toy.py").write_text(STUDY)
    odd = {"OMP_NUM_THREADS": "abc", "LC_ALL": "C", "TZ": "Australia/Lord_Howe"}
    odd |= {"MLFLOW_RUN_ID": "0" * 32, "MLFLOW_TRACKING_URI": "sqlite:///other.db"}
    odd |= {"XDG_CACHE_HOME": "/proc/none"}
    command = ["-m", "harness.study", "--space", "toy.py", "--device", "cpu"]
    done = python(*command, folder=tmp_path, without=["HOME", "LANG"], more=odd)
    assert done.returncode == 0, done.stderr
    assert "MLFLOW_TRACKING_URI=sqlite:///other.db is not used" in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "mlruns" / "mlflow.db").exists()
    assert not (tmp_path / "other.db").exists()
