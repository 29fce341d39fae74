"""The wheel contains everything that a user needs: it is built, installed and used outside the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def call(*command: str | Path, folder: Path) -> str:
    """What a command prints; fails with all of it if the command does."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        list(map(str, command)), cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that nothing is left in the checkout, and nothing of it slips in."""
    folder = tmp_path_factory.mktemp("source")
    for name in ("harness", "analysis", "studies"):
        unwanted = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=unwanted)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    build = (sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", "dist")
    call(*build, folder=folder)
    (found,) = (folder / "dist").glob("*.whl")
    return found


@pytest.mark.slow
def test_the_wheel_holds_the_packages_the_studies_the_templates_and_the_licence(
    wheel: Path,
) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    kept = [
        file
        for folder in ("harness", "analysis", "studies")
        for kind in ("py", "pyi", "j2")
        for file in (ROOT / folder).rglob(f"*.{kind}")
    ]
    assert {p.relative_to(ROOT).as_posix() for p in kept} <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.mark.slow
def test_the_installed_wheel_runs_and_reports_a_part_of_the_default_study_outside_the_checkout(
    wheel: Path, tmp_path: Path
) -> None:
    call(sys.executable, "-m", "venv", "--without-pip", "venv", folder=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    purelib = Path(
        call(
            *(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"),
            folder=tmp_path,
        ).strip()
    )
    # What the wheel depends on is here already; a path file of its own does not read ours, so the checkout
    # that is installed for development stays out.
    (purelib / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps")
    call(*pip, wheel, folder=tmp_path)
    where = "import harness.study, analysis; print(harness.study.__file__, analysis.__file__)"
    assert call(python, "-c", where, folder=tmp_path).count(str(purelib)) == 2
    study = ("-m", "harness.study", "--space", "freeze_depth", "--device", "cpu")
    part = ("--trials", "1", "--repeats", "1", "--cells", "1/3")
    call(python, *study, *part, folder=tmp_path)
    call(python, "-m", "analysis.report", "--study", "freeze_depth", folder=tmp_path)
    assert "linear probe" in (tmp_path / "report" / "freeze_depth" / "index.html").read_text()
