"""Does a race find as good a cell as equal budgets do, in less time? Simulated on ledgers of real trials.

    python -m benchmarks.race [--tables ../shared/tables] [--ledger build/classifiers.csv.gz] [--studies 200]

The policy is `harness.core.race`, the code that runs studies. It is compared with studies of equal numbers
of trials and repeats, on the ledgers of `benchmarks.ledgers`. Regret is the test score of the best cell, with
its best configuration, minus that of the chosen cell with its chosen configuration, both means over all runs
in the ledger. Prints tables, and in the last line JSON with the medians over targets; writes the longer table
to --out. docs/pages/race.md explains it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
import pandas as pd

from benchmarks.ledgers import Ledger, World, classifiers, medmnist
from harness.core.race import SCREENING, Entrant, Result, Results, Round, race, standing

RUNS = "medmnist_hpo_runs.csv.gz"
EQUAL = ((16, 5), (6, 10))
"""Trials and repeats of studies with equal budgets: the defaults of Study, and what harness.new proposes."""
SHARES = (1 / 8, 1 / 6, 1 / 4, 1 / 3, 1 / 2, 2 / 3, 1.0)
"""Budgets of races, as shares of the time of the study with equal budgets."""
GOAL = 1 / 3


@dataclass(frozen=True)
class Outcome:
    """What a simulated study chose.

    Attributes:
        cell, configuration: the choice, by position.
        seconds: what the study took.
        repeats: finalist -> validation scores of its repeats; empty in a study with equal budgets.
    """

    cell: int
    configuration: int
    seconds: float
    repeats: Mapping[Entrant, Sequence[float]]


def equal(world: World, trials: int, repeats: int) -> Outcome:
    """A study with equal numbers of trials and repeats."""
    best = world.val[:, :trials].argmax(axis=1).tolist()
    again = [world.repeats(cell, trial) for cell, trial in enumerate(best)]
    seconds = world.seconds[:, :trials].sum() + sum(own[:repeats].sum() for _, own in again)
    cell = int(np.argmax([val[:repeats].mean() for val, _ in again]))
    return Outcome(cell, best[cell], float(seconds), {})


def raced(world: World, budget: float) -> Outcome:
    """A study with a budget in seconds."""
    cells, count = world.val.shape
    spent, repeats = 0.0, dict[Entrant, list[float]]()

    def run(now: Round) -> Results:
        nonlocal spent
        results: dict[Entrant, list[Result]] = {}
        for one in now.entrants:
            cell, again = int(one.cell), now.indices
            if one.chosen is None:
                # A ledger may end before a race does: its last trial is then run again.
                own = [min(index, count - 1) for index in again]
                scores, seconds = world.val[cell, own], world.seconds[cell, own]
                tried = [str(place) for place in world.configurations[cell, own]]
            else:
                scores, seconds = (part[again] for part in world.repeats(cell, one.chosen))
                repeats.setdefault(one, []).extend(scores.tolist())
                tried = [""] * len(again)
            results[one] = [
                Result(merit, taken, configuration=configuration)
                for merit, taken, configuration in zip(
                    scores.tolist(), seconds.tolist(), tried, strict=True
                )
            ]
            spent += float(seconds.sum())
        return results

    for _ in race([str(cell) for cell in range(cells)], budget, SCREENING * budget, run):
        pass
    now = standing(repeats)
    best = max(now.left, key=lambda one: fmean(repeats[one][: now.seeds[one]]))
    return Outcome(int(best.cell), best.chosen or 0, spent, repeats)


def regret(world: World, found: Outcome) -> float:
    """Points of test score below the best cell."""
    best = float(world.ledger.best_test.max())
    return 100 * (best - world.truth(found.cell, found.configuration)[1])


def verdicts(world: World, found: Outcome) -> dict[str, float]:
    """What a race claimed, and whether it was true of the mean validation scores.

    Returns:
        retired (number of finalists), wrong (whether the best finalist was among them), bound (points by
        which another finalist may be better, as said), held (whether none is better by more than that), aside
        (whether the best cell of all, with its best configuration, was set aside).
    """
    truth = {one: world.truth(int(one.cell), one.chosen or 0)[0] for one in found.repeats}
    now = standing(found.repeats)
    best, bound = max(truth.values()), now.most_behind if len(now.left) > 1 else 0.0
    stayed = max((truth[one] for one in now.left), default=-np.inf)
    chosen = Entrant(str(found.cell), found.configuration)
    finalists = {int(one.cell) for one in truth}
    return {
        "retired": float(len(truth) - len(now.left)),
        "wrong": float(best > stayed + 1e-12),
        "held": float(best - truth[chosen] <= bound + 1e-12),
        "bound": 100 * bound,
        "aside": float(int(world.ledger.best_test.argmax()) not in finalists),
    }


def compare(ledger: Ledger, studies: int, seed: int = 0) -> pd.DataFrame:
    """Mean regret, seconds and claims of every kind of study on one ledger.

    Returns:
        One row per kind: policy ("equal" or "race"), trials and repeats of the equal study, share (budget of
        the race in its seconds), seconds (as a share of those of the equal study), regret, error (standard
        error of regret) and the means of `verdicts`.
    """
    random = np.random.default_rng(seed)
    rows: list[dict[str, object]] = []
    for number in range(studies):
        world = ledger.draw(random)
        for trials, repeats in EQUAL:
            reference = equal(world, trials, repeats)
            head = {"study": number, "trials": trials, "repeats": repeats}
            rows.append(
                {
                    **head,
                    "policy": "equal",
                    "share": 1.0,
                    "seconds": 1.0,
                    "regret": regret(world, reference),
                }
            )
            for share in SHARES:
                found = raced(world, share * reference.seconds)
                rows.append(
                    {**head, "policy": "race", "share": share, "regret": regret(world, found)}
                    | {"seconds": found.seconds / reference.seconds}
                    | verdicts(world, found)
                )
    table = pd.DataFrame(rows)
    groups = table.groupby(["policy", "trials", "repeats", "share"])
    means = groups.mean(numeric_only=True).drop(columns="study")
    return means.assign(error=groups["regret"].sem()).reset_index()


def needed(table: pd.DataFrame) -> pd.DataFrame:
    """The least time of a race whose mean regret is not above that of the equal study.

    Args:
        table: from `compare`, of one or more ledgers.

    Returns:
        ledger, trials, repeats, equal (regret of the equal study), third (of the race with a third of its
        time), needed (share of its time; inf if no race was as good), wrong, held, retired, aside (means over
        the races).
    """
    rows = []
    for head, own in table.groupby(["ledger", "trials", "repeats"], sort=False):
        reference = float(own.loc[own["policy"] == "equal", "regret"].iloc[0])
        races = own[own["policy"] == "race"]
        third = float(races.loc[races["share"] == GOAL, "regret"].iloc[0])
        least = races.loc[races["regret"] <= reference, "seconds"].min()
        means = races[["wrong", "held", "retired", "aside"]].mean()
        rows.append(
            dict(zip(("ledger", "trials", "repeats"), head, strict=True))
            | {"equal": reference, "third": third}
            | {"needed": float(np.nan_to_num(least, nan=np.inf)), **means}
        )
    return pd.DataFrame(rows)


def summary(medians: pd.DataFrame) -> dict[str, dict[str, float | None]]:
    """`needed` (None if no race was as good) and `wrong`, by ledger and numbers of the equal study.

    Args:
        medians: from `needed`, over the targets of each ledger; indexed by ledger, trials and repeats.
    """
    names = [
        f"{ledger}, {trials} trials + {repeats} repeats"
        for ledger, trials, repeats in medians.index
    ]
    needed = [None if math.isinf(share) else share for share in medians["needed"].tolist()]
    wrong = medians["wrong"].tolist()
    return {
        "needed": dict(zip(names, needed, strict=True)),
        "wrong": dict(zip(names, wrong, strict=True)),
    }


def main() -> int:
    """Simulate, print the tables, and write the longer one to a file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.race", description=__doc__)
    default = Path(os.environ.get("HARNESS_TABLES", "../shared/tables"))
    parser.add_argument(
        "--tables", type=Path, default=default, help="folder of the published table"
    )
    parser.add_argument("--ledger", type=Path, default=Path("build/classifiers.csv.gz"))
    parser.add_argument("--studies", type=int, default=200, help="simulated studies of each target")
    parser.add_argument("--out", type=Path, default=Path("build/race.csv"))
    options, began = parser.parse_args(), time.perf_counter()
    ledgers = {f"classifiers, {name}": own for name, own in classifiers(options.ledger).items()}
    if (options.tables / RUNS).is_file():
        found = medmnist(options.tables / RUNS)
        ledgers |= {f"medmnist, {name}": own for name, own in found.items()}
    else:
        print(
            f"no {RUNS} in {options.tables}: give --tables, or set HARNESS_TABLES", file=sys.stderr
        )
    parts = []
    for name, own in ledgers.items():
        parts.append(compare(own, options.studies).assign(ledger=name))
        print(needed(parts[-1]).round(3).to_string(header=len(parts) == 1, index=False), flush=True)
    table = pd.concat(parts, ignore_index=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    table.round(5).to_csv(options.out, index=False)
    result = needed(table)
    result["ledger"] = result["ledger"].str.partition(",")[0]
    medians = result.groupby(["ledger", "trials", "repeats"]).median().round(3)
    print(medians.to_string())
    print(json.dumps({"seconds": time.perf_counter() - began, **summary(medians)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
