"""An MLflow server with users and passwords: the real server and commands, and no password anywhere
afterwards."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.test_security import STUDY

pytest.importorskip("flask_wtf", reason='pip install "mlflow[auth]"')
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
ADMIN, USER = "ca-na-ry-admin", "ca-na-ry-of-the-user"
SERVER = """
openssl req -x509 -newkey rsa:2048 -nodes -days 2 -keyout key.pem -out cert.pem -subj /CN=mlflow \\
    -addext subjectAltName=IP:127.0.0.1
export MLFLOW_FLASK_SERVER_SECRET_KEY=$(openssl rand -hex 32)
mlflow server --app-name basic-auth --backend-store-uri sqlite:///mlflow.db \\
    --artifacts-destination ./artifacts \\
    --host 127.0.0.1 --port PORT --workers 1 --uvicorn-opts "--ssl-keyfile key.pem --ssl-certfile cert.pem"
"""
USERS = """
import sys
from mlflow.server import get_app_client
server = get_app_client("basic-auth", sys.argv[1])
server.create_user("study", sys.argv[2])
server.create_user("reader", "ca-na-ry-of-the-reader")
"""


@dataclass(frozen=True)
class Place:
    """A running server, and a folder in which commands are typed."""

    uri: str
    folder: Path
    certificate: Mapping[str, str]

    def run(
        self, program: str, user: str = "", password: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """A command of ours, as that user."""
        who = {"MLFLOW_TRACKING_USERNAME": user, "MLFLOW_TRACKING_PASSWORD": password}
        return self.python("-m", *program.split(), "--tracking-uri", self.uri, who=who)

    def python(self, *arguments: str, who: dict[str, str]) -> subprocess.CompletedProcess[str]:
        """Python with these arguments."""
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=self.folder,
            env={**environment(), **{k: v for k, v in who.items() if v}, **self.certificate},
            start_new_session=True,  # no terminal to ask in
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=400,
        )


def environment() -> dict[str, str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_TRACKING")}
    return {**clean, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A server on a free port, with its users."""
    folder = tmp_path_factory.mktemp("server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    bin_first = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            ["bash", "-c", SERVER.replace("PORT", str(port))],
            cwd=folder,
            env={**environment(), "PATH": bin_first, "MLFLOW_AUTH_ADMIN_PASSWORD": ADMIN},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        certificate = {"MLFLOW_TRACKING_SERVER_CERT_PATH": str(folder / "cert.pem")}
        at = Place(f"https://127.0.0.1:{port}", tmp_path_factory.mktemp("here"), certificate)
        wait_until_healthy(at.uri, server, folder / "cert.pem")
        (at.folder / "toy.py").write_text(STUDY)
        make_users(at)
        yield at
    finally:
        os.killpg(server.pid, 9)
        server.wait()


def make_users(at: Place) -> None:
    """One who runs studies, and one who may only read."""
    admin = {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": ADMIN}
    made = at.python("-W", "ignore", "-c", USERS, at.uri, USER, who=admin)
    assert made.returncode == 0, made.stderr


def wait_until_healthy(uri: str, server: subprocess.Popen[bytes], certificate: Path) -> None:
    end = time.monotonic() + 400
    while True:
        try:
            known = ssl.create_default_context(cafile=certificate)
            with urllib.request.urlopen(f"{uri}/health", timeout=10, context=known):
                return
        except OSError:  # no certificate yet, no answer yet
            assert server.poll() is None, "the server has ended"
            assert time.monotonic() < end, "waited in vain"
            time.sleep(0.1)


RUN = "harness.study --space toy.py --device cpu"
COMMANDS = (
    RUN,
    "harness.sync --study toy",
    "analysis.report --study toy",
)


def test_whoever_knows_the_password_works_and_nothing_holds_it_afterwards(place: Place) -> None:
    said = ""
    for command in COMMANDS:
        done = place.run(command, "study", USER)
        assert done.returncode == 0, done.stderr
        said += done.stdout + done.stderr
    assert "study toy: 2 trials in the record, and MLflow shows them as they are" in said
    assert "also an artifact of run" in said
    assert "View run" not in said, "MLflow's own lines about every run"
    assert "ca-na-ry" not in said
    for folder in (place.folder, *place.folder.parent.glob("server*")):
        for path in folder.rglob("*"):
            assert not path.is_file() or b"ca-na-ry" not in path.read_bytes(), path
    assert list(place.folder.parent.glob("server*/basic_auth.db"))


@pytest.mark.parametrize(
    ("command", "user", "password"),
    [(RUN, "", ""), *((command, "study", "ca-na-ry-guessed") for command in COMMANDS)],
)
def test_whoever_does_not_is_told_what_to_set(
    place: Place, command: str, user: str, password: str
) -> None:
    done = place.run(command, user, password)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "it requires a user and a password; those in ~/.mlflow/credentials, or in" in done.stderr
    assert "ca-na-ry" not in done.stdout + done.stderr


def test_whoever_may_only_read_is_told_before_anything_runs(place: Place) -> None:
    assert place.run(RUN, "study", USER).returncode == 0
    refused = place.run(RUN, "reader", "ca-na-ry-of-the-reader")
    assert refused.returncode == 2
    assert "has no permission for this study" in refused.stderr
    assert not list(place.folder.rglob("*.jsonl")), "something was kept to be sent later"
