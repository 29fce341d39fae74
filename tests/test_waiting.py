"""How long a process waits for a processor: measured, and told to the user."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.core.results import BUSY
from harness.search.costs import CellCost, busy_warnings
from harness.training.forecast import Forecast
from harness.training.waiting import TASKS, Waiting

needs_statistics = pytest.mark.skipif(
    not list(TASKS.glob("*/schedstat")), reason="this system's scheduler keeps no statistics"
)
WORK = """
import os, time
from harness.training.waiting import Waiting
os.sched_setaffinity(0, {CORE})
waiting, until = Waiting(), time.process_time() + 0.5
while time.process_time() < until:
    pass
print(waiting.share())
"""


def shown(folder: Path, thread: int, ran: int, waited: int) -> None:
    file = folder / str(thread) / "schedstat"
    file.parent.mkdir(exist_ok=True)
    file.write_text(f"{ran} {waited} 12\n")


def test_share_is_of_the_time_since_the_beginning_over_all_threads(tmp_path: Path) -> None:
    shown(tmp_path, 1, 1000, 5000)
    waiting = Waiting(tmp_path)
    shown(tmp_path, 1, 1600, 5200)
    shown(tmp_path, 2, 100, 100)  # began since
    assert waiting.share() == pytest.approx(300 / 1000)


def test_without_statistics_the_share_is_unknown(tmp_path: Path) -> None:
    assert Waiting(tmp_path).share() is None
    assert Waiting(tmp_path / "absent").share() is None


def test_forecast_that_waited_for_the_processor_is_told_to_be_too_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("harness.search.costs.BUSY", BUSY)
    none = Forecast(0, 0, 0, 0, 0, 0)
    busy, quiet, unmeasured = (
        CellCost("a", none, seconds, waited)
        for seconds, waited in ((1.0, 0.6), (1.0, 0.0), (None, 0.9))
    )
    assert "waited for 30% of their time" in busy_warnings([busy, quiet])[0]
    assert busy_warnings([quiet, unmeasured]) == busy_warnings([unmeasured]) == []


@needs_statistics
def test_two_processes_on_one_core_wait_for_each_other() -> None:
    core = min(os.sched_getaffinity(0))
    script = WORK.replace("CORE", str(core))
    both = [
        subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    shares = [float(p.communicate(timeout=60)[0]) for p in both]
    assert min(shares) > BUSY
