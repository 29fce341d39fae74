"""What does a study say in sentences? The answer with its uncertainty and price, and the warnings.

    python -c "from analysis import compare, load, words; t = load.load_study('freeze_depth'); \
               print(*words.answer(t, compare.find(t)), sep='\\n')"
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from analysis import compare
from analysis.compare import Findings
from analysis.load import StudyTable

SETTLED = ["complete", "pruned", "diverged", "oom", "timeout", "audit_failed", "crashed"]
SHOWN = 4
"""Crossings that the answer names; the table has them all."""
SURE = 0.95
"""Share of resamples that must cross for a crossing to be taken as there."""


def answer(table: StudyTable, found: Findings) -> list[str]:
    """The finding in words and numbers, its uncertainty and its price; one string per paragraph."""
    scored = found.summary.dropna(subset="mean").sort_values("mean", ascending=False, kind="stable")
    if scored.empty:
        return _untested_answer(table, found)
    best = scored.iloc[0]
    among = f" among {len(scored)} cells" if len(scored) > 1 else ""
    interval = (
        f"95% interval {100 * best['low']:.1f} to {100 * best['high']:.1f}, {best['n']} seeds"
        if best["n"] > 1
        else "one seed: no interval"
    )
    text = [
        f"“{best['cell']}” has the highest mean test accuracy{among}: "
        f"{100 * best['mean']:.1f}% ({interval})."
    ]
    if found.rivals.empty:
        text.append("No other cell has a test score, so there is nothing to compare it with.")
    else:
        text.append(f"Against the runner-up: {found.rivals.iloc[0]['sentence']}")
        equals = found.rivals.loc[found.rivals["verdict"] == "open", "reference"]
        if len(equals) > 1:
            names = ", ".join(f"“{name}”" for name in equals)
            text.append(f"Cells that can't be told apart from it: {names}.")
    versus = found.differences[found.differences["cell"] == best["cell"]]
    if len(versus) and versus.iloc[0]["reference"] != _runner_up(found):
        text.append(f"Against the baseline: {versus.iloc[0]['sentence']}")
    elif best["cell"] in set(found.differences["reference"]):
        text.append("It is itself the baseline: no declared alternative has a higher mean.")
    return [*text, *_price(best, scored, found), *_sizes(table, found), *_shifts(found)]


def _runner_up(found: Findings) -> str:
    return "" if found.rivals.empty else str(found.rivals.iloc[0]["reference"])


def _price(best: pd.Series, scored: pd.DataFrame, found: Findings) -> list[str]:
    """What the best cell costs, and which cheaper one can't be told apart from it."""
    costs = _costs(best)
    if not costs:
        return ["What it costs was not measured."]
    text = f"It costs {costs} (median of {best['n']} repeats)."
    equal = found.rivals.loc[found.rivals["verdict"] == "open", "reference"]
    cheap = scored[scored["cell"].isin(equal)].dropna(subset="train_seconds_median")
    cheap = cheap[cheap["train_seconds_median"] < best["train_seconds_median"]]
    if len(cheap):
        other = cheap.loc[cheap["train_seconds_median"].idxmin()]
        text += f" “{other['cell']}”, not told apart from it in accuracy, costs {_costs(other)}."
    return [text]


def _costs(row: pd.Series) -> str:
    parts = [
        f"{short(row[column])} {unit}"
        for column, unit in (
            ("train_seconds_median", "s of training"),
            ("peak_memory_mib_median", "MiB of peak memory"),
        )
        if row[column] == row[column]
    ]
    return " and ".join(parts)


def _sizes(table: StudyTable, found: Findings) -> list[str]:
    """Which line is ahead at which size, and where the lines cross."""
    factor = compare.size_factor(table.info.factors)
    if factor is None or found.crossings.empty:
        return []
    best = found.by_size.loc[found.by_size.groupby("size")["mean"].idxmax()].sort_values("size")
    run = (best["line"] != best["line"].shift()).cumsum()
    leaders = [
        f"“{own['line'].iloc[0]}” at {_listed([short(size) for size in own['size']])}"
        for _, own in best.groupby(run, sort=False)
    ]
    text = f"Highest mean by {factor}: {'; '.join(leaders)}."
    seen = found.crossings.dropna(subset="size").sort_values(
        "share_crossing", ascending=False, kind="stable"
    )
    for row in seen.head(SHOWN).to_dict("records"):
        text += f" {crossing(row, factor)}"
    if len(seen) > SHOWN:
        text += f" {len(seen) - SHOWN} more pairs of lines cross (see the table)."
    if rest := len(found.crossings) - len(seen):
        low, high = found.crossings["smallest"].min(), found.crossings["largest"].max()
        pairs = f"{rest} {'other ' * bool(len(seen))}pair{'s' * (rest != 1)} of lines"
        text += f" No crossing seen for {pairs} between {short(low)} and {short(high)} {factor}."
    return [text]


