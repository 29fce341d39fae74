"""Costs of the cells, and which cells are worth their costs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pandas as pd

from analysis import compare, plots
from analysis.compare import Findings
from analysis.text.numbers import listed, numbers, quoted, short, shorts
from analysis.topics.scores import score
from analysis.topics.section import (
    Columns,
    Parts,
    Plot,
    Section,
    Table,
    cell_styles,
    over_seeds,
    repeats_of,
)
from harness.core.errors import counted
from harness.core.results import BUSY, WAITED

COSTS = {"train_seconds": "training time", "peak_memory_mib": "peak memory"}
"""Costs of the front, and their names in print."""
SURE = 0.95
"""Share of resamples above which a cell is said to be on the front."""


def section(found: Findings) -> Section:
    """Time and memory of all cells, the Pareto fronts, and the cells that exceeded a limit."""
    over_targets = len(found.ranks) > 0  # scores of different targets have no common front
    compared = found.trials[:0] if over_targets else found.trials
    fronts = compare.front_chance(compared, found.info)
    dead = compare.censored(found.trials, found.info)
    parts: Parts = []
    if not over_targets:
        parts += _plots(found, dead)
    parts.append(_table(found, fronts))
    if len(dead):
        parts.append(_censored(dead))
    tables = {"fronts": fronts, "censored": dead, "left_out": compare.left_out(found.trials)}
    return Section("Costs", parts, answer(found, fronts), tables=tables)


def _plots(found: Findings, dead: pd.DataFrame) -> list[Plot]:
    summary, metric, made = found.summary, found.info.metric, []
    cold = bool(summary["marginal_seconds_median"].notna().any())
    many = " Only cells on the front are named." * (len(summary) > plots.MANY)
    hollow = (
        " Hollow triangles: cells without a score, which ran out of memory or time, at the "
        "highest cost that was observed; their true cost is higher."
    ) * bool(len(dead))
    dead = dead[~dead["scored"]]
    marks = (
        f"Markers: mean test {metric} and median cost of {repeats_of(found)} repeats; vertical "
        "bars: intervals; horizontal bars: minimum and maximum of the cost. Dotted: the "
        f"Pareto front. {over_seeds(found)}"
    )
    clock = " Evaluation and set-up time are excluded." + (
        " Cold-equivalent: as if nothing had been cached by other trials." * cold
    )
    memory = f"Peak memory, {compare.memory_kind(found.trials)} (MiB)"
    seconds = f"Training time of one repeat{', cold-equivalent' * cold} (s)"
    for cost, name, label, bound, more in (
        ("train_seconds", "time", seconds, "seconds", clock),
        ("peak_memory_mib", "memory", memory, "memory_mib", ""),
    ):
        if (summary["mean"].notna() & (summary[f"{cost}_min"] > 0)).any():
            known = dead.loc[dead[bound] > 0, ["cell", bound]].itertuples(index=False, name=None)
            made.append(
                plot_cost(found, cost, name, label, marks + more + many + hollow, list(known))
            )
    return made


def _table(found: Findings, fronts: pd.DataFrame) -> Table:
    rows, metric = found.summary, found.info.metric
    kind = compare.memory_kind(found.trials)
    cold = rows["marginal_seconds_median"].notna().any()
    shown: Columns = {
        "Cell": list(rows["cell"]),
        "Training, s": _spread(rows, "train_seconds"),
    }
    if cold:
        shown["With the cache, s"] = _spread(rows, "marginal_seconds")
    shown["Peak memory, MiB"] = _spread(rows, "peak_memory_mib")
    if rows["forecast_mib"].notna().any() and "forecast" not in kind:
        shown["Forecast, MiB"] = shorts(rows["forecast_mib"])
    if busy := bool((rows[WAITED] > BUSY).any()):
        shown["Waited for the processor, %"] = numbers(rows[WAITED], ".0f", 100)
    note = "Median (minimum–maximum) over repeats." + (
        " Training is cold-equivalent: as if nothing had been cached by other trials; “with the "
        "cache” is the time that the run itself took."
    ) * bool(cold)
    note += f" Memory: {kind}."
    note += (
        f" Times of cells that waited more than {BUSY:.0%} were measured on a busy machine." * busy
    )
    if len(fronts):
        chance = fronts.set_index("cell")["chance"].reindex(rows["cell"])
        shown["On the front, % of resamples"] = numbers(chance, ".0f", 100)
        costs = [name for column, name in COSTS.items() if column in fronts["costs"].iloc[0]]
        note += (
            f" On the Pareto front of {listed([metric, *costs])}: share of bootstrap resamples of "
            "the seeds."
        )
    return Table(shown, note=note + " – : not measured.")


def _spread(rows: pd.DataFrame, cost: str) -> list[object]:
    """Median, minimum and maximum in print."""
    ends = (rows[f"{cost}_{name}"] for name in ("median", "min", "max"))
    return [
        f"{short(median)} ({short(low)}–{short(high)})" if median == median else "–"
        for median, low, high in zip(*ends, strict=True)
    ]


def _censored(rows: pd.DataFrame) -> Table:
    return Table(
        {
            "Cell": list(rows["cell"]),
            "Outcome": list(rows["outcome"]),
            "Runs": list(rows["runs"]),
            "All runs of the cell": list(rows["of"]),
            "Scored nevertheless": ["yes" if scored else "no" for scored in rows["scored"]],
            "Longest, s": shorts(rows["seconds"]),
            "Most memory, MiB": shorts(rows["memory_mib"]),
        },
        "Out of memory or time",
        (
            "The cost of such a run is only known to be higher than what was observed (measured, "
            "or else forecast): these values are right-censored, and not used for a front."
        ),
    )


def answer(found: Findings, fronts: pd.DataFrame) -> list[str]:
    """What the chosen cell costs, how certain it is that it is on the front, and which cheaper cell is not
    distinguishable from it."""
    if not found.chosen:
        return []
    scored = found.summary.dropna(subset="mean")
    best = scored[scored["cell"] == found.chosen].iloc[0]
    costs = _costs(best, found)
    if not costs:
        return ["Its cost was not measured."]
    text = f"It costs {costs} (median of {counted(best['n'], 'repeat')})."
    spent, cold = best["marginal_seconds_median"], best["train_seconds_median"]
    if spent == spent and spent < 0.98 * cold:
        text += (
            " This time is cold-equivalent, that is, as if nothing had been cached by other "
            f"trials; with the cache of this study it took {short(spent)} s."
        )
    rivals = compare.against(found.contrasts, found.chosen)
    equal = rivals.loc[rivals["verdict"] == "open", "reference"]
    cheap = scored[scored["cell"].isin(equal)].dropna(subset="train_seconds_median")
    cheap = cheap[cheap["train_seconds_median"] < best["train_seconds_median"]]
    if len(cheap):
        other = cheap.iloc[int(cheap["train_seconds_median"].argmin())]
        text += (
            f" “{other['cell']}”, which is not significantly different in "
            f"{found.info.metric}, costs {_costs(other, found)}."
        )
    sure = fronts[fronts["chance"] >= SURE]
    if len(fronts) > 1 and fronts["n"].max() > 1:
        names = listed(quoted(sure["cell"])) if len(sure) else "no cell"
        text += (
            f" On the Pareto front of {found.info.metric} and costs in at least {SURE:.0%} of bootstrap "
            f"resamples: {names}."
        )
    return [text]


def _costs(row: pd.Series, found: Findings) -> str:
    forecast = " (forecast)" * ("forecast" in compare.memory_kind(found.trials))
    parts = [
        f"{short(row[column])} {unit}"
        for column, unit in (
            ("train_seconds_median", "s of training"),
            ("peak_memory_mib_median", f"MiB of peak memory{forecast}"),
        )
        if row[column] == row[column]
    ]
    return " and ".join(parts)


def plot_cost(
    found: Findings,
    cost: str,
    name: str,
    label: str,
    caption: str,
    censored: Sequence[tuple[str, float]] = (),
) -> Plot:
    """Mean test score against the median of a cost, with the cells of the front connected by a line. Costs of
    0 are not shown on a logarithmic scale. If there are too many cells to name, only those on the front are
    coloured.

    Args:
        found: the study.
        cost: column prefix of the cost in its summary.
        name: name of the cost in the title, and prefix of the column of the front.
        label: label of the axis, with the unit in brackets.
        caption: caption of the plot.
        censored: cells without a score whose cost is known to be higher than a value: hollow triangles at the
            lower edge.
    """
    metric, style, front = found.info.metric, cell_styles(found), f"{name}_front"
    table = found.summary.dropna(subset=["mean", f"{cost}_median"])
    table = table[table[f"{cost}_min"] > 0].reset_index(drop=True)
    named = table[table[front]] if len(table) > plots.MANY else table
    figure, (axes,) = plots.canvas(4.2)
    for row in table.to_dict("records"):
        look = style[row["cell"]] if row["cell"] in set(named["cell"]) else plots.BACKGROUND
        x, y = row[f"{cost}_median"], row["mean"]
        axes.plot([row[f"{cost}_min"], row[f"{cost}_max"]], [y, y], color=look.color, lw=1.2)
        axes.plot([x, x], [row["low"], row["high"]], color=look.color, lw=1.2)
        size, over = (4, 2) if look is plots.BACKGROUND else (8, 4)
        mark = axes.plot(
            x, y, marker=look.marker, ms=size, color=look.color, mec="white", zorder=over
        )
        plots.annotate(
            mark[0], f"{row['cell']}: {score(row)}, {x:.3g} {label[label.rfind('(') + 1 : -1]}"
        )
    best = table[table[front]].sort_values(f"{cost}_median")
    corners = list(zip(best[f"{cost}_median"], best["mean"], strict=True))
    axes.step(*zip(*corners, strict=True), where="post", color=plots.INK, lw=1, ls=":", zorder=1)
    ends = [table[f"{cost}_min"].min(), table[f"{cost}_max"].max()]
    limits = [at_least for _, at_least in censored]
    plots.log_cost(axes, min([*ends, *limits]), max([*ends, *limits]), label)
    plots.percent(axes, "y", f"Test {metric}")
    axes.margins(y=0.12)
    for cell, at_least in censored:
        axes.plot(at_least, 0.03, marker=">", ms=8, mfc="white", ls="", clip_on=False,
                  mec=style[cell].color, transform=axes.get_xaxis_transform())  # fmt: skip
    rows = named.dropna(subset="low").to_dict("records")
    lines = [((r[f"{cost}_median"], r["low"]), (r[f"{cost}_median"], r["high"])) for r in rows]
    lines += [((r[f"{cost}_min"], r["mean"]), (r[f"{cost}_max"], r["mean"])) for r in rows]
    for (x0, y0), (x1, y1) in itertools.pairwise(corners):
        lines += [((x0, y0), (x1, y0)), ((x1, y0), (x1, y1))]
    if plots.crowded(named["cell"]):
        plots.add_key(figure, named["cell"], style)
    else:
        points = zip(named[f"{cost}_median"], named["mean"], named["cell"], strict=True)
        plots.place_labels(axes, [(x, y, cell, style[cell]) for x, y, cell in points], lines)
    return Plot(cost, f"{metric[:1].upper()}{metric[1:]} against {name}", figure, caption)
