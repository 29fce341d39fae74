"""Errors for bad input and refused access, with messages of one line and without passwords."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any


class UserError(Exception):
    """Bad input; the message says in one line what is wrong and what to do. Exit code 2."""


class UnknownName(UserError):
    """No strategy, target or backbone has this name; a study file may define it."""


def few(items: Sequence[str], most: int = 5, separator: str = "; ") -> str:
    """The first of these items, and how many more there are."""
    more = f" (and {len(items) - most} more)" if len(items) > most else ""
    return separator.join(items[:most]) + more


def counted(number: object, noun: str) -> str:
    """The number with its noun, which gets an "s" unless the number is 1."""
    return f"{number} {noun}{'s' * (str(number) != '1')}"


def quoted(names: Sequence[str]) -> str:
    """The first of these names, in quotes, and how many more there are."""
    return few([repr(name) for name in names], 12, ", ")


def optional_library(name: str, refusal: str) -> Any:
    """The module of that name, which only some users need.

    Raises:
        UserError: with the refusal, which says how to install it, if it is not installed.
    """
    try:
        return import_module(name)
    except ImportError:
        raise UserError(refusal) from None


def require_count(what: str, value: object, least: int = 1) -> None:
    """Refuse anything but a whole number of at least `least`.

    Raises:
        UserError: naming `what`.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UserError(f"{what} must be a whole number of at least {least}, got {value!r}")


def without_password(text: str) -> str:
    """`text` with *** instead of every password in a URL, in its query or in a database's "password=..."."""
    text = re.sub(r"(\w://[^:/@\s]*):\S*@", r"\1:***@", text)
    named = r"\b(\w*(?:passw|pwd|token|secret|api_?key)\w*=)('[^']*'|[^&;'\"\s]*)"
    return re.sub(named, r"\1***", text, flags=re.IGNORECASE)


def message_of(error: BaseException) -> str:
    """An error's message, with "?" for characters that cannot be encoded; "" if its `__str__` fails, as that
    of a user's exception may."""
    try:
        return str(error).encode("utf-8", "replace").decode()
    except Exception:
        return ""


def first_line(error: BaseException) -> str:
    """The first line of an error's message without passwords, at most 200 characters; its type if there is no
    message."""
    line = (message_of(error).strip() or type(error).__name__).splitlines()[0]
    line = re.sub(r"^\[Errno \d+\] ", "", line)
    return without_password(line)[:200]  # in this order, because half a URL is not recognised


REFUSALS = {
    "UNAUTHENTICATED": "it requires a user and a password; those in ~/.mlflow/credentials, or in "
    "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, are missing or wrong",
    "PERMISSION_DENIED": "this user has no permission for this study; an administrator of the "
    "server can grant EDIT",
}
"""Error code of a server with authentication -> what to do."""


def refusal(error: BaseException) -> str:
    """Why a tracking store could not be used: what to do if its server refused the user, else the first line
    of the error without passwords."""
    return REFUSALS.get(getattr(error, "error_code", ""), first_line(error))


@contextmanager
def one_line(what: str, hint: str = "") -> Iterator[None]:
    """Turn any exception inside the block into a UserError of one line without passwords, because databases
    and their libraries raise many kinds. A UserError passes through.

    Args:
        what: what failed, e.g. "cannot open the storage X".
        hint: added to the message.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{what}: {refusal(error)}{hint}") from error
