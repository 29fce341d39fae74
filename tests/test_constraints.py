"""The exact versions that are offered: of everything, and such as pyproject.toml allows."""

from __future__ import annotations

import importlib.metadata
import tomllib
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
NOT_COVERED = ("bench",)
"""Extras that only compare the harness with others."""


def pinned() -> dict[str, str]:
    """Package -> version, from docs/constraints.txt."""
    lines = (ROOT / "docs" / "constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


def asked_for() -> Iterator[Requirement]:
    """What pyproject.toml asks for, extras included."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert set(NOT_COVERED) <= set(extras)
    covered = [lines for name, lines in extras.items() if name not in NOT_COVERED]
    for line in [*project["dependencies"], *(line for lines in covered for line in lines)]:
        yield Requirement(line)


def test_everything_that_is_asked_for_is_pinned_within_its_range() -> None:
    found = pinned()
    for wanted in asked_for():
        if wanted.name != "transfer-harness":
            name = canonicalize_name(wanted.name)
            assert name in found, wanted
            assert found[name] in wanted.specifier, wanted


def test_what_the_pinned_need_is_pinned_within_their_ranges() -> None:
    """As far as the pinned version is the one installed here: a newer one may need other things."""
    found, seen = pinned(), 0
    for name, version in found.items():
        try:
            here = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if here.version.split("+")[0] != version:
            continue
        seen += 1
        for wanted in map(Requirement, here.requires or ()):
            if wanted.marker is None or wanted.marker.evaluate({"extra": ""}):
                need = canonicalize_name(wanted.name)
                assert need in found, f"{name} {version} needs {wanted}"
                assert found[need] in wanted.specifier, f"{name} {version} needs {wanted}"
    assert seen, "none of the pinned versions is installed here"
