"""Warnings: what a reader must know before believing the answer.

    python -c "from analysis import compare, load_study, text; t = load_study('freeze_depth'); \\
               print(*text.warnings(compare.find(t)), sep='\\n')"
"""

from __future__ import annotations

import json
from contextlib import suppress

import pandas as pd

from analysis import compare
from analysis.compare import Findings
from analysis.compare.classes import UNEQUAL
from analysis.load import StudyTable
from analysis.load.study import ONE_TRIAL
from analysis.text.numbers import listed, quoted, short
from harness.core.results import BUSY, WAITED

SETTLED = ["complete", "pruned", "diverged", "oom", "timeout", "audit_failed", "crashed"]
SHOWN = 4
"""Names in one sentence."""
UNEVEN = 10
"""A run that took so many times the median of its cell is worth a warning."""


def warnings(found: Findings) -> list[str]:
    """What a reader must know before believing the answer; empty when nothing is wrong."""
    table = found.table
    leaks = [f"Scores may be too high: {line}" for line in table.info.leaks]
    return [
        *_missing_work(table, found),
        *_mixed_conditions(table, found),
        *_censored(found),
        *_doubtful_runs(table, found),
        *_recorded_twice(table),
        *_unequal_classes(table),
        *_lost_by_unfreezing(found),
        *_busy(found),
        *_uneven_times(found),
        *_shared_images(table),
        *_race(table),
        *leaks,
        *table.info.notes,
    ]


def _missing_work(table: StudyTable, found: Findings) -> list[str]:
    """Runs that have not ended, tuning trials and repeats that were asked for and are not there."""
    trials, info, text = table.trials, table.info, []
    open_runs = int((compare.recorded(trials)["outcome"] == "unfinished").sum())
    if open_runs:
        text.append(f"Unfinished: {open_runs} runs have not ended.")
    settled = trials[(trials["phase"] == "tune") & trials["outcome"].isin(SETTLED)]
    done = settled.groupby("cell")["index"].nunique()
    for phase, asked, counts in (
        (
            "tuning trials",
            info.trials,
            {cell: int(done.get(cell, 0)) for cell in found.summary["cell"]},
        ),
        (
            "scored repeats",
            info.repeats,
            dict(zip(found.summary["cell"], found.summary["n"], strict=True)),
        ),
    ):
        short = [f"“{cell}” {n} of {asked}" for cell, n in counts.items() if n < asked]
        if len(short) > 2 and len(short) == len(counts) and len({*counts.values()}) == 1:
            short = [f"every cell {next(iter(counts.values()))} of {asked}"]
        if short:
            text.append(f"Fewer {phase} than asked for: {'; '.join(short)}.")
    return text


def _race(table: StudyTable) -> list[str]:
    """That the cells of a race did not have the same effort."""
    if table.info.budget is None:
        return []
    return [
        "The cells raced for a time budget, so they had different numbers of trials and seeds (see The "
        "race). A cell that was set aside or retired early might reach more with the same effort."
    ]


def _shared_images(table: StudyTable) -> list[str]:
    """What the correction for folds does not cover; simulated in docs/pages/statistics.md."""
    if table.info.folds == 1:
        return []
    return [
        "Runs on folds share examples. The intervals are corrected for that, but those of test scores may "
        "still be too narrow, if other examples would change a score more than other seeds do."
    ]


def _recorded_twice(table: StudyTable) -> list[str]:
    """Runs of one trial, of which one is counted: the other was deleted in MLflow and restored, say."""
    runs = table.trials[table.trials["outcome"] == "complete"]
    if table.info.rows:
        return []  # a table from elsewhere
    runs = runs[runs.duplicated(ONE_TRIAL, keep=False)]
    text = []
    for _, same in runs.groupby(ONE_TRIAL, dropna=False, sort=False):
        counted, others = same[~same["superseded"]], same[same["superseded"]]
        if len(counted) and len(others):
            text.append(
                f"Recorded twice: {listed(list(others['run_id']))} of “{counted['cell'].iloc[0]}” repeats "
                f"run {counted['run_id'].iloc[0]}, which is counted; it can be deleted in MLflow."
            )
    return text[:SHOWN]


