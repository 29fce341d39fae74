"""The race of a study with a time budget: what each cell received, and how certain the choice is."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import pandas as pd

from analysis import compare
from analysis.compare import Findings
from analysis.text.numbers import listed, number, numbers, quoted, short
from analysis.topics.section import Section, Table
from harness.core.errors import counted
from harness.core.race import ALPHA, CELLS, FINALISTS, INDIFFERENCE, OF_A_CELL, SCREENING
from harness.core.units import Seconds

NOTE = (
    "Tuning trials of each cell; finalists: its configurations that were repeated; seeds: those of "
    "the finalist that stayed longest, which is the cell's configuration; time of all its runs. "
    "Retired: a one-sided paired test showed that the mean validation score of this configuration is "
    "below that of the leader; over all seeds and finalists, the probability that the best finalist "
    "is retired is at most {alpha:.0%}. In brackets: interval of the difference from the leader. Set "
    "aside: configurations of other cells had better validation scores in tuning, so none of its own "
    "was repeated, and nothing was shown about it. The scores that a retired or set aside cell would "
    "reach with more trials are unknown."
)


def section(found: Findings) -> Section:
    """The table of the race; empty without a budget."""
    if found.info.budget is None:
        return Section("The race")
    rows = compare.race_table(found.trials, found.info)
    metric, total = found.info.choosing, max(1e-9, rows["seconds"].sum())
    columns = {
        "Cell": list(rows["cell"]),
        "Tuning trials": list(rows["trials"]),
        f"Best validation {metric.label}{metric.unit}": numbers(rows["validation"], *metric.form),
        "Finalists": list(rows["finalists"]),
        "Seeds": list(rows["seeds"]),
        "Time, s": numbers(rows["seconds"], ".1f"),
        "Share of time, %": numbers(rows["seconds"] / total, ".0f", 100),
        "How it ended": [_ended(found, row) for row in rows.to_dict("records")],
    }
    table = Table(columns, note=NOTE.format(alpha=ALPHA), long_text=True)
    return Section("The race", [table], _answer(found, rows), _methods(found), {"race": rows})


def _ended(found: Findings, row: Mapping[Hashable, Any]) -> str:
    """How the race ended for a cell."""
    gap, low, high = numbers((row[n] for n in ("behind", "low", "high")), *found.info.choosing.form)
    behind = "" if gap == "–" else f", {gap}{_unit(found)} behind ({low} to {high})"
    if row["cell"] == found.chosen:
        return "chosen"
    return {
        "left": f"not retired{behind}",
        "retired": f"retired after {counted(row['seeds'], 'seed')}{behind}",
        "failed": f"a repeat did not complete, after {counted(row['seeds'], 'seed')}"
        if row["seeds"]
        else f"none of {counted(row['trials'], 'trial')} completed",
        "set aside": f"set aside after {counted(row['trials'], 'trial')}",
        "waiting": "still in tuning",
    }[str(row["state"])]


def _unit(found: Findings) -> str:
    """The unit of differences."""
    return "" if found.info.choosing.less_is_better else " points"


def _answer(found: Findings, rows: pd.DataFrame) -> list[str]:
    """What the time was spent on, and how certain the choice is."""
    budget, spent = Seconds(found.info.budget or 0), rows["seconds"].sum()
    text = [f"The cells raced with a budget of {budget}; their runs took {short(spent)} s."]
    now = compare.race_standing(found.trials, found.info.selection, found.info.choosing)
    metric = found.info.choosing
    rivals = list(dict.fromkeys(one.cell for one in now.left if one.cell != found.chosen))
    if rivals and now.most_behind < 1:
        text.append(
            f"Not retired: {listed(quoted(rivals))}; with {1 - ALPHA:.0%} confidence none of the finalists "
            f"is better than the choice by more than {number(now.most_behind, *metric.form)}{_unit(found)} "
            f"of mean validation {metric.label}."
        )
    elif len({one.cell for one in now.seeds}) > 1 and not rivals and now.left:
        text.append(
            f"All finalists of other cells were retired: with {1 - ALPHA:.0%} confidence none of them is "
            "better."
        )
    aside = rows.loc[rows["state"] == "set aside", "cell"]
    if len(aside):
        text.append(
            f"Set aside after tuning, without a verdict: {listed(quoted(aside))}. A verdict "
            "would need more time, or a separate study."
        )
    return [" ".join(text)]


def _methods(found: Findings) -> str:
    unit = f"{found.info.choosing.form[1] * INDIFFERENCE:g}{_unit(found)}"
    return (
        "The numbers of trials and repeats were not fixed in advance: the cells raced for "
        f"{Seconds(found.info.budget or 0)} of run time. In the first {SCREENING:.0%} of it they were "
        f"tuned by successive halving on the best validation score, until {CELLS} were left. The "
        f"configurations with the best validation scores, at most {FINALISTS} in all and {OF_A_CELL} of one "
        "cell, were then repeated seed by seed, and one was retired when a one-sided paired t test of "
        "validation scores with pooled variance showed that it was not the best, at levels that sum to "
        f"{ALPHA:g} over seeds and rivals (n-th seed: {ALPHA:g} / (finalists - 1) / (n (n - 1))). The "
        "configuration of a cell is the one that stayed longest. The race ended when one configuration was "
        f"left, when no other could be better by more than {unit}, or when the time was used up. The "
        "intervals of test scores do not account for this selection."
    )
