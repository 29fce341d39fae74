"""The cell to use: chosen by validation among the cells that fit limits on their costs.

    python -c "from analysis import compare, load_study; t = load_study('freeze_depth'); \\
               print(compare.choice(t.trials, t.info, {'train_seconds': 60}))"
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from statistics import fmean

import pandas as pd

from analysis.compare.contrasts import FEWEST, against, contrasts
from analysis.compare.costs import priced
from analysis.compare.runs import best_tuned, cells, completed, tuning
from analysis.load.race import race_standing
from analysis.load.study import Info
from harness.core.power import seeds_needed
from harness.core.race import rounding_error
from harness.core.results import OUTCOMES, RETRIED
from harness.core.selection import METRICS, preference

LIMITED = {
    "train_seconds": ("training", "s"),
    "peak_memory_mib": ("peak memory", "MiB"),
    "latency_ms": ("time of an example", "ms"),
    "weights_mib": ("weights", "MiB"),
}
"""Costs that can be limited -> their names in print, and their units."""
LEAST = 0.5
"""Points; a smaller lead is not worth more seeds."""


def choice(trials: pd.DataFrame, info: Info, limits: Mapping[str, float] = {}) -> pd.DataFrame:
    """All cells in the order of preference, those that fit the limits first, by the rule of
    `harness.core.selection`. After a race, cells that stayed for more seeds come first, compared on the seeds
    of the race.

    Costs are medians over repeats. A cell for which a limited cost was not measured does not fit.

    Args:
        trials: as loaded.
        info: the study.
        limits: column of LIMITED -> its highest value.

    Returns:
        cell, n (repeats with a test score), validation (mean of `info.selection` over the repeats), mean (of
        the test scores), seconds, memory_mib, by_test (whether cells are ranked by test scores, because no
        cell that fits has a validation score), fits, why (reason if it does not fit), over (the highest ratio
        of a cost to its limit; NaN without limits).
    """
    repeats, trained = priced(trials), completed(trials, "repeat").groupby("cell")["train_seconds"]
    race, selection = info.budget is not None, info.selection
    now = race_standing(trials, info.selection, info.choosing) if race else None
    seeds = {} if now is None else {cell: now.seeds[one] for cell, one in now.of_cell.items()}
    rows = []
    for cell in cells(info.factors)["cell"]:
        own = repeats[repeats["cell"] == cell]
        scores = own["test_score"].dropna()
        compared = own[own["index"] < seeds.get(cell, 0)] if race else own
        cost = {name: float(own[name].median()) for name in LIMITED}
        over = {name: cost[name] / limit for name, limit in limits.items()}
        why = "" if len(scores) else "no test score"
        for name, limit in limits.items():
            what, unit = LIMITED[name]
            if math.isnan(over[name]):
                why = why or f"{what} not measured"
            elif over[name] > 1:
                why = why or f"{what}: {cost[name]:.3g} {unit}, the limit is {limit:.3g}"
        validation = _mean(compared[selection]) if selection else math.nan
        rows.append(
            {"cell": cell, "n": len(scores), "validation": validation, "mean": scores.mean()}
            | {"seconds": cost["train_seconds"], "memory_mib": cost["peak_memory_mib"]}
            | {"fits": not why, "why": why, "over": max(over.values(), default=math.nan)}
        )
    table = pd.DataFrame(rows)
    fit = table[table["fits"]]
    table["by_test"] = bool(fit["validation"].isna().all())
    score = table["mean"] if table["by_test"].any() else table["validation"]
    turned = -score if selection == "val_loss" and not table["by_test"].any() else score
    seconds = table["cell"].map({cell: _mean(own) for cell, own in trained})
    keys = [preference(v, s) for v, s in zip(turned, seconds, strict=True)]
    stayed = [-seeds.get(cell, 0) for cell in table["cell"]]
    order = sorted(range(len(table)), key=lambda i: (not table["fits"][i], stayed[i], keys[i]))
    return table.iloc[order].reset_index(drop=True)


def _mean(values: pd.Series) -> float:
    """Correctly rounded mean without NaNs, which does not depend on the order, so that ties are the same here
    and in `harness.deploy.choice`."""
    known = values.dropna().tolist()
    return fmean(known) if known else math.nan


def chosen_by(trials: pd.DataFrame, info: Info, metric: str) -> str:
    """The cell that the validation values of a metric would choose; "" if none were recorded."""
    selection = METRICS[metric].validation
    if selection not in trials:
        return ""
    table = choice(trials, replace(info, selection=selection))
    return "" if table["by_test"].any() else str(table["cell"].iloc[0])


def best_by_test(table: pd.DataFrame) -> str:
    """The cell with the highest mean test score among those of `choice` that fit; "" if there is none."""
    fit = table[table["fits"]]
    return "" if fit.empty else str(fit["cell"].iloc[int(fit["mean"].argmax())])


def lost_repeats(trials: pd.DataFrame, cell: str) -> list[str]:
    """How those repeats of a cell ended that have no score, although they are not run again: one outcome for
    each."""
    own = trials[(trials["cell"] == cell) & (trials["phase"] == "repeat") & ~trials["superseded"]]
    ended = own[own["outcome"].isin({*OUTCOMES} - {"killed"})]
    scored = ended.loc[ended["outcome"] == "complete", "index"]
    lost = ended[~ended["index"].isin(scored)].drop_duplicates("index", keep="last")
    return lost["outcome"].tolist()


def stale_choices(trials: pd.DataFrame, info: Info) -> dict[str, int]:
    """Cells whose repeats use another configuration than the best of all tuning trials, for example because
    the study was resumed with fewer trials -> the index of that best trial."""
    best = best_tuned(trials, info.selection).set_index("cell")["index"]
    repeats = completed(trials, "repeat").dropna(subset=["test_score", "chosen"])
    stale = repeats[repeats["chosen"] != repeats["cell"].map(best)]
    return {cell: int(best.get(cell, -1)) for cell in stale["cell"].unique()}


def describe_awaited(trials: pd.DataFrame, info: Info) -> str:
    """A sentence and a space if the study is not finished: how many cells have no test score, but will have
    one when it is resumed. "" if there are none; in a race, cells that are set aside get none."""
    if info.rows or info.budget is not None or not info.repeats:
        return ""
    names = cells(info.factors)["cell"]
    scored = set(completed(trials, "repeat").dropna(subset="test_score")["cell"])
    tune = tuning(trials)
    awaited = 0
    for cell in (name for name in names if name not in scored):
        own = tune[tune["cell"] == cell]
        ended = own.loc[own["outcome"].isin({*OUTCOMES} - RETRIED), "index"].nunique()
        hopeless = ended >= info.trials and not (own["outcome"] == "complete").any()
        awaited += not hopeless and len(lost_repeats(trials, cell)) < info.repeats
    if not awaited:
        return ""
    have = "has" if awaited == 1 else "have"
    return (
        f"This is provisional, because the study is not finished: {awaited} of {len(names)} cells {have} no "
        "test score yet. "
    )


def most_behind(table: pd.DataFrame, cell: str) -> float:
    """By how many points a cell may be worse than the best one, with 95% confidence: the largest end of the
    simultaneous intervals of `contrasts` against the other cells. NaN if no other cell was tested, or nothing
    is known."""
    pairs = against(table, cell)
    low = pairs["low"].dropna()
    behind = max(0.0, -float(low.min())) if len(low) else math.nan
    return behind if behind < 100 else math.nan


def more_seeds(trials: pd.DataFrame, info: Info, table: pd.DataFrame) -> pd.DataFrame:
    """Runs that would be needed to distinguish the chosen cell from each other cell that fits.

    Args:
        trials: as loaded.
        info: the study.
        table: from `choice`.

    Returns:
        rival, n (shared seeds), lead (points), verdict, seeds (number with which a difference of that size,
        at least LEAST, is found with probability .8 by the rule of `contrasts`; inf if more than are worth
        it, NaN if there are too few to tell), more (seeds in addition to n) and minutes (duration of these
        runs of both cells as whole trials, if measured). In the order of `choice`.
    """
    fit = table[table["fits"]]
    columns = ["rival", "n", "lead", "verdict", "seeds", "more", "minutes"]
    if len(fit) < 2:
        return pd.DataFrame(columns=columns)
    best = str(fit["cell"].iloc[0])
    repeats = completed(trials, "repeat")
    spent = repeats.groupby("cell")[["total_seconds", "train_seconds"]].median()
    each = spent["total_seconds"].fillna(spent["train_seconds"])
    pairs = against(contrasts(trials, info), best).set_index("reference")
    scores = 100 * repeats.pivot(index="seed", columns="cell", values="test_score")
    floor = rounding_error(scores.to_numpy(dtype=float))
    rows = []
    for rival in fit["cell"].iloc[1:]:
        row = pairs.loc[rival]
        sd = max(float((scores[best] - scores[rival]).std(ddof=1)), floor)
        sd = sd if row["n"] >= FEWEST and sd > 0 else math.nan
        lead, family = max(abs(row["difference"]), LEAST), max(1, int(row["pairs"]))
        needed = seeds_needed(sd, lead, family, info.folds)
        more = max(0.0, needed - row["n"])
        rows.append(
            {"rival": rival, "n": row["n"], "lead": row["difference"], "verdict": row["verdict"]}
            | {"seeds": needed, "more": more}
            | {"minutes": more * float(each[best] + each[rival]) / 60}
        )
    return pd.DataFrame(rows, columns=columns)
