"""Similarity of source and target, and whether it explains transfer."""

from __future__ import annotations

import pandas as pd

from analysis import compare, plots
from analysis.compare import Findings, Similarity
from analysis.text.numbers import intervals, listed, numbers, plain, quoted
from analysis.topics.section import Columns, Parts, Plot, Section, Table, repeats_of

METHODS = (
    "The effect of similarity on the logit of the score was tested in a mixed model with "
    "crossed random effects of sources and targets, in a model with fixed effects of both, and "
    "by permuting the sources. An effect is only reported if it is significant in all three, "
    "with the same sign, after Holm's adjustment."
)


def section(found: Findings) -> Section:
    """Rankings, slopes, interactions, variance shares and gains; empty without the factors source and target.

    Raises:
        UserError: if the given measures do not contain any of the pairs.
    """
    known = compare.similarity_effect(found.table, found.measures)
    parts: Parts = []
    if len(known.means):
        gain = [_plot_gain(found, known.points)] if len(known.points) else []
        parts += [_plot_agreement(known), *gain, _means(known.means)]
    if len(known.slopes):
        parts += [list(known.verdicts["sentence"]), _slopes(known)]
    if len(known.interactions):
        parts += _interactions(compare.interaction_verdicts(known.interactions))
    if len(known.variance):
        parts += _variance(known.variance)
    if len(known.gains):
        parts.append(_gains(known.gains))
    tables = {f"similarity_{k}": v for k, v in vars(known).items() if isinstance(v, pd.DataFrame)}
    methods = METHODS if len(known.slopes) else ""
    title = "Similarity of source and target"
    return Section(title, parts, describe_similarity(known), methods, tables)


def _means(rows: pd.DataFrame) -> Table:
    return Table(
        {
            "Measure": list(rows["measure"]),
            "Targets": list(rows["targets"]),
            "Mean weighted tau": numbers(rows["tau_w"], ".3f"),
            "95% interval": intervals(rows["low"], rows["high"], ".2f"),
            "Mean plain tau": numbers(rows["tau"], ".3f"),
            "Minus that of static": numbers(rows["lead"], "+.3f"),
            "95% interval of the difference": intervals(
                rows["lead_low"], rows["lead_high"], "+.2f"
            ),
        },
        note=(
            "Agreement of a measure with the test scores of the sources on each target (Kendall's "
            "tau). “static” is the mean rank of the source on the other targets, so it ignores "
            "the target; a measure that does not agree better than “static” gives no evidence "
            "that similarity matters. Intervals: t over targets."
        ),
    )


def _slopes(known: Similarity) -> Table:
    rows, blind = known.slopes, ", ".join(known.blind)
    same = f" Without a slope, because they are the same for all targets: {blind}." * bool(blind)
    strategies = {"Strategy": list(rows["strategy"])} if rows["strategy"].any() else {}
    return Table(
        {
            **strategies,
            "Measure": list(rows["measure"]),
            "Model": list(rows["model"]),
            "Slope, logits per SD": numbers(rows["slope"], "+.3f"),
            "95% interval": intervals(rows["low"], rows["high"], "+.2f"),
            "p": numbers(rows["p"], ".2g"),
            "p, Holm": numbers(rows["p_holm"], ".2g"),
            "Pairs": list(rows["n"]),
        },
        "Slopes of every measure and model",
        (
            "Naive: least squares, which treats the pairs of source and target as independent, and "
            "is shown only as a warning. Crossed: mixed model with random effects of sources and "
            f"targets. Fixed: fixed effects of both. Shuffled: permutation of whole sources.{same}"
        ),
    )


def _interactions(rows: pd.DataFrame) -> Parts:
    shown = Table(
        {
            "Measure": list(rows["measure"]),
            "Change with": list(rows["term"]),
            "Change of the slope": numbers(rows["slope"], "+.3f"),
            "95% interval": intervals(rows["low"], rows["high"], "+.2f"),
            "p crossed, Holm": numbers(rows["crossed"], ".2g"),
            "p fixed, Holm": numbers(rows["fixed"], ".2g"),
            "p shuffled, Holm": numbers(rows["shuffled"], ".2g"),
            "Pairs": list(rows["n"]),
        },
        "Does the slope depend on strategy or size?",
        (
            "Change in logits per standard deviation of the measure within its target; for “ln "
            "size”, also per unit of it. Pairs: of source and target, averaged over seeds. The "
            "interval is Wald's in the model with crossed random effects; the other p are those of "
            "fixed effects and of a permutation of whole sources. A change is shown if all three p "
            f"are at most .05 after Holm's adjustment over the {len(rows)} rows, and the slopes "
            "have the same sign."
        ),
    )
    return [shown, describe_interactions(rows)]