def _mixed_conditions(table: StudyTable, found: Findings) -> list[str]:
    """Conditions that differ between the runs that are compared."""
    runs = table.trials[(table.trials["outcome"] == "complete") & ~table.trials["superseded"]]
    text = []
    for column, name in (("device", "devices"), ("threads", "thread counts")):
        values = sorted(runs[column].dropna().astype(str).unique())
        if len(values) > 1:
            shown = ", ".join(values[:SHOWN]) + f" and {len(values) - SHOWN} more" * (
                len(values) > SHOWN
            )
            text.append(f"Mixed {name} ({shown}): times and memory are not comparable.")
    rows = compare.left_out(found.trials)
    if len(rows):
        where = rows["condition"].iloc[0] if len(rows) == 1 else f"{len(rows)} other conditions"
        text.append(
            f"Costs are compared for repeats on {compare.condition(table.trials) or 'one device'} only; "
            f"{rows['runs'].sum()} repeats on {where or 'an unknown device'} are left out of times "
            f"and memory."
        )
    mixed = [c for c in runs.columns if c.startswith("env.") and runs[c].nunique() > 1]
    if mixed:
        names = ", ".join(c.removeprefix("env.") for c in mixed)
        text.append(f"The environment changed between runs: {names} (see Environment).")
    if "env.dirty" in runs and runs["env.dirty"].str.lower().isin(["true", "1", "yes"]).any():
        text.append("Some runs used uncommitted code: their revision does not tell all of it.")
    return text


def _busy(found: Findings) -> list[str]:
    """Runs that another program slowed down."""
    runs = compare.completed(found.trials, "repeat")
    waited = runs[WAITED] if WAITED in runs else pd.Series(dtype=float)
    busy = int((waited > BUSY).sum())
    if not busy:
        return []
    return [
        f"Times are of a busy machine: in {busy} of {len(runs)} repeats the threads waited for a processor "
        f"more than {BUSY:.0%} of their time (at most {waited.max():.0%}), because other programs, or more "
        "workers than it has cores, used it."
    ]


def _uneven_times(found: Findings) -> list[str]:
    """Cells in which a run took far longer than the others: a busy machine, or a stall."""
    runs = compare.recorded(found.trials)
    runs = runs[(runs["outcome"] == "complete") & ~runs["superseded"]]
    seconds = runs.groupby("cell")["train_seconds"].agg(["median", "max"])
    uneven = seconds[(seconds["max"] >= UNEVEN * seconds["median"]) & (seconds["max"] > 1)]
    if uneven.empty:
        return []
    row = uneven.iloc[int(uneven["max"].argmax())]
    return [
        f"Times are uneven: in {len(uneven)} cells a run took {UNEVEN} times the median or more "
        f"(“{row.name}”: {short(row['max'])} s, median {short(row['median'])} s). Medians are shown; the "
        "machine may have been busy."
    ]


def _censored(found: Findings) -> list[str]:
    """Cells that ran out of memory or time."""
    text, censored = [], compare.censored(found.trials, found.info.factors)
    for outcome, what in (("oom", "memory"), ("timeout", "time")):
        rows = censored[(censored["outcome"] == outcome) & ~censored["scored"]]
        if len(rows):
            text.append(
                f"Out of {what}, without a score, and so not on any front: {listed(quoted(rows['cell']))}."
            )
    return text


