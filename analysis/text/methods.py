"""The methods paragraph, for a paper.

    python -c "from analysis import compare, load_study, text; t = load_study('freeze_depth'); \\
               print(text.methods(compare.find(t)))"
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from analysis import compare
from analysis.compare import Findings
from analysis.load import StudyTable
from analysis.text.numbers import listed, short, span
from harness.core.errors import counted


def methods(found: Findings, more: Sequence[str] = ()) -> str:
    """What was compared, tuned, chosen, repeated, tested and measured in this study, with its numbers.

    Args:
        found: the study.
        more: sentences of the topics about their own statistics.
    """
    table = found.table
    parts = [_design(table, found), _choice(table), _statistics(found), *more, _costs(table, found)]
    return " ".join(filter(None, [*parts, _environment(table.trials)]))


def _design(table: StudyTable, found: Findings) -> str:
    factors = listed(
        [f"{name} ({counted(len(v), 'level')})" for name, v in table.info.factors.items()]
    )
    scored = int((found.summary["n"] > 0).sum())
    every = "the" if scored == len(found.summary) else f"of the {len(found.summary)}"
    text = f"We compared {scored} cells, {every} combinations of {factors}."
    if table.info.rows:
        return f"{text} The scores are from a table of {counted(table.info.rows, 'run')}."
    sizes = compare.split_sizes(found.repeats, table.predictions)
    if sizes:
        names = {"train": "training", "val": "validation", "test": "test"}
        shown = listed([f"{n:,} {names[part]}" for part, n in sizes.items() if part in names])
        text += f" Each run had {shown} examples."
    return text


def _choice(table: StudyTable) -> str:
    """How configurations and the cell were chosen; for an external table, only what its mapping says."""
    info, trials = table.info, table.trials
    tried = trials[trials["phase"] == "tune"].groupby("cell")["index"].nunique()
    how = {"random": ", drawn independently at random", "tpe": ", proposed by Optuna's TPE"}
    tuned, text = tuned_names(trials), ""
    rule = f"; the one with the {info.choosing.best} validation {info.choosing.label} was chosen"
    if len(tried):
        several = f"{counted(span(tried), 'configuration')}{f' of {tuned}' * bool(tuned)}"
        verb = "was" if span(tried) == "1" else "were"
        if info.budget is None and not info.rows:
            text = "All cells had the same numbers of trials and repeats. "
        text += f"In each cell {several} {verb} tried{how.get(info.sampler, '')}"
        text += (
            f", each on all {info.folds} folds of the examples that are not test examples (stratified by "
            "class, examples of a group in one fold)"
        ) * (info.folds > 1)
        text += rule * bool(info.selection)
        text += ", by its mean over seeds" * info.over_seeds + ", by its mean over folds" * (
            info.folds > 1
        )
        text += " (ties: lower loss)." if info.selection == "val_score" and not info.rows else "."
    seeds = compare.completed(trials, "repeat").groupby("cell")["seed"].nunique()
    if len(seeds) and seeds.max() > 1 and info.rows:
        text += f" Its test scores on {span(seeds)} seeds are compared."
    elif len(seeds) and seeds.max() > 1:
        of_each = " of each finalist" * (info.budget is not None)
        text += (
            f" The chosen configuration{of_each} was run again on {span(seeds)} new seeds, "
            "the same for all cells (a seed determines examples, initialisation of the head, "
            "batch order and augmentation), and each run was scored once on the test "
            "examples."
        )
        text += f" Every {info.folds} of these runs use the folds of a new random division." * (
            info.folds > 1
        )
    elif len(seeds):
        text += " The compared test score is that of a single run per cell."
    if info.selection and not table.trials.empty and len(seeds) > 1:
        text += " The recommended cell is chosen by the validation scores of these runs, not by test scores."
    return text.strip()


def tuned_names(trials: pd.DataFrame) -> str:
    """Names of the parameters that differ between the tuning trials of a cell."""
    tuned = trials[trials["phase"] == "tune"]
    names = [c for c in tuned.columns if c.startswith("param.") and c != "param.seed"]
    vary = [c for c in names if (tuned.groupby("cell")[c].nunique() > 1).any()]
    return listed([c.removeprefix("param.") for c in vary]) if vary else ""


def _statistics(found: Findings) -> str:
    if found.summary["n"].max() < 2:
        text = "With one score per cell, no interval over seeds is given."
    else:
        text = f"Means of test {found.info.metric} are given with 95% t intervals over seeds."
        text += (
            " Because the runs share examples, the variance of means and of paired "
            "differences is corrected as in Nadeau and Bengio (2003): (1/n + "
            f"1/{found.info.folds - 1}) s² for n runs on {found.info.folds} folds."
        ) * (found.info.folds > 1)
    if len(found.examples):
        grouped = compare.are_grouped(found.table.predictions)
        text += (
            " The standard error of intervals over seeds and examples is from a bootstrap of "
            "seeds and, within each resample, of "
            f"{'groups of test examples' if grouped else 'test examples'}, with Satterthwaite's degrees of "
            "freedom."
        )
    return text


def _costs(table: StudyTable, found: Findings) -> str:
    if found.summary["train_seconds_median"].isna().all():
        return "Costs were not measured."
    cold = bool(found.summary["marginal_seconds_median"].notna().any())
    clock = "Training time excludes evaluation and data set-up; times are "
    if cold:
        clock = (
            "Training time excludes evaluation and data set-up and is cold-equivalent (as if nothing "
            "had been cached by other trials); times are "
        )
    text = f"{'Times are those of the table, ' if table.info.rows else clock}medians over repeats"
    where = compare.condition(table.trials)
    spread = compare.completed(table.trials, "repeat")["train_seconds"]
    text += f" on {where}" * bool(where)
    text += f" (single runs took {short(spread.min())} to {short(spread.max())} s)"
    if found.summary["peak_memory_mib_median"].notna().any():
        text += f"; memory is the peak of the {compare.memory_kind(table.trials)}"
    return f"{text}."


def _environment(trials: pd.DataFrame) -> str:
    shown = []
    for name in ("python", "torch", "timm", "cpu", "gpu", "revision"):
        column = f"env.{name}"
        if column in trials and trials[column].nunique() == 1:
            shown.append(f"{name} {trials[column].dropna().iloc[0]}")
    return f"Run with {listed(shown)}." if shown else ""
