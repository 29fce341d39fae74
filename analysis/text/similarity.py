"""What was shown about the similarity of source and target?

    python -c "from analysis import compare, load, text; t = load.load_study('source_similarity'); \\
               print(*text.describe_similarity(compare.find(t).similarity), sep='\\n')"
"""

from __future__ import annotations

import pandas as pd

from analysis.compare import Similarity
from analysis.text.numbers import listed, quoted


def describe_similarity(known: Similarity) -> list[str]:
    """Whether similarity of source and target explains transfer, and how far a ranking without it goes."""
    text = _measures(known)
    if len(known.means):
        row = known.means[known.means["measure"] == "static"].iloc[0]
        text.append(
            f"A ranking of the sources that ignores the target (how they do on the other targets) agrees "
            f"with the scores at a mean weighted tau of {row['tau_w']:.2f} ({row['low']:.2f} to "
            f"{row['high']:.2f}, {row['targets']} targets): what a measure of similarity must beat."
        )
    return [*text, known.note] if known.note else text


def _measures(known: Similarity) -> list[str]:
    """The verdict on one or two measures in full; on more of them in sum, the table has the rest."""
    rows = known.verdicts
    if len(rows) <= 2:
        return list(rows["sentence"]) if len(rows) else []
    shown = rows[rows["verdict"] == "similarity"]
    source = rows[rows["verdict"] == "source"]
    text = f"Of {len(rows)} measures of similarity ({', '.join(rows['measure'])}) "
    if len(shown):
        text += (
            f"{listed(quoted(shown['measure']))} were shown to tell which source suits a target."
        )
    else:
        text += (
            "none was shown to tell which source suits a given target, beyond which sources are good "
            "everywhere."
        )
    if len(source):
        text += f" {listed(quoted(source['measure']))} tell good sources, not similarity."
    naive = known.slopes[(known.slopes["model"] == "naive") & (known.slopes["p_holm"] <= 0.05)]
    fooled = set(naive["measure"]) - set(shown["measure"])
    if fooled:
        text += (
            f" Least squares, which takes pairs that share a source for independent, would have called "
            f"{len(fooled)} more significant."
        )
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
            f"Not shown that the slope on any measure depends on {terms} ({len(tested)} of {len(rows)} "
            f"could be tested)."
        )
    parts = [
        f"on {row['measure']} with {_term(row['term'])} by {row['slope']:+.2g} logits per standard "
        f"deviation ({row['low']:+.2g} to {row['high']:+.2g})"
        for row in shown.to_dict("records")
    ]
    return (
        f"Shown that the slope changes {listed(parts)}; not for the other {len(rows) - len(shown)}."
    )


def _term(term: str) -> str:
    return "log size" if term == "ln size" else f"“{term}”"


def describe_variance(rows: pd.DataFrame) -> str:
    """What explains the scores, in one sentence.

    Args:
        rows: from `compare.variance_table`, with at least one row.
    """
    most = rows.to_dict("records")[int(rows["added"].argmax())]
    return (
        f"Targets explain {most['target']:.0%} of the variance of the logits and sources "
        f"{most['source']:.0%}; beyond both no measure explains more than {most['added']:.1%} "
        f"({most['measure']}, {most['n']} pairs)."
    )
