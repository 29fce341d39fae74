"""What does a study file say? Its `study`, or one line about what is wrong with the file."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import sys
import traceback
from pathlib import Path
from typing import Any

from harness.spec import SAFE_NAME, Study, UserError

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
        UserError: naming the file, the line and what is wrong.
    """
    if not path.is_file():
        raise UserError(f"space file {path} {'is a folder' if path.is_dir() else 'does not exist'}")
    spec = importlib.util.spec_from_file_location("study_file", path)
    if path.suffix != ".py" or spec is None or spec.loader is None:
        raise UserError(f"space file {path} is not a Python file (.py)")
    module = importlib.util.module_from_spec(spec)
    sys.modules["study_file"] = module  # dataclasses and pickling look a module up by its name
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise UserError(f"space file {path}:{error.lineno}: syntax error: {error.msg}") from error
    except UserError as error:
        raise UserError(f"space file {path}: {error}") from error
    except (Exception, SystemExit) as error:  # whatever the user's code raises
        lines = [
            f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == spec.origin
        ]
        where = f"{path}:{lines[-1]}" if lines else str(path)
        raise UserError(f"space file {where}: {type(error).__name__}: {error}") from error
    return vars(module)


def question_of(path: Path) -> str:
    """The docstring of a study file that was loaded before: the question, the command, the answer."""
    return ast.get_docstring(ast.parse(path.read_bytes())) or ""
