"""What does a study file say? Its `study`, or one line about what is wrong with the file.

A study file is code: it may loop for ever, eat all memory or end the process. So it is read twice, the first
time in a child process that has a time limit and a memory limit. That guards against accidents, not malice.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import faulthandler
import hashlib
import importlib.util
import os
import re
import resource
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator, Mapping
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any, NoReturn

from harness.errors import UnknownName, UserError
from harness.spec import SAFE_NAME, Study, unknown_argument

CPU_SECONDS = 10
"""Of computing that reading a study file may take; what is slow belongs into `space`, which runs later."""
WALL_SECONDS = 120
"""So long it may wait for something, e.g. for a slow disk to import torch from."""
LIMIT_BYTES = 8 * 2**30
"""Of memory that a study file may fill while it is read; torch and its like take a tenth of it."""
DONE = "done"

SHIPPED = Path(__file__).parents[1] / "studies"
"""Where the project's own studies are: in a checkout, and beside the packages of an installed wheel."""


def study_path(text: str) -> Path:
    """The study file that `--space TEXT` means: a path, else the name of a shipped study."""
    given = Path(text)
    shipped = SHIPPED / f"{given.stem}.py"
    by_name = text in (given.stem, f"studies/{given.stem}.py")
    return shipped if by_name and not given.exists() and shipped.is_file() else given


def load_study(path: Path) -> Study:
    """The `study` of a study file, named after the file if it has no name.

    Raises:
        UserError: naming the file, the line and what is wrong.
    """
    study = run_file(path).get("study")
    if study is None:
        raise UserError(f"space file {path} defines no `study`; end it with study = Study(...)")
    if not isinstance(study, Study):
        raise UserError(
            f"space file {path}: `study` is a {type(study).__name__}, want harness.spec.Study"
        )
    name = study.name or path.stem
    if not SAFE_NAME.fullmatch(name):
        raise UserError(
            f"study name {name!r} must be letters, digits, '_', '.', '-' "
            "(it is the file's unless Study(name=...) sets it)"
        )
    return dataclasses.replace(study, name=name)


def run_file(path: Path) -> dict[str, Any]:
    """What a study file defines, by name.

    Raises:
        UserError: naming the file, the line and what is wrong; also if reading the file does not end, takes
            too much memory, or ends the process.
    """
    if not path.is_file():
        raise UserError(f"space file {path} {'is a folder' if path.is_dir() else 'does not exist'}")
    spec = importlib.util.spec_from_file_location("study_file", path)
    if path.suffix != ".py" or spec is None or spec.loader is None:
        raise UserError(f"space file {path} is not a Python file (.py)")
    if complaint := _complaint_of_a_child(path):
        raise UserError(complaint)
    return _execute(path, spec)


def _execute(path: Path, spec: ModuleSpec) -> dict[str, Any]:
    module = importlib.util.module_from_spec(spec)
    sys.modules["study_file"] = module  # dataclasses and pickling look a module up by its name
    try:
        assert spec.loader is not None
        spec.loader.exec_module(module)
    except SyntaxError as error:
        line = f":{error.lineno}" if error.lineno else ""  # none when the file is not UTF-8
        raise UserError(f"space file {path}{line}: syntax error: {error.msg}") from error
    except UserError as error:
        raise UserError(f"space file {path}: {error}") from error
    except (Exception, SystemExit) as error:  # whatever the user's code raises
        lines = [
            f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == spec.origin
        ]
        where = f"{path}:{lines[-1]}" if lines else str(path)
        raise UserError(
            f"space file {where}: {type(error).__name__}: {error}{unknown_argument(error)}"
        ) from error
    return vars(module)


def _complaint_of_a_child(path: Path) -> str:
    """What is wrong with the file, found by reading it in a process of its own; "" if nothing is.

    The child's word counts, not its exit code: sys.exit(0) and os._exit(0) end it before it could speak.
    """
    code = f"import sys; sys.path[:] = {sys.path!r}; import harness.study_file as s; s._answer()"
    reading, writing = os.pipe()
    limits = map(str, (writing, CPU_SECONDS, WALL_SECONDS, LIMIT_BYTES))
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(path), *limits],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,  # what the file prints comes when it is read for good
        stderr=subprocess.DEVNULL,
        pass_fds=(writing,),
        start_new_session=True,  # so that what the file starts can be ended with it
    )
    os.close(writing)
    with open(reading, "rb", buffering=0) as pipe:
        try:
            child.wait(WALL_SECONDS + 30)  # it ends itself, unless it was stopped
        except subprocess.TimeoutExpired:
            pass
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            code_of_exit = child.wait()
        os.set_blocking(reading, False)  # a process that left the session may hold the other end
        said = (pipe.read(1 << 16) or b"").decode(errors="replace")
    if said == DONE:
        return ""
    if said.startswith("space file "):
        return said
    line = re.search(rf'"{re.escape(os.path.abspath(path))}", line (\d+)', said)
    where = f"{path}:{line[1]}" if line else str(path)
    if said.startswith("Timeout"):
        return f"space file {where}: reading it took more than {WALL_SECONDS} s; what does it wait for?"
    if code_of_exit == -signal.SIGXCPU:
        return f"space file {where}: reading it took more than {CPU_SECONDS} s of computing; does it loop?"
    how = f"signal {-code_of_exit}" if code_of_exit < 0 else f"exit code {code_of_exit}"
    return f"space file {path} ended the process that read it ({how})"


def _answer() -> NoReturn:
    """What the child does: read the file within the limits, and say what is wrong with it or DONE."""
    path, pipe, cpu, wall, size = sys.argv[1], *map(int, sys.argv[2:])
    for kind, limit in ((resource.RLIMIT_CPU, cpu), (resource.RLIMIT_DATA, size)):
        hard = resource.getrlimit(kind)[1]
        allowed = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (allowed, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    faulthandler.register(signal.SIGXCPU, file=pipe, chain=True)  # says where, then ends
    faulthandler.dump_traceback_later(wall, exit=True, file=pipe)
    sys.argv[1:] = []
    spec = importlib.util.spec_from_file_location("study_file", path)
    assert spec is not None
    try:
        _execute(Path(path), spec)
        said = DONE
    except UserError as error:
        said = str(error)
    faulthandler.cancel_dump_traceback_later()
    os.write(pipe, said.encode(errors="backslashreplace")[:4000])
    os._exit(0)


@contextlib.contextmanager
def names_of(space: Path | None, tags: Mapping[str, str]) -> Iterator[None]:
    """In the block, the strategies, backbones and targets that a study file defines are known.

    Args:
        space: the file, whose code is run; None if it defines none.
        tags: of a run, one of which names the file that it is of.

    Raises:
        UserError: if the file cannot be read, or in place of UnknownName, with what to add.
    """
    if space is not None:
        load_study(space)
    try:
        yield
    except UnknownName as error:
        hint = f"where {tags.get('study_file', 'the study file')} defines it, add --space FILE"
        if space is not None:
            hint = f"{space} does not define it either"
        raise UserError(f"{error}; {hint}") from error


def study_sha256(path: Path) -> str:
    """Hash of a study file that was loaded before."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def study_file_tags(path: Path) -> dict[str, str]:
    """Tags that say which study file a run is of: its name, without its folder, and its hash."""
    return {"study_file": path.name, "sha256.study_file": study_sha256(path)}


def question_of(path: Path) -> str:
    """The docstring of a study file that was loaded before: the question, the command, the answer."""
    return ast.get_docstring(ast.parse(path.read_bytes())) or ""
