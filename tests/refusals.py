"""Expect input to be refused."""

from __future__ import annotations

import pytest

from harness.core.errors import UserError


def refused(said: str) -> pytest.RaisesExc[UserError]:
    """Expects a UserError of one line in which this regular expression is found."""
    return pytest.raises(UserError, match=rf"\A[^\n]*(?:{said})[^\n]*\Z")
