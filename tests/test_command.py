"""What every command says to input that is wrong: one line, exit code 2; and how sizes are read."""

from __future__ import annotations

import importlib
import importlib.util
import io
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType

import pytest

from harness.core.command_line import run_command
from harness.core.errors import UserError
from harness.core.units import format_bytes, parse_size
from tests.processes import ROOT, environment, output_of, python
from tests.refusals import refused

NEEDED: Mapping[str, tuple[str, ...]] = {
    "analysis.recommend": ("--study", "x"),
    "analysis.report": ("--study", "x"),
    "harness.average": ("--study", "x"),
    "harness.bundle": ("--study", "x", "--out", "x.zip"),
    "harness.cache": (),
    "harness.export": ("--study", "x"),
    "harness.lr_find": ("--space", "x.py"),
    "harness.new": ("--target", "digits"),
    "harness.predict": ("model", "image.png"),
    "harness.pretrain": ("--space", "x.py"),
    "harness.rank": ("--target", "digits"),
    "harness.replay": ("id",),
    "harness.similarity": ("--space", "x.py"),
    "harness.status": ("--study", "x"),
    "harness.study": ("--space", "x.py"),
    "harness.sync": ("x",),
}
"""Command -> what it cannot do without."""


def said(command: str, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a command refuses its arguments with."""
    assert main_of(command)(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("error: ")
    return err.removeprefix("error: ").rstrip()


def docs_hooks() -> ModuleType:
    """What makes the pages of commands."""
    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "docs" / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_command_is_in_the_table() -> None:
    assert docs_hooks().commands() == sorted(NEEDED)


def main_of(command: str) -> Callable[[Sequence[str]], int]:
    """The function behind `python -m COMMAND`."""
    package = importlib.util.find_spec(command)
    assert package is not None
    name = f"{command}.__main__" if package.submodule_search_locations else command
    main: Callable[[Sequence[str]], int] = importlib.import_module(name).main
    return main


@pytest.mark.parametrize("command", NEEDED)
def test_help_explains_every_option_within_80_columns_of_ascii(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", plain)
    monkeypatch.setenv("COLUMNS", "80")
    assert main_of(command)(["--help"]) == 0
    plain.seek(0)
    lines = plain.read().splitlines()
    assert lines[0].startswith(f"Usage: python -m {command} ")
    assert max(map(len, lines)) <= 80
    options = [line for line in lines if re.match(r"\| [ *]*([A-Z-]+ )?--\w", line)]
    assert options
    for line in options:
        assert re.search(r"--\S+( [A-Z|./=]+)* {2,}\w", line), line


def test_help_is_printed_in_a_terminal_of_one_column() -> None:
    done = python("-m", "harness.status", "--help", more={"COLUMNS": "1"}, timeout=60)
    assert done.returncode == 0
    assert "--tracking-uri" in done.stdout


def test_help_imports_nothing_heavy() -> None:
    code = f"""
import sys
from tests.test_command import main_of
for command in {[c for c in NEEDED if c != "harness.similarity"]}:  # the package of measures
    assert main_of(command)(["--help"]) == 0
    heavy = {{"torch", "timm", "mlflow", "optuna", "sklearn", "torchvision", "pandas", "matplotlib"}}
    heavy &= {{*sys.modules}}
    assert not heavy, (command, heavy)
"""
    assert "--space" in output_of("-c", code)


@pytest.mark.parametrize("command", NEEDED)
def test_unknown_option_is_refused_in_one_line(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = said(command, [*NEEDED[command], "--zzz"], capsys)
    assert "--zzz" in line


@pytest.mark.parametrize("command", [c for c in NEEDED if NEEDED[c]])
def test_missing_argument_is_named(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = said(command, [], capsys)
    if NEEDED[command][0].startswith("--"):
        assert NEEDED[command][0] in line


@pytest.mark.parametrize(
    ("command", "arguments", "line"),
    [
        ("study", ["--trails", "3"], "Unknown option: --trails. Did you mean --trials?"),
        ("study", ["--trials", "many"], 'Invalid value for --trials: unable to convert "many" into int'),
        ("study", ["--max-minutes=1h"], 'Invalid value for --max-minutes: unable to convert "1h"'),
        ("study", ["--engine=dask"], 'Invalid value "dask" for --engine. Choose from: "processes", "ray"'),
        ("study", ["--max-memory", "lots"], "Invalid value for --max-memory: size 'lots' is not valid"),
        ("study", ["--cache-budget", "-1"], "Invalid value for --cache-budget: size '-1' is not"),
        ("study", ["--trials"], "Parameter --trials requires an argument"),
        ("study", ["y.py"], "unexpected arguments: y.py; --help"),
        ("replay", ["--cache-budget", "8 gigs"], "Invalid value for --cache-budget: size '8 gigs' is not"),
        ("predict", ["--top=0"], "--top must be at least 1, got 0"),
        ("average", ["--members=0"], "--members must be at least 1, got 0"),
        ("export", ["--register", "a/b"], "--register 'a/b': a name in MLflow's registry cannot"),
        ("lr_find", ["--steps", "9"], "--steps must be at least 10 and --highest above 0"),
        ("rank", ["--images", "9"], "--images must be at least 10, got 9"),
        ("similarity", ["--resamples=-1"], "--resamples must be at least 0, got -1"),
        ("analysis.recommend", ["--max-memory", "8 apples"], "Invalid value for --max-memory: size '8 ap"),
        ("analysis.recommend", ["--max-minutes", "0"], "--max-minutes must be above 0, got 0"),
        ("analysis.recommend", ["--max-latency-ms", "0"], "--max-latency-ms must be above 0, got 0"),
        ("predict", [""], "argument 3 is empty; give a value, or leave it out"),
        ("study", ["--tracking-uri", ""], "the value of --tracking-uri is empty; give a value"),
        ("export", ["--out="], "the value of --out is empty; give a value"),
    ],
)  # fmt: skip
def test_wrong_value_is_refused_before_anything_is_read(
    command: str, arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name = command if "." in command else f"harness.{command}"
    needed = NEEDED[name]  # none of the files and studies in it exists
    assert said(name, [*needed, *arguments], capsys).startswith(line)


# --- sizes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "words"), [(5, "5 B"), (1536, "1.5 KiB"), (3 * 2**30, "3 GiB")])
def test_bytes_are_said_as_people_say_them(size: int, words: str) -> None:
    assert format_bytes(size) == words


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("8GiB", 8 * 2**30),
        ("8 gib", 8 * 2**30),
        ("500MB", 500_000_000),
        ("2G", 2 * 2**30),
        ("1.5K", 1536),
        ("1TB", 10**12),
        (" 1000 ", 1000),
        ("12B", 12),
        ("0", 0),
    ],
)
def test_sizes_are_read_as_coreutils_does(text: str, wanted: int) -> None:
    assert parse_size(text) == wanted


@pytest.mark.parametrize(
    "text", ["9" * 400, "", "GiB", "-1GB", "8 gigs", "1e9", "1,5G", "nan", "8GiB4"]
)
def test_size_that_is_none_is_refused(text: str) -> None:
    with refused("is not valid; write"):
        parse_size(text)


def test_closed_streams_are_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)

    def speaks() -> int:
        print("said to nobody")
        return 0

    assert run_command(speaks) == 0


PRINTS = """
import sys
from harness.core.command_line import run_command
from harness.core.errors import UserError
sys.stdin.close()
sys.exit(run_command(lambda: [print("x" * 100) for _ in range(10_000)] and 0))
"""


def test_closed_pipe_ends_the_command_without_a_traceback() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-c", PRINTS],
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=writing,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is full")
def test_full_disk_ends_the_command_in_one_line() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", PRINTS],
            env=environment(),
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
        )
    wanted = b"error: No space left on device; free some and run it again\n"
    assert (done.returncode, done.stderr) == (1, wanted)


def test_current_folder_that_was_deleted_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (gone := tmp_path / "gone").mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert run_command(lambda: 0) == 2
    assert capsys.readouterr().err.startswith("error: the current folder was deleted")


def test_error_is_told_where_its_letters_are_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="backslashreplace")
    monkeypatch.setattr(sys, "stderr", plain)

    def fails() -> int:
        raise UserError("no class 'Kätzchen'")

    assert run_command(fails) == 2
    plain.seek(0)
    assert plain.read() == "error: no class 'K\\xe4tzchen'\n"
