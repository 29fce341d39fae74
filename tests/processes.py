"""Python programs that tests run as processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Collection, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
NONE: Mapping[str, str] = {}


def environment(without: Collection[str] = (), more: Mapping[str, str] = NONE) -> dict[str, str]:
    """That of the tests, with the checkout on Python's path and one thread."""
    kept = {name: value for name, value in os.environ.items() if name not in without}
    return {**kept, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}


def python(
    *words: str,
    folder: Path | None = None,
    given: str | None = None,
    without: Collection[str] = (),
    more: Mapping[str, str] = NONE,
    timeout: float = 600,
) -> subprocess.CompletedProcess[str]:
    """What Python does with these words.

    Args:
        words: arguments of the interpreter.
        folder: where it runs.
        given: its input.
        without: environment variables that are taken away.
        more: environment variables that are set.
        timeout: seconds until it is ended.
    """
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env=environment(without, more),
        input=given,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def output_of(*words: str, without: Collection[str] = (), more: Mapping[str, str] = NONE) -> str:
    """What a program prints that does well."""
    done = python(*words, without=without, more=more)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
