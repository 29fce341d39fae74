"""Study files as tests write them."""

from __future__ import annotations

from typing import Any


def study_text(
    arms: dict[str, str] | None = None,
    trials: int = 1,
    repeats: int = 1,
    rates: bool = False,
    **fields: Any,
) -> str:
    """Text of a study of strategies on a few digits.

    Args:
        arms: name -> source text of each strategy; one linear probe by default.
        trials: of each cell.
        repeats: of each cell.
        rates: whether a learning rate is drawn.
        fields: of the trials, instead of their own.
    """
    compared = arms or {"a": "strategies.LinearProbe()"}
    listed = ", ".join(f'"{name}": {source}' for name, source in compared.items())
    few: dict[str, Any] = {
        "target": "digits",
        "backbone": "test_resnet",
        "source": "scratch",
        "shots": 3,
        "val_shots": 3,
        "test_shots": 3,
        "resolution": 32,
        "epochs": 1,
    }
    given = "".join(f"        {name}={value!r},\n" for name, value in {**few, **fields}.items())
    if rates:
        given += '        lr=trial.suggest_float("lr", 1e-3, 1e-1, log=True),\n'
    return f'''"""Does it?"""
from harness import Study, TrialSpec, strategies

ARMS = {{{listed}}}

def space(trial, strategy):
    return TrialSpec(
        strategy=ARMS[strategy],
{given}    )

study = Study(compare={{"strategy": ARMS}}, space=space, trials={trials}, repeats={repeats})
'''
