"""Make commands from typed functions: options from signature and docstring, one-line errors, exit codes."""

from __future__ import annotations

import errno
import functools
import inspect
import io
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, TypeVar

from cyclopts import App, CycloptsError, Group, Parameter, UnusedCliTokensError

from harness.core.caller import undisturbed
from harness.core.errors import UserError
from harness.core.units import Seconds, Size

Result = TypeVar("Result")
AS_WRITTEN: dict[str, Any] = {"markup": False, "emoji": False, "highlight": False}
"""Options of rich's console, for which names such as "[bold]" or ":cat:" would have a meaning."""
NARROWEST = 40
"""Characters in a line of --help in an even narrower terminal: with one or two, rich never ends."""
File = Annotated[str | Path, Parameter(metavar="PATH")]
"""A path; from Python it may also be a string."""


def command(
    name: str,
    function: Callable[..., Result],
    show: Callable[[Result], int | None] = lambda _: 0,
    if_stopped: str = "nothing was lost",
) -> Callable[..., int]:
    """The command `python -m NAME`, which calls a function with the command-line arguments.

    Its options are the function's parameters, explained by its docstring.

    Args:
        name: of the module.
        function: what the command does.
        show: prints the result, and returns the exit code if that is not 0.
        if_stopped: end of the message after Ctrl-C.

    Returns:
        A function of the arguments after the name (by default those of this process), which returns the exit
        code.
    """

    @functools.wraps(function)
    def called(*arguments: Any, **options: Any) -> int:
        return show(function(*arguments, **options)) or 0

    # The type of the result may be one that is only imported for type checkers.
    hints = {key: kind for key, kind in function.__annotations__.items() if key != "return"}
    called.__annotations__, called.__doc__ = hints, _unbroken(function.__doc__ or "")

    def main(argv: Sequence[str] | None = None) -> int:
        app = App(
            name=f"python -m {name}",
            version_flags=[],
            help_format="plaintext",  # the others take a tenth of a second more to import
            group_parameters=Group("Options"),
            default_parameter=Parameter(
                negative=(), allow_repeating=True, show_default=lambda value: value or None
            ),
            result_action="return_value",
            suppress_keyboard_interrupt=False,
        )
        app["--help"].show = False
        app.default(called)
        return run_command(lambda: _parse_and_call(app, argv), if_stopped)

    return main


def _parse_and_call(app: App, argv: Sequence[str] | None) -> int:
    words = sys.argv[1:] if argv is None else argv
    _refuse_empty(words)
    if "--help" in words or "-h" in words:
        app.console.width = max(app.console.width, NARROWEST)
    try:
        return app(words, exit_on_error=False, print_error=False) or 0
    except UnusedCliTokensError as error:
        unused = shlex.join(error.unused_tokens or [])
        raise UserError(
            f"unexpected arguments: {unused}; --help lists the expected ones"
        ) from error
    except CycloptsError as error:
        raise UserError(str(error)) from error


def _refuse_empty(words: Sequence[str]) -> None:
    """Refuse an argument without text: as a path, it would be the current folder."""
    for number, word in enumerate(words):
        if not word or re.fullmatch("--[^=]+=", word):
            option = word[:-1] or (words[number - 1] if number else "")
            place = f"the value of {option}" if option.startswith("-") else f"argument {number + 1}"
            raise UserError(f"{place} is empty; give a value, or leave it out")


def _unbroken(docstring: str) -> str:
    """A docstring with each paragraph, and each argument's text, in one line."""
    text = re.sub(r"\n {8,}", " ", inspect.cleandoc(docstring))
    return re.sub(r"(?<=[^\n])\n(?=\S)", " ", text)


def _read_as(kind: Callable[[str], Result]) -> Callable[[object, Sequence[Any]], Result]:
    def read(_: object, tokens: Sequence[Any]) -> Result:
        try:
            return kind(tokens[0].value)
        except UserError as error:
            raise ValueError(str(error)) from error

    return read


TEXT = Parameter(converter=lambda _, tokens: tokens[-1].value, n_tokens=1)
"""For an option that is one string on the command line, while Python callers may give a list."""
SIZE = Parameter(converter=_read_as(Size), metavar="SIZE")
"""For an option that is a number of bytes."""
TIME = Parameter(converter=_read_as(Seconds), metavar="TIME")
"""For an option that is a time."""


def run_command(run: Callable[[], int], if_stopped: str = "nothing was lost") -> int:
    """The exit code of a command: 2 after one line about bad input, 130 on Ctrl-C, 1 on a closed pipe or a
    full disk."""
    # After a shell's >&- there is no such stream, and nothing is printed.
    sys.stdout, sys.stderr = sys.stdout or io.StringIO(), sys.stderr or io.StringIO()
    try:
        with escaped_output(), undisturbed():
            _require_current_folder()
            code = run()
        sys.stdout.flush()
        return code
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"stopped by Ctrl-C; {if_stopped}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        _leave_output()  # the reader has gone (`| head`)
        return 1
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            where = f"{error.filename}: " if error.filename else ""
            print(f"error: {where}{error.strerror}; free some and run it again", file=sys.stderr)
            _leave_output()
            return 1
        if error.errno != errno.ENAMETOOLONG:
            raise
        print(f"error: {error.filename}: the path is too long", file=sys.stderr)
        return 2


def _require_current_folder() -> None:
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise UserError("the current folder was deleted; change to another folder") from error


def _leave_output() -> None:
    """Write no more to standard output: what is still buffered must not raise again at exit."""
    with suppress(io.UnsupportedOperation):  # a stream without a file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def escaped_output() -> Iterator[None]:
    """Print characters that the terminal's encoding lacks as escapes, such as \\u201c, inside the block.
    Otherwise it would raise UnicodeEncodeError."""
    streams = [s for s in (sys.stdout, sys.stderr) if isinstance(s, io.TextIOWrapper)]
    errors = [stream.errors or "strict" for stream in streams]
    for stream, before in zip(streams, errors, strict=True):
        if before == "strict" or not stream.encoding.lower().startswith("utf"):
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        for stream, before in zip(streams, errors, strict=True):
            with suppress(ValueError, OSError):  # it was closed meanwhile
                stream.reconfigure(errors=before)


def program(name: str) -> str:
    """How to call a program of this Python's environment in the shell: by its name if the shell finds this
    program, else by its path, quoted, and relative if it is below the current folder."""
    path = Path(sys.executable).parent / name
    found = shutil.which(name)
    if found and Path(found).parent == path.parent:
        return name
    here = Path.cwd()
    return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))
