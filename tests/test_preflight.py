"""What is refused before anything is trained or recorded."""

from __future__ import annotations

import dataclasses
from importlib.util import find_spec
from typing import Any

import optuna
import pytest
from optuna.trial import BaseTrial

from harness import strategies
from harness.core.errors import UserError
from harness.core.spec import TrialSpec
from harness.search import preflight
from harness.search.preflight import check_study
from tests.lab import make_study, space
from tests.refusals import refused
from tests.trials import MakeSpec

needs_peft = pytest.mark.skipif(find_spec("peft") is None, reason="extra lora is not installed")


def scratch(**changes: Any) -> MakeSpec:
    def made(trial: BaseTrial, strategy: str) -> TrialSpec:
        plain = dataclasses.replace(space(trial, strategy), source="scratch", resolution=32)
        return dataclasses.replace(plain, **{k: v(strategy) for k, v in changes.items()})

    return made


def test_door_shows_the_first_spec_of_every_cell() -> None:
    specs = check_study(make_study(space=scratch())).specs
    assert {k: type(s.strategy).__name__ for k, s in specs.items()} == {
        "probe": "LinearProbe", "full": "FullFineTune",
    }  # fmt: skip


def test_checks_at_the_start_show_no_lines_of_optunas_log(caplog: pytest.LogCaptureFixture) -> None:
    optuna.logging.enable_propagation()
    try:
        check_study(make_study(space=scratch()))
    finally:
        optuna.logging.disable_propagation()
    assert caplog.messages == []


@pytest.mark.parametrize("name", ["shots", "val_shots", "test_shots"])
def test_cell_whose_split_is_impossible_is_refused_before_the_study_starts(name: str) -> None:
    sizes = scratch(
        **{name: lambda strategy: 5 if strategy == "probe" else 500}, exact_shots=lambda _: True
    )
    with refused("too few"):
        check_study(make_study(space=sizes))


def test_resolution_that_a_network_cannot_take_is_refused_before_the_study_starts() -> None:
    tiny = scratch(resolution=lambda _: 33, backbone=lambda _: "test_vit")
    with refused(r"test_vit .*33"):
        check_study(make_study(space=tiny))


@pytest.mark.parametrize(
    ("changes", "said"), [({"augment": "token_dropout"}, "augment"), ({"shifts": "typos"}, "shift")]
)
def test_policies_of_another_medium_are_refused_in_every_cell(
    changes: dict[str, str], said: str
) -> None:
    def one(strategy: str, value: str, default: str) -> str:
        return value if strategy == "full" else default

    ((name, value),) = changes.items()
    default = "none" if name == "augment" else ""
    odd = scratch(**{name: lambda strategy: one(strategy, value, default)})
    with pytest.raises(UserError, match=f"{said} '{value}' is not for 32 x 32 pixels"):
        check_study(make_study(space=odd))


@pytest.mark.parametrize(
    ("strategy", "backbone", "depth", "said"),
    [
        (
            strategies.NormOnly(),
            "test_nfnet",
            None,
            "normalisation layers, which test_nfnet does not",
        ),
        (
            strategies.NormOnly(),
            "test_vit",
            1,
            "layers, which test_vit at depth 1 does not have below",
        ),
        (strategies.LoRA(2), "test_resnet", None, r"attention layers \(qkv, proj\), .* use a vit_"),
        (strategies.LoRA(2), "test_efficientnet", None, r"attention layers \(qkv, proj\)"),
        pytest.param(strategies.LoRA(2), "test_vit", 1, "test_vit at depth 1", marks=needs_peft),
    ],
)
def test_strategy_that_would_train_only_the_head_is_refused_in_every_cell(
    strategy: strategies.Strategy, backbone: str, depth: int | None, said: str
) -> None:
    """As in a linear probe: what the strategy trains is not in the network."""
    probe = strategies.LinearProbe()
    odd = scratch(
        strategy=lambda cell: strategy if cell == "full" else probe,
        backbone=lambda _: backbone,
        depth=lambda _: depth,
    )
    with refused(f"strategy {type(strategy).__name__} needs .*{said}"):
        check_study(make_study(space=odd))


def test_strategy_that_freezes_everything_for_an_epoch_is_refused_before_the_study_starts() -> None:
    @dataclasses.dataclass(frozen=True)
    class Rests(strategies.Strategy):
        def lr_scales(self, num_groups: int, epoch: int) -> strategies.Scales:
            return (None,) * num_groups if epoch == 1 else (1.0,) * num_groups

    def resting(trial: BaseTrial, strategy: str) -> TrialSpec:
        spec = space(trial, "full")
        return dataclasses.replace(spec, strategy=Rests(), epochs=2, source="scratch")

    with refused("freezes every group in epoch 1"):
        check_study(make_study(space=resting))


def test_limit_of_memory_that_no_forecast_can_keep_is_refused_before_the_study_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def by_values(spec: TrialSpec) -> None:
        raise UserError("depends on values")

    monkeypatch.setattr(preflight, "forecast", by_values)
    check_study(make_study(space=scratch()))
    with refused("depends on values"):
        check_study(make_study(space=scratch()), memory_is_limited=True)


@pytest.mark.parametrize(
    ("cells", "repeats", "noted"),
    [(6, 5, True), (6, 8, False), (2, 5, False), (2, 3, True), (6, 1, False)],
)
def test_repeats_that_confirm_only_large_differences_are_noted(
    cells: int, repeats: int, noted: bool
) -> None:
    """15 pairs at .05 need t = 6.25 with 5 seeds: 2 standard deviations are too few."""

    def same(trial: BaseTrial, arm: str) -> TrialSpec:
        return scratch()(trial, "probe")

    study = dataclasses.replace(
        make_study(space=same),
        baseline={},
        compare={"arm": [f"arm {i}" for i in range(cells)]},
        repeats=repeats,
    )
    notes = [n for n in check_study(study).notes if "power the report detects" in n]
    assert len(notes) == noted
    if (cells, repeats) == (6, 5):
        assert (
            "3.5 standard deviations (of the paired differences over seeds); 8 repeats" in notes[0]
        )
