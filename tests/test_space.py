"""What a study's `space` may draw and return: the first trial of each cell is drawn before a study starts."""

from __future__ import annotations

import dataclasses
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import pytest
import torch
from optuna.trial import BaseTrial

from harness import strategies
from harness.core.spec import TrialSpec
from harness.core.study import Study
from harness.search import preflight
from harness.search.space import first_draw
from tests.refusals import refused


def study_with(space: Callable[..., object]) -> Study:
    return Study(compare={"strategy": ["a"]}, space=space, name="toy")  # type: ignore[arg-type]


def draw(space: Callable[..., object]) -> TrialSpec:
    """The first trial of a study with that space."""
    return first_draw(study_with(space), {"strategy": "a"})


def spec(**changes: Any) -> TrialSpec:
    fields: dict[str, Any] = {"strategy": strategies.LinearProbe(), "source": "scratch"}
    return TrialSpec("digits", "test_resnet", **{**fields, **changes})


def recursive(trial: BaseTrial, strategy: str) -> TrialSpec:
    return recursive(trial, strategy)


def twice(trial: BaseTrial, strategy: str) -> TrialSpec:
    trial.suggest_float("x", 0, 1)
    return spec(lr=trial.suggest_float("x", 5, 6))


def asks(method: str, *arguments: Any, **options: Any) -> Callable[..., TrialSpec]:
    def space(trial: BaseTrial, strategy: str) -> TrialSpec:
        getattr(trial, f"suggest_{method}")(*arguments, **options)
        return spec()

    return space


def leaves(trial: BaseTrial, strategy: str) -> TrialSpec:
    sys.exit(0)


BAD_SPACES: dict[str, tuple[Callable[..., object], str]] = {
    "exits": (leaves, "study 'toy': space failed for a: SystemExit: 0"),
    "None": (lambda trial, strategy: None, ".* must return a TrialSpec, got NoneType"),
    "list": (lambda trial, strategy: [spec()], ".* must return a TrialSpec, got list"),
    "low above high": (asks("int", "k", 5, 3), "space: 'k': `low <= high` must hold, .*low=5"),
    "log of 0": (asks("float", "x", 0, 1, log=True), "space: 'x': `low > 0` must hold for `log=True`"),
    "NaN": (asks("float", "x", float("nan"), 1), "space: bounds of 'x' .* got nan"),
    "infinity": (asks("float", "x", 0, float("inf")), "space: bounds of 'x' .* got inf"),
    "no choices": (asks("categorical", "c", []), "space: 'c': The `choices` must contain one"),
    "choice of lists": (asks("categorical", "c", [[1], [2]]), r"space: choices of 'c' .* got \[1\]"),
    "choice of tensors": (asks("categorical", "c", [torch.ones(1)]), "space: choices of 'c' .* got tensor"),
    "choice of NaN": (asks("categorical", "c", [float("nan")]), "space: choices of 'c' .* got nan"),
    "two ranges": (twice, "space: 'x' is suggested twice, as .*high=1.* and as .*high=6"),
    "long name": (asks("float", "x" * 600, 0, 1), "space: parameter name 'x+' must be"),
    "slash": (asks("float", "a/b c", 0, 1), "space: parameter name 'a/b c' must be"),
    "line break": (asks("float", "a\nb", 0, 1), r"space: parameter name 'a\\nb' must be"),
    "no name": (asks("float", "", 0, 1), "space: parameter name '' must be"),
    "misspelt": (lambda trial, strategy: spec(lerning_rate=1), ".*'lerning_rate'; it has .*, lr,"),
    "recursion": (recursive, ".*space failed for a: RecursionError"),
    "bad field": (lambda trial, strategy: spec(batch_size=0), ".*batch_size must be .* got 0"),
}  # fmt: skip


@pytest.mark.parametrize(("space", "said"), BAD_SPACES.values(), ids=BAD_SPACES)
def test_bad_space_is_refused(space: Callable[..., object], said: str) -> None:
    with refused(f"^{said}"):
        draw(space)


def test_good_suggestions_are_passed_on() -> None:
    def space(trial: BaseTrial, strategy: str) -> TrialSpec:
        assert trial.suggest_int("k", 2, 8, log=True) in range(2, 9)
        assert trial.suggest_categorical("c", ["a", None, 1.5, True]) in ("a", None, 1.5, True)
        assert trial.suggest_float("s", 0, 1, step=0.5) in (0, 0.5, 1)
        first = trial.suggest_float("lr", 1e-4, 1e-1, log=True)
        assert trial.suggest_float("lr", 1e-4, 1e-1, log=True) == first
        assert trial.number == 0
        assert set(trial.params) == {"k", "c", "s", "lr"}
        return spec(lr=first)

    assert 1e-4 <= draw(space).lr <= 1e-1


def loop() -> NoReturn:
    signal.raise_signal(signal.SIGALRM)  # the time is up
    while True:
        pass


def test_space_that_loops_is_refused_before_the_study_starts() -> None:
    before = signal.getsignal(signal.SIGALRM)
    said = r"^study 'toy': drawing .* more than 10 s; .*loop\? \(at .*test_space\.py:\d+"
    with refused(said):
        preflight.check_study(study_with(lambda trial, strategy: loop()))
    assert signal.getsignal(signal.SIGALRM) == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_strategy_that_loops_is_refused_before_the_study_starts() -> None:
    @dataclasses.dataclass(frozen=True)
    class Loops(strategies.Strategy):
        def lr_scales(self, num_groups: int, epoch: int) -> strategies.Scales:
            loop()

    def looping(trial: BaseTrial, strategy: str) -> TrialSpec:
        return TrialSpec("digits", "small_cnn", Loops(), source="scratch", resolution=28)

    said = (
        r"^strategy Loops: planning \d+ epochs takes more than 10 s; does `lr_scales` loop\? "
        r"\(at .*test_space\.py:\d+"
    )
    with refused(said):
        preflight.check_study(study_with(looping))
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
