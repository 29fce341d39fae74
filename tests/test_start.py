"""What a command does before its first trial: variables and imports."""

from __future__ import annotations

import gc
import os
import subprocess
import sys

from harness.core.caller import SPINS, WAITING, importing

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
