"""Recommend the cell of a study to use within limits on its costs.

python -m analysis.recommend --study freeze_depth --max-memory 8GiB --max-minutes 5
python -m analysis.recommend --study backbones --max-latency-ms 10 --max-size 20MiB
python -m analysis.recommend --study target_size --where shots=30
"""

from __future__ import annotations

import math
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Group, Parameter
from cyclopts.validators import LimitedChoice

from harness.core.caller import undisturbed
from harness.core.command_line import SIZE, command
from harness.core.errors import UserError, counted
from harness.core.units import Size

if TYPE_CHECKING:  # imported where used: --help must not wait for them
    import pandas as pd

    from analysis.load import StudyTable

MIB = 2**20


def within(table: StudyTable, where: Sequence[str]) -> dict[str, list[str]]:
    """The study's factors, narrowed to the values that `where` (FACTOR=VALUE) gives.

    Raises:
        UserError: if there is no such factor or value, or several targets remain.
    """
    factors = {name: list(values) for name, values in table.info.factors.items()}
    for text in where:
        name, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"--where must be FACTOR=VALUE, got {text!r}")
        if name not in factors:
            raise UserError(f"no factor {name!r}; factors: {', '.join(factors)}")
        if value in table.info.factors[name] and value not in factors[name]:
            raise UserError(
                f"--where gives {name} twice, as {factors[name][0]!r} and {value!r}; no cell has both"
            )
        if value not in factors[name]:
            raise UserError(f"{name} has no value {value!r}; values: {', '.join(factors[name])}")
        factors[name] = [value]
    if len(factors.get("target", [])) > 1:
        raise UserError(
            f"scores of different targets cannot be compared: choose one with --where target=NAME "
            f"({', '.join(factors['target'])})"
        )
    return factors


def _recommend(
    table: StudyTable, where: Sequence[str], limits: Mapping[str, float]
) -> tuple[list[str], bool]:
    """What to use, in sentences, and whether any cell fits."""
    from analysis import compare
    from analysis.text.numbers import in_seeds, listed, quoted, short

    info = replace(table.info, factors=within(table, where))
    trials = table.trials[table.trials["cell"].isin(compare.cells(info.factors)["cell"])]
    choices = compare.choice(trials, info, limits)
    fit, out = choices[choices["fits"]], choices[~choices["fits"]]
    excluded = [f"left out: “{row['cell']}” ({row['why']})" for row in out.to_dict("records")]
    if fit.empty:
        near = out.dropna(subset="over").sort_values("over", kind="stable")
        nearest = [
            f"“{row['cell']}” is closest to the limits." for row in near[:1].to_dict("records")
        ]
        return [" ".join(["No cell fits.", *nearest]), *excluded], False
    best = fit.iloc[0]
    what = [f"test {info.metric} {100 * best['mean']:.1f}% ({in_seeds(best['n'])})"]
    if not math.isnan(best["seconds"]):
        what.append(f"{short(best['seconds'])} s of training")
    if not math.isnan(best["memory_mib"]):
        what.append(f"{short(best['memory_mib'])} MiB ({compare.memory_kind(trials)})")
    so_far = compare.describe_awaited(trials, info)
    text = [f"{so_far}Use “{best['cell']}”: {', '.join(what)}."]
    if lost := compare.lost_repeats(trials, best["cell"]):
        ended = listed([f"{count} {outcome}" for outcome, count in Counter(lost).items()])
        text.append(
            f"{len(lost)} of its {len(lost) + best['n']} repeats ended without a score ({ended}): it may "
            "fail again, and its scores are those of the others."
        )
    if len(fit) == 1:
        return [*text, "No other cell fits.", *excluded], True
    if best["by_test"]:
        text.append(
            "No validation scores were recorded; it has the highest test score, which is biased upwards."
        )
    else:
        last = " and stayed in the race longest" * (info.budget is not None)
        equal = fit.loc[fit["validation"] == best["validation"], "cell"].tolist()[1:]
        have = "have" if len(equal) > 1 else "has"
        shared = f", as {have} {listed(quoted(equal))}" if equal else ""
        text.append(
            f"It has the best mean validation score of the {len(fit)} cells that fit{last}{shared}."
        )
        leader = compare.best_by_test(choices)
        if leader != best["cell"]:
            text.append(
                f"“{leader}” has a higher test score, but cells are not chosen by test scores."
            )
    rivals = compare.more_seeds(trials, info, choices)
    for verdict, words in (
        ("higher", "Significantly better than"),
        ("lower", "Significantly worse than"),
        ("open", "Not significantly different from"),
    ):
        names = rivals.loc[rivals["verdict"] == verdict, "rival"]
        if len(names):
            text.append(f"{words}: {listed(quoted(names))}.")
    pairs = compare.contrasts(trials, info)
    if (behind := compare.most_behind(pairs, str(best["cell"]))) >= 0.05:  # points, in print
        text.append(
            f"No other cell of the study is more than {behind:.1f} points better (95% confidence)."
        )
    unclear = rivals[rivals["verdict"] != "higher"]
    if len(unclear):
        text.append(_advice(table, unclear.iloc[0]))
    return [*text, *excluded], True


