"""The table of networks in the docs is of this version of the libraries, and says what happens."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest
import timm
import torchvision.models as zoo

from benchmarks.networks import Row, sweep, table

PAGE = Path(__file__).parents[1] / "docs" / "pages" / "networks.md"
CHUNKS = 12


class Listed(NamedTuple):
    """A row of the table."""

    family: str
    name: str
    sizes: tuple[int, ...]


def listed() -> list[Listed]:
    found = re.findall(r"^\| (\S+) \| `(\S+)` \|[^|]*\|[^|]*\| ([^|]*) \|", PAGE.read_text(), re.M)
    return [
        Listed(family, name, tuple(int(s) for s in sizes.split(", ") if s.isdigit()))
        for family, name, sizes in found
    ]


def test_every_family_of_both_libraries_is_on_the_page() -> None:
    """In the table, or named as not tried."""
    families = set(re.findall(r"\b([a-z0-9_]+)\.[A-Z]\w+", PAGE.read_text()))
    assert set(timm.list_modules()) - families <= set()
    named = re.findall(r"`torchvision:([a-z]+)", PAGE.read_text())
    kinds = {re.match(r"[a-z]+", n)[0] for n in zoo.list_models(module=zoo)}  # type: ignore[index]
    assert kinds - set(named) <= {"wide"}


def test_a_row_says_at_which_sizes_a_network_trained_and_which_it_does_not_take() -> None:
    row = Row(
        "x",
        "m.X",
        5,
        (224,),
        1,
        "backbone x does not take 64 x 64 images: resolution can be 224 (E: e)",
    )
    assert table([row]).splitlines()[-1] == (
        "| m.X | `x` | 1 | 5 | 224 | 64: resolution can be 224 |"
    )


@pytest.mark.slow
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_networks_train_or_are_refused_as_the_table_says(chunk: int) -> None:
    wanted = {row.name: row.sizes for row in listed()[chunk::CHUNKS]}
    found = {row.name: row for row in sweep(list(wanted))}
    assert {name: row.failed for name, row in found.items() if row.failed} == {}
    assert {name: row.sizes for name, row in found.items()} == wanted