def _doubtful_runs(table: StudyTable, found: Findings) -> list[str]:
    """Cells without a result, runs of other cells, unequal seeds, scores that differ from the predictions."""
    text = []
    trials = table.trials
    dead = found.summary.loc[(found.summary["tuned"] == 0) & (found.summary["failed"] > 0), "cell"]
    if len(dead) > SHOWN:
        text.append(f"No tuning trial of {len(dead)} cells completed (see How the runs ended).")
    for cell in dead[:SHOWN]:
        own = compare.recorded(trials[trials["cell"] == cell])
        counts = own["outcome"].value_counts()
        seen = ", ".join(f"{n} {outcome}" for outcome, n in counts.items())
        text.append(f"No tuning trial of “{cell}” completed: {seen}.")
    strays = sorted(set(trials["cell"].dropna()) - set(found.summary["cell"]))
    if strays:
        text.append(f"Left out, no longer in the study file: {', '.join(strays)}.")
    repeats = compare.completed(trials, "repeat").dropna(subset="test_score")
    several = len({tuple(sorted(own)) for _, own in repeats.groupby("cell")["seed"]}) > 1
    if several and table.info.budget is None:
        text.append("The cells were not repeated on the same seeds: only shared seeds are paired.")
    best = compare.chosen(found.trials, found.info.selection).set_index("cell")["index"]
    stale = repeats[repeats["chosen"].notna() & (repeats["chosen"] != repeats["cell"].map(best))]
    if len(stale):
        names = ", ".join(f"“{cell}”" for cell in stale["cell"].unique())
        text.append(f"The repeats of {names} run another configuration than the best one tuned.")
    wrong = compare.prediction_mismatches(trials, table.predictions)
    if wrong and len(table.predictions):
        text.append(
            f"The kept predictions of {len(wrong)} repeats are missing or give another accuracy "
            f"than the one recorded: {', '.join(wrong[:5])}{' …' * (len(wrong) > 5)}."
        )
    return text


def _unequal_classes(table: StudyTable) -> list[str]:
    """What each class contributed, where that is not the same for all: over all seeds, target by target."""
    runs = table.trials[table.trials["outcome"] == "complete"].dropna(subset="images_per_class")
    targets = runs["param.target"] if "param.target" in runs else runs["study"]
    text, metric = [], table.info.metric
    meaning = "Accuracy is mostly that of the large classes."
    if table.info.score not in ("", "accuracy"):
        meaning = f"All count equally in {metric}, so it depends much on the few examples of the small ones."
    for target, own in runs.groupby(targets, sort=False, dropna=False)["images_per_class"]:
        ends: dict[str, list[tuple[int, str]]] = {}
        for recorded in own.unique():
            for part, counts in _counts(recorded).items():
                ends.setdefault(part, []).extend(counts)
        shown = [
            f"{name} {' to '.join(f'{n} (“{label}”)' for n, label in (min(found), max(found)))}"
            for part, name in (("train", "training"), ("test", "test"))
            if (found := ends.get(part)) and max(found)[0] >= UNEQUAL * min(found)[0]
        ]
        if shown:
            where = f" of {target}" if targets.nunique() > 1 else ""
            text.append(
                f"The classes{where} are unequal: examples per class, {'; '.join(shown)}. {meaning}"
            )
    return text[:SHOWN]


def _lost_by_unfreezing(found: Findings) -> list[str]:
    """Cells whose repeats lost more than half of their accuracy when groups were unfrozen."""
    runs = compare.completed(found.trials, "repeat")
    text = []
    for cell, own in runs.groupby("cell", sort=False):
        lost = own["unfreezing"].replace("", None).dropna()
        if len(lost):
            text.append(
                f"Validation accuracy fell by more than half when groups were unfrozen in {len(lost)} of "
                f"{len(own)} repeats of “{cell}” (from {lost.iloc[0]}). Try a lower rate for that phase, or "
                "other statistics of batch norms (batch_norm)."
            )
    return text[:SHOWN]


def _counts(recorded: str) -> dict[str, list[tuple[int, str]]]:
    """Part -> its least and most images of a class, with the class; without parts whose classes are equal."""
    found = {}
    with suppress(ValueError, KeyError, TypeError, AttributeError):
        for part, counts in json.loads(recorded).items():
            if isinstance(counts, dict) and counts.keys() == {"least", "most", "all"}:
                found[part] = [(int(n), str(name)) for n, name in (counts["least"], counts["most"])]
            elif isinstance(counts, dict):
                found[part] = [(int(n), str(name)) for name, n in counts.items()]
    return found
