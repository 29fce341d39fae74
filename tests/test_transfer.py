"""Every strategy as a table."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from harness import strategies
from harness.core.strategies import (
    L2SP,
    LPFT,
    BiasOnly,
    DiscriminativeLR,
    FeatureTransfer,
    FullFineTune,
    GradualUnfreezing,
    LastBlock,
    LastK,
    LinearProbe,
    LoRA,
    NormOnly,
    Scales,
    Strategy,
    Surgical,
    TwoPhase,
    names,
    to_flat,
)
from tests.refusals import refused

OURS = {name: kind for name, kind in names().items() if kind.__module__ == strategies.__name__}
"""Other tests define strategies of their own."""
N = None
TABLE: list[tuple[Strategy, int, int, Scales]] = [
    (LinearProbe(), 2, 0, (N, 1.0)),
    (LinearProbe(), 5, 0, (N, N, N, N, 1.0)),
    (LinearProbe(), 5, 99, (N, N, N, N, 1.0)),
    (LastBlock(), 2, 0, (1.0, 1.0)),
    (LastBlock(), 5, 7, (N, N, N, 1.0, 1.0)),
    (FullFineTune(), 2, 0, (1.0, 1.0)),
    (FullFineTune(), 4, 3, (1.0, 1.0, 1.0, 1.0)),
    (DiscriminativeLR(decay=0.5), 2, 0, (0.5, 1.0)),
    (DiscriminativeLR(decay=0.5), 4, 9, (0.125, 0.25, 0.5, 1.0)),
    (DiscriminativeLR(decay=1.0), 3, 0, (1.0, 1.0, 1.0)),
    (DiscriminativeLR(), 3, 0, (0.5625, 0.75, 1.0)),
    (GradualUnfreezing(every=1), 4, 0, (N, N, N, 1.0)),
    (GradualUnfreezing(every=1), 4, 1, (N, N, 1.0, 1.0)),
    (GradualUnfreezing(every=1), 4, 2, (N, 1.0, 1.0, 1.0)),
    (GradualUnfreezing(every=1), 4, 3, (1.0, 1.0, 1.0, 1.0)),
    (GradualUnfreezing(every=1), 4, 50, (1.0, 1.0, 1.0, 1.0)),
    (GradualUnfreezing(every=3), 3, 2, (N, N, 1.0)),
    (GradualUnfreezing(every=3), 3, 3, (N, 1.0, 1.0)),
    (GradualUnfreezing(every=3), 3, 5, (N, 1.0, 1.0)),
    (GradualUnfreezing(every=3), 3, 6, (1.0, 1.0, 1.0)),
    (GradualUnfreezing(every=2), 2, 1, (N, 1.0)),
    (LastK(k=1), 3, 0, (N, N, 1.0)),
    (LastK(k=3), 5, 4, (N, N, 1.0, 1.0, 1.0)),
    (LastK(k=9), 3, 0, (1.0, 1.0, 1.0)),
    (Surgical(block=0), 4, 0, (1.0, N, N, 1.0)),
    (Surgical(block=2), 4, 5, (N, N, 1.0, 1.0)),
    (Surgical(block=-2), 5, 0, (N, N, N, 1.0, 1.0)),
    (Surgical(block=-4), 4, 0, (1.0, N, N, 1.0)),
    (TwoPhase(head_epochs=2, lower=0.1), 4, 1, (N, N, N, 1.0)),
    (TwoPhase(head_epochs=2, lower=0.1), 4, 2, (N, N, 0.1, 0.1)),
    (LPFT(head_epochs=1, lower=0.5), 3, 0, (N, N, 1.0)),
    (LPFT(head_epochs=1, lower=0.5), 3, 1, (0.5, 0.5, 0.5)),
    (NormOnly(), 3, 0, (1.0, 1.0, 1.0)),
    (BiasOnly(), 3, 0, (1.0, 1.0, 1.0)),
    (L2SP(), 3, 0, (1.0, 1.0, 1.0)),
    (LoRA(), 3, 0, (1.0, 1.0, 1.0)),
    (FeatureTransfer(), 3, 0, (N, N, N)),
]


@pytest.mark.parametrize(("strategy", "num_groups", "epoch", "scales"), TABLE, ids=repr)
def test_strategy_gives_this_row_of_scales(
    strategy: Strategy, num_groups: int, epoch: int, scales: Scales
) -> None:
    assert strategy.lr_scales(num_groups, epoch) == scales


def test_every_strategy_is_in_the_table() -> None:
    assert {type(row[0]) for row in TABLE} == set(OURS.values())


@pytest.mark.parametrize("kind", OURS.values())
@pytest.mark.parametrize("num_groups", [2, 3, 14])
@pytest.mark.parametrize("epoch", [0, 1, 30])
def test_every_row_covers_all_groups_and_never_freezes_by_a_rate_of_zero(
    kind: type[Strategy], num_groups: int, epoch: int
) -> None:
    strategy = kind()
    scales = strategy.lr_scales(num_groups, epoch)
    assert len(scales) == num_groups
    # At rate 0 a frozen group's gradients and batch statistics would still be computed: None it is.
    assert all(s is None or 0 < s <= 1 for s in scales)
    # The head is new: it trains, unless no gradient step is taken at all.
    assert (scales[-1] is None) == (strategy.classifier != "head")


def test_name_of_a_strategy_of_the_harness_is_refused_for_another() -> None:
    with refused(r"FullFineTune in .*: the harness already has one of that name"):
        type("FullFineTune", (Strategy,), {"lr_scales": FullFineTune.lr_scales})
    assert names()["FullFineTune"] is FullFineTune


def test_strategies_say_what_is_no_matter_of_learning_rates() -> None:
    said = {
        kind: (s.tuned, s.classifier, s.l2_sp, s.lora_rank)
        for kind, cls in OURS.items()
        if (s := cls()) and (s.tuned, s.classifier, s.l2_sp, s.lora_rank) != ("all", "head", 0.0, 0)
    }
    assert said == {
        "NormOnly": ("norm", "head", 0.0, 0),
        "BiasOnly": ("bias", "head", 0.0, 0),
        "L2SP": ("all", "head", 0.1, 0),
        "LoRA": ("lora", "head", 0.0, 8),
        "FeatureTransfer": ("all", "logistic", 0.0, 0),
    }


@pytest.mark.parametrize(
    "make",
    [
        lambda: DiscriminativeLR(decay=0.0),
        lambda: DiscriminativeLR(decay=-0.5),
        lambda: DiscriminativeLR(decay=1.01),
        lambda: DiscriminativeLR(decay=float("nan")),
        lambda: GradualUnfreezing(every=0),
        lambda: GradualUnfreezing(every=-1),
        lambda: GradualUnfreezing(every=1.5),  # type: ignore[arg-type]
        lambda: LastK(k=0),
        lambda: TwoPhase(head_epochs=0),
        lambda: TwoPhase(lower=0.0),
        lambda: LPFT(head_epochs=-1),
        lambda: LPFT(lower=float("nan")),
        lambda: L2SP(weight=0.0),
        lambda: LoRA(rank=0),
        lambda: FeatureTransfer("svm"),  # type: ignore[arg-type]
    ],
)
def test_bad_parameters_are_refused_by_name(make: Callable[[], Strategy]) -> None:
    with pytest.raises(ValueError, match=r"^[A-Z]\w+: \w+ must be"):
        make()


def test_flat_form_names_the_class_and_its_fields() -> None:
    assert to_flat(DiscriminativeLR(0.6)) == {
        "strategy": "DiscriminativeLR",
        "strategy.decay": 0.6,
    }
    assert to_flat(LinearProbe()) == {"strategy": "LinearProbe"}


def test_strategies_are_values() -> None:
    assert GradualUnfreezing(2) == GradualUnfreezing(2) != GradualUnfreezing(3)
    assert len({LinearProbe(), LinearProbe(), LastBlock()}) == 2


def test_misspelt_strategy_is_answered_with_the_ones_there_are() -> None:
    with pytest.raises(AttributeError, match=r"unknown strategy LinearProb; known: .*LinearProbe"):
        getattr(strategies, "LinearProb")  # noqa: B009 # as a study file would write it


def test_strategy_made_of_another_is_known_by_its_name() -> None:
    class Halved(Strategy):
        pass

    class Quartered(Halved):
        pass

    assert {"Halved", "Quartered"} <= names().keys()