def crossing(row: Mapping[Hashable, Any], factor: str) -> str:
    """One row of `compare.crossings` in plain words."""
    a, b = f"“{row['line']}”", f"“{row['other']}”"
    share = row["share_crossing"]
    if row["changes"] == 0:
        drawn = f"; {number(share, '.0%')} of resamples cross" if share == share else ""
        return (
            f"No crossing seen between {short(row['smallest'])} and {short(row['largest'])} {factor}: "
            f"the mean of {a} is nowhere below that of {b} ({_seeds(row['n'])}{drawn})."
        )
    more = f" It is the first of {row['changes']} sign changes." if row["changes"] > 1 else ""
    if share != share:
        return f"{a} leads {b} up to about {short(row['size'])} {factor} (one seed: no interval).{more}"
    doubt = "" if share >= SURE else ", so it may not exist"
    return (
        f"{a} leads {b} up to about {short(row['size'])} {factor} (95% interval "
        f"{crossing_interval(row)}, {_seeds(row['n'])}; {share:.0%} of resamples cross{doubt}).{more}"
    )


def crossing_interval(row: Mapping[Hashable, Any]) -> str:
    """The interval of a crossing; an end beyond the sizes that were tried is said to be there."""
    if row["low"] != row["low"]:
        return "–"
    ends = [
        f"below {short(row['smallest'])}"
        if end == 0
        else f"above {short(row['largest'])}"
        if end == math.inf
        else short(end)
        for end in (row["low"], row["high"])
    ]
    return " to ".join(dict.fromkeys(ends))


def _shifts(found: Findings) -> list[str]:
    """Which cell loses least and which most when the test images are shifted, if that can be told."""
    losses, pairs = found.losses, found.loss_pairs
    if len(losses) < 2:
        return []
    names = [name for name in found.shifted["test_set"].unique() if name != "plain"]
    under = f"{len(names)} shifted test sets" if len(names) > 1 else f"the {names[0]} test set"
    least, most = losses.iloc[0], losses.iloc[-1]
    n = span(losses["n"])
    ends = pairs[(pairs["cell"] == least["cell"]) & (pairs["reference"] == most["cell"])].iloc[0]
    if not ends["told_apart"]:
        return [
            f"What the cells lose on {under}, on average from {least['loss']:.1f} points "
            f"(“{least['cell']}”) to {most['loss']:.1f} (“{most['cell']}”), can't be told apart with "
            f"{_seeds(n)}."
        ]
    text = (
        f"On {under} “{least['cell']}” loses least of its accuracy on average, "
        f"{_points(least)}, and “{most['cell']}” most, {_points(most)} ({_seeds(n)})."
    )
    unclear = pairs[~pairs["told_apart"]]
    for name, end, other in (("least", "cell", "reference"), ("most", "reference", "cell")):
        rivals = unclear.loc[unclear[end] == ends[end], other]
        if len(rivals):
            text += f" Not told apart from the one that loses {name}: {_listed(_quoted(rivals))}."
    return [text]


def _points(row: pd.Series) -> str:
    return f"{row['loss']:.1f} points ({row['low']:.1f} to {row['high']:.1f})"


def _quoted(names: Iterable[str]) -> list[str]:
    return [f"“{name}”" for name in names]


def _listed(parts: Sequence[str]) -> str:
    """Parts in print: "a", "a and b", "a, b and c"."""
    return " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))


def _seeds(n: int | str) -> str:
    return f"{n} seed{'s' * (str(n) != '1')}"


def _untested_answer(table: StudyTable, found: Findings) -> list[str]:
    """What can be said when no repeat has a test score."""
    tuned = found.summary.dropna(subset="val_accuracy").sort_values("val_accuracy", ascending=False)
    counts = table.trials["outcome"].value_counts()
    if tuned.empty:
        seen = ", ".join(f"{n} {outcome}" for outcome, n in counts.items()) or "no runs at all"
        return [f"There is no answer yet: no trial was completed and scored ({seen})."]
    why = (
        "The study asked for no repeats"
        if table.info.repeats == 0
        else f"None of the {table.info.repeats} repeats per cell has a test score yet"
    )
    best = tuned.iloc[0]
    return [
        f"{why}, so nothing was scored on test and no cell can be called better than another.",
        f"The highest validation accuracy in tuning was that of “{best['cell']}”: "
        f"{100 * best['val_accuracy']:.1f}%, the best of {best['tuned']} trials. A best-of-many "
        f"validation score is optimistic and has no interval.",
    ]


def warnings(table: StudyTable, found: Findings) -> list[str]:
    """What a reader must know before believing the answer; empty when nothing is wrong."""
    leaks = [f"Scores may be too high: {line}" for line in table.info.leaks]
    return [
        *_missing_work(table, found),
        *_mixed_conditions(table),
        *_doubtful_runs(table, found),
        *leaks,
    ]


