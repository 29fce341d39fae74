"""Warnings that readers of the report need.

    python -c "from analysis import compare, load_study, text; t = load_study('freeze_depth'); \\
               print(*text.warnings(compare.find(t)), sep='\\n')"
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from analysis import compare
from analysis.compare import Findings
from analysis.compare.classes import UNEQUAL
from analysis.compare.runs import class_counts
from analysis.load.study import ONE_TRIAL
from analysis.text.numbers import listed, quoted, short
from harness.core.errors import counted
from harness.core.results import BUSY, WAITED

SETTLED = ["complete", "pruned", "diverged", "oom", "timeout", "audit_failed", "crashed"]
SHOWN = 4
"""Number of names in one sentence."""
UNEVEN = 10
"""A run is reported if it took so many times the median of its cell."""


def warnings(found: Findings) -> list[str]:
    """Warnings about a study; empty if there are none."""
    return [
        *_missing_work(found),
        *_mixed_conditions(found),
        *_censored(found),
        *_doubtful_runs(found),
        *islice(_recorded_twice(found), SHOWN),
        *islice(_unequal_classes(found), SHOWN),
        *islice(_lost_by_unfreezing(found), SHOWN),
        *_uncertain_times(found),
        *_design(found),
        *(f"Scores may be too high: {line}" for line in found.info.leaks),
        *found.info.notes,
    ]


def _missing_work(found: Findings) -> Iterator[str]:
    """Runs that have not ended, and tuning trials and repeats that were requested and are missing."""
    trials, info, cells = found.table.trials, found.info, found.summary["cell"]
    open_runs = int((compare.recorded(trials)["outcome"] == "unfinished").sum())
    if open_runs:
        yield f"Unfinished: {counted(open_runs, 'run')}."
    settled = trials[(trials["phase"] == "tune") & trials["outcome"].isin(SETTLED)]
    tuned = settled.groupby("cell")["index"].nunique().reindex(cells, fill_value=0)
    scored = found.summary.set_index("cell")["n"]
    for phase, asked, counts in (
        ("tuning trials", info.trials, tuned),
        ("scored repeats", info.repeats, scored),
    ):
        short = [f"“{cell}” {n} of {asked}" for cell, n in counts.items() if n < asked]
        if len(short) == len(counts) > 2 and counts.nunique() == 1:
            short = [f"every cell {counts.iloc[0]} of {asked}"]
        if short:
            yield f"Fewer {phase} than requested: {'; '.join(short)}."


def _design(found: Findings) -> Iterator[str]:
    """Consequences of the design of the study. What the correction for folds does not cover was simulated in
    docs/pages/statistics.md."""
    if found.info.folds > 1:
        yield (
            "Runs on folds share examples. The intervals are corrected for this, but those "
            "of test scores may still be too narrow if scores vary more over examples than "
            "over seeds."
        )
    if found.info.budget is not None:
        yield (
            "The cells raced for a time budget, so they had different numbers of trials and "
            "seeds (see The race). A cell that was set aside or retired early may be better "
            "with the same effort as the others."
        )


def _recorded_twice(found: Findings) -> Iterator[str]:
    """Trials with two runs, of which one is counted; for example, one was deleted in MLflow and restored."""
    runs = found.table.trials[found.table.trials["outcome"] == "complete"]
    if found.info.rows:
        return  # a table from elsewhere
    runs = runs[runs.duplicated(ONE_TRIAL, keep=False)]
    for _, same in runs.groupby(ONE_TRIAL, dropna=False, sort=False):
        counted, others = same[~same["superseded"]], same[same["superseded"]]
        if len(counted) and len(others):
            yield (
                f"Recorded twice: a trial of “{counted['cell'].iloc[0]}”. Run "
                f"{counted['run_id'].iloc[0]} is counted, {listed(list(others['run_id']))} not; delete "
                "one of them in MLflow."
            )


def _mixed_conditions(found: Findings) -> Iterator[str]:
    """Conditions that differ between the compared runs."""
    trials = found.table.trials
    runs = trials[(trials["outcome"] == "complete") & ~trials["superseded"]]
    for column, name in (("device", "devices"), ("threads", "thread counts")):
        values = sorted(runs[column].dropna().astype(str).unique())
        if len(values) > 1:
            more = f" and {len(values) - SHOWN} more" * (len(values) > SHOWN)
            shown = f"{', '.join(values[:SHOWN])}{more}"
            yield f"Mixed {name} ({shown}): times and memory are not comparable."
    rows = compare.left_out(found.trials)
    if len(rows):
        where = f"on {rows['condition'].iloc[0] or 'an unknown device'}"
        if len(rows) > 1:
            where = f"under {len(rows)} other conditions"
        yield (
            "Costs are compared only for repeats on "
            f"{compare.condition(trials) or 'one device'}; the times and memory of "
            f"{counted(rows['runs'].sum(), 'repeat')} {where} are not used."
        )
    mixed = [c for c in runs.columns if c.startswith("env.") and runs[c].nunique() > 1]
    if mixed:
        names = ", ".join(c.removeprefix("env.") for c in mixed)
        yield f"The environment changed between runs: {names} (see Environment)."
    if "env.dirty" in runs and runs["env.dirty"].str.lower().isin(["true", "1", "yes"]).any():
        yield "Some runs used uncommitted code, which their revision does not include."


def _uncertain_times(found: Findings) -> Iterator[str]:
    """Runs that other programs slowed down, and cells in which a run took much longer than the others,
    because the machine was busy or stalled."""
    repeats = found.repeats
    if WAITED in repeats and (busy := int((repeats[WAITED] > BUSY).sum())):
        yield (
            f"Times were measured on a busy machine: in {busy} of {len(repeats)} repeats, "
            f"threads waited for a processor for more than {BUSY:.0%} of their time (up to "
            f"{repeats[WAITED].max():.0%}), because of other programs, or of more workers "
            "than cores."
        )
    runs = compare.recorded(found.trials)
    runs = runs[(runs["outcome"] == "complete") & ~runs["superseded"]]
    seconds = runs.groupby("cell")["train_seconds"].agg(["median", "max"])
    uneven = seconds[(seconds["max"] >= UNEVEN * seconds["median"]) & (seconds["max"] > 1)]
    if len(uneven):
        row = uneven.iloc[int(uneven["max"].argmax())]
        yield (
            f"Times are uneven: in {counted(len(uneven), 'cell')} a run took at least {UNEVEN} times the "
            f"median (“{row.name}”: {short(row['max'])} s, median {short(row['median'])} s). "
            "Medians are shown; the machine may have been busy."
        )


def _censored(found: Findings) -> Iterator[str]:
    """Cells that exceeded the memory or time."""
    censored = compare.censored(found.trials, found.info)
    for outcome, what in (("oom", "memory"), ("timeout", "time")):
        rows = censored[(censored["outcome"] == outcome) & ~censored["scored"]]
        if len(rows):
            yield (
                f"Cells without a score, because runs ran out of {what}; they are not on any Pareto "
                f"front: {listed(quoted(rows['cell']))}."
            )


def _doubtful_runs(found: Findings) -> Iterator[str]:
    """Cells without a result, runs of other cells, unequal seeds, scores that differ from the predictions."""
    trials = found.table.trials
    dead = found.summary.loc[(found.summary["tuned"] == 0) & (found.summary["failed"] > 0), "cell"]
    if len(dead) > SHOWN:
        yield f"No tuning trial of {len(dead)} cells completed (see How the runs ended)."
    for cell in dead[:SHOWN]:
        own = compare.recorded(trials[trials["cell"] == cell])
        counts = own["outcome"].value_counts()
        seen = ", ".join(f"{n} {outcome}" for outcome, n in counts.items())
        yield f"No tuning trial of “{cell}” completed: {seen}."
    strays = sorted(set(trials["cell"].dropna()) - set(found.summary["cell"]))
    if strays:
        yield f"Not shown, because they are no longer in the study file: {', '.join(strays)}."
    repeats = compare.completed(trials, "repeat").dropna(subset="test_score")
    several = len({tuple(sorted(own)) for _, own in repeats.groupby("cell")["seed"]}) > 1
    if several and found.info.budget is None:
        yield "The cells were repeated on different seeds; only shared seeds are compared."
    stale, asked = compare.stale_choices(found.trials, found.info), found.info.trials
    if stale and found.info.budget is None:  # in a race, repeats choose among several
        why = ""
        if asked and all(best >= asked for best in stale.values()):
            why = (
                f", because the study was resumed with fewer trials ({asked} per cell) than it had"
            )
        names = ", ".join(quoted(stale))
        yield f"The repeats of {names} do not use the best configuration of their tuning trials{why}."
    kept = found.table.predictions
    wrong = compare.prediction_mismatches(trials, kept) if len(kept) else []
    if wrong:
        yield (
            f"The recorded predictions of {counted(len(wrong), 'repeat')} are missing or do not give "
            f"the recorded accuracy: {', '.join(wrong[:5])}{' …' * (len(wrong) > 5)}."
        )


def _unequal_classes(found: Findings) -> Iterator[str]:
    """What each class contributed, if it is not the same for all classes: over all seeds, by target."""
    trials = found.table.trials
    runs = trials[trials["outcome"] == "complete"].dropna(subset="images_per_class")
    targets = runs["param.target"] if "param.target" in runs else runs["study"]
    metric = found.info.metric
    meaning = "Accuracy depends mostly on the large classes."
    if found.info.score not in ("", "accuracy"):
        meaning = (
            f"All classes have the same weight in {metric}, so it depends strongly on the few "
            "examples of the small ones."
        )
    for target, own in runs.groupby(targets, sort=False, dropna=False):
        counts: dict[str, list[tuple[int, str]]] = {"train": [], "test": []}
        for part, of_classes, _ in class_counts(own):
            counts.setdefault(part, []).extend(of_classes)
        shown = [
            f"{name} {' to '.join(f'{n} (“{label}”)' for n, label in (min(known), max(known)))}"
            for known, name in ((counts["train"], "training"), (counts["test"], "test"))
            if known and max(known)[0] >= UNEQUAL * min(known)[0]
        ]
        if shown:
            where = f" of {target}" if targets.nunique() > 1 else ""
            yield f"The classes{where} are imbalanced: examples per class, {'; '.join(shown)}. {meaning}"


def _lost_by_unfreezing(found: Findings) -> Iterator[str]:
    """Cells whose repeats lost more than half of their accuracy when groups were unfrozen."""
    for cell, own in found.repeats.groupby("cell", sort=False):
        lost = own["unfreezing"].replace("", None).dropna()
        if len(lost):
            yield (
                "Validation accuracy fell by more than half when groups were unfrozen in "
                f"{len(lost)} of {len(own)} repeats of “{cell}” (from {lost.iloc[0]}). Try a "
                "lower learning rate for that phase, or other statistics of batch norms "
                "(batch_norm)."
            )