def _advice(table: StudyTable, row: pd.Series) -> str:
    rival = f"“{row['rival']}”"
    points = f"a difference of {max(abs(row['lead']), 0.5):.1f} points"
    lead = f"{points} from {rival}"
    if row["seeds"] != row["seeds"] and row["n"] >= 8:
        return "All test scores are equal, so it is not known how much they vary over seeds."
    if row["seeds"] != row["seeds"]:
        folds = table.info.folds
        return (
            f"For more certainty, run every cell on at least {folds * math.ceil(8 / folds)} seeds, a rule of "
            f"thumb: these scores do not tell how many seeds would detect a difference of a given size."
        )
    if row["seeds"] == math.inf:
        return (
            f"More certainty is not worth the effort: to detect {lead}, more than 500 seeds would be "
            "needed; use the cheaper of the two."
        )
    if row["more"] == 0:
        return f"{row['n']} seeds detect {lead} with at least 80% power; more would change little."
    if table.info.budget is not None:
        return (
            f"For more certainty, give the race more time with a larger --budget: {lead} is not "
            "significant yet."
        )
    minutes = (
        f", about {row['minutes']:.1f} minutes for the two"
        if row["minutes"] == row["minutes"]
        else ""
    )
    again = re.sub(r" --repeats \d+", "", table.info.command)
    command = f". For every cell: {again} --repeats {row['seeds']:.0f}" if again else ""
    seeds = counted(f"{row['more']:.0f}", "more seed")
    return (
        f"For more certainty: {seeds} of it and of {rival} (to {row['seeds']:.0f}{minutes}) would detect "
        f"{points} with 80% power{command}"
    )


@undisturbed()
def recommend_cell(
    table: StudyTable, where: Sequence[str] = (), limits: Mapping[str, float] = {}
) -> list[str]:
    """What to use, the alternatives and how to become more certain, in sentences.

    Args:
        table: from `load_study`.
        where: "FACTOR=VALUE", to look at these cells only.
        limits: highest medians over repeats: train_seconds, peak_memory_mib, latency_ms, weights_mib.

    Raises:
        UserError: if there is no such factor or value, several targets remain, or a limit is not above 0.
    """
    for name, limit in limits.items():
        _require_above_zero(f"limit {name}", limit)
    return _recommend(table, where, limits)[0]


def _require_above_zero(name: str, value: float) -> None:
    if not value > 0:
        raise UserError(f"{name} must be above 0, got {value:g}")


WHAT = Parameter(
    group=Group("What to read (one of them)", validator=LimitedChoice(1, 1), sort_key=1)
)


def run(
    *,
    study: Annotated[str | None, WHAT] = None,
    table: Annotated[Path | None, WHAT] = None,
    mapping: Path | None = None,
    max_memory: Annotated[Size | None, SIZE] = None,
    max_minutes: float | None = None,
    max_latency_ms: float | None = None,
    max_size: Annotated[Size | None, SIZE] = None,
    where: Annotated[tuple[str, ...], Parameter(metavar="FACTOR=VALUE")] = (),
    tracking_uri: str | None = None,
) -> int:
    """Recommend a cell of a study within limits, and say how certain that is.

    Args:
        study: name of a study (MLflow experiment).
        table: table of trials from another program.
        mapping: file that says what the columns of the table mean (.toml, .json).
        max_memory: limit on the median peak memory of a repeat, e.g. 8GiB.
        max_minutes: limit on the median training time of a repeat.
        max_latency_ms: limit on the median latency for a single example.
        max_size: limit on the size of the weights, e.g. 20MiB.
        where: consider only cells with this value of a factor; may be repeated.
        tracking_uri: MLflow tracking URI; the default is sqlite:///mlruns/mlflow.db.

    Raises:
        UserError: if the study cannot be read, or a limit is invalid.
    """
    for name, value in (
        ("--max-memory", max_memory),
        ("--max-minutes", max_minutes),
        ("--max-latency-ms", max_latency_ms),
        ("--max-size", max_size),
    ):
        if value is not None:
            _require_above_zero(name, value)
    from analysis.load.external import open_study

    found = open_study(study, table, mapping, tracking_uri, predictions=False)
    given = {
        "train_seconds": max_minutes and 60 * max_minutes,
        "peak_memory_mib": max_memory and max_memory / MIB,
        "latency_ms": max_latency_ms,
        "weights_mib": max_size and max_size / MIB,
    }
    limits = {name: float(limit) for name, limit in given.items() if limit}
    text, any_fits = _recommend(found, where, limits)
    print(*text, sep="\n")
    return 0 if any_fits else 1


main = command("analysis.recommend", run, int)

if __name__ == "__main__":
    sys.exit(main())
