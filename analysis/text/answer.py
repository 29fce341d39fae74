"""What is the answer of a study, how sure is it, and what does it cost?

    python -c "from analysis import compare, load, text; t = load.load_study('freeze_depth'); \\
               print(*text.answer(t, compare.find(t)), sep='\\n')"
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import Any

import pandas as pd

from analysis import compare
from analysis.compare import Findings
from analysis.load import StudyTable
from analysis.text.numbers import in_seeds, listed, number, quoted, short, span
from analysis.text.similarity import describe_similarity

SHOWN = 4
"""Crossings, or arms, that the answer names; the tables have them all."""
SURE = 0.95
"""Share of resamples for a crossing, or a place on the front, to be taken as there."""


def answer(table: StudyTable, found: Findings) -> list[str]:
    """The finding in words and numbers, its uncertainty and its price; one string per paragraph."""
    scored = found.summary.dropna(subset="mean").sort_values("mean", ascending=False, kind="stable")
    if scored.empty:
        return _untested_answer(table, found)
    if len(found.ranks):
        return [*_over_targets(table, found), *describe_similarity(found.similarity)]
    best = scored.iloc[0]
    among = f" among {len(scored)} cells" if len(scored) > 1 else ""
    interval = (
        f"95% interval {100 * best['low']:.1f} to {100 * best['high']:.1f}, {best['n']} seeds"
        if best["n"] > 1
        else "one seed: no interval"
    )
    if own := found.examples[found.examples["cell"] == best["cell"]].to_dict("records"):
        low, high = 100 * own[0]["low"], 100 * own[0]["high"]
        interval += f"; {low:.1f} to {high:.1f} with other test images as well"
    text = [
        f"“{best['cell']}” has the highest mean test {table.info.metric}{among}: "
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
    return [
        *text,
        *_price(best, scored, found, table),
        *_sizes(table, found),
        *_shifts(found),
        *describe_similarity(found.similarity),
    ]


def _runner_up(found: Findings) -> str:
    return "" if found.rivals.empty else str(found.rivals.iloc[0]["reference"])


def _price(best: pd.Series, scored: pd.DataFrame, found: Findings, table: StudyTable) -> list[str]:
    """What the best cell costs, how surely it is worth that, and which cheaper one can't be told apart."""
    costs = _costs(best, table)
    if not costs:
        return ["What it costs was not measured."]
    text = f"It costs {costs} (median of {best['n']} repeats)."
    spent, cold = best["marginal_seconds_median"], best["train_seconds_median"]
    if spent == spent and spent < 0.98 * cold:
        text += (
            f" That time is cold-equivalent, as if nothing had been kept from other trials; in this "
            f"study it took {short(spent)} s."
        )
    equal = found.rivals.loc[found.rivals["verdict"] == "open", "reference"]
    cheap = scored[scored["cell"].isin(equal)].dropna(subset="train_seconds_median")
    cheap = cheap[cheap["train_seconds_median"] < best["train_seconds_median"]]
    if len(cheap):
        other = cheap.loc[cheap["train_seconds_median"].idxmin()]
        text += (
            f" “{other['cell']}”, not told apart from it in accuracy, costs {_costs(other, table)}."
        )
    sure = found.fronts[found.fronts["chance"] >= SURE]
    if len(found.fronts) > 1 and found.fronts["n"].max() > 1:
        names = listed(quoted(sure["cell"])) if len(sure) else "no cell"
        text += (
            f" On the front of {table.info.metric} and costs in at least {SURE:.0%} of resamples: "
            f"{names}."
        )
    return [text]


def _costs(row: pd.Series, table: StudyTable) -> str:
    forecast = " (forecast)" * ("forecast" in compare.memory_kind(table.trials))
    parts = [
        f"{short(row[column])} {unit}"
        for column, unit in (
            ("train_seconds_median", "s of training"),
            ("peak_memory_mib_median", f"MiB of peak memory{forecast}"),
        )
        if row[column] == row[column]
    ]
    return " and ".join(parts)


def _over_targets(table: StudyTable, found: Findings) -> list[str]:
    """How the arms rank over the targets, whose scores are not of one kind."""
    first, rest = found.ranks.iloc[0], found.ranks.iloc[1:]
    text = [
        f"“{first['arm']}” ranks best over {first['targets']} targets: mean rank "
        f"{_rank(first)} among {len(found.ranks)}. It is first on {first['wins']} of them and on average "
        f"{first['behind']:.1f} points of test {table.info.metric} below the best."
    ]
    if len(rest):
        near = rest[rest["low"] <= first["high"]]
        text.append(
            f"Next: {listed([f'“{r.arm}” ({r.mean_rank:.1f})' for r in rest.head(SHOWN).itertuples()])}. "
            + (
                f"The intervals of {len(near)} of the other {len(rest)} overlap its own."
                if len(near)
                else "No other interval overlaps its own."
            )
        )
        best = found.ranks.sort_values("wins", ascending=False, kind="stable").iloc[0]
        text.append(
            f"No choice is right everywhere: the most targets won by one is {best['wins']} "
            f"(“{best['arm']}”), and the last in rank, “{rest.iloc[-1]['arm']}”, is on average "
            f"{rest.iloc[-1]['behind']:.1f} points below the best."
        )
    if found.summary["n"].max() == 1:
        text.append(
            "Every cell has one test score, so nothing can be tested within a target; the interval of a rank "
            "is over targets."
        )
    return text


def _rank(row: pd.Series) -> str:
    if row["low"] != row["low"]:
        return f"{row['mean_rank']:.1f}"
    return f"{row['mean_rank']:.1f} (95% interval {row['low']:.1f} to {row['high']:.1f})"


def _sizes(table: StudyTable, found: Findings) -> list[str]:
    """Which line is ahead at which size, and where the lines cross."""
    factor = compare.size_factor(table.info.factors)
    if factor is None or found.crossings.empty:
        return []
    best = found.by_size.loc[found.by_size.groupby("size")["mean"].idxmax()].sort_values("size")
    run = (best["line"] != best["line"].shift()).cumsum()
    leaders = [
        f"“{own['line'].iloc[0]}” at {listed([short(size) for size in own['size']])}"
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
            f"the mean of {a} is nowhere below that of {b} ({in_seeds(row['n'])}{drawn})."
        )
    more = f" It is the first of {row['changes']} sign changes." if row["changes"] > 1 else ""
    if share != share:
        return f"{a} leads {b} up to about {short(row['size'])} {factor} (one seed: no interval).{more}"
    doubt = "" if share >= SURE else ", so it may not exist"
    return (
        f"{a} leads {b} up to about {short(row['size'])} {factor} (95% interval "
        f"{crossing_interval(row)}, {in_seeds(row['n'])}; {share:.0%} of resamples cross{doubt}).{more}"
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
            f"{in_seeds(n)}."
        ]
    text = (
        f"On {under} “{least['cell']}” loses least of its accuracy on average, "
        f"{_points(least)}, and “{most['cell']}” most, {_points(most)} ({in_seeds(n)})."
    )
    unclear = pairs[~pairs["told_apart"]]
    for name, end, other in (("least", "cell", "reference"), ("most", "reference", "cell")):
        rivals = unclear.loc[unclear[end] == ends[end], other]
        if len(rivals):
            text += f" Not told apart from the one that loses {name}: {listed(quoted(rivals))}."
    return [text]


def _points(row: pd.Series) -> str:
    return f"{row['loss']:.1f} points ({row['low']:.1f} to {row['high']:.1f})"


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
