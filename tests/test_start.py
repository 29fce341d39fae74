"""What a command does before its first trial: variables, imports, an empty MLflow database."""

from __future__ import annotations

import gc
import os
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from harness.core.caller import SPINS, WAITING, importing
from harness.tracking.new_store import NewStore

SET = "import os; from harness.core.caller import set_variables; set_variables(); "
ASK = SET + "print(os.environ.get('GOMP_SPINCOUNT'))"


def said(script: str, **variables: str) -> str:
    known = {k: v for k, v in os.environ.items() if k not in WAITING}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**known, **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_threads_sleep_soon_unless_the_user_has_decided_how_they_wait() -> None:
    assert said(ASK) == SPINS
    assert said(ASK, GOMP_SPINCOUNT="7") == "7"
    assert said(ASK, OMP_WAIT_POLICY="active") == "None"
    assert said("import torch; " + ASK) == "None", "OpenMP has looked already"


def test_running_a_study_needs_no_library_that_its_first_trial_does_not() -> None:
    late = "mlflow", "pandas", "sklearn", "matplotlib", "scipy.stats", "scipy.optimize"
    found = said(
        "import sys, harness.search.launch; from harness.data import load_target; load_target('digits'); "
        f"print([name for name in {late} if name in sys.modules])"
    )
    assert found == "[]"


def test_status_needs_no_torch_and_no_mlflow() -> None:
    late = "torch", "mlflow", "pandas"
    found = said(
        "import sys, harness.status, harness.search.progress, harness.search.storage; "
        f"print([name for name in {late} if name in sys.modules])"
    )
    assert found == "[]"


def test_nothing_is_collected_while_libraries_are_imported() -> None:
    assert gc.isenabled()
    with importing():
        assert not gc.isenabled()
    assert gc.isenabled()


def schema(path: Path) -> dict[str, list[str]]:
    """The clauses of each table and index; MLflow writes those of a table in any order."""
    with closing(sqlite3.connect(path)) as connection:
        found = connection.execute("SELECT name, sql FROM sqlite_master")
        return {
            name: sorted(part.rstrip(")\n ") for part in re.split(r",\s*", sql or ""))
            for name, sql in found
        }


def test_new_store_is_the_one_that_mlflow_makes(tmp_path: Path, mlflow_template: Path) -> None:
    with NewStore() as new:
        new.put(tmp_path / "mlflow.db")
    assert schema(tmp_path / "mlflow.db") == schema(mlflow_template)
    assert [file.name for file in tmp_path.iterdir()] == ["mlflow.db"]


def test_store_that_could_not_be_made_is_left_to_mlflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with NewStore() as new:
        new.put(tmp_path / "mlflow.db")
    assert not list(tmp_path.iterdir())