def _variance(rows: pd.DataFrame) -> Parts:
    shown = Table(
        {
            "Measure": list(rows["measure"]),
            "Target, %": numbers(rows["target"], ".1f", 100),
            "Source, %": numbers(rows["source"], ".1f", 100),
            "Measure in addition, %": numbers(rows["added"], ".2f", 100),
            "Measure before source, %": numbers(rows["at_most"], ".1f", 100),
            "Rest, %": numbers(rows["residual"], ".1f", 100),
            "Pairs": list(rows["n"]),
        },
        "Shares of the variance of the scores",
        (
            "Sequential sums of squares of the logits of pairs: target, then source, then the "
            "measure; “before source” is the share of the measure if it is entered before the "
            "source. No intervals."
        ),
    )
    return [shown, describe_variance(rows)]


def _gains(rows: pd.DataFrame) -> Table:
    shown: Columns = {
        "Source": [
            f"{source} (control)" if control else source
            for source, control in zip(rows["source"], rows["control"], strict=True)
        ]
    }
    for name in ("strategy", "size"):
        if name in rows:
            shown[name.capitalize()] = [plain(value) for value in rows[name]]
    shown["Gain, points"] = numbers(rows["gain"], "+.1f")
    shown["95% interval"] = intervals(rows["low"], rows["high"], "+.1f")
    shown["Targets"] = list(rows["targets"])
    note = (
        "Mean over targets of the mean difference from the run from random weights with the "
        "same target, seed, strategy and size; 95% t interval over targets."
    )
    return Table(shown, "Gain over scratch", note)


def describe_similarity(known: Similarity) -> list[str]:
    """Whether the similarity of source and target explains transfer, and how well a ranking without it
    does."""
    text = _measures(known)
    if len(known.means):
        row = known.means[known.means["measure"] == "static"].iloc[0]
        chance = row["tau_w"] <= 0
        text.append(
            "A ranking of the sources that ignores the target (by their results on the other "
            "targets) agrees with the test scores at a mean weighted tau of "
            f"{row['tau_w']:.2f} ({row['low']:.2f} to {row['high']:.2f}, {row['targets']} "
            "targets), "
            f"{'no better than chance' if chance else 'which a measure of similarity must exceed'}."
        )
    return [*text, known.note] if known.note else text


def _measures(known: Similarity) -> list[str]:
    """The verdicts on one or two measures in full; for more of them a summary, because the table has the
    details."""
    rows = known.verdicts
    if rows.empty:
        return []
    if len(rows) <= 2:
        return list(rows["sentence"])
    names = list(rows["measure"].unique())
    text = f"{len(names)} measures of similarity were tested ({', '.join(names)})."
    for strategy, own in rows.groupby("strategy", sort=False):
        under = f"Under “{strategy!s}”" if strategy else "Of these"
        passed = own.loc[own["verdict"] == "similarity", "measure"]
        source = own.loc[own["verdict"] == "source", "measure"]
        if len(passed):
            were = "were" if len(passed) > 1 else "was"
            text += (
                f" {under} {listed(quoted(passed))} {were} shown to predict which source suits a "
                "target."
            )
        else:
            text += (
                f" {under} none was shown to predict which source suits a given target, "
                "beyond predicting which sources are good for all targets."
            )
        if len(source):
            were = "were" if len(source) > 1 else "was"
            text += (
                f" {listed(quoted(source))} {were} only shown to predict which sources are good "
                "for all targets."
            )
    shown = rows[rows["verdict"] == "similarity"]
    naive = known.slopes[(known.slopes["model"] == "naive") & (known.slopes["p_holm"] <= 0.05)]
    keys = ["strategy", "measure"]
    fooled = len(naive) - len(naive[keys].merge(shown[keys]))
    if fooled:
        text += (
            " Least squares, which treats pairs with the same source as independent, would "
            f"have called {fooled} more significant."
        )
    if rests := int((shown["decisive"] > 0).sum()):
        text += f" {rests} of the {len(shown)} depend on few targets (see the list below)."
    return [text]


def describe_interactions(rows: pd.DataFrame) -> str:
    """Which slopes were shown to differ, in one sentence.

    Args:
        rows: from `compare.interaction_verdicts`, with at least one row.
    """
    tested = rows[rows["verdict"] != "untested"]
    shown = tested[tested["verdict"] == "similarity"]
    if shown.empty:
        terms = " or ".join(map(_term, rows["term"].unique()))
        return (
            f"No slope was shown to depend on {terms} ({len(tested)} of {len(rows)} could be "
            "tested)."
        )
    parts = [
        f"that on {row['measure']} with {_term(row['term'])}, by {row['slope']:+.2g} logits per "
        f"standard deviation ({row['low']:+.2g} to {row['high']:+.2g})"
        for row in shown.to_dict("records")
    ]
    return (
        f"Slopes that were shown to change: {listed(parts)}. Not shown: the other "
        f"{len(rows) - len(shown)}."
    )


