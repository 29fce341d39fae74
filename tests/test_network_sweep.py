"""The table of networks in the docs is of this version of the libraries, and says what happens."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest
import timm
import torchvision.models as zoo

from benchmarks.networks import Row, sweep, table

PAGE = Path(__file__).parents[1] / "docs" / "pages" / "networks.md"
SAMPLE = (
    # timm's groups by depth: of a CNN, of a transformer with tokens, of both in one
    *("test_resnet", "test_convnext", "test_nfnet", "test_vit", "test_coatnet", "starnet_s050"),
    *("csatv2", "pit_ti_224"),  # groups by the stages of timm's feature extraction
    *("deit_tiny_distilled_patch16_224", "levit_128s"),  # two classifiers
    *("crossvit_tiny_240", "efficientvim_m1_dist"),  # a list of classifiers, two such lists
    *("repvit_m1", "dla46x_c", "cpubone_nano"),  # classifiers that are no linear layer of torch's
    *("halonet_h1", "inception_v3"),  # some input sizes only
    "fastvit_t8",  # contiguous memory order
    *("qwen3_vit_88m_enc", "mobilenetv5_300m_enc"),  # encoders, which are refused
    # torchvision's groups: by names of the stages, by the order of the modules
    *("torchvision:resnet18", "torchvision:mobilenet_v2", "torchvision:mobilenet_v3_small"),
    *("torchvision:shufflenet_v2_x0_5", "torchvision:swin_t"),
    *("torchvision:squeezenet1_1", "torchvision:mnasnet0_5", "torchvision:regnet_x_400mf"),
)
"""A small network for every way in which groups, classifiers, input sizes and memory order are found."""


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
    # Other tests register networks of their own in timm's table.
    theirs = {m for m in timm.list_modules() if find_spec(f"timm.models.{m}")}
    assert theirs - families == set()
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
def test_networks_train_or_are_refused_as_the_table_says() -> None:
    rows = {row.name: row.sizes for row in listed()}
    found = {row.name: row for row in sweep(list(SAMPLE))}
    assert {name: row.failed for name, row in found.items() if row.failed} == {}
    assert {name: row.sizes for name, row in found.items()} == {name: rows[name] for name in SAMPLE}