def _missing_work(table: StudyTable, found: Findings) -> list[str]:
    """Runs that have not ended, tuning trials and repeats that were asked for and are not there."""
    trials, info, text = table.trials, table.info, []
    open_runs = int((trials["outcome"] == "unfinished").sum())
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


def _mixed_conditions(table: StudyTable) -> list[str]:
    """Conditions that differ between the runs that are compared."""
    runs = table.trials[(table.trials["outcome"] == "complete") & ~table.trials["superseded"]]
    text = []
    for column, name in (("device", "devices"), ("threads", "thread counts")):
        values = sorted(runs[column].dropna().astype(str).unique())
        if len(values) > 1:
            text.append(f"Mixed {name} ({', '.join(values)}): times and memory are not comparable.")
    mixed = [c for c in runs.columns if c.startswith("env.") and runs[c].nunique() > 1]
    if mixed:
        names = ", ".join(c.removeprefix("env.") for c in mixed)
        text.append(f"The environment changed between runs: {names} (see Environment).")
    if "env.dirty" in runs and runs["env.dirty"].str.lower().isin(["true", "1", "yes"]).any():
        text.append("Some runs used uncommitted code: their revision does not tell all of it.")
    return text


def _doubtful_runs(table: StudyTable, found: Findings) -> list[str]:
    """Cells without a result, strays, unequal seeds, scores that the predictions do not bear out."""
    text = []
    trials = table.trials
    dead = found.summary.loc[(found.summary["tuned"] == 0) & (found.summary["failed"] > 0), "cell"]
    for cell in dead:
        counts = trials.loc[trials["cell"] == cell, "outcome"].value_counts()
        seen = ", ".join(f"{n} {outcome}" for outcome, n in counts.items())
        text.append(f"No tuning trial of “{cell}” completed: {seen}.")
    strays = sorted(set(trials["cell"].dropna()) - set(found.summary["cell"]))
    if strays:
        text.append(f"Left out, no longer in the study file: {', '.join(strays)}.")
    repeats = compare.completed(trials, "repeat").dropna(subset="test_accuracy")
    if len({tuple(sorted(own)) for _, own in repeats.groupby("cell")["seed"]}) > 1:
        text.append("The cells were not repeated on the same seeds: only shared seeds are paired.")
    best = found.chosen.set_index("cell")["index"]
    stale = repeats[repeats["chosen"].notna() & (repeats["chosen"] != repeats["cell"].map(best))]
    if len(stale):
        names = ", ".join(f"“{cell}”" for cell in stale["cell"].unique())
        text.append(f"The repeats of {names} run another configuration than the best one tuned.")
    if wrong := compare.prediction_mismatches(trials, table.predictions):
        text.append(
            f"The kept predictions of {len(wrong)} repeats are missing or give another accuracy "
            f"than the one recorded: {', '.join(wrong[:5])}{' …' * (len(wrong) > 5)}."
        )
    return text


def span(values: pd.Series) -> str:
    """Whole numbers in print: "8" or "5 to 8"."""
    low, high = (int(values.min()), int(values.max())) if len(values) else (0, 0)
    return str(low) if low == high else f"{low} to {high}"


def number(value: float, form: str, scale: float = 1) -> str:
    """A number in print; – for one that was not measured."""
    return "–" if value != value else format(scale * value, form)


def short(value: float) -> str:
    """A number in print with three significant digits or all before the point; – if missing."""
    return number(value, ".0f" if value >= 1000 else ".3g")


def plain(value: Any) -> str:
    """A parameter in print."""
    return short(value) if isinstance(value, float) else str(value)


def tuned_parameters(chosen: pd.DataFrame) -> list[str]:
    """The columns in which the chosen configurations differ, or the learning rate if they do not."""
    names = [c for c in chosen.columns if c.startswith("param.") and c != "param.seed"]
    differ = [c for c in names if chosen[c].astype(str).nunique() > 1]
    return differ or [c for c in names if c == "param.lr"]


def condition_rows(trials: pd.DataFrame, prefixes: tuple[str, ...]) -> list[tuple[str, str]]:
    """Every column that starts with one of `prefixes`, with its values (a range when many)."""
    rows = []
    for column in (c for c in trials.columns if c.startswith(prefixes)):
        values = trials[column].dropna()
        counts = values.value_counts()
        name = column.partition(".")[2] or column
        if 1 <= len(counts) <= 6:
            many = len(counts) > 1
            shown = [plain(v) + (f" ({k} runs)" if many else "") for v, k in counts.items()]
            rows.append((name, ", ".join(shown)))
        elif len(counts):
            span = f"{plain(values.min())} to {plain(values.max())}"
            rows.append((name, f"{len(counts)} values, {span}"))
    return rows