def _term(term: str) -> str:
    return "log size" if term == "ln size" else f"“{term}”"


def describe_variance(rows: pd.DataFrame) -> str:
    """What explains the scores, in one sentence.

    Args:
        rows: from `compare.variance_shares`, with at least one row.
    """
    most = rows.to_dict("records")[int(rows["added"].argmax())]
    return (
        f"Targets explain {most['target']:.0%} of the variance of the logits, and sources "
        f"{most['source']:.0%}; in addition to both, no measure explains more than "
        f"{most['added']:.1%} ({most['measure']}, {most['n']} pairs)."
    )


def _plot_agreement(known: Similarity) -> Plot:
    """Weighted tau of each measure: a small marker per target, the mean over targets and its interval; the
    band contains 95% of shuffled rankings for one target."""
    table = known.agreement
    means = known.means.sort_values("tau_w", ascending=False, ignore_index=True)
    figure, (axes,) = plots.canvas(1.2 + 0.42 * len(means))
    reach = 1.96 * float(table["null_sd"].mean())
    axes.axvspan(-reach, reach, color="#eeeeee", zorder=0)
    axes.axvline(0, color=plots.INK, lw=1)
    for i, row in enumerate(means.to_dict("records")):
        own = table.loc[table["measure"] == row["measure"], "tau_w"].dropna()
        axes.plot(
            own, [i + 0.2] * len(own), ls="", marker="o", ms=4, mew=0, color=plots.BACKGROUND.color
        )
        plots.draw_interval(axes, i - 0.1, row["tau_w"], (row["low"], row["high"]), plots.MEAN)
    plots.name_rows(axes, list(means["measure"]))
    axes.set_xlabel("Weighted Kendall tau with the test scores")
    caption = (
        "Small markers: weighted Kendall tau between a measure and the test scores, one per "
        "target; large marker and bar: mean and 95% t interval over targets. Grey band: 95% "
        "of random orders of the sources for one target. “static” ignores the target: it is the "
        "mean rank of the source on the other targets."
    )
    return Plot("agreement", "Measures and the order of the sources", figure, caption)


def _plot_gain(found: Findings, points: pd.DataFrame) -> Plot:
    """Gain over scratch of each pair in points, with its interval, against the similarity of source and
    target; one panel per strategy and size, one colour per target; hollow markers are sources trained on
    altered data."""
    keys = [name for name in ("strategy", "size") if name in points]
    labels = pd.Series("", index=points.index)
    for name in keys:
        text = (
            points[name].map("{:g} examples per class".format) if name == "size" else points[name]
        )
        labels = labels.str.cat(text, sep=", " if labels.any() else "")
    figure, panels = plots.panel_grid(list(labels.unique()), row_height=2.3)
    style = plots.styles(list(points["target"].unique()))
    for row, label in zip(points.to_dict("records"), labels, strict=True):
        axes, look, x = panels[label], style[row["target"]], row["similarity"]
        axes.plot([x, x], [row["low"], row["high"]], color=look.color, lw=1, alpha=0.6, zorder=2)
        fill = {"mfc": "white", "mec": look.color} if row["control"] else {"mec": "white"}
        mark = axes.plot(x, row["gain"], marker=look.marker, ms=5, color=look.color, ls="", **fill)
        plots.annotate(
            mark[0], f"{row['source']} -> {row['target']}: {row['gain']:+.1f} points, {label}"
        )
    for axes in panels.values():
        axes.axhline(0, color=plots.INK, lw=1, zorder=1)
    measure = plots.escape(points["measure"].iloc[0])
    figure.supxlabel(f"{measure} (standard deviations within the target)", fontsize=10)
    figure.supylabel("Gain over scratch (points)", fontsize=10)
    plots.add_key(figure, style, style, "outside upper center")
    caption = (
        "One marker per source and target: mean difference in points from the run from random "
        f"weights with the same seed; bar: 95% t interval over {repeats_of(found)} seeds "
        "(pretraining and training sets of the target, not test examples). Horizontal axis: "
        f"{points['measure'].iloc[0]}, higher is more similar, standardised within each "
        "target. It was selected because it agrees best with these scores, so the relation "
        "probably looks stronger here than it would for new targets."
    )
    if points["control"].any():
        caption += (
            " Hollow markers: controls, which were trained on shuffled or permuted images or "
            "random labels."
        )
    return Plot("gain", "Gain over scratch against similarity", figure, caption)
