"""What a command does before its first trial: variables and imports."""

from __future__ import annotations

import gc

import pytest

from harness.core.caller import SPINS, WAITING, no_garbage_collection
from tests.processes import output_of

SET = "import os; from harness.core.caller import set_variables; set_variables(); "
ASK = SET + "print(os.environ.get('GOMP_SPINCOUNT'))"


def said(script: str, **variables: str) -> str:
    return output_of("-c", script, without=WAITING, more=variables)


def test_threads_sleep_soon_unless_the_user_has_decided_how_they_wait() -> None:
    assert said(ASK) == SPINS
    assert said(ASK, GOMP_SPINCOUNT="7") == "7"
    assert said(ASK, OMP_WAIT_POLICY="active") == "None"
    assert said("import torch; " + ASK) == "None", "OpenMP has looked already"


@pytest.mark.parametrize(
    ("begins", "late"),
    [
        (
            "import harness.search.launch; from harness.data import load_target; load_target('digits')",
            ("mlflow", "pandas", "sklearn", "matplotlib", "scipy.stats", "scipy.optimize"),
        ),
        (
            "import harness.status, harness.search.progress, harness.search.storage",
            ("torch", "mlflow", "pandas"),
        ),
    ],
    ids=["a study", "its status"],
)
def test_no_library_is_loaded_before_it_is_needed(begins: str, late: tuple[str, ...]) -> None:
    assert said(f"import sys; {begins}; print({{*{late}}} & {{*sys.modules}})") == "set()"


@pytest.mark.parametrize(
    ("command", "refused"),
    [
        ("study", "['--space', 'freeze_dept']"),
        ("new", "['--target', 'digits', '--out', 'pyproject.toml']"),
    ],
)
def test_wrong_file_is_refused_before_torch_is_imported(command: str, refused: str) -> None:
    script = f"import sys, harness.{command} as c; print(c.main({refused}), 'torch' in sys.modules)"
    assert said(script) == "2 False"


def test_nothing_is_collected_while_libraries_are_imported() -> None:
    assert gc.isenabled()
    with no_garbage_collection():
        assert not gc.isenabled()
    assert gc.isenabled()
