"""What a person does in the MLflow UI, in a real browser: find a study, filter, compare, fetch its report."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes import python
from tests.study_files import study_text

CHROMIUM = Path("/usr/bin/chromium")
PATIENCE_MS = 120_000

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"needs {CHROMIUM} (apt install chromium)"),
]
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (extra dev)")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a study was run and its report made."""
    made = tmp_path_factory.mktemp("ui")
    arms = {"probe": "strategies.LinearProbe()", "full": "strategies.FullFineTune()"}
    (made / "toy.py").write_text(study_text(arms, trials=2, repeats=2, rates=True))
    for command in (
        ["-m", "harness.study", "--space", "toy.py", "--device", "cpu"],
        ["-m", "analysis.report", "--study", "toy"],
    ):
        done = python(*command, folder=made, more={"HOME": str(made)})
        assert done.returncode == 0, done.stderr
    return made


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    """The UI as the study's last line says how to open it, on a free port of this machine only."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (folder / "ui.log").open("w") as log:
        server = subprocess.Popen(
            [
                Path(sys.executable).parent / "mlflow", "ui", "--backend-store-uri",
                "sqlite:///mlruns/mlflow.db", "--host", "127.0.0.1", "--port", str(port),
                "--workers", "1",
            ],
            cwd=folder, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        _wait_until_up(f"http://127.0.0.1:{port}/health", server)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(60)


def _wait_until_up(url: str, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE_MS / 1000
    while True:
        try:
            with urllib.request.urlopen(url, timeout=10):
                return
        except (urllib.error.URLError, OSError):
            assert server.poll() is None, "mlflow ui ended"
            assert time.monotonic() < deadline, "mlflow ui did not come up"
            time.sleep(0.2)  # nothing tells when a server listens


def test_a_person_finds_filters_compares_and_fetches_the_report(
    folder: Path, address: str, tmp_path: Path
) -> None:
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.set_default_timeout(PATIENCE_MS)
        page.goto(f"{address}/#/experiments")
        page.get_by_text("Model training").first.click()
        page.get_by_role("link", name="toy").first.click()
        page.get_by_text("Does it?").first.wait_for()  # the question, as description
        page.get_by_text("11 matching runs").wait_for()  # 8 trials, 2 cells, the study

        page.get_by_placeholder("metrics.rmse").fill(
            "tags.kind = 'cell' and tags.strategy != 'other'"
        )
        page.keyboard.press("Enter")
        page.get_by_text("3 matching runs").wait_for()  # the cells and the study above them
        page.locator(".ag-row button").first.click()  # unfold the study
        for cell in ("probe", "full"):
            page.get_by_role("link", name=cell, exact=True).wait_for()

        page.locator("label:has([value='CHART'])").click()
        chart = page.get_by_test_id("experiment-view-compare-runs-card").filter(
            has_text="mean_test_accuracy"
        )
        for cell in ("probe", "full"):
            chart.get_by_text(cell, exact=True).first.wait_for()

        page.locator("label:has([value='TABLE'])").click()
        page.get_by_role("link", name="study toy").click()
        page.get_by_role("tab", name="Artifacts").click()
        page.get_by_text("report", exact=True).first.click()
        page.get_by_text("index.html", exact=True).first.click()
        page.get_by_text("report/index.html").first.wait_for()
        with page.expect_download() as download:
            page.locator(".mlflow-artifact-right button").first.click()
        download.value.save_as(tmp_path / "fetched.html")
        browser.close()
    report = folder / "report" / "toy" / "index.html"
    assert (tmp_path / "fetched.html").read_bytes() == report.read_bytes()
