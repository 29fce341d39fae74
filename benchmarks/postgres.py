"""A PostgreSQL server for tests, from Debian's packages, which can be restarted."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

PROGRAMS = max(Path("/usr/lib/postgresql").glob("*/bin"), default=Path("/nowhere"))


class Server:
    """A new server on a free port of 127.0.0.1, in a folder that its user may enter.

    Raises:
        FileNotFoundError: if PostgreSQL is not installed.
    """

    def __init__(self) -> None:
        if not (PROGRAMS / "initdb").exists():
            raise FileNotFoundError("PostgreSQL is not installed (Debian: apt install postgresql)")
        self._folder = Path(tempfile.mkdtemp(prefix="pg-"))
        self._as_user: list[str] = []
        if os.geteuid() == 0:  # the server refuses to run as root
            shutil.chown(self._folder, "postgres")
            self._as_user = "setpriv --reuid postgres --regid postgres --clear-groups".split()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self._call("initdb", "--auth=trust", "--username=study", "--no-sync", "-D", "data")
        self.start()
        self._call(
            "createdb", "--username=study", "-h", "127.0.0.1", f"-p{self._port}", "study",
        )  # fmt: skip

    @property
    def url(self) -> str:
        """URL of the database, for --storage."""
        return f"postgresql+psycopg://study@127.0.0.1:{self._port}/study"

    def start(self) -> None:
        """Start the server, and wait until it accepts connections."""
        options = f"-h 127.0.0.1 -p {self._port} -k {self._folder} -c fsync=off"
        self._call("pg_ctl", "-D", "data", "-w", "-t", "120", "-l", "log", "-o", options, "start")

    def stop(self) -> None:
        """Stop the server at once: connections break, and transactions are lost."""
        self._call("pg_ctl", "-D", "data", "-w", "-t", "120", "-m", "immediate", "stop")

    def remove(self) -> None:
        """Stop the server and delete its folder."""
        try:
            self.stop()
        finally:
            shutil.rmtree(self._folder)

    def _call(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [*self._as_user, str(PROGRAMS / program), *arguments],
            cwd=self._folder,
            stdout=subprocess.DEVNULL,  # the server inherits it, and a pipe would stay open
            stderr=subprocess.DEVNULL,
            check=False,
        )
        assert done.returncode == 0, f"{program} ended with {done.returncode}"
