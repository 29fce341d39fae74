"""No code in weights is run, no password is written down, and nothing listens to other machines."""

from __future__ import annotations

import ast
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest

from harness.core.caller import undisturbed
from harness.core.errors import first_line, without_password
from harness.search.storage import open_storage
from harness.study import main
from tests.study_files import study_text

ROOT = Path(__file__).parent.parent
SOURCES = [
    p
    for part in ("harness", "analysis", "benchmarks", "studies")
    for p in (ROOT / part).rglob("*.py")
]
STUDY = study_text()


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_that_could_run_code_is_read(path: Path) -> None:
    for name, call in calls(path):
        options = {k.arg: ast.unparse(k.value) for k in call.keywords}
        if name == "torch.load":
            assert options.get("weights_only") == "True", f"{path}:{call.lineno}"
        if name in ("np.load", "numpy.load"):
            assert options.get("allow_pickle", "False") == "False", f"{path}:{call.lineno}"
        if path.name == "ray_tasks.py" and name == "pickle.loads":
            continue  # of a task that our own coordinator made; Ray itself sends everything so
        unsafe = {"pickle.load", "pickle.loads", "joblib.load", "pd.read_pickle", "eval", "exec"}
        assert name not in unsafe, f"{path}:{call.lineno}"
        assert options.get("shell") != "True", f"{path}:{call.lineno}"


def test_the_interface_that_is_shown_listens_to_this_machine_only() -> None:
    """Every `mlflow ui` and `mlflow server` in code and documents names its host, or asks who is there."""
    documents = [*SOURCES, ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    shown = [
        (path, line)
        for path in documents
        for line in path.read_text().replace("\\\n", " ").splitlines()
        if re.search(r"mlflow\S* (ui|server) +-|'mlflow'\)\} ui", line)
    ]
    assert shown
    safe = ("--host 127.0.0.1", "--app-name basic-auth")
    assert [(p, line) for p, line in shown if not any(s in line for s in safe)] == []


def test_telemetry_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY", raising=False)
    with undisturbed():
        assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql+psycopg://ann:s3cret@db/x", "postgresql+psycopg://ann:***@db/x"),
        ("mysql://ann:p:q/r@db", "mysql://ann:***@db"),
        ("cannot reach http://u:pw@h and http://v:pw2@h", "cannot reach http://u:***@h and http://v:***@h"),
        ("http://host:5000/path", "http://host:5000/path"),
        ("redis://:pw@h/0", "redis://:***@h/0"),
        ("cannot open mysql://ann:p@w@db/x", "cannot open mysql://ann:***@db/x"),
        ("postgresql://ann@h/x?password=pw&sslmode=require", "postgresql://ann@h/x?password=***&sslmode=require"),
        ("mysql://h/x?user=ann&PASSWD=pw", "mysql://h/x?user=ann&PASSWD=***"),
        ("http://h/?access_token=abc#x y", "http://h/?access_token=*** y"),
        ("host=h user=ann password='p w' dbname=x", "host=h user=ann password=*** dbname=x"),
        ("postgresql://ann:p%40w:d@h:5432/x", "postgresql://ann:***@h:5432/x"),
        ("sqlite:////tmp/a@b.db", "sqlite:////tmp/a@b.db"),
    ],
)  # fmt: skip
def test_passwords_are_not_shown(text: str, shown: str) -> None:
    assert without_password(text) == shown


def test_message_that_is_cut_in_the_middle_of_a_url_shows_no_password() -> None:
    for blanks in range(150, 200):
        said = first_line(OSError(f"{'x' * blanks} postgresql://ann:secret@host/x"))
        assert len(said) <= 200
        assert "sec" not in said


CANARY = "ca-na-ry"


def test_a_password_is_nowhere_after_a_study(
    tmp_path: Path,
    tracking_uri: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Both URLs hold one. The servers are stood in for by SQLite databases."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.py").write_text(STUDY)
    given = [
        f"postgresql+psycopg://ann:{CANARY}@db/search?sslpassword={CANARY}",
        f"postgresql+psycopg://ann:{CANARY}@db/tracking",
    ]
    started: list[Any] = []
    real_client, real_popen = mlflow.MlflowClient, subprocess.Popen.__init__

    def popen(self: Any, args: Any, *rest: Any, **options: Any) -> None:
        started.append(args)
        real_popen(self, args, *rest, **options)

    def opens(url: str) -> object:
        assert url == given[0]
        return open_storage("sqlite:///search.db")

    def client(tracking_uri: str) -> mlflow.MlflowClient:
        assert tracking_uri == given[1]
        return real_client(tracking_uri=stand_in)

    stand_in = tracking_uri
    monkeypatch.setattr("harness.search.launch.open_storage", opens)
    monkeypatch.setattr("harness.tracking.experiment.MlflowClient", client)
    monkeypatch.setattr(subprocess.Popen, "__init__", popen)
    code = main(
        ["--space", "toy.py", "--device", "cpu", "--storage", given[0], "--tracking-uri", given[1]]
    )
    said = capfd.readouterr()
    assert code == 0, said.err
    assert "ann:***@db/tracking" in said.out
    for option, better in (("storage", "~/.pgpass"), ("tracking-uri", "~/.mlflow/credentials")):
        assert (
            f"password in --{option} while this runs; leave it out, and put it into {better}"
            in (said.err)
        )
    assert CANARY not in said.out + said.err
    assert CANARY not in str(started)
    for path in tmp_path.rglob("*"):
        assert CANARY not in str(path)
        assert not path.is_file() or CANARY.encode() not in path.read_bytes(), path
    assert b"ann:***@db" in b"".join(
        p.read_bytes() for p in (tmp_path / "mlruns").glob("mlflow.db*")
    )
    assert CANARY not in str({k: v for k, v in os.environ.items() if "MLFLOW" in k})
